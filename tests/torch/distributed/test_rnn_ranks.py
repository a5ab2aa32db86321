"""Training with several ranks as a user runs it."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from tests.forked import Program, run_all_forked
from tests.helpers import ROOT, write_config
from tests.torch.distributed.sharded_launch import free_port, rank_env, run_rnn_ranks

pytestmark = pytest.mark.slow

_CONFIG = """
    import numpy as np
    import torch

    task = "train"
    device = "cpu"

    def _seqs(num, seed):
        rng = np.random.RandomState(seed)
        lens = rng.randint(2, 12, size=num)
        return [
            {"data": rng.normal(size=(n, 4)).astype("float32"), "classes": rng.randint(0, 3, (n,)).astype("int32")}
            for n in lens
        ]

    def _data(num, seed):
        return {
            "class": "StaticDataset",
            "data": _seqs(num, seed),
            "output_dim": {"data": (4, 2), "classes": (3, 1)},
            "seq_ordering": "random",
        }

    train = _data(31, 1)
    dev = _data(5, 2)
    num_ranks = 1
    max_seqs = 6
    batch_size = 10000
    num_workers_per_gpu = 0
    optimizer = {"class": "adamw", "weight_decay": 0.01}
    gradient_clip_norm = 0.5
    accum_grad_multiple_step = 4
    learning_rate = 0.05
    learning_rate_control = "newbob_abs"
    num_epochs = 3
    model = "models/epoch"
    learning_rate_file = "scores"
    log_verbosity = 5
    dropout = 0.0

    class Net(torch.nn.Module):
        def __init__(self, dropout):
            super().__init__()
            self.hidden = torch.nn.Linear(4, 8)
            self.dropout = torch.nn.Dropout(dropout)
            self.output = torch.nn.Linear(8, 3)

        def forward(self, x):
            return self.output(self.dropout(torch.tanh(self.hidden(x))))

    def get_model(**_):
        from returnn.config import get_global_config

        return Net(get_global_config().float("dropout", 0.0))

    def train_step(*, model, data, run_ctx, **_):
        lens = data["data:size1"]
        mask = torch.arange(data["data"].shape[1])[None, :] < lens[:, None]
        ce = torch.nn.functional.cross_entropy(
            model(data["data"])[mask], data["classes"][mask].long(), reduction="sum"
        )
        run_ctx.mark_as_loss(ce, "ce", inv_norm_factor=lens.sum())
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    """:return: file name"""
    return str(write_config(tmp_path / "my.config", _CONFIG))


def _params(cwd: Path, epoch: int) -> dict[str, torch.Tensor]:
    params: dict[str, torch.Tensor] = torch.load(cwd / f"models/epoch.{epoch:03d}.pt")["model"]
    return params


def _files(cwd: Path) -> list[str]:
    return sorted(str(path.relative_to(cwd)) for path in cwd.rglob("*") if path.is_file())


def run_rnn_all(
    commands: Sequence[tuple[Path, Sequence[str], Mapping[str, str]]],
) -> list[subprocess.CompletedProcess[str]]:
    """
    :param commands: working directory, arguments of rnn.py, environment
    :return: when all have ended
    """
    programs = [Program([str(ROOT / "rnn.py"), *args], cwd, env) for cwd, args, env in commands]
    return run_all_forked(programs, one_output=True, timeout=200)


def test_same_as_one_process(tmp_path: Path, config: str) -> None:
    """The config says nothing about ranks: torchrun alone decides. Parameters, scores, learning rates, files are the same."""
    folders = []
    for num in (1, 2, 3):
        cwd = tmp_path / f"ranks{num}"
        cwd.mkdir()
        output = run_rnn_ranks(num, config, "++max_seqs", str(6 // num), cwd=cwd, torchrun=True)
        folders.append(cwd)
        if num > 1:
            assert (
                f"rank 0 of {num}, started by torchrun (torch_distributed is not set: its defaults are used)" in output
            )
            assert "in 1 of 6 steps, only some ranks had data" in output
    one, *others = folders
    for cwd in others:
        assert _files(cwd) == _files(one)
        for name, value in _params(one, 3).items():
            torch.testing.assert_close(_params(cwd, 3)[name], value, rtol=0, atol=1e-6)
        namespace = {"EpochData": dict}
        scores = [eval((folder / "scores").read_text(), dict(namespace)) for folder in (one, cwd)]
        for epoch in (1, 2, 3):
            own, other = (score[epoch] for score in scores)
            assert own["learningRate"] == other["learningRate"]
            assert own["error"] == pytest.approx(other["error"], rel=1e-5)


@pytest.mark.parametrize("leftover", ["carry", "flush"])
def test_incomplete_group_in_which_only_rank_0_had_data(tmp_path: Path, config: str, leftover: str) -> None:
    """Five steps are a group, so the last step of an epoch is left, which has a single sequence."""
    folders = []
    for num in (1, 2):
        cwd = tmp_path / f"ranks{num}"
        cwd.mkdir()
        args: tuple[str, ...] = (
            "++accum_grad_multiple_step",
            "5",
            "++accum_grad_leftover",
            leftover,
            "++max_seqs",
            str(6 // num),
        )
        args += ("++torch_distributed", "{'reduce_type': 'grad_explicit'}", "++num_epochs", "2")
        output = run_rnn_ranks(num, config, *args, cwd=cwd)
        folders.append(cwd)
    assert "in 1 of 6 steps, only some ranks had data" in output
    one, two = folders
    for name, value in _params(one, 2).items():
        torch.testing.assert_close(_params(two, 2)[name], value, rtol=0, atol=1e-6)


def test_restart_is_exact(tmp_path: Path, config: str) -> None:
    """With dropout, and with gradients that wait for the next epoch; the number of ranks may also change."""
    folders = []
    for name, last_epochs in (("whole", [3]), ("parts", [2, 3])):
        cwd = tmp_path / name
        cwd.mkdir()
        folders.append(cwd)
        for last_epoch in last_epochs:
            args = ("++dropout", "0.3", "++max_seqs", "3", "++num_epochs", str(last_epoch))
            output = run_rnn_ranks(2, config, *args, cwd=cwd)
    assert "resume after epoch 2" in output
    whole, parts = folders
    for name, value in _params(whole, 3).items():
        assert torch.equal(_params(parts, 3)[name], value), name
    assert (parts / "scores").read_text() == (whole / "scores").read_text()

    output = run_rnn_ranks(3, config, "++max_seqs", "2", "++num_epochs", "4", cwd=parts)
    assert "The checkpoint was written by 2 processes, now there are 3" in output
    output = run_rnn_ranks(1, config, "++num_epochs", "5", cwd=parts)
    assert "The checkpoint was written by 3 processes, now there are 1" in output
    assert torch.load(parts / "models/epoch.005.pt")["epoch"] == 5


def test_files_only_on_rank_0(tmp_path: Path, config: str) -> None:
    """Machines without common files: the second rank, in another folder, gets checkpoint and scores from rank 0."""
    folders = [tmp_path / "machine0", tmp_path / "machine1", tmp_path / "whole"]
    for cwd in folders:
        cwd.mkdir()
    for last_epoch in (2, 3):
        port = free_port()
        args = [config, "++max_seqs", "3", "++num_epochs", str(last_epoch)]
        results = run_rnn_all([(folders[rank], args, rank_env(rank, 2, port)) for rank in range(2)])
        assert [res.returncode for res in results] == [0, 0], results
        output = results[0].stdout
    assert _files(folders[1]) == []
    assert "models/epoch.002.pt is not there for the ranks [1]" in output
    assert "models/epoch.002.opt.pt is not there for the ranks [1]" in output
    run_rnn_ranks(2, config, "++max_seqs", "3", cwd=folders[2])
    for name, value in _params(folders[2], 3).items():
        assert torch.equal(_params(folders[0], 3)[name], value), name


def test_job_systems(tmp_path: Path, config: str) -> None:
    """The variables of a step of SLURM count if torch_distributed is set; else each process would train alone."""
    port = str(free_port())
    commands = []
    for rank in range(2):
        env = {
            "SLURM_JOB_ID": "1",
            "SLURM_STEP_ID": "0",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_STEP_TASKS_PER_NODE": "2",
            "SLURM_STEP_NODELIST": "localhost",
            "MASTER_PORT": port,
        }
        commands.append((tmp_path, [config, "++torch_distributed", "{}", "++num_epochs", "1"], env))
    results = run_rnn_all(commands)
    assert [res.returncode for res in results] == [0, 0], results
    assert "rank 0 of 2, started by SLURM;" in results[0].stdout
    (alone,) = run_rnn_all([(tmp_path, [config, "++torch_distributed", "{}", "++num_epochs", "2"], {})])
    assert alone.returncode == 0
    assert "torch_distributed is set, but there is only one process" in alone.stdout


def test_ranks_do_not_come_together(tmp_path: Path, config: str) -> None:
    args = [config, "++torch_distributed", "{'startup_timeout_sec': 3}"]
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        commands = [
            (tmp_path, args, rank_env(0, 2, free_port())),  # rank 1 was not started
            (tmp_path, args, rank_env(1, 2, free_port())),  # rank 0 was not started
            (tmp_path, args, rank_env(0, 2, busy.getsockname()[1])),
            (tmp_path, args, {k: v for k, v in rank_env(0, 2, 1).items() if k != "MASTER_ADDR"}),
        ]
        missing, unreachable, in_use, no_address = run_rnn_all(commands)
    for result, text in (
        (missing, "Rank 0 of 2: not all 2 processes came to"),
        (unreachable, "Rank 1 of 2: rank 0 is not reachable at 127.0.0.1:"),
        (in_use, "Rank 0 of 2: the port"),
        (no_address, "Set the environment variable MASTER_ADDR"),
    ):
        assert result.returncode == 1, result.stdout
        assert text in result.stdout.strip().splitlines()[-1], result.stdout


def test_bad_option(tmp_path: Path, config: str) -> None:
    (result,) = run_rnn_all([(tmp_path, [config, "++torch_distributed", "{'reduce_typ': 'grad'}"], {})])
    assert result.returncode == 1
    assert 'Did you mean "reduce_type"' in result.stdout.strip().splitlines()[-1]


def test_the_end_of_a_rank_is_that_of_a_program(tmp_path: Path) -> None:
    """Threads are waited for, functions of atexit are called, nothing printed is lost."""
    code = """
    import atexit, os, threading, time
    task = "config:work"
    torch_distributed = {}

    def late():
        threading.main_thread().join(0.5)
        print("THREAD", flush=False)

    def work():
        atexit.register(lambda: print("ATEXIT", flush=False))
        threading.Thread(target=late).start()
    """
    write_config(tmp_path / "my.config", code)
    out = run_rnn_ranks(2, "my.config", cwd=tmp_path, torchrun=True)
    assert out.count("THREAD") == out.count("ATEXIT") == 2, out
