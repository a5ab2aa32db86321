"""
The registry of config options: each is declared once, with type, default, one sentence and the module that reads it.

A module below ``returnn/options/`` declares its options with :func:`declare` and is the only reader of them:
it turns a config into a frozen dataclass ("section") whose fields then travel as arguments.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from returnn.errors import ConfigError, OptionError

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = [
    "Option",
    "declare",
    "lookup",
    "all_options",
    "check_known_keys",
    "closest_names",
    "is_given",
    "read",
    "options_read",
    "REQUIRED",
]

Status = Literal["supported", "ignored", "refused", "later"]
#: Default of an option that has none.
REQUIRED: Any = type("Required", (), {"__repr__": lambda self: "(required)", "__reduce__": lambda self: "REQUIRED"})()


@dataclasses.dataclass(frozen=True)
class Option:
    """
    One config option.

    status: "supported"; "ignored": accepted, without effect, silently (old pipelines set it always);
    "later": known, not yet supported here; "refused": known, will not be supported.
    """

    name: str
    types: str  # for humans, e.g. "int | dict[str, int] | None"
    default: Any
    doc: str  # one sentence
    aliases: tuple[str, ...] = ()
    status: Status = "supported"
    instead: str = ""  # for "later" and "refused": what to use instead
    tasks: tuple[str, ...] = ()  # tasks in which the option has an effect; empty: any
    section: str = ""  # filled in by declare: the declaring module


_options: dict[str, Option] = {}
_by_alias: dict[str, Option] = {}


def declare(*options: Option) -> None:
    """
    Register options for the calling module.

    :raises RuntimeError: a name is declared twice (our own mistake)
    """
    section = sys._getframe(1).f_globals["__name__"]
    for option in options:
        option = dataclasses.replace(option, section=section)
        for name in (option.name, *option.aliases):
            other = _by_alias.get(name)
            if other is not None and other.section != section:
                raise RuntimeError(f"option {name!r} is declared in {other.section} and in {section}")
            _by_alias[name] = option
        _options[option.name] = option


def lookup(name: str) -> Option | None:
    """:return: the option with that name or alias"""
    return _by_alias.get(name)


def all_options() -> list[Option]:
    """:return: all declared options, sorted by section and name"""
    return sorted(_options.values(), key=lambda o: (o.section, o.name))


def closest_names(name: str, candidates: Iterable[str] | None = None, n: int = 1) -> list[str]:
    """:return: at most n known option names that a misspelt name may have meant"""
    known = list(candidates) if candidates is not None else list(_by_alias)
    for prefix in ("num_", "max_"):  # "epochs" is nearer to "num_epochs" than to "epoch" in what it means
        if prefix + name in known:
            return [prefix + name]
    return difflib.get_close_matches(name, known, n=n, cutoff=0.8)


def check_known_keys(name: str, given: Iterable[object], known: Sequence[str], *, example: str) -> None:
    """
    :param name: option whose value is a dict
    :param given: its keys
    :param known: those that there are
    :param example: what to do if no known key is similar
    :raises OptionError: an unknown key; names a similar one
    """
    for key in given:
        if key not in known:
            guess = closest_names(str(key), known)
            raise OptionError(
                name,
                expected=f"only the keys {', '.join(known)}",
                got=key,
                todo=f"Did you mean {guess[0]!r}?" if guess else example,
            )


def _has(config: Config | Mapping[str, Any], name: str) -> bool:
    return config.has(name) if hasattr(config, "typed_value") else name in config  # type: ignore[operator,union-attr]


def _get(config: Config | Mapping[str, Any], name: str) -> Any:
    if hasattr(config, "typed_value"):
        return config.typed_value(name)
    return config[name]


def is_given(config: Config | Mapping[str, Any], name: str) -> bool:
    """:return: whether the option is set in the config under its name or an alias"""
    option = _by_alias.get(name)
    return any(_has(config, n) for n in ((option.name, *option.aliases) if option else (name,)))


def options_read(config: Config) -> set[str]:
    """:return: names (as spelt in the config) of the options that :func:`read` looked up so far in this config"""
    names: set[str] = config.__dict__.setdefault("_options_read", set())
    return names


def read(config: Config | Mapping[str, Any], name: str, default: Any = ...) -> Any:
    """
    The value of an option, under its name or any alias, or its declared default.

    :param config: Config, or a plain dict (client code builds parts from a dict)
    :param name: declared name. Any: each option has its own type, its section checks it
    :param default: overrides the declared default
    :raises ConfigError: the option is given under two names with different values
    """
    option = _by_alias[name]
    found: list[tuple[str, Any]] = []
    for n in (option.name, *option.aliases):
        if _has(config, n):
            found.append((n, _get(config, n)))
            if hasattr(config, "typed_value"):
                options_read(config).add(n)  # type: ignore[arg-type]
    if not found:
        return option.default if default is ... else default
    first_name, value = found[0]
    for other_name, other in found[1:]:
        if _differ(value, other):
            raise ConfigError(
                f'options "{first_name}" ({value!r}) and "{other_name}" ({other!r}) are two names of the same thing, '
                "but their values differ. Set only one of them."
            )
    return value


def _differ(a: Any, b: Any) -> bool:
    try:
        return bool(a != b)
    except Exception:  # e.g. arrays: compare by identity then
        return a is not b
