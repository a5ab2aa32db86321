"""
Strings as numpy arrays.
"""

from __future__ import annotations

import numpy

__all__ = ["str_to_numpy_array"]


def str_to_numpy_array(s: str) -> numpy.ndarray:
    """
    :param s: any text
    :return: 0-d array with dtype kind "U"
    """
    return numpy.array(s)
