"""Options that only the export to ONNX reads: descriptions of inputs and outputs, and the user's own export function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import returnn.options.unsupported  # noqa: F401  # declares the options: a run does not use them
from returnn.errors import ModelError, OptionError
from returnn.options.registry import read
from returnn.tensor import Tensor

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
        return cls(
            extern_data=_templates(config, "extern_data"),
            model_outputs=_templates(config, "model_outputs"),
            export=export,
        )


def _templates(config: Config | Mapping[str, Any], name: str) -> Mapping[str, Tensor] | None:
    value = read(config, name)
    if value is None:
        return None
    if not isinstance(value, Mapping) or not value:
        raise OptionError(
            name,
            expected="a dict from names to descriptions",
            got=value,
            todo=f"Set e.g. {name} = {{'data': {{'dim': 9}}}}",
        )
    res = {}
    for key, opts in value.items():
        if isinstance(opts, Tensor):
            res[key] = opts
            continue
        if not isinstance(opts, Mapping):
            raise OptionError(name, expected=f"a dict for {key!r}", got=opts, todo="Write e.g. {'dim': 9}")
        try:
            # The name in the description, if any, is only for messages.
            res[key] = Tensor(key, **{k: v for k, v in opts.items() if k not in ("name", "vocab")})
        except ModelError as exc:
            raise OptionError(name, expected="descriptions of tensors", got=dict(opts), todo=str(exc)) from exc
    return res
