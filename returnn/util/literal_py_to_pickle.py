"""
The names of Mini-RETURNN's fast literal parser, on the parser of :mod:`returnn.util.literal`.
"""

from __future__ import annotations

import pickle
from typing import Any

from returnn.util.literal import parse_literal

__all__ = ["literal_eval", "py_to_pickle"]


def literal_eval(s: str | bytes) -> Any:
    """
    :param s: Python literal; bytes are UTF-8
    :return: its value, as ``ast.literal_eval`` gives it, but faster for large lists and dicts of simple values
    :raises ValueError: not a literal
    """
    return parse_literal(s)


def py_to_pickle(s: str | bytes) -> bytes:
    """
    :param s: Python literal; bytes are UTF-8
    :return: pickle of its value
    :raises ValueError: not a literal
    """
    return pickle.dumps(parse_literal(s), protocol=3)
