"""
Sizes and numbers as text.
"""

from __future__ import annotations

__all__ = ["human_size", "human_bytes_size"]


def human_size(n: float, factor: float = 1000, frac: float = 0.8, prec: int = 1) -> str:
    """
    :param n: count
    :param factor: between the units "", K, M, G, T
    :param frac: a unit is used from this fraction of it on
    :param prec: decimals, except for the unit ""
    :return: e.g. "123.5M"
    """
    units = "KMGT"
    unit = ""
    for candidate in units:
        if not n > factor * frac:
            break
        n /= factor
        unit = candidate
    return f"{n:.{prec}f}{unit}" if unit else str(n)


def human_bytes_size(n: float, factor: float = 1024, frac: float = 0.8, prec: int = 1) -> str:
    """As :func:`human_size`, for a number of bytes: e.g. "3.0GB"."""
    return human_size(n, factor=factor, frac=frac, prec=prec) + "B"
