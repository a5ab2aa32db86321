"""
DistributeFilesDataset: a corpus of many files, some of them per sub epoch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy

from returnn._state import state
from returnn.datasets._basic.jump import reads_as_its_class
from returnn.datasets._distrib_files import (
    FileTree,
    check_sub_epoch_dataset,
    distribute_evenly,
    leaves_of,
    load_file_list,
    size_of_files,
)
from returnn.datasets._procs import remote_info
from returnn.datasets._procs.dataset_client import RemoteDataset, dump_dataset
from returnn.datasets._procs.dataset_server import DatasetInfo, DatasetJob, InitOptions
from returnn.datasets.basic import DatasetSeq
from returnn.errors import DatasetError, DatasetOptionError
from returnn.log import log
from returnn.options.datasets import config_value, has_config
from returnn.util.markers import OptionalNotImplementedError

__all__ = ["DistributeFilesDataset"]

#: Option of the config for tests without several ranks: (rank, number of ranks).
_DUMMY_RANK_OPTION = "__debug_dummy_distributed_rank_and_size"


class DistributeFilesDataset(remote_info.RemoteInfoDataset):
    """
    The files are distributed over ``partition_epoch`` sub epochs, by their sizes; a sub epoch is one epoch of the
    dataset that ``get_sub_epoch_dataset`` gives for its files. Each such dataset is read in a process of its own; that of
    the next sub epoch starts early, so that it has its files (e.g. copied, with CachedFile) when its turn comes::

        def get_sub_epoch_dataset(files):
            return {"class": "HDFDataset", "files": [CachedFile(f) for f in files], "seq_ordering": "random"}

        train = {"class": "DistributeFilesDataset", "files": [...], "partition_epoch": 10, "seq_ordering": "random",
                 "get_sub_epoch_dataset": get_sub_epoch_dataset}
    """

    def __init__(
        self,
        *,
        files: Sequence[FileTree] | str | Callable[[], Any],
        get_sub_epoch_dataset: Callable[[list[FileTree]], Mapping[str, Any]],
        preload_next_n_sub_epochs: int = 1,
        buffer_size: int = 1,
        distrib_shard_files: bool = False,
        sharding_fix: bool | None = None,
        _meta_info_cache: DatasetInfo | None = None,
        _distrib_info: Mapping[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        """
        :param files: list; each entry is a file name, or a tuple, list or dict of files which belong together. Or a
            function that returns such a list, or the name of a file with it (.txt, .json, .py)
        :param get_sub_epoch_dataset: from the files of a sub epoch to a dataset dict (Any: its options), with an explicit
            order
        :param preload_next_n_sub_epochs: how many of the next ones are prepared
        :param buffer_size: sequences that a process reads ahead (small ones: more, up to 128 kB)
        :param distrib_shard_files: with several ranks, each rank gets other files
        :param sharding_fix: False asks for a mistake of the peers (the dataset of the files is cut into shards once
            more), which does not exist here; else it has no meaning
        :param _meta_info_cache: set in copies
        :param _distrib_info: set in copies: ``_num_shards`` and ``_shard_index`` of this rank
        :param kwargs: see Dataset: partition_epoch; seq_ordering is "default" or "random" (order of the files). Any: each
            has its own type
        :raises DatasetOptionError: for an invalid value
        :raises DatasetError: there are fewer files than parts
        """
        # The base asks for it.
        self.distrib_shard_files = distrib_shard_files
        super().__init__(_meta_info_cache=_meta_info_cache, **kwargs)
        if self.seq_ordering not in ("default", "random"):
            raise DatasetOptionError(
                self._describe(
                    'option "seq_ordering" is invalid',
                    expected='"default" or "random", which is the order of the files',
                    got=self.seq_ordering,
                    todo="Order the sequences in the dataset of get_sub_epoch_dataset",
                )
            )
        for option, value, least in (
            ("preload_next_n_sub_epochs", preload_next_n_sub_epochs, 0),
            ("buffer_size", buffer_size, 1),
        ):
            if not isinstance(value, (int, numpy.integer)) or isinstance(value, bool) or value < least:
                raise DatasetOptionError(
                    self._describe(f'option "{option}" is invalid', expected=f"int >= {least}", got=value)
                )
        if not callable(get_sub_epoch_dataset):
            raise DatasetOptionError(
                self._describe(
                    'option "get_sub_epoch_dataset" is invalid', expected="function", got=get_sub_epoch_dataset
                )
            )
        if sharding_fix is False:
            raise DatasetOptionError(
                f"{self._where()}: sharding_fix = False would silently lose data with shards (issue 1738 of the peers), "
                "and is not supported. Remove it."
            )
        if distrib_shard_files and "_num_shards" in kwargs and kwargs["_num_shards"] != 1:
            raise DatasetOptionError(
                f"{self._where()}: distrib_shard_files and _num_shards = {kwargs['_num_shards']} are both given. "
                "Use one of them."
            )
        self.files = files
        self.get_sub_epoch_dataset = get_sub_epoch_dataset
        self._preload_next_n_sub_epochs = int(preload_next_n_sub_epochs)
        self._buffer_size = int(buffer_size)
        self._sharding_fix = sharding_fix
        self._distrib_info = dict(_distrib_info) if _distrib_info is not None else self._find_distrib_info()
        self._file_list: list[FileTree] = load_file_list(files, where=self._where())
        self._file_sizes: numpy.ndarray | None = None
        self._bins: tuple[int, list[list[FileTree]]] | None = None  # of a full epoch
        num_parts = self.partition_epoch * self._file_shard[1]
        if len(self._file_list) < num_parts:
            raise DatasetError(
                f"{self._where()}: {len(self._file_list)} files cannot be distributed over partition_epoch "
                f"{self.partition_epoch} (x {self._file_shard[1]} shards): there must be at least one for each part."
            )
        #: epoch -> process; and the request that began that epoch there, with its options
        self._workers: dict[int, RemoteDataset] = {}
        self._pending: dict[int, tuple[int, InitOptions]] = {}
        self._num_seqs_is_asked = True
        self._can_jump = False
        self._next_idx = 0
        self._failure: BaseException | None = None

    # ---- files

    def _uses_custom_distributed_sharding(self) -> bool:
        """:return: whether each rank gets other files: then all have the same seeds"""
        return self.distrib_shard_files

    def _find_distrib_info(self) -> dict[str, int] | None:
        if not self.distrib_shard_files:
            return None
        rank, size = state.rank, state.world_size
        if has_config(_DUMMY_RANK_OPTION):
            rank, size = config_value(_DUMMY_RANK_OPTION)
        return {"_num_shards": size, "_shard_index": rank}

    @property
    def _file_shard(self) -> tuple[int, int]:
        """:return: index and number of shards of the files"""
        if self._distrib_info is not None:
            return self._distrib_info["_shard_index"], self._distrib_info["_num_shards"]
        return self._shard_index, self._num_shards

    def _files_of_epoch(self, epoch: int) -> list[FileTree]:
        full_epoch, part = divmod(epoch - 1, self.partition_epoch)
        if self._bins is None or self._bins[0] != full_epoch:
            if self._file_sizes is None:
                sizes = [size_of_files(tree, where=self._where()) for tree in self._file_list]
                self._file_sizes = numpy.array(sizes, dtype=numpy.int64)
            order = numpy.arange(len(self._file_list))
            if self.seq_ordering == "random":
                seed = self._get_random_seed_for_epoch(full_epoch * self.partition_epoch + 1)
                numpy.random.RandomState(seed).shuffle(order)
            shard, num_shards = self._file_shard
            ranges = distribute_evenly(self._file_sizes[order], self.partition_epoch * num_shards)
            ranges = ranges[self.partition_epoch * shard : self.partition_epoch * (shard + 1)]
            self._bins = full_epoch, [[self._file_list[i] for i in order[r.start : r.stop]] for r in ranges]
        return self._bins[1][part]

    # ---- processes

    def _start_worker(self, epoch: int) -> RemoteDataset:
        files = self._files_of_epoch(epoch)
        opts = self.get_sub_epoch_dataset(list(files))
        check_sub_epoch_dataset(opts, where=self._where())
        defaults: dict[str, Any] = {"name": f"{self.name}_epoch{epoch}"}
        if self.distrib_shard_files or self._random_seed_offset is not None:
            defaults["random_seed_offset"] = self.random_seed_offset
        if self.fixed_random_seed is not None:
            defaults["fixed_random_seed"] = self.fixed_random_seed
        where = f"{type(self).__name__} {self.name!r}"
        shown = [leaf for tree in files for leaf in leaves_of(tree, where=where)]
        print(f"{where}: files of sub epoch {epoch}: {shown[:3]}, {len(shown)} in all", file=log.v4)
        job = DatasetJob(opts, {}, defaults, self._buffer_size, where)
        return RemoteDataset(dump_dataset(job), name=f"process of sub epoch {epoch}", where=where)

    def _prepare(self, epoch: int) -> None:
        """Start the process of that epoch, if needed, and let it begin."""
        full_epoch = (epoch - 1) // self.partition_epoch
        options = InitOptions(full_epoch + 1, random_per_seq=self._random_per_seq)
        if epoch in self._pending and self._pending[epoch][1] == options:
            return
        if epoch not in self._workers:
            self._workers[epoch] = self._start_worker(epoch)
        worker = self._workers[epoch]
        self._pending[epoch] = worker.begin_init(options), options
        worker.start_stream()

    def close(self) -> None:
        """End the processes. They start again when needed."""
        self._end_workers(list(self._workers))

    def _end_workers(self, epochs: Sequence[int]) -> None:
        workers = [self._workers.pop(epoch) for epoch in epochs]
        for epoch in epochs:
            self._pending.pop(epoch, None)
        for worker in workers:
            if worker.is_own:
                worker.hang_up()
        for worker in workers:
            if worker.is_own:
                worker.close()

    def _fetch_info(self) -> DatasetInfo:
        return self._ask("get_info")  # type: ignore[no-any-return]

    def _ask(self, method: str, *args: Any) -> Any:
        """:return: of a process of this epoch, else of a new one, which ends again"""
        if self.epoch in self._workers:
            return getattr(self._workers[self.epoch], method)(*args)
        worker = self._start_worker(1)
        try:
            return getattr(worker, method)(*args)
        finally:
            worker.close()

    # ---- epochs

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """
        See :func:`Dataset.init_seq_order`. Without an epoch there are no sequences.

        :raises DatasetError: an order is given
        """
        if seq_list is not None or seq_order is not None:
            raise DatasetError(f"{self._where()}: seq_list and seq_order are not possible, the files give the order.")
        super().init_seq_order(epoch=epoch)
        self._can_jump = False
        self._next_idx = 0
        self._failure = None
        if epoch is None:
            self._num_seqs = 0
            return True
        self._num_seqs_is_asked = False
        wanted = range(epoch, epoch + self._preload_next_n_sub_epochs + 1)
        self._end_workers([e for e, worker in self._workers.items() if e not in wanted or not worker.is_own])
        try:
            for e in wanted:
                self._prepare(e)
        except BaseException:
            self.close()
            raise
        return True

    @property
    def num_seqs(self) -> int:
        """:return: see :func:`Dataset.num_seqs`; waits until the process of the epoch knows it"""
        self._wait_for_order()
        return super().num_seqs

    def _wait_for_order(self) -> None:
        if not self._num_seqs_is_asked and self._num_seqs is None and self._failure is None:
            self._num_seqs_is_asked = True
            with self._failing():
                assert self.epoch is not None
                result = self._workers[self.epoch].end_init(self._pending[self.epoch][0])
                self._num_seqs, self._can_jump = result.num_seqs, result.supports_jump

    def finish_epoch(self, *, free_resources: bool = False) -> None:
        """See :func:`Dataset.finish_epoch`."""
        super().finish_epoch(free_resources=free_resources)
        if free_resources:
            self.close()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Remember an error, so that it is no end of the data, and end the processes."""
        try:
            yield
        except BaseException as exc:
            self._failure = exc
            self.close()
            raise

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        if self._failure is not None:
            raise self._failure
        if self._num_seqs is not None and seq_idx >= self._num_seqs:
            return None
        assert self.epoch is not None
        with self._failing():
            worker = self._workers[self.epoch]
            # So that the next time this epoch is begun, it begins again.
            if self.epoch in self._pending:
                self._wait_for_order()
                del self._pending[self.epoch]
            if self._can_jump and seq_idx - self._next_idx > self._buffer_size:
                worker.start_stream(seq_idx)
            else:
                worker.skip(seq_idx - self._next_idx)
            seq = worker.next_seq()
        self._next_idx = seq_idx + 1
        if seq is None:
            return None
        features, tag, frac = seq
        return DatasetSeq(seq_idx, features, seq_tag=tag, complete_frac=frac)

    def supports_jump(self) -> bool:
        """See :func:`Dataset.supports_jump`. If the dataset of the sub epoch does, and knows its number of sequences."""
        try:
            return self.num_seqs > 0 and self._can_jump and reads_as_its_class(self)
        except NotImplementedError:
            return False

    # ---- what the datasets know

    def _need_one_part(self, method: str) -> None:
        if self.partition_epoch != 1 or self._file_shard[1] != 1:
            raise OptionalNotImplementedError(f"{self!r}: {method} is only known for partition_epoch 1, without shards")

    def corpus_files(self) -> Iterable[str]:
        """See :func:`Dataset.corpus_files`."""
        where = self._where()
        return [leaf for tree in self._file_list for leaf in leaves_of(tree, where=where)]

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """See :func:`Dataset.get_total_num_seqs`. Only for partition_epoch 1."""
        self._need_one_part("get_total_num_seqs")
        total = self._info().total_num_seqs
        if total is None and fast:
            raise OptionalNotImplementedError(f"{self!r}: the number of sequences is not known yet")
        return int(self._ask("call", "get_total_num_seqs")) if total is None else total

    def get_all_tags(self) -> list[str]:
        """See :func:`Dataset.get_all_tags`. Only for partition_epoch 1."""
        self._need_one_part("get_all_tags")
        tags: list[str] = self._ask("call", "get_all_tags")
        return tags

    def supports_sharding(self) -> bool:
        """:return: True: the files are distributed"""
        return True
