"""What the scripts of this folder share: timing in turn, and the line of one row of the table in README.md."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["best_in_turn", "print_row", "memory_mib"]


def best_in_turn(*funcs: Callable[[], object], rounds: int = 3, cpu: bool = False) -> list[float]:
    """
    :param funcs: each is called once per round, in turn, so that a busy machine slows all of them
    :param rounds: number of rounds
    :param cpu: take the processor time of this process (all threads) instead of the time on the clock
    :return: seconds of the fastest call of each
    """
    clock = time.process_time if cpu else time.perf_counter
    best = [float("inf")] * len(funcs)
    for _ in range(rounds):
        for i, func in enumerate(funcs):
            start = clock()
            func()
            best[i] = min(best[i], clock() - start)
    return best


def print_row(row: str, ours: float, limit: float, target: float, more: str = "") -> None:
    """
    Print one line.

    :param row: what was measured
    :param ours: seconds
    :param limit: seconds of what the row is compared with
    :param target: ratio that should be reached
    :param more: shown behind
    """
    ratio = ours / limit
    verdict = "reached" if ratio <= target else "NOT reached"
    print(
        f"{row}: ours {ours:.3f} s, limit {limit:.3f} s, ratio {ratio:.2f} (target {target:g}: {verdict})"
        + (f"; {more}" if more else ""),
        flush=True,
    )


def memory_mib(field: str = "VmRSS", pid: int | str = "self") -> float:
    """
    :param field: of /proc/PID/status in kB, e.g. VmRSS, VmHWM, RssAnon
    :param pid: process
    :return: MiB
    """
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field + ":"))
