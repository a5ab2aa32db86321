"""The strategy that keeps the learning rate."""

from __future__ import annotations

from typing import ClassVar

from returnn.lr.control import LearningRateControl

__all__ = ["ConstantLearningRate"]


class ConstantLearningRate(LearningRateControl):
    """Each epoch without a given rate uses the rate of the last known epoch."""

    _uses_errors: ClassVar[bool] = False

    def calc_learning_rate_for_epoch(self, epoch: int) -> float:
        """
        :param epoch: from 1
        :return: the rate of the last epoch that has one, or the default
        """
        return self.get_most_recent_learning_rate(epoch)
