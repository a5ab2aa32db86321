"""Options of checkpoints: accepted forms, and the errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from returnn._state import process_state_ctx
from returnn.errors import ConfigError, OptionError
from returnn.options.checkpoint import CheckpointOptions, CleanupOptions, should_write_to_disk


def _read(**options: Any) -> CheckpointOptions:
    return CheckpointOptions.from_config(options)


def test_defaults() -> None:
    options = _read()
    assert options == CheckpointOptions(
        task="train",
        mainline_dialect=False,
        model=None,
        num_epochs=5,
        start_epoch=None,
        save_interval=1,
        load=None,
        load_epoch=None,
        import_model_train_epoch1=None,
        preload_from_files={},
        load_ignore_missing_vars=False,
        allow_missing_optimizer=False,
        allow_random_model_init=False,
        cleanup=None,
        cleanup_optimizer_files=False,
        write_to_disk=True,
    )
    assert options.final_epoch == 5


def test_empty_strings_are_unset() -> None:
    options = _read(model="", load="", import_model_train_epoch1="", load_epoch=-1)
    assert (options.model, options.load, options.import_model_train_epoch1, options.load_epoch) == (None,) * 4


def test_forms() -> None:
    assert _read(model=Path("m") / "ep").model == str(Path("m") / "ep")
    assert _read(extern_data={}).mainline_dialect
    assert _read(start_epoch="auto").start_epoch is None
    assert _read(start_epoch="3").start_epoch == 3
    assert _read(num_epochs=3, load_epoch=9).final_epoch == 9
    assert _read(task="forward", epoch=4).load_epoch == 4
    assert _read(task="forward", epoch=4, load_epoch=5).load_epoch == 5
    assert _read(task="train", epoch=4).load_epoch is None
    for name in ("allow_missing_optimizer", "use_fresh_optimizer_for_missing_checkpoint"):
        assert _read(**{name: True}).allow_missing_optimizer


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", 5),
        ("load", ["a"]),
        ("num_epochs", "many"),
        ("num_epochs", 1.5),
        ("num_epochs", -1),
        ("start_epoch", 0),
        ("start_epoch", "first"),
        ("start_batch", 3),
        ("save_interval", 0),
        ("allow_missing_optimizer_checkpoint", "maybe"),
        ("cleanup_old_models", 5),
        ("cleanup_old_models", [1]),
        ("cleanup_old_models", {"keep_last_n": 0}),
        ("cleanup_old_models", {"keep_best_n": -1}),
        ("cleanup_old_models", {"keep_best_n": "all"}),
        ("cleanup_old_models", {"keep": 5}),
        ("cleanup_old_models", {"keep": ["a"]}),
        ("cleanup_old_models", {"score_keys": 5}),
        ("preload_from_files", [1]),
        ("preload_from_files", {"a": "file.pt"}),
        ("preload_from_files", {"a": {"filename": "x", "init_for_train": "sometimes"}}),
        ("preload_from_files", {"a": {"filename": "x", "ignore_mising": True}}),
        ("preload_from_files", {"a": {"prefix": "x"}}),
        ("preload_from_files", {"a": {"filename": None}}),
    ],
)
def test_errors_name_the_option(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f'option "{name}" is invalid'):
        _read(**{name: value})


def test_cleanup_forms() -> None:
    none: list[Any] = [None, False, 0, {}, "False"]
    for value in none:
        assert CleanupOptions.from_value(value) is None
    default: list[Any] = [True, 1, "True", {"keep_last_n": 2}]
    for value in default:
        assert CleanupOptions.from_value(value) == CleanupOptions(2, 4, None, None)
    opts: dict[str, Any] = {"keep_last_n": 1, "keep_best_n": 0, "keep": range(10, 40, 10), "score_keys": "dev_loss_ce"}
    assert CleanupOptions.from_value(opts) == CleanupOptions(1, 0, frozenset({10, 20, 30}), ("dev_loss_ce",))
    assert CleanupOptions.from_value({"keep": []}) == CleanupOptions(keep=frozenset())
    assert opts["keep"] == range(10, 40, 10)


def test_unknown_cleanup_key_gets_a_suggestion() -> None:
    with pytest.raises(OptionError, match=r"'keep_last' is not known \(did you mean 'keep_last_n'\?\)"):
        CleanupOptions.from_value({"keep_last": 3})


def test_preload_is_checked_and_not_changed() -> None:
    value: dict[str, Any] = {
        "a": {"filename": "x.pt", "init_for_train": "always"},
        "b": {"filename": None, "pattern": "*"},
    }
    assert _read(preload_from_files=value).preload_from_files is value


def test_two_names_that_differ() -> None:
    with pytest.raises(ConfigError, match="two names of the same thing"):
        _read(allow_missing_optimizer_checkpoint=True, allow_missing_optimizer=False)


def test_who_writes() -> None:
    assert should_write_to_disk({})
    assert not should_write_to_disk({"dry_run": True})
    with process_state_ctx(rank=1, world_size=2):
        assert not should_write_to_disk({})
