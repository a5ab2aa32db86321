"""Training with ``torch_distributed = {"class": "fsdp"}`` as a user runs it: checkpoints, restarts, other numbers of ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from returnn.engine.model_files import is_whole_folder
from tests.helpers import ROOT, run_program, write_config
from tests.torch.distributed.sharded_launch import run_rnn_ranks

pytestmark = pytest.mark.slow

#: 25 sequences, 12 per step over all ranks: in the last step only rank 0 has data. Three steps per epoch, two per update: gradients of
#: the last step wait for the next epoch.
_CONFIG = """
    import numpy as np
    import torch

    task = "train"
    device = "cpu"
    backend = "torch"

    def _seqs(num, seed):
        rng = np.random.RandomState(seed)
        return [
            {"data": rng.randn(rng.randint(3, 8), 4).astype("float32"), "classes": rng.randint(0, 3, (1,)).astype("int64")}
            for _ in range(num)
        ]

    train = {"class": "StaticDataset", "data": _seqs(25, 1), "output_dim": {"data": (4, 2), "classes": (3, 1)}}
    dev = {"class": "StaticDataset", "data": _seqs(5, 2), "output_dim": {"data": (4, 2), "classes": (3, 1)}}
    forward = dev
    batch_size = None
    max_seqs = 12
    num_workers_per_gpu = 0
    optimizer = {"class": "adamw", "weight_decay": 0.01}
    gradient_clip_norm = 0.5
    accum_grad_multiple_step = 2
    learning_rate = 0.05
    num_epochs = 4
    model = "models/epoch"
    learning_rate_file = "scores"
    cleanup_old_models = False
    log_verbosity = 4
    torch_distributed = {"class": "fsdp", "shard_modules": ["Block"]}

    class Block(torch.nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.linear = torch.nn.Linear(dim, dim)
            self.norm = torch.nn.LayerNorm(dim)

        def forward(self, x):
            return self.norm(x + torch.relu(self.linear(x)))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inp = torch.nn.Linear(4, 5)
            self.blocks = torch.nn.ModuleList([Block(5), Block(5)])
            self.out = torch.nn.Linear(5, 3)

        def encode(self, x):
            x = self.inp(x)
            for block in self.blocks:
                x = block(x)
            return x

    def get_model(**kwargs):
        return Model()

    def train_step(*, model, data, run_ctx, **kwargs):
        assert type(model) is Model
        lens = data["data:size1"].to(torch.float32)
        mask = torch.arange(data["data"].shape[1])[None] < lens[:, None]
        mean = (model.encode(data["data"]) * mask[..., None]).sum(1) / lens[:, None]
        loss = torch.nn.functional.cross_entropy(model.out(mean), data["classes"][:, 0], reduction="sum")
        run_ctx.mark_as_loss(name="ce", loss=loss, inv_norm_factor=len(lens))

    def forward_step(*, model, data, run_ctx, **kwargs):
        run_ctx.total = getattr(run_ctx, "total", 0.0) + model.out(model.encode(data["data"])).double().sum().item()

    def forward_finish_hook(run_ctx, **kwargs):
        print(f"forward total {run_ctx.total:.4f}")
"""


def _params(folder: Path, epoch: int) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "models" / f"epoch.{epoch:03d}.pt", weights_only=True)
    model: dict[str, torch.Tensor] = state["model"]
    assert state["epoch"] == epoch and state["step"] == 3 * epoch
    return model


def _assert_same(folder: Path, reference: Path, epoch: int) -> None:
    params, expected = _params(folder, epoch), _params(reference, epoch)
    assert list(params) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(params[name], value, rtol=0, atol=1e-6, msg=f"epoch {epoch}, {name}")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """:return: folder of four epochs in one process without interruption"""
    folder = tmp_path_factory.mktemp("one")
    write_config(folder / "train.config", _CONFIG)
    run_rnn_ranks(1, "train.config", cwd=folder)
    return folder


def test_restarts_with_other_numbers_of_ranks(reference: Path, tmp_path: Path) -> None:
    """2, 3, 1, then again 2 ranks, one epoch each: parameters as in one process without interruption."""
    write_config(tmp_path / "train.config", _CONFIG)
    models = tmp_path / "models"

    run_rnn_ranks(2, "train.config", "++num_epochs", "1", "++max_seqs", "6", cwd=tmp_path)
    _assert_same(tmp_path, reference, 1)
    assert is_whole_folder(str(models / "epoch.001.dcp"))
    assert sorted(path.name for path in models.iterdir()) == ["epoch.001.dcp", "epoch.001.pt"]

    output = run_rnn_ranks(3, "train.config", "++num_epochs", "2", "++max_seqs", "4", cwd=tmp_path)
    assert "Load optimizer models/epoch.001.dcp" in output
    _assert_same(tmp_path, reference, 2)

    output = run_rnn_ranks(1, "train.config", "++num_epochs", "3", cwd=tmp_path)
    assert "Load optimizer models/epoch.002.dcp" in output
    _assert_same(tmp_path, reference, 3)
    # Only the newest two states of the optimizer stay, in whatever form.
    assert {path.name for path in models.iterdir()} == {
        *("epoch.001.pt", "epoch.002.pt", "epoch.002.dcp", "epoch.003.pt", "epoch.003.opt.pt")
    }

    output = run_rnn_ranks(2, "train.config", "++max_seqs", "6", cwd=tmp_path)
    assert "Load optimizer models/epoch.003.opt.pt" in output
    _assert_same(tmp_path, reference, 4)


def test_plain_file_is_for_all_other_programs(reference: Path, tmp_path: Path) -> None:
    """Forward in one process and the tools read ``.pt``; with whole_optimizer_file, ``.opt.pt`` has the state of all ranks."""
    write_config(
        tmp_path / "train.config",
        _CONFIG
        + """
    torch_distributed = {"class": "fsdp", "shard_modules": ["Block"], "whole_optimizer_file": True}
    """,
    )
    run_rnn_ranks(2, "train.config", "++num_epochs", "3", "++max_seqs", "6", cwd=tmp_path)
    _assert_same(tmp_path, reference, 3)

    output = run_rnn_ranks(1, "train.config", "++task", "forward", "++load", "models/epoch.003", cwd=tmp_path)
    assert "forward total" in output

    tool = [sys.executable, str(ROOT / "tools" / "torch_inspect_checkpoint.py"), "models/epoch.003.pt"]
    shown = run_program(tool, cwd=tmp_path).stdout
    assert "blocks.1.linear.weight" in shown and "[5,5]" in shown

    own, expected = (
        torch.load(folder / "models" / "epoch.003.opt.pt", weights_only=True) for folder in (tmp_path, reference)
    )
    assert own["returnn"]["param_names"] == expected["returnn"]["param_names"]
    for idx, entries in expected["state"].items():
        assert own["state"][idx].keys() == entries.keys()
        for key, value in entries.items():
            torch.testing.assert_close(own["state"][idx][key], value, rtol=0, atol=1e-6)
    for name, grad in expected["returnn"]["accumulated"]["grads"].items():
        torch.testing.assert_close(own["returnn"]["accumulated"]["grads"][name], grad, rtol=0, atol=1e-6)


def test_killed_while_saving(reference: Path, tmp_path: Path) -> None:
    """SIGKILL while a rank writes its part: the checkpoint before stays, and the training goes on from there."""
    write_config(
        tmp_path / "train.config",
        _CONFIG
        + """
    import os, signal
    import torch.distributed.checkpoint as dcp

    if os.environ.get("TEST_KILL_IN_SAVE"):
        class Writer(dcp.FileSystemWriter):
            num_saves = 0

            def write_data(self, plan, planner):
                Writer.num_saves += 1
                future = super().write_data(plan, planner)
                future.wait()
                if Writer.num_saves == 2 and os.environ["RANK"] == "1":
                    os.kill(os.getpid(), signal.SIGKILL)
                return future

        dcp.FileSystemWriter = Writer
    """,
    )
    models = tmp_path / "models"
    run_rnn_ranks(2, "train.config", "++max_seqs", "6", cwd=tmp_path, check=False, env={"TEST_KILL_IN_SAVE": "1"})
    assert is_whole_folder(str(models / "epoch.001.dcp"))
    assert (models / "epoch.002.pt").exists() and not (models / "epoch.002.dcp").exists()
    assert (models / "epoch.002.dcp.tmp_write").is_dir()

    output = run_rnn_ranks(2, "train.config", "++max_seqs", "6", "++num_epochs", "2", cwd=tmp_path)
    assert "models/epoch.002.opt.pt does not exist; that checkpoint is not used" in output
    assert "Load optimizer models/epoch.001.dcp" in output
    _assert_same(tmp_path, reference, 2)
    assert not (models / "epoch.002.dcp.tmp_write").exists()


def test_mixed_precision_and_its_scaler(tmp_path: Path) -> None:
    """float16 with a gradient scaler, norms in the log, flushed rest of a group; the scaler goes on after a restart."""
    write_config(
        tmp_path / "train.config",
        _CONFIG
        + """
    torch_amp_options = {"dtype": "float16", "grad_scaler": {"init_scale": 256.0, "growth_interval": 1}}
    accum_grad_leftover = "flush"
    log_grad_norm = True
    torch_distributed["shard_modules"] = None
    """,
    )
    run_rnn_ranks(2, "train.config", "++num_epochs", "1", "++max_seqs", "6", cwd=tmp_path)
    scores = (tmp_path / "scores").read_text()
    assert "grad_norm" in scores and "nan" not in scores
    run_rnn_ranks(2, "train.config", "++num_epochs", "2", "++max_seqs", "6", cwd=tmp_path)
    scale = torch.load(tmp_path / "models" / "epoch.002.dcp" / "optimizer.pt", weights_only=True)["returnn"][
        "grad_scaler"
    ]["scale"]
    assert scale == 256.0 * 2**4  # two updates per epoch
