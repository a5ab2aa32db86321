"""The task forward in the mainline dialect: golden trajectory D, log lines, contexts, the output file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import returnn.frontend as rf
from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.datasets import init_dataset
from returnn.errors import ConfigError, ModelError
from returnn.forward_iface import ForwardCallbackIface
from returnn.log import log
from returnn.tensor import Dim, TensorDict, batch_dim
from returnn.torch.engine import Engine
from tests.helpers import GOLDEN, run_rnn

TRAJ = GOLDEN / "06-engine" / "traj"


def _golden() -> dict[str, Any]:
    res: dict[str, Any] = json.loads((TRAJ / "d_mainline_raw_torch.golden.json").read_text())
    return res


def _write_golden_checkpoint(folder: Path) -> None:
    params = {k: torch.tensor(v) for k, v in _golden()["params_after_epoch"]["3"].items()}
    (folder / "models").mkdir()
    torch.save({"model": params, "epoch": 3, "step": 15}, folder / "models/epoch.003.pt")


def test_golden_outputs_with_golden_parameters(tmp_path: Path) -> None:
    _write_golden_checkpoint(tmp_path)
    env = {"GOLDEN_OUT": str(tmp_path), "GOLDEN_TASK": "forward"}
    res = run_rnn(str(TRAJ / "d_mainline_raw_torch.py"), cwd=tmp_path, env=env)
    outputs = json.loads((tmp_path / "forward.json").read_text())
    golden = _golden()["forward_outputs_after_epoch3"]
    assert outputs.keys() == golden.keys()
    for tag, values in golden.items():
        for name in ("log_probs", "score"):
            numpy.testing.assert_allclose(outputs[tag][name], values[name], rtol=1e-6, atol=1e-7)
    assert re.search(
        r"^ep 3 \w+ forward, step 0, \d+\.\d{3} sec/step, elapsed 0:00:0\d, exp\. remaining ", res.stdout, re.M
    )
    assert re.search(r"^Forward 2 steps, 0:00:0\d elapsed \(\d+\.\d% computing time\)$", res.stdout, re.M)
    assert "Start Forwarding" not in res.stdout and "Finished forwarding" not in res.stdout


# ---- in this process ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PT_DEVICE", raising=False)
    log.initialize(verbosity=[5])
    torch.save({"model": {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, "epoch": 4, "step": 20}, "m.pt")
    with process_state_ctx(global_config=None, run_ctx=None):
        yield tmp_path


LENS = [2, 4, 1]


def _dataset(lens: list[int] = LENS) -> dict[str, Any]:
    data = [
        {"data": numpy.full((n, 2), i, "float32"), "classes": numpy.full([n], i, "int32")} for i, n in enumerate(lens)
    ]
    return {"class": "StaticDataset", "data": data, "output_dim": {"data": (2, 2), "classes": (9, 1)}}


class Callback(ForwardCallbackIface):
    """Keeps the outputs."""

    def __init__(self) -> None:
        self.seqs: dict[str, TensorDict] = {}

    def process_seq(self, *, seq_tag: str, outputs: TensorDict) -> None:
        """Keep them."""
        self.seqs[seq_tag] = outputs


def _config(**opts: Any) -> Config:
    time_dim, out_dim = Dim(None, name="time"), Dim(3, name="out")
    contexts: list[Any] = []

    def forward_step(*, model: torch.nn.Module, extern_data: TensorDict, **_kwargs: object) -> None:
        ctx = rf.get_run_ctx()
        contexts.append(ctx)
        assert "classes" not in extern_data and ctx.stage == "forward_step" and not ctx.train_flag
        ctx.mark_as_output(model(extern_data["data"].raw_tensor), "output", dims=[batch_dim, time_dim, out_dim])
        ctx.mark_as_output(extern_data["data"].raw_tensor.sum((1, 2)), "score", dims=[batch_dim])

    config = Config(
        {
            "task": "forward",
            "device": "cpu",
            "load": "m.pt",
            "extern_data": {
                "data": {"dims": [batch_dim, time_dim, Dim(2, name="in")]},
                "classes": {"dims": [batch_dim, time_dim], "sparse_dim": Dim(9), "available_for_inference": False},
            },
            "forward_data": _dataset(),
            "get_model": lambda **_kwargs: torch.nn.Linear(2, 3),
            "forward_step": forward_step,
            "batch_size": 100,
            "max_seqs": 2,
            "torch_dataloader_opts": {"num_workers": 0},
            **opts,
        }
    )
    config.contexts = contexts  # type: ignore[attr-defined]
    return config


def _forward(**opts: Any) -> Engine:
    engine = Engine(config=_config(**opts))
    engine.init_forward()
    engine.forward()
    return engine


def test_each_step_has_its_own_context_of_the_checkpoint(folder: Path) -> None:
    callback = Callback()
    engine = _forward(forward_callback=callback)
    contexts = engine.config.contexts  # type: ignore[union-attr]
    assert len(set(map(id, contexts))) == 2
    assert [(ctx.epoch, ctx.step) for ctx in contexts] == [(4, 19), (4, 19)]
    assert list(callback.seqs) == ["seq-1", "seq-0", "seq-2"]
    for i, n in enumerate(LENS):
        output = callback.seqs[f"seq-{i}"]["output"]
        assert output.raw_tensor.tolist() == [[2.0 * i] * 3] * n
        assert output.dims[0].name == "time" and output.dims[0].get_dim_value() == n and output.dims[1].size == 3
        assert callback.seqs[f"seq-{i}"]["score"].raw_tensor == 2.0 * i * n


@pytest.mark.parametrize(("value", "num_seqs"), [(None, 1), ("eval", 1), ("dev", 3), ("train", 2)])
def test_forward_data_may_name_another_dataset(
    folder: Path, value: str | None, num_seqs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = Callback()
    config = _config(forward_callback=callback, train=_dataset([1, 2]), dev=_dataset(), eval=_dataset([3]))
    del config.typed_dict["forward_data"]
    if value is not None:
        config.typed_dict["forward_data"] = value
    engine = Engine(config=config)
    engine.init_forward()
    engine.forward()
    assert len(callback.seqs) == num_seqs
    assert f"ep 4 {value or 'eval'} forward, step 0, " in capsys.readouterr().out


def test_without_callback_an_hdf_file_is_written(folder: Path) -> None:
    _forward()
    dataset = init_dataset({"class": "HDFDataset", "files": ["output.hdf"]})
    dataset.init_seq_order(epoch=1)
    assert dataset.get_all_tags() == ["seq-0", "seq-1", "seq-2"]
    for i, n in enumerate(LENS):
        dataset.load_seqs(i, i + 1)
        assert dataset.get_data(i, "data").tolist() == [[2.0 * i] * 3] * n
        assert dataset.get_data(i, "score").tolist() == [2.0 * i * n]
    engine = Engine(config=_config(get_model=lambda **_kwargs: pytest.fail("the model was built in vain")))
    with pytest.raises(ConfigError, match="'output.hdf' .* exists already"):
        engine.init_forward()


def test_outputs_must_be_those_of_model_outputs(folder: Path) -> None:
    with pytest.raises(
        ModelError, match=r"marked the outputs \['output', 'score'\], expected .*\['more', 'output', 'score'\]"
    ):
        time_dim = Dim(None, name="time")

        def forward_step(*, model: torch.nn.Module, extern_data: TensorDict, **_kwargs: object) -> None:
            rf.get_run_ctx().mark_as_output(model(extern_data["data"].raw_tensor), "output")
            rf.get_run_ctx().mark_as_output(extern_data["data"].raw_tensor.sum((1, 2)), "score")

        _forward(
            forward_step=forward_step,
            forward_callback=Callback(),
            extern_data={"data": {"dims": [batch_dim, time_dim, Dim(2)]}},
            model_outputs={
                "output": {"dims": [batch_dim, time_dim, Dim(3)]},
                "score": {"dims": [batch_dim]},
                "more": {"dims": [batch_dim]},
            },
        )
    assert os.listdir(".") == ["m.pt"]


def test_expected_dims_are_taken_if_none_are_given(folder: Path) -> None:
    def forward_step(*, model: torch.nn.Module, extern_data: TensorDict, **_kwargs: object) -> None:
        ctx = rf.get_run_ctx()
        sizes = ctx.expected_outputs["output"].dims[1].dyn_size_ext  # type: ignore[index]
        assert sizes is not None and sizes.raw_tensor is None
        sizes.raw_tensor = extern_data["data"].dims[1].dyn_size_ext.raw_tensor  # type: ignore[union-attr]
        ctx.mark_as_output(model(extern_data["data"].raw_tensor), name="output")

    callback = Callback()
    _forward(
        forward_step=forward_step,
        forward_callback=callback,
        extern_data={"data": {"dim": 2}},
        model_outputs={"output": {"dim": 3}},
    )
    assert {tag: len(outputs["output"].raw_tensor) for tag, outputs in callback.seqs.items()} == {
        "seq-0": 2,
        "seq-1": 4,
        "seq-2": 1,
    }
