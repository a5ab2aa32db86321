"""
MultiProcDataset: reads a dataset in several processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy

from returnn.datasets._basic.jump import reads_as_its_class
from returnn.datasets._procs import remote_info
from returnn.datasets._procs.dataset_client import RemoteDataset, dump_dataset
from returnn.datasets._procs.dataset_server import DatasetInfo, DatasetJob, InitOptions, InitResult
from returnn.datasets.basic import Dataset, DatasetSeq
from returnn.errors import DatasetError, DatasetOptionError, describe
from returnn.log import log
from returnn.util.markers import OptionalNotImplementedError

__all__ = ["MultiProcDataset"]

# Options of Dataset that mean the order, which the wrapped dataset makes.
_ORDER_OPTIONS = (
    "seq_ordering partition_epoch repeat_epoch seq_list_filter_file unique_seq_tags seq_order_seq_lens_file"
).split()


class MultiProcDataset(remote_info.RemoteInfoDataset):
    """
    Each of the processes has a copy of the dataset and reads every W-th sequence of the epoch, ahead of time. The
    result is the same as that of the dataset alone, in the same order; random draws per sequence included.

    This is for data that is slow to load or to decode. The loader workers of the config option ``num_workers_per_gpu``
    do the same for each dataset; use one or the other.
    """

    def __init__(
        self,
        dataset: Any,
        num_workers: int,
        buffer_size: int,
        *,
        sharding_method: Literal["seq_order", "dedicated"] = "seq_order",
        _meta_info_cache: DatasetInfo | None = None,
        **kwargs: Any,
    ) -> None:
        """
        :param dataset: dict (Any: or another form that init_dataset takes)
        :param num_workers: processes
        :param buffer_size: sequences that each process reads ahead (small ones: more, up to 128 kB)
        :param sharding_method: "seq_order": the order is made by the dataset as usual. "dedicated": each process makes
            the order of its own shard (the options _num_shards and _shard_index of the dataset), so the result has
            another order; also for datasets that cannot tell their order
        :param _meta_info_cache: set in copies
        :param kwargs: options of Dataset; they are also defaults for the dataset. Any: each has its own type
        :raises DatasetOptionError: for an invalid value
        """
        for option, value in (("num_workers", num_workers), ("buffer_size", buffer_size)):
            if not isinstance(value, (int, numpy.integer)) or isinstance(value, bool) or value <= 0:
                raise DatasetOptionError(
                    describe(
                        f'option "{option}" is invalid',
                        where=f"MultiProcDataset {kwargs.get('name')!r}",
                        expected="int > 0",
                        got=value,
                    )
                )
        if sharding_method not in ("seq_order", "dedicated"):
            raise DatasetOptionError(
                describe(
                    'option "sharding_method" is invalid',
                    where=f"MultiProcDataset {kwargs.get('name')!r}",
                    expected='"seq_order" or "dedicated"',
                    got=sharding_method,
                )
            )
        super().__init__(
            _meta_info_cache=_meta_info_cache,
            **{key: value for key, value in kwargs.items() if key not in _ORDER_OPTIONS},
        )
        self.dataset = dataset
        self.num_workers = int(num_workers)
        self.buffer_size = int(buffer_size)
        self._sharding_method = sharding_method
        self._child_defaults = {key: value for key, value in kwargs.items() if key != "name"}
        self._workers: list[RemoteDataset] = []
        self._order: numpy.ndarray | None = None
        self._positions = range(0)  # in the order of the dataset, of the sequences of this epoch
        self._next_idx = 0
        self._can_jump = False
        self._max_frac: float | None = None
        self._active: list[RemoteDataset] = []  # dedicated: those that have more
        self._turn = 0
        self._failure: BaseException | None = None  # of this epoch
        if sharding_method == "dedicated" and isinstance(dataset, Dataset):
            raise DatasetOptionError(
                f"{self._where()}: sharding_method 'dedicated' needs the dataset as dict, as each process gets its own "
                "shard, got a Dataset instance."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        create, (cls, kwargs, state) = super().__reduce__()
        # Only what was given: the rest would override the defaults of the wrapped dataset.
        own = ("name", "dataset", "num_workers", "buffer_size", "sharding_method", "_meta_info_cache")
        kwargs = {key: value for key, value in kwargs.items() if key in own}
        return create, (cls, {**kwargs, **self._child_defaults}, state)

    # ---- processes

    def _job(self, worker: int) -> DatasetJob:
        defaults = {**self._child_defaults, "name": f"{self.name}_child"}
        extra: dict[str, Any] = {}
        if self._sharding_method == "dedicated":
            # Of the shard of this dataset.
            extra = {
                "_num_shards": self._num_shards * self.num_workers,
                "_shard_index": self._shard_index * self.num_workers + worker,
            }
        return DatasetJob(self.dataset, extra, defaults, self.buffer_size, self._where(), worker)

    def _where(self) -> str:
        return f"{type(self).__name__} {self.name!r}"

    def _get_workers(self, num: int) -> list[RemoteDataset]:
        """:return: at least so many processes"""
        if self._workers and not self._workers[0].is_own:  # a fork of the process that started them
            self._workers = []
        for i in range(len(self._workers), num):
            payload = dump_dataset(self._job(i))
            name = f"process {i + 1} of {self.num_workers}"
            self._workers.append(RemoteDataset(payload, name=name, where=self._where()))
        return self._workers

    def close(self) -> None:
        """End the processes. They start again when needed."""
        workers, self._workers = self._workers, []
        if workers and workers[0].is_own:
            for worker in workers:
                worker.hang_up()
            for worker in workers:
                worker.close()

    def _fetch_info(self) -> DatasetInfo:
        is_idle = not self._workers
        info: DatasetInfo = self._call_worker("get_info")
        if is_idle:  # maybe only copies of this dataset will be read
            self.close()
        return info

    def _call_worker(self, method: str, *args: Any) -> Any:
        try:
            return getattr(self._get_workers(1)[0], method)(*args)
        except BaseException:
            self.close()
            raise

    # ---- order

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """
        See :func:`Dataset.init_seq_order`. Without an epoch, list and order there are no sequences.

        :raises DatasetError: the dataset cannot tell its order
        """
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self._order = None
        self._positions = range(0)
        self._next_idx = 0
        self._can_jump = False
        self._max_frac = None
        self._failure = None
        if epoch is None and seq_list is None and seq_order is None:
            self._num_seqs = 0
            return True
        options = InitOptions(
            epoch,
            list(seq_list) if seq_list is not None else None,
            numpy.asarray(seq_order, dtype=numpy.int64) if seq_order is not None else None,
            random_per_seq=self._random_per_seq,
        )
        try:
            if self._sharding_method == "dedicated":
                self._init_dedicated(options)
            else:
                self._init_by_order(options)
        except BaseException:
            self.close()
            raise
        return True

    def _init_by_order(self, options: InitOptions) -> None:
        workers = self._get_workers(self.num_workers)
        first = InitOptions(options.epoch, options.seq_list, options.seq_order, options.random_per_seq, want_order=True)
        result: InitResult = workers[0].end_init(workers[0].begin_init(first))
        if result.order is None:
            raise DatasetError(
                f"{self._where()}: the dataset does not tell its order ({result.order_error}). "
                'Use sharding_method = "dedicated", if it supports shards.'
            )
        self._order = result.order
        self._positions = range(len(self._order))
        if self._is_top_level:  # of several loader workers this one reads only its shard
            self._positions = self.apply_sharding(self._positions)  # type: ignore[assignment]
        self._num_seqs = len(self._positions)
        others = InitOptions(options.epoch, None, result.order, options.random_per_seq)
        pending = [worker.begin_init(others) for worker in workers[1:]]
        self._start_streams(0)
        results = [worker.end_init(id_) for worker, id_ in zip(workers[1:], pending, strict=True)]
        self._check_num_seqs(results, len(result.order))
        self._can_jump = all(res.supports_jump for res in (result, *results))

    def _start_streams(self, start: int) -> None:
        """:param start: position in the epoch; sequence i comes from process i modulo their number"""
        num, positions = self.num_workers, self._positions
        for i, worker in enumerate(self._workers):
            first = start + (i - start) % num
            worker.start_stream(positions.start + first * positions.step, num * positions.step)

    def _check_num_seqs(self, results: list[InitResult], expected: int) -> None:
        for result in results:
            if result.num_seqs is not None and result.num_seqs != expected:
                raise DatasetError(
                    f"{self._where()}: with the order of {expected} sequences, the dataset in another process has "
                    f"{result.num_seqs}. Its init_seq_order must follow seq_order."
                )

    def _init_dedicated(self, options: InitOptions) -> None:
        if options.seq_list is not None or options.seq_order is not None:
            raise DatasetError(
                f"{self._where()}: seq_list and seq_order are not possible with sharding_method 'dedicated'. "
                "Use 'seq_order'."
            )
        workers = self._get_workers(self.num_workers)
        self._turn = 0
        if not self._info().supports_sharding:
            raise DatasetError(
                f"{self._where()}: the dataset does not support sharding, which sharding_method 'dedicated' needs."
            )
        pending = [worker.begin_init(options) for worker in workers]
        for worker in workers:
            worker.start_stream()
        self._active = list(workers)
        counts = [worker.end_init(id_).num_seqs for worker, id_ in zip(workers, pending, strict=True)]
        known = [count for count in counts if count is not None]
        if known and len(known) < len(counts):
            raise DatasetError(
                f"{self._where()}: some processes know the number of sequences, others do not: {counts}. "
                "Either all or none must."
            )
        self._num_seqs = sum(known) if known else None
        print(f"{self._where()}: sequences per process: {counts}", file=log.v5)

    def finish_epoch(self, *, free_resources: bool = False) -> None:
        """See :func:`Dataset.finish_epoch`. With free_resources, the processes drop their data."""
        super().finish_epoch(free_resources=free_resources)
        if free_resources:
            for worker in self._workers:
                if worker.is_own:
                    worker.free_resources()

    # ---- data

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        if self._failure is not None:
            raise self._failure
        if not self._workers or (self._num_seqs is not None and seq_idx >= self._num_seqs):
            return None
        try:
            if self._sharding_method == "dedicated":
                seq = self._next_dedicated(seq_idx)
            else:
                seq = self._next_by_order(seq_idx)
        except BaseException as exc:
            self._failure = exc
            self.close()
            raise
        return seq

    def _next_by_order(self, seq_idx: int) -> DatasetSeq:
        num = self.num_workers
        if self._can_jump and seq_idx - self._next_idx > num * self.buffer_size:
            self._start_streams(seq_idx)
            self._next_idx = seq_idx
        for i in range(num if seq_idx > self._next_idx else 0):  # sequences that nobody wanted
            first = self._next_idx + (i - self._next_idx) % num
            self._workers[i].skip(len(range(first, seq_idx, num)))
        self._next_idx = seq_idx + 1
        seq = self._workers[seq_idx % num].next_seq()
        if seq is None:
            raise DatasetError(
                f"{self._where()}: the dataset in {seq_idx % num + 1} of {num} processes has no sequence at position "
                f"{self._positions[seq_idx]}, its order has {len(self._order) if self._order is not None else 0}."
            )
        return self._make_seq(seq_idx, *seq)

    def _next_dedicated(self, seq_idx: int) -> DatasetSeq | None:
        """Round robin over the processes that still have some."""
        while self._next_idx <= seq_idx and self._active:
            self._turn %= len(self._active)
            seq = self._active[self._turn].next_seq()
            if seq is None:
                del self._active[self._turn]
                continue
            self._turn += 1
            self._next_idx += 1
            if self._next_idx > seq_idx:
                return self._make_seq(seq_idx, *seq)
        return None

    def _make_seq(self, seq_idx: int, features: dict[str, numpy.ndarray], tag: str, frac: float | None) -> DatasetSeq:
        if frac is not None:
            frac = self._max_frac = max(frac, self._max_frac or 0.0)
        return DatasetSeq(seq_idx, features, seq_tag=tag, complete_frac=frac)

    def supports_jump(self) -> bool:
        """
        See :func:`Dataset.supports_jump`. If the dataset does. Not with sharding_method "dedicated", where the processes
        take turns until each has no more: which one has a sequence is only known after reading those before.
        """
        return self._can_jump and reads_as_its_class(self)

    # ---- what the dataset knows

    def _require_order(self) -> numpy.ndarray:
        if self._order is None:
            raise OptionalNotImplementedError(f"{self!r}: the order is not known")
        return self._order

    def get_current_seq_order(self) -> numpy.ndarray:
        """See :func:`Dataset.get_current_seq_order`."""
        positions = self._positions
        return self._require_order()[positions.start : positions.stop : positions.step]

    def have_corpus_seq_idx(self) -> bool:
        """:return: whether get_corpus_seq_idx works"""
        return self._sharding_method == "seq_order"

    def get_estimated_seq_length(self, seq_idx: int) -> int:
        """See :func:`Dataset.get_estimated_seq_length`."""
        self._require_order()
        return int(self._call_worker("call", "get_estimated_seq_length", self._positions[seq_idx]))

    def supports_seq_order_sorting(self) -> bool:
        """:return: as the dataset"""
        return self._info().supports_seq_order_sorting

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """See :func:`Dataset.get_total_num_seqs`."""
        total = self._info().total_num_seqs
        if total is None and fast:
            raise OptionalNotImplementedError(f"{self!r}: the number of sequences is not known yet")
        return int(self._call_worker("call", "get_total_num_seqs")) if total is None else total

    def get_all_tags(self) -> list[str]:
        """See :func:`Dataset.get_all_tags`."""
        tags: list[str] = self._call_worker("call", "get_all_tags")
        return tags
