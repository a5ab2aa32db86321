"""Which checkpoint a run starts from: all forms of the options, broken files, both dialects."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from returnn.engine.inner_files import inner_checkpoints
from returnn.engine.model_files import StartPoint
from returnn.engine.start_point import choose_start
from returnn.errors import CheckpointError, ConfigError
from returnn.options.checkpoint import CheckpointOptions
from tests.engine.checkpoint_files import WHOLE, write, write_epochs


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _start(**config: Any) -> StartPoint:
    trained = config.pop("trained_epochs", frozenset())
    standard = config.pop("standard_optimizer_files", True)
    config = {"task": "train", "model": "m/ep", "num_epochs": 20, **config}
    return choose_start(
        CheckpointOptions.from_config(config), trained_epochs=trained, standard_optimizer_files=standard
    )


def _triple(start: StartPoint) -> tuple[str, int | None, str | None]:
    return start.kind, start.epoch, start.filename


# --- training: which checkpoint


def test_fresh() -> None:
    start = _start()
    assert _triple(start) == ("fresh", None, None)
    assert (start.start_epoch, start.notes, start.log_line) == (1, [], "Using fresh model")


def test_newest_existing() -> None:
    write_epochs(1, 2, 3)
    start = _start()
    assert _triple(start) == ("resume", 3, "m/ep.003")
    assert (start.start_epoch, start.notes, start.is_own_model) == (4, [], True)
    assert start.log_line == "Using existing model m/ep.003"
    assert _start(num_epochs=2).epoch == 2


def test_nop_init_net_train_starts_as_a_training() -> None:
    write_epochs(1, 2)
    assert _triple(_start(task="nop_init_net_train")) == _triple(_start()) == ("resume", 2, "m/ep.002")


def test_existing_wins_over_load_and_import() -> None:
    write_epochs(2)
    write("other.pt")
    start = _start(load="other", import_model_train_epoch1="other.pt")
    assert _triple(start) == ("resume", 2, "m/ep.002")
    assert [note.split()[0] for note in start.notes] == ["load", "import_model_train_epoch1"]


def test_start_epoch_1_ignores_existing() -> None:
    write_epochs(1, 2)
    start = _start(start_epoch=1)
    assert _triple(start) == ("fresh", None, None)
    assert "1, 2 are ignored, and will be overwritten" in start.notes[0]
    write("other.pt")
    assert _triple(_start(start_epoch=1, load="other")) == ("load", None, "other")
    assert _triple(_start(start_epoch=1, import_model_train_epoch1="other")) == ("import", 0, "other")


def test_start_epoch_n() -> None:
    write_epochs(1, 2, 3)
    start = _start(start_epoch=3)
    assert _triple(start) == ("resume", 2, "m/ep.002") and start.start_epoch == 3
    assert "3 are ignored" in start.notes[0]
    with pytest.raises(CheckpointError, match="needs the checkpoint of epoch 9.*existing epochs: 1, 2, 3"):
        _start(start_epoch=10)


def test_start_epoch_n_without_any_checkpoint() -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint of epoch 4"):
        _start(start_epoch=5)


def test_load_starts_at_epoch_1_without_optimizer() -> None:
    write("x/ep.040.pt")
    start = _start(load="x/ep.040.pt")
    assert _triple(start) == ("load", None, "x/ep.040")
    assert (start.start_epoch, start.is_own_model) == (1, False)
    assert start.log_line == "Using load model x/ep.040 with start_epoch 1"


def test_load_with_start_epoch_trains_from_that_epoch() -> None:
    write("x/ep.040.pt", "x/ep.040.opt.pt")
    start = _start(load="x/ep.040", start_epoch=7)
    assert _triple(start) == ("load", 6, "x/ep.040") and start.start_epoch == 7
    os.remove("x/ep.040.opt.pt")
    text = "Optimizer file x/ep.040.opt.pt not found and allow_missing_optimizer_checkpoint is False"
    with pytest.raises(CheckpointError, match=text):
        _start(load="x/ep.040", start_epoch=7)
    assert _start(load="x/ep.040", start_epoch=7, allow_missing_optimizer=True).start_epoch == 7


def test_load_with_start_epoch_again_after_a_crash() -> None:
    write("x.pt", "x.opt.pt")
    write_epochs(7, 8)
    start = _start(load="x", start_epoch=7)
    assert _triple(start) == ("load", 6, "x")
    assert "7, 8 are ignored" in start.notes[0]


def test_load_of_any_file_name() -> None:
    write("x.ckpt")
    assert _start(load="x.ckpt").filename == "x.ckpt"
    assert _start(load=Path("x.ckpt")).filename == "x.ckpt"


@pytest.mark.parametrize("option", ["load", "import_model_train_epoch1"])
def test_missing_or_broken_file(option: str) -> None:
    with pytest.raises(CheckpointError, match=f"option \"{option}\": checkpoint 'x.pt' does not exist"):
        _start(**{option: "x.pt"})
    write("x.pt", content=WHOLE[:-5])
    with pytest.raises(
        CheckpointError, match=rf'option "{option}": checkpoint \'x.pt\' is broken.*{len(WHOLE) - 5} bytes'
    ):
        _start(**{option: "x"})


def test_import() -> None:
    write("x.pt", "y.pt")
    start = _start(import_model_train_epoch1="x.pt")
    assert _triple(start) == ("import", 0, "x") and start.start_epoch == 1
    assert start.log_line == "Using import model x"
    assert _start(import_model_train_epoch1="x.pt", load="y").kind == "import"
    write("y.opt.pt")
    assert _start(import_model_train_epoch1="x.pt", load="y", start_epoch=3).kind == "load"


def test_initialize_model_ignores_own_checkpoints() -> None:
    write_epochs(1, 2)
    assert _triple(_start(task="initialize_model", start_epoch=3)) == ("fresh", None, None)
    write("x.pt")
    assert _triple(_start(task="initialize_model", load="x")) == ("load", None, "x")


def test_inside_an_epoch() -> None:
    write_epochs(1, 2)
    for name in ("m/ep.002.step20", "m/ep.003.step25", "m/ep.003.step30"):
        for postfix in (".pt", ".opt.pt"):
            write(name + postfix)

    def start(**config: Any) -> StartPoint:  # Any: options
        options = CheckpointOptions.from_config({"model": "m/ep", "num_epochs": 9, **config})
        return choose_start(options, inner=inner_checkpoints("m/ep", 9))

    newest = start(load="m/ep.001.pt")
    assert _triple(newest) == ("resume", 2, "m/ep.003.step30") and newest.step == 30 and newest.start_epoch == 3
    assert newest.notes == ["load is ignored, since there are checkpoints of this training."]
    for config in ({"start_epoch": 2}, {"load_epoch": 1, "extern_data": {}}):
        asked = start(**config)
        assert _triple(asked) == ("resume", 1, "m/ep.001") and asked.step is None
        (note,) = [note for note in asked.notes if "m/ep.003.step30" in note]
        assert note.startswith(f"warning: {next(iter(config))} = ") and "ignored" in note

    write("m/ep.003.step30.pt", content=WHOLE[:10])
    before = start()
    assert before.filename == "m/ep.003.step25" and "m/ep.003.step30.pt is broken" in before.notes[0]
    os.remove("m/ep.003.step25.opt.pt")
    after = start()
    assert _triple(after) == ("resume", 2, "m/ep.002") and after.step is None, "the epoch is done, step 20 was before"
    assert "optimizer file m/ep.003.step25.opt.pt does not exist" in after.notes[1]


def test_load_epoch_in_training() -> None:
    write_epochs(1, 2, 3)
    assert _start(load_epoch=2).epoch == 3
    assert _start(load_epoch=2, extern_data={}).epoch == 2
    with pytest.raises(CheckpointError, match="load_epoch"):
        _start(load_epoch=9, extern_data={})


def test_mainline_load_takes_the_epoch_of_the_name() -> None:
    write("x/ep.040.pt", "x/ep.040.opt.pt")
    os.symlink("ep.040.pt", "x/best.pt")
    os.symlink("ep.040.opt.pt", "x/best.opt.pt")
    assert _start(load="x/best.pt", extern_data={}).epoch == 40
    assert _start(load="x/best.pt", extern_data={}, load_epoch=12).epoch == 12
    write("plain.pt")
    assert _start(load="plain", extern_data={}).epoch is None


# --- broken own checkpoints


@pytest.mark.parametrize("broken", ["m/ep.003.pt", "m/ep.003.opt.pt"])
@pytest.mark.parametrize(
    "content", [b"", WHOLE[:100], WHOLE[:-1], bytes(len(WHOLE))], ids=["empty", "begin", "cut", "zeros"]
)
@pytest.mark.parametrize("allow_missing", [False, True])
def test_broken_newest_is_named_and_the_newest_whole_pair_is_used(
    broken: str, content: bytes, allow_missing: bool
) -> None:
    write_epochs(1, 2, 3)
    write(broken, content=content)
    start = _start(allow_missing_optimizer_checkpoint=allow_missing)
    assert _triple(start) == ("resume", 2, "m/ep.002")
    assert len(start.notes) == 1
    assert start.notes[0].startswith("warning") and f"{broken} is broken or only half written" in start.notes[0]


def test_newest_without_optimizer() -> None:
    write_epochs(1, 2, 3)
    os.remove("m/ep.003.opt.pt")
    start = _start()
    assert start.epoch == 2
    assert "optimizer file m/ep.003.opt.pt does not exist" in start.notes[0]
    assert _start(allow_missing_optimizer_checkpoint=True).epoch == 3


def test_all_optimizer_files_removed() -> None:
    write_epochs(1, 2, 3, opt=False)
    text = "Optimizer file m/ep.003.opt.pt not found and allow_missing_optimizer_checkpoint is False"
    with pytest.raises(CheckpointError, match=text):
        _start(trained_epochs=frozenset({1, 2, 3}))
    assert _start(use_fresh_optimizer_for_missing_checkpoint=True).epoch == 3


def test_only_broken_checkpoints_start_anew() -> None:
    write("m/ep.001.pt", content=WHOLE[:-1])
    start = _start()
    assert start.kind == "fresh"
    assert "m/ep.001.pt is broken" in start.notes[0] and "will be overwritten" in start.notes[1]


def test_killed_while_saving_the_first_checkpoint() -> None:
    write_epochs(2, opt=False)
    start = _start(save_interval=2, trained_epochs=frozenset({1, 2}))
    assert start.kind == "fresh"
    # But a checkpoint that somebody else put there is not overwritten.
    with pytest.raises(CheckpointError, match="not found"):
        _start(save_interval=2)


@pytest.mark.parametrize("postfix", [".opt.pt", ".dcp"])
def test_killed_while_saving_the_first_checkpoint_without_learning_rate_file(postfix: str) -> None:
    write_epochs(1, opt=False)
    write(f"m/ep.001{postfix}.tmp_write")
    start = _start()
    assert start.kind == "fresh"
    assert "this was the first checkpoint of the training" in start.notes[-1]


def test_start_epoch_at_a_broken_checkpoint() -> None:
    write_epochs(1, 2, 3)
    write("m/ep.002.pt", content=b"PK")
    with pytest.raises(CheckpointError, match=r"m/ep.002.pt is broken or only half written \(in start_epoch = 3\)"):
        _start(start_epoch=3)


# --- other tasks


@pytest.mark.parametrize("task", ["forward", "eval"])
def test_other_tasks(task: str) -> None:
    with pytest.raises(AssertionError, match="No model given but task is not training!"):
        _start(task=task)
    write_epochs(3, 30)
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
    write_epochs(3, 4, opt=False)
    write("m/ep.004.pt", content=WHOLE[:50])
    start = _start(task="forward")
    assert start.epoch == 3 and "m/ep.004.pt is broken" in start.notes[0]
    write("m/ep.003.pt", content=WHOLE[:50])
    with pytest.raises(ConfigError, match="No usable checkpoint.*m/ep.003.pt is broken"):
        _start(task="forward")


# --- custom engines


def test_engine_with_own_optimizer_files() -> None:
    write_epochs(1, 2, opt=False)
    write("m/ep.001.gen.opt.pt", "m/ep.002.gen.opt.pt")
    assert _start(standard_optimizer_files=False).epoch == 2
    with pytest.raises(CheckpointError, match="not found"):
        _start()
    write("m/ep.002.gen.opt.pt", content=WHOLE[:60])
    start = _start(standard_optimizer_files=False)
    assert start.epoch == 1 and "m/ep.002.gen.opt.pt is broken" in start.notes[0]
    write("x.pt")
    assert _start(standard_optimizer_files=False, model="n/ep", load="x", start_epoch=5).start_epoch == 5


def test_engine_that_uses_the_standard_files_in_its_own_way() -> None:
    write_epochs(1, 2)
    os.remove("m/ep.002.opt.pt")
    start = _start(standard_optimizer_files=False)
    assert start.epoch == 1 and "m/ep.002.opt.pt does not exist" in start.notes[0]


def test_eval_of_a_given_own_checkpoint_is_own() -> None:
    write_epochs(1, 2)
    assert _start(task="eval", load="m/ep.001.pt").is_own_model
    os.makedirs("other")
    os.link("m/ep.001.pt", "other/ep.001.pt")
    assert not _start(task="eval", load="other/ep.001.pt").is_own_model


def test_only_later_checkpoints() -> None:
    # E.g. num_epochs given on the command line of the first run, and cleanup_old_models deleted the early ones.
    write_epochs(5, 6)
    for config in ({}, {"load": "m/ep.005"}, {"import_model_train_epoch1": "m/ep.005"}):
        with pytest.raises(CheckpointError) as info:
            _start(num_epochs=4, **config)
        assert str(info.value) == (
            "num_epochs is 4, but all existing checkpoints are of later epochs (5, 6) (in model = 'm/ep')."
            " Set num_epochs to more than 6 to go on, start_epoch = 1 to start anew, or another model."
        )
    assert _start(num_epochs=4, start_epoch=1).kind == "fresh"
    assert _start(num_epochs=4, task="initialize_model").kind == "fresh"


def test_missing_epoch_names_the_option_that_was_set() -> None:
    write_epochs(3)
    for option in ("epoch", "load_epoch"):
        with pytest.raises(CheckpointError, match=f'^option "{option}" needs the checkpoint of epoch 2, '):
            _start(task="forward", **{option: 2})
