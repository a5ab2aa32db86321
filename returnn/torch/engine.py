"""
The torch engine: what happens when.

Training, per epoch::

    init_train_epoch      learning rate, seed
    train_epoch           for each batch: run_train_step (move, train_step, total loss, update), report
                          scores -> learning-rate file; model and optimizer -> checkpoint
    eval_model            each eval dataset the same without update
    cleanup_old_models

The passes over data are in :mod:`returnn.torch.train_passes`, ``eval_passes`` and ``forward_passes``; here are their set-up and
the checkpoints. The methods, their signatures and the private attribute names are API: custom engines override and read them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from returnn.config import Config
from returnn.datasets._loading.server import start_server
from returnn.datasets.basic import Dataset
from returnn.engine.base import EngineBase
from returnn.engine.lines import MAINLINE_LINES, MINI_LINES
from returnn.engine.model_files import StartPoint, delete_optimizer, optimizer_filename
from returnn.engine.time_limit import TimeLimit
from returnn.errors import CheckpointError
from returnn.forward_iface import ForwardCallbackIface
from returnn.frontend.run_ctx import RunCtx
from returnn.log import log
from returnn.options.batching import BatchingOptions
from returnn.options.checkpoint import CheckpointOptions
from returnn.options.dialect import is_mainline
from returnn.options.extern_data import ExternDataOptions
from returnn.options.loader import LoaderOptions
from returnn.options.model import LoadedModelOptions, ModelOptions
from returnn.options.optimizer import AmpOptions, OptimizerOptions, read_optimizer
from returnn.options.passes import PassOptions
from returnn.options.training import EngineOptions
from returnn.torch.checkpoint import save_file_atomic
from returnn.torch.compiled_step import compile_step_function
from returnn.torch.data.extern_data import extern_data_template_from_config_opts, extern_data_template_from_dataset
from returnn.torch.data.loader import EpochSource, Loader, Role, create_loader
from returnn.torch.data_identity import fingerprints, report_changed_data
from returnn.torch.determinism import make_deterministic, print_seeds
from returnn.torch.device import choose_device
from returnn.torch.distributed.context import init_distributed
from returnn.torch.distributed.start import (
    first_rank_decides,
    gather_rng_states,
    share_learning_rates,
    shared_file,
)
from returnn.torch.float_dtype import float_dtype_of_name
from returnn.torch.forward_data import read_as_it_is
from returnn.torch.forward_passes import ForwardPasses
from returnn.torch.mainline_api import MainlineApi
from returnn.torch.model_state import build_model
from returnn.torch.optim.factory import check_optimizer_options
from returnn.torch.pass_frame import PassFrame
from returnn.torch.restart import RestartState
from returnn.torch.sharded_passes import sharding_wanted
from returnn.torch.start_report import preview_learning_rate, print_start
from returnn.torch.step_call import StepCall
from returnn.torch.train_passes import TrainPasses
from returnn.torch.updater import Updater
from returnn.torch.user_functions import UserFunction, takes_argument

__all__ = ["Engine", "ForwardCallbackIface", "TrainCtx"]

#: Name of the run context in the oldest versions; client code has it in annotations.
TrainCtx = RunCtx

#: One raw batch: torch tensors and lists by key.
RawBatch = dict[str, Any]


class Engine(TrainPasses, ForwardPasses, MainlineApi):
    """Trains, evaluates and forwards a torch module. One instance per process."""

    FILE_POSTFIX = ".pt"

    def __init__(self, config: Config | None = None):
        """
        :param config: None: the global config
        :raises ConfigError: the device is not available
        """
        super().__init__(config)
        self._read_options()
        self._mp_manager: None = None  # kept for client code; nothing needs a manager process
        self._epoch_mp_shared = EpochSource()

        self._train_dataloader: Loader | None = None
        self._forward_dataloader: Loader | None = None
        self._eval_dataloaders: dict[str, Loader] = {}

        self._start_epoch: int | None = None
        self._final_epoch: int | None = None
        self._model: torch.nn.Module | None = None
        self._train_step = 0  # number of training steps done, over all epochs
        self._train_step_func: StepCall | UserFunction | None = None
        self._forward_step_func: StepCall | UserFunction | None = None
        self._save_model_epoch_interval = 1
        self._updater: Any = None  # Updater; custom engines put what they like here
        self._amp_dtype: torch.dtype | None = None
        self._forward_epoch: int | None = None
        self._restart = RestartState()
        self._fingerprints = {}

    def _read_options(self) -> None:
        self._options = EngineOptions.from_config(self.config)
        ranks = init_distributed(self.config)
        self._device: str = choose_device(self._options.device) if ranks is None else str(ranks.device)
        make_deterministic(self._options, device=self._device)
        self._dialect_is_mainline = mainline = is_mainline(self.config)
        self._lines = MAINLINE_LINES if mainline else MINI_LINES
        described = ExternDataOptions.from_config(self.config).extern_data
        self.extern_data = None if described is None else extern_data_template_from_config_opts(described)
        self._float_dtype = float_dtype_of_name(LoadedModelOptions.from_config(self.config).float_dtype)
        passes = PassOptions.from_config(self.config)
        self._pass_frame = PassFrame(passes, device=self._device, mainline=mainline)
        self._time_limit = TimeLimit.from_options(passes)

    # ---- set-up -----------------------------------------------------------------------------------------------------

    def init_train(
        self,
        train_data: Dataset | None = None,
        dev_data: Dataset | None = None,
        eval_data: Dataset | None = None,
    ) -> None:
        """
        Prepare training: datasets, loaders, model, optimizer, from scratch or from a checkpoint.

        :param train_data: None: config option ``train``
        :param dev_data: None: config option ``dev``
        :param eval_data: None: config option ``eval``
        :raises UserError: what is wrong with config, data or checkpoint
        """
        functions = ModelOptions.from_config(self.config, needed=("get_model", "train_step"), used=())
        self._start_worker_server()  # first of what takes long: torch's first optimizer imports its compiler, for a second
        check_optimizer_options(read_optimizer(self.config))
        OptimizerOptions.from_config(self.config)
        self._plan_pauses()
        self._open_observers(train=True)
        super().init_train(train_data, dev_data, eval_data)
        share_learning_rates(self.learning_rate_control)
        assert self.train_dataset is not None
        if self._should_write_to_disk():
            self._fingerprints = fingerprints({"train": self.train_dataset, **self.eval_datasets})
        self._train_dataloader = self._create_data_loader(self.train_dataset)
        self._eval_dataloaders = {name: self._create_data_loader(ds) for name, ds in self.eval_datasets.items()}

        start = self._network_start or self._choose_train_start()
        self._start_epoch = start.start_epoch
        self._starts_inside = start.step is not None
        self._final_epoch = self.config_get_final_epoch(self.config)
        print_start(start, final_epoch=self._final_epoch, lr_control=self.learning_rate_control)
        seeds_per_epoch = self._dialect_is_mainline or self._distributed is not None
        print_seeds(
            self._options, per_epoch=seeds_per_epoch, datasets={"train": self.train_dataset, **self.eval_datasets}
        )
        if self._start_epoch <= self._final_epoch and CheckpointOptions.from_config(self.config).task == "train":
            _start_workers(self._train_dataloader)  # its workers start while the model is made
        if self._network_start is None:
            self._load_model(epoch=self._start_epoch, filename=start.filename)
        self._go_on_inside(start)
        if start.kind == "resume" and start.filename:
            report_changed_data(self._restart.data, self._fingerprints, filename=start.filename)
        self._save_model_epoch_interval = CheckpointOptions.from_config(self.config).save_interval

        self._set_precision()
        assert self._model is not None and self.learning_rate_control is not None
        self.learning_rate = preview_learning_rate(self.learning_rate_control, self._start_epoch)
        self._updater = Updater(
            config=self.config,
            network=self._model,
            device=self._device,
            initial_learning_rate=self.learning_rate,
            dialect="mainline" if self._dialect_is_mainline else "mini",
        )
        self._updater.create_optimizer()
        if self._amp_dtype is not None:
            self._updater.create_grad_scaler()
        if (self._start_epoch > 1 or self._starts_inside) and start.filename:
            opt_filename = optimizer_filename(start.filename)
            args = {"filename": opt_filename} if takes_argument(self._load_optimizer, "filename") else {}
            self._load_optimizer(self._start_epoch, **args)
        self._start_averages()
        assert functions.train_step is not None
        self._train_step_func = self._make_step_call(compile_step_function(self.config, functions.train_step))
        self._wrap_train_step()

    def init_forward(self, forward_data: Dataset | None = None) -> None:
        """
        Prepare forwarding with the checkpoint of option ``load``.

        :param forward_data: None: config option ``forward``
        """
        forward_step = self._init_forward_sink()
        self._start_worker_server()
        super().init_forward(forward_data)
        self._init_forward_loader()
        start = first_rank_decides(lambda: self.get_start_point(self.config))
        print_start(start, final_epoch=None, lr_control=None)
        self._load_model(epoch=None, filename=start.filename)
        if self._options.amp_in_forward:
            self._set_precision()
        self._forward_step_func = self._make_step_call(forward_step, with_eval_targets=False)

    def _make_step_call(self, func: Callable[..., Any], *, with_eval_targets: bool = True) -> StepCall:
        """
        :param func: of the config. Any: user code
        :param with_eval_targets: whether it gets the streams that there are not in inference
        :return: as it will be called. Sets :attr:`extern_data` if it is needed and not in the config
        """
        mainline = self._dialect_is_mainline
        if self.extern_data is None and StepCall.asks_for_extern_data(func, mainline=mainline):
            datasets = (self.train_dataset, *self.eval_datasets.values(), self.forward_dataset)
            self.extern_data = extern_data_template_from_dataset(next(ds for ds in datasets if ds is not None))
        return StepCall(
            func,
            mainline=mainline,
            template=self.extern_data,
            device=self._device,
            float_dtype=self._float_dtype,
            with_eval_targets=with_eval_targets,
        )

    def _start_worker_server(self) -> None:
        """The process that workers are forked from imports torch while this one reads data and makes the model."""
        if LoaderOptions.from_config(self.config).num_workers:
            start_server(with_torch=True)

    def _get_start_point(self) -> StartPoint:
        """:return: what EngineBase chooses, or what an overridden get_epoch_model says"""
        own: Any = type(self).get_epoch_model  # Any: a bound class method, mypy knows it as a function only
        if own.__func__ is EngineBase.__dict__["get_epoch_model"].__func__:
            return first_rank_decides(lambda: self.get_start_point(self.config))
        epoch, filename = first_rank_decides(lambda: self.get_epoch_model(self.config))
        return StartPoint("fresh" if filename is None else "resume" if epoch else "load", epoch, filename)

    def _set_precision(self) -> None:
        amp = AmpOptions.from_config(self.config)
        if amp is not None:
            self._amp_dtype = getattr(torch, amp.dtype)

    def _create_data_loader(
        self, dataset: Dataset, *, train: bool | None = None, dataset_init_epoch: bool = True
    ) -> Loader:
        """
        :param dataset: what to load
        :param train: whether to train with it; None: unless it is an eval dataset or the forward dataset
        :param dataset_init_epoch: False: the dataset is at its epoch already
        :return: its batches, by the options of the config
        """
        role: Role = "train"
        name = "train"
        if train is False:
            role, name = "eval", getattr(dataset, "name", None) or "eval"
        for eval_name, eval_dataset in self.eval_datasets.items():
            if dataset is eval_dataset and not train:
                role, name = "eval", eval_name
        if dataset is self.forward_dataset and not train:
            role, name = "forward", "forward"
        loader = create_loader(
            dataset,
            batching=BatchingOptions.from_config(self.config, role=role),
            loader=LoaderOptions.from_config(self.config),
            epoch_source=self._epoch_mp_shared,
            name=name,
            role=role,
            seed=self._options.random_seed,
            pin_memory=torch.device(self._device).type == "cuda",
        )
        if not dataset_init_epoch:
            read_as_it_is(loader)
        return loader

    def _load_model(self, *, epoch: int | None, filename: str | None = None) -> None:
        """
        Create the model and load its parameters.

        :param epoch: training: first epoch to train; else None: that of the checkpoint
        :param filename: checkpoint without ``.pt``, or with any other suffix; None: random parameters
        """
        with shared_file(filename, is_model=True) as path:
            loaded = build_model(
                config=self.config,
                engine=self,
                device=self._device,
                epoch=epoch,
                filename=path,
                options=self._options,
                stay_on_host=epoch is not None and sharding_wanted(),
                inside_epoch=self._starts_inside,
            )
        self._model = loaded.model
        if epoch is not None:
            self._shard_model()
        self._forward_epoch = loaded.model_epoch
        # A continued training goes on counting; one that starts at epoch 1 with given weights counts from 0.
        goes_on = epoch is not None and (epoch > 1 or self._starts_inside)
        self._train_step = loaded.step if epoch is None or goes_on else 0
        self._restart = loaded.restart
        self._saved_averages = loaded.averages
        if self.learning_rate_control is not None and goes_on:
            self._restart.restore_learning_rates(self.learning_rate_control)

    def _load_optimizer(self, epoch: int, filename: str | None = None) -> None:
        """
        :param epoch: first epoch to train
        :param filename: None: that of the epoch before
        :raises CheckpointError: it is missing, and the config does not allow that; or it does not fit
        """
        if filename is None:
            filename = optimizer_filename(self.get_epoch_model_filename(epoch - 1))
        if self._load_sharded_optimizer(filename):
            return
        if not first_rank_decides(lambda: os.path.exists(filename)):
            if not CheckpointOptions.from_config(self.config).allow_missing_optimizer:
                raise CheckpointError(
                    f"Optimizer file {filename} not found and allow_missing_optimizer_checkpoint is False. "
                    "Set it to True to go on with a fresh optimizer."
                )
            print(f"Warning: optimizer file {filename} not found, going on with a fresh optimizer.", file=log.v1)
            return
        with shared_file(filename, is_model=False) as path:
            self._updater.load_optimizer(path)

    # ---- saving -----------------------------------------------------------------------------------------------------

    def save_model(self) -> None:
        """Write the checkpoint of the current epoch."""
        assert self._model is not None
        self._check_trained_together()
        filename = self._checkpoint_filename()
        model_state = self._whole_model_state(keep=filename is not None)
        rng_of_others = gather_rng_states()
        if filename is None:
            return
        print(f"Save model under {filename}{self.FILE_POSTFIX}", file=log.v4)
        content = self._model_file_content(model_state, rng_of_others=rng_of_others)
        save_file_atomic(content, filename + self.FILE_POSTFIX)

    def _save_optimizer(self) -> None:
        """Write the optimizer state of the current epoch, and remove old ones."""
        filename = self._checkpoint_filename()
        if self._sharded is not None:
            self._save_sharded_optimizer(filename)
        if filename is None or self._updater is None:
            return
        if self._sharded is None:
            opt_filename = optimizer_filename(filename)
            known = {"epoch": self.epoch, "step": self._train_step}
            args = known if takes_argument(self._updater.save_optimizer, "epoch") else {}
            self._updater.save_optimizer(opt_filename, **args)
            delete_optimizer(filename, keep=opt_filename)  # of an earlier training, with sharding
        self.prune_optimizer_files()

    def _checkpoint_filename(self) -> str | None:
        """:return: path without suffix; None if nothing is to be written"""
        if not self._should_write_to_disk():
            return None
        if not (self.model_filename or CheckpointOptions.from_config(self.config).model):
            return None
        return self.get_epoch_model_filename()

    def close_loaders(self) -> None:
        """End all worker processes."""
        for loader in (self._train_dataloader, *self._eval_dataloaders.values(), self._forward_dataloader):
            if loader is not None and hasattr(loader, "close"):
                loader.close()


def _start_workers(loader: object) -> None:
    if isinstance(loader, Loader):  # a custom engine may have another one
        loader.prepare()
