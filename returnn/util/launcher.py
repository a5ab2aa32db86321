"""
Who started this process, and as which of how many: the environment of torchrun, of a SLURM step, of MPI launchers.

Without torch, since the rank is needed before torch is imported (names of log files). Facts from the documentation of torchrun
("Environment Variables"), of srun ("OUTPUT ENVIRONMENT VARIABLES"), and of OpenMPI's and MPICH's mpirun.
"""

from __future__ import annotations

import dataclasses
import os
import re
import zlib
from collections.abc import Mapping

from returnn._state import state
from returnn.errors import ConfigError

__all__ = ["Launch", "find_launch", "first_host", "set_process_rank"]

#: Step ids of SLURM that are no step of srun: of the batch script, of an interactive shell, and two more.
_SLURM_NO_STEP = range(0xFFFFFFF0, 0x100000000)
_PORTS = range(20000, 32000)  # below the range that systems hand out by themselves


@dataclasses.dataclass(frozen=True)
class Launch:
    """The place of this process among all that run the same training."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this machine
    local_size: int = 1
    launcher: str = ""  # "torchrun", "SLURM", "OpenMPI", "MPI"; empty: started alone
    master_addr: str | None = None  # where rank 0 listens; None: unknown
    master_port: int | None = None


def find_launch(*, job_systems: bool, environ: Mapping[str, str] | None = None) -> Launch:
    """
    :param job_systems: accept the variables of SLURM and MPI as well. Only if the config asks for several processes: many jobs
        run single processes within such an environment
    :param environ: default: that of this process
    :raises ConfigError: the variables are no ints, or contradict each other
    """
    env = os.environ if environ is None else environ
    launch = _from_torchrun(env, complete=not job_systems)
    if launch is None and job_systems:
        launch = _from_slurm(env) or _from_mpi(env)
    launch = launch or Launch()
    if not (0 <= launch.rank < launch.size and 0 <= launch.local_rank < launch.local_size <= launch.size):
        raise ConfigError(
            f"The environment of {launch.launcher} contradicts itself: rank {launch.rank} of {launch.size}, "
            f"local rank {launch.local_rank} of {launch.local_size}. Start the processes anew, or unset its variables."
        )
    return launch


def set_process_rank(launch: Launch) -> None:
    """Put rank and number of ranks where all parts of the package look for them."""
    state.rank, state.world_size = launch.rank, launch.size


def _from_torchrun(env: Mapping[str, str], *, complete: bool) -> Launch | None:
    """:param complete: also need the local rank, which others that set RANK and WORLD_SIZE leave out"""
    rank, size = _int(env, "RANK"), _int(env, "WORLD_SIZE")
    local_rank = _int(env, "LOCAL_RANK")
    if rank is None or size is None or (complete and local_rank is None):
        return None
    local_rank = local_rank or 0
    local_size = _int(env, "LOCAL_WORLD_SIZE") or min(local_rank + 1, size)
    return Launch(rank, size, local_rank, local_size, "torchrun", _text(env, "MASTER_ADDR"), _int(env, "MASTER_PORT"))


def _from_slurm(env: Mapping[str, str]) -> Launch | None:
    step = _int(env, "SLURM_STEP_ID", "SLURM_STEPID")
    if step is None or step in _SLURM_NO_STEP:
        return None
    rank, size = _int(env, "SLURM_PROCID"), _int(env, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    if rank is None or size is None:
        return None
    local_rank = _int(env, "SLURM_LOCALID") or 0
    node = _int(env, "SLURM_NODEID") or 0
    counts = _tasks_per_node(_text(env, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE") or "")
    local_size = counts[node] if node < len(counts) else local_rank + 1
    nodes = _text(env, "SLURM_STEP_NODELIST", "SLURM_NODELIST")
    master = _text(env, "MASTER_ADDR") or (first_host(nodes) if nodes else None)
    job = f"slurm {_text(env, 'SLURM_JOB_ID', 'SLURM_JOBID')} {step}"
    return Launch(rank, size, local_rank, local_size, "SLURM", master, _int(env, "MASTER_PORT") or _port_of(job))


def _from_mpi(env: Mapping[str, str]) -> Launch | None:
    for launcher, names in (
        (
            "OpenMPI",
            (
                "OMPI_COMM_WORLD_RANK",
                "OMPI_COMM_WORLD_SIZE",
                "OMPI_COMM_WORLD_LOCAL_RANK",
                "OMPI_COMM_WORLD_LOCAL_SIZE",
            ),
        ),
        ("MPI", ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")),
    ):
        rank, size, local_rank, local_size = (_int(env, name) for name in names)
        if rank is None or size is None:
            continue
        if local_rank is None:  # MPICH does not say; then the machine is taken for one of its own
            local_rank, local_size = (rank, size) if _text(env, "MASTER_ADDR") is None else (0, 1)
        local_size = local_size or local_rank + 1
        master = _text(env, "MASTER_ADDR") or ("127.0.0.1" if local_size == size else None)
        job = _text(env, "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID") or "mpi"
        port = _int(env, "MASTER_PORT") or _port_of(job)
        return Launch(rank, size, local_rank, local_size, launcher, master, port)
    return None


def first_host(nodes: str) -> str:
    """
    :param nodes: list in SLURM's short form, e.g. ``gpu[03-05,9]-ib,cpu1``
    :return: the first of them, e.g. ``gpu03-ib``
    """
    depth, end = 0, len(nodes)
    for pos, char in enumerate(nodes):
        depth += {"[": 1, "]": -1}.get(char, 0)
        if char == "," and not depth:
            end = pos
            break
    return re.sub(r"\[([^\]]*)\]", lambda m: re.split("[,-]", m.group(1))[0], nodes[:end]).strip()


def _tasks_per_node(text: str) -> list[int]:
    """:param text: e.g. ``2(x3),1`` for nodes with 2, 2, 2 and 1 tasks"""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\(x(\d+)\))?\s*", part)
        if match:
            counts += [int(match.group(1))] * int(match.group(2) or 1)
    return counts


def _port_of(job: str) -> int:
    """:return: the same for all processes of a job, and most probably another one for another job on the machine"""
    return _PORTS.start + zlib.crc32(job.encode()) % len(_PORTS)


def _text(env: Mapping[str, str], *names: str) -> str | None:
    return next((env[name] for name in names if env.get(name)), None)


def _int(env: Mapping[str, str], *names: str) -> int | None:
    for name in names:
        if env.get(name):
            try:
                return int(env[name])
            except ValueError as exc:
                raise ConfigError(
                    f"environment variable {name}: expected an int, got {env[name]!r}. Unset it, or start the process with torchrun."
                ) from exc
    return None
