"""
The position of a loader in a pass, and its state in a form that safe loading of checkpoints accepts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import torch

from returnn.datasets._loading.address import ResumePoint, SeqAddress
from returnn.datasets._loading.generators import Generators
from returnn.datasets._loading.source import Block, SourceOptions
from returnn.datasets.basic import Dataset
from returnn.datasets.fingerprint import constructor_arguments
from returnn.errors import DatasetError
from returnn.options.batching import OnlineShuffleOptions

__all__ = [
    "BufferPosition",
    "LoaderState",
    "SourcePosition",
    "SourceProgress",
    "describe_options",
    "describe_order",
    "from_plain",
    "num_workers_for_rest",
    "option_changes",
    "to_plain",
]

#: Of the state. Another one cannot be read.
_VERSION = 1
_ARRAY = "__ndarray__"
#: Options of datasets -> values that are the same as none. (random_seed_offset is filled in by ranks.)
_ORDER_OPTIONS: Mapping[str, tuple[object, ...]] = {
    "seq_ordering": (None, "default"),
    "partition_epoch": (None, 0, 1),
    "repeat_epoch": (None, 0, 1),
    "fixed_random_seed": (None,),
    "unique_seq_tags": (None, False),
    "seq_order_control_dataset": (None,),
}
_MAX_DEPTH = 8
_MAX_CHILDREN = 1000


def to_plain(value: Any, *, what: str) -> Any:
    """
    :param value: of None, bools, numbers, strings, bytes, tensors, arrays, and lists, tuples, dicts of these. Any: of users
    :param what: for the error
    :return: without arrays and numpy's scalars: what ``torch.load(weights_only=True)`` accepts. Any: as given
    :raises DatasetError: there is something else in it
    """
    if value is None or type(value) in (bool, int, float, str, bytes, torch.Tensor):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, numpy.generic):
        value = numpy.asarray(value)
    if isinstance(value, numpy.ndarray) and value.dtype.kind in "biufc":
        native = numpy.ascontiguousarray(value.astype(value.dtype.newbyteorder("="), copy=False))
        # Bytes: torch does not have all dtypes of numpy.
        content = torch.from_numpy(native.reshape(-1).view(numpy.uint8).copy())
        return {_ARRAY: content, "dtype": native.dtype.str, "shape": list(value.shape)}
    if isinstance(value, (list, tuple)):
        items = [to_plain(item, what=what) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        return {to_plain(key, what=what): to_plain(v, what=what) for key, v in value.items()}
    if isinstance(value, (int, float)):  # of a subclass, as the next ones
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, (str, bytes)):
        return str(value) if isinstance(value, str) else bytes(value)
    raise DatasetError(
        f"{what}: expected numbers, strings, lists, tuples, dicts, tensors and numpy arrays of numbers, which can be saved "
        f"in a checkpoint, got {type(value).__name__} {repr(value)[:80]}."
    )


def from_plain(value: Any) -> Any:
    """:param value: of :func:`to_plain`. Any: as there. :return: what was given there. Any: as there"""
    if isinstance(value, Mapping):
        if _ARRAY in value:
            content = value[_ARRAY].cpu().numpy()
            array = numpy.frombuffer(content.tobytes(), dtype=numpy.dtype(value["dtype"])).reshape(value["shape"])
            return array.copy()
        return {key: from_plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        items = [from_plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


@dataclasses.dataclass
class SourcePosition:
    """
    What was taken from the sources of a pass.

    :param counts: batches by worker
    :param addresses: by worker: the newest known one. None: not known
    :param last_worker: whose batch was the last one; None: nothing was taken
    """

    counts: list[int]
    addresses: list[SeqAddress | None]
    last_worker: int | None = None

    @classmethod
    def at_start(cls, num_sources: int) -> SourcePosition:
        """:param num_sources: number of workers, or 1 for the main process"""
        return cls([0] * num_sources, [None] * num_sources)

    @property
    def is_start(self) -> bool:
        """:return: whether nothing was taken"""
        return not any(self.counts)

    @property
    def next_worker(self) -> int:
        """:return: which gives the next batch, if it has one"""
        return 0 if self.last_worker is None else (self.last_worker + 1) % len(self.counts)

    def resume_points(self, num_seqs: int | None, generators: Generators | None) -> list[ResumePoint]:
        """
        :param num_seqs: of the epoch
        :param generators: of this process at the start of the pass, if it reads
        :return: by worker
        """
        return [
            ResumePoint(count, address, num_seqs, generators)
            for count, address in zip(self.counts, self.addresses, strict=True)
        ]

    def dealt_to(self, num_sources: int) -> SourcePosition:
        """
        :param num_sources: other number of workers, if batches are formed in the main order
        :return: the same position
        """
        total = sum(self.counts)
        counts = [len(range(worker, total, num_sources)) for worker in range(num_sources)]
        # All of them form all batches.
        known = [address for address in self.addresses if address is not None]
        newest = max(known, key=lambda address: address.batch_idx, default=None)
        return SourcePosition(counts, [newest] * num_sources, (total - 1) % num_sources if total else None)

    def to_plain(self) -> dict[str, Any]:
        """:return: for a checkpoint. Any: plain values"""
        addresses = [None if address is None else _address_to_plain(address) for address in self.addresses]
        return {"counts": list(self.counts), "addresses": addresses, "last_worker": self.last_worker}

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> SourcePosition:
        """:param value: of :func:`to_plain`. Any: as there"""
        addresses = [None if address is None else _address_from_plain(address) for address in value["addresses"]]
        return cls(list(value["counts"]), addresses, value["last_worker"])


def _of_generators(generators: Generators | None) -> Any:  # Any: plain values
    return None if generators is None else to_plain(tuple(generators), what="random generators")


def _to_generators(value: Any) -> Generators | None:  # Any: of _of_generators
    return None if value is None else Generators(*from_plain(value))


def _address_to_plain(address: SeqAddress) -> dict[str, Any]:
    dropped = [[reason, key, count] for (reason, key), count in address.dropped.items()]
    own = to_plain(address.dataset_state, what="state_dict() of the dataset")
    return {
        **address._asdict(),
        "dropped": dropped,
        "generators": _of_generators(address.generators),
        "dataset_state": own,
    }


def _address_from_plain(value: Mapping[str, Any]) -> SeqAddress:
    return SeqAddress(
        value["seq_idx"],
        value["chunk_idx"],
        value["num_draws"],
        value["batch_idx"],
        {(reason, key): count for reason, key, count in value["dropped"]},
        _to_generators(value["generators"]),
        from_plain(value["dataset_state"]),
    )


class SourceProgress:
    """Follows what is taken from the sources, block by block."""

    def __init__(self, start: SourcePosition):
        """:param start: where the pass begins or goes on"""
        self._before = start
        self._block: Block | None = None

    def enter(self, block: Block) -> None:
        """:param block: that is given now. All of the one before is taken"""
        if self._block is not None:
            self._before = self.at(len(self._block.batches))
        self._block = block

    def at(self, num_taken: int) -> SourcePosition:
        """
        :param num_taken: of the newest block
        :return: position behind them
        """
        before, block = self._before, self._block
        position = SourcePosition(list(before.counts), list(before.addresses), before.last_worker)
        if block is None or not num_taken:
            return position
        worker = block.worker
        position.last_worker = worker
        position.counts[worker] += num_taken
        for i in range(num_taken, 0, -1):
            address = block.infos[i - 1].next
            if address is not None:
                position.addresses[worker] = address
                break
        return position


@dataclasses.dataclass(frozen=True)
class BufferPosition:
    """
    Position in the shuffling buffer. That of the sources is where its first batch was taken.

    :param num_buffers: full ones before
    :param num_given: batches of this one
    :param generators: of this process, if it reads, when the buffer began to be filled: the first sequence of its first batch
        was read already, and the training may have drawn since. None: not known
    """

    num_buffers: int = 0
    num_given: int = 0
    generators: Generators | None = None

    def to_plain(self) -> dict[str, Any]:
        """:return: for a checkpoint. Any: plain values"""
        return {
            "num_buffers": self.num_buffers,
            "num_given": self.num_given,
            "generators": _of_generators(self.generators),
        }

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> BufferPosition:
        """:param value: of :func:`to_plain`. Any: as there"""
        return cls(value["num_buffers"], value["num_given"], _to_generators(value["generators"]))


@dataclasses.dataclass
class LoaderState:
    """
    All that a loader needs to go on in a pass.

    :param epoch: of the pass
    :param options: what the batches depend on, as text
    :param num_workers: 0: the main process read
    :param source: position of the sources
    :param buffer: None: no shuffling of batches
    :param is_finished: the pass has ended
    :param num_seqs: of the epoch as the sources know it; None: not known
    :param generators: of this process at the start of the pass, if it read
    :param stats: of the pass so far. Any: plain values
    """

    epoch: int
    options: dict[str, str]
    num_workers: int
    source: SourcePosition
    buffer: BufferPosition | None
    is_finished: bool
    num_seqs: int | None
    generators: Generators | None
    stats: dict[str, Any]

    @property
    def is_start(self) -> bool:
        """:return: whether no batch was given"""
        return not self.is_finished and self.source.is_start and not (self.buffer and self.buffer.num_given)

    def to_plain(self) -> dict[str, Any]:
        """:return: for a checkpoint. Any: plain values"""
        buffer = None if self.buffer is None else self.buffer.to_plain()
        shallow = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            "version": _VERSION,
            **shallow,
            "source": self.source.to_plain(),
            "buffer": buffer,
            "generators": _of_generators(self.generators),
        }

    @classmethod
    def from_plain(cls, value: Mapping[str, Any], *, where: str) -> LoaderState:
        """
        :param value: of :func:`to_plain`. Any: as there
        :param where: for the error
        :raises DatasetError: it is something else
        """
        if not isinstance(value, Mapping) or value.get("version") != _VERSION:
            got = value.get("version") if isinstance(value, Mapping) else type(value).__name__
            raise DatasetError(
                f"{where}: the saved position in the data has version {got!r}, but only {_VERSION} can be read. "
                "It was written by another version of the program: start the epoch again."
            )
        try:
            fields = {f.name: value[f.name] for f in dataclasses.fields(cls)}
            fields["source"] = SourcePosition.from_plain(fields["source"])
            if fields["buffer"] is not None:
                fields["buffer"] = BufferPosition.from_plain(fields["buffer"])
            fields["generators"] = _to_generators(fields["generators"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise DatasetError(
                f"{where}: the saved position in the data is broken ({type(exc).__name__}: {exc}). Start the epoch again."
            ) from exc


def describe_options(options: SourceOptions, shuffling: OnlineShuffleOptions | None) -> dict[str, str]:
    """
    :param options: of the loader
    :param shuffling: likewise
    :return: all that batches depend on, but the data: option -> value as text
    """
    limits = options.limits
    values = {
        "random_seed": options.seed,
        "worker_batching": "global" if options.is_global else "sharded",
        "number of ranks": options.num_ranks,
        "rank": options.rank,
        "batch_size": limits.batch_size,
        "max_seqs": limits.max_seqs,
        "packed_batch_size": limits.packed_batch_size,
        "batch_drop_last": limits.drop_last,
        "count_scalars": limits.count_scalars,
        "min_seq_length": options.len_filter.min_seq_length,
        "max_seq_length": options.len_filter.max_seq_length,
        "chunking": options.chunking,
        "torch_batching": options.custom,
        "online_shuffle_batches": shuffling,
    }
    return {name: _as_text(value) for name, value in values.items()}


def describe_order(dataset: object) -> dict[str, str]:
    """
    :param dataset: of the loader
    :return: its options, and those of datasets in it, that the order of the sequences depends on: path of the option -> value
        as text; without those which have no effect. Empty: of a class of the user that does not keep its arguments
    """
    return dict(_order_options(dataset, path="", depth=0))


def _order_options(value: object, *, path: str, depth: int) -> Iterator[tuple[str, str]]:
    """:param value: dataset, or options of one"""
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, Dataset):
        value = constructor_arguments(value)
    if not isinstance(value, Mapping):
        return
    for key, option in value.items():
        name = f"{path}{key}"
        if key in _ORDER_OPTIONS:
            if option not in _ORDER_OPTIONS[key]:
                yield name, _as_text(option)
        elif isinstance(option, (Mapping, Dataset)):
            yield from _order_options(option, path=f"{name}/", depth=depth + 1)
        elif isinstance(option, (list, tuple)) and len(option) <= _MAX_CHILDREN:
            for i, item in enumerate(option):
                yield from _order_options(item, path=f"{name}/{i}/", depth=depth + 1)


def _as_text(value: Any) -> str:  # Any: of options
    """:return: the same in each run of the program"""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_as_text(value[key])}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_as_text, value)) + "]"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _as_text({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    batching = getattr(value, "batching", None)  # PipelineBatching
    if batching is not None:
        return _as_text(batching)
    if callable(value):
        return f"function {getattr(value, '__qualname__', type(value).__qualname__)}"
    return repr(value)


def option_changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """:return: e.g. ``batch_size was 100, is 200``"""
    names = [*old, *(name for name in new if name not in old)]
    return [
        f"{name} was {old.get(name, 'not set')}, is {new.get(name, 'not set')}"
        for name in names
        if old.get(name) != new.get(name)
    ]


def num_workers_for_rest(saved: int, now: int, *, is_global: bool) -> int:
    """
    :param saved: number of workers that began the pass
    :param now: number of workers by the options
    :param is_global: batches are formed in the main order
    :return: number of workers for the rest of the pass: so many that they make the same batches
    """
    return now if is_global or max(saved, 1) == max(now, 1) else saved
