"""What the options ask for around each pass over a dataset: the user's hooks, and free memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from returnn.options.passes import PassOptions
from returnn.torch.device import device_type
from returnn.torch.user_functions import UserFunction, random_arg_format

__all__ = ["PassFrame"]


class PassFrame:
    """Calls ``epoch_start`` and ``epoch_end``, and gives memory back."""

    def __init__(self, options: PassOptions, *, device: str | torch.device, mainline: bool):
        """
        :param options: of the config
        :param device: of the model
        :param mainline: dialect of the config
        """
        self._device = device
        self._reset_caches = options.reset_memory_caches
        self._start = _user_function(options.epoch_start, mainline)
        self._end = _user_function(options.epoch_end, mainline)

    @property
    def has_start(self) -> bool:
        """:return: whether a function of the user is called before each pass"""
        return self._start is not None

    def starts(self, *, epoch: int, step: int, model: torch.nn.Module | None, dataset_name: str) -> None:
        """
        Before a pass.

        :param epoch: of the pass
        :param step: number of training steps done
        :param model: of the user
        :param dataset_name: "train", or that of an eval dataset
        """
        if self._reset_caches:
            gc.collect()
            if device_type(self._device) == "cuda":
                torch.cuda.empty_cache()
        if self._start is not None:
            self._start(epoch=epoch, step=step, model=model, dataset_name=dataset_name)

    def ends(self, *, epoch: int, step: int, model: torch.nn.Module | None, dataset_name: str) -> None:
        """After a pass; see :meth:`starts`."""
        if self._end is not None:
            self._end(epoch=epoch, step=step, model=model, dataset_name=dataset_name)


def _user_function(func: Callable[..., Any] | None, mainline: bool) -> UserFunction | None:  # Any: user code
    return None if func is None else UserFunction(func, random_arg=random_arg_format(mainline=mainline))
