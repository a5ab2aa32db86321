"""Tests of checkpoint files: atomic saving (also when killed), safe loading, reports, error texts."""

from __future__ import annotations

import collections
import errno
import os
import pathlib
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

from returnn.errors import CheckpointError, MissingDependencyError
from returnn.torch.checkpoint import (
    TMP_POSTFIX,
    find_checkpoint_file,
    get_model_state,
    load_file,
    load_model_state,
    save_file_atomic,
)

REPO = pathlib.Path(__file__).parents[2]


def model_file(path: pathlib.Path, **more: Any) -> pathlib.Path:
    torch.save({"model": torch.nn.Linear(2, 3).state_dict(), "epoch": 1, "step": 5, **more}, path)
    return path


# --- saving


def test_save_and_load(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "new_folder" / "epoch.001.pt"
    obj = {"model": {"w": torch.arange(3.0)}, "epoch": 1, "lr": 0.5, "none": None, "list": [1, "a", (2, 3)]}
    save_file_atomic(obj, path)
    loaded = load_file(path)
    assert torch.equal(loaded.pop("model")["w"], torch.arange(3.0))
    assert loaded == {"epoch": 1, "lr": 0.5, "none": None, "list": [1, "a", (2, 3)]}
    assert os.listdir(path.parent) == ["epoch.001.pt"]


def test_content_is_on_disk_before_the_name(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def note(name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def func(*args: Any) -> Any:
            calls.append(name)
            return original(*args)

        return func

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, note(name))
    save_file_atomic({"epoch": 1}, tmp_path / "m.pt")
    assert calls == ["fsync", "replace", "fsync"]  # file, name, folder


def test_save_without_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file_atomic({"epoch": 1}, "m.001.pt")
    assert load_file("m.001.pt") == {"epoch": 1}


def test_save_error_keeps_the_old_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.pt"
    save_file_atomic({"epoch": 1}, path)
    with pytest.raises(CheckpointError, match=r"Cannot save .*m\.pt: "):
        save_file_atomic({"epoch": 2, "f": lambda: None}, path)
    assert load_file(path) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["m.pt"]


def test_save_where_a_file_is_in_the_way(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"Cannot save .*file/m\.pt: .*(File exists|Not a directory)"):
        save_file_atomic({}, tmp_path / "file" / "m.pt")


def test_save_without_permission(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, _mode: str) -> None:  # root, as in containers, may write everywhere
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(
        CheckpointError, match=r"Cannot save .*m\.pt: .*Permission denied.*Check the permissions of the folder"
    ):
        save_file_atomic({}, tmp_path / "m.pt")


def _limit_file_size() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def run_python(code: str, *args: str, preexec: Any = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=REPO,
        capture_output=True,
        text=True,
        preexec_fn=preexec,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_no_space_left(tmp_path: pathlib.Path) -> None:
    """A limit on the file size ends a write like a full disk does."""
    path = tmp_path / "m.pt"
    save_file_atomic({"epoch": 1}, path)
    code = (
        "import sys, torch\n"
        "from returnn.torch.checkpoint import save_file_atomic\n"
        "save_file_atomic({'epoch': 2, 'w': torch.zeros(1_000_000)}, sys.argv[1])\n"
    )
    res = run_python(code, str(path), preexec=_limit_file_size)
    assert res.returncode == 1
    last = res.stderr.strip().splitlines()[-1]
    assert (
        "CheckpointError: Cannot save" in last and "m.pt: [Errno 27] File too large" in last and "MiB free" in last
    ), last
    assert load_file(path) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["m.pt"]


@pytest.mark.slow
def test_kill_while_saving_leaves_the_old_file_whole(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.pt"
    save_file_atomic({"epoch": 1}, path)
    # The process kills itself as soon as the temporary file has some content: between two writes of torch.save.
    code = (
        "import os, signal, sys, threading, torch\n"
        "from returnn.torch.checkpoint import TMP_POSTFIX, save_file_atomic\n"
        "def watch():\n"
        "    while True:\n"
        "        try:\n"
        "            if os.path.getsize(sys.argv[1] + TMP_POSTFIX) > 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        except FileNotFoundError: pass\n"
        "threading.Thread(target=watch, daemon=True).start()\n"
        "save_file_atomic({'epoch': 2, 'w': [torch.zeros(5_000_000) for _ in range(20)]}, sys.argv[1])\n"
        "print('saved')\n"
    )
    res = run_python(code, str(path))
    assert res.returncode == -signal.SIGKILL and "saved" not in res.stdout
    assert load_file(path) == {"epoch": 1}
    assert sorted(os.listdir(tmp_path)) == ["m.pt", "m.pt" + TMP_POSTFIX]
    save_file_atomic({"epoch": 3}, path)  # the next save takes the place of the leftover
    assert load_file(path) == {"epoch": 3}
    assert os.listdir(tmp_path) == ["m.pt"]


# --- loading


class Evil:
    """Unpickling it runs a command."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_hostile_checkpoint_is_refused(tmp_path: pathlib.Path) -> None:
    path = model_file(tmp_path / "m.pt", extra=Evil(tmp_path / "pwned"))
    with pytest.raises(CheckpointError) as exc_info:
        load_file(path)
    text = str(exc_info.value)
    assert str(path) in text and "posix.mkdir" in text and "unsafe_load = True" in text
    assert "\n" not in text
    assert not (tmp_path / "pwned").exists()


def test_hostile_plain_pickle_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(pickle.dumps({"model": Evil(tmp_path / "pwned")}, protocol=2))
    with pytest.raises(CheckpointError):
        load_file(path)
    assert not (tmp_path / "pwned").exists()


def test_opt_in_for_other_objects(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model_file(tmp_path / "m.pt", counter=collections.Counter("aab"), where=pathlib.PurePosixPath("x"))
    with pytest.raises(CheckpointError, match="unsafe_load"):
        load_file(path)
    assert load_file(path, weights_only=False, mmap=True)["where"] == pathlib.PurePosixPath("x")
    assert f"Warning: {path} contains objects that can run code" in capsys.readouterr().out


def test_mapped_and_old_formats(tmp_path: pathlib.Path) -> None:
    obj = {"w": torch.arange(3.0)}
    torch.save(obj, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(obj, tmp_path / "new.pt")
    for name in ("old.pt", "new.pt"):
        assert torch.equal(load_file(tmp_path / name, mmap=True)["w"], obj["w"])


def test_numpy_scalars_are_safe(tmp_path: pathlib.Path) -> None:
    path = model_file(
        tmp_path / "m.pt", lr=numpy.float64(0.25), f4=numpy.float32(0.5), n=numpy.int64(3), flag=numpy.bool_(True)
    )
    loaded = load_file(path)
    assert (loaded["lr"], loaded["f4"], loaded["n"], loaded["flag"]) == (0.25, 0.5, 3, True)


@pytest.mark.parametrize("kind", ["half", "start", "empty", "text", "minus_one"])
def test_broken_files(tmp_path: pathlib.Path, kind: str) -> None:
    data = model_file(tmp_path / "whole.pt").read_bytes()
    cut = {
        "half": data[: len(data) // 2],
        "start": data[:10],
        "empty": b"",
        "text": b"this is no checkpoint\n" * 10,
        "minus_one": data[:-1],
    }
    path = tmp_path / "broken.003.pt"
    path.write_bytes(cut[kind])
    for weights_only in (True, False):
        with pytest.raises(CheckpointError) as exc_info:
            load_file(path, weights_only=weights_only)
        text = str(exc_info.value)
        assert str(path) in text and f"({len(cut[kind])} bytes) cannot be read: it is truncated" in text
        assert "\n" not in text


def test_missing_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match=r"Checkpoint not found: .*none\.pt"):
        load_file(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="not found"):
        load_file(tmp_path)


def test_find_checkpoint_file(tmp_path: pathlib.Path) -> None:
    path = model_file(tmp_path / "epoch.003.pt")
    for name in ("epoch.003", "epoch.003.pt", "epoch.003.meta", "epoch.003.index"):
        assert find_checkpoint_file(tmp_path / name) == str(path)
    other = model_file(tmp_path / "any_name")
    assert find_checkpoint_file(str(other)) == str(other)
    with pytest.raises(CheckpointError, match=r"neither of .*epoch\.004\.pt"):
        find_checkpoint_file(tmp_path / "epoch.004")


def test_safetensors_is_optional(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"")
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match="pip install safetensors"):
        load_file(path)


def test_safetensors(tmp_path: pathlib.Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    path = tmp_path / "m.safetensors"
    library.save_file({"w": torch.arange(3.0)}, path)
    state = get_model_state(load_file(path), filename="f")
    assert torch.equal(state["w"], torch.arange(3.0))


# --- model states


def test_versions_of_modules_survive(tmp_path: pathlib.Path) -> None:
    save_file_atomic({"model": torch.nn.BatchNorm1d(3).state_dict()}, tmp_path / "m.pt")
    state = get_model_state(load_file(tmp_path / "m.pt"), filename="f")
    assert state._metadata[""] == {"version": 2}  # type: ignore[attr-defined]


def test_model_state_forms() -> None:
    state = torch.nn.Linear(2, 3).state_dict()
    assert list(get_model_state({"model": state, "epoch": 1}, filename="f")) == ["weight", "bias"]
    assert list(get_model_state(state, filename="f")) == ["weight", "bias"]  # bare
    assert list(get_model_state({"net": state}, filename="f", key="net")) == ["weight", "bias"]
    assert list(get_model_state(state, filename="f", key=None)) == ["weight", "bias"]
    with pytest.raises(CheckpointError, match='Checkpoint f has no entry "model"; it has: epoch, step'):
        get_model_state({"epoch": 1, "step": 2}, filename="f")
    with pytest.raises(CheckpointError, match='no entry "net"; it has: weight, bias'):
        get_model_state(state, filename="f", key="net")
    with pytest.raises(CheckpointError, match="Checkpoint f is not a model: .* got list"):
        get_model_state([1], filename="f")


def two_layers(last: int = 4) -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, last))


def test_load_reports_everything() -> None:
    state = two_layers().state_dict()
    model = two_layers()
    report = load_model_state(model, state, filename="f.pt")
    assert (report.num_loaded, report.missing, report.unexpected) == (4, (), ())
    assert report.summary() == "f.pt: loaded 4 parameters"
    assert torch.equal(model.state_dict()["1.weight"], state["1.weight"])

    extra = {**state, **{f"x{i}": torch.zeros(1) for i in range(7)}}
    report = load_model_state(two_layers(), extra, filename="f.pt")
    assert report.summary() == "f.pt: loaded 4 parameters; unexpected 7: x0, x1, x2, x3, x4, ..."


def test_missing_keys_are_an_error() -> None:
    state = two_layers().state_dict()
    del state["1.bias"]
    state["old.bias"] = torch.zeros(2)
    with pytest.raises(CheckpointError) as exc_info:
        load_model_state(two_layers(), state, filename="f.pt")
    text = str(exc_info.value)
    assert text.endswith("Any missing key is an error.")
    assert "Unexpected keys (1): old.bias." in text and "Missing keys (1): 1.bias." in text
    assert load_model_state(two_layers(), state, filename="f.pt", allow_missing=True).missing == ("1.bias",)
    assert load_model_state(two_layers(), state, filename="f.pt", provided_elsewhere={"1.bias"}).missing == ()


def test_shape_mismatch_loads_nothing() -> None:
    model = two_layers(5)
    before = model.state_dict()["0.weight"].clone()
    with pytest.raises(
        CheckpointError, match=r"1\.weight: file \[4, 3\], model \[5, 3\], 1\.bias: file \[4\], model \[5\]"
    ):
        load_model_state(model, two_layers(4).state_dict(), filename="f.pt", allow_missing=True)
    assert torch.equal(model.state_dict()["0.weight"], before)


def test_nothing_fits() -> None:
    with pytest.raises(
        CheckpointError, match=r"No parameter of f\.pt fits to the model\. .*Is it the checkpoint of another model\?"
    ):
        load_model_state(two_layers(), {"a": torch.zeros(1)}, filename="f.pt", allow_missing=True)
    load_model_state(torch.nn.ReLU(), {}, filename="f.pt")  # nothing to load


def test_extra_state_and_lazy_parameters() -> None:
    model = torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.BatchNorm1d(3))
    model(torch.ones(2, 4))
    other = torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.BatchNorm1d(3))
    assert load_model_state(other, model.state_dict(), filename="f.pt").missing == ()
    assert other(torch.ones(2, 4)).shape == (2, 3)
