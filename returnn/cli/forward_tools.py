"""What the tools that dump results of a forward pass share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy

from returnn.datasets.basic import Dataset, init_dataset
from returnn.errors import ConfigError
from returnn.options.data import DataOptions
from returnn.util.stats import Stats

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["OutputStats", "dataset_of_config", "value_line"]


def dataset_of_config(config: Config, name: str | None, *, order_opts: Mapping[str, Any] | None = None) -> Dataset:
    """
    :param config: with datasets
    :param name: option, e.g. "dev"; None: forward (or forward_data), else dev, else train
    :param order_opts: further options for the dataset, or for its child that decides about the order. Any: as there
    :return: the dataset
    :raises ConfigError: there is none, or it cannot have further options
    """
    options = DataOptions.from_config(config)
    known: dict[str, Any] = {"forward": options.forward, **options.eval_datasets, "train": options.train}
    given = {key: value for key, value in known.items() if value is not None}
    if name is None:
        name = next(iter(given), "forward")
    if name == "forward_data":  # the spelling of the mainline dialect
        name = "forward"
    if name not in given:
        raise ConfigError(f"The config has no dataset {name!r}. It has: {', '.join(given) or 'none'}.")
    opts = given[name] if not order_opts else _with_order_opts(given[name], order_opts, name=name)
    return init_dataset(opts, default_kwargs={"name": name})


def _with_order_opts(opts: Any, order_opts: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    if not isinstance(opts, Mapping):
        raise ConfigError(f"The dataset {name!r} is no dict, so {', '.join(order_opts)} cannot be set.")
    control = opts.get("seq_order_control_dataset")
    children = opts.get("datasets")
    if isinstance(children, Mapping) and control in children:
        child = _with_order_opts(children[control], order_opts, name=f"{name}.{control}")
        return {**opts, "datasets": {**children, control: child}}
    return {**opts, **order_opts}


def value_line(name: str, value: numpy.ndarray) -> str:
    """:return: shape and main figures of one array"""
    text = f"  {name}: {value.dtype} {list(value.shape)}"
    if not value.size or value.dtype.kind not in "biuf":
        return text
    mean, std_dev = float(numpy.mean(value, dtype="float64")), float(numpy.std(value, dtype="float64"))
    return (
        f"{text}, mean {mean:.4g}, std dev {std_dev:.4g}, min/max {float(value.min()):.4g} / {float(value.max()):.4g}"
    )


class OutputStats:
    """Statistics over the frames of all sequences, per output."""

    def __init__(self) -> None:
        self._stats: dict[str, Stats] = {}

    def collect(self, values: Mapping[str, numpy.ndarray]) -> None:
        """
        :param values: of one sequence: [T, ...], or a scalar, which is one frame
        """
        for name, value in values.items():
            self._stats.setdefault(name, Stats()).collect(numpy.atleast_1d(value))

    def dump(self, *, prefix: str, output_file_prefix: str | None = None) -> None:
        """
        :param prefix: of the lines, before the name
        :param output_file_prefix: also write ``<p>.mean.txt`` and ``<p>.std_dev.txt``; with several outputs ``<p>.<name>...``
        """
        for name, stats in self._stats.items():
            file_prefix = output_file_prefix
            if file_prefix and len(self._stats) > 1:
                file_prefix = f"{file_prefix}.{name.replace(' ', '_')}"
            if stats.num_seqs:
                stats.dump(output_file_prefix=file_prefix, stream_prefix=f"{prefix} {name!r} ")
