"""As many steps on all ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from returnn.engine.pauses import Pause, PausePlan
from returnn.options.distributed import Uneven
from returnn.torch.distributed.context import DistributedContext
from returnn.torch.distributed.uneven import EvenSteps


class _Sums:
    """Sums over threads, each in place of a rank."""

    def __init__(self, size: int):
        self.size = size
        self.entries: dict[int, list[torch.Tensor]] = {}
        self.condition = threading.Condition()


class _Work:
    def __init__(self, sums: _Sums, index: int, values: torch.Tensor):
        self._sums, self._index, self._values = sums, index, values
        with sums.condition:
            sums.entries.setdefault(index, []).append(values.clone())
            sums.condition.notify_all()

    def wait(self) -> None:
        """Until all ranks are there."""
        with self._sums.condition:
            arrived = self._sums.condition.wait_for(
                lambda: len(self._sums.entries[self._index]) == self._sums.size, timeout=60
            )
            assert arrived, "other ranks did not come"
            self._values.copy_(torch.stack(self._sums.entries[self._index]).sum(0))


class _Ranks:
    """What EvenSteps needs of a DistributedContext."""

    def __init__(self, sums: _Sums, rank: int):
        self.rank, self.size = rank, sums.size
        self._sums = sums
        self._num_sums = 0

    def begin_sum(self, values: torch.Tensor) -> _Work:
        """See DistributedContext."""
        self._num_sums += 1
        return _Work(self._sums, self._num_sums, values)


def _run(
    lengths: list[int], *, uneven: Uneven, block_size: int, frac: Callable[[int, int], float | None] | None = None
) -> list[list[tuple[Any, int, float | None]]]:
    """:return: per rank of each step: batch, number of ranks with data, part of the epoch that is done"""
    sums = _Sums(len(lengths))
    results: list[list[tuple[Any, int, float | None]]] = [[] for _ in lengths]
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        position = [0]

        def batches() -> Any:
            for i in range(lengths[rank]):
                position[0] = i
                yield f"{rank}.{i}"

        try:
            steps: EvenSteps[str] = EvenSteps(
                cast(DistributedContext, _Ranks(sums, rank)), uneven=uneven, block_size=block_size
            )
            for batch in steps.iterate(batches(), lambda: None if frac is None else frac(rank, position[0])):
                results[rank].append((batch, steps.num_active, steps.complete_frac))
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(lengths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    return results


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(1, 4))
def test_join_drops_nothing(lengths: list[int], block_size: int) -> None:
    results = _run(lengths, uneven="join", block_size=block_size)
    for rank, (length, steps) in enumerate(zip(lengths, results, strict=True)):
        expected = [f"{rank}.{i}" if i < length else None for i in range(max(lengths))]
        assert [batch for batch, _, _ in steps] == expected
        assert [num for _, num, _ in steps] == [sum(n > i for n in lengths) for i in range(max(lengths))]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(1, 4))
def test_stop_at_first(lengths: list[int], block_size: int) -> None:
    for rank, steps in enumerate(_run(lengths, uneven="stop", block_size=block_size)):
        assert [batch for batch, _, _ in steps] == [f"{rank}.{i}" for i in range(min(lengths))]


@pytest.mark.parametrize("block_size", [1, 3])
def test_part_of_the_epoch(block_size: int) -> None:
    """The mean over the ranks that have data; unknown if one of them does not know it."""

    def frac(rank: int, idx: int) -> float | None:
        return None if (rank, idx) == (0, 3) else (idx + 1) / 5 + 0.02 * rank

    results = _run([4, 5], uneven="join", block_size=block_size, frac=frac)
    fracs = [[value for _, _, value in steps] for steps in results]
    assert fracs[0] == fracs[1]
    assert fracs[0] == [pytest.approx(0.21), pytest.approx(0.41), pytest.approx(0.61), None, 1.0]


def test_errors_pass() -> None:
    """Of reading data: the rank ends, and does not go on as if it had none."""

    class _BrokenError(Exception):
        pass

    def batches() -> Any:
        yield 1
        raise _BrokenError

    steps: EvenSteps[int] = EvenSteps(cast(DistributedContext, _Ranks(_Sums(1), 0)), uneven="join")
    with pytest.raises(_BrokenError):
        list(steps.iterate(batches(), lambda: None))


class _Wishes(PausePlan):
    """Wants a pause from a step on, as if a signal came then; notes how many batches were read at each pause."""

    def __init__(self, *, every: int | None, at_read: int | None, kind: Pause):
        super().__init__(save_every_steps=every, several_ranks=True)
        self._at_read, self._kind = at_read, kind
        self.num_read = 0
        self.paused: list[tuple[int, Pause, int]] = []  # step, why, number of batches read

    def wanted(self) -> Pause | None:
        """See PausePlan."""
        return self._kind if self._at_read is not None and self.num_read >= self._at_read else None


def _run_with_pauses(
    lengths: list[int], plans: list[_Wishes], *, uneven: Uneven, block_size: int, before: int = 0
) -> list[list[Any]]:
    """:return: per rank the batches of the steps, up to a stop"""
    sums = _Sums(len(lengths))
    results: list[list[Any]] = [[] for _ in lengths]
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        plan = plans[rank]

        def batches() -> Any:
            for i in range(lengths[rank]):
                plan.num_read += 1
                yield i

        try:
            ctx = cast(DistributedContext, _Ranks(sums, rank))
            steps: EvenSteps[int] = EvenSteps(
                ctx, uneven=uneven, block_size=block_size, pauses=plan, steps_before=before
            )
            for step, batch in enumerate(steps.iterate(batches(), lambda: None), start=before + 1):
                results[rank].append(batch)
                pause = plan.after_step(step)
                if pause is not None:
                    plan.paused.append((step, pause, plan.num_read))
                if pause == "save":
                    plan._at_read = None
                if pause == "stop":
                    break
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(lengths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    return results


@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    block_size=st.integers(1, 4),
    every=st.none() | st.integers(1, 5),
    before=st.integers(0, 7),
    wish=st.none() | st.tuples(st.integers(0, 3), st.integers(1, 10), st.sampled_from(["save", "stop"])),
    uneven=st.sampled_from(["join", "stop"]),
)
def test_all_pause_after_the_same_step_with_nothing_read_ahead(
    lengths: list[int],
    block_size: int,
    every: int | None,
    before: int,
    wish: tuple[int, int, Pause] | None,
    uneven: Uneven,
) -> None:
    plans = [
        _Wishes(
            every=every,
            at_read=wish[1] if wish and wish[0] % len(lengths) == rank else None,
            kind=wish[2] if wish else "save",
        )
        for rank in range(len(lengths))
    ]
    results = _run_with_pauses(lengths, plans, uneven=uneven, block_size=block_size, before=before)
    total = max(lengths) if uneven == "join" else min(lengths)
    pauses = [[(step, kind) for step, kind, _ in plan.paused] for plan in plans]
    assert all(other == pauses[0] for other in pauses)
    stopped = bool(pauses[0]) and pauses[0][-1][1] == "stop"
    num_steps = pauses[0][-1][0] - before if stopped else total
    for length, plan, batches in zip(lengths, plans, results, strict=True):
        assert batches == [i if i < length else None for i in range(num_steps)]
        for step, _, num_read in plan.paused:
            assert num_read == min(step - before, length)
    planned = [step for step in range(before + 1, before + num_steps + 1) if every and step % every == 0]
    done = {step for step, _ in pauses[0]}
    # At the last step of a pass it may be known already that there is no more.
    assert [step for step in planned if step < before + num_steps and step not in done] == []
    if every is None and wish is None:
        assert not done
