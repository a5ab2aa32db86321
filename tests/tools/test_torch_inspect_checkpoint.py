"""tools/torch_inspect_checkpoint.py, torch_count_params_via_checkpoint.py, torch_inspect_checkpoint_and_opt.py."""

from __future__ import annotations

import collections
import importlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy
import pytest
import torch

import returnn.__main__ as rnn
from returnn._state import state
from returnn.errors import CheckpointError, ConfigError
from returnn.torch.inspection import count_by_prefix, tensor_stats
from tests.helpers import GOLDEN, ROOT, run_rnn
from tests.tools.tool_program import run_tool

TRAIN = GOLDEN / "07-tools-demos" / "train"


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.setattr(rnn, "config", None)
    monkeypatch.setattr(state, "global_config", None)
    monkeypatch.setattr(state, "run_ctx", None)
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    old = numpy.get_printoptions()
    names = ("torch_inspect_checkpoint", "torch_count_params_via_checkpoint")
    modules = {name: importlib.import_module(name) for name in names}
    yield modules
    numpy.set_printoptions(**old)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    model = collections.OrderedDict(
        {
            "layers.0.weight": torch.arange(450.0).reshape(5, 9, 10),
            "layers.0.bias": torch.zeros(2, dtype=torch.bfloat16),
            "layers.1.weight": torch.full((3, 2), 1e-5),
            "scale": torch.tensor(2.5),
        }
    )
    torch.save({"model": model, "epoch": 2, "param_groups": [{"lr": 0.1}]}, tmp_path / "c.pt")
    return str(tmp_path / "c.pt")


def _run(name: str, *args: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run_tool(name, *args, cwd=cwd, check=check)


def test_tree(checkpoint: str, tmp_path: Path) -> None:
    res = _run("torch_inspect_checkpoint", checkpoint, cwd=tmp_path)
    assert res.stdout.splitlines() == [
        "model: (OrderedDict)",
        "  layers.0.weight: torch.float32 [5,9,10]",
        "  layers.0.bias: torch.bfloat16 [2]",
        "  layers.1.weight: torch.float32 [3,2]",
        "  scale: torch.float32 [] 2.5",
        "epoch: (int) 2",
        "param_groups: (list) 1 items",
        "  0: (dict)",
        "    lr: (float) 0.1",
    ]
    res = _run("torch_inspect_checkpoint", "missing.pt", cwd=tmp_path, check=False)
    assert res.returncode == 1
    assert res.stderr.splitlines()[-1] == "CheckpointError: Checkpoint not found: missing.pt is not a file."


def test_values_and_statistics(
    tools: dict[str, ModuleType], checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = tools["torch_inspect_checkpoint"].main
    main(["x", checkpoint, "--key", "layers.1.weight", "--printoptions", "precision=1"])
    assert capsys.readouterr().out.splitlines() == [
        "layers.1.weight: torch.float32 [3,2]",
        "  [[1.e-05 1.e-05]",
        "   [1.e-05 1.e-05]",
        "   [1.e-05 1.e-05]]",
    ]
    main(["x", checkpoint, "--key", "layers.0.weight", "--stats_only", "--mmap"])
    assert capsys.readouterr().out.splitlines() == [
        "layers.0.weight: torch.float32 [5,9,10]",
        "  mean, stddev, max abs: 224.5000, 129.9035, 449.0000",
        "  min, p05, p50, p95, max: 0.0000, 22.0000, 225.0000, 427.0000, 449.0000",
    ]
    main(["x", checkpoint, "--key", "epoch"])
    assert capsys.readouterr().out == "epoch: (int) 2\n"
    main(["x", checkpoint, "--stats", "--interesting_exclude", "bias,other"])
    lines = capsys.readouterr().out.splitlines()
    assert "  layers.0.bias: torch.bfloat16 [2]" in lines
    assert lines[-3:] == [
        "Collected interesting tensors:",
        "largest max abs 449.0000: layers.0.weight: torch.float32 [5,9,10]",
        "smallest max abs 1.0000e-05: layers.1.weight: torch.float32 [3,2]",
    ]
    with pytest.raises(CheckpointError, match=r"no entry 'layers.1'.*layers.1.weight"):
        main(["x", checkpoint, "--key", "layers.1"])
    with pytest.raises(ConfigError, match="printoptions"):
        main(["x", checkpoint, "--printoptions", "precisio=1"])


def test_objects_are_loaded_only_on_request(
    tools: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": {"w": torch.ones(2)}, "path": Path("a")}, tmp_path / "o.pt")
    main = tools["torch_inspect_checkpoint"].main
    with pytest.raises(CheckpointError, match="run any code"):
        main(["x", str(tmp_path / "o.pt")])
    main(["x", str(tmp_path / "o.pt"), "--load_unsafe_checkpoints"])
    assert "path: (PosixPath) a" in capsys.readouterr().out


def test_safetensors(tools: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"layer.w": torch.ones(2, 3)}, tmp_path / "m.safetensors")
    tools["torch_inspect_checkpoint"].main(["x", str(tmp_path / "m.safetensors")])
    tools["torch_count_params_via_checkpoint"].main(["x", str(tmp_path / "m.safetensors")])
    assert capsys.readouterr().out.splitlines() == [
        "layer.w: torch.float32 [2,3]",
        "layer.w: torch.float32 [2,3] 6",
        "Counts:",
        "layer: 6 6",
        ".: 6 6",
    ]


def test_statistics_of_special_tensors() -> None:
    assert tensor_stats(torch.zeros(0, 3)) is None
    stats = tensor_stats(torch.tensor([1.0, float("nan"), float("inf")]))
    assert stats is not None and stats.num_nonfinite == 2
    assert stats.lines()[-1] == "inf or nan: 2 elements"
    for dtype in (torch.bool, torch.int64, torch.float16, torch.complex64):
        assert tensor_stats(torch.ones(3, dtype=dtype)) is not None


def test_types_that_numpy_does_not_have(
    tools: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = torch.tensor([1.0, -2.0])
    model = {
        "f8": values.to(torch.float8_e4m3fn),
        "bf16": values.bfloat16(),
        "quantized": torch.quantize_per_tensor(values, 0.5, 0, torch.qint8),
        "sparse": torch.tensor([[0.0, -2.0], [1.0, 0.0]]).to_sparse(),
    }
    torch.save({"model": model}, tmp_path / "c.pt")
    tools["torch_inspect_checkpoint"].main(["", str(tmp_path / "c.pt"), "--stats", "--all_tensors"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines].count("[ 1. -2.]") == 3
    assert sum("min, p05, p50, p95, max: -2.0000" in line for line in lines) == 4


def test_device_by_its_old_name_is_no_broken_checkpoint(tools: dict[str, ModuleType], checkpoint: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="No GPU device found"):
        tools["torch_inspect_checkpoint"].main(["", checkpoint, "--device", "gpu"])


def test_counts(tools: dict[str, ModuleType], checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = tools["torch_count_params_via_checkpoint"].main
    main(["x", checkpoint])
    assert capsys.readouterr().out.splitlines() == [
        "layers.0.weight: torch.float32 [5,9,10] 450",
        "layers.0.bias: torch.bfloat16 [2] 2",
        "layers.1.weight: torch.float32 [3,2] 6",
        "scale: torch.float32 [] 1",
        "Counts:",
        "layers.0: 452 452",
        "layers.1: 6 6",
        "layers: 458 458",
        ".: 459 459",
    ]
    main(["x", checkpoint, "--ignore-prefix", "layers.0", "sc"])
    assert capsys.readouterr().out.splitlines()[-1] == ".: 6 6"
    assert list(count_by_prefix({"layers.0.w": 2300}))[0] == "layers.0: 2300 2.3K"


@pytest.mark.slow
def test_parameters_with_optimizer_state(tmp_path: Path) -> None:
    shutil.copy(TRAIN / "net.py.txt", tmp_path / "net.py")
    config = (TRAIN / "train.config").read_text().replace("num_epochs = 4", "num_epochs = 1")
    (tmp_path / "train.config").write_text(config.replace("num_workers_per_gpu = 1", "num_workers_per_gpu = 0"))
    res = _run("torch_inspect_checkpoint_and_opt", "train.config", cwd=tmp_path, check=False)
    assert res.returncode == 1 and "--fresh" in res.stderr.splitlines()[-1]
    run_rnn("train.config", cwd=tmp_path)
    (tmp_path / "sub").mkdir()
    args = ["../train.config", "--cwd", "..", "--stats_only"]
    lines = _run("torch_inspect_checkpoint_and_opt", *args, cwd=tmp_path / "sub").stdout.splitlines()
    assert "Model: models/epoch.001.pt" in lines and "Optimizer: models/epoch.001.opt.pt" in lines
    where = lines.index("lin.weight: torch.float32 [2,9]")
    assert lines[where + 1].startswith("  mean, stddev, max abs: ")
    assert "  exp_avg: torch.float32 [2,9]" in lines[where:] and "  step: torch.float32 [] 5.0" in lines[where:]
