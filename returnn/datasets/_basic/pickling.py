"""
Pickling of datasets by constructor arguments, not by state.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from returnn.errors import DatasetError

__all__ = ["collect_new_kwargs", "create_from_reduce"]

_FIXED_BY_CLASS = re.compile(r"got multiple values for (?:keyword )?argument '(\w+)'")
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def collect_new_kwargs(obj: object, base: type, *, skip_of_base: frozenset[str] = frozenset()) -> dict[str, Any]:
    """
    The arguments with which an equal object can be constructed: for each class from the object's class up to ``base``,
    each by-name parameter of its ``__init__``, from the attribute ``_NAME`` if it exists, else ``NAME``.
    The class attributes ``_getnewargs_exclude_attrs`` (names to leave out)
    and ``_getnewargs_remap`` (parameter name -> attribute name) are respected, those of all classes together.

    :param obj: instance of base
    :param base: e.g. Dataset
    :param skip_of_base: parameters of ``base.__init__`` that are left out, unless another class declares them too
    :return: keyword arguments. Any: each argument has its own type
    :raises DatasetError: an argument was not stored
    """
    classes = [cls for cls in type(obj).__mro__ if issubclass(cls, base)]
    exclude: set[str] = set()
    remap: dict[str, str] = {}
    for cls in reversed(classes):
        exclude.update(vars(cls).get("_getnewargs_exclude_attrs", ()))
        remap.update(vars(cls).get("_getnewargs_remap", {}))
    kwargs: dict[str, Any] = {}
    for cls in classes:
        if "__init__" not in vars(cls):
            continue
        params = inspect.signature(vars(cls)["__init__"]).parameters
        for name, param in list(params.items())[1:]:
            if param.kind not in _BY_NAME or name in exclude or name in kwargs:
                continue
            if cls is base and name in skip_of_base:
                continue
            attrs = [remap[name]] if name in remap else [f"_{name}", name]
            for attr in attrs:
                if hasattr(obj, attr):
                    kwargs[name] = getattr(obj, attr)
                    break
            else:
                raise DatasetError(
                    f"{obj!r} cannot be copied to another process: the argument {name!r} of {cls.__qualname__}.__init__ "
                    f"was not stored. Set self.{attrs[-1]} in the constructor, "
                    f"or name it in the class attribute _getnewargs_exclude_attrs."
                )
        if all(param.kind is not inspect.Parameter.VAR_KEYWORD for param in params.values()):
            break  # what the classes above take cannot be passed through this one: it fixes these arguments itself
    return kwargs


def create_from_reduce(cls: type, kwargs: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
    """
    :param cls: class of the dataset
    :param kwargs: by :func:`collect_new_kwargs`
    :param state: attributes to set afterwards
    :return: new object. Any: of type cls
    """
    kwargs = dict(kwargs)
    while True:
        try:
            obj = cls(**kwargs)
            break
        except TypeError as exc:
            # A class of the user that sets an argument of its base itself, and passes all others on as **kwargs.
            match = _FIXED_BY_CLASS.search(str(exc))
            if match is None or match[1] not in kwargs or match[1] in inspect.signature(cls).parameters:
                raise
            del kwargs[match[1]]
    for name, value in state.items():
        setattr(obj, name, value)
    return obj
