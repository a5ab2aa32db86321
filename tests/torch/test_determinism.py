"""The option deterministic, and the line about seeds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch

from returnn.errors import OptionError
from returnn.log import log
from returnn.options.training import EngineOptions
from returnn.torch.determinism import make_deterministic, print_seeds
from returnn.util.seeds import merge_random_seeds


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    log.initialize(verbosity=[3])
    cudnn, numpy_state, python_state = torch.backends.cudnn, numpy.random.get_state(), random.getstate()
    flags = cudnn.deterministic, cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.deterministic, cudnn.benchmark = flags
    numpy.random.set_state(numpy_state)
    random.setstate(python_state)


def _options(**opts: Any) -> EngineOptions:  # Any: values of a config
    return EngineOptions.from_config(opts)


@pytest.mark.parametrize("value", ["yes", 2, 0.5, "Strict"])
def test_wrong_value(value: object) -> None:
    with pytest.raises(OptionError, match=r'option "deterministic".*True, False, or "strict"'):
        _options(deterministic=value)


def test_off_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    before = random.getstate()
    make_deterministic(_options(), device="cpu")
    assert random.getstate() == before and not torch.are_deterministic_algorithms_enabled()
    assert capsys.readouterr().out == ""


def test_on(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = []
    for _ in range(2):
        make_deterministic(_options(deterministic=True), device="cpu")
        drawn.append((random.random(), numpy.random.rand()))
    assert drawn[0] == drawn[1]
    assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    out = capsys.readouterr().out
    assert (
        f"Deterministic: torch.use_deterministic_algorithms(warn_only), seed {merge_random_seeds([42, 0])} for" in out
    )
    assert "Not in our hands: the number of threads" in out and torch.__version__ in out


def test_strict() -> None:
    make_deterministic(_options(deterministic="strict"), device="cpu")
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()


def test_workspace_of_cublas(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No GPU is needed to set it."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    make_deterministic(_options(deterministic=True), device="cuda:0")
    assert "CUBLAS_WORKSPACE_CONFIG=:16:8" in capsys.readouterr().out
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "wrong")
    make_deterministic(_options(deterministic=True), device="cuda:0")
    out = capsys.readouterr().out
    assert "CUBLAS_WORKSPACE_CONFIG=:4096:8" in out and "Some GPU" in out


def test_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    class Dataset:
        def __init__(self, fixed: int | None, offset: int) -> None:
            self.fixed_random_seed = fixed
            self.random_seed_offset = offset

    datasets = {"train": Dataset(None, 5), "dev": Dataset(3, 0), "eval": Dataset(None, 0), "other": object()}
    print_seeds(_options(random_seed=7), per_epoch=True, datasets=datasets)
    print_seeds(_options(deterministic=True), per_epoch=False, datasets={})
    assert capsys.readouterr().out.splitlines() == [
        "Random seeds: random_seed 7 (model, loader workers, and with the step each epoch); dataset train: epoch + 5; "
        "dataset dev: 3 in each epoch; dataset eval: the epoch; numpy.random and random of the main process: from the system.",
        "Random seeds: random_seed 42 (model, loader workers); numpy.random and random of the main process: "
        f"{merge_random_seeds([42, 0])}.",
    ]
