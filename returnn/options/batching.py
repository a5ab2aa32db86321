"""
Options of batching: limits of a batch, length filter, chunking.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from returnn.errors import ConfigError, OptionError
from returnn.options.registry import Option, declare, is_given, read

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["BatchingOptions", "ChunkingOptions", "ChunkStream", "DropLast", "Limit", "parse_chunking", "NON_DATA_KEYS"]

#: Limit per data key, or one for all keys. A callable is called per sequence with keywords epoch, seq_idx, epoch_continuous.
Limit = int | float | Mapping[str, Any] | Callable[..., Any] | None
DropLast = Literal[False, True, "incomplete"]

#: Keys of a sequence which are about the sequence, and not data of it.
NON_DATA_KEYS = ("seq_idx", "seq_tag", "num_seqs", "epoch", "complete_frac")

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
        "chunking_options",
        "dict | None",
        None,
        'Cut sequences into chunks: {"chunk_streams": {key: {"size": int, "step": int, "min_chunk_size": int}}, '
        '"random_chunk_start": bool}.',
        tasks=_DATA_TASKS,
    ),
    Option(
        "chunking",
        'int | "size:step" | (size, step) | (dict, dict) | None',
        None,
        "Older form of chunking_options: chunk size and step, for all data keys or per key.",
        tasks=_DATA_TASKS,
    ),
    Option(
        "min_chunk_size",
        "int | dict[str, int]",
        0,
        "Drop shorter chunks; belongs to chunking.",
        tasks=_DATA_TASKS,
    ),
    Option(
        "torch_batching",
        "dict | callable",
        None,
        "Own class for batching.",
        status="later",
        instead="Use batch_size and max_seqs, or returnn.torch.data.pipeline.BucketOrderingIterDataPipe in an own loop",
    ),
    Option(
        "online_shuffle_batches",
        "int | dict",
        None,
        "Shuffle batches in a buffer.",
        status="later",
        instead='Use a seq_ordering with randomness, e.g. "laplace:.1000"',
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
class ChunkStream:
    """Chunking of one data key, in frames. Chunks shorter than ``min_chunk_size`` are dropped."""

    size: int
    step: int
    min_chunk_size: int = 0


@dataclasses.dataclass(frozen=True)
class ChunkingOptions:
    """
    How sequences are cut into chunks.

    :param streams: per data key. None: all data keys (with a time axis) as ``default`` says
    :param default: for ``streams`` None
    :param random_start: the first chunk starts at a random frame below the step, drawn per sequence
    """

    streams: Mapping[str, ChunkStream] | None
    default: ChunkStream | None = None
    random_start: bool = False

    def for_keys(self, keys: list[str]) -> dict[str, ChunkStream]:
        """
        :param keys: data keys with a time axis which the data has
        :return: the chunked keys
        :raises ConfigError: a key to chunk is not in the data
        """
        if self.streams is None:
            assert self.default is not None, "ChunkingOptions: neither streams nor default"
            return {key: self.default for key in keys if key not in NON_DATA_KEYS}
        missing = [key for key in self.streams if key not in keys]
        if missing:
            raise ConfigError(
                f"chunking is configured for the data key {missing[0]!r}, which the data does not have. "
                f"Data keys with a time axis are {keys}. Correct the keys in chunking_options or chunking."
            )
        return dict(self.streams)


def _check_int(name: str, value: Any, *, minimum: int, what: str) -> int:  # Any: value of the user
    # Integral floats come from computed configs.
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        if not (isinstance(value, float) and value == int(value)):
            raise OptionError(name, expected=f"int for the {what}", got=value)
    if int(value) < minimum:
        raise OptionError(name, expected=f"int >= {minimum} for the {what}", got=value)
    return int(value)


def _parse_new_chunking(options: Any) -> ChunkingOptions:  # Any: value of the user
    name = "chunking_options"
    example = 'Set e.g. {"chunk_streams": {"data": {"size": 100, "step": 50, "min_chunk_size": 10}}}'
    if not isinstance(options, Mapping) or not isinstance(options.get("chunk_streams"), Mapping):
        raise OptionError(name, expected='dict with a dict "chunk_streams"', got=options, todo=example)
    unknown = sorted(set(options) - {"chunk_streams", "random_chunk_start"})
    if unknown:
        raise OptionError(name, expected='keys "chunk_streams", "random_chunk_start"', got=unknown[0], todo=example)
    streams = {}
    for key, stream in options["chunk_streams"].items():
        if not isinstance(stream, Mapping) or "size" not in stream or set(stream) - {"size", "step", "min_chunk_size"}:
            raise OptionError(
                name, expected=f'dict with "size", "step", "min_chunk_size" for {key!r}', got=stream, todo=example
            )
        size = _check_int(name, stream["size"], minimum=1, what=f"chunk size of {key!r}")
        step = _check_int(name, stream.get("step") or size, minimum=1, what=f"chunk step of {key!r}")
        minimum = _check_int(name, stream.get("min_chunk_size") or 0, minimum=0, what=f"min_chunk_size of {key!r}")
        streams[key] = ChunkStream(size, step, minimum)
    if not streams:
        raise OptionError(name, expected='at least one key in "chunk_streams"', got=options, todo=example)
    return ChunkingOptions(streams, random_start=bool(options.get("random_chunk_start", False)))


def _split_old_chunking(chunking: Any) -> tuple[Any, Any]:  # Any: value of the user
    """:return: size, step; each int (or str of it) or dict. step None: as size"""
    if isinstance(chunking, str):
        size, _, step = chunking.partition(":")
        return size.strip(), step.strip() or None
    if isinstance(chunking, (tuple, list)):
        if len(chunking) != 2:
            raise OptionError("chunking", expected="pair of size and step", got=chunking)
        return chunking[0], chunking[1]
    return chunking, None


def _int_or_str(name: str, value: Any, *, minimum: int, what: str) -> int:  # Any: value of the user
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            raise OptionError(name, expected=f"int for the {what}", got=value) from None
    return _check_int(name, value, minimum=minimum, what=what)


def _parse_old_chunking(chunking: Any, min_chunk_size: Any) -> ChunkingOptions | None:  # Any: values of the user
    size, step = _split_old_chunking(chunking)
    if isinstance(chunking, (str, int)) and size in (0, "0", ""):
        return None
    if isinstance(size, Mapping) != isinstance(step, Mapping) and step is not None:
        raise OptionError("chunking", expected="size and step which are both ints or both dicts", got=chunking)
    if isinstance(step, Mapping) and set(step) != set(size):
        raise OptionError("chunking", expected="the same data keys for size and step", got=chunking)

    def stream(key: str | None) -> ChunkStream:
        of = f" of {key!r}" if key else ""
        key_size = size[key] if key else size
        key_step = step[key] if key and step is not None else step
        key_min = min_chunk_size
        if isinstance(min_chunk_size, Mapping):
            if key not in min_chunk_size:
                raise OptionError(
                    "min_chunk_size", expected=f"int, or dict with the chunked key {key!r}", got=min_chunk_size
                )
            key_min = min_chunk_size[key]
        key_size = _int_or_str("chunking", key_size, minimum=1, what="chunk size" + of)
        return ChunkStream(
            size=key_size,
            step=_int_or_str("chunking", key_step or key_size, minimum=1, what="chunk step" + of),
            min_chunk_size=_int_or_str("min_chunk_size", key_min or 0, minimum=0, what="limit" + of),
        )

    if isinstance(size, Mapping):
        return ChunkingOptions({key: stream(key) for key in size}) if size else None
    return ChunkingOptions(None, default=stream(None))


def parse_chunking(chunking: Any, *, min_chunk_size: Any = 0) -> ChunkingOptions | None:  # Any: values of the user
    """
    :param chunking: either form: the dict with "chunk_streams", or size with optional step as int, str, pair, dict(s)
    :param min_chunk_size: belongs to the older form
    :return: None: no chunking
    :raises ConfigError: invalid form
    """
    if not chunking:
        return None
    if isinstance(chunking, ChunkingOptions):
        return chunking
    if isinstance(chunking, Mapping) and "chunk_streams" in chunking:
        return _parse_new_chunking(chunking)
    return _parse_old_chunking(chunking, min_chunk_size)


def _read_chunking(config: Config | Mapping[str, Any]) -> ChunkingOptions | None:
    new_form = read(config, "chunking_options")
    old_form = read(config, "chunking")
    parsed_new = _parse_new_chunking(new_form) if new_form else None
    parsed_old = parse_chunking(old_form, min_chunk_size=read(config, "min_chunk_size"))
    if parsed_new and parsed_old and parsed_new != parsed_old:
        raise ConfigError(
            f'options "chunking_options" ({new_form!r}) and "chunking" ({old_form!r}) are both set, and contradict. '
            'Set only "chunking_options".'
        )
    return parsed_new or parsed_old


def _check_limit(name: str, value: Any, *, with_dict: bool = True, unlimited: tuple[Any, ...] = (None,)) -> Limit:
    """Any: value of the user"""
    if value is None or callable(value) or value in unlimited:
        return None if not callable(value) else value
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
    """

    batch_size: Limit = 1
    max_seqs: int | Callable[..., Any] | None = None
    packed_batch_size: Limit = None
    drop_last: DropLast = False
    min_seq_length: int | float | Mapping[str, Any] | None = None
    max_seq_length: int | float | Mapping[str, Any] | None = None
    chunking: ChunkingOptions | None = None
    allow_skipping_seqs_in_forward: bool | None = None

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
        ):
            object.__setattr__(self, name, value)

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
        return cls(
            batch_size=read(config, specific if is_given(config, specific) else "batch_size"),
            max_seqs=read(config, "max_seqs"),
            packed_batch_size=read(config, "packed_batch_size"),
            drop_last=read(config, "batch_drop_last"),
            min_seq_length=read(config, "min_seq_length"),
            max_seq_length=read(config, "max_seq_length"),
            chunking=_read_chunking(config),
            allow_skipping_seqs_in_forward=read(config, "allow_skipping_seqs_in_forward"),
        )
