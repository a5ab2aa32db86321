"""
Dicts, sequences and wrappers around them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

__all__ = [
    "CollectionReadCheckCovered",
    "DictAsObj",
    "ObjAsDict",
    "FrozenDict",
    "RefIdEq",
    "DictRefKeys",
    "make_hashable",
    "dict_zip",
    "dict_joined",
    "sorted_values_from_dict",
    "deep_update_dict_values",
    "is_namedtuple",
    "make_seq_of_type",
    "ensure_list_of_type",
    "binary_search_any",
    "try_run",
]

_T = TypeVar("_T")
_K = TypeVar("_K")


class CollectionReadCheckCovered:
    """A dict that remembers which keys were read, to find options which nobody reads."""

    def __init__(self, collection: Mapping[str, Any], truth_value: bool | None = None) -> None:
        """
        :param collection: options
        :param truth_value: what bool() gives; default is whether the collection is not empty
        """
        self.collection = collection
        self.truth_value = bool(collection) if truth_value is None else truth_value
        self.got_items: set[str] = set()

    def __repr__(self) -> str:
        return f"CollectionReadCheckCovered({self.collection!r}, truth_value={self.truth_value!r})"

    @classmethod
    def from_bool_or_dict(cls, value: bool | Mapping[str, Any]) -> CollectionReadCheckCovered:
        """
        :param value: True or False: no options, with this truth value; a dict: its options, true
        :raises TypeError: something else
        """
        if isinstance(value, bool):
            return cls({}, truth_value=value)
        if isinstance(value, Mapping):
            return cls(value)
        raise TypeError(f"expected bool or dict, got {value!r} ({type(value).__name__})")

    def __getitem__(self, item: str) -> Any:
        result = self.collection[item]
        self.got_items.add(item)
        return result

    def get(self, item: str, default: Any = None) -> Any:
        """:return: the option, or the default"""
        try:
            return self[item]
        except KeyError:
            return default

    def __bool__(self) -> bool:
        return self.truth_value

    def __len__(self) -> int:
        return len(self.collection)

    def __iter__(self) -> Iterator[Any]:
        """:return: iterates over the *values*"""
        for key in self.collection:
            yield self[key]

    def assert_all_read(self) -> None:
        """
        :raises AssertionError: names the options that were not read
        """
        remaining = sorted(set(self.collection) - self.got_items)
        if remaining:
            raise AssertionError(f"The keys {remaining} were not read in the collection {self.collection!r}.")


class DictAsObj:
    """The keys of a dict as attributes. Shares the dict."""

    def __init__(self, dikt: dict[str, Any]) -> None:
        self.__dict__ = dikt


class ObjAsDict(Mapping[str, Any]):
    """The attributes of an object as a mapping."""

    def __init__(self, obj: Any) -> None:
        self.__obj = obj

    def __getitem__(self, item: str) -> Any:
        if not isinstance(item, str):
            raise KeyError(item)
        try:
            return getattr(self.__obj, item)
        except AttributeError as exc:
            raise KeyError(str(exc)) from exc

    def __len__(self) -> int:
        return len(vars(self.__obj))

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self.__obj))

    def items(self) -> Any:
        """:return: as those of a dict"""
        return vars(self.__obj).items()


class FrozenDict(dict[Any, Any]):
    """A dict that is hashable. It must not be changed."""

    def __setitem__(self, key: Any, value: Any) -> None:
        raise ValueError("FrozenDict cannot be modified")

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def make_hashable(obj: Any) -> Any:
    """
    :param obj: str, numbers, None, and dicts, lists, tuples of these
    :return: dicts as :class:`FrozenDict`, lists as tuples
    :raises AssertionError: another type of object
    """
    if isinstance(obj, dict):
        return FrozenDict([(make_hashable(key), make_hashable(value)) for key, value in obj.items()])
    if isinstance(obj, (list, tuple)):
        return tuple(make_hashable(item) for item in obj)
    if obj is None or isinstance(obj, (str, bytes, int, float, complex)):
        return obj
    raise AssertionError(
        f"make_hashable: unexpected type {type(obj)} of {obj!r}; expected dict, list, tuple, str, number, None"
    )


class RefIdEq(Generic[_T]):
    """Wraps an object: equality and hash by identity."""

    def __init__(self, obj: _T) -> None:
        self.obj = obj

    def __repr__(self) -> str:
        return f"<RefIdEq {self.obj!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RefIdEq) and self.obj is other.obj

    def __hash__(self) -> int:
        return id(self.obj)


class DictRefKeys(Generic[_K, _T]):
    """Dict whose keys are compared by identity."""

    def __init__(self) -> None:
        self._dict: dict[RefIdEq[_K], _T] = {}

    def __repr__(self) -> str:
        return f"DictRefKeys({ {key.obj: value for key, value in self._dict.items()} })"  # noqa: E201,E202

    def __getitem__(self, item: _K) -> _T:
        return self._dict[RefIdEq(item)]

    def __setitem__(self, key: _K, value: _T) -> None:
        self._dict[RefIdEq(key)] = value

    def __contains__(self, item: _K) -> bool:
        return RefIdEq(item) in self._dict

    def __len__(self) -> int:
        return len(self._dict)

    def keys(self) -> list[_K]:
        """:return: the objects"""
        return [key.obj for key in self._dict]

    def values(self) -> list[_T]:
        """:return: values, in the order of the keys"""
        return list(self._dict.values())

    def items(self) -> list[tuple[_K, _T]]:
        """:return: pairs"""
        return [(key.obj, value) for key, value in self._dict.items()]


def dict_zip(keys: Iterable[_K], values: Iterable[_T]) -> dict[_K, _T]:
    """
    :param keys: as many as values
    :param values: as many as keys
    :raises AssertionError: different numbers
    """
    keys, values = list(keys), list(values)
    if len(keys) != len(values):
        raise AssertionError(
            f"dict_zip: expected as many values as keys, got {len(keys)} keys and {len(values)} values"
        )
    return dict(zip(keys, values, strict=True))


def dict_joined(*ds: Mapping[_K, _T]) -> dict[_K, _T]:
    """:return: union; later ones win"""
    result: dict[_K, _T] = {}
    for d in ds:
        result.update(d)
    return result


def sorted_values_from_dict(d: Mapping[Any, _T]) -> list[_T]:
    """:return: values in the order of the sorted keys"""
    return [value for _, value in sorted(d.items())]


def deep_update_dict_values(d: dict[str, Any], key: str, new_value: Any) -> None:
    """
    :param d: changed in place, with all dicts inside of it
    :param key: only where this key exists
    :param new_value: replaces its value
    """
    for value in d.values():
        if isinstance(value, dict):
            deep_update_dict_values(value, key, new_value)
    if key in d:
        d[key] = new_value


def is_namedtuple(cls: type) -> bool:
    """:return: whether it is a subclass of tuple, other than tuple itself"""
    return cls is not tuple and issubclass(cls, tuple)


def make_seq_of_type(cls: type, seq: Iterable[Any]) -> Any:
    """:return: list, tuple or namedtuple with these elements"""
    if is_namedtuple(cls):
        return cls(*seq)
    return cls(seq)


def ensure_list_of_type(ls: Sequence[Any], type_: type[_T]) -> list[_T]:
    """
    :raises TypeError: an element is not an instance
    """
    for i, item in enumerate(ls):
        if not isinstance(item, type_):
            raise TypeError(f"expected {type_.__name__} at index {i}, got {item!r} ({type(item).__name__})")
    return list(ls)


def binary_search_any(cmp: Callable[[int], int], low: int, high: int) -> int | None:
    """
    :param cmp: 0 for what is searched; < 0: it is further right
    :param low: first index
    :param high: index after the last
    :return: index with cmp == 0, or the insertion point
    """
    while low < high:
        mid = (low + high) // 2
        result = cmp(mid)
        if result == 0:
            return mid
        if result < 0:
            low = mid + 1
        else:
            high = mid
    return low


def try_run(
    func: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    catch_exc: type[BaseException] | tuple[type[BaseException], ...] = Exception,
    default: Any = None,
) -> Any:
    """
    :param func: called
    :param args: positional arguments
    :param kwargs: keyword arguments
    :param catch_exc: exceptions for which the default is the result
    :param default: then
    """
    try:
        return func(*args, **(kwargs or {}))
    except catch_exc:
        return default
