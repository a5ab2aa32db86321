"""
Marker classes for arguments and methods.
"""

from __future__ import annotations

from typing import Any

__all__ = ["NotSpecified", "OptionalNotImplementedError"]


class _NotSpecifiedMeta(type):
    def __repr__(cls) -> str:
        return "<NotSpecified>"

    def __str__(cls) -> str:
        return "NotSpecified"


class NotSpecified(metaclass=_NotSpecifiedMeta):
    """Default of an argument for which None has a meaning. Used as the class itself."""

    def __str__(self) -> str:
        return "NotSpecified"

    def __repr__(self) -> str:
        return "<NotSpecified>"

    @classmethod
    def resolve(cls, value: Any, default: Any) -> Any:
        """:return: the default if value is this class (or an instance), else the value"""
        return default if value is cls or isinstance(value, cls) else value


class OptionalNotImplementedError(NotImplementedError):
    """Raised by methods that a subclass may or may not provide, for callers that can do without."""
