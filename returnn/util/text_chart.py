"""Curves as text: one line of bars, or a chart with axes."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence

__all__ = ["Curve", "chart", "curve_mark", "short_number", "sparkline"]

_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.-~=*#@"
#: Marks of the curves of one chart, the dots between their points, and the best point.
_MARKS, _ASCII_MARKS = "●▲■◆○△□◇", "oxs+%&v^"
_DOT, _ASCII_DOT = "·", "."
_BEST, _ASCII_BEST = "★", "*"


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points (epoch, value), and which epoch to mark."""

    name: str
    points: Mapping[int, float]
    best: int | None = None


def short_number(value: float) -> str:
    """:return: 4 significant digits"""
    return f"{value:.4g}"


def sparkline(points: Mapping[int, float], *, width: int, ascii_only: bool = False) -> str:
    """
    :param points: x -> value
    :param width: number of columns; with more points than columns each column shows a mean
    :param ascii_only: for terminals without Unicode
    :return: one bar per point: higher is larger. A gap where there is no finite value
    """
    bars = _ASCII_BARS if ascii_only else _BARS
    first, last = min(points), max(points)
    columns = _columns(points, first, last, min(width, last - first + 1))
    finite = [value for value in columns if value is not None]
    if not finite:
        return " " * len(columns)
    low, high = min(finite), max(finite)
    return "".join(
        " " if value is None else bars[round(_fraction(value, low, high) * (len(bars) - 1))] for value in columns
    )


def _fraction(value: float, low: float, high: float) -> float:
    """:return: where the value is between low (0) and high (1); halves, since high - low may be more than a float can be"""
    span = high / 2 - low / 2
    return min(max((value / 2 - low / 2) / span, 0.0), 1.0) if span > 0 else 0.0


def _columns(points: Mapping[int, float], first: int, last: int, width: int) -> list[float | None]:
    """:return: mean of the finite values that fall into each column"""
    sums: list[list[float]] = [[] for _ in range(max(width, 1))]
    for x, value in points.items():
        if math.isfinite(value) and first <= x <= last:
            sums[_column(x, first, last, width)].append(value)
    return [math.fsum(value / len(values) for value in values) if values else None for values in sums]


def _column(x: int, first: int, last: int, width: int) -> int:
    return round((x - first) * (width - 1) / (last - first)) if last > first else 0


def chart(
    curves: Sequence[Curve], *, width: int, height: int, log_scale: bool = False, ascii_only: bool = False
) -> list[str]:
    """
    :param curves: drawn one over the other, the first is on top
    :param width: of the lines, with the axis
    :param height: number of rows of the drawing, at least 2
    :param log_scale: of the values; those <= 0 are left out
    :param ascii_only: for terminals without Unicode
    :return: lines. Empty if there is no finite value
    """
    usable = [
        dataclasses.replace(
            c, points={x: v for x, v in c.points.items() if math.isfinite(v) and (v > 0 or not log_scale)}
        )
        for c in curves
    ]
    values = [v for c in usable for v in c.points.values()]
    if not values:
        return []
    low, high = min(values), max(values)
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        if log_scale:
            pad = min(pad, low / 2)
        low, high = max(low - pad, -sys.float_info.max), min(high + pad, sys.float_info.max)
    epochs = [x for c in usable for x in c.points]
    canvas = _Canvas(
        (min(epochs), max(epochs)),
        (low, high),
        width=width,
        height=max(height, 2),
        log_scale=log_scale,
        ascii_only=ascii_only,
    )
    for i, curve in reversed(list(enumerate(usable))):
        canvas.draw(curve, i)
    return canvas.lines()


def curve_mark(index: int, *, ascii_only: bool = False) -> str:
    """:return: the mark that the chart uses for the curve"""
    marks = _ASCII_MARKS if ascii_only else _MARKS
    return marks[index % len(marks)]


class _Canvas:
    """Characters by row and column, and the axes around them."""

    def __init__(
        self,
        x_range: tuple[int, int],
        y_range: tuple[float, float],
        *,
        width: int,
        height: int,
        log_scale: bool,
        ascii_only: bool,
    ):
        self._first, self._last = x_range
        self._to_y = math.log if log_scale else float
        self._from_y = math.exp if log_scale else float
        self._low, self._high = (self._to_y(y) for y in y_range)
        if self._low >= self._high:  # low is rounded to 0 on a logarithmic scale, or so
            self._high = self._low + 1.0
        self._height = height
        self._ascii_only = ascii_only
        ticks = {0: self._high, height // 2: self._value_of_row(height // 2), height - 1: self._low}
        self._labels = {row: short_number(self._from_y(value)) for row, value in ticks.items()}
        self._margin = max(map(len, self._labels.values()))
        self._width = max(width - self._margin - 3, 2)
        self._rows = [[" "] * self._width for _ in range(height)]

    def _value_of_row(self, row: int) -> float:
        frac = row / (self._height - 1)
        return self._high * (1 - frac) + self._low * frac

    def _row(self, value: float) -> int:
        return round((1 - _fraction(self._to_y(value), self._low, self._high)) * (self._height - 1))

    def draw(self, curve: Curve, index: int) -> None:
        """Points, dots between them, and the best point."""
        columns = _columns(curve.points, self._first, self._last, self._width)
        known = [(column, self._row(value)) for column, value in enumerate(columns) if value is not None]
        for (column, row), (next_column, next_row) in zip(known, known[1:], strict=False):
            for between in range(column + 1, next_column):
                frac = (between - column) / (next_column - column)
                self._rows[round(row + (next_row - row) * frac)][between] = _ASCII_DOT if self._ascii_only else _DOT
        for column, row in known:
            self._rows[row][column] = curve_mark(index, ascii_only=self._ascii_only)
        if curve.best in curve.points:
            assert curve.best is not None
            column = _column(curve.best, self._first, self._last, self._width)
            row = next(row for c, row in known if c == column)
            self._rows[row][column] = _ASCII_BEST if self._ascii_only else _BEST

    def lines(self) -> list[str]:
        """:return: rows with the value axis, then the epoch axis"""
        tick, bar, corner, dash = ("+", "|", "+", "-") if self._ascii_only else ("┤", "│", "└", "─")
        res = [
            f"{self._labels.get(row, ''):>{self._margin}} {tick if row in self._labels else bar}{''.join(chars)}".rstrip()
            for row, chars in enumerate(self._rows)
        ]
        res.append(" " * (self._margin + 1) + corner + dash * self._width)
        res.append(" " * (self._margin + 2) + self._epoch_labels())
        return res

    def _epoch_labels(self) -> str:
        line = [" "] * self._width
        middle = (self._first + self._last) // 2
        for epoch in dict.fromkeys((self._first, self._last, middle)):
            text = str(epoch)
            start = _column(epoch, self._first, self._last, self._width)
            start = min(start, self._width - len(text))
            if start >= 0 and all(c == " " for c in line[max(start - 1, 0) : start + len(text) + 1]):
                line[start : start + len(text)] = text
        return "".join(line).rstrip() + "  epoch"
