"""The place of a process among others, from the environment of its launcher."""

from __future__ import annotations

import pytest

from returnn._state import process_state_ctx, state
from returnn.errors import ConfigError
from returnn.util.launcher import Launch, find_launch, first_host, set_process_rank

_TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "gpu1",
    "MASTER_PORT": "29500",
}
_SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_STEP_NODELIST": "gpu[07-08,11]",
}
_OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-host-1",
}


def test_alone() -> None:
    assert find_launch(job_systems=True, environ={}) == Launch()


@pytest.mark.parametrize("job_systems", [False, True])
def test_torchrun(job_systems: bool) -> None:
    # torchrun within a SLURM step: its variables count
    launch = find_launch(job_systems=job_systems, environ={**_SLURM, **_TORCHRUN})
    assert launch == Launch(5, 8, 1, 4, "torchrun", "gpu1", 29500)


def test_rank_without_local_rank() -> None:
    """Other launchers set RANK and WORLD_SIZE too: only if several processes are asked for."""
    env = {k: v for k, v in _TORCHRUN.items() if not k.startswith("LOCAL")}
    assert find_launch(job_systems=False, environ=env) == Launch()
    assert find_launch(job_systems=True, environ=env) == Launch(5, 8, 0, 1, "torchrun", "gpu1", 29500)


def test_slurm() -> None:
    assert find_launch(job_systems=False, environ=_SLURM) == Launch()
    launch = find_launch(job_systems=True, environ=_SLURM)
    assert (launch.rank, launch.size, launch.local_rank, launch.local_size) == (3, 6, 1, 2)
    assert (launch.launcher, launch.master_addr) == ("SLURM", "gpu07")
    assert launch.master_port is not None
    others = [find_launch(job_systems=True, environ={**_SLURM, "SLURM_PROCID": str(i)}) for i in range(6)]
    assert {other.master_port for other in others} == {launch.master_port}
    other_step = find_launch(job_systems=True, environ={**_SLURM, "SLURM_STEP_ID": "1"})
    assert other_step.master_port != launch.master_port
    given = find_launch(job_systems=True, environ={**_SLURM, "MASTER_ADDR": "host", "MASTER_PORT": "1234"})
    assert (given.master_addr, given.master_port) == ("host", 1234)


@pytest.mark.parametrize("step", [None, "4294967291", "4294967290"])
def test_slurm_batch_script(step: str | None) -> None:
    """In the script itself, SLURM_PROCID is 0, but there are no other processes."""
    env = {**_SLURM, "SLURM_PROCID": "0"}
    env.pop("SLURM_STEP_ID")
    if step is not None:
        env["SLURM_STEP_ID"] = step
    assert find_launch(job_systems=True, environ=env) == Launch()


def test_open_mpi() -> None:
    assert find_launch(job_systems=False, environ=_OPEN_MPI) == Launch()
    launch = find_launch(job_systems=True, environ=_OPEN_MPI)
    assert (launch.rank, launch.size, launch.local_rank, launch.local_size) == (1, 2, 1, 2)
    assert (launch.launcher, launch.master_addr) == ("OpenMPI", "127.0.0.1")
    # On several machines, somebody has to say where rank 0 is.
    far = find_launch(job_systems=True, environ={**_OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "4"})
    assert far.master_addr is None


def test_pmi() -> None:
    env = {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2", "MASTER_ADDR": "h"}
    launch = find_launch(job_systems=True, environ=env)
    assert (launch.rank, launch.size, launch.local_rank, launch.local_size) == (2, 4, 0, 2)
    assert launch.master_addr == "h"


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[3-5]", "gpu3"),
        ("gpu[03-05,9]-ib,cpu1", "gpu03-ib"),
        ("r[1-2]n[07,09]", "r1n07"),
        ("node-a[1,3],node-b", "node-a1"),
    ],
)
def test_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({**_TORCHRUN, "RANK": "x"}, "RANK: expected an int, got 'x'"),
        ({**_TORCHRUN, "RANK": "8"}, "rank 8 of 8"),
        ({**_TORCHRUN, "LOCAL_RANK": "4"}, "local rank 4 of 4"),
    ],
)
def test_errors(env: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        find_launch(job_systems=False, environ=env)


def test_set_process_rank() -> None:
    with process_state_ctx():
        set_process_rank(Launch(2, 3, 0, 1, "torchrun"))
        assert (state.rank, state.world_size) == (2, 3)
