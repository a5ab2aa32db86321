"""Which checkpoints are kept: golden rules of both dialects, score_keys, odd scores."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn.engine.cleanup import CleanupPlan, default_keep_pattern, plan_cleanup
from returnn.options.checkpoint import CleanupOptions

GOLDEN = Path(__file__).parent.parent / "golden" / "06-engine"


def _scores(num_epochs: int) -> dict[int, dict[str, float]]:
    """The score_formula of the golden files."""
    scores: dict[int, dict[str, float]] = {}
    for ep in range(1, num_epochs + 1):
        scores[ep] = {
            "CE": 3 - 0.01 * ep,
            "dev_loss_CE": 2 + ((ep * 7) % 11) * 0.1,
            "dev_loss_fer": 0.5 + ((ep * 5) % 13) * 0.01,
            "const": 1,
        }
        if ep % 3 == 0:
            scores[ep]["dev2_loss_CE"] = 5 - 0.1 * ep
    return scores


def _golden() -> list[Any]:
    rows = []
    for name, mainline in (("cleanup_mini_head", False), ("cleanup_mainline", True)):
        rows += [(case, mainline) for case in json.loads((GOLDEN / f"{name}.json").read_text())["cases"]]
    return rows


@pytest.mark.parametrize(("case", "mainline"), _golden(), ids=str)
def test_golden(case: dict[str, Any], mainline: bool) -> None:
    scores = _scores(case["num_epochs"])
    epochs = [ep for ep in scores if ep not in case["missing_epochs"]]
    options = CleanupOptions.from_value(case["opts"] or True)
    assert options is not None
    plan = plan_cleanup(epochs, scores, options, mainline_dialect=mainline)
    assert plan.keep == case["kept"]
    assert sorted(plan.keep + plan.delete) == epochs


def _plan(num: int, scores: dict[int, dict[str, float]], **kwargs: Any) -> CleanupPlan:
    return plan_cleanup(range(1, num + 1), scores, CleanupOptions(**kwargs))


def test_messages() -> None:
    assert _plan(3, {}).messages == [
        (
            2,
            "Only 3 epochs stored so far and keeping last 2 epochs and best 4 epochs, "
            "thus not cleaning up any epochs yet.",
        )
    ]
    plan = _plan(8, _scores(8), keep_last_n=1, keep_best_n=1)
    assert plan.messages == [
        (3, "Ignoring score key 'const' because all epochs have the same value 1."),
        (3, "We have stored models for epochs [1, 2, 3, ..., 6, 7, 8] and keep epochs [6, 8]."),
        (3, "We will delete the models of epochs [1, 2, 3, 4, 5, 7]."),
    ]
    plan = _plan(5, {}, keep=frozenset(range(6)))
    assert plan.messages[-1] == (2, "5 epochs stored so far and keeping all.")
    assert _plan(0, {}).messages[0][0] == 2


def test_score_keys_restrict_what_is_best() -> None:
    plan = _plan(30, _scores(30), keep_best_n=1, score_keys=("dev_loss_CE",))
    assert plan.keep == [11, 29, 30]


def test_nan_is_worst_and_inf_is_fine() -> None:
    scores = {1: {"a": math.nan}, 2: {"a": 1.0}, 3: {"a": math.inf}, 4: {"a": 2.0}, 5: {"a": 3.0}, 6: {"a": 3.0}}
    assert _plan(6, scores, keep_last_n=1, keep_best_n=2).keep == [2, 4, 6]
    assert _plan(6, {ep: {"a": math.nan} for ep in range(1, 7)}, keep_last_n=1, keep_best_n=1).keep == [6]


def test_missing_scores_count_as_worst_of_the_key() -> None:
    scores = {1: {"a": 2.0}, 3: {"a": 1.0}, 4: {"a": 2.0}, 9: {"b": 1.0}}
    assert _plan(5, scores, keep_last_n=1, keep_best_n=2).keep == [1, 3, 5]


def test_current_epoch_is_kept() -> None:
    # Checkpoints of an earlier, longer training are still there.
    plan = plan_cleanup(range(1, 31), {}, CleanupOptions(keep_last_n=1, keep_best_n=0), current_epoch=11)
    assert plan.keep == [11, 30]


def test_default_pattern() -> None:
    assert sorted(default_keep_pattern(10)) == [4, 5, 8, 10]
    assert sorted(default_keep_pattern(30)) == [5, 10, 20]
    assert sorted(default_keep_pattern(100)) == [10, 20, 40, 80]
    assert sorted(default_keep_pattern(250)) == [20, 40, 80, 160]


@given(
    st.sets(st.integers(1, 60)),
    st.dictionaries(
        st.integers(1, 60), st.dictionaries(st.sampled_from(["a", "b", "c"]), st.floats(), max_size=3), max_size=30
    ),
    st.integers(1, 5),
    st.integers(0, 5),
    st.booleans(),
)
def test_properties(
    epochs: set[int], scores: dict[int, dict[str, float]], last_n: int, best_n: int, mainline: bool
) -> None:
    plan = plan_cleanup(epochs, scores, CleanupOptions(last_n, best_n), mainline_dialect=mainline)
    assert sorted(plan.keep + plan.delete) == sorted(epochs)
    assert set(sorted(epochs)[-last_n:]) <= set(plan.keep)
