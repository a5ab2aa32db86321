"""
Whether code of users is at work when a dataset is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset

__all__ = ["has_user_code"]

_PLAIN = (bool, int, float, str, bytes, type(None), numpy.ndarray, numpy.generic)
#: Arguments with more items are not looked through.
_MAX_ITEMS = 1000


def has_user_code(dataset: Dataset) -> bool:
    """
    :param dataset: any
    :return: False: it and all below it are of our classes, and none of them has a function or object of the user. Else True,
        also in doubt
    """
    if not all(_is_ours(cls) for cls in type(dataset).__mro__):
        return True
    try:
        kwargs = dataset.__reduce__()[1][1]
        return not _is_plain(kwargs) or any(has_user_code(child) for child in dataset.child_datasets())
    except Exception:  # of a dataset that cannot be copied
        return True


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith("returnn.") or cls.__module__ in ("builtins", "abc", "typing")


def _is_plain(value: object) -> bool:
    """:return: whether there is no function or object of the user in it"""
    if isinstance(value, _PLAIN):
        return not (isinstance(value, numpy.ndarray) and value.dtype.hasobject)
    if isinstance(value, Mapping):
        return len(value) <= _MAX_ITEMS and all(_is_plain(v) for v in value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return len(value) <= _MAX_ITEMS and all(map(_is_plain, value))
    return not callable(value) and _is_ours(type(value))
