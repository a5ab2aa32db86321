"""Sequence orders: golden vectors, grammar, properties."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.config import Config, global_config_ctx
from returnn.datasets import seq_order as so
from returnn.datasets.basic import Dataset
from returnn.errors import DatasetError

GOLDEN = Path(__file__).parent.parent / "golden" / "02-datasets-base"

VALID = [
    "default", "default_every_n:5", "reverse", "sorted", "sorted_reverse", "random", "random:3", "random_sample",
    "random_sample:2", "laplace", "laplace:3", "laplace:.5", "laplace:.1000", "laplace:3:2", "laplace:.5:3",
    "sort_bin_shuffle", "sort_bin_shuffle:3", "sort_bin_shuffle:.32:2", "sort_bin_shuffle_x2:7", "sort_bin_shuffle_x2",
]  # fmt: skip
PERMUTATIONS = [text for text in VALID if not text.startswith(("default_every_n", "random_sample"))]
INVALID = [
    "foo", "randomFOO", "laplace.1000", "sort_bin_shuffleFOO", "sorted:3", "reverse:2", "default:1", "laplace:0",
    "laplace:.0", "laplace:x", "laplace:-3", "laplace:3:0", "laplace:3:x", "laplace:1:2:3", "laplace:", "random:x",
    "random:1:2", "random:", "default_every_n", "default_every_n:0", "default_every_n:x", "", "Random", " random",
    "laplace:.", "laplace:1.5", "sort_bin_shuffle:0",
]  # fmt: skip


def load_json(name: str) -> Any:
    with open(GOLDEN / name, encoding="utf8") as file:
        return json.load(file)


class TagDataset(Dataset):
    """A corpus with the given tags."""

    def __init__(self, tags: list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tags = tags

    def get_all_tags(self) -> list[str]:
        return self.tags

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        return len(self.tags)


def lens_of(n: int) -> list[int]:
    return [i * i % 17 for i in range(n)]


@pytest.mark.parametrize("as_function", [True, False])
def test_golden_n23(as_function: bool) -> None:
    golden = load_json("seq_orders_n23.json")
    lens = golden["seq_lens"]
    get_len: Any = lens.__getitem__ if as_function else numpy.array(lens)
    num = 0
    for text, by_part in golden["orders"].items():
        for part, by_epoch in by_part.items():
            dataset = Dataset(seq_ordering=text, partition_epoch=int(part.split("=")[1]))
            for epoch, expected in by_epoch.items():
                assert list(dataset.get_seq_order_for_epoch(int(epoch), 23, get_len)) == expected, (text, part, epoch)
                num += 1
    assert num == 27 * 8


def test_golden_n1000() -> None:
    golden = load_json("seq_orders_n1000_index.json")
    arrays = numpy.load(GOLDEN / golden["npz"])
    lens = numpy.array(golden["seq_lens"], dtype="uint32")
    for text, entries in golden["orders"].items():
        for key, entry in entries.items():
            if key == "array_prefix":
                continue
            opts = dict(part.split("=") for part in key.split(","))
            dataset = Dataset(seq_ordering=text, partition_epoch=int(opts["partition_epoch"]))
            order = numpy.asarray(dataset.get_seq_order_for_epoch(int(opts["epoch"]), 1000, lens), dtype="<i8")
            assert len(order) == entry["len"]
            assert hashlib.sha256(order.tobytes()).hexdigest() == entry["sha256_int64_le"], (text, key)
            if entry["array"]:
                assert numpy.array_equal(order, arrays[entry["array"]])


def _misc_dataset(key: str, tmp_path: Path) -> tuple[Dataset, int]:
    """:return: dataset and number of sequences for a key of seq_orders_misc.json"""
    text, *parts = key.split(" (")[0].split(",")
    opts: dict[str, Any] = {"seq_ordering": text}
    n = 23
    tags = [f"t{i}" for i in range(n)]
    wanted = [f"t{i}" for i in (1, 4, 7, 10, 13, 16, 19, 22, 5)]
    lens_text = repr({f"t{i}": 5 * i % 23 for i in range(n)})
    for part in parts:
        name, _, value = part.partition("=")
        if name == "n":
            n = int(value)
            tags = tags[:n]
        elif name == "unique":
            opts["unique_seq_tags"] = True
        elif name == "tags":
            tags = [f"u{i % 7}" for i in range(n)]
        elif name == "filter":
            path = tmp_path / f"list.{value}"
            if value == "txt":
                path.write_text("\n".join(wanted) + "\n")
            elif value == "gz":
                path.write_bytes(gzip.compress("\n".join(wanted).encode()))
            else:
                path.write_bytes(pickle.dumps(wanted))
            opts["seq_list_filter_file"] = str(path)
        elif name == "seq_lens_file":
            (tmp_path / "lens.txt").write_text(lens_text)
            opts["seq_order_seq_lens_file"] = str(tmp_path / "lens.txt")
        elif name == "seq_lens_file_gz":
            (tmp_path / "lens.gz").write_bytes(gzip.compress(lens_text.encode()))
            opts["seq_order_seq_lens_file"] = str(tmp_path / "lens.gz")
        else:
            opts[name] = int(value)
    return TagDataset(tags, **opts), n


def test_golden_misc(tmp_path: Path) -> None:
    golden = load_json("seq_orders_misc.json")
    num = 0
    for key, by_epoch in golden.items():
        if key == "seeds" or key.startswith("fixed_random_subset"):
            continue
        dataset, n = _misc_dataset(key, tmp_path)
        for epoch, expected in by_epoch.items():
            order = dataset.get_seq_order_for_epoch(int(epoch), n, lens_of(n).__getitem__)
            assert list(order) == expected, (key, epoch)
            num += 1
    assert num > 60


def test_golden_fixed_random_subset() -> None:
    golden = load_json("seq_orders_misc.json")
    num = 0
    for key, expected in golden.items():
        if key.startswith("fixed_random_subset"):
            opts = dict(part.split("=") for part in key.split()[1:])
            subset = float(opts["subset"]) if "." in opts["subset"] else int(opts["subset"])
            assert so.fixed_random_subset(range(int(opts["n"])), subset, seed=int(opts["seed"])) == expected
            num += 1
    assert num == 8
    assert so.fixed_random_subset("abc", None) == ["a", "b", "c"]
    assert sorted(so.fixed_random_subset("abc", 10)) == ["a", "b", "c"]
    for bad in (-1, 0.1, 2.5, "x"):
        with pytest.raises((AssertionError, TypeError)):
            so.fixed_random_subset(range(3), bad)  # type: ignore[arg-type]


def test_golden_seeds() -> None:
    for entry in load_json("seq_orders_misc.json")["seeds"]:
        dataset = Dataset(
            partition_epoch=entry["partition_epoch"],
            random_seed_offset=entry["random_seed_offset"],
            fixed_random_seed=entry.get("fixed_random_seed"),
        )
        seeds = [dataset._get_random_seed_for_epoch(e, entry["num_epochs_fixed"]) for e in range(1, 9)]
        assert seeds == entry["epochs 1..8"], entry
    assert Dataset()._get_random_seed_for_epoch(None) == 1
    assert Dataset(fixed_random_seed=0)._get_random_seed_for_epoch(3) == 0


@pytest.mark.parametrize("text", VALID)
def test_valid_orderings_parse(text: str) -> None:
    assert so.parse_seq_ordering(text).text == text


@pytest.mark.parametrize("text", INVALID)
def test_invalid_ordering_raises_in_constructor(text: str) -> None:
    with pytest.raises(ValueError, match="invalid seq_ordering") as exc_info:
        Dataset(name="train", seq_ordering=text)
    assert repr(text) in str(exc_info.value)
    assert "train" in str(exc_info.value)
    assert "laplace[:BINS[:NTH]]" in str(exc_info.value)


def test_classes_with_own_orderings() -> None:
    class ByName(Dataset):
        _custom_seq_orderings = ("interleave",)

    class ByMethod(Dataset):
        def get_seq_order_for_epoch(self, epoch: int | None, num_seqs: int, get_seq_len: Any = None) -> list[int]:
            return [0]

    assert ByName(seq_ordering="interleave:3").seq_ordering == "interleave:3"
    assert ByMethod(seq_ordering="anything").get_seq_order_for_epoch(1, 3) == [0]
    with pytest.raises(ValueError, match="invalid seq_ordering 'anything'"):
        ByName(seq_ordering="anything")


def test_hint_for_the_dot_typo() -> None:
    with pytest.raises(ValueError, match='Did you mean "laplace:.1000"'):
        Dataset(seq_ordering="laplace.1000")
    with pytest.raises(ValueError, match='Did you mean "random"'):
        Dataset(seq_ordering="randon")


def test_ordering_by_function() -> None:
    def ordering(epoch: int, **_kwargs: object) -> str:
        return "reverse" if epoch > 1 else "default"

    dataset = Dataset(seq_ordering=ordering)
    assert list(dataset.get_seq_order_for_epoch(1, 3)) == [0, 1, 2]
    assert list(dataset.get_seq_order_for_epoch(2, 3)) == [2, 1, 0]
    with pytest.raises(TypeError, match="must return a str"):
        Dataset(seq_ordering=lambda **_: 3).get_seq_order_for_epoch(1, 3)  # type: ignore[arg-type,return-value]


def test_length_based_order_without_lengths() -> None:
    with pytest.raises(DatasetError, match="needs the sequence lengths"):
        Dataset(name="dev", seq_ordering="sorted").get_seq_order_for_epoch(1, 3)


@pytest.mark.parametrize("num", [0, -1, 2.5, True])
def test_bad_num_seqs(num: Any) -> None:
    with pytest.raises(DatasetError, match="expected int > 0"):
        Dataset(name="dev").get_seq_order_for_epoch(1, num)


def test_integral_float_num_seqs_is_fine() -> None:
    assert list(Dataset().get_seq_order_for_epoch(1, 3.0)) == [0, 1, 2]  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "uint64", "int16", "float32"])
@pytest.mark.parametrize(
    "text", ["laplace:2", "sorted", "sorted_reverse", "sort_bin_shuffle:2", "sort_bin_shuffle_x2:2"]
)
def test_dtype_of_lengths_has_no_effect(text: str, dtype: str) -> None:
    lens = numpy.array([3, 0, 5, 0, 2, 200, 0, 7])
    expected = Dataset(seq_ordering=text).get_seq_order_for_epoch(1, 8, lens)
    assert list(Dataset(seq_ordering=text).get_seq_order_for_epoch(1, 8, lens.astype(dtype))) == list(expected)


def test_bad_lengths() -> None:
    with pytest.raises(DatasetError, match="one number for each of the 3"):
        Dataset(seq_ordering="sorted").get_seq_order_for_epoch(1, 3, numpy.zeros(2))
    with pytest.raises(DatasetError, match="not numbers"):
        Dataset(seq_ordering="sorted").get_seq_order_for_epoch(1, 3, lambda i: "abc")


def _reference_laplace(perm: list[int], lens: Any, num_bins: int) -> list[int]:
    n, result = len(perm), []
    for i in range(num_bins):
        part = perm[i * n // num_bins : (i + 1) * n // num_bins]
        result += sorted(part, key=lambda j: lens[j] if i % 2 == 0 else -lens[j])  # noqa: B023
    return result


@given(
    lens=st.one_of(
        st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=50),
        st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=50),
        st.lists(st.integers(0, 3), min_size=1, max_size=50),
    ),
    bins=st.integers(1, 60),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=150)
def test_laplace_equals_reference(lens: list[float], bins: int, seed: int) -> None:
    order = so.order_seqs(so.parse_seq_ordering(f"laplace:{bins}"), len(lens), seed=seed, seq_lens=numpy.array(lens))
    perm = numpy.random.RandomState(seed).permutation(len(lens))
    assert list(order) == _reference_laplace(list(perm), lens, bins)


@given(
    text=st.sampled_from(PERMUTATIONS),
    lens=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    epoch=st.integers(1, 20),
    parts=st.integers(1, 7),
    shards=st.integers(1, 4),
    offset=st.integers(0, 100),
)
@settings(deadline=None, max_examples=150)
def test_parts_and_shards_partition_the_corpus(
    text: str, lens: list[int], epoch: int, parts: int, shards: int, offset: int
) -> None:
    n = len(lens)
    opts: dict[str, Any] = {"seq_ordering": text, "random_seed_offset": offset}
    full = Dataset(**opts).get_seq_order_for_epoch(epoch, n, numpy.array(lens))
    assert sorted(full) == list(range(n))
    first = (epoch - 1) * parts + 1
    pieces = []
    for sub_epoch in range(first, first + parts):
        for shard in range(shards):
            dataset = Dataset(partition_epoch=parts, _num_shards=shards, _shard_index=shard, **opts)
            pieces.append(list(dataset.get_seq_order_for_epoch(sub_epoch, n, numpy.array(lens))))
    assert [i for piece in pieces for i in piece] == list(full)
    sizes = [len(piece) for piece in pieces]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


@given(n=st.integers(0, 50), workers=st.integers(1, 8))
def test_strided_shards_partition(n: int, workers: int) -> None:
    shards = [list(so.strided_shard(range(n), num_workers=workers, worker_id=w)) for w in range(workers)]
    assert sorted(i for shard in shards for i in shard) == list(range(n))


@given(tags=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30), text=st.sampled_from(PERMUTATIONS))
@settings(deadline=None)
def test_unique_tags_and_filter(tags: list[str], text: str) -> None:
    lens = numpy.arange(len(tags)) % 5
    plain = TagDataset(tags, seq_ordering=text)
    unique = TagDataset(tags, seq_ordering=text, unique_seq_tags=True)
    order = list(plain.get_seq_order_for_epoch(2, len(tags), lens))
    kept = list(unique.get_seq_order_for_epoch(2, len(tags), lens))
    assert sorted({tags[i] for i in kept}) == sorted(set(tags)) and len(kept) == len(set(tags))
    assert kept == [i for pos, i in enumerate(order) if tags[i] not in {tags[j] for j in order[:pos]}]
    plain.seq_tags_filter = {tags[0]}
    assert list(plain.get_seq_order_for_epoch(2, len(tags), lens)) == [i for i in order if tags[i] == tags[0]]


def test_empty_filter_result_names_file_and_tags(tmp_path: Path) -> None:
    path = tmp_path / "segments.txt"
    path.write_text("x1\nx2\nx3\nx4\n")
    dataset = TagDataset([f"t{i}" for i in range(5)], name="dev", seq_list_filter_file=str(path))
    with pytest.raises(AssertionError, match="empty after applying seq_list_filter_file") as exc_info:
        dataset.get_seq_order_for_epoch(1, 5)
    text = str(exc_info.value)
    assert "segments.txt" in text and "dev" in text and "['x1', 'x2', 'x3']" in text and "['t0', 't1', 't2']" in text


def test_empty_part_is_warned_about_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("builtins.print", lambda *args, **kwargs: lines.append(" ".join(map(str, args))))
    path = tmp_path / "segments.txt"
    path.write_text("t0\nt3\n")
    dataset = TagDataset([f"t{i}" for i in range(6)], seq_list_filter_file=str(path), partition_epoch=3)
    assert list(dataset.get_seq_order_for_epoch(1, 6)) == [0]
    assert len(lines) == 1 and "parts [3] of partition_epoch 3" in lines[0]
    assert list(dataset.get_seq_order_for_epoch(2, 6)) == [3]
    with pytest.raises(DatasetError, match="smaller partition_epoch"):
        dataset.get_seq_order_for_epoch(3, 6)
    assert len(lines) == 1


def test_missing_tags_of_the_lens_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "lens.txt"
    path.write_text("{'t0': 1,\n'zz': 3}")
    dataset = TagDataset(["t0", "t1", "t2"], seq_ordering="sorted", seq_order_seq_lens_file=str(path))
    with pytest.raises(KeyError, match=r"lens\.txt.*2 of 3 tags, e\.g\. \['t1', 't2'\]"):
        dataset.get_seq_order_for_epoch(1, 3)


def test_lens_file_is_not_read_when_not_needed() -> None:
    dataset = TagDataset(["t0"], seq_ordering="random", seq_order_seq_lens_file="does-not-exist")
    assert list(dataset.get_seq_order_for_epoch(1, 1)) == [0]


def test_filter_with_wrong_number_of_tags(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("t0\n")
    dataset = TagDataset(["t0", "t1"], seq_list_filter_file=str(tmp_path / "l.txt"))
    with pytest.raises(AssertionError, match="needs all tags"):
        dataset.get_seq_order_for_epoch(1, 3)


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        ({"partition_epoch": 2, "repeat_epoch": 2}, "Combining partition_epoch and repeat_epoch is prohibited."),
        ({"partition_epoch": -1}, "partition_epoch"),
        ({"partition_epoch": "3"}, "partition_epoch"),
        ({"_num_shards": 2, "_shard_index": 2}, "_shard_index"),
        ({"_num_shards": 0}, "_num_shards"),
    ],
)
def test_bad_options(opts: dict[str, Any], text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        Dataset(**opts)


def test_partition_epoch_none_and_zero_mean_one() -> None:
    for value in (None, 0, 1):
        assert Dataset(partition_epoch=value, repeat_epoch=value).partition_epoch == 1


@pytest.mark.parametrize("text", VALID)
def test_orders_of_one_sequence(text: str) -> None:
    order = list(Dataset(seq_ordering=text).get_seq_order_for_epoch(1, 1, numpy.array([3])))
    assert order == ([] if text.startswith("default_every_n") else [0])


def test_seed_offset_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETURNN_RANDOM_SEED_OFFSET", "7")
    assert Dataset().random_seed_offset == 0  # no config
    with global_config_ctx(Config()):
        assert Dataset().random_seed_offset == 7
        assert Dataset(random_seed_offset=2).random_seed_offset == 2
        monkeypatch.setenv("RETURNN_RANDOM_SEED_OFFSET", "x")
        with pytest.raises(ValueError, match="RETURNN_RANDOM_SEED_OFFSET"):
            _ = Dataset().random_seed_offset


def test_part_bounds_are_a_partition() -> None:
    check: Callable[[int, int], list[int]] = lambda n, k: [  # noqa: E731
        i for p in range(k) for i in range(*so.part_bounds(n, k, p))
    ]
    for n in range(12):
        for k in range(1, 8):
            assert check(n, k) == list(range(n))
