"""tools/plot-scores.py, get-best-model-epoch.py, cleanup-old-models.py as programs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import GOLDEN, ROOT, program_env, run_program
from tests.tools.tool_program import run_tool

SCORES = GOLDEN / "07-tools-demos" / "train" / "learning_rates"
#: With facts about the run, and the keys of mainline.
MAIN_SCORES = """{
1: EpochData(learningRate=0.01, error={':meta:device': 'cpu', 'dev_loss_ce': 3.0, 'train_loss_ce': 4.0}),
2: EpochData(learningRate=0.01, error={'dev_loss_ce': nan, 'train_loss_ce': 3.0}),
3: EpochData(learningRate=0.005, error={'train_loss_ce': 2.0}),
4: EpochData(learningRate=0.005),
}
"""


def _run(name: str, *args: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run_tool(name.removesuffix(".py"), *map(str, args), cwd=cwd, check=check)


@pytest.mark.parametrize("name", ["plot-scores.py", "get-best-model-epoch.py", "cleanup-old-models.py"])
def test_help_and_no_torch(name: str, tmp_path: Path) -> None:
    assert "usage: " + name in _run(name, "--help", cwd=tmp_path).stdout
    code = (
        f"import sys, runpy; sys.path.insert(0, {str(ROOT / 'tools')!r}); sys.argv = ['x', '--help']\n"
        f"try: runpy.run_path({str(ROOT / 'tools' / name)!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    assert run_program([sys.executable, "-c", code], cwd=tmp_path).stdout.splitlines()[-1] == "[]"


def test_best_epochs(tmp_path: Path) -> None:
    res = _run("get-best-model-epoch.py", "--learning-rate-file", SCORES, "--n", 3, cwd=tmp_path)
    lines = res.stdout.splitlines()
    assert lines[:3] == ["Loaded epochs 1 .. 4", "Using key dev_loss_ce (auto via epoch 4)", "All epochs have the key."]
    assert [line.split(",")[0] for line in lines[3:]] == ["Epoch 4", "Epoch 3", "Epoch 2"]
    assert lines[3].startswith("Epoch 4, 'dev_loss_ce' 0.5528143390095065, 'ce' 0.5400760420585515, 'dev_loss_fer' ")
    (tmp_path / "scores").write_text(MAIN_SCORES)
    (tmp_path / "my.config").write_text("#!rnn.py\nlearning_rate_file = 'scores'\n")
    res = _run("get-best-model-epoch.py", "--config", "my.config", "--key", "dev_loss_ce", cwd=tmp_path)
    assert res.stdout.splitlines() == [
        "Loaded epochs 1 .. 3",
        "Using key dev_loss_ce",
        "Epochs missing the key: [3]",
        "Epoch 1, 'dev_loss_ce' 3.0, 'train_loss_ce' 4.0",
        "Epoch 2, 'dev_loss_ce' nan, 'train_loss_ce' 3.0",
    ]


def test_best_epochs_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("{1: EpochData(learningRate=0.1)}")
    (tmp_path / "scores").write_text(MAIN_SCORES)
    name = "get-best-model-epoch.py"
    res = _run(name, cwd=tmp_path, check=False)
    assert res.returncode == 1
    assert res.stdout.startswith("Error: provide either --config or --learning-rate-file\nusage: ")
    res = _run(name, "--learning-rate-file", "empty", cwd=tmp_path, check=False)
    assert (res.returncode, res.stdout) == (1, "Error: no epoch has scores yet in empty\n")
    res = _run(name, "--learning-rate-file", "missing", cwd=tmp_path, check=False)
    assert res.returncode == 1 and res.stderr.startswith("DataFileError: There is no learning-rate file 'missing'")
    res = _run(name, "--learning-rate-file", "scores", "--key", "x", cwd=tmp_path, check=False)
    assert res.stderr.splitlines()[-1].endswith("There are: dev_loss_ce, train_loss_ce.")


def test_plots(tmp_path: Path) -> None:
    shutil.copy(SCORES, tmp_path)
    (tmp_path / "other").write_text(MAIN_SCORES)
    res = _run("plot-scores.py", ".", "other", "--keys", "dev_loss_ce,learn*", "--height", 5, cwd=tmp_path)
    blocks = res.stdout.split("\n\n")
    assert [block.splitlines()[0] for block in blocks if block] == ["dev_loss_ce", "learning_rate"]
    assert (
        "  ● .: best 0.5528 at epoch 4, last 0.5528 at epoch 4\n  ▲ other: best 3 at epoch 1, last nan at epoch 2\n"
        in res.stdout
    )
    assert blocks[0].count("★") == 2 and "★" not in blocks[1]
    res = _run("plot-scores.py", "other", "--list", cwd=tmp_path)
    assert res.stdout.splitlines() == [
        "dev_loss_ce: 2 epochs, best 3 at epoch 1, last nan at epoch 2",
        "train_loss_ce: 3 epochs, best 2 at epoch 3, last 2 at epoch 3",
        "learning_rate: 4 epochs, last 0.005 at epoch 4",
    ]
    res = _run("plot-scores.py", ".", "--keys", "dev_loss_ce", "--width", 30, cwd=tmp_path)
    assert res.stdout.splitlines() == ["dev_loss_ce", "  █▃▂▁", "  best 0.5528 at epoch 4, last 0.5528 at epoch 4"]


def test_plots_without_unicode(tmp_path: Path) -> None:
    args = [sys.executable, str(ROOT / "tools" / "plot-scores.py"), str(SCORES), "--keys", "fer"]
    res = run_program(args, cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert "+---" in res.stdout and "*" in res.stdout


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    res = _run("plot-scores.py", SCORES, "--png", "scores.png", "--log_scale", cwd=tmp_path)
    assert res.stdout == "Wrote scores.png\n"
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["scores.png"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["missing"], "'missing' cannot be read"),
        (["broken"], "broken"),
        ([SCORES, "--keys", "ce,xyz"], "'xyz'"),
        ([SCORES, "--png", "missing/x.png"], "cannot write"),
    ],
)
def test_plot_errors(tmp_path: Path, args: list[object], words: str) -> None:
    (tmp_path / "broken").write_text("{1: __import__('os')}")
    res = _run("plot-scores.py", *args, cwd=tmp_path, check=False)
    assert res.returncode == 1 and words in res.stderr.splitlines()[-1]


def _make_training(folder: Path) -> None:
    shutil.copy(SCORES, folder)
    (folder / "models").mkdir()
    for epoch in range(1, 5):
        (folder / "models" / f"epoch.{epoch:03}.pt").write_bytes(b"x" * 100)
        (folder / "models" / f"epoch.{epoch:03}.opt.pt").write_bytes(b"x")


def _stored(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "models").iterdir() if ".opt." not in p.name)


def test_cleanup_with_a_config(tmp_path: Path) -> None:
    _make_training(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "my.config").write_text(
        "#!rnn.py\nmodel = 'models/epoch'\nlearning_rate_file = 'learning_rates'\nnum_epochs = 4\nlog = 'my.log'\n"
        "cleanup_old_models = {'keep_last_n': 1, 'keep_best_n': 1, 'keep': [2]}\n"
    )
    args = ["--config", "../my.config", "--cwd", ".."]
    res = _run("cleanup-old-models.py", *args, "--dry_run", cwd=tmp_path / "sub")
    assert res.stdout.splitlines()[-2:] == [
        "We will delete the models of epochs [1].",
        "Dry-run, will not delete models.",
    ]
    assert len(_stored(tmp_path)) == 4
    res = _run("cleanup-old-models.py", *args, cwd=tmp_path / "sub", check=False)
    assert res.returncode == 1 and "standard input has ended" in res.stderr.splitlines()[-1]
    assert len(_stored(tmp_path)) == 4
    command = [sys.executable, str(ROOT / "tools" / "cleanup-old-models.py"), *args]
    done = subprocess.run(
        command, input="yes\n", text=True, capture_output=True, cwd=tmp_path / "sub", env=program_env(), check=True
    )
    assert done.stdout.endswith("Deleted 100B.\n")
    assert _stored(tmp_path) == ["epoch.002.pt", "epoch.003.pt", "epoch.004.pt"]
    assert not (tmp_path / "my.log").exists()  # the log of the training is left alone


def test_cleanup_without_config(tmp_path: Path) -> None:
    _make_training(tmp_path)
    (tmp_path / "models" / "epoch.120.pt").write_bytes(b"x")
    res = _run(
        "cleanup-old-models.py", "--model", "models/epoch", "--scores", "learning_rates", "--dry_run", cwd=tmp_path
    )
    assert "5 epochs" in res.stdout or "120" in res.stdout
    for args, words in [
        (["--model", "models/epoch"], "--scores"),
        (["--scores", "learning_rates"], "--model"),
        (["--model", "models/epoch", "--scores", "x"], "'x'"),
    ]:
        res = _run("cleanup-old-models.py", *args, cwd=tmp_path, check=False)
        assert res.returncode == 1 and words in res.stderr.splitlines()[-1]
