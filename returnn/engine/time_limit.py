"""How much time a SLURM job has left, and stopping it in time, so that the next job continues the training."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping

from returnn._state import state
from returnn.log import log
from returnn.options.passes import PassOptions

__all__ = ["TimeLimit", "parse_time_left", "slurm_secs_left"]

#: squeue answers within seconds, or the controller is overloaded: then the question is dropped.
_SQUEUE_TIMEOUT_SECS = 30.0


def parse_time_left(text: str) -> float | None:
    """
    :param text: output of ``squeue --format %L``: "[[days-]hours:]minutes:seconds", or a word such as UNLIMITED
    :return: seconds; None: unlimited or not known
    """
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def slurm_secs_left(env: Mapping[str, str] | None = None) -> float | None:
    """
    :param env: None: os.environ
    :return: seconds until SLURM ends this job; None: no such job, no limit, or no answer
    """
    env = os.environ if env is None else env
    job = env.get("SLURM_JOB_ID")
    if not job:
        return None
    end = env.get("SLURM_JOB_END_TIME", "")  # seconds since 1970; newer versions have it
    if end.isdigit():
        return max(float(end) - time.time(), 0.0)
    command = ["squeue", "--noheader", "--format", "%L", "--jobs", job]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_SQUEUE_TIMEOUT_SECS, check=True, env=dict(env)
        ).stdout
    except (OSError, subprocess.SubprocessError) as exc:
        log.print_warning(
            f"stop_for_resubmission_when_low_time_left: {' '.join(command)} failed ({exc}), the time left is not known."
        )
        return None
    lines = answer.split()
    return parse_time_left(lines[0]) if lines else None


class TimeLimit:
    """Ends the run after an epoch if the next one would not fit into the time that the job has left."""

    def __init__(
        self,
        *,
        safety_factor: float | None,
        secs_left: Callable[[], float | None] = slurm_secs_left,
        stop: Callable[[], None] | None = None,
    ):
        """
        :param safety_factor: the time left must be at least that times the duration of the last epoch; None: never stop
        :param secs_left: None: no limit
        :param stop: ends the run; None: SIGINT to the process group
        """
        self._safety_factor = safety_factor
        self._secs_left = secs_left
        self._stop = stop or _interrupt_process_group
        self._epoch_start = time.monotonic()

    @classmethod
    def from_options(cls, options: PassOptions) -> TimeLimit:
        """
        :param options: of the config
        :return: for a SLURM job
        """
        return cls(safety_factor=options.stop_safety_factor if options.stop_when_low_time_left else None)

    def epoch_starts(self, secs_before: float = 0.0) -> None:
        """
        The time of an epoch is counted from here.

        :param secs_before: that an earlier run has spent in it
        """
        self._epoch_start = time.monotonic() - secs_before

    def epoch_ends(self) -> bool:
        """
        To be called when all of the epoch is written, and another one follows.

        :return: whether the run was told to end
        """
        if self._safety_factor is None or state.rank != 0:  # others get the signal from the first rank
            return False
        secs = time.monotonic() - self._epoch_start
        left = self._secs_left()
        if left is None or left >= secs * self._safety_factor:
            return False
        print(
            f"The job has {left:.0f} seconds left, and the last epoch took {secs:.0f}: stopping here, the next job continues "
            f"(stop_for_resubmission_when_low_time_left, safety factor {self._safety_factor}).",
            file=log.v1,
        )
        log.flush()
        self._stop()
        return True


def _interrupt_process_group() -> None:
    """SIGINT to this process and those that it runs with: the job; with torchrun the group of torchrun."""
    pid = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else os.getpid()
    os.killpg(os.getpgid(pid), signal.SIGINT)
