"""What README.md and docs/ tell newcomers to do works as written."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import pytest

from tests.helpers import ROOT, run_rnn

pytestmark = pytest.mark.slow


def _python_blocks(file: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / file).read_text(), re.M | re.S)


def test_the_first_two_commands_are_alone_in_their_blocks() -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert [len(block.splitlines()) for block in blocks[:2]] == [1, 1]
    assert "demos/digits/run.py" in blocks[0] and "pytest" in blocks[1]


def test_the_smallest_config_trains_and_forwards(tmp_path: Path) -> None:
    config, forward, *_ = _python_blocks("README.md")
    assert config.startswith("#!rnn.py")
    (tmp_path / "my.config").write_text(config + "\nforward = dev\n" + forward)
    out = run_rnn("my.config", "++num_epochs", "2", cwd=tmp_path).stdout
    assert "Finished training at epoch 3." in out
    assert "resume after epoch 2" in run_rnn("my.config", "++num_epochs", "3", cwd=tmp_path).stdout
    run_rnn("my.config", "++task", "forward", "++load", "models/epoch.003.pt", cwd=tmp_path)
    with h5py.File(tmp_path / "output.hdf") as f:
        assert f["seqLengths"].shape[0] == 50 and f["seqLengths"][:, 0].sum() == f["inputs"].shape[0]


def test_the_own_dataset_of_the_docs_works_in_a_worker(tmp_path: Path) -> None:
    own_dataset = next(block for block in _python_blocks("docs/data.md") if "MapDatasetWrapper" in block)
    rest = """
import torch
dev = train
num_epochs = 1
batch_size = 50
optimizer = {"class": "sgd"}
learning_rate = 1e-6

def get_model(**kwargs):
    return torch.nn.Linear(1, 1)

def train_step(*, model, data, run_ctx, **kwargs):
    run_ctx.mark_as_loss(model(data["data"]).abs().mean(), "x")
"""
    (tmp_path / "my.config").write_text("#!rnn.py\n" + own_dataset + rest)
    assert "100 seqs in" in run_rnn("my.config", cwd=tmp_path).stdout
