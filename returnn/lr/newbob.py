"""The strategies that lower the learning rate when the error stops to improve ("newbob")."""

from __future__ import annotations

from typing import Any

from returnn.lr.control import LearningRateControl
from returnn.options.learning_rate import LearningRateOptions

__all__ = ["NewbobRelative", "NewbobAbs", "NewbobMultiEpoch"]


class _Newbob(LearningRateControl):
    """Compares the last two epochs."""

    def calc_learning_rate_for_epoch(self, epoch: int) -> float:
        """
        :param epoch: from 1
        :return: the last rate, lowered if the last epoch did not improve enough over the one before, else grown
        """
        last = self.get_last_epoch(epoch)
        if last is None:
            return self.default_learning_rate
        rate = self.epoch_data[last].learning_rate
        if rate is None:
            return self.default_learning_rate
        last2 = self.get_last_epoch(last)
        if last2 is None:
            return rate
        decay = self._should_decay(last2, last)
        return rate if decay is None else self.calc_learning_rate_decay_or_grow(rate, decay=decay)

    def _should_decay(self, old_epoch: int, new_epoch: int) -> bool | None:
        """:return: None: not comparable"""
        raise NotImplementedError


class NewbobRelative(_Newbob):
    """Lower the rate if the relative change of the error is above a threshold."""

    def __init__(self, relative_error_threshold: float = -0.01, **kwargs: Any):
        """
        :param relative_error_threshold: e.g. -0.01: an improvement by less than 1 % is not enough
        :param kwargs: of LearningRateControl
        """
        super().__init__(**kwargs)
        self.relative_error_threshold = float(relative_error_threshold)

    @classmethod
    def kwargs_from_options(cls, options: LearningRateOptions) -> dict[str, Any]:
        """:return: constructor arguments"""
        return dict(
            super().kwargs_from_options(options), relative_error_threshold=options.newbob_relative_error_threshold
        )

    def _should_decay(self, old_epoch: int, new_epoch: int) -> bool | None:
        relative_error = self.calc_relative_error(old_epoch, new_epoch)
        return None if relative_error is None else relative_error > self.relative_error_threshold


class NewbobAbs(_Newbob):
    """Lower the rate if the absolute change of the error is above a threshold."""

    def __init__(self, error_threshold: float = -0.01, **kwargs: Any):
        """
        :param error_threshold: e.g. -0.01: the error must be lower by at least 0.01
        :param kwargs: of LearningRateControl
        """
        super().__init__(**kwargs)
        self.error_threshold = float(error_threshold)

    @classmethod
    def kwargs_from_options(cls, options: LearningRateOptions) -> dict[str, Any]:
        """:return: constructor arguments"""
        return dict(super().kwargs_from_options(options), error_threshold=options.newbob_error_threshold)

    def _should_decay(self, old_epoch: int, new_epoch: int) -> bool | None:
        old_key, old_error = self.get_epoch_error_key_value(old_epoch)
        new_key, new_error = self.get_epoch_error_key_value(new_epoch)
        if old_error is None or new_error is None or old_key != new_key:
            return None
        return new_error - old_error > self.error_threshold


class NewbobMultiEpoch(LearningRateControl):
    """Lower the rate if the relative change of the error, averaged over several epochs, is above a threshold."""

    def __init__(
        self,
        num_epochs: int = 5,
        update_interval: int | None = None,
        relative_error_threshold: float = -0.01,
        relative_error_grow_threshold: float | None = None,
        **kwargs: Any,
    ):
        """
        :param num_epochs: number of relative changes to average over
        :param update_interval: change the rate only each so many epochs. None: num_epochs
        :param relative_error_threshold: lower the rate if the mean is above
        :param relative_error_grow_threshold: grow the rate if the mean is below. None: relative_error_threshold
        :param kwargs: of LearningRateControl
        """
        super().__init__(**kwargs)
        self.num_epochs = num_epochs
        self.update_interval = num_epochs if update_interval is None else update_interval
        self.relative_error_threshold = float(relative_error_threshold)
        if relative_error_grow_threshold is None:
            relative_error_grow_threshold = relative_error_threshold
        self.relative_error_grow_threshold = float(relative_error_grow_threshold)

    @classmethod
    def kwargs_from_options(cls, options: LearningRateOptions) -> dict[str, Any]:
        """:return: constructor arguments"""
        return dict(
            super().kwargs_from_options(options),
            num_epochs=options.newbob_multi_num_epochs,
            update_interval=options.newbob_multi_update_interval,
            relative_error_threshold=options.newbob_relative_error_threshold,
            relative_error_grow_threshold=options.newbob_relative_error_grow_threshold,
        )

    def calc_learning_rate_for_epoch(self, epoch: int) -> float:
        """
        :param epoch: from 1
        :return: the most recent rate, changed according to the mean relative change of the error
        """
        rate = self.get_most_recent_learning_rate(epoch)
        if self.update_interval > 1 and epoch % self.update_interval != 1:
            return rate
        mean = self._mean_relative_error(epoch)
        if mean is None:
            return rate
        decay = mean > self.relative_error_threshold
        grow = not decay and mean < self.relative_error_grow_threshold
        return self.calc_learning_rate_decay_or_grow(rate, decay=decay, grow=grow)

    def _mean_relative_error(self, epoch: int) -> float | None:
        epochs = self._epochs_before(epoch)[-(self.num_epochs + 1) :]
        if len(epochs) < 2:
            return None
        relative_errors = []
        for old, new in zip(epochs, epochs[1:], strict=False):
            relative_error = self.calc_relative_error(old, new)
            if relative_error is None:
                return None
            relative_errors.append(relative_error)
        return sum(relative_errors) / len(relative_errors)
