"""Counting of updates that are skipped because of inf or nan, on the host or on the device, and the end of hopeless training."""

from __future__ import annotations

import torch

from returnn.errors import NonFiniteGradientError
from returnn.log import log

__all__ = ["SkippedUpdates"]

#: Without waiting for the device, skipped updates are counted there; look at the counters each so many updates.
_FETCH_INTERVAL = 50


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
        # Skipped in total, skipped in succession, largest of that. None: nothing was counted there since the last fetch.
        self._on_device: torch.Tensor | None = None
        self._num_until_fetch = _FETCH_INTERVAL

    @property
    def num_skipped(self) -> int:
        """Skipped in this epoch. Waits for the device."""
        self.fetch()
        return self._num_skipped

    @num_skipped.setter
    def num_skipped(self, num: int) -> None:
        self._num_skipped = num

    @property
    def num_in_succession(self) -> int:
        """Skipped since the last update that was applied. Waits for the device."""
        self.fetch()
        return self._num_in_succession

    @num_in_succession.setter
    def num_in_succession(self, num: int) -> None:
        self._num_in_succession = num

    def count_valid(self) -> None:
        """An update was applied."""
        self._num_in_succession = 0

    def count_skipped(self, what: str) -> None:
        """
        An update was skipped. Call :meth:`check` after the gradients are cleared.

        :param what: for the log
        """
        self._num_skipped += 1
        self._num_in_succession += 1
        print(f"Warning: {what} ({self._num_in_succession} in succession, limit {self._threshold}).", file=log.v2)

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
        if self._on_device is None:
            self._on_device = torch.tensor([0.0, float(self._num_in_succession), 0.0], device=found.device)
        total, row, longest = self._on_device.unbind()
        row = (row + found) * found
        self._on_device = torch.stack([total + found, row, torch.maximum(longest, row)])
        self._num_until_fetch -= 1
        if self._num_until_fetch <= 0:
            self.fetch()

    def count_normal_on_device(self, found: torch.Tensor) -> None:
        """
        Count updates that a GradScaler skips, which is no sign of trouble, without waiting for the device.

        :param found: as in :meth:`count_on_device`
        """
        if self._on_device is None:
            self._on_device = torch.tensor([0.0, float(self._num_in_succession), 0.0], device=found.device)
        total, row, longest = self._on_device.unbind()
        self._on_device = torch.stack([total + found, row, longest])

    def count_normal(self) -> None:
        """A GradScaler skipped an update."""
        self._num_skipped += 1

    def fetch(self) -> None:
        """
        Waits for the device, and adds its counters to ours.

        :raises NonFiniteGradientError: too many in succession
        """
        self._num_until_fetch = _FETCH_INTERVAL
        if self._on_device is None:
            return
        total, row, longest = (int(x) for x in self._on_device.tolist())
        self._on_device = None
        self._num_skipped += total
        self._num_in_succession = row
        if longest:
            print(
                f"Warning: inf or nan in the gradients, {total} updates skipped, at most {longest} in succession.",
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
