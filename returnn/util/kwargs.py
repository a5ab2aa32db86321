"""
Which arguments a class takes.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = [
    "getargspec",
    "collect_class_init_kwargs",
    "collect_mandatory_class_init_kwargs",
    "help_on_type_error_wrong_args",
    "type_attrib_mro_chain",
    "next_type_attrib_in_mro_chain",
    "simple_obj_repr_args",
]


def getargspec(func: Callable[..., Any]) -> inspect.FullArgSpec:
    """:return: as ``inspect.getfullargspec``"""
    return inspect.getfullargspec(func)


def _own_inits(cls: type) -> Iterable[inspect.FullArgSpec]:
    for base in inspect.getmro(cls):
        init = base.__dict__.get("__init__")
        # Only functions written in Python tell their arguments.
        if inspect.isfunction(init):
            yield inspect.getfullargspec(init)


def collect_class_init_kwargs(cls: type, only_with_default: bool = False, *, keyword_only: bool = False) -> Any:
    """
    :param cls: with its base classes, each ``__init__`` written in Python counts
    :param only_with_default: give a dict of defaults (that of a base class wins, as in the peers)
    :param keyword_only: also the keyword-only arguments (at the end of each class' own)
    :return: list of argument names, without the first (self), or dict name -> default
    """
    names: dict[str, Any] = {}
    for spec in _own_inits(cls):
        args = spec.args[1:]
        defaults = dict(zip(args[len(args) - len(spec.defaults or ()) :], spec.defaults or (), strict=True))
        if keyword_only:
            args = args + spec.kwonlyargs
            defaults.update(spec.kwonlydefaults or {})
        if only_with_default:
            names.update({arg: defaults[arg] for arg in args if arg in defaults})
        else:
            names.update(dict.fromkeys(args))
    return names if only_with_default else list(names)


def collect_mandatory_class_init_kwargs(cls: type) -> list[str]:
    """:return: names of the arguments of ``__init__`` (own and of base classes) which have no default anywhere"""
    with_default = collect_class_init_kwargs(cls, only_with_default=True, keyword_only=True)
    return [name for name in collect_class_init_kwargs(cls, keyword_only=True) if name not in with_default]


def help_on_type_error_wrong_args(cls: type, kwargs: Iterable[str]) -> str:
    """
    :param cls: was called and raised TypeError
    :param kwargs: names of the arguments given
    :return: sentences about missing and unknown arguments; "" if there is nothing to say
    """
    given = list(kwargs)
    known = collect_class_init_kwargs(cls, keyword_only=True)
    own = [
        name
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    # An argument of the class itself may have a default in a base class only.
    needed = dict.fromkeys([*collect_mandatory_class_init_kwargs(cls), *own])
    missing = [name for name in needed if name not in given]
    sentences = []
    if missing:
        sentences.append(f"{cls.__name__} needs {', '.join(missing)}.")
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            sentences.append(f"{cls.__name__} has no argument {name}.{hint}")
    return " ".join(sentences)


def type_attrib_mro_chain(cls: type, attr_name: str) -> list[Any]:
    """:return: the attribute as defined by each class of the MRO which defines it"""
    return [base.__dict__[attr_name] for base in inspect.getmro(cls) if attr_name in base.__dict__]


def next_type_attrib_in_mro_chain(cls: type, attr_name: str, attr: Any) -> Any:
    """
    :param attr: one of the definitions
    :return: the definition after that
    :raises ValueError: it is not in the chain, or the last
    """
    chain = type_attrib_mro_chain(cls, attr_name)
    for i, candidate in enumerate(chain[:-1]):
        if candidate is attr:
            return chain[i + 1]
    raise ValueError(f"{cls.__name__}.{attr_name}: {attr!r} has no further definition in the base classes")


def simple_obj_repr_args(obj: Any) -> Mapping[str, Any]:
    """:return: name -> attribute, for the arguments of its class' own ``__init__``"""
    return {name: getattr(obj, name) for name in inspect.getfullargspec(type(obj).__init__).args[1:]}
