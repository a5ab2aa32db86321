"""Helpers without dependencies inside the package. Each module has one topic; ``basic`` re-exports most names."""

from __future__ import annotations

from returnn.util.numbers_dict import NumbersDict

__all__ = ["NumbersDict"]
