"""
Options of chunking, in both forms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from returnn.errors import ConfigError, OptionError
from returnn.options.registry import Option, declare, read

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["ChunkStream", "ChunkingOptions", "NON_DATA_KEYS", "parse_chunking", "read_chunking"]

#: Keys of a sequence which are about the sequence, and not data of it.
NON_DATA_KEYS = ("seq_idx", "seq_tag", "num_seqs", "epoch", "complete_frac")

#: Tasks that load data.
_DATA_TASKS = ("train", "eval", "forward", "initialize_model")

declare(
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


def read_chunking(config: Config | Mapping[str, Any]) -> ChunkingOptions | None:
    """
    :param config: Config or plain dict
    :return: None: no chunking
    :raises ConfigError: invalid, or both forms which contradict
    """
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
