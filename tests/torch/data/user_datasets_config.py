#!rnn.py
"""A config with datasets as users write them, old and new style; test_user_datasets.py reads them with the loader."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy

from returnn.datasets import Dataset
from returnn.datasets.basic import DatasetSeq
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.generating import GeneratingDataset, StaticDataset
from returnn.datasets.hdf import HDFDataset
from returnn.datasets.map import FromListDataset, MapDatasetBase, MapDatasetWrapper
from returnn.datasets.meta import MetaDataset
from returnn.util.basic import NumbersDict

hdf = os.environ["USER_DATASETS_HDF"]
scale = 3.0


class Old(Dataset):
    """Written years ago: get_input_data and get_targets, no seq_order, num_seqs fails before the first epoch."""

    def __init__(self, n: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n = n
        self.num_inputs = 2
        self.num_outputs = {"data": (2, 2), "classes": (5, 1)}
        self._order: Any = None

    def init_seq_order(self, epoch: int | None = None, seq_list: Any = None) -> bool:  # type: ignore[override]
        super().init_seq_order(epoch=epoch, seq_list=seq_list)
        self._order = self.get_seq_order_for_epoch(epoch=epoch, num_seqs=self.n, get_seq_len=lambda i: i % 7 + 1)
        return True

    @property
    def num_seqs(self) -> int:
        return len(self._order)

    def _load_seqs(self, start: int, end: int) -> None:
        pass

    def get_seq_length(self, i: int) -> NumbersDict:  # type: ignore[override]
        n = self._order[i] % 7 + 1
        return NumbersDict({"data": n, "classes": n})

    def get_input_data(self, i: int) -> numpy.ndarray:  # type: ignore[override]
        c = self._order[i]
        return numpy.full((c % 7 + 1, 2), c, dtype="float32")

    def get_targets(self, target: str, i: int) -> numpy.ndarray:  # type: ignore[override]
        c = self._order[i]
        return numpy.full((c % 7 + 1,), c % 5, dtype="int32")

    def get_tag(self, i: int) -> str:  # type: ignore[override]
        return f"old-{self._order[i]}"


class OldGetData(Old):
    def get_data(self, i: int, key: str) -> numpy.ndarray:  # type: ignore[override]
        c = self._order[i]
        if key == "data":
            return numpy.full((c % 7 + 1, 2), -c, dtype="float32")
        return numpy.full((c % 7 + 1,), c % 5, dtype="int32")


class Stream(CachedDataset2):
    """Unknown number of sequences."""

    def __init__(self, n: int, func: Callable[[int], float] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n = n
        self.func = func
        self.num_inputs = 1
        self.num_outputs = {"data": (1, 2), "classes": (3, 1)}
        self._it: Iterator[int] = iter(())

    def init_seq_order(self, epoch: Any = None, seq_list: Any = None, seq_order: Any = None) -> bool:
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self._it = iter(range(self.n))
        return True

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        c = next(self._it, None)
        if c is None:
            return None
        assert c == seq_idx
        value = self.func(c) if self.func else c
        return DatasetSeq(
            seq_idx=seq_idx,
            features=numpy.full((c % 4 + 1, 1), value, dtype="float32"),
            targets=numpy.array([c % 3, c % 2], dtype="int32"),
            seq_tag=f"st-{c}",
        )


class Known(CachedDataset2):
    """Known number of sequences, own order, random access by tag."""

    def __init__(self, n: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._n = n
        self.num_inputs = 1
        self.num_outputs = {"data": [1, 2]}
        self._seq_order: Any = None

    def init_seq_order(self, epoch: Any = None, seq_list: Any = None, seq_order: Any = None) -> bool:
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        if seq_list is not None:
            self._seq_order = [int(tag.split("-")[1]) for tag in seq_list]
        elif seq_order is not None:
            self._seq_order = seq_order
        else:
            self._seq_order = self.get_seq_order_for_epoch(epoch, self._n, lambda i: i % 5 + 1)
        self._num_seqs = len(self._seq_order)
        return True

    def get_current_seq_order(self) -> Any:
        return self._seq_order

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        if seq_idx >= self.num_seqs:
            return None
        assert self._seq_order is not None
        c = self._seq_order[seq_idx]
        data = numpy.full((c % 5 + 1, 1), c, dtype="float32")
        return DatasetSeq(seq_idx=seq_idx, features={"data": data}, seq_tag=f"kn-{c}")


class KnownTags(Known):
    def get_all_tags(self) -> list[str]:
        return [f"kn-{i}" for i in range(self._n)]

    def get_total_num_seqs(self) -> int:  # type: ignore[override]
        return self._n


class MapStyle(MapDatasetBase):
    def __init__(self, **opts: Any) -> None:
        super().__init__(
            data_types={
                "data": {"dim": 2, "shape": (None, 2), "dtype": "float32"},
                "classes": {"dim": 5, "sparse": True, "shape": (None,), "dtype": "int32"},
            }
        )
        self.opts = opts

    def __len__(self) -> int:
        return 23

    def __getitem__(self, i: int) -> dict[str, numpy.ndarray]:
        return {
            "data": numpy.full((i % 6 + 1, 2), i * scale, dtype="float32"),
            "classes": numpy.full((2,), i % 5, dtype="int32"),
        }

    def get_seq_len(self, i: int) -> int:
        return i % 6 + 1

    def get_seq_tag(self, i: int) -> str:
        return f"mp-{i}"


class MapStyleOrder(MapStyle):
    def get_seq_order(self, epoch: int | None = None) -> list[int]:
        return [3, 1, 1, 22, epoch or 0]


class ScaledHdf(HDFDataset):
    def __init__(self, factor: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def get_data(self, i: int, key: str) -> numpy.ndarray:  # type: ignore[override]
        data = super().get_data(i, key)
        return data * self.factor if key == "data" else data


class LimitedHdf(HDFDataset):
    @property
    def num_seqs(self) -> int:
        return min(super().num_seqs, 5)


class TagHdf(HDFDataset):
    def get_tag(self, i: int) -> str:  # type: ignore[override]
        return "prefix/" + super().get_tag(i)


class OrderHdf(HDFDataset):
    def init_seq_order(self, epoch: Any = None, seq_list: Any = None, seq_order: Any = None) -> bool:
        if seq_order is None and seq_list is None:
            seq_order = [2, 0, 5, 5]
        return super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)


class Gen(GeneratingDataset):
    """Sets arguments of its base, passes on others."""

    def __init__(self, nn: int = 12, **kwargs: Any) -> None:
        super().__init__(input_dim=3, output_dim=4, num_seqs=nn, **kwargs)
        self.nn = nn

    def generate_seq(self, seq_idx: int) -> DatasetSeq:
        length = self.random.randint(1, 9)
        return DatasetSeq(
            seq_idx=seq_idx,
            features=self.random.normal(size=(length, 3)).astype("float32"),
            targets=self.random.randint(0, 4, size=(length,)).astype("int32"),
        )


class StaticPlusOne(StaticDataset):
    def get_data(self, i: int, key: str) -> numpy.ndarray:  # type: ignore[override]
        return super().get_data(i, key) + 1


class MetaPlusOne(MetaDataset):
    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        seq = super()._collect_single_seq(seq_idx)
        if seq is not None:
            seq.features["data"] = seq.features["data"] + 1
        return seq


static = [
    {"data": numpy.full((i % 4 + 1, 2), i, dtype="float32"), "scalar": numpy.array(i, dtype="int32")} for i in range(9)
]


def make() -> dict[str, Any]:
    return {"class": "HDFDataset", "files": [hdf]}


def _meta(a: Any, b: Any, c: str = "classes", **opts: Any) -> dict[str, Any]:
    return {
        "class": "MetaDataset",
        "datasets": {"a": a, "b": b},
        "data_map": {"data": ("a", "data"), "c": ("b", c)},
        **(opts or {"seq_order_control_dataset": "a"}),
    }


datasets: dict[str, Any] = {
    "old": {"class": Old, "n": 17, "seq_ordering": "random"},
    "old laplace": {"class": Old, "n": 17, "seq_ordering": "laplace:.4", "partition_epoch": 2},
    "old get_data": {"class": OldGetData, "n": 17},
    "stream": {"class": Stream, "n": 7},
    "stream with lambda": {"class": Stream, "n": 7, "func": lambda x: x * scale},
    "one": {"class": Stream, "n": 1},
    "known": {"class": Known, "n": 11, "seq_ordering": "sorted_reverse"},
    "map class": {"class": "MapDatasetWrapper", "map_dataset": MapStyle, "seq_ordering": "laplace:.4"},
    "map lambda": {"class": MapDatasetWrapper, "map_dataset": lambda: MapStyle(), "seq_ordering": "sorted"},
    "map instance": {
        "class": MapDatasetWrapper,
        "map_dataset": MapStyle(a=1),
        "seq_ordering": "random",
        "partition_epoch": 3,
    },
    "map order": {"class": MapDatasetWrapper, "map_dataset": MapStyleOrder},
    "map list": {
        "class": "MapDatasetWrapper",
        "map_dataset": FromListDataset(
            data_list=[{"data": numpy.full((i + 1, 1), i, dtype="float32")} for i in range(6)],
            sort_data_key="data",
            data_types={"data": {"dim": 1}},
        ),
        "seq_ordering": "sorted_reverse",
    },
    "hdf": {"class": "HDFDataset", "files": [hdf], "seq_ordering": "laplace:.5"},
    "hdf get_data": {"class": ScaledHdf, "files": [hdf], "factor": 10, "seq_ordering": "random"},
    "hdf num_seqs": {"class": LimitedHdf, "files": [hdf], "seq_ordering": "random"},
    "hdf tag": {"class": TagHdf, "files": [hdf]},
    "hdf order": {"class": OrderHdf, "files": [hdf]},
    "generating": {"class": Gen, "nn": 10, "seq_ordering": "random", "partition_epoch": 2},
    "static": {"class": "StaticDataset", "data": static, "seq_ordering": "random"},
    "static get_data": {"class": StaticPlusOne, "data": static},
    "function": make,
    "lambda": lambda: {"class": "HDFDataset", "files": [hdf]},
    "str": f"{{'class': 'HDFDataset', 'files': [{hdf!r}], 'seq_ordering': 'reverse'}}",
    "instance": HDFDataset([hdf], seq_ordering="sorted"),
    "meta of instance": _meta(HDFDataset([hdf], seq_ordering="sorted"), make),
    "meta of user class": _meta(
        {"class": KnownTags, "n": 11, "seq_ordering": "random", "partition_epoch": 2},
        {"class": KnownTags, "n": 13},
        "data",
    ),
    "meta of user class without tags": _meta(
        {"class": Known, "n": 11, "seq_ordering": "random"}, {"class": Known, "n": 13}, "data"
    ),
    "meta of hdf get_data": _meta({"class": ScaledHdf, "files": [hdf], "seq_ordering": "laplace:.4"}, make),
    "meta subclass": {
        "class": MetaPlusOne,
        "datasets": {"a": {"class": "HDFDataset", "files": [hdf]}},
        "data_map": {"data": ("a", "data")},
    },
    "meta of generating": _meta(
        {"class": Gen, "nn": 10, "seq_ordering": "random", "partition_epoch": 2}, {"class": Gen, "nn": 10}
    ),
    "meta of static": _meta(
        {"class": "StaticDataset", "data": static},
        {"class": "StaticDataset", "data": static},
        "scalar",
        seq_ordering="random",
        fixed_random_seed=3,
    ),
    "meta of map": _meta(
        {"class": "MapDatasetWrapper", "map_dataset": MapStyle, "seq_ordering": "laplace:.4"},
        {"class": "MapDatasetWrapper", "map_dataset": MapStyle},
    ),
    "meta of meta": _meta(
        _meta(make, {"class": ScaledHdf, "files": [hdf]}, "data", seq_ordering="random"),
        make,
    ),
}
