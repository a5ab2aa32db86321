"""Options that add numbers to the step lines: log_batch_size, torch_log_memory_usage, calculate_exp_loss."""

from __future__ import annotations

import math
import re

import pytest
import torch

from returnn.errors import OptionError
from returnn.learning_rate_control import LearningRateControl
from returnn.options.observers import ObserverOptions
from returnn.tensor import Dim, Tensor, TensorDict, batch_dim
from returnn.torch.observers.base import PassObserver, completed_losses
from returnn.torch.observers.batch_size import BatchSize
from returnn.torch.observers.create import create_observers
from returnn.torch.observers.exp_loss import ExpLoss, safe_exp
from returnn.torch.observers.memory import MemoryUsage
from tests.torch.observers.configs import config, train


def _scores(epoch: int) -> dict[str, float]:
    return LearningRateControl(default_learning_rate=1.0, filename="learning_rates").get_epoch_error_dict(epoch)


def _step_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.search(r", step[: ]\d+,", line)]


def test_nothing_without_options() -> None:
    assert create_observers(config()) == []


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, 1.0), (1000.0, math.inf), (-math.inf, 0.0), (math.inf, math.inf)]
)
def test_safe_exp(value: float, expected: float) -> None:
    assert safe_exp(value) == expected
    assert math.isnan(safe_exp(math.nan))


def test_exp_of_losses_only() -> None:
    losses = completed_losses([ExpLoss()], {"ce": 1.0, "fer": 0.5}, errors=frozenset(["fer"]))
    assert losses == {"ce": 1.0, "fer": 0.5, "ce:exp": pytest.approx(math.e)}


@pytest.mark.parametrize("mainline", [False, True])
def test_exp_in_lines_and_scores(mainline: bool, capsys: pytest.CaptureFixture[str]) -> None:
    train(config(mainline=mainline, calculate_exp_loss=True))
    prefix = "train_loss_" if mainline else ""
    scores = _scores(2)
    for key in (f"{prefix}sq", "dev_loss_sq"):
        assert scores[f"{key}:exp"] == math.exp(scores[key])
    assert not any("err:exp" in key for key in scores)
    if not mainline:
        assert scores["huge:exp"] == math.inf and scores["dev_loss_huge:exp"] == math.inf
    for line in _step_lines(capsys.readouterr().out):
        value, exp = (re.search(rf"\b{name}:? ([\d.e+-]+)", line) for name in ("sq", "sq:exp"))
        assert value and exp and float(exp[1]) == pytest.approx(math.exp(float(value[1])), abs=2e-3), line


@pytest.mark.parametrize("mainline", [False, True])
def test_batch_size_and_memory_in_lines(mainline: bool, capsys: pytest.CaptureFixture[str]) -> None:
    train(config(mainline=mainline, log_batch_size=True, torch_log_memory_usage=True, num_epochs=1))
    lines = _step_lines(capsys.readouterr().out)
    assert len(lines) == 5
    names = (r"[\w:-]+", r"[\w:-]+") if mainline else ("data", "classes")
    for line in lines:
        match = re.search(
            rf"num_seqs 3, max_size:({names[0]}) (\d+), sum_size:\1 (\d+), max_size:({names[1]}) (\d+), sum_size:\4 (\d+), "
            r"mem_usage:cpu [\d.]+[KMGT]?B",
            line,
        )
        assert match, line
        assert match[1] != match[4]
    sizes = [2, 3, 4, 5] * 3
    for i, line in enumerate(lines[:4]):
        batch = sizes[3 * i : 3 * i + 3]
        assert f" {max(batch)}, sum_size" in line and f" {sum(batch)}, max_size" in line, line


def test_batch_size_with_shared_and_equal_dims() -> None:
    time, other = Dim(None, name="time"), Dim(None, name="time")
    feature = Dim(3, name="feature")
    template = TensorDict()
    template.data = {
        "x": Tensor("x", [batch_dim, time, feature], "float32"),
        "y": Tensor("y", [batch_dim, time], "float32"),
        "z": Tensor("z", [batch_dim, other], "float32"),
    }

    class _Engine:
        extern_data = template

    observer = BatchSize()
    observer.start_pass("train", engine=_Engine())  # type: ignore[arg-type]
    data = {
        "x:size1": torch.tensor([2, 5]),
        "x:size2": torch.tensor([3, 3]),
        "y:size1": torch.tensor([2, 5]),
        "z:size1": torch.tensor([1, 1]),
        "seq_tag": ["a", "b"],
    }
    assert observer.line_parts("train", data=data) == [
        "num_seqs 2",
        *("max_size:x:time 5", "sum_size:x:time 7"),
        *("max_size:z:time 1", "sum_size:z:time 2"),
    ]


def test_memory_of_the_device() -> None:
    observer = MemoryUsage()
    assert re.fullmatch(r"mem_usage:cpu [\d.]+[KMGT]?B", observer.line_parts("train", data={})[0])


def test_invalid() -> None:
    with pytest.raises(OptionError, match="log_batch_size"):
        ObserverOptions.from_config({"log_batch_size": "maybe"})


def test_base_observer_does_nothing() -> None:
    observer = PassObserver()
    assert not observer.wants_losses("train", step=0, global_step=0)
    assert observer.more_losses({"a": 1.0}, errors=frozenset()) == {}
    assert list(observer.line_parts("train", data={})) == []
    observer.end_step(name="train", step=0, global_step=0, epoch=1, data={}, losses=None)
    observer.end_pass("train", epoch=1, scores={})
    observer.close()
