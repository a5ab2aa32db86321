"""Options of the compilation of the step function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from returnn.errors import OptionError
from returnn.options.registry import Option, check_known_keys, declare, read

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["CompileOptions"]

declare(
    Option(
        "torch_compile",
        "bool | dict(backend, mode, dynamic, fullgraph, options, suppress_errors)",
        False,
        "Compile train_step with torch.compile, for training and for evaluation. Entries of the dict are its arguments (dynamic is "
        "True here: new lengths need no new compilation); suppress_errors = True: if it cannot be compiled, warn and run it as it is.",
        tasks=("train", "eval"),
    ),
)

_KEYS = ("backend", "mode", "dynamic", "fullgraph", "options", "suppress_errors")
_EXAMPLE = 'Set e.g. torch_compile = True, or torch_compile = {"mode": "max-autotune-no-cudagraphs"}'


@dataclasses.dataclass(frozen=True)
class CompileOptions:
    """Arguments of torch.compile, and what to do if it fails."""

    # Any: a name, or a function of the user.
    backend: str | Callable[..., Any] = "inductor"
    mode: str | None = None
    # None: torch starts with fixed shapes, and compiles again with dynamic ones where they change.
    dynamic: bool | None = True
    fullgraph: bool = False
    # Of the backend. Any: each has its own type.
    options: Mapping[str, Any] | None = None
    suppress_errors: bool = False

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> CompileOptions | None:
        """
        :param config:
        :return: None: off
        :raises OptionError: unknown keys, or wrong types. Names of backends and modes are known by torch only
        """
        value = read(config, "torch_compile")
        if value is None or value is False:
            return None
        if value is True:
            return cls()
        if not isinstance(value, Mapping):
            raise OptionError("torch_compile", expected="True, False or a dict", got=value, todo=_EXAMPLE)
        check_known_keys("torch_compile", value, _KEYS, example=_EXAMPLE)
        _check(value, "backend", "a name or a function", lambda x: isinstance(x, str) or callable(x))
        _check(value, "mode", "a name or None", lambda x: x is None or isinstance(x, str))
        _check(value, "dynamic", "True, False or None", lambda x: x is None or isinstance(x, bool))
        _check(value, "fullgraph", "True or False", lambda x: isinstance(x, bool))
        _check(value, "options", "a dict or None", lambda x: x is None or isinstance(x, Mapping))
        _check(value, "suppress_errors", "True or False", lambda x: isinstance(x, bool))
        if value.get("mode") and value.get("options"):
            raise OptionError(
                "torch_compile", expected='either "mode" or "options"', got=dict(value), todo="Remove one of them"
            )
        return cls(**{str(key): entry for key, entry in value.items()})


def _check(value: Mapping[str, Any], key: str, expected: str, is_right: Callable[[Any], bool]) -> None:
    """
    :param value: of the option. Any: each entry has its own type
    :param key: of the entry
    :param expected: for the error
    :param is_right: whether the entry is
    :raises OptionError: it is not
    """
    if key in value and not is_right(value[key]):
        raise OptionError("torch_compile", expected=f'{expected} for "{key}"', got=value[key], todo=_EXAMPLE)
