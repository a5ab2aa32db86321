"""Names of checkpoints, whole and broken files, which checkpoint a run starts from, deletion."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from returnn.engine import model_files
from returnn.engine.model_files import StartPoint, choose_start, is_whole
from returnn.errors import CheckpointError, ConfigError
from returnn.options.checkpoint import CheckpointOptions


def _zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", b"x" * 50)
        file.writestr("archive/data/0", bytes(range(200)))
    return buffer.getvalue()


WHOLE = _zip_bytes()


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _write(*names: str, content: bytes = WHOLE) -> None:
    for name in names:
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        Path(name).write_bytes(content)


def _epochs(*epochs: int, opt: bool = True) -> None:
    for epoch in epochs:
        _write(f"m/ep.{epoch:03d}.pt", *([f"m/ep.{epoch:03d}.opt.pt"] if opt else []))


def _start(**config: Any) -> StartPoint:
    trained = config.pop("trained_epochs", frozenset())
    config = {"task": "train", "model": "m/ep", "num_epochs": 20, **config}
    return choose_start(CheckpointOptions.from_config(config), trained_epochs=trained)


def _triple(start: StartPoint) -> tuple[str, int | None, str | None]:
    return start.kind, start.epoch, start.filename


# --- names


def test_names() -> None:
    assert model_files.epoch_model_filename("m/ep", 7) == "m/ep.007"
    assert model_files.epoch_model_filename("m/ep", 1234) == "m/ep.1234"
    assert model_files.optimizer_filename("m/ep.007") == "m/ep.007.opt.pt"
    assert model_files.optimizer_filename("m/ep.007.pt") == "m/ep.007.opt.pt"
    assert model_files.strip_suffix("a.index") == model_files.strip_suffix("a.meta") == "a"
    assert model_files.strip_suffix(Path("a.pt")) == "a"


def test_existing_models() -> None:
    _epochs(1, 3, 12, 1000)
    _write(
        "m/ep.000.pt", "m/ep.005", "m/ep.007.opt.pt", "m/other.002.pt", "m/ep.0004.pt", "m/ep.04.pt", "m/ep.006.pt.tmp"
    )
    os.mkdir("m/ep.008")
    os.symlink("nothere", "m/ep.009.pt")
    assert model_files.existing_models("m/ep", 999) == {n: f"m/ep.{n:03d}" for n in (1, 3, 5, 12)}
    assert list(model_files.existing_models("m/ep")) == [1, 3, 5, 12, 1000]
    assert list(model_files.existing_models("m/ep", 3)) == [1, 3]
    assert model_files.existing_models(None, 5) == model_files.existing_models("", 5) == {}
    assert model_files.existing_models("no/folder", 5) == {}


def test_name_with_special_characters_and_without_folder() -> None:
    _write("a+b.(1).001.pt", "aab.(1).002.pt")
    assert model_files.existing_models("a+b.(1)") == {1: "a+b.(1).001"}


def test_model_file() -> None:
    _write("a.pt", "b.ckpt", "c.safetensors")
    assert model_files.model_file("a") == model_files.model_file("a.pt") == model_files.model_file("a.index") == "a.pt"
    assert model_files.model_file("b.ckpt") == "b.ckpt"
    assert model_files.model_file(Path("c.safetensors")) == "c.safetensors"
    with pytest.raises(CheckpointError, match="'x.pt' does not exist"):
        model_files.model_file("x")


# --- whole files


def test_torch_file_is_whole_and_every_cut_is_not() -> None:
    torch = pytest.importorskip("torch")
    torch.save({"model": {"a": torch.arange(300), "b": torch.zeros(3, 4)}, "epoch": 1}, "x.pt")
    assert is_whole("x.pt")
    content = Path("x.pt").read_bytes()
    for size in {*range(0, len(content), 61), *range(len(content) - 40, len(content))}:
        _write("cut.pt", content=content[:size])
        assert not is_whole("cut.pt"), size
    # Blocks at the end that were never flushed to disk.
    _write("hole.pt", content=content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    assert not is_whole("hole.pt")
    _write("zeros.pt", content=bytes(len(content)))
    assert not is_whole("zeros.pt")
    # A part in the middle is missing.
    _write("middle.pt", content=content[:200] + content[400:])
    assert not is_whole("middle.pt")


def test_old_torch_format_cannot_be_judged() -> None:
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(3)}, "x.pt", _use_new_zipfile_serialization=False)
    assert is_whole("x.pt")


def test_missing_file_and_folder() -> None:
    os.mkdir("d.pt")
    assert not is_whole("nothere") and not is_whole("d.pt") and not is_whole("")


def test_safetensors() -> None:
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    content = struct.pack("<Q", len(header)) + header + bytes(8)
    _write("x.safetensors", content=content)
    assert is_whole("x.safetensors")
    for size in (len(content) - 1, 40, 9):
        _write("x.safetensors", content=content[:size])
        assert not is_whole("x.safetensors")


# --- training: which checkpoint


def test_fresh() -> None:
    start = _start()
    assert _triple(start) == ("fresh", None, None)
    assert (start.start_epoch, start.notes, start.log_line) == (1, [], "Using fresh model")


def test_newest_existing() -> None:
    _epochs(1, 2, 3)
    start = _start()
    assert _triple(start) == ("resume", 3, "m/ep.003")
    assert (start.start_epoch, start.notes, start.is_own_model) == (4, [], True)
    assert start.log_line == "Using existing model m/ep.003"
    assert _start(num_epochs=2).epoch == 2


def test_existing_wins_over_load_and_import() -> None:
    _epochs(2)
    _write("other.pt")
    start = _start(load="other", import_model_train_epoch1="other.pt")
    assert _triple(start) == ("resume", 2, "m/ep.002")
    assert [note.split()[0] for note in start.notes] == ["load", "import_model_train_epoch1"]


def test_start_epoch_1_ignores_existing() -> None:
    _epochs(1, 2)
    start = _start(start_epoch=1)
    assert _triple(start) == ("fresh", None, None)
    assert "1, 2 are ignored, and will be overwritten" in start.notes[0]
    _write("other.pt")
    assert _triple(_start(start_epoch=1, load="other")) == ("load", None, "other")
    assert _triple(_start(start_epoch=1, import_model_train_epoch1="other")) == ("import", 0, "other")


def test_start_epoch_n() -> None:
    _epochs(1, 2, 3)
    start = _start(start_epoch=3)
    assert _triple(start) == ("resume", 2, "m/ep.002") and start.start_epoch == 3
    assert "3 are ignored" in start.notes[0]
    with pytest.raises(CheckpointError, match="needs the checkpoint of epoch 9.*existing epochs: 1, 2, 3"):
        _start(start_epoch=10)


def test_start_epoch_n_without_any_checkpoint() -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint of epoch 4"):
        _start(start_epoch=5)


def test_load_starts_at_epoch_1_without_optimizer() -> None:
    _write("x/ep.040.pt")
    start = _start(load="x/ep.040.pt")
    assert _triple(start) == ("load", None, "x/ep.040")
    assert (start.start_epoch, start.is_own_model) == (1, False)
    assert start.log_line == "Using load model x/ep.040 with start_epoch 1"


def test_load_with_start_epoch_trains_from_that_epoch() -> None:
    _write("x/ep.040.pt", "x/ep.040.opt.pt")
    start = _start(load="x/ep.040", start_epoch=7)
    assert _triple(start) == ("load", 6, "x/ep.040") and start.start_epoch == 7
    os.remove("x/ep.040.opt.pt")
    text = "Optimizer file x/ep.040.opt.pt not found and allow_missing_optimizer_checkpoint is False"
    with pytest.raises(CheckpointError, match=text):
        _start(load="x/ep.040", start_epoch=7)
    assert _start(load="x/ep.040", start_epoch=7, allow_missing_optimizer=True).start_epoch == 7


def test_load_with_start_epoch_again_after_a_crash() -> None:
    _write("x.pt", "x.opt.pt")
    _epochs(7, 8)
    start = _start(load="x", start_epoch=7)
    assert _triple(start) == ("load", 6, "x")
    assert "7, 8 are ignored" in start.notes[0]


def test_load_of_any_file_name() -> None:
    _write("x.ckpt")
    assert _start(load="x.ckpt").filename == "x.ckpt"
    assert _start(load=Path("x.ckpt")).filename == "x.ckpt"


@pytest.mark.parametrize("option", ["load", "import_model_train_epoch1"])
def test_missing_or_broken_file(option: str) -> None:
    with pytest.raises(CheckpointError, match=f"option \"{option}\": checkpoint 'x.pt' does not exist"):
        _start(**{option: "x.pt"})
    _write("x.pt", content=WHOLE[:-5])
    with pytest.raises(
        CheckpointError, match=rf'option "{option}": checkpoint \'x.pt\' is broken.*{len(WHOLE) - 5} bytes'
    ):
        _start(**{option: "x"})


def test_import() -> None:
    _write("x.pt", "y.pt")
    start = _start(import_model_train_epoch1="x.pt")
    assert _triple(start) == ("import", 0, "x") and start.start_epoch == 1
    assert start.log_line == "Using import model x"
    assert _start(import_model_train_epoch1="x.pt", load="y").kind == "import"
    _write("y.opt.pt")
    assert _start(import_model_train_epoch1="x.pt", load="y", start_epoch=3).kind == "load"


def test_initialize_model_ignores_own_checkpoints() -> None:
    _epochs(1, 2)
    assert _triple(_start(task="initialize_model", start_epoch=3)) == ("fresh", None, None)
    _write("x.pt")
    assert _triple(_start(task="initialize_model", load="x")) == ("load", None, "x")


def test_load_epoch_in_training() -> None:
    _epochs(1, 2, 3)
    assert _start(load_epoch=2).epoch == 3
    assert _start(load_epoch=2, extern_data={}).epoch == 2
    with pytest.raises(CheckpointError, match="load_epoch"):
        _start(load_epoch=9, extern_data={})


def test_mainline_load_takes_the_epoch_of_the_name() -> None:
    _write("x/ep.040.pt", "x/ep.040.opt.pt")
    os.symlink("ep.040.pt", "x/best.pt")
    os.symlink("ep.040.opt.pt", "x/best.opt.pt")
    assert _start(load="x/best.pt", extern_data={}).epoch == 40
    assert _start(load="x/best.pt", extern_data={}, load_epoch=12).epoch == 12
    _write("plain.pt")
    assert _start(load="plain", extern_data={}).epoch is None


# --- broken own checkpoints


@pytest.mark.parametrize("broken", ["m/ep.003.pt", "m/ep.003.opt.pt"])
@pytest.mark.parametrize("content", [b"", WHOLE[:100], WHOLE[:-1], bytes(len(WHOLE))])
@pytest.mark.parametrize("allow_missing", [False, True])
def test_broken_newest_is_named_and_the_newest_whole_pair_is_used(
    broken: str, content: bytes, allow_missing: bool
) -> None:
    _epochs(1, 2, 3)
    _write(broken, content=content)
    start = _start(allow_missing_optimizer_checkpoint=allow_missing)
    assert _triple(start) == ("resume", 2, "m/ep.002")
    assert len(start.notes) == 1
    assert start.notes[0].startswith("warning") and f"{broken} is broken or only half written" in start.notes[0]


def test_newest_without_optimizer() -> None:
    _epochs(1, 2, 3)
    os.remove("m/ep.003.opt.pt")
    start = _start()
    assert start.epoch == 2
    assert "optimizer file m/ep.003.opt.pt does not exist" in start.notes[0]
    assert _start(allow_missing_optimizer_checkpoint=True).epoch == 3


def test_all_optimizer_files_removed() -> None:
    _epochs(1, 2, 3, opt=False)
    text = "Optimizer file m/ep.003.opt.pt not found and allow_missing_optimizer_checkpoint is False"
    with pytest.raises(CheckpointError, match=text):
        _start(trained_epochs=frozenset({1, 2, 3}))
    assert _start(use_fresh_optimizer_for_missing_checkpoint=True).epoch == 3


def test_only_broken_checkpoints_start_anew() -> None:
    _write("m/ep.001.pt", content=WHOLE[:-1])
    start = _start()
    assert start.kind == "fresh"
    assert "m/ep.001.pt is broken" in start.notes[0] and "will be overwritten" in start.notes[1]


def test_killed_while_saving_the_first_checkpoint() -> None:
    _epochs(2, opt=False)
    start = _start(save_interval=2, trained_epochs=frozenset({1, 2}))
    assert start.kind == "fresh"
    # But a checkpoint that somebody else put there is not overwritten.
    with pytest.raises(CheckpointError, match="not found"):
        _start(save_interval=2)


def test_start_epoch_at_a_broken_checkpoint() -> None:
    _epochs(1, 2, 3)
    _write("m/ep.002.pt", content=b"PK")
    with pytest.raises(CheckpointError, match=r"m/ep.002.pt is broken or only half written \(in start_epoch = 3\)"):
        _start(start_epoch=3)


# --- other tasks


@pytest.mark.parametrize("task", ["forward", "eval"])
def test_other_tasks(task: str) -> None:
    with pytest.raises(AssertionError, match="No model given but task is not training!"):
        _start(task=task)
    _epochs(3, 30)
    start = _start(task=task)
    assert _triple(start) == ("load", 30, "m/ep.030") and start.is_own_model
    assert "using the newest one" in start.notes[0]
    assert _triple(_start(task=task, load_epoch=3)) == ("load", 3, "m/ep.003")
    assert _triple(_start(task=task, epoch=3)) == ("load", 3, "m/ep.003")
    assert _triple(_start(task=task, load="m/ep.003.pt")) == ("load", None, "m/ep.003")
    assert _triple(_start(task=task, load="m/ep.003.pt", extern_data={})) == ("load", 3, "m/ep.003")
    both = _start(task=task, load="m/ep.003.pt", load_epoch=30)
    assert both.epoch is None and "load_epoch is ignored" in both.notes[0]
    with pytest.raises(CheckpointError, match="m/ep.007.pt"):
        _start(task=task, load_epoch=7)
    assert _start(task=task, allow_random_model_init=True).kind == "fresh"


def test_forward_skips_broken_newest_and_needs_no_optimizer() -> None:
    _epochs(3, 4, opt=False)
    _write("m/ep.004.pt", content=WHOLE[:50])
    start = _start(task="forward")
    assert start.epoch == 3 and "m/ep.004.pt is broken" in start.notes[0]
    _write("m/ep.003.pt", content=WHOLE[:50])
    with pytest.raises(ConfigError, match="No usable checkpoint.*m/ep.003.pt is broken"):
        _start(task="forward")


# --- deletion


def test_delete_model() -> None:
    _epochs(1)
    assert model_files.delete_model("m/ep.001") == len(WHOLE)
    assert os.listdir("m") == ["ep.001.opt.pt"]
    _epochs(1)
    assert model_files.delete_model("m/ep.001", with_optimizer=True) == 2 * len(WHOLE)
    with pytest.raises(CheckpointError, match="does not exist"):
        model_files.delete_model("m/ep.001")


def test_prune_optimizer_files_keeps_the_newest_two() -> None:
    _epochs(4, 8, 12, 16, 40)
    assert model_files.prune_optimizer_files("m/ep", 16) == ["m/ep.004.opt.pt", "m/ep.008.opt.pt"]
    assert sorted(n for n in os.listdir("m") if "opt" in n) == ["ep.012.opt.pt", "ep.016.opt.pt", "ep.040.opt.pt"]
    assert len([n for n in os.listdir("m") if "opt" not in n]) == 5
    assert model_files.prune_optimizer_files("m/ep", 16) == []
    assert model_files.prune_optimizer_files("m/nothing", 16) == []
