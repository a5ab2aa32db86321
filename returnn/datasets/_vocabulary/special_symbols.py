"""
The options of a vocabulary that name special labels, given directly or by a file.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from returnn.datasets._vocabulary.files import read_literal_dict
from returnn.errors import DataFileError, OptionError, describe
from returnn.util.markers import NotSpecified

__all__ = ["SpecialSymbols"]

_DEFAULT_UNKNOWN_LABEL = "UNK"


@dataclasses.dataclass(frozen=True)
class SpecialSymbols:
    """Labels or ids, as the user gave them."""

    unknown_label: str | int | None
    bos_label: str | int | None
    eos_label: str | int | None
    pad_label: str | int | None
    control_symbols: Mapping[str, str | int]
    user_defined_symbols: Mapping[str, str | int]

    @classmethod
    def from_options(
        cls,
        *,
        filename: str | os.PathLike[str] | None,
        unknown_label: str | int | None | type[NotSpecified],
        control_symbols: Mapping[str, str | int] | None,
        user_defined_symbols: Mapping[str, str | int] | None,
        **labels: str | int | None,
    ) -> SpecialSymbols:
        """
        :param filename: of a Python dict literal with these options. What is given directly wins; dicts are merged
        :param unknown_label: NotSpecified: from the file, else "UNK". None is a value: unknown labels are errors
        :param control_symbols: name -> label
        :param user_defined_symbols: name -> label
        :param labels: bos_label, eos_label, pad_label
        :raises DataFileError: broken file
        :raises OptionError: the option is not of the right type
        """
        options: dict[str, Any] = {}  # Any: values of several types
        if filename is not None:
            options = dict(read_literal_dict(os.fspath(filename)))
            known = [field.name for field in dataclasses.fields(cls)]
            for name in options:
                if name not in known:
                    where = f"special_symbols_via_file {os.fspath(filename)!r}"
                    raise DataFileError(describe("Unknown key", where=where, expected=f"one of {known}", got=name))
        if unknown_label is not NotSpecified:
            options["unknown_label"] = unknown_label
        options.setdefault("unknown_label", _DEFAULT_UNKNOWN_LABEL)
        for name, label in labels.items():
            options[name] = label if label is not None else options.get(name)
        for name, direct in (("control_symbols", control_symbols), ("user_defined_symbols", user_defined_symbols)):
            for value in (direct, options.get(name)):
                if not (value is None or isinstance(value, Mapping)):
                    raise OptionError(name, expected="dict of name to label or id", got=value)
            options[name] = {**(options.get(name) or {}), **(direct or {})}
        return cls(**options)
