"""Custom engines and updaters in the forms that clients have them: with own loops, several optimizers, old signatures."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.frontend.run_ctx import Loss, RunCtx
from returnn.log import log
from returnn.torch.context import get_run_ctx, init_train_step_run_ctx
from returnn.torch.data.pipeline import BatchingIterDataPipe, collate_batch
from returnn.torch.data.returnn_dataset_wrapper import (
    ReturnnDatasetIterDataPipe,
    ReturnnDatasetResetMpSharedEpochCallback,
)
from returnn.torch.engine import Engine
from returnn.torch.updater import Updater
from returnn.util import NumbersDict
from tests.torch.test_engine import _config, _dataset, _params, _scores, _train


@pytest.fixture(autouse=True)
def _in_tmp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PT_DEVICE", raising=False)
    log.initialize(verbosity=[5])
    with process_state_ctx(global_config=None, run_ctx=None):
        yield


class Model(torch.nn.Module):
    """Two networks; remembers in which dtypes and modes it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.gen = torch.nn.Linear(2, 4)
        self.disc = torch.nn.Linear(4, 3)
        self.calls: set[tuple[bool, torch.dtype, str]] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.gen(x)
        self.calls.add((self.training, h.dtype, get_run_ctx().stage))
        return self.disc(torch.tanh(h))  # type: ignore[no-any-return]


def get_model(**_kwargs: object) -> torch.nn.Module:
    return Model()


def train_step(*, model: torch.nn.Module, data: dict[str, Any], run_ctx: RunCtx, **_kwargs: object) -> None:
    lens = data["data:size1"]
    logits = model(data["data"])
    ce = torch.nn.functional.cross_entropy(logits.transpose(1, 2), data["classes"].long(), reduction="none")
    run_ctx.mark_as_loss(name="ce", loss=ce.sum(), inv_norm_factor=lens.sum())


class PlainUpdater(Updater):
    """A plain dict as config, own constructor, the signature of the oldest versions."""

    def __init__(self, config: dict[str, Any], network: torch.nn.Module, device: str, initial_learning_rate: float):
        self.config = config
        self.learning_rate = initial_learning_rate
        self.network = network
        self.optimizer = None
        self._device = device

    def step(self, loss: torch.Tensor) -> None:  # type: ignore[override]
        super().step(loss)


class OwnLoop(Engine):
    """Everything of training rewritten: set-up by EngineBase only, two optimizers, own epoch loop."""

    def __init__(self, config: Config):
        super().__init__(config=config)
        self._updater: dict[str, Updater] = {}

    def init_train(self, train_data: Any = None, dev_data: Any = None) -> None:
        super(Engine, self).init_train(train_data=train_data, dev_data=dev_data)
        assert self.train_dataset is not None
        self._train_dataloader = self._create_data_loader(self.train_dataset)
        for name, dataset in self.eval_datasets.items():
            self._eval_dataloaders[name] = self._create_data_loader(dataset)
        epoch, filename = self.get_epoch_model(self.config)
        self._start_epoch = (epoch or 0) + 1
        self._final_epoch = self.config_get_final_epoch(self.config)
        self._load_model(epoch=self._start_epoch, filename=filename)
        for name in ("gen", "disc"):
            network = getattr(self._model, name)
            opts = {"optimizer": {"class": "adam", "epsilon": 1e-9}, "gradient_clip_norm": 1.0}
            self._updater[name] = PlainUpdater(opts, network, self._device, self.learning_rate)
            self._updater[name].create_optimizer()
        if self._start_epoch > 1:
            self._load_optimizer(self._start_epoch)
        self._train_step_func = self.config.typed_value("train_step")
        amp = self.config.typed_value("torch_amp_options")
        if amp:
            self._amp_dtype = getattr(torch, amp["dtype"])

    def _load_optimizer(self, epoch: int, filename: str | None = None) -> None:
        for name, updater in self._updater.items():
            updater.load_optimizer(f"{self.get_epoch_model_filename(epoch - 1)}.{name}.opt.pt")

    def _save_optimizer(self) -> None:
        for name, updater in self._updater.items():
            updater.save_optimizer(f"{self.get_epoch_model_filename()}.{name}.opt.pt")

    def train_epoch(self) -> None:
        assert self._model is not None and self._train_dataloader is not None and self.learning_rate_control
        self._model.train()
        init_train_step_run_ctx(device=self._device, engine=self, epoch=self.epoch)
        sums, norms = NumbersDict(), NumbersDict()
        for step_idx, data in enumerate(self._train_dataloader):
            run_ctx = get_run_ctx()
            run_ctx.init_step(self._train_step)
            start = time.time()
            total_loss, losses = self.run_train_step(data, run_ctx)  # type: ignore[call-arg]
            values = NumbersDict({k: float(x.loss.detach().cpu().numpy()) for k, x in losses.items()})
            factors = NumbersDict({k: float(x.inv_norm_factor.detach()) for k, x in losses.items()})  # type: ignore
            sums += values
            norms += factors
            self._check_nonfinite_train_score(values, sums)  # type: ignore[arg-type]
            self.print_step_info(f"train epoch {self.epoch}", step_idx, start, total_loss, values / factors)  # type: ignore
            self._train_step += 1
        self.learning_rate_control.set_epoch_error(self.epoch, dict(sums / norms))
        self.learning_rate_control.save()
        self.save_model()
        self._save_optimizer()
        self.eval_model()

    def run_train_step(self, data: Any, run_ctx: Any) -> tuple[torch.Tensor, dict[str, Loss]]:  # type: ignore[override]
        total_loss, losses = super().run_eval_step(data, run_ctx)
        for updater in self._updater.values():
            updater.optimizer.zero_grad()  # type: ignore[union-attr]
        total_loss.backward()
        for updater in self._updater.values():
            updater.optimizer.step()  # type: ignore[union-attr]
        return total_loss, losses


def _own_config(**opts: Any) -> Config:
    return _config(get_model=get_model, train_step=train_step, **opts)


def test_own_loop_with_two_updaters_and_restart() -> None:
    whole = _params(_train(_own_config(model="whole/epoch", learning_rate_file=None), OwnLoop))
    _train(_own_config(num_epochs=2), OwnLoop)
    engine = _train(_own_config(num_epochs=3), OwnLoop)
    assert engine._start_epoch == 3
    assert {"epoch.003.pt", "epoch.003.gen.opt.pt", "epoch.003.disc.opt.pt"} <= set(os.listdir("models"))
    for name, value in _params(engine).items():
        assert torch.equal(value, whole[name]), name
    assert set(_scores(3)) == {"ce", "dev_loss_ce"}


def test_amp_dtype_set_by_the_subclass_counts_in_our_steps() -> None:
    engine = _train(_own_config(num_epochs=1, torch_amp_options={"dtype": "bfloat16"}), OwnLoop)
    assert engine._model.calls == {  # type: ignore[union-attr]
        (True, torch.bfloat16, "train_step"),
        (False, torch.bfloat16, "train_step"),
    }


class WithDictOfUpdaters(OwnLoop):
    """Our loop over steps with a dict of updaters."""

    train_epoch = Engine.train_epoch


def test_our_loop_sets_learning_rates_in_a_dict_of_updaters() -> None:
    engine = _train(_own_config(num_epochs=2, learning_rates=[0.01, 0.002]), WithDictOfUpdaters)
    assert [u.optimizer.param_groups[0]["lr"] for u in engine._updater.values()] == [0.002, 0.002]


class WithPlainUpdater(Engine):
    """Only the updater is another one, without the argument step_idx."""

    def init_train(self, train_data: Any = None, dev_data: Any = None) -> None:
        super().init_train(train_data, dev_data)
        assert self._model is not None
        self._updater = PlainUpdater({"optimizer": {"class": "adam"}}, self._model, self._device, self.learning_rate)
        self._updater.create_optimizer()


def test_updater_without_step_idx_trains_as_ours() -> None:
    ours = _params(_train(_own_config(model=None)))
    for name, value in _params(_train(_own_config(model=None), WithPlainUpdater)).items():
        assert torch.equal(value, ours[name]), name


class ForeignUpdater:
    """Not a subclass of ours at all."""

    def __init__(self, network: torch.nn.Module):
        self.optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        self.rates: list[float] = []

    def set_learning_rate(self, value: float) -> None:
        self.rates.append(value)

    def step(self, loss: torch.Tensor, step_idx: int) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def save_optimizer(self, filename: str) -> None:
        torch.save(self.optimizer.state_dict(), filename)


class WithForeignUpdater(Engine):
    """An updater with the same methods."""

    def init_train(self, train_data: Any = None, dev_data: Any = None) -> None:
        super().init_train(train_data, dev_data)
        assert self._model is not None
        self._updater = ForeignUpdater(self._model)


def test_updater_of_another_class() -> None:
    engine = _train(_own_config(learning_rates=[0.3, 0.2, 0.1]), WithForeignUpdater)
    assert engine._updater.rates == [0.3, 0.2, 0.1]
    assert os.path.exists("models/epoch.003.opt.pt")


def test_total_time_is_shown_from_the_second_step_line_on(capsys: pytest.CaptureFixture[str]) -> None:
    _train(_own_config(num_epochs=2, model=None))
    lines = [line for line in capsys.readouterr().out.splitlines() if ", step:" in line]
    assert "total time:" not in lines[0]
    assert all(", total time: " in line for line in lines[1:])


class WithTorchLoader(Engine):
    """Makes its own data loaders: plain torch ones with our pipes."""

    def _create_data_loader(self, dataset: Any) -> Any:
        callback = ReturnnDatasetResetMpSharedEpochCallback(dataset, self._epoch_mp_shared)
        pipe = ReturnnDatasetIterDataPipe(dataset, reset_callback=callback)
        batches = BatchingIterDataPipe(pipe, batch_size=20)
        return torch.utils.data.DataLoader(batches, batch_size=None, collate_fn=collate_batch)


def test_loaders_of_torch_train_as_ours_and_restart() -> None:
    ours = _params(_train(_own_config(model=None)))
    _train(_own_config(num_epochs=2), WithTorchLoader)
    engine = _train(_own_config(num_epochs=3), WithTorchLoader)
    for name, value in _params(engine).items():
        assert torch.equal(value, ours[name]), name
    engine = WithTorchLoader(config=_own_config(task="eval"))
    engine.eval_task()
    engine = WithTorchLoader(
        config=_own_config(task="forward", forward=_dataset(4), forward_step=forward_step, load="models/epoch.003")
    )
    engine.init_forward()
    engine.forward()
    assert os.path.exists("output.hdf")


def forward_step(*, model: torch.nn.Module, data: dict[str, Any], run_ctx: RunCtx, **_kwargs: object) -> None:
    run_ctx.mark_as_output(model(data["data"]), "output", dims=[len(data["seq_tag"]), data["data:size1"], 3])


class OldSignatures(Engine):
    """Overrides without the newer arguments."""

    num_evals = 0

    def run_train_step(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, dict[str, Loss]]:
        return super().run_train_step(*args, **kwargs)

    def _load_optimizer(self, epoch: int) -> None:  # type: ignore[override]
        super()._load_optimizer(epoch)

    def eval_model(self) -> None:  # type: ignore[override]
        self.num_evals += 1
        super().eval_model()


def test_overrides_without_newer_arguments() -> None:
    _train(_own_config(num_epochs=1), OldSignatures)
    Path("learning_rates").write_text("{1: EpochData(learningRate=0.01, error={'ce': 1.0})}\n")
    engine = _train(_own_config(num_epochs=2), OldSignatures)
    assert isinstance(engine, OldSignatures) and engine.num_evals == 2
    assert "dev_loss_ce" in _scores(1)
