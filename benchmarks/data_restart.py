#!/usr/bin/env python3
"""
How long a loader takes to go on in the middle of an epoch, and what it costs to know the position in each batch.

"plan again": a dataset that knows all lengths (as HDFDataset): limit is to make its order. "read again": a dataset of a user
that cannot start in the middle: limit is a bare loop that reads the same sequences. "jump": one that can: limit is to make its
order. "addresses": a whole pass in which each batch has an address, as a share of the same pass without.

usage: python benchmarks/data_restart.py [--num_seqs 1000000]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

import numpy

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from returnn.datasets.basic import Dataset  # noqa: E402
from returnn.datasets.ragged import Ragged  # noqa: E402
from returnn.options.batching import BatchingOptions  # noqa: E402
from returnn.options.loader import LoaderOptions  # noqa: E402
from returnn.torch.data.loader import EpochSource, Loader, create_loader  # noqa: E402


class UserDataset(Dataset):
    """In memory, read one by one, as a user would write it."""

    def __init__(self, lens: numpy.ndarray, *, can_jump: bool):
        """
        :param lens: of the sequences
        :param can_jump: what supports_jump says
        """
        super().__init__(name="train")
        self.lens = lens
        self.can_jump = can_jump
        self.num_outputs = {"data": (1, 2)}
        self.frames = numpy.zeros((int(lens.max()), 1), dtype="float32")
        self.order = numpy.arange(0)

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """Random."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self.order = numpy.random.RandomState(epoch).permutation(len(self.lens))
        return True

    @property
    def num_seqs(self) -> int:
        """:return: of the epoch"""
        return len(self.lens)

    def get_data_keys(self) -> list[str]:
        """:return: one key"""
        return ["data"]

    def load_seqs(self, start: int, end: int) -> None:
        """Nothing."""

    def get_data(self, seq_idx: int, key: str) -> numpy.ndarray:
        """:return: frames"""
        return self.frames[: self.lens[self.order[seq_idx]]]

    def supports_jump(self) -> bool:
        """:return: as the option says"""
        return self.can_jump


class BulkDataset(UserDataset):
    """The same, with all lengths known."""

    def supports_bulk(self) -> bool:
        """:return: yes"""
        return True

    def get_epoch_seq_lens(self, key: str) -> numpy.ndarray:
        """:return: lengths in the order of the epoch"""
        return self.lens[self.order]

    def read_seqs(self, seq_idxs: numpy.ndarray, keys: Sequence[str]) -> dict[str, Ragged]:
        """:return: data"""
        return {key: Ragged.from_list([self.get_data(int(i), key) for i in seq_idxs]) for key in keys}


def make_loader(dataset: Dataset) -> Loader:
    """:return: loader over the dataset, in this process"""
    return create_loader(
        dataset,
        batching=BatchingOptions(batch_size=1000, max_seqs=40),
        loader=LoaderOptions(num_workers=0),
        epoch_source=EpochSource(1),
        name="train",
    )


def secs_of(func: Callable[[], object]) -> float:
    """:return: time of the call"""
    start = time.perf_counter()
    func()
    return time.perf_counter() - start


def secs_to_go_on(dataset: Dataset, share: float) -> tuple[float, int]:
    """:return: time to go on behind that share of the epoch, number of sequences before"""
    loader = make_loader(dataset)
    num_seqs = int(share * dataset.num_seqs)
    for _ in loader:
        if loader.stats.num_seqs_seen >= num_seqs:
            break
    state, num_seqs = loader.state_dict(), loader.stats.num_seqs_seen
    loader = make_loader(dataset)
    loader.load_state_dict(state)
    return secs_of(lambda: iter(loader)), num_seqs


def show(case: str, ours: float, limit: float, num_seqs: int) -> None:
    """One line."""
    print(
        f"{case:12s} ours {ours:8.3f} s  limit {limit:8.3f} s  ratio {ours / limit:6.2f}  "
        f"({ours / num_seqs * 1e6:.3f} s per million sequences)",
        flush=True,
    )


def main() -> None:
    """All cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_seqs", type=int, default=1_000_000)
    num_seqs: int = parser.parse_args().num_seqs
    lens = numpy.random.RandomState(1).randint(5, 51, size=num_seqs)

    for case, dataset in (
        ("plan again", BulkDataset(lens, can_jump=False)),
        ("jump", UserDataset(lens, can_jump=True)),
    ):
        ours, num_before = secs_to_go_on(dataset, 0.5)
        show(case, ours, secs_of(lambda dataset=dataset: dataset.init_seq_order(1)), num_before)  # type: ignore[misc]

    dataset = UserDataset(lens, can_jump=False)
    ours, num_before = secs_to_go_on(dataset, 0.1)

    def read() -> None:
        dataset.init_seq_order(1)
        for i in range(num_before):
            dataset.is_less_than_num_seqs(i)
            dataset.load_seqs(i, i + 1)
            dataset.get_data(i, "data")
            dataset.get_tag(i)

    show("read again", ours, secs_of(read), num_before)

    few = lens[:40_000]
    secs: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(5):
        for can_jump, of_case in secs.items():
            loader = make_loader(UserDataset(few, can_jump=can_jump))
            of_case.append(secs_of(lambda loader=loader: list(loader)))  # type: ignore[misc]
    show("addresses", min(secs[True]), min(secs[False]), len(few))


if __name__ == "__main__":
    main()
