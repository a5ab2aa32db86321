"""Counting of updates that are skipped because of inf or nan, on the host or on the device, and the end of hopeless training."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

from returnn.engine.host_copy import HostCopy
from returnn.errors import NonFiniteGradientError
from returnn.log import log

__all__ = ["SkippedUpdates", "StepBatch", "batches_text"]

#: Without waiting for the device, skipped updates are counted there; the counters are sent to the host each so many updates.
_FETCH_INTERVAL = 50
#: That many steps are named with their sequences at the end of an epoch.
_MAX_NAMED_STEPS = 20
#: Steps of one accumulation group that are remembered.
_MAX_GROUP = 100
#: Number of a training step over all epochs, and the tags of its sequences.
StepBatch: TypeAlias = tuple[int, Sequence[object]]


class SkippedUpdates:
    """Counters of one updater."""

    def __init__(self, threshold: int | None = 3, *, per_epoch: bool = False):
        """
        :param threshold: that many skipped updates in succession are an error; None: never
        :param per_epoch: "in succession" starts anew with each epoch
        """
        self._threshold = threshold
        self._per_epoch = per_epoch
        self._num_skipped = 0
        self._num_in_succession = 0
        # 1.0 or 0.0 on the device, the batches of that update, whether the skip would be normal.
        self._on_device: list[tuple[torch.Tensor, list[StepBatch], bool]] = []
        # Those that are on their way to the host.
        self._sent: collections.deque[tuple[list[tuple[list[StepBatch], bool]], HostCopy]] = collections.deque()
        #: those since the last update; whoever does the steps adds them. Limited, since updaters of users may never take them
        self.group: collections.deque[StepBatch] = collections.deque(maxlen=_MAX_GROUP)
        # Of the skipped updates of this epoch, the first ones.
        self._batches: list[StepBatch] = []

    @property
    def num_skipped(self) -> int:
        """Skipped in this epoch. Waits for the device."""
        self.fetch()
        return self._num_skipped

    @property
    def num_in_succession(self) -> int:
        """Skipped since the last update that was applied. Waits for the device."""
        self.fetch()
        return self._num_in_succession

    @num_in_succession.setter
    def num_in_succession(self, num: int) -> None:
        self._num_in_succession = num

    def count_valid(self) -> None:
        """
        An update was applied.

        :raises NonFiniteGradientError: as :meth:`fetch`
        """
        self._fetch_earlier()
        self._num_in_succession = 0

    def count_skipped(self, what: str, *, only_last_step: bool = False) -> None:
        """
        An update was skipped. Call :meth:`check` after the gradients are cleared.

        :param what: for the log
        :param only_last_step: the others of the accumulation group are used
        :raises NonFiniteGradientError: as :meth:`fetch`
        """
        self._fetch_earlier()
        self._num_skipped += 1
        self._num_in_succession += 1
        batches = [self.group.pop()] if only_last_step and self.group else self._take_group()
        self._keep(batches)
        where = f" {batches_text(batches)}." if batches else ""
        print(
            f"Warning: {what} ({self._num_in_succession} in succession, limit {self._threshold}).{where}", file=log.v2
        )

    def _take_group(self) -> list[StepBatch]:
        group = list(self.group)
        self.group.clear()
        return group

    def _keep(self, batches: Sequence[StepBatch]) -> None:
        self._batches.extend(batches[: _MAX_NAMED_STEPS - len(self._batches)])

    def update_ends(self) -> None:
        """The next step begins an accumulation group."""
        self.group.clear()

    def take_batches(self) -> tuple[StepBatch, ...]:
        """:return: steps of the updates that were skipped in this epoch, at most 20 of them. Forgets them"""
        batches, self._batches = self._batches, []
        return tuple(batches)

    def epoch_state(self) -> dict[str, Any]:
        """
        :return: what is counted in the running epoch, for a checkpoint inside it. Any: plain values. Waits for the device
        :raises NonFiniteGradientError: too many in succession
        """
        self.fetch()
        return {
            "num_skipped": self._num_skipped,
            "batches": [_plain(batch) for batch in self._batches],
            "group": [_plain(batch) for batch in self.group],
        }

    def load_epoch_state(self, state: Mapping[str, Any]) -> None:
        """:param state: of :meth:`epoch_state`. Any: as there"""
        self._num_skipped = int(state["num_skipped"])
        self._batches = [(step, tuple(tags)) for step, tags in state["batches"]]
        self.group.clear()
        self.group.extend((step, tuple(tags)) for step, tags in state["group"])

    def check(self) -> None:
        """
        :raises NonFiniteGradientError: too many in succession
        """
        if self._threshold is not None and self._num_in_succession >= self._threshold:
            self._raise(self._num_in_succession)

    def count_on_device(self, found: torch.Tensor) -> None:
        """
        Count without waiting for the device.

        :param found: float32 scalar: 1.0 if the update was skipped, 0.0 if it was applied
        :raises NonFiniteGradientError: too many in succession, noticed some updates later
        """
        self._add_on_device(found, is_normal=False)

    def _add_on_device(self, found: torch.Tensor, *, is_normal: bool) -> None:
        self._on_device.append((found, self._take_group(), is_normal))
        if len(self._on_device) >= _FETCH_INTERVAL:
            self._send()
        while self._sent and self._sent[0][1].is_ready():
            self._take_first()

    def count_normal_on_device(self, found: torch.Tensor) -> None:
        """
        Count updates that a GradScaler skips, which is no sign of trouble, without waiting for the device.

        :param found: as in :meth:`count_on_device`
        """
        self._add_on_device(found, is_normal=True)

    def count_normal(self) -> None:
        """A GradScaler skipped an update."""
        self._num_skipped += 1
        self._keep(self._take_group())

    def fetch(self) -> None:
        """
        Waits for the device, and adds its counters to ours.

        :raises NonFiniteGradientError: too many in succession
        """
        self._send()
        while self._sent:
            self._take_first()

    def _fetch_earlier(self) -> None:
        """Before something is counted here: "in succession" goes by the order of the updates."""
        if self._on_device or self._sent:
            self.fetch()

    def _send(self) -> None:
        if self._on_device:
            pending, self._on_device = self._on_device, []
            self._sent.append(([x[1:] for x in pending], HostCopy([x[0] for x in pending])))

    def _take_first(self) -> None:
        """:raises NonFiniteGradientError: too many in succession"""
        pending, copy = self._sent.popleft()
        total, row, longest = 0, self._num_in_succession, 0
        skipped: list[StepBatch] = []
        for found, (batches, is_normal) in zip(copy.numbers(), pending, strict=True):
            total += bool(found)
            if not is_normal:
                row = row + 1 if found else 0
                longest = max(longest, row)
            if found:
                skipped += batches
        self._num_skipped += total
        self._num_in_succession = row
        self._keep(skipped)
        if longest:
            where = f" {batches_text(skipped)}." if skipped else ""
            print(
                f"Warning: inf or nan in the gradients, {total} updates skipped, at most {longest} in succession.{where}",
                file=log.v2,
            )
        if self._threshold is not None and longest >= self._threshold:
            self._raise(longest)

    def finish_epoch(self) -> int:
        """
        :return: number of skipped updates of the epoch
        :raises NonFiniteGradientError: too many in succession
        """
        num = self.num_skipped
        self._num_skipped = 0
        if self._per_epoch:
            self._num_in_succession = 0
        return num

    def _raise(self, num: int) -> None:
        self._num_in_succession = 0
        raise NonFiniteGradientError(
            f"Got {num} invalid gradients in succession, abort training. The gradients had inf or nan values, the weights were not "
            "changed by them. Try a lower learning rate, gradient_clip_norm, or look for the cause with "
            "torch.autograd.set_detect_anomaly."
        )


def batches_text(batches: Sequence[StepBatch], *, num_steps: int = 5, num_tags: int = 10) -> str:
    """
    :param batches: to name
    :param num_steps: that many at most
    :param num_tags: of each step, that many at most
    :return: e.g. "Step 12: seq-1, seq-2; step 15: seq-3 and 7 more"
    """
    parts = []
    for step, tags in batches[:num_steps]:
        more = f" and {len(tags) - num_tags} more" if len(tags) > num_tags else ""
        parts.append(f"step {step}: {', '.join(map(str, tags[:num_tags]))}{more}")
    if len(batches) > num_steps:
        parts.append(f"{len(batches) - num_steps} more steps")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:]


def _plain(batch: StepBatch) -> tuple[int, list[str]]:
    """:return: for a file that is loaded with weights_only"""
    step, tags = batch
    return int(step), [str(tag) for tag in tags]
