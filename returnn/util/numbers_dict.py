"""
Element-wise arithmetic on dicts of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, KeysView, Mapping
from typing import Any, NoReturn

__all__ = ["NumbersDict"]

# Inside the class, the name dict is an attribute.
_Dict = dict


class NumbersDict:
    """
    Dict str -> number, plus an optional broadcast value which stands for all absent keys.

    Used for sequence lengths, batch sizes and losses per data key.
    Keys of a result are ordered as first seen in the operands, so the order does not depend on hash randomisation.
    A value missing on one side counts as 0 for ``+`` and ``-``, and as 1 for ``*``, ``/`` and ``//``.
    """

    # Any below: the numbers may be int, float, numpy scalars, bool (comparisons) or None (undefined comparisons).
    dict: _Dict[str, Any]
    value: Any

    def __init__(
        self,
        auto_convert: NumbersDict | Mapping[str, Any] | Any = None,
        numbers_dict: Mapping[str, Any] | None = None,
        broadcast_value: Any = None,
    ) -> None:
        """
        :param auto_convert: a dict or NumbersDict (both are copied), or a scalar (becomes the broadcast value).
            Excludes the other arguments.
        :param numbers_dict: the entries, copied
        :param broadcast_value: value of all other keys. None: other keys have no value
        :raises AssertionError: if auto_convert is combined with the other arguments
        """
        if auto_convert is not None:
            if broadcast_value is not None or numbers_dict is not None:
                raise AssertionError(
                    "NumbersDict: the first argument excludes numbers_dict and broadcast_value,"
                    f" got {auto_convert!r}, {numbers_dict!r} and {broadcast_value!r}."
                )
            if isinstance(auto_convert, NumbersDict):
                numbers_dict, broadcast_value = auto_convert.dict, auto_convert.value
            elif isinstance(auto_convert, Mapping):
                numbers_dict = auto_convert
            else:
                broadcast_value = auto_convert
        self.dict = {} if numbers_dict is None else {key: numbers_dict[key] for key in numbers_dict.keys()}
        self.value = broadcast_value

    def copy(self) -> NumbersDict:
        """:return: shallow copy"""
        return NumbersDict(self)

    @classmethod
    def constant_like(cls, const_number: Any, numbers_dict: NumbersDict) -> NumbersDict:
        """
        :param const_number: value of each entry
        :param numbers_dict: gives the keys
        :return: same keys; with a broadcast value only if numbers_dict has one
        """
        return cls(
            numbers_dict=dict.fromkeys(numbers_dict.dict, const_number),
            broadcast_value=const_number if numbers_dict.value is not None else None,
        )

    def copy_like(self, numbers_dict: NumbersDict) -> NumbersDict:
        """
        :param numbers_dict: gives the keys
        :return: our values for these keys (without own broadcast value, only for keys we have);
            with broadcast value only if both have one
        """
        keys: Iterable[str] = numbers_dict.dict
        if self.value is None:
            keys = [key for key in keys if key in self.dict]
        return NumbersDict(
            numbers_dict={key: self[key] for key in keys},
            broadcast_value=self.value if numbers_dict.value is not None else None,
        )

    @property
    def keys_set(self) -> set[str]:
        """:return: the keys, without order"""
        return set(self.dict)

    @staticmethod
    def keys_union(*numbers_dicts: NumbersDict) -> list[str]:
        """:return: keys of all arguments, in first-seen order"""
        return list(dict.fromkeys(key for nd in numbers_dicts for key in nd.dict))

    def __getitem__(self, key: str) -> Any:
        if self.value is not None:
            return self.dict.get(key, self.value)
        return self.dict[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.dict[key] = value

    def __delitem__(self, key: str) -> None:
        del self.dict[key]

    def __contains__(self, key: object) -> bool:
        return key in self.dict

    def get(self, key: str, default: Any = None) -> Any:
        """
        :param key: data key
        :param default: if there is neither an entry nor a broadcast value
        """
        if self.value is not None:
            default = self.value
        return self.dict.get(key, default)

    def pop(self, key: str, *args: Any) -> Any:
        """
        :param key: entry to remove (the broadcast value is never used)
        :param args: optional default
        """
        return self.dict.pop(key, *args)

    def __iter__(self) -> NoReturn:
        # Not supported: it is unclear whether the broadcast value would count. Exception is what clients know.
        raise Exception("NumbersDict.__iter__ is not supported, use keys(), values() or items().")

    def keys(self) -> KeysView[str]:
        """:return: keys of the entries"""
        return self.dict.keys()

    def values(self) -> list[Any]:
        """:return: values of the entries, and the broadcast value at the end if there is one"""
        return list(self.dict.values()) + ([self.value] if self.value is not None else [])

    def items(self) -> ItemsView[str, Any]:
        """:return: the entries, without the broadcast value"""
        return self.dict.items()

    def has_values(self) -> bool:
        """:return: whether there is any entry or a broadcast value"""
        return bool(self.dict) or self.value is not None

    def has_value_for(self, key: str) -> bool:
        """:return: whether ``self[key]`` would work"""
        return self.value is not None or key in self.dict

    def unary_op(self, op: Callable[[Any], Any]) -> NumbersDict:
        """:return: op applied to each entry and to the broadcast value"""
        return NumbersDict(
            numbers_dict={key: op(value) for key, value in self.dict.items()},
            broadcast_value=op(self.value) if self.value is not None else None,
        )

    @classmethod
    def bin_op(
        cls,
        self: NumbersDict | Any,
        other: NumbersDict | Any,
        op: Callable[[Any, Any], Any],
        zero: Any,
        result: NumbersDict | None = None,
    ) -> NumbersDict:
        """
        :param self: left operand; a dict is converted. A scalar is spread over the keys of the other operand
        :param other: right operand, likewise
        :param op: applied per key and to the broadcast values, unless both sides lack the value
        :param zero: stands for a value that one side lacks
        :param result: written in place if given
        """
        if isinstance(self, Mapping):
            self = cls(self)
        if isinstance(other, Mapping):
            other = cls(other)
        if not isinstance(self, NumbersDict):
            self = cls.constant_like(self, numbers_dict=other) if isinstance(other, NumbersDict) else cls(self)
        if not isinstance(other, NumbersDict):
            other = cls.constant_like(other, numbers_dict=self)
        if result is None:
            result = NumbersDict()

        def _combine(a: Any, b: Any) -> Any:
            if a is None and b is None:
                return None
            return op(zero if a is None else a, zero if b is None else b)

        combined = {key: _combine(self.get(key), other.get(key)) for key in cls.keys_union(self, other)}
        # The broadcast value last: result may be one of the operands.
        value = _combine(self.value, other.value)
        result.dict = combined
        result.value = value
        return result

    def __add__(self, other: NumbersDict | Any) -> NumbersDict:
        return self.bin_op(self, other, op=lambda a, b: a + b, zero=0)

    __radd__ = __add__

    def __iadd__(self, other: NumbersDict | Any) -> NumbersDict:
        return self.bin_op(self, other, op=lambda a, b: a + b, zero=0, result=self)

    def __sub__(self, other: NumbersDict | Any) -> NumbersDict:
        return self.bin_op(self, other, op=lambda a, b: a - b, zero=0)

    def __rsub__(self, other: NumbersDict | Any) -> NumbersDict:
        return self.bin_op(other, self, op=lambda a, b: a - b, zero=0)

    def __isub__(self, other: NumbersDict | Any) -> NumbersDict:
        return self.bin_op(self, other, op=lambda a, b: a - b, zero=0, result=self)

    def __mul__(self, other: NumbersDict | Any) -> NumbersDict:
        return self.bin_op(self, other, op=lambda a, b: a * b, zero=1)

    __rmul__ = __mul__

    def __imul__(self, other: NumbersDict | Any) -> NumbersDict:
        return self.bin_op(self, other, op=lambda a, b: a * b, zero=1, result=self)

    def __truediv__(self, other: NumbersDict | Any) -> NumbersDict:
        return self.bin_op(self, other, op=lambda a, b: a / b, zero=1)

    def __itruediv__(self, other: NumbersDict | Any) -> NumbersDict:
        return self.bin_op(self, other, op=lambda a, b: a / b, zero=1, result=self)

    def __floordiv__(self, other: NumbersDict | Any) -> NumbersDict:
        return self.bin_op(self, other, op=lambda a, b: a // b, zero=1)

    def __ifloordiv__(self, other: NumbersDict | Any) -> NumbersDict:
        return self.bin_op(self, other, op=lambda a, b: a // b, zero=1, result=self)

    def __neg__(self) -> NumbersDict:
        return self.unary_op(op=lambda a: -a)

    def __bool__(self) -> bool:
        return any(self.values())

    def elem_eq(self, other: NumbersDict | Any, result_with_default: bool = True) -> NumbersDict:
        """
        :param other: NumbersDict or scalar
        :param result_with_default: whether the result has the comparison of the broadcast values
        :return: per key True, False, or None if one side lacks the value
        """

        def _eq(a: Any, b: Any) -> Any:
            return None if a is None or b is None else a == b

        result = self.bin_op(self, other, op=_eq, zero=None)
        if not result_with_default:
            result.value = None
        return result

    def __eq__(self, other: object) -> bool:
        # Undefined comparisons (None) count as different.
        return all(self.elem_eq(other).values())

    def __ne__(self, other: object) -> bool:
        return not self == other

    # Mutable, and == is not an equivalence relation.
    __hash__ = None  # type: ignore[assignment]

    def any_compare(self, other: NumbersDict, cmp: Callable[[Any, Any], bool]) -> bool:
        """
        :param other: compared per key
        :param cmp: called with our value and the other's
        :return: whether cmp holds for any of our keys (with the other's entry or broadcast value), or for both
            broadcast values
        """
        for key, value in self.dict.items():
            other_value = other.get(key)
            if other_value is not None and cmp(value, other_value):
                return True
        if self.value is not None and other.value is not None:
            return bool(cmp(self.value, other.value))
        return False

    @classmethod
    def _reduce(cls, func: Callable[[Any, Any], Any], items: Iterable[NumbersDict | Any]) -> NumbersDict:
        def _op(a: Any, b: Any) -> Any:
            if a is None:
                return b
            return a if b is None else func(a, b)

        items = list(items)
        if not items:
            raise AssertionError(f"NumbersDict.{func.__name__}: expected at least one item, got an empty list.")
        result = items[0]
        for item in items[1:]:
            result = cls.bin_op(result, item, op=_op, zero=None)
        return cls(result)

    # These are class methods over a list of items. On instances, the attributes below raise.
    @classmethod
    def max(cls, items: Iterable[NumbersDict | Any]) -> NumbersDict:
        """
        :param items: NumbersDicts or scalars, at least one
        :return: element-wise maximum; absent values are ignored
        """
        return cls._reduce(max, items)

    @classmethod
    def min(cls, items: Iterable[NumbersDict | Any]) -> NumbersDict:
        """
        :param items: NumbersDicts or scalars, at least one
        :return: element-wise minimum; absent values are ignored
        """
        return cls._reduce(min, items)

    def max_value(self) -> Any:
        """:return: maximum over all values, ValueError if there are none"""
        return max(self.values())

    def min_value(self) -> Any:
        """:return: minimum over all values, ValueError if there are none"""
        return min(self.values())

    def __repr__(self) -> str:
        if self.value is None:
            return f"NumbersDict({self.dict!r})" if self.dict else "NumbersDict()"
        if not self.dict:
            return f"NumbersDict({self.value!r})"
        return f"NumbersDict(numbers_dict={self.dict!r}, broadcast_value={self.value!r})"
