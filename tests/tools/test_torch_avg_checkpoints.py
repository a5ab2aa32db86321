"""tools/torch_avg_checkpoints.py as program and as module, against the golden averages of Mini-RETURNN."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch

from tests.helpers import GOLDEN, ROOT, run_program
from tests.tools.tool_program import run_tool

TOOL = ROOT / "tools" / "torch_avg_checkpoints.py"
AVG = GOLDEN / "07-tools-demos" / "avg"


def _run(*args: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run_tool("torch_avg_checkpoints", *map(str, args), cwd=cwd, check=check)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("torch_avg_checkpoints")


def _load(path: Path) -> dict[str, Any]:  # Any: a checkpoint
    checkpoint = torch.load(path, weights_only=True)
    assert isinstance(checkpoint, dict)
    return checkpoint


def _assert_same(got: dict[str, Any], golden: dict[str, Any]) -> None:
    assert list(got) == list(golden)
    assert list(got["model"]) == list(golden["model"])
    for name, value in golden["model"].items():
        assert got["model"][name].dtype == value.dtype
        torch.testing.assert_close(got["model"][name], value, rtol=1e-6, atol=1e-8)
    assert {k: v for k, v in got.items() if k != "model"} == {k: v for k, v in golden.items() if k != "model"}


def test_program_as_job_systems_call_it(tmp_path: Path) -> None:
    inputs = [AVG / f"epoch.00{i}.pt" for i in (2, 3, 4)]
    res = _run("--checkpoints", *inputs, "--output_path", "average.pt", cwd=tmp_path)
    assert res.stderr == ""
    assert res.stdout.splitlines() == [
        "RETURNN torch_avg_checkpoints.py -- average PyTorch model checkpoints",
        f"PyTorch version: {torch.__version__}",
        *(f"in ckpt: {path}" for path in inputs),
        "out ckpt: average.pt",
        *(f"read ckpt: {path}" for path in inputs),
        "save ckpt: average.pt",
        "Done.",
    ]
    _assert_same(_load(tmp_path / "average.pt"), _load(AVG / "avg.pt"))
    assert os.listdir(tmp_path) == ["average.pt"]


@pytest.mark.parametrize(
    ("args", "golden"), [(["--checkpoints", "x1,x2"], "xo.pt"), (["--checkpoints", "xo,x2"], "xo2.pt")]
)
def test_golden_numbers_of_the_peers(tmp_path: Path, args: list[str], golden: str) -> None:
    prefix = [f"--prefix={AVG}/", "--postfix=.pt", "--as_peers"]
    res = _run(*args, *prefix, "--output_path", tmp_path / "o.pt", cwd=tmp_path)
    _assert_same(_load(tmp_path / "o.pt"), _load(AVG / golden))
    assert "x2.pt has not all parameters of the others, 1 of 4 are missing: only1" in res.stderr


def test_integers_are_of_the_newest_and_merged_inputs_are_listed_once(tool: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "o.pt"
    tool.merge_checkpoints([str(AVG / "x2.pt"), str(AVG / "x1.pt")], str(out), {"foo": "mine", "extra": 1})
    got = _load(out)
    assert got["model"]["n"].dtype == torch.int64 and got["model"]["n"].item() == 3  # x1 is of epoch 3, x2 of epoch 1
    assert (got["merged_epochs"], got["epoch"], got["step"], got["foo"], got["extra"]) == ([1, 3], 3, 50, "mine", 1)
    tool.merge_checkpoints([str(out), str(AVG / "x2.pt")], str(tmp_path / "o2.pt"))
    got = _load(tmp_path / "o2.pt")
    assert (got["merged_epochs"], got["merged_steps"]) == ([1, 3, 1], [50, 30, 50])


def test_low_precision_is_summed_in_high_precision(tool: ModuleType, tmp_path: Path) -> None:
    names = []
    for i in range(5):
        names.append(str(tmp_path / f"{i}.pt"))
        model = {
            "h": torch.tensor([60000.0], dtype=torch.float16),  # the sum in half precision is inf
            "b": torch.tensor([256.0 + 2 * i], dtype=torch.bfloat16),
            "c": torch.tensor([1 + 1j * i]),
            "flag": torch.tensor([True]),
        }
        torch.save({"model": model, "step": i}, names[-1])
    tool.merge_checkpoints(names, str(tmp_path / "o.pt"))
    got = _load(tmp_path / "o.pt")
    assert got["model"]["h"].item() == 60000.0 and got["model"]["h"].dtype == torch.float16
    assert got["model"]["b"].item() == 260.0 and got["model"]["b"].dtype == torch.bfloat16
    assert got["model"]["c"].item() == 1 + 2j
    assert got["model"]["flag"].dtype == torch.bool
    assert got["merged_epochs"] == [None] * 5 and "epoch" not in got


def test_weights_and_shared_tensors(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 5.0)):
        embedding = torch.full((300, 100), value)
        torch.save(
            {
                "model": {"in": embedding, "out": embedding, "half": embedding[:150]},
                "epoch": 1,
                "lr": numpy.float64(0.1),
            },
            tmp_path / f"{name}.pt",
        )
    _run("--checkpoints", "a.pt,b.pt", "--weights", 3, 1, "--output_path", "o.pt", cwd=tmp_path)
    got = torch.load(tmp_path / "o.pt", weights_only=False)  # ours; numpy's scalar is no plain value
    assert float(got["lr"]) == 0.1
    assert set(got["model"]["in"].unique().tolist()) == {2.0}
    assert got["model"]["in"].data_ptr() == got["model"]["out"].data_ptr()
    assert (tmp_path / "o.pt").stat().st_size < 2 * (tmp_path / "a.pt").stat().st_size


def test_old_file_format_and_other_separator(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(2)}}, tmp_path / "a,b.pt", _use_new_zipfile_serialization=False)
    _run("--checkpoints", "a,b.pt", "--separator", "", "--output_path", "o.pt", cwd=tmp_path)
    assert _load(tmp_path / "o.pt")["model"]["w"].tolist() == [1, 1]


def _make_bad_inputs(folder: Path) -> None:
    torch.save({"w": torch.ones(2)}, folder / "bare.pt")
    torch.save({"model": {"w": torch.ones(2)}}, folder / "a.pt")
    torch.save({"model": {"w": torch.ones(3)}}, folder / "b.pt")
    torch.save({"model": {"w": torch.ones(2)}, "x": Path("x")}, folder / "object.pt")
    (folder / "broken.pt").write_bytes((folder / "a.pt").read_bytes()[:200])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--checkpoints", "miss", "--prefix", "p/", "--postfix", ".pt"], ["p/miss.pt", "'p/'", "'.pt'", "'miss'"]),
        (["--checkpoints", "bare.pt"], ["bare.pt", '"model"']),
        (["--checkpoints", "a.pt", "b.pt"], ["'w'", "[2]", "[3]", ".pt"]),
        (["--checkpoints", "object.pt"], ["object.pt", "refused"]),
        (["--checkpoints", "broken.pt"], ["broken.pt", "cannot be read"]),
        (["--checkpoints", "a.pt", "--weights", "1", "2"], ["weights", "[1.0, 2.0]"]),
        (["--checkpoints", "a.pt", "--output_path", "missing/o.pt"], ["missing", "does not exist"]),
    ],
)
def test_errors_are_sentences(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], words: list[str]
) -> None:
    _make_bad_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(tmp_path))
    out = [] if "--output_path" in args else ["--output_path", "o.pt"]
    with pytest.raises(tool.AverageError) as exc_info:
        tool.main([str(TOOL), *args, *out])
    for word in words:
        assert word in str(exc_info.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_program_error_is_the_last_line(tmp_path: Path) -> None:
    res = _run("--checkpoints", "miss.pt", "--output_path", "o.pt", cwd=tmp_path, check=False)
    assert res.returncode == 1
    assert res.stderr.splitlines() == [
        "AverageError: Checkpoint not found: miss.pt is not a file (prefix '', postfix '', name 'miss.pt')."
    ]


def test_other_objects_only_on_request(tool: ModuleType, tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(2)}, "x": Path("x")}, tmp_path / "object.pt")
    args = ["x", "--checkpoints", str(tmp_path / "object.pt"), "--output_path", str(tmp_path / "o.pt")]
    with pytest.raises(tool.AverageError, match="--unsafe_load"):
        tool.main(args)
    tool.main([*args, "--load_unsafe_checkpoints"])
    assert torch.load(tmp_path / "o.pt", weights_only=False)["x"] == Path("x")


def test_importable_as_module_of_the_folder(tmp_path: Path) -> None:
    code = "from tools.torch_avg_checkpoints import merge_checkpoints; print(merge_checkpoints.__name__)"
    res = run_program([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert res.stdout == "merge_checkpoints\n"


def test_needs_no_returnn(tmp_path: Path) -> None:
    shutil.copy(TOOL, tmp_path)
    code = "import sys, torch_avg_checkpoints; print([m for m in sys.modules if m.startswith('returnn')])"
    assert run_program([sys.executable, "-c", code], cwd=tmp_path).stdout.strip() == "[]"
    assert _run("--checkpoints", cwd=tmp_path, check=False).returncode == 2
