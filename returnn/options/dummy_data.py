"""Options to try a config without its data: random datasets in place of all others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from returnn.errors import ConfigError
from returnn.options.extern_data import ExternDataOptions
from returnn.options.registry import Option, declare, read
from returnn.options.values import read_bool, read_int

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["DummyDataOptions"]

_NUM_TRAIN_SEQS = 1000
_NUM_OTHER_SEQS = 100
#: Of a given number of sequences for training, the part that each other dataset has.
_OTHER_PART = 20

declare(
    Option(
        "use_dummy_datasets",
        "bool",
        False,
        "To try a config without its data: each dataset of it is replaced by random sequences of the shapes in extern_data.",
    ),
    Option(
        "train_dummy_dataset_num_seqs",
        "int | None",
        None,
        f"With use_dummy_datasets: number of sequences of train; unset: {_NUM_TRAIN_SEQS}.",
    ),
    Option(
        "dummy_dataset_num_seqs",
        "int | None",
        None,
        "With use_dummy_datasets: number of sequences of each other dataset; unset: a twentieth of "
        f"train_dummy_dataset_num_seqs, or {_NUM_OTHER_SEQS}.",
    ),
)


@dataclasses.dataclass(frozen=True)
class DummyDataOptions:
    """Random datasets."""

    template: Mapping[str, Mapping[str, Any]]  # per key a description as in extern_data. Any: its entries
    num_train_seqs: int
    num_other_seqs: int

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> DummyDataOptions | None:
        """
        :param config:
        :return: None: the datasets stay as they are
        :raises OptionError: invalid value
        :raises ConfigError: nothing describes the shapes
        """
        enabled = read_bool(config, "use_dummy_datasets")
        num_train = num_other = None
        if read(config, "train_dummy_dataset_num_seqs") is not None:
            num_train = read_int(config, "train_dummy_dataset_num_seqs", minimum=1)
        if read(config, "dummy_dataset_num_seqs") is not None:
            num_other = read_int(config, "dummy_dataset_num_seqs", minimum=1)
        if not enabled:
            return None
        described = ExternDataOptions.from_config(config).extern_data
        if described is None:
            raise ConfigError(
                'option "use_dummy_datasets" needs extern_data, which describes the shapes of the data. Set extern_data, or '
                'use datasets of class "DummyDataset".'
            )
        if num_other is None:
            num_other = _NUM_OTHER_SEQS if num_train is None else max(num_train // _OTHER_PART, 1)
        return cls(
            template={
                key: {
                    "dims": tensor.dims,
                    "dtype": tensor.dtype,
                    "sparse_dim": tensor.sparse_dim,
                    "available_for_inference": tensor.available_for_inference,
                }
                for key, tensor in described.data.items()
                if key != "seq_tag"
            },
            num_train_seqs=_NUM_TRAIN_SEQS if num_train is None else num_train,
            num_other_seqs=num_other,
        )

    def dataset(self, *, train: bool) -> dict[str, Any]:
        """:return: options of a random dataset. Any: each has its own type"""
        num_seqs = self.num_train_seqs if train else self.num_other_seqs
        return {"class": "DummyGenericDataset", "data_template": self.template, "num_seqs": num_seqs}
