"""Compiled steps and averages of the weights on several ranks: as in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import write_config
from tests.torch.distributed.sharded_launch import run_rnn_ranks
from tests.torch.distributed.test_rnn_ranks import _CONFIG

pytestmark = pytest.mark.slow

_OPTIONS = """
    num_epochs = 2
    ema = {"decay": 0.7, "eval": True}
"""


def _train(folder: Path, num_ranks: int, *args: str) -> tuple[dict[str, Any], str]:
    """:return: last checkpoint (Any: its entries), output"""
    folder.mkdir()
    config = write_config(folder / "my.config", _CONFIG + _OPTIONS)
    output = run_rnn_ranks(num_ranks, str(config), "++max_seqs", str(6 // num_ranks), *args, cwd=folder)
    checkpoint: dict[str, Any] = torch.load(folder / "models" / "epoch.002.pt", weights_only=True)
    return checkpoint, output


def test_compiled_ranks_train_as_one_process(tmp_path: Path) -> None:
    expected, _ = _train(tmp_path / "one", 1)
    got, _ = _train(tmp_path / "two", 2, "++torch_compile", "{'backend': 'aot_eager'}")
    assert got["ema_state"] == expected["ema_state"]
    for key in ("model", "ema"):
        assert list(got[key]) == list(expected[key])
        for name, value in expected[key].items():
            torch.testing.assert_close(got[key][name], value, rtol=1e-5, atol=1e-6)
