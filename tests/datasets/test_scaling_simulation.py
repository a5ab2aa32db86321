"""The script that checks sharding at large sizes finds what is wrong."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from tests.helpers import ROOT


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    name = "scaling_simulation"
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("num_ranks, num_workers", [(1, 0), (3, 0), (5, 3), (8, 2)])
@pytest.mark.parametrize("ordering", ["random", "laplace:.100", "default"])
def test_all_is_read_once(ordering: str, num_ranks: int, num_workers: int, simulation: ModuleType) -> None:
    check = simulation.Checks()
    simulation.check_arrays(simulation.Case(10_007, num_ranks, num_workers, 3, ordering), check)
    simulation.check_arithmetic(simulation.Case(10_007, num_ranks, num_workers, 3, "default"), check)
    assert check.num > 10 and check.failed == []


def test_mistakes_are_found(simulation: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    case = simulation.Case(1000, 4, 2, 1, "default")
    right = simulation.streams(case)
    for shares, text in (
        ([*right[:-1], right[0]], "125 sequences not read, 125 twice"),
        ([(i, 9) for i in range(8)], "sequences not read, 0 twice"),
    ):
        monkeypatch.setattr(simulation, "streams", lambda _, shares=shares: shares)
        for func in (simulation.check_arrays, simulation.check_arithmetic):
            check = simulation.Checks()
            func(case, check)
            assert check.failed
            assert func is simulation.check_arithmetic or any(text in failed for failed in check.failed), check.failed


def test_files(simulation: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    check = simulation.Checks()
    assert 1.0 <= simulation.check_files(200, 4, 2, check)[2] < 1.5
    assert not check.failed
    monkeypatch.setattr(simulation, "distribute_evenly", lambda sizes, num: [range(0, 10)] * num)
    simulation.check_files(200, 4, 2, check)
    assert check.failed
