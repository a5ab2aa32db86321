"""Datasets for tests of the loading: the same data with and without the bulk protocol."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from returnn.datasets.basic import Dataset
from returnn.datasets.ragged import Ragged
from returnn.errors import DatasetError, OptionError


class PerSeqDataset(Dataset):
    """Sequences with given lengths, in an order that depends on the epoch. Only the protocol per sequence."""

    def __init__(
        self, lens: Sequence[int], class_ratio: int = 2, *, shuffled: bool = True, fail_at: str = "", **kwargs: Any
    ):
        """
        :param lens: of "data"
        :param class_ratio: "classes" has ceil(length / class_ratio) labels
        :param shuffled: else in corpus order
        :param fail_at: action (error, key_error, kill) at the sequence with the number behind it, e.g. "error:5"
        """
        super().__init__(**kwargs)
        self.lens = list(lens)
        self.class_ratio = class_ratio
        self.shuffled = shuffled
        self.fail_at = fail_at
        self.num_outputs = {"data": (2, 2), "classes": (100, 1), "scalar": (1, 0), "text": (1, 1)}
        self.order = numpy.arange(0)

    def get_data_keys(self) -> list[str]:
        """:return: keys"""
        return ["data", "classes", "scalar", "text"]

    def init_seq_order(
        self, epoch: int | None = None, seq_list: Sequence[str] | None = None, seq_order: Any = None
    ) -> bool:
        """Random order per epoch."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        num = len(self.lens)
        self.order = numpy.random.RandomState(epoch).permutation(num) if self.shuffled else numpy.arange(num)
        self._num_seqs = num
        return True

    @property
    def num_seqs(self) -> int:
        """:return: of the epoch"""
        return len(self.lens)

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """:return: of the corpus"""
        return len(self.lens)

    def get_tag(self, sorted_seq_idx: int) -> str:
        """:return: tag"""
        return f"seq-{self.order[sorted_seq_idx]}"

    def load_seqs(self, start: int, end: int) -> None:
        """Nothing to load."""

    def get_data(self, seq_idx: int, key: str) -> numpy.ndarray:
        """:return: data that tells the sequence"""
        corpus_idx = int(self.order[seq_idx])
        action, _, where = self.fail_at.partition(":")
        if action and corpus_idx == int(where):
            if action == "error":
                raise DatasetError("the data is bad.")
            if action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyError("a bug")
        length = self.lens[corpus_idx]
        if key == "data":
            return (numpy.arange(length * 2, dtype="float32") + 100 * corpus_idx).reshape(length, 2)
        if key == "classes":
            return (numpy.arange(-(-length // self.class_ratio)) + corpus_idx).astype("uint16")
        if key == "scalar":
            return numpy.array(corpus_idx, dtype="int32")
        return numpy.array([f"w{i}" for i in range(length)], dtype=object)


class BulkDataset(PerSeqDataset):
    """The same with the bulk protocol."""

    def __init__(self, lens: Sequence[int], class_ratio: int = 2, **kwargs: Any):
        """As the base."""
        super().__init__(lens, class_ratio, **kwargs)
        self.num_reads = 0

    def supports_bulk(self) -> bool:
        """:return: yes"""
        return True

    def get_epoch_seq_lens(self, key: str) -> numpy.ndarray | None:
        """:return: lengths"""
        lens = numpy.asarray(self.lens, dtype="int64")[self.order]
        return {"data": lens, "text": lens, "classes": -(-lens // self.class_ratio)}.get(key)

    def read_seqs(self, seq_idxs: numpy.ndarray, keys: Sequence[str]) -> dict[str, Ragged]:
        """:return: data"""
        self.num_reads += 1
        return {key: Ragged.from_list([self.get_data(int(i), key) for i in seq_idxs]) for key in keys}


class StreamDataset(PerSeqDataset):
    """Unknown number of sequences."""

    @property
    def num_seqs(self) -> int:
        """Not known."""
        raise NotImplementedError

    def is_less_than_num_seqs(self, n: int) -> bool:
        """:return: whether there is one"""
        return n < len(self.lens)


class SelfShardingDataset(PerSeqDataset):
    """Calls apply_sharding, as classes of users do."""

    def init_seq_order(
        self, epoch: int | None = None, seq_list: Sequence[str] | None = None, seq_order: Any = None
    ) -> bool:
        """Shard of the random order."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self.order = numpy.asarray(self.apply_sharding(self.order))
        return True

    @property
    def num_seqs(self) -> int:
        """:return: of the shard"""
        return len(self.order)


class FailsInWorker(PerSeqDataset):
    """Its constructor fails in another process."""

    def __reduce__(self) -> Any:  # Any: as object
        return _fail_to_construct, ()


def _fail_to_construct() -> None:
    raise DatasetError("cannot open the file.")


class RandomDataset(PerSeqDataset):
    """Uses the global generators, as classes of users do."""

    def get_data_keys(self) -> list[str]:
        """:return: keys"""
        return ["data"]

    def get_data(self, seq_idx: int, key: str) -> numpy.ndarray:
        """:return: environment variable and random number"""
        return numpy.array([float(os.environ["LOADER_TEST"]), numpy.random.rand() + random.random()])


class ThreadLimitDataset(PerSeqDataset):
    """Tells by which variables the number of threads is limited."""

    def get_data_keys(self) -> list[str]:
        """:return: keys"""
        return ["data"]

    def get_data(self, seq_idx: int, key: str) -> numpy.ndarray:
        """:return: OPENBLAS_NUM_THREADS when the program was started, and now; OMP_NUM_THREADS now. Not set: -1"""
        at_start = dict(entry.split(b"=", 1) for entry in Path("/proc/self/environ").read_bytes().split(b"\0") if entry)
        values = [at_start.get(b"OPENBLAS_NUM_THREADS", b"-1")]
        values += [os.environb.get(name, b"-1") for name in (b"OPENBLAS_NUM_THREADS", b"OMP_NUM_THREADS")]
        return numpy.array(values).astype(numpy.int64)


class OptionErrorDataset(PerSeqDataset):
    """Raises an exception whose constructor has other arguments than its text."""

    def get_data(self, seq_idx: int, key: str) -> numpy.ndarray:
        """:raises OptionError: always"""
        raise OptionError("x", expected="int", got="y")


class Unpicklable:
    """Cannot be sent to another process."""

    def __reduce__(self) -> Any:  # Any: never returns
        raise TypeError("cannot pickle this thing")


def _child(conn: Any) -> None:
    conn.send(os.getpid())
    conn.recv()


class NestedProcessDataset(PerSeqDataset):
    """Has a child process, whose id is its data."""

    def init_seq_order(
        self, epoch: int | None = None, seq_list: Sequence[str] | None = None, seq_order: Any = None
    ) -> bool:
        """Start the child."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        context = multiprocessing.get_context("forkserver")
        self.conn, child_conn = context.Pipe()
        self.process = context.Process(target=_child, args=(child_conn,), daemon=True)
        self.process.start()
        self.pid = self.conn.recv()
        return True

    def get_data_keys(self) -> list[str]:
        """:return: keys"""
        return ["data"]

    def get_data(self, seq_idx: int, key: str) -> numpy.ndarray:
        """:return: the process id"""
        return numpy.array([self.pid])
