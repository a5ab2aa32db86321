"""Options that only the export to ONNX reads: descriptions of inputs and outputs, and the user's own export function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import returnn.options.unsupported  # noqa: F401  # declares the options: a run does not use them
from returnn.errors import OptionError
from returnn.options.extern_data import ExternDataOptions
from returnn.options.registry import read
from returnn.tensor import Tensor, TensorDict

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["ExportOptions"]


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """As given, the descriptions as templates."""

    extern_data: Mapping[str, Tensor] | None
    model_outputs: Mapping[str, Tensor] | None
    export: Callable[..., Any] | None  # Any: of the user

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> ExportOptions:
        """
        :param config: the user's
        :raises OptionError: a value is invalid
        """
        export = read(config, "export")
        if export is not None and not callable(export):
            raise OptionError("export", expected="a function", got=export)
        described = ExternDataOptions.from_config(config)
        return cls(
            extern_data=_entries("extern_data", described.extern_data),
            model_outputs=_entries("model_outputs", described.model_outputs),
            export=export,
        )


def _entries(name: str, templates: TensorDict | None) -> Mapping[str, Tensor] | None:
    if templates is not None and not templates.data:
        raise OptionError(
            name, expected="at least one entry", got={}, todo=f"Set e.g. {name} = {{'data': {{'dim': 9}}}}"
        )
    return None if templates is None else templates.data
