"""Options that name the datasets of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from returnn.errors import ConfigError, MissingOptionError, OptionError
from returnn.options.dialect import is_mainline
from returnn.options.dummy_data import DummyDataOptions
from returnn.options.registry import Option, declare, is_given, read

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["DataOptions", "DatasetDict"]

#: Options of a dataset, with its class name under "class". Any: each dataset class has its own options.
DatasetDict = Mapping[str, Any]

_EXAMPLE = '{"class": "HDFDataset", "files": ["train.hdf"]}'
declare(
    Option(
        "train",
        "dict | callable() -> dict | str",
        None,
        "Training dataset: a dict with the class name and its options, or a function or text that gives it.",
        tasks=("train", "initialize_model"),
    ),
    Option(
        "dev",
        "dict | callable() -> dict | str",
        None,
        'Development dataset, evaluated after each epoch under the name "dev".',
        tasks=("train", "eval", "initialize_model"),
    ),
    Option(
        "eval",
        "dict | callable() -> dict | str",
        None,
        'One more dataset to evaluate; the same as eval_datasets = {"eval": ...}.',
        tasks=("train", "eval", "initialize_model"),
    ),
    Option(
        "eval_datasets",
        "dict[str, dict]",
        None,
        "Further datasets by name, each evaluated after every epoch; their scores are <name>_loss_<loss>.",
        tasks=("train", "eval", "initialize_model"),
    ),
    Option(
        "forward",
        'dict | "train" | "dev" | "eval"',
        None,
        "Dataset of the task forward, or the name of another dataset of the config.",
        aliases=("forward_data",),
        tasks=("forward",),
    ),
    Option(
        "file_cache_opts",
        "dict",
        None,
        "Arguments of returnn.util.file_cache.FileCache, which keeps local copies of data files; read when it is first used.",
    ),
)


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """The dataset dicts as given; None: not set."""

    train: DatasetDict | None
    eval_datasets: Mapping[str, DatasetDict]  # in the order of evaluation; "dev" first
    forward: DatasetDict | None
    forward_name: str = "forward"  # or that of the other dataset that it is
    forward_option: str = "forward"  # how the dialect of the config spells it

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> DataOptions:
        """
        :param config:
        :raises OptionError: not a dict
        :raises ConfigError: ``eval`` and ``eval_datasets["eval"]`` both given, or ``forward`` names a dataset that is not there
        """
        train = _dataset(config, "train")
        eval_datasets: dict[str, DatasetDict] = {}
        dev = _dataset(config, "dev")
        if dev is not None:
            eval_datasets["dev"] = dev
        for name, opts in _named_datasets(config).items():
            if name == "dev" and dev is not None and opts != dev:
                raise ConfigError(
                    'options "dev" and eval_datasets["dev"] differ, but both are evaluated as "dev". Set only one of them.'
                )
            eval_datasets[name] = opts
        extra = _dataset(config, "eval")
        if extra is not None:
            if "eval" in eval_datasets and eval_datasets["eval"] != extra:
                raise ConfigError(
                    'options "eval" and eval_datasets["eval"] are two names of the same thing, but their values differ. '
                    "Set only one of them."
                )
            eval_datasets["eval"] = extra
        forward_name, forward = _forward(config, {"train": train, **eval_datasets})
        dummy = DummyDataOptions.from_config(config)
        if dummy is not None:
            train = None if train is None else dummy.dataset(train=True)
            eval_datasets = {name: dummy.dataset(train=False) for name in eval_datasets}
            forward = None if forward is None else dummy.dataset(train=forward_name == "train")
        return cls(
            train=train,
            eval_datasets=eval_datasets,
            forward=forward,
            forward_name=forward_name,
            forward_option=_forward_option(config),
        )

    def require_train(self) -> DatasetDict:
        """
        :return: the training dataset
        :raises MissingOptionError: not set
        """
        if self.train is None:
            raise MissingOptionError("train", needed_for="the task train", todo=f"Set e.g. train = {_EXAMPLE}")
        return self.train

    def require_dev(self) -> DatasetDict:
        """
        :return: the development dataset
        :raises MissingOptionError: not set
        """
        if "dev" not in self.eval_datasets:
            raise MissingOptionError("dev", needed_for="the task train", todo=f"Set e.g. dev = {_EXAMPLE}")
        return self.eval_datasets["dev"]

    def require_forward(self) -> DatasetDict:
        """
        :return: the dataset of the task forward
        :raises MissingOptionError: not set
        """
        if self.forward is None:
            name = self.forward_option
            raise MissingOptionError(name, needed_for="the task forward", todo=f"Set e.g. {name} = {_EXAMPLE}")
        return self.forward


def _dataset(config: Config | Mapping[str, Any], name: str) -> DatasetDict | None:
    value = read(config, name)
    if value is None or (isinstance(value, Mapping) and not value):
        return None
    _check_dataset_dict(name, value)
    return value


def _check_dataset_dict(name: str, value: object) -> None:
    if isinstance(value, Mapping) and "class" in value:
        return
    # A string (dataset given as text), a function that gives the dict, or a dataset object: init_dataset knows them.
    if isinstance(value, str) or callable(value) or hasattr(value, "init_seq_order"):
        return
    if isinstance(value, Mapping):
        raise OptionError(
            name, expected='a dataset dict with the key "class"', got=dict(value), todo=f"Set e.g. {name} = {_EXAMPLE}"
        )
    raise OptionError(name, expected="a dataset dict", got=value, todo=f"Set e.g. {name} = {_EXAMPLE}")


def _named_datasets(config: Config | Mapping[str, Any]) -> Mapping[str, DatasetDict]:
    value = read(config, "eval_datasets")
    if value is None:
        return {}
    if not isinstance(value, Mapping) or isinstance(value.get("class"), str):  # the latter: a dataset itself
        raise OptionError(
            "eval_datasets",
            expected="dict of name -> dataset dict",
            got=value,
            todo='E.g. {"devtrain": {"class": ...}}',
        )
    for name, opts in value.items():
        if not isinstance(name, str):
            raise OptionError("eval_datasets", expected="names that are str", got=name)
        _check_dataset_dict(f'eval_datasets["{name}"]', opts)
    return value


def _forward_option(config: Config | Mapping[str, Any]) -> str:
    """:return: name of the option for messages: mainline's dialect calls it forward_data"""
    return "forward_data" if is_mainline(config) else "forward"


def _forward(
    config: Config | Mapping[str, Any], others: Mapping[str, DatasetDict | None]
) -> tuple[str, DatasetDict | None]:
    """:return: name and options"""
    if not is_given(config, "forward"):  # the default of the spelling forward_data is "eval"
        return ("eval", others["eval"]) if others.get("eval") is not None else ("forward", None)
    value = read(config, "forward")
    if isinstance(value, str):
        target = others.get(value)
        if target is None:
            known = ", ".join(repr(n) for n, v in others.items() if v is not None) or "none"
            raise ConfigError(
                f'option "{_forward_option(config)}" names the dataset {value!r}, which the config does not define (it defines: {known}). '
                f"Set it to a dataset dict, e.g. {_forward_option(config)} = {_EXAMPLE}."
            )
        return value, target
    if value is None or (isinstance(value, Mapping) and not value):
        return "forward", None
    _check_dataset_dict("forward", value)
    return "forward", value
