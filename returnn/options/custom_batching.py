"""
The option torch_batching: other ways from sequences to batches than limits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from returnn.errors import ConfigError, OptionError
from returnn.options.registry import Option, declare, read

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["BucketOptions", "CustomBatching", "read_custom_batching", "parse_custom_batching"]

_BUCKET_CLASS = "BucketOrderingIterDataPipe"

declare(
    Option(
        "torch_batching",
        "dict | callable(dataset=, train=, **kwargs) | None",
        None,
        'Own way from sequences to batches, instead of batch_size and max_seqs: dict with "class", a name of '
        "returnn.torch.data.pipeline, and its arguments, e.g. "
        '{"class": "BucketOrderingIterDataPipe", "buckets": [(max length, num seqs), ...], "length_key": "data"}; or a '
        "function of an iterable dataset of sequences that gives an iterable dataset of lists of sequences.",
        tasks=("train", "eval", "forward", "initialize_model"),
    ),
)


@dataclasses.dataclass(frozen=True)
class BucketOptions:
    """
    Batches of sequences of similar length.

    :param buckets: pairs of maximal length in frames and number of sequences of a full bucket, sorted
    :param length_key: the length is the first axis of this data key
    :param random_bucket_prob: with this probability, a sequence goes to a random one of all buckets it fits into
    :param seed: for that. None: who uses it decides
    """

    buckets: tuple[tuple[int, int], ...]
    length_key: str
    random_bucket_prob: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """:raises ConfigError: invalid"""
        try:
            buckets = tuple(sorted((int(max_len), int(num)) for max_len, num in self.buckets))
        except (TypeError, ValueError):
            buckets = ()
        if not buckets or any(max_len <= 0 or num <= 0 for max_len, num in buckets):
            raise ConfigError(
                f"buckets: expected pairs of (max length > 0, num seqs > 0), at least one, got {self.buckets!r}."
            )
        if len({max_len for max_len, _ in buckets}) != len(buckets):
            raise ConfigError(f"buckets: each max length may occur only once, got {list(self.buckets)!r}.")
        if not isinstance(self.length_key, str):
            raise ConfigError(f"length_key of the buckets: expected a data key, got {self.length_key!r}.")
        if not isinstance(self.random_bucket_prob, (int, float)) or not 0 <= self.random_bucket_prob <= 1:
            raise ConfigError(f"random_bucket_prob: expected a number from 0 to 1, got {self.random_bucket_prob!r}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, (int, type(None))):
            raise ConfigError(f"seed of the buckets: expected an int or None, got {self.seed!r}.")
        object.__setattr__(self, "buckets", buckets)


@dataclasses.dataclass(frozen=True)
class CustomBatching:
    """
    A class of the pipeline module with its arguments, or a function of the user. Resolved where torch may be imported.

    :param function: None: see class_name
    :param class_name: None: see function
    :param arguments: of the class. Any: of many types
    """

    function: Callable[..., Any] | None = None
    class_name: str | None = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def parse_custom_batching(value: Any) -> BucketOptions | CustomBatching | None:
    """
    :param value: of option torch_batching. Any: of the user
    :return: None: off
    :raises ConfigError: invalid
    """
    if value is None or isinstance(value, (BucketOptions, CustomBatching)):
        return value
    if callable(value):
        return CustomBatching(function=value)
    if not isinstance(value, Mapping) or not isinstance(value.get("class"), str):
        raise OptionError(
            "torch_batching",
            expected='dict with "class", or function(dataset=, train=, **kwargs)',
            got=value,
            todo='Set e.g. {"class": "BucketOrderingIterDataPipe", "buckets": [(500, 40), (2000, 10)], "length_key": "data"}',
        )
    arguments = {key: v for key, v in value.items() if key != "class"}
    if value["class"] != _BUCKET_CLASS:
        return CustomBatching(class_name=value["class"], arguments=arguments)
    try:
        return BucketOptions(**arguments)
    except (TypeError, ConfigError) as exc:  # TypeError: wrong or missing keys
        fields = ", ".join(f.name for f in dataclasses.fields(BucketOptions))
        raise OptionError(
            "torch_batching", expected=f"{_BUCKET_CLASS} with {fields}", got=value, todo=str(exc)
        ) from None


def read_custom_batching(config: Config | Mapping[str, Any]) -> BucketOptions | CustomBatching | None:
    """
    :param config: Config or plain dict. Any: options
    :return: None: batches are made by limits
    :raises ConfigError: invalid
    """
    return parse_custom_batching(read(config, "torch_batching"))
