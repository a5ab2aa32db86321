"""The lines and the progress bar that the engine shows: the only place of these formats."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TextIO, TypeVar, cast

from returnn._state import state
from returnn.log import log
from returnn.util.time_format import hms

__all__ = ["LoaderStats", "PassReport", "format_losses", "step_line", "with_first_batch_notice"]

T = TypeVar("T")


class LoaderStats(Protocol):
    """What the report needs of ``Loader.stats``."""

    num_seqs: int | None
    num_seqs_seen: int
    num_batches: int
    secs_waited: float

    @property
    def complete_frac(self) -> float | None:
        """How much of the pass is done, 0 to 1; None: unknown."""

    @property
    def padding_ratio(self) -> float | None:
        """Share of padded frames over all streams, 0 to 1; None: no frames yet."""

    def padding_ratios(self) -> Mapping[str, float]:
        """The same per stream."""

    def dropped_text(self) -> str | None:
        """Which sequences were dropped, and why; None: none."""


def format_losses(losses: Mapping[str, float]) -> str:
    """:return: ``name: value`` sorted by name, 5 decimals"""
    return ", ".join(f"{name}: {value:.5f}" for name, value in sorted(losses.items()))


def step_line(
    prefix: str,
    step: int,
    *,
    step_secs: float,
    secs_since_last_line: float | None,
    device_memory: str | None = None,
    total_loss: float | None = None,
    losses: Mapping[str, float] | None = None,
) -> str:
    """
    The step line of the contract.

    :param prefix: e.g. "train epoch 1"
    :param step: within the epoch, from 0
    :param step_secs: duration of the step
    :param secs_since_last_line: since the line before; None: this is the first
    :param device_memory: e.g. "GMEM: 1.0/2.0/79.0"
    :param total_loss: the optimised value
    :param losses: value / norm factor per loss
    """
    parts = [prefix, f"step:{step}", f"step time: {step_secs:.3f}"]
    if secs_since_last_line is not None:
        parts.append(f"total time: {secs_since_last_line:.3f}")
    if device_memory:
        parts.append(device_memory)
    if total_loss is not None:
        parts.append(f"total (grad) loss: {total_loss:f}")
    if losses:
        parts.append(format_losses(losses))
    return ", ".join(parts)


def with_first_batch_notice(batches: Iterator[T], *, what: str, after_secs: float = 3.0) -> Iterator[T]:
    """
    Pass batches on; say so once if the first one takes long.

    :param batches: of one pass
    :param what: shown in the notice
    :param after_secs: patience
    """
    notice = threading.Timer(after_secs, lambda: print(f"{what}: waiting for the first batch ...", file=log.v3))
    notice.daemon = True
    notice.start()
    try:
        for batch in batches:
            notice.cancel()
            yield batch
            break
        yield from batches
    finally:
        notice.cancel()


class _BarFilter(logging.Filter):
    """While the bar is shown: keep step lines off the terminal, and other lines from breaking into the bar."""

    def __init__(self, bar: Any):
        """:param bar: a tqdm bar. Any: tqdm has no types"""
        super().__init__()
        self._bar = bar
        self.in_step_line = False

    def filter(self, record: logging.LogRecord) -> bool:
        """:return: whether the terminal gets the record"""
        if self.in_step_line:
            return False
        self._bar.clear()
        return True


class _AboveBar:
    """Stands for sys.stdout while the bar is shown: what user code prints goes above the bar, not into it."""

    def __init__(self, bar: Any, stream: TextIO):
        """
        :param bar: a tqdm bar on the stream. Any: tqdm has no types
        :param stream: the true stdout
        """
        self._bar = bar
        self._stream = stream
        self._at_line_start = True

    def write(self, text: str) -> int:
        """:return: number of characters"""
        if text and self._at_line_start:
            self._bar.clear()
        if text:
            self._at_line_start = text.endswith("\n")
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:  # Any: all else is the stream's
        return getattr(self._stream, name)


class PassReport:
    """
    Progress of one pass over a dataset. On a terminal a bar; in files and pipes the contract's step lines only.

    A context manager: the bar is removed at exit.
    """

    def __init__(self, prefix: str, loader: object):
        """
        :param prefix: of each line, e.g. "train epoch 1"
        :param loader: iterable over batches; its attribute ``stats`` (LoaderStats), if it has one, is that of the current pass
        """
        self.prefix = prefix
        self._loader = loader
        self._bar: Any = None  # tqdm has no types
        self._filter: _BarFilter | None = None
        self._terminals: list[logging.Handler] = []
        self._true_stdout: TextIO | None = None
        self._start = time.monotonic()
        self._first_step: tuple[float, float] | None = None  # time and share of the pass, when a step was done first
        self._last_refresh = 0.0

    def __enter__(self) -> PassReport:
        if log.initialized and log.verbose and log.verbose[3] and sys.stdout.isatty() and state.rank == 0:
            from tqdm import tqdm

            # percent and ETA come from complete_frac, since the number of steps is not known in advance
            self._bar = tqdm(
                total=1.0,
                desc=self.prefix,
                file=sys.stdout,
                leave=False,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}",
            )
            self._filter = _BarFilter(self._bar)
            self._terminals = [
                h
                for h in logging.getLogger("returnn").handlers
                if getattr(h, "stream", None) is sys.stdout or "Stdout" in type(h).__name__
            ]
            for handler in self._terminals:
                handler.addFilter(self._filter)
            self._true_stdout = sys.stdout
            sys.stdout = cast("TextIO", _AboveBar(self._bar, sys.stdout))  # it has all that the stream has
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            if isinstance(sys.stdout, _AboveBar) and self._true_stdout is not None:
                sys.stdout = self._true_stdout
            for handler in self._terminals:
                if self._filter is not None:
                    handler.removeFilter(self._filter)
            self._bar.close()
            self._bar = None

    def goes_on_after(self, secs: float) -> None:
        """:param secs: that an earlier run has spent in the pass"""
        self._start -= secs

    @property
    def stats(self) -> LoaderStats | None:
        """Of the current pass; None: the loader has none."""
        return getattr(self._loader, "stats", None)

    @property
    def elapsed(self) -> float:
        """Seconds since the start of the pass."""
        return time.monotonic() - self._start

    @property
    def complete_frac(self) -> float | None:
        """How much of the pass is done, 0 to 1; None: unknown."""
        stats = self.stats
        return stats.complete_frac if stats is not None else None

    @property
    def wants_numbers(self) -> bool:
        """Whether the next call of :func:`step` shows the losses of that step. Costs a wait for the device."""
        if log.verbose and log.verbose[5]:
            return True
        return self._bar is not None and time.monotonic() - self._last_refresh >= 0.5

    def line(self, text: str) -> None:
        """Log a step line (v5)."""
        if self._filter is not None:
            self._filter.in_step_line = True
        try:
            print(text, file=log.v5)
        finally:
            if self._filter is not None:
                self._filter.in_step_line = False

    def step(self, losses: Mapping[str, float] | None) -> None:
        """Update the bar, at most twice per second."""
        if self._bar is None:
            return
        now = time.monotonic()
        if now - self._last_refresh < 0.5:
            return
        self._last_refresh = now
        self._bar.n = self.complete_frac or 0.0
        self._bar.set_postfix_str(", ".join(self._postfix(now, losses)), refresh=False)
        self._bar.refresh()

    def _postfix(self, now: float, losses: Mapping[str, float] | None) -> list[str]:
        elapsed = max(now - self._start, 1e-6)
        parts = []
        frac = self.complete_frac
        if frac:
            # From the first step on: until then worker processes were starting.
            self._first_step = self._first_step or (now, frac)
            since, start_frac = self._first_step
            if frac > start_frac:
                parts.append(f"ETA {hms((now - since) * (1.0 - frac) / (frac - start_frac))}")
        stats = self.stats
        if stats is not None:
            parts.append(f"{stats.num_seqs_seen / elapsed:.0f} seqs/s")
            padding = stats.padding_ratio
            if padding is not None:
                parts.append(f"padding {padding:.0%}")
            parts.append(f"data wait {min(stats.secs_waited / elapsed, 1.0):.0%}")
        if losses:
            parts.append(format_losses(losses))
        return parts

    def summary(self, scores: Mapping[str, float] | None = None) -> str | None:
        """
        :param scores: of the whole pass
        :return: one line over the whole pass: scores, rate, padding, waiting, dropped sequences; None: nothing to say
        """
        shown = format_losses(scores or {})
        stats = self.stats
        if stats is None:
            return f"{self.prefix}: {shown}" if shown else None
        elapsed = max(time.monotonic() - self._start, 1e-6)
        parts = [
            (f"rank {state.rank}: " if state.world_size > 1 else "")
            + f"{stats.num_seqs_seen} seqs in {stats.num_batches} batches",
            f"{stats.num_seqs_seen / elapsed:.0f} seqs/s",
        ]
        if stats.padding_ratio is not None:
            parts.append(f"{stats.padding_ratio:.1%} padding")
        parts.append(f"{min(stats.secs_waited / elapsed, 1.0):.1%} of the time waiting for data")
        dropped = stats.dropped_text()
        if dropped:
            parts.append(f"dropped: {dropped}")
        return f"{self.prefix}: " + (f"{shown}; " if shown else "") + ", ".join(parts)
