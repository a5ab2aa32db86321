"""Edit distances against a plain dynamic program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn.util import edit_distance as module
from returnn.util.edit_distance import EditCounts, edit_counts, edit_distance

_WORDS = st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=9)


def _plain(ref: Sequence[Any], hyp: Sequence[Any]) -> tuple[int, int, int]:
    """:return: edits, substitutions, and deletions of the alignment with the fewest edits, then fewest substitutions"""
    table = {(0, 0): (0, 0, 0)}
    for i in range(len(ref) + 1):
        for j in range(len(hyp) + 1):
            options = []
            if i and j:
                n, s, d = table[i - 1, j - 1]
                differs = int(ref[i - 1] != hyp[j - 1])
                options.append((n + differs, s + differs, d))
            if i:
                n, s, d = table[i - 1, j]
                options.append((n + 1, s, d + 1))
            if j:
                n, s, d = table[i, j - 1]
                options.append((n + 1, s, d))
            if options:
                table[i, j] = min(options)
    return table[len(ref), len(hyp)]


@pytest.fixture(params=["rapidfuzz", "python"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setattr(module, "_weighted_distance", lambda: module._weighted_distance_in_python)
    else:
        pytest.importorskip("rapidfuzz")


@pytest.mark.parametrize("in_python", [False, True])
@given(_WORDS, _WORDS)
def test_counts_as_a_plain_dynamic_program(in_python: bool, ref: list[str], hyp: list[str]) -> None:
    if in_python:
        cost = min(len(ref), len(hyp)) + 1
        ids = {"a": 0, "b": 1, "c": 2, "": 3}
        weights = (cost, cost, cost + 1)
        got = module._weighted_distance_in_python([ids[x] for x in ref], [ids[x] for x in hyp], weights)
        assert divmod(got, cost) == _plain(ref, hyp)[:2]
    counts = edit_counts(ref, hyp)
    assert (counts.num_errors, counts.substitutions, counts.deletions) == _plain(ref, hyp)
    assert counts.insertions - counts.deletions == len(hyp) - len(ref)
    assert counts.num_ref == len(ref) and counts.insertions >= 0
    assert edit_distance(hyp, ref) == counts.num_errors


def test_examples(implementation: None) -> None:
    assert edit_counts("x y".split(), "x y z".split()) == EditCounts(0, 1, 0, 2)
    assert edit_counts("x x".split(), ["x"]) == EditCounts(0, 0, 1, 2)
    assert edit_counts("a b".split(), "b c".split()) == EditCounts(0, 1, 1, 2)  # not two substitutions
    assert edit_counts([], ["a"]).error_rate == float("inf")
    assert edit_counts([], []).error_rate == 0.0
    total = edit_counts("x y".split(), "x y z".split()) + edit_counts("x x".split(), ["x"]) + EditCounts(num_ref=2)
    assert total == EditCounts(0, 1, 1, 6)
    assert f"{total.error_rate * 100:.02f}" == "33.33"
    assert edit_distance([-1, None, "a"], [-2, None, "a"]) == 1  # hash(-1) == hash(-2)
