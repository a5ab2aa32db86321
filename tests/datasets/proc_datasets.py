"""Datasets and functions for tests of datasets over several processes, importable in these."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from returnn.datasets.basic import DatasetSeq
from returnn.datasets.cached2 import CachedDataset2
from returnn.errors import DatasetError
from tests.helpers import GOLDEN as _GOLDEN

GOLDEN = _GOLDEN / "04-datasets-meta"

#: One sequence of a golden file: tag, first value of "data", complete_frac.
GoldenSeq = tuple[str, float, float]


def hdf(name: str = "feat", **opts: Any) -> dict[str, Any]:
    """:return: dataset dict of a golden file"""
    return {"class": "HDFDataset", "files": [str(GOLDEN / f"{name}.hdf")], **opts}


def read_golden(dataset: Any, epoch: int) -> list[GoldenSeq]:
    """:return: an epoch in the form of the golden files"""
    dataset.init_seq_order(epoch=epoch)
    seqs: list[GoldenSeq] = []
    for i in itertools.count():
        if not dataset.is_less_than_num_seqs(i):
            return seqs
        dataset.load_seqs(i, i + 1)
        frac = dataset.get_complete_frac(i)
        seqs.append((dataset.get_tag(i), float(dataset.get_data(i, "data").flat[0]), round(float(frac), 6)))
    raise AssertionError("unreachable")


def as_golden(seqs: Sequence[Any]) -> list[Any]:
    """:return: expected values of a golden file, comparable with :func:`read_golden`. Any: those, or only tags"""
    return [seq if isinstance(seq, str) else tuple(seq) for seq in seqs]


def assert_golden(dataset: Any, expected: Mapping[str, Sequence[Any]]) -> None:
    """:param expected: epoch -> sequences, as in the file"""
    for epoch, seqs in expected.items():
        got: list[Any] = read_golden(dataset, int(epoch))
        if isinstance(seqs[0], str):
            got = [tag for tag, _, _ in got]
        assert got == as_golden(seqs), f"epoch {epoch}"


class UnknownNumDataset(CachedDataset2):
    """Delivers sequence after sequence; their number is not known in advance, and there is no order to ask for."""

    def __init__(self, num: int = 7, fail_at: str = "", mixed: bool = False, **kwargs: Any) -> None:
        """
        :param num: of sequences, before shards
        :param fail_at: action (error, bug, kill, exit) at the sequence with the number behind it, e.g. "kill:5"
        :param mixed: the data of each sequence has another shape, and one key is text
        """
        super().__init__(**kwargs)
        self.num = num
        self.fail_at = fail_at
        self.mixed = mixed
        self.num_inputs = 2
        self.num_outputs = {"data": (2, 2)}
        if mixed:
            self.num_outputs = {"data": (2, 3), "text": {"shape": (), "dtype": "string"}}

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        idx = seq_idx * self._num_shards + self._shard_index
        if idx >= self.num:
            return None
        action, _, where = self.fail_at.partition(":")
        if action and int(where) == idx:
            if action == "error":
                raise DatasetError("the data is bad.")
            if action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if action == "exit":
                os._exit(3)
            raise KeyError("a bug")
        features = {"data": numpy.full((idx % 3 + 1, 2), idx, dtype="float32")}
        if self.mixed:
            features = {
                "data": numpy.full((idx % 3 + 1, idx % 2, 2), idx, "float32"),
                "text": numpy.array("x" * idx),
            }
        return DatasetSeq(seq_idx, features, seq_tag=f"u-{idx}")


class RandomDrawsDataset(CachedDataset2):
    """Draws for each sequence: from the generator of the sequence if the pipeline wants that, else from a stream."""

    def __init__(self, num: int = 9, **kwargs: Any) -> None:
        """:param num: of sequences"""
        super().__init__(**kwargs)
        self.num = num
        self.num_inputs = 1
        self.num_outputs = {"data": (1, 2)}
        self.order = numpy.arange(0)
        self.rng = numpy.random.RandomState(0)

    def init_seq_order(
        self, epoch: int | None = None, seq_list: Sequence[str] | None = None, seq_order: Any = None
    ) -> bool:
        """Random order."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        order = numpy.random.RandomState(epoch).permutation(self.num) if seq_order is None else seq_order
        self.order = numpy.asarray(order)
        self._num_seqs = len(self.order)
        self.rng = numpy.random.RandomState(self._get_random_seed_for_epoch(epoch))
        return True

    def get_current_seq_order(self) -> numpy.ndarray:
        """:return: order"""
        return self.order

    def get_all_tags(self) -> list[str]:
        """:return: tags"""
        return [f"r-{i}" for i in range(self.num)]

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """:return: number"""
        return self.num

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        if seq_idx >= len(self.order):
            return None
        tag = f"r-{self.order[seq_idx]}"
        rng = self.get_seq_random_state(seq_idx, tag) if self._random_per_seq else self.rng
        return DatasetSeq(seq_idx, {"data": rng.uniform(size=(2, 1)).astype("float32")}, seq_tag=tag)


def alive(pid: int) -> bool:
    """:return: whether that process exists and is no zombie"""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_gone(pids: Sequence[int], secs: float = 20.0) -> list[int]:
    """:return: those that are still there after the time"""
    wait_until(lambda: not any(alive(pid) for pid in pids), secs)
    return [pid for pid in pids if alive(pid)]


def wait_until(condition: Callable[[], bool], secs: float = 20.0) -> bool:
    """:return: whether it became true in time"""
    deadline = time.monotonic() + secs
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def iter_all(dataset: Any) -> Iterator[str]:
    """:return: tags of an epoch that is begun"""
    for i in itertools.count():
        if not dataset.is_less_than_num_seqs(i):
            return
        dataset.load_seqs(i, i + 1)
        yield dataset.get_tag(i)
