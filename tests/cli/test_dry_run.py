"""What a run writes, and what it does not write in a dry run or cannot write."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.helpers import rnn, write_config

CONFIG = """
import torch
train = dev = {"class": "Task12AXDataset", "num_seqs": 5, "fixed_random_seed": 1}
forward = train
model = "models/epoch"
learning_rate_file = "learning_rates"
batch_size = 1000
num_epochs = 2
num_workers_per_gpu = 0
optimizer = {"class": "sgd"}
learning_rate = 0.01
device = "cpu"
cleanup_old_models = {"keep_last_n": 1, "keep_best_n": 0}


def get_model(**kwargs):
    return torch.nn.Linear(9, 2)


def train_step(*, model, data, run_ctx, **kwargs):
    run_ctx.mark_as_loss(name="x", loss=model(data["data"]).pow(2).sum())


def forward_step(*, model, data, run_ctx, **kwargs):
    run_ctx.mark_as_output(model(data["data"]), "y", dims=[len(data["seq_tag"]), data["data:size1"], 2])
"""


def contents(folder: Path) -> dict[str, bytes]:
    """:return: of all files below"""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_dry_run_writes_and_deletes_nothing(tmp_path: Path) -> None:
    config = write_config(tmp_path, CONFIG)
    before = contents(tmp_path)
    assert rnn([config, "++dry_run", "True"], tmp_path, with_torch=True).code == 0
    assert contents(tmp_path) == before
    assert rnn([config, "++cleanup_old_models", "None"], tmp_path, with_torch=True).code == 0
    before = contents(tmp_path)
    assert len(before) == 6
    for task in ("train", "forward", "eval", "initialize_model", "cleanup_old_models"):
        result = rnn([config, "++dry_run", "True", "++task", task, "++num_epochs", "3"], tmp_path, with_torch=True)
        assert result.code == 0, result.err
        assert "Scores stored" not in result.out and "output.hdf" not in result.out
        assert contents(tmp_path) == before, task


@pytest.mark.parametrize("option", ["model", "learning_rate_file"])
def test_output_that_cannot_be_written_is_found_at_the_start(option: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    result = rnn([write_config(tmp_path, CONFIG), f"++{option}", "taken/sub/name"], tmp_path, with_torch=True)
    assert result.code == 1
    assert result.last_error_line.startswith(f"ConfigError: option \"{option}\": cannot write 'taken/sub/name': '")
    assert result.last_error_line.endswith("taken' is no folder. Choose another place.")
    assert "start epoch" not in result.out
