"""
Differences of two nested objects as text.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

__all__ = ["obj_diff_str", "obj_diff_list"]

#: Says whether two different leaves count as equal.
AllowedMapping = Callable[[Any, Any], bool]


def obj_diff_str(self: Any, other: Any, *, allowed_mapping: AllowedMapping | None = None) -> str:
    """
    :param self: anything: dicts, lists, tuples and sets are compared by their items, objects by their attributes
    :param other: compared to that
    :param allowed_mapping: gets two different leaves; True: count as equal
    :return: lines of :func:`obj_diff_list`, or "No diff."
    """
    diff = obj_diff_list(self, other, allowed_mapping=allowed_mapping)
    return "\n".join(diff) if diff else "No diff."


def obj_diff_list(self: Any, other: Any, *, allowed_mapping: AllowedMapping | None = None) -> list[str]:
    """As :func:`obj_diff_str`: the lines, none if equal."""
    return _Differ(allowed_mapping).diff("", self, other)


class _Differ:
    def __init__(self, allowed_mapping: AllowedMapping | None) -> None:
        self._allowed_mapping = allowed_mapping
        self._seen: set[tuple[int, int]] = set()

    def diff(self, prefix: str, a: Any, b: Any) -> list[str]:
        if a is b:
            return []
        lead = f"{prefix} " if prefix else ""
        if a is None or b is None:
            return self._leaf(a, b, f"{lead}self is {a!r} and other is {b!r}")
        if type(a) is not type(b):
            return self._leaf(a, b, f"{lead}type diff: self is {type(a).__name__} but other is {type(b).__name__}")
        if (id(a), id(b)) in self._seen:
            return []
        if isinstance(a, (dict, list, tuple)) or _has_attributes(a):
            self._seen.add((id(a), id(b)))
        if isinstance(a, (list, tuple)):
            return self._list(prefix, lead, a, b)
        if isinstance(a, dict):
            return self._dict(prefix, lead, a, b)
        if isinstance(a, (set, frozenset)):
            return self._set(lead, a, b)
        if _has_attributes(a):
            return self._attribs(prefix, lead, a, b)
        if _equal(a, b):
            return []
        return self._leaf(a, b, f"{lead}self: {a!r} != other: {b!r}")

    def _leaf(self, a: Any, b: Any, line: str) -> list[str]:
        if self._allowed_mapping is not None and self._allowed_mapping(a, b):
            return []
        return [line]

    def _list(self, prefix: str, lead: str, a: Any, b: Any) -> list[str]:
        if len(a) != len(b):
            return [f"{lead}list diff len: len self: {len(a)}, len other: {len(b)}"]
        lines = []
        for i, (item_a, item_b) in enumerate(zip(a, b, strict=True)):
            lines += self.diff(f"{lead}[{i}]", item_a, item_b)
        return [f"{lead}list diff:", *lines] if lines else []

    def _dict(self, prefix: str, lead: str, a: dict[Any, Any], b: dict[Any, Any]) -> list[str]:
        lines = []
        for key, value in a.items():
            if key not in b:
                lines.append(f"{prefix}  key {key!r} not in other")
            else:
                lines += self.diff(f"{lead}[{key!r}]", value, b[key])
        lines += [f"{prefix}  key {key!r} not in self" for key in b if key not in a]
        return [f"{lead}dict diff:", *lines] if lines else []

    def _set(self, lead: str, a: Set[Any], b: Set[Any]) -> list[str]:
        only_a, only_b = _sorted(a - b), _sorted(b - a)
        if not only_a and not only_b:
            return []
        if len(only_a) != len(only_b):
            return [f"{lead}set diff len: len self: {len(a)}, len other: {len(b)}"]
        lines = []
        for item_a, item_b in zip(only_a, only_b, strict=True):
            lines += self._leaf(item_a, item_b, f"{lead}set diff value: self: {item_a!r} != other: {item_b!r}")
        return lines

    def _attribs(self, prefix: str, lead: str, a: Any, b: Any) -> list[str]:
        if _equal(a, b):
            return []
        attribs_a, attribs_b = vars(a), vars(b)
        lines = []
        for name in _sorted(set(attribs_a) | set(attribs_b)):
            if name not in attribs_a or name not in attribs_b:
                lines.append(f"{prefix}  attrib {name!r} not in {'self' if name not in attribs_a else 'other'}")
            else:
                lines += self.diff(f"{lead}.{name}", attribs_a[name], attribs_b[name])
        return [f"{lead}object diff:", *lines] if lines else []


def _has_attributes(obj: Any) -> bool:
    return hasattr(obj, "__dict__") and not isinstance(obj, type) and not callable(obj)


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except ValueError:  # arrays
        return a.shape == b.shape and bool((a == b).all())


def _sorted(items: Set[Any]) -> list[Any]:
    try:
        return sorted(items)
    except TypeError:  # of different types
        return sorted(items, key=repr)
