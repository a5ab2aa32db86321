"""Curves as text."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.util.text_chart import Curve, chart, curve_mark, short_number, sparkline


def test_sparkline() -> None:
    assert sparkline({1: 1.0, 2: 4.5, 3: 8.0}, width=10) == "▁▅█"
    assert sparkline({1: 1.0, 3: 8.0}, width=10) == "▁ █"  # epoch 2 has no value
    assert sparkline({1: 3.0, 2: 3.0}, width=10, ascii_only=True) == "__"
    assert sparkline({1: math.nan}, width=10) == " "
    assert len(sparkline({i: float(i) for i in range(1000)}, width=20)) == 20


def test_chart_has_axes_points_and_the_best() -> None:
    lines = chart([Curve("a", {1: 1.0, 2: 0.0, 3: 0.5}, best=2)], width=12, height=3, ascii_only=True)
    assert lines == [
        "  1 +o",
        "0.5 + .  .o",
        "  0 +  *.",
        "    +------",
        "     1 2  3  epoch",
    ]


def test_two_curves_and_log_scale() -> None:
    curves = [Curve("a", {1: 1.0, 2: 100.0}), Curve("b", {1: 10.0, 2: -1.0})]
    lines = chart(curves, width=20, height=5, log_scale=True)
    assert lines[2].startswith(" 10 ┤" + curve_mark(1)) and lines[4].startswith("  1 ┤" + curve_mark(0))
    assert chart([Curve("a", {1: math.nan})], width=20, height=5) == []


def test_one_point_and_constant() -> None:
    assert any("★" in line for line in chart([Curve("a", {7: 2.0}, best=7)], width=30, height=5))
    assert chart([Curve("a", {1: 0.0, 2: 0.0})], width=30, height=5)
    assert short_number(123456.0) == "1.235e+05"


@settings(max_examples=200, deadline=None)
@given(
    points=st.dictionaries(st.integers(1, 300), st.floats(allow_nan=True, allow_infinity=True), min_size=1),
    width=st.integers(8, 100),
    height=st.integers(2, 20),
    log_scale=st.booleans(),
)
def test_any_values_can_be_drawn(points: dict[int, float], width: int, height: int, log_scale: bool) -> None:
    finite = [epoch for epoch, value in points.items() if math.isfinite(value)]
    lines = chart(
        [Curve("a", points, best=finite[0] if finite else None)], width=width, height=height, log_scale=log_scale
    )
    assert len(lines) in (0, height + 2)
    assert len(sparkline(points, width=width)) <= width
