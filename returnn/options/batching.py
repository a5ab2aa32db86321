"""
Options of batching: limits of a batch and length filter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy

from returnn.errors import ConfigError, OptionError
from returnn.options.chunking import NON_DATA_KEYS, ChunkingOptions, ChunkStream, parse_chunking, read_chunking
from returnn.options.custom_batching import (
    BucketOptions,
    CustomBatching,
    parse_custom_batching,
    read_custom_batching,
)
from returnn.options.dialect import is_mainline
from returnn.options.registry import Option, declare, is_given, read
from returnn.options.values import check_takes_any_keyword, to_float

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = [
    "BatchingOptions",
    "BucketOptions",
    "CustomBatching",
    "ChunkingOptions",
    "ChunkStream",
    "check_limit_of_function",
    "DropLast",
    "Limit",
    "OnlineShuffleOptions",
    "parse_chunking",
    "NON_DATA_KEYS",
]

#: Limit per data key, or one for all keys. A callable is called per sequence with keywords epoch, seq_idx, epoch_continuous.
Limit = int | float | Mapping[str, Any] | Callable[..., Any] | None
DropLast = Literal[False, True, "incomplete"]

#: Tasks that load data.
_DATA_TASKS = ("train", "eval", "forward", "initialize_model")

declare(
    Option(
        "batch_size",
        "int | dict[str, int] | callable | None",
        1,
        "Limit of num_seqs x max length (padding included) of a batch, for each data key or for the keys of a dict. "
        "None: no limit. A single longer sequence makes its own batch.",
        tasks=_DATA_TASKS,
    ),
    Option(
        "batch_size_train",
        "as batch_size",
        None,
        "As batch_size, only for training.",
        tasks=("train", "initialize_model"),
    ),
    Option(
        "batch_size_dev",
        "as batch_size",
        None,
        "As batch_size, only for evaluation and forwarding.",
        tasks=_DATA_TASKS,
    ),
    Option(
        "packed_batch_size",
        "int | dict[str, int] | callable | None",
        None,
        "Limit of the sum of the lengths in a batch (without padding).",
        tasks=_DATA_TASKS,
    ),
    Option(
        "max_seqs",
        "int | callable | None",
        -1,
        "Maximal number of sequences in a batch. -1 or None: no limit.",
        tasks=_DATA_TASKS,
    ),
    Option(
        "batch_drop_last",
        'bool | "incomplete"',
        False,
        "True: the last batch of each pass (of each worker) is never given, even if it is full, in training, "
        'evaluation and forwarding alike (as the peers do). "incomplete": only in training, and only if more sequences '
        "would have fitted into the last batch and it is not the only one.",
        aliases=("batching_drop_last",),
        tasks=_DATA_TASKS,
    ),
    Option(
        "min_seq_length",
        "int | float | dict | None",
        None,
        "Drop sequences that are shorter, in any data key or in the keys of a dict.",
        tasks=_DATA_TASKS,
    ),
    Option(
        "max_seq_length",
        "int | float | dict | None",
        None,
        "Drop sequences that are longer, in any data key or in the keys of a dict.",
        tasks=_DATA_TASKS,
    ),
    Option(
        "allow_skipping_seqs_in_forward",
        "bool | None",
        None,
        "Whether min_seq_length and max_seq_length may drop sequences in the forward task. "
        "Unset: they may, with a warning. False: setting them is an error then.",
        tasks=("forward",),
    ),
    Option(
        "online_shuffle_batches",
        "int | dict",
        None,
        "Shuffle complete batches in blocks of this number, in training. As dict: buffer_size, seed.",
        tasks=("train", "initialize_model"),
    ),
    Option(
        "packed_tensors",
        "bool | dict",
        False,
        "Packed instead of padded batches.",
        status="later",
        instead="Batches are padded; use max_seqs and a sorted seq_ordering to have little padding",
    ),
    Option(
        "cache_size",
        'str, e.g. "10G"',
        None,
        "Cache of the peers' HDF dataset; data is read in blocks here.",
        status="ignored",
    ),
)


@dataclasses.dataclass(frozen=True)
class OnlineShuffleOptions:
    """
    Shuffling of batches.

    :param buffer_size: batches in a block
    :param seed: None: the seed of the loader
    """

    buffer_size: int
    seed: int | None = None

    @classmethod
    def parse(cls, value: Any) -> OnlineShuffleOptions | None:
        """
        :param value: of option online_shuffle_batches. Any: of the user
        :return: None: off
        :raises OptionError: invalid
        """
        if value is None or isinstance(value, cls):
            return value
        opts = value if isinstance(value, Mapping) else {"buffer_size": value}
        size, seed = opts.get("buffer_size"), opts.get("seed")
        if (
            not isinstance(size, int)
            or isinstance(size, bool)
            or size < 1
            or not isinstance(seed, (int, type(None)))
            or set(opts) - {"buffer_size", "seed"}
        ):
            raise OptionError(
                "online_shuffle_batches",
                expected='int >= 1, or dict with "buffer_size" and optionally "seed"',
                got=value,
            )
        return cls(size, seed)


def check_limit_of_function(name: str, value: Any) -> Limit:
    """
    :param name: of the limit
    :param value: what the user's function gave for a sequence
    :return: the limit, None: no limit
    :raises OptionError: it is none
    """
    value = value.item() if isinstance(value, numpy.generic) else value
    if name == "max_seqs" and to_float(value) is not None and value < 0:
        return None
    try:
        return _check_limit(name, value, with_dict=name != "max_seqs")
    except OptionError as exc:
        expected = "the function to return int > 0" + (", a dict of data key to int" if name != "max_seqs" else "")
        raise OptionError(name, expected=f"{expected}, or None", got=value) from exc


def _check_limit(name: str, value: Any, *, with_dict: bool = True, unlimited: tuple[Any, ...] = (None,)) -> Limit:
    """Any: value of the user"""
    if callable(value):
        check_takes_any_keyword(name, value)
        return value
    if value is None or value in unlimited:
        return None
    expected = "int > 0" + (", dict of data key to int" if with_dict else "") + ", function, or None"
    todo = f"Set e.g. {name} = {'10_000' if with_dict else '100'}"
    if with_dict and isinstance(value, Mapping):
        for key, limit in value.items():
            if limit is not None and not (isinstance(limit, (int, float)) and limit > 0):
                raise OptionError(name, expected=f"int > 0 for the data key {key!r}", got=limit, todo=todo)
        return {key: limit for key, limit in value.items() if limit is not None}
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise OptionError(name, expected=expected, got=value, todo=todo)
    return value


def _check_length(name: str, value: Any) -> int | float | Mapping[str, Any] | None:  # Any: value of the user
    if value is None:
        return None
    values = value.values() if isinstance(value, Mapping) else [value]
    if any(isinstance(v, bool) or not isinstance(v, (int, float, type(None))) for v in values):
        raise OptionError(name, expected="int, float, dict of data key to int, or None", got=value)
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else value


@dataclasses.dataclass(frozen=True)
class BatchingOptions:
    """
    From sequences to batches. Lengths are in frames; limits are inclusive.

    :param batch_size: limit of num_seqs x max length; int: for every key; dict: for its keys; None: no limit
    :param max_seqs: None: no limit
    :param packed_batch_size: limit of the sum of the lengths
    :param drop_last: see option batch_drop_last
    :param min_seq_length: drop sequences shorter than this
    :param max_seq_length: drop sequences longer than this
    :param chunking: None: no chunks
    :param allow_skipping_seqs_in_forward: None: allowed, but worth a warning
    :param online_shuffle: None: batches come in their order
    :param count_scalars: values without a time axis count as length 1 for the limits, as in Mini-RETURNN; else not at all
    :param custom: other way to batches than by batch_size, max_seqs, packed_batch_size. None: by these
    """

    batch_size: Limit = 1
    max_seqs: int | Callable[..., Any] | None = None
    packed_batch_size: Limit = None
    drop_last: DropLast = False
    min_seq_length: int | float | Mapping[str, Any] | None = None
    max_seq_length: int | float | Mapping[str, Any] | None = None
    chunking: ChunkingOptions | None = None
    allow_skipping_seqs_in_forward: bool | None = None
    online_shuffle: OnlineShuffleOptions | None = None
    count_scalars: bool = True
    custom: BucketOptions | CustomBatching | None = None

    def __post_init__(self) -> None:
        """:raises ConfigError: an invalid value"""
        drop_last = self.drop_last
        if drop_last != "incomplete" and drop_last not in (False, True, None):
            raise OptionError("batch_drop_last", expected='bool or "incomplete"', got=drop_last)
        for name, value in (
            ("batch_size", _check_limit("batch_size", self.batch_size)),
            ("max_seqs", _check_limit("max_seqs", self.max_seqs, with_dict=False, unlimited=(None, -1))),
            ("packed_batch_size", _check_limit("packed_batch_size", self.packed_batch_size)),
            ("drop_last", drop_last if drop_last == "incomplete" else bool(drop_last)),
            ("min_seq_length", _check_length("min_seq_length", self.min_seq_length)),
            ("max_seq_length", _check_length("max_seq_length", self.max_seq_length)),
            ("chunking", parse_chunking(self.chunking)),
            ("online_shuffle", OnlineShuffleOptions.parse(self.online_shuffle)),
            ("custom", parse_custom_batching(self.custom)),
        ):
            object.__setattr__(self, name, value)
        if self.custom is not None and self.drop_last:
            raise ConfigError(
                'options "torch_batching" and "batch_drop_last" are both set, but which batch is the last one is only '
                "defined for batches by batch_size and max_seqs. Remove batch_drop_last."
            )

    @classmethod
    def from_config(
        cls, config: Config | Mapping[str, Any], *, role: Literal["train", "eval", "forward"] = "train"
    ) -> BatchingOptions:
        """
        :param config: Config or plain dict
        :param role: what the data is used for
        :raises ConfigError: invalid values, or contradicting ones
        """
        specific = "batch_size_train" if role == "train" else "batch_size_dev"
        custom = read_custom_batching(config)
        limits: dict[str, Any] = {}
        if custom is None:  # else they are shown as options without effect
            limits["batch_size"] = read(config, specific if is_given(config, specific) else "batch_size")
            limits["max_seqs"] = read(config, "max_seqs")
            limits["packed_batch_size"] = read(config, "packed_batch_size")
            if is_mainline(config) and not any(is_given(config, name) for name in (specific, *limits)):
                raise ConfigError(
                    'option "batch_size" is not set. Set e.g. batch_size = 10_000 (frames in a batch, padding included), or '
                    "max_seqs."
                )
            if is_mainline(config) and not any(is_given(config, name) for name in (specific, "batch_size")):
                limits["batch_size"] = None  # Mini-RETURNN's default is one sequence per batch
        return cls(
            **limits,
            count_scalars=not is_mainline(config),
            custom=custom,
            drop_last=read(config, "batch_drop_last"),
            min_seq_length=read(config, "min_seq_length"),
            max_seq_length=read(config, "max_seq_length"),
            chunking=read_chunking(config),
            allow_skipping_seqs_in_forward=read(config, "allow_skipping_seqs_in_forward"),
            online_shuffle=OnlineShuffleOptions.parse(read(config, "online_shuffle_batches")),
        )
