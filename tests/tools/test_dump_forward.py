"""tools/dump-forward.py and dump-forward-stats.py."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path
from types import ModuleType

import numpy
import pytest
import torch

import returnn.__main__ as rnn
from returnn._state import state
from returnn.errors import ConfigError, DatasetError, ModelError
from tests.helpers import ROOT, write_config
from tests.tools.tool_program import run_tool

CONFIG = """
    import torch
    log = "training.log"
    model = "models/epoch"
    num_epochs = 5
    batch_size = 10
    train = {"class": "MetaDataset", "datasets": {"d": {"class": "DummyDataset", "input_dim": 3, "output_dim": 4,
        "num_seqs": 5, "seq_len": 4, "partition_epoch": 2}}, "data_map": {"data": ("d", "data"), "c": ("d", "classes")},
        "seq_order_control_dataset": "d"}
    dev = {"class": "DummyDataset", "input_dim": 3, "output_dim": 4, "num_seqs": 3, "seq_len": 4}

    class Model(torch.nn.Module):
        def __init__(self, **kwargs):
            super().__init__()
            self.encoder = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.5))
            self.unused = torch.nn.Linear(1, 1)

        def forward(self, x):
            return self.encoder(x)

    def get_model(**kwargs):
        return Model()

    def forward_init_hook(run_ctx, **kwargs):
        open("results", "w").close()

    def forward_step(*, model, data, run_ctx, **kwargs):
        run_ctx.mark_as_output(model(data["data"]), "out", dims=[len(data["seq_tag"]), data["data:size1"], 2])
        run_ctx.mark_as_output(data["data"].sum((1, 2)), "sum")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_config(tmp_path / "my.config", CONFIG)
    state_dict = {
        "encoder.0.weight": torch.tensor([[1.0, 0, 0], [0, 0, 2]]),
        "encoder.0.bias": torch.zeros(2),
        "unused.weight": torch.zeros(1, 1),
        "unused.bias": torch.zeros(1),
    }
    (tmp_path / "models").mkdir()
    for epoch in (2, 3):  # the newest one is to be taken
        torch.save(
            {"model": {k: v * (epoch - 2) for k, v in state_dict.items()}, "epoch": epoch, "step": 9},
            tmp_path / f"models/epoch.{epoch:03}.pt",
        )
        torch.save({}, tmp_path / f"models/epoch.{epoch:03}.opt.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rnn, "config", None)
    monkeypatch.setattr(state, "global_config", None)
    monkeypatch.setattr(state, "run_ctx", None)
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return tmp_path


def _module(name: str) -> ModuleType:
    return importlib.import_module(name)


def _run(name: str, *args: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run_tool(name.removesuffix(".py"), *args, cwd=cwd, check=check)


def test_outputs_of_some_sequences(folder: Path) -> None:
    res = _run("dump-forward.py", "my.config", "--startseq", "1", "--endseq", "2", "--verbosity", "1", cwd=folder)
    lines = res.stdout.splitlines()
    start = lines.index("seq 1 tag: seq-1")
    assert lines[start + 1].startswith("  out: float32 [4, 2], mean ")
    assert lines[start + 2].startswith("  sum: float32 [], mean ")
    assert lines[start + 3] == "seq 2 tag: seq-2"
    where = lines.index("Output 'out' Stats:")
    assert lines[where + 1] == "  2 seqs, 8 total frames, 4.000000 average frames"
    assert not (folder / "results").exists() and not (folder / "training.log").exists()
    assert sorted(p.name for p in folder.iterdir()) == ["models", "my.config"]


def test_statistics_of_a_layer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = _module("dump-forward-stats")
    tool.main(["x", "my.config", "--layer", "encoder.0", "--dump_stats", "s", "--verbosity", "1"])
    out = capsys.readouterr().out
    assert "Layer 'encoder.0' Stats:\n  5 seqs, 20 total frames" in out  # no partition
    means, std_devs = (numpy.loadtxt(folder / f"s.{name}.txt") for name in ("mean", "std_dev"))
    data = numpy.concatenate(_dummy_data(5))[:, [0, 2]] * [1, 2]
    numpy.testing.assert_allclose(means, data.mean(0), atol=1e-6)
    numpy.testing.assert_allclose(std_devs, data.std(0), rtol=1e-6)


def _dummy_data(num_seqs: int) -> list[numpy.ndarray]:
    from returnn.datasets.generating import DummyDataset

    dataset = DummyDataset(input_dim=3, output_dim=4, num_seqs=num_seqs, seq_len=4)
    dataset.init_seq_order(epoch=1)
    dataset.load_seqs(0, num_seqs)
    return [dataset.get_data(i, "data") for i in range(num_seqs)]


def test_each_sequence_of_a_layer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = _module("dump-forward-stats")
    args = [
        "--layer",
        "encoder",
        "--dataset",
        "dev",
        "--endseq",
        "0",
        "--verbosity",
        "1",
        "--load",
        "models/epoch.002.pt",
    ]
    tool.main(["x", "my.config", *args])
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "seq 0 tag: seq-0",
        "  encoder: float32 [4, 2], mean 0, std dev 0, min/max 0 / 0",
    ]


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        (["--layer", "encodr.0"], ModelError, "no submodule 'encodr.0'.*encoder.0"),
        (["--layer", "unused"], ModelError, "gave no tensor"),
        (["--layer", "encoder", "--dataset", "eval"], ConfigError, "'eval'.*dev, train"),
        (["--layer", "encoder", "--reset_epoch_wise_filter", "f()"], ConfigError, "literal"),
        (["--layer", "encoder", "--reset_epoch_wise_filter", "None"], DatasetError, "epoch_wise_filter"),
    ],
)
def test_errors(folder: Path, args: list[str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        _module("dump-forward-stats").main(["x", "my.config", "--verbosity", "1", *args])


def test_forward_step_without_outputs(folder: Path) -> None:
    write_config(folder / "my.config", CONFIG + "\n    def forward_step(**kwargs):\n        pass\n")
    with pytest.raises(ModelError, match="marks no output"):
        _module("dump-forward").main(["x", "my.config", "--verbosity", "1"])


MAINLINE_CONFIG = """
    import torch
    import returnn.frontend as rf
    from returnn.tensor import Dim, batch_dim
    time_dim, out_dim = Dim(None, name="time"), Dim(2, name="out")
    extern_data = {"data": {"dims": [batch_dim, time_dim, Dim(3)]},
        "classes": {"dims": [batch_dim, time_dim], "sparse_dim": Dim(4), "available_for_inference": False}}
    model_outputs = {"out": {"dims": [batch_dim, time_dim, out_dim]}}
    model = "models/epoch"
    num_epochs = 5
    batch_size = 1000
    torch_dataloader_opts = {"num_workers": 1}
    torch_batching = {"class": "BucketOrderingIterDataPipe", "buckets": [(100, 2)], "length_key": "data"}
    forward_data = {"class": "DummyDataset", "input_dim": 3, "output_dim": 4, "num_seqs": 5, "seq_len": 4}

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.5))
            self.unused = torch.nn.Linear(1, 1)

        def forward(self, x):
            return self.encoder(x)

    def get_model(**kwargs):
        return Model()

    def forward_callback():
        raise Exception("the callback is not wanted")

    def forward_step(*, model, extern_data, **kwargs):
        ctx = rf.get_run_ctx()
        assert (ctx.epoch, ctx.step) == (3, 8) and "classes" not in extern_data
        ctx.mark_as_output(model(extern_data["data"].raw_tensor), "out")
"""


def test_outputs_of_a_mainline_config(folder: Path) -> None:
    write_config(folder / "my.config", MAINLINE_CONFIG)
    (folder / "output.hdf").write_bytes(b"")
    for option in ([], ["--dataset", "forward_data"]):
        res = _run("dump-forward.py", "my.config", "--endseq", "1", "--verbosity", "1", *option, cwd=folder)
        lines = res.stdout.splitlines()
        start = lines.index("seq 0 tag: seq-0")
        assert lines[start + 1].startswith("  out: float32 [4, 2], mean ") and lines[start + 2] == "seq 1 tag: seq-1"
    assert sorted(p.name for p in folder.iterdir()) == ["models", "my.config", "output.hdf"]


def test_statistics_of_a_layer_of_a_mainline_config(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(folder / "my.config", MAINLINE_CONFIG)
    tool = _module("dump-forward-stats")
    args = ["--layer", "encoder.0", "--dataset", "forward", "--dump_stats", "s", "--verbosity", "1"]
    tool.main(["x", "my.config", *args])
    assert "Layer 'encoder.0' Stats:\n  5 seqs, 20 total frames" in capsys.readouterr().out
    data = numpy.concatenate(_dummy_data(5))[:, [0, 2]] * [1, 2]
    numpy.testing.assert_allclose(numpy.loadtxt(folder / "s.mean.txt"), data.mean(0), atol=1e-6)
