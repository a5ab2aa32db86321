"""Names of the mainline engine that code of users calls: the same engine under them."""

from __future__ import annotations

import torch

from returnn.config import Config
from returnn.datasets.basic import Dataset
from returnn.engine.base import EngineBase
from returnn.engine.model_files import StartPoint
from returnn.options.checkpoint import CheckpointOptions
from returnn.torch.start_report import print_start
from returnn.torch.updater import all_updaters

__all__ = ["MainlineApi"]


class MainlineApi(EngineBase):
    """Base of the engine; uses attributes that the engine sets."""

    _model: torch.nn.Module | None
    _train_step: int
    _updater: object
    #: which checkpoint init_network_from_config has loaded already
    _network_start: StartPoint | None = None

    def _read_options(self) -> None:
        """Take over what the constructor reads from the config."""
        raise NotImplementedError  # by Engine

    def _get_start_point(self) -> StartPoint:
        raise NotImplementedError  # by Engine

    def _load_model(self, *, epoch: int | None, filename: str | None = None) -> None:
        raise NotImplementedError  # by Engine

    @property
    def global_train_step(self) -> int:
        """Number of training steps done, over all epochs."""
        return self._train_step

    @global_train_step.setter
    def global_train_step(self, value: int) -> None:
        self._train_step = value

    @property
    def _pt_model(self) -> torch.nn.Module | None:
        return self._model

    @property
    def _orig_model(self) -> torch.nn.Module | None:
        return self._model

    def get_pt_model(self) -> torch.nn.Module | None:
        """:return: the model; None: it is not there yet"""
        return self._model

    def get_pt_optimizer(self) -> torch.optim.Optimizer | None:
        """:return: the optimizer; None: there is none yet, or there are several (custom engines)"""
        updaters = all_updaters(self._updater)
        return updaters[0].get_optimizer() if len(updaters) == 1 else None

    def _set_config(self, config: Config | None) -> None:
        if config is not None and config is not self.config:
            self.config = config
            self._read_options()

    def init_network_from_config(self, config: Config | None = None) -> None:
        """
        Create the model and load the checkpoint that the options say.

        :param config: instead of that of the constructor
        :raises UserError: what is wrong with config or checkpoint
        """
        self._set_config(config)
        start = self._get_start_point()
        if CheckpointOptions.from_config(self.config).is_training_task:
            self._load_model(epoch=start.start_epoch, filename=start.filename)
            self._network_start = start
        else:
            print_start(start, final_epoch=None, lr_control=None)
            self._load_model(epoch=None, filename=start.filename)

    def init_train_from_config(
        self,
        config: Config | None = None,
        train_data: Dataset | None = None,
        dev_data: Dataset | None = None,
        eval_data: Dataset | None = None,
    ) -> None:
        """
        As init_train.

        :param config: instead of that of the constructor
        :param train_data: None: config option ``train``
        :param dev_data: None: config option ``dev``
        :param eval_data: None: config option ``eval``
        """
        self._set_config(config)
        given = {"train_data": train_data, "dev_data": dev_data, "eval_data": eval_data}
        # Only what is given: custom engines may override init_train in an older form.
        self.init_train(**{name: dataset for name, dataset in given.items() if dataset is not None})
