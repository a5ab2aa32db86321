"""Several ranks train what one process trains with the same global batches; all ranks have the same model at any time."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import ROOT
from tests.torch.distributed import ranked_trainings
from tests.torch.distributed.ranked_trainings import EQUAL, ERRORS, OTHERS
from tests.torch.distributed.sharded_launch import run_ranks

pytestmark = pytest.mark.slow

_TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """:return: number of ranks -> of each rank, results by name of the training"""
    res = {}
    folder = tmp_path_factory.mktemp("ranks")
    for num in (2, 3):
        run_ranks(num, Path(ranked_trainings.__file__), str(folder), cwd=folder, timeout=280)
        res[num] = [torch.load(folder / f"{num}-{rank}.pt") for rank in range(num)]
    return res


_ALL = [*EQUAL, *OTHERS]


@cache
def _one_process(name: str) -> dict[str, Any]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return ranked_trainings.train(EQUAL[name](1))
    finally:
        torch.set_num_threads(num_threads)


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("name", EQUAL)
def test_same_as_one_process(name: str, num_ranks: int, results: dict[int, list[dict[str, Any]]]) -> None:
    expected = _one_process(name)
    got = results[num_ranks][0][name]
    assert "error" not in got, got
    assert got["num_steps"] == expected["num_steps"]
    for param, value in expected["model"].items():
        torch.testing.assert_close(got["model"][param], value, rtol=0, atol=_TOLERANCE, msg=f"{param} differs")


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("name", _ALL)
def test_ranks_agree_bit_by_bit(name: str, num_ranks: int, results: dict[int, list[dict[str, Any]]]) -> None:
    first, *others = (of_rank[name] for of_rank in results[num_ranks])
    assert "error" not in first, first
    for other in others:
        assert other["num_steps"] == first["num_steps"]
        for param, value in first["model"].items():
            assert torch.equal(other["model"][param], value), param


@pytest.mark.parametrize("name", _ALL)
def test_random_numbers_differ(name: str, results: dict[int, list[dict[str, Any]]]) -> None:
    draws = [of_rank[name]["draw"] for of_rank in results[3]]
    assert len(set(draws)) == 3


def test_steps_without_data(results: dict[int, list[dict[str, Any]]]) -> None:
    """31 sequences, 6 in each step, and one in the last: only rank 0 has it. The other ranks do not call the model."""
    for num_ranks, of_ranks in results.items():
        joined = [of_rank["per rank"] for of_rank in of_ranks]
        assert {res["num_steps"] for res in joined} == {12}
        calls = [res["num_calls"] for res in joined]
        assert all(calls[0] == num + 2 for num in calls[1:]), (num_ranks, calls)
        stopped = [of_rank["stop"] for of_rank in of_ranks]
        assert {res["num_steps"] for res in stopped} == {10}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("unused", "got no gradient in a training step: unused.weight, unused.bias.*find_unused_parameters"),
        ("no parameter", "no trainable parameter"),
        ("other model", "The model of rank 1 has other parameters than that of rank 0"),
        ("sync batch norm", "norm is a SyncBatchNorm, which needs data on all ranks"),
        ("ddp option", "arguments of DistributedDataParallel.*find_unused_parameter"),
        ("class", "my_module.MyWrapper"),
        ("own loop", "OwnLoopEngine has its own loop over the training data"),
        ("own loop and steps", "OwnLoopAndStepsEngine has its own loop over the training data"),
        ("static graph", '"uneven": "stop" with the option "static_graph"'),
    ],
)
def test_sentences(name: str, text: str, results: dict[int, list[dict[str, Any]]]) -> None:
    assert name in ERRORS
    for of_rank in results[2]:
        with pytest.raises(AssertionError, match=text):  # so that the whole text is shown if it is another one
            raise AssertionError(of_rank[name]["error"])


def test_program_is_there() -> None:
    assert Path(ranked_trainings.__file__).is_relative_to(ROOT)
