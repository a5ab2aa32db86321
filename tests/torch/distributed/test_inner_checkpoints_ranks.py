"""Several ranks stop in the middle of an accumulation group, and go on: what is special to each is in the checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.helpers import write_config
from tests.torch.distributed.sharded_launch import free_port, rank_env
from tests.torch.distributed.test_rnn_ranks import _CONFIG, run_rnn_all

pytestmark = pytest.mark.slow

#: Buffers, gradients that are not applied yet, and random numbers differ between the ranks.
_STOPPED = """
    import os

    gradient_noise = 0.01
    max_seqs = 2
    num_epochs = 2

    class NetWithBuffers(Net):
        def __init__(self):
            super().__init__(0.3)
            self.norm = torch.nn.BatchNorm1d(4)

        def forward(self, x):
            return super().forward(self.norm(x.flatten(0, 1)).reshape(x.shape))

    def get_model(**_):
        return NetWithBuffers()

    step_of_all = train_step

    def train_step(*, model, data, run_ctx, **kwargs):
        step = os.environ.get("TEST_STOP_IN")
        if model.training and step == str(run_ctx.engine._train_step) and os.environ["RANK"] == "1":
            from returnn.util import stop_request

            assert stop_request.request("test")
        step_of_all(model=model, data=data, run_ctx=run_ctx, **kwargs)
"""


def _run(folder: Path, *, stop_in: str = "") -> list[int]:
    """:return: exit codes of the ranks"""
    port = free_port()
    results = run_rnn_all(
        [(folder, ["my.config"], {**rank_env(rank, 2, port), "TEST_STOP_IN": stop_in}) for rank in range(2)]
    )
    codes = [result.returncode for result in results]
    assert set(codes) <= {0, 85}, "\n".join(result.stdout for result in results)
    return codes


def test_all_that_is_special_to_a_rank(tmp_path: Path) -> None:
    folders = [tmp_path / "whole", tmp_path / "parts"]
    for folder in folders:
        folder.mkdir()
        write_config(folder / "my.config", _CONFIG + _STOPPED)
    whole, parts = folders
    assert _run(whole) == [0, 0]
    assert _run(parts, stop_in="2") == [85, 85]
    (name,) = (name for name in os.listdir(parts / "models") if not name.endswith(".opt.pt"))
    checkpoint = torch.load(parts / "models" / name, weights_only=True)
    assert checkpoint["step"] % 4, "the case is to stop within an accumulation group"
    ranks = checkpoint["position"]["ranks"]
    assert len(ranks) == 2
    for kind in ("gradients", "buffers"):
        a, b = (rank[kind] for rank in ranks)
        assert any(not torch.equal(a[key], b[key]) for key in a), kind
    assert _run(parts) == [0, 0]
    assert sorted(os.listdir(whole / "models")) == sorted(os.listdir(parts / "models"))
    assert (whole / "scores").read_text() == (parts / "scores").read_text()
    a, b = (torch.load(folder / "models/epoch.002.pt", weights_only=True) for folder in folders)
    for name, value in a["model"].items():
        assert torch.equal(value, b["model"][name]), name
    assert torch.equal(a["rng_state_of_other_ranks"][0]["torch"], b["rng_state_of_other_ranks"][0]["torch"])
