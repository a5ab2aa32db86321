"""
EngineBase: the bookkeeping of a run that does not depend on the framework.

Epoch numbers, datasets, learning-rate control, which checkpoint to start from, deletion of old checkpoints.
Custom engines override and call these methods: names, signatures and attributes are API.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from returnn._state import state
from returnn.config import Config, get_global_config
from returnn.datasets import init_dataset
from returnn.engine import model_files
from returnn.engine.cleanup import plan_cleanup
from returnn.engine.eval_order import sort_eval_dataset
from returnn.engine.inner_files import InnerKey
from returnn.engine.model_files import StartPoint
from returnn.engine.start_point import choose_start
from returnn.errors import CheckpointError, ConfigError, DataFileError
from returnn.learning_rate_control import LearningRateControl, load_learning_rate_control_from_config
from returnn.log import log
from returnn.lr import lr_file
from returnn.options.checkpoint import CheckpointOptions, CleanupOptions, should_write_to_disk
from returnn.options.data import DataOptions
from returnn.options.dialect import is_mainline
from returnn.options.learning_rate import LearningRateOptions
from returnn.util.fs import why_not_writable
from returnn.util.numbers import human_bytes_size
from returnn.util.terminal import confirm

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset

__all__ = ["EngineBase"]


class EngineBase:
    """Base class of all engines."""

    #: Suffix of checkpoint files, e.g. ".pt".
    FILE_POSTFIX: str | None = None

    def __init__(self, config: Config | None = None):
        """
        :param config: None: the global one, created if there is none
        """
        if config is None:
            config = get_global_config(auto_create=True)
            assert config is not None
        self.config = config
        self.epoch: int = 0
        self.model_filename: str | None = None
        self.train_dataset: Dataset | None = None
        self.eval_datasets: dict[str, Dataset] = {}
        self.forward_dataset: Dataset | None = None
        self.learning_rate: float = 0.0
        self.learning_rate_control: LearningRateControl | None = None

    # --- initialisation

    def init_train(
        self,
        train_data: Dataset | None = None,
        dev_data: Dataset | None = None,
        eval_data: Dataset | None = None,
    ) -> None:
        """
        Set up datasets and learning-rate control for a training.

        :param train_data: None: from the option ``train``
        :param dev_data: None: from the option ``dev``
        :param eval_data: None: from the option ``eval``
        :raises MissingOptionError: a dataset is neither given nor set in the config
        :raises ConfigError: checkpoints or the learning-rate file could not be written
        """
        options = DataOptions.from_config(self.config)
        # Mistakes first, data later.
        if train_data is None:
            options.require_train()
        if dev_data is None and not CheckpointOptions.from_config(self.config).mainline_dialect:
            options.require_dev()
        self._init_learning_rate_control()
        self._check_outputs_writable()
        if train_data is None:
            train_data = init_dataset(options.require_train(), default_kwargs={"name": "train"})
            train_data.check_corpus()
        self.train_dataset = train_data
        self._init_eval_datasets(options, dev_data, eval_data)

    def init_eval(self, dev_data: Dataset | None = None) -> None:
        """
        Set up the eval datasets and the learning-rate control, without training data.

        :param dev_data: None: from the option ``dev``
        :raises MissingOptionError: no dataset to evaluate is set in the config
        """
        options = DataOptions.from_config(self.config)
        if dev_data is None and not options.eval_datasets:
            options.require_dev()
        self._init_learning_rate_control()
        self._init_eval_datasets(options, dev_data)

    def _check_outputs_writable(self) -> None:
        """Now, and not after the first epoch."""
        if not should_write_to_disk(self.config):
            return
        assert self.learning_rate_control is not None
        filenames = {
            "model": CheckpointOptions.from_config(self.config).model,
            "learning_rate_file": self.learning_rate_control.filename,
        }
        for option, filename in filenames.items():
            problem = why_not_writable(filename) if filename else None
            if problem:
                raise ConfigError(f'option "{option}": cannot write {filename!r}: {problem}. Choose another place.')

    def _init_learning_rate_control(self) -> None:
        self.learning_rate_control = load_learning_rate_control_from_config(self.config)
        self.learning_rate = self.learning_rate_control.default_learning_rate
        self.learning_rate_control.warn_if_learning_rates_end_early(self.config_get_final_epoch(self.config))

    def _init_eval_datasets(
        self, options: DataOptions, dev_data: Dataset | None, eval_data: Dataset | None = None
    ) -> None:
        self.eval_datasets.clear()
        if dev_data is not None:
            self.eval_datasets["dev"] = dev_data
        for name, opts in options.eval_datasets.items():
            if name == "eval" and eval_data is not None:
                self.eval_datasets[name] = eval_data
            elif name not in self.eval_datasets:
                self.eval_datasets[name] = init_dataset(opts, default_kwargs={"name": name})
                self.eval_datasets[name].check_corpus()
                if is_mainline(self.config):
                    sort_eval_dataset(self.eval_datasets[name], opts)
        if eval_data is not None:
            self.eval_datasets["eval"] = eval_data

    def init_forward(self, forward_data: Dataset | None = None) -> None:
        """
        Set up the dataset for forwarding.

        :param forward_data: None: from the option ``forward`` (or ``forward_data``)
        :raises MissingOptionError: it is neither given nor set in the config
        """
        if forward_data is None:
            options = DataOptions.from_config(self.config)
            forward_data = init_dataset(options.require_forward(), default_kwargs={"name": options.forward_name})
            forward_data.check_corpus()
        self.forward_dataset = forward_data

    # --- the actual work, defined by the framework's engine

    def train(self) -> None:
        """Train from the start epoch to the final epoch."""
        raise NotImplementedError(f"{type(self).__name__}.train")

    def forward(self) -> None:
        """Run the model over the forward dataset."""
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def save_model(self) -> None:
        """Write a checkpoint of the current epoch."""
        raise NotImplementedError(f"{type(self).__name__}.save_model")

    # --- epochs and file names

    @classmethod
    def config_get_final_epoch(cls, config: Config) -> int:
        """
        :param config:
        :return: the last epoch to train
        """
        return CheckpointOptions.from_config(config).final_epoch

    @classmethod
    def get_existing_models(cls, config: Config) -> dict[int, str]:
        """
        :param config:
        :return: epoch -> path without suffix, of epochs 1 to the final one, whether whole or not
        """
        options = CheckpointOptions.from_config(config)
        return model_files.existing_models(options.model, options.final_epoch)

    @classmethod
    def get_start_point(cls, config: Config, *, inner: Mapping[InnerKey, str] | None = None) -> StartPoint:
        """
        :param config:
        :param inner: see :func:`returnn.engine.start_point.choose_start`
        :return: the checkpoint which this run starts from, with notes for the user. Logs nothing
        :raises CheckpointError: a checkpoint that is asked for is missing or broken
        :raises ConfigError: the task needs a checkpoint, and none is given
        """
        options = CheckpointOptions.from_config(config)
        return choose_start(
            options,
            trained_epochs=_trained_epochs(config),
            standard_optimizer_files=cls._has_standard_optimizer_files(),
            inner=inner,
        )

    @classmethod
    def _has_standard_optimizer_files(cls) -> bool:
        """:return: False for custom engines that save or load optimizers in their own way (e.g. several of them)"""
        methods = [getattr(cls, name, None) for name in ("_save_optimizer", "_load_optimizer")]
        return all(method is None or method.__module__.startswith("returnn.") for method in methods)

    @classmethod
    def get_epoch_model(cls, config: Config) -> tuple[int | None, str | None]:
        """
        The checkpoint which this run starts from. Logs it.

        :param config:
        :return: epoch (None: not known from the options, or a fresh model; 0: imported weights),
            path without ".pt" (None: a fresh model)
        :raises CheckpointError: a checkpoint that is asked for is missing or broken
        :raises ConfigError: the task needs a checkpoint, and none is given
        """
        start = cls.get_start_point(config)
        for note in start.notes:
            print(f"Checkpoint: {note}", file=log.v2 if note.startswith("warning") else log.v4)
        print(start.log_line, file=log.v4)
        return start.epoch, start.filename

    @classmethod
    def get_train_start_epoch(cls, config: Config) -> int:
        """
        :param config:
        :return: the first epoch to train
        """
        return cls.get_start_point(config).start_epoch

    @classmethod
    def epoch_model_filename(cls, model_filename: str, epoch: int) -> str:
        """:return: path of the checkpoint, without suffix"""
        return model_files.epoch_model_filename(model_filename, epoch)

    def get_epoch_model_filename(self, epoch: int | None = None) -> str:
        """
        :param epoch: None: the current one
        :return: path of the checkpoint under the option ``model``, without suffix
        """
        model_filename = self.model_filename or CheckpointOptions.from_config(self.config).model
        if not model_filename:
            raise CheckpointError(
                'option "model" is not set, so there is no name for checkpoints. Set e.g. model = "models/epoch".'
            )
        return self.epoch_model_filename(model_filename, epoch or self.epoch)

    def get_epoch_str(self) -> str:
        """:return: for log lines"""
        return f"epoch {self.epoch}"

    @classmethod
    def get_file_postfix(cls) -> str:
        """:return: suffix of checkpoint files"""
        if cls.FILE_POSTFIX is None:
            raise NotImplementedError(f"{cls.__name__} has no FILE_POSTFIX")
        return cls.FILE_POSTFIX

    def _should_write_to_disk(self) -> bool:
        """:return: whether this process writes and deletes files: no dry run, and the first of all ranks"""
        return should_write_to_disk(self.config)

    # --- scores

    def _is_dataset_evaluated(self, name: str, *, epoch: int | None = None) -> bool:
        """
        :param name: of an eval dataset
        :param epoch: None: the current one
        :return: whether scores of this dataset are stored. False without a learning-rate file
        """
        control = self.learning_rate_control
        if control is None or not control.filename:
            return False
        error = control.get_epoch_error_dict(epoch if epoch is not None else self.epoch)
        return any(_is_score_of(key, name) for key in error)

    def _is_trained(self, epoch: int) -> bool:
        """
        :param epoch:
        :return: whether scores of the training itself are stored: any that belongs to no eval dataset
        """
        control = self.learning_rate_control
        if control is None:
            return False
        error = control.get_epoch_error_dict(epoch)
        return any(not any(_is_score_of(key, name) for name in self.eval_datasets) for key in error)

    # --- deletion

    @staticmethod
    def delete_model(filename: str) -> int:
        """
        :param filename: of a checkpoint, without suffix. Its ".pt" file must exist
        :return: number of bytes
        """
        return model_files.delete_model(filename)

    def cleanup_old_models(self, ask_for_confirmation: bool = False) -> None:
        """
        Delete checkpoints that the option ``cleanup_old_models`` does not keep.

        :param ask_for_confirmation: ask on the terminal before deleting
        """
        if state.rank != 0:  # rank 0 does it, and says so
            return
        options = CheckpointOptions.from_config(self.config)
        existing = self.get_existing_models(self.config)
        existing = {ep: path for ep, path in existing.items() if os.path.isfile(path + model_files.MODEL_POSTFIX)}
        control = self.learning_rate_control or load_learning_rate_control_from_config(self.config)
        plan = plan_cleanup(
            existing,
            {epoch: data.error for epoch, data in control.epoch_data.items()},
            options.cleanup or CleanupOptions(),
            mainline_dialect=options.mainline_dialect,
            current_epoch=self.epoch,
        )
        for level, line in plan.messages:
            print(line, file=_log_stream(level))
        if not existing and (later := model_files.existing_models(options.model)):
            print(
                f"There are checkpoints of later epochs, up to {max(later)}; num_epochs is {options.final_epoch}. "
                "Raise num_epochs to include them.",
                file=log.v2,
            )
        if not plan.delete:
            return
        if not self._should_write_to_disk():
            print("Dry-run, will not delete models.", file=log.v2)
            return
        if ask_for_confirmation:
            confirm("Delete those models?", exit_on_false=True)
        with_optimizer = options.mainline_dialect or options.cleanup_optimizer_files
        num_bytes = 0
        for epoch in plan.delete:
            path = existing[epoch]
            if with_optimizer:
                num_bytes += model_files.delete_optimizer(path)
            num_bytes += self.delete_model(path)
        print(f"Deleted {human_bytes_size(num_bytes)}.", file=log.v2)

    def prune_optimizer_files(self) -> None:
        """
        Delete optimizer files that no restart needs: all but the newest two.
        With ``apply_cleanup_old_models_to_optim_states`` they are deleted together with the checkpoints instead.
        """
        options = CheckpointOptions.from_config(self.config)
        if options.model and not options.cleanup_optimizer_files and self._should_write_to_disk():
            model_files.prune_optimizer_files(options.model, self.epoch)


def _is_score_of(key: str, dataset_name: str) -> bool:
    return any(
        key == start or key.startswith((start + "_", start + "/"))
        for start in (dataset_name + "_loss", dataset_name + "_score")
    )


def _trained_epochs(config: Config | Mapping[str, Any]) -> frozenset[int]:
    """:return: epochs with stored scores"""
    filename = LearningRateOptions.from_config(config).filename
    if not filename or not os.path.exists(filename):
        return frozenset()
    try:
        return frozenset(epoch for epoch, data in lr_file.load(filename).items() if data.error)
    except DataFileError:  # reported by the learning-rate control, if there is one in this task
        return frozenset()


def _log_stream(level: int) -> Any:  # Any: a stream of the log
    return {1: log.v1, 2: log.v2, 3: log.v3, 4: log.v4}[level]
