"""
Small mathematical functions and schedules for configs.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

__all__ = [
    "PiecewiseLinear",
    "StepFunction",
    "merge_random_seeds",
    "ceil_div",
    "next_power_of_two",
    "simplify_and_format_number",
]

_T = TypeVar("_T")


def ceil_div(a: int, b: int) -> int:
    """:return: a / b, rounded up"""
    return -(-a // b)


def next_power_of_two(n: int) -> int:
    """:return: smallest power of two which is >= n, for n >= 1. For 0 it is 2"""
    return 2 ** (int(n - 1).bit_length())


def simplify_and_format_number(n: float) -> str:
    """:return: without trailing zeros after the point: 0.10 -> "0.1", 2.0 -> "2", 100 -> "100" """
    if isinstance(n, int):
        return str(n)
    return f"{n:.4f}".rstrip("0").rstrip(".") if abs(n) >= 1e-3 or n == 0 else f"{n:g}"


def merge_random_seeds(data_sources: Iterable[int], *, num_bytes: int = 4, signed: bool = False) -> int:
    """
    One seed from several numbers: the first bytes of the SHA-256 of the numbers, each as 8 bytes (big endian, signed).

    :param data_sources: e.g. epoch, step, seed, rank
    :param num_bytes: size of the result
    :param signed: whether the result may be negative
    """
    digest = hashlib.sha256(b"".join(int(n).to_bytes(8, "big", signed=True) for n in data_sources)).digest()
    return int.from_bytes(digest[:num_bytes], "big", signed=signed)


class _KeyedFunction(Generic[_T]):
    """Function of one number, given by a dict; and the rules for its argument."""

    def __init__(
        self, values: Mapping[float, _T], *, kw_name: str | None = None, ignore_other_kwargs: bool = False
    ) -> None:
        """
        :param values: argument -> value, not empty
        :param kw_name: the argument is this keyword (then a positional one is an error); default: it is positional
        :param ignore_other_kwargs: whether other keywords are allowed, for callers that pass several
        """
        if not values:
            raise ValueError(f"{type(self).__name__}: expected at least one value, got an empty dict")
        self._values = dict(values)
        self._kw_name = kw_name
        self._ignore_other_kwargs = ignore_other_kwargs
        self._sorted_keys = sorted(self._values)

    def __repr__(self) -> str:
        args = [repr(self._values)]
        if self._kw_name is not None:
            args.append(f"kw_name={self._kw_name!r}")
        if self._ignore_other_kwargs:
            args.append("ignore_other_kwargs=True")
        return f"{type(self).__name__}({', '.join(args)})"

    def _argument(self, args: tuple[float, ...], kwargs: dict[str, Any]) -> float:
        name = self._kw_name
        if name is not None:
            if args:
                raise TypeError(f"{self} expected the keyword argument {name!r}, got the positional arguments {args!r}")
            if name not in kwargs:
                raise TypeError(f"{self} needs the keyword argument {name!r}, got {sorted(kwargs)}")
            value: float = kwargs.pop(name)
        else:
            if len(args) != 1:
                raise TypeError(f"{self} expected one positional argument, got {args!r}")
            value = args[0]
        if kwargs and not self._ignore_other_kwargs:
            raise TypeError(f"{self} got unexpected keyword arguments {sorted(kwargs)}")
        return value


class PiecewiseLinear(_KeyedFunction[float]):
    """Linear interpolation between the points of the dict; constant outside of them."""

    def __call__(self, *args: float, **kwargs: Any) -> float:
        """:return: the value at the argument, see the constructor"""
        x = self._argument(args, kwargs)
        keys = self._sorted_keys
        if x <= keys[0]:
            return self._values[keys[0]]
        if x >= keys[-1]:
            return self._values[keys[-1]]
        i = bisect.bisect_right(keys, x)
        left, right = keys[i - 1], keys[i]
        y0, y1 = self._values[left], self._values[right]
        return y0 + (y1 - y0) * (x - left) / (right - left)


class StepFunction(_KeyedFunction[_T]):
    """The value of the nearest key of the dict; of two equally near ones, that of the lower."""

    def __call__(self, *args: float, **kwargs: Any) -> _T:
        """:return: the value at the argument, see the constructor"""
        x = self._argument(args, kwargs)
        return self._values[min(self._sorted_keys, key=lambda key: (abs(key - x), key))]
