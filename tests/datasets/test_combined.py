"""CombinedDataset."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.datasets._meta.interleave import gumbel_order, interleaved_order
from returnn.datasets.basic import init_dataset
from returnn.datasets.hdf import HDFDataset
from returnn.errors import ConfigError, DatasetError
from tests.datasets.combining import check_bulk, check_same_batches, load_cases, tags_of
from tests.datasets.combining_data import StreamDataset, hdf
from tests.datasets.everyday_use import check_everyday_use, read_epoch

CASES = load_cases("orders_combined.json")
ABC = {"a": hdf("c_a"), "b": hdf("c_b"), "c": hdf("c_c")}
MAP = {("a", "data"): "data", ("b", "data"): "other", ("c", "data"): "classes"}
ALL_TAGS = [f"a-{i}" for i in range(7)] + [f"b-{i}" for i in range(5)] + [f"c-{i}" for i in range(3)]


def combined(**opts: Any) -> dict[str, Any]:
    """:return: options"""
    return {"class": "CombinedDataset", "datasets": ABC, "data_map": MAP, **opts}


def streams(**opts: Any) -> dict[str, Any]:
    """:return: options, with children which do not know their number of sequences"""
    children = {
        "x": {"class": StreamDataset, "num": 5, "start": 100},
        "y": {"class": StreamDataset, "num": 3, "start": 200},
        "z": hdf("c_a"),
    }
    return combined(
        datasets=children, data_map={("x", "data"): "data", ("y", "data"): "data", ("z", "data"): "z"}, **opts
    )


X = [f"stream-{i}" for i in range(100, 105)]
Y = [f"stream-{i}" for i in range(200, 203)]
Z = [f"a-{i}" for i in range(7)]


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("pickled", [False, True])
def test_golden_orders(case: str, pickled: bool) -> None:
    opts = dict(CASES[case]["opts"])
    opts["data_map"] = {tuple(key.split(":")): value for key, value in opts["data_map"].items()}
    dataset = init_dataset(opts)
    # Of empty streams, mainline's shape is the right one.
    epochs = CASES[case].get("epochs") or CASES[case]["epochs_main"]
    for epoch, expected in epochs.items():
        if pickled:
            dataset = pickle.loads(pickle.dumps(dataset))
        seqs = read_epoch(dataset, int(epoch))
        assert dataset.num_seqs == len(seqs)
        if isinstance(expected[0], str):
            assert [tag for tag, _ in seqs] == expected
        else:
            for (tag, data), expected_seq in zip(seqs, expected, strict=True):
                assert tag == expected_seq["tag"]
                assert {key: list(value.shape) for key, value in data.items()} == expected_seq["shapes"]
                assert {key: float(value.sum()) for key, value in data.items()} == expected_seq["sums"]
        check_bulk(dataset, seqs)


def test_attributes() -> None:
    dataset = init_dataset(combined(name="train"))
    assert dataset.get_data_keys() == ["data", "classes", "other"]
    assert dataset.get_target_list() == ["classes", "other"]
    assert dataset.num_inputs == 2
    assert {key: tuple(value) for key, value in (dataset.num_outputs or {}).items()} == {
        "data": (2, 2),
        "other": (2, 2),
        "classes": (7, 1),
    }
    assert [dataset.get_data_dtype(key) for key in dataset.get_data_keys()] == ["float32", "int32", "float32"]
    assert (dataset.is_data_sparse("classes"), dataset.get_data_dim("classes"), dataset.get_data_shape("other")) == (
        True,
        7,
        [2],
    )
    children = list(dataset.child_datasets())
    assert [child.name for child in children] == ["train_a", "train_b", "train_c"]
    assert not any(child._is_top_level for child in children)
    assert dataset.get_total_num_seqs() == 15 and dataset.get_all_tags() == ALL_TAGS


def test_own_stream_data_is_not_needed() -> None:
    dataset = init_dataset(combined(data_map={("a", "data"): "x", ("b", "data"): "x"}, datasets=ABC))
    assert (dataset.num_inputs, dataset.get_data_keys()) == (0, ["x"])
    assert len(read_epoch(dataset, 1)) == 12


def test_same_epoch_again_keeps_the_order_unless_consumed() -> None:
    dataset = init_dataset(combined(seq_ordering="random"))
    assert dataset.init_seq_order(epoch=1)
    assert not dataset.init_seq_order(epoch=1)
    expected = [tag for tag, _ in read_epoch(dataset, 1)]
    assert dataset.init_seq_order(epoch=1)
    assert [tag for tag, _ in read_epoch(dataset, 1)] == expected
    # A copy has the epoch, but no order.
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.epoch == 1 and copy.init_seq_order(epoch=1)
    assert [tag for tag, _ in read_epoch(copy, 1)] == expected


def test_one_stream_of_several_children_and_dtypes() -> None:
    """The peers fail with an assertion if a child has another dtype than float32 or int32."""
    children = {"x": {"class": StreamDataset, "num": 2, "dtype": "float64"}, "y": {"class": StreamDataset, "num": 2}}
    data_map = {("x", "data"): "data", ("y", "data"): "data"}
    dataset = init_dataset(combined(datasets=children, data_map=data_map))
    assert {data["data"].dtype.name for _, data in read_epoch(dataset, 1)} == {"float64"}
    assert dataset.get_data_dtype("data") == "float64"
    dataset = init_dataset(combined(datasets=children, data_map=data_map, data_dtypes={"data": "float32"}))
    assert {data["data"].dtype.name for _, data in read_epoch(dataset, 1)} == {"float32"}
    dataset = init_dataset(combined(datasets=children, data_map=data_map, data_dtypes={"data": "int32"}))
    with pytest.raises(DatasetError, match="stream 'data' of the child .* has another dtype.*expected int32"):
        read_epoch(dataset, 1)


class NoCorpusDataset(HDFDataset):
    """A class of a user that does not know corpus indices."""

    def have_corpus_seq_idx(self) -> bool:
        """:return: False"""
        return False


def test_child_without_corpus_indices() -> None:
    datasets = {**ABC, "a": {**hdf("c_a"), "class": NoCorpusDataset}}
    assert tags_of(combined(datasets=datasets)) == ALL_TAGS
    assert sorted(tags_of(combined(datasets=datasets, seq_ordering="random_dataset"))) == sorted(ALL_TAGS)
    dataset = init_dataset(combined(datasets=datasets, seq_ordering="random"))
    with pytest.raises(AssertionError, match="NoCorpusDataset cannot be reordered.*have_corpus_seq_idx"):
        dataset.init_seq_order(epoch=1)


def test_given_order() -> None:
    dataset = init_dataset(combined(seq_ordering="random"))
    dataset.init_seq_order(epoch=1, seq_list=["b-1", "a-0", "c-2", "a-0"])
    assert [dataset.get_tag(i) for i in range(dataset.num_seqs)] == ["b-1", "a-0", "c-2", "a-0"]
    assert list(dataset.get_current_seq_order()) == [8, 0, 14, 0]
    assert [dataset.get_corpus_seq_idx(i) for i in range(4)] == [8, 0, 14, 0]
    with pytest.raises(KeyError, match="'nope'"):
        dataset.init_seq_order(epoch=1, seq_list=["nope"])
    dataset = init_dataset(streams())
    with pytest.raises(AssertionError, match="seq_list or seq_order is not possible"):
        dataset.init_seq_order(epoch=1, seq_order=[0])


def test_children_in_children() -> None:
    meta = {
        "class": "MetaDataset",
        "datasets": {
            "feat": hdf("feat", seq_ordering="random", partition_epoch=2),
            "lab": hdf("lab_perm"),
        },
        "data_map": {"data": ("feat", "data"), "classes": ("lab", "data")},
        "seq_order_control_dataset": "feat",
    }
    inner = combined(seq_ordering="random_dataset", data_map={("a", "data"): "data", ("c", "data"): "classes"})
    opts = combined(
        datasets={"meta": meta, "inner": inner},
        data_map={("meta", "data"): "m", ("meta", "classes"): "ml", ("inner", "data"): "i", ("inner", "classes"): "il"},
        seq_ordering="laplace:.5",
    )
    dataset = init_dataset(opts)
    expected = dict(read_epoch(init_dataset(meta), 3))
    for epoch in (3, 3, 4):
        seqs = read_epoch(dataset, epoch)
        tags = [tag for tag, _ in seqs]
        assert Counter(tags) == Counter(tags_of(meta, epoch)) + Counter(tags_of(inner, epoch))
        check_bulk(dataset, seqs)
        for tag, data in seqs:
            if epoch == 3 and tag in expected:
                np.testing.assert_array_equal(data["m"], expected[tag]["data"])
                np.testing.assert_array_equal(data["ml"], expected[tag]["classes"])
                assert data["i"].shape == (0, 2) and data["il"].shape == (0,)


def _function_child() -> dict[str, Any]:
    return hdf("c_a", seq_ordering="random")


def test_children_as_function_and_dataset() -> None:
    datasets = {"a": _function_child, "b": HDFDataset(hdf("c_b")["files"]), "c": ABC["c"]}
    dataset = init_dataset(combined(datasets=datasets, seq_ordering="random"))
    expected = tags_of({**combined(datasets={**ABC, "a": _function_child()}), "seq_ordering": "random"})
    copy = pickle.loads(pickle.dumps(dataset))
    assert [tag for tag, _ in read_epoch(dataset, 1)] == [tag for tag, _ in read_epoch(copy, 1)] == expected


def test_static_children_with_scalars_by_length() -> None:
    """A scalar that a child does not have is 0: it has no time axis that could be empty."""
    with_scalar = [{"data": np.ones((n, 2), "float32"), "scalar": np.array(n, "int64")} for n in (4, 2, 7)]
    without = [{"data": np.ones((n, 2), "float32")} for n in (3, 5)]
    datasets = {"x": {"class": "StaticDataset", "data": with_scalar}, "y": {"class": "StaticDataset", "data": without}}
    data_map = {("x", "data"): "data", ("x", "scalar"): "scalar", ("y", "data"): "data"}
    dataset = init_dataset(combined(datasets=datasets, data_map=data_map, seq_ordering="sorted"))
    seqs = read_epoch(dataset, 1)
    assert [len(data["data"]) for _, data in seqs] == [2, 3, 4, 5, 7]
    assert [data["scalar"].tolist() for _, data in seqs] == [2, 0, 4, 0, 7]
    check_bulk(dataset, seqs)


# ---- options about the order of all


@pytest.mark.parametrize("ordering", ["random", "random_dataset", "sorted"])
def test_filter_file_selects_after_the_order(tmp_path: Path, ordering: str) -> None:
    path = tmp_path / "filter.txt"
    path.write_text("b-1\na-3\nc-0\na-1\n")
    tags = tags_of(combined(seq_ordering=ordering, seq_list_filter_file=str(path)))
    assert tags == [tag for tag in tags_of(combined(seq_ordering=ordering)) if tag in ("b-1", "a-3", "c-0", "a-1")]
    path.write_text("nope\n")
    with pytest.raises(DatasetError, match="the epoch is empty after applying seq_list_filter_file.*'nope'.*'a-0'"):
        tags_of(combined(seq_ordering=ordering, seq_list_filter_file=str(path)))


def test_unique_tags() -> None:
    datasets = {"a": hdf("c_a", seq_ordering="random"), "b": hdf("c_a")}
    data_map = {("a", "data"): "data", ("b", "data"): "data"}
    for ordering in ("default", "random_dataset"):
        opts = combined(datasets=datasets, data_map=data_map, seq_ordering=ordering)
        tags = tags_of({**opts, "unique_seq_tags": True})
        assert tags == list(dict.fromkeys(tags_of(opts))) and len(tags) == 7


def test_lens_file(tmp_path: Path) -> None:
    path = tmp_path / "lens.txt"
    lens = {tag: (i * 7) % 15 for i, tag in enumerate(ALL_TAGS)}
    path.write_text(repr(lens))
    assert tags_of(combined(seq_ordering="sorted", seq_order_seq_lens_file=str(path))) == sorted(lens, key=lens.get)  # type: ignore[arg-type]
    path.write_text("{'a-0': 3}")
    with pytest.raises(KeyError, match="no length for 14 of 15 tags"):
        tags_of(combined(seq_ordering="sorted", seq_order_seq_lens_file=str(path)))


def _random_in_odd_epochs(*, epoch: int | None, **_kwargs: Any) -> str:
    return "random_dataset" if (epoch or 1) % 2 else "sorted"


def test_ordering_by_function() -> None:
    opts = combined(seq_ordering=_random_in_odd_epochs)
    assert tags_of(opts, 1) == tags_of(combined(seq_ordering="random_dataset"), 1)
    assert tags_of(opts, 2) == tags_of(combined(seq_ordering="sorted"), 2)


def test_random_seed_offset_counts_for_all() -> None:
    datasets = {**ABC, "a": hdf("c_a", seq_ordering="random")}
    shifted = tags_of(combined(datasets=datasets, random_seed_offset=2, seq_ordering="random"), 1)
    assert shifted == tags_of(combined(datasets=datasets, seq_ordering="random"), 3)


def test_reversed_takes_the_last_child_first() -> None:
    assert tags_of(combined(seq_ordering="reversed")) == ALL_TAGS[12:] + ALL_TAGS[7:12] + ALL_TAGS[:7]


orderings = st.sampled_from(["default", "random", "random_dataset", "sorted", "laplace:.3", "interleave", "reverse"])


@settings(max_examples=25, deadline=None)
@given(
    ordering=orderings,
    epoch=st.integers(1, 9),
    parts=st.integers(1, 4),
    shards=st.integers(1, 3),
    a_parts=st.integers(1, 3),
)
def test_parts_and_shards_cover_the_union(ordering: str, epoch: int, parts: int, shards: int, a_parts: int) -> None:
    if ordering == "interleave":
        parts = shards = 1
    # Within a full epoch of the whole, the child must not move on.
    datasets = {**ABC, "a": hdf("c_a", partition_epoch=a_parts if parts == 1 else 1)}
    full = (epoch - 1) * parts
    tags: list[str] = []
    for part in range(1, parts + 1):
        pool = [tag for child in datasets.values() for tag in tags_of(child, full + part)]
        for shard in range(shards):
            opts = combined(datasets=datasets, seq_ordering=ordering, partition_epoch=parts)
            dataset = init_dataset({**opts, "_num_shards": shards, "_shard_index": shard})
            seqs = [tag for tag, _ in read_epoch(dataset, full + part)]
            assert [tag for tag, _ in read_epoch(dataset, full + part)] == seqs
            tags += seqs
    assert Counter(tags) == Counter(pool)


# ---- sampling


@settings(max_examples=25, deadline=None)
@given(ordering=orderings, sizes=st.tuples(*[st.integers(0, 9)] * 3).filter(any), start=st.integers(1, 5))
def test_sampling_sizes_are_exact_and_go_round(ordering: str, sizes: tuple[int, int, int], start: int) -> None:
    dataset = init_dataset(combined(seq_ordering=ordering, sampling_sizes=dict(zip("abc", sizes, strict=True))))
    for epoch in (start, start + 1):
        seqs = read_epoch(dataset, epoch)
        counts = Counter(tag for tag, _ in seqs)
        for child, size, num in zip("abc", sizes, (7, 5, 3), strict=True):
            first = (epoch - 1) * size
            expected = Counter(f"{child}-{i % num}" for i in range(first, first + size))
            assert Counter({tag: n for tag, n in counts.items() if tag[0] == child}) == expected


def test_sampling_of_a_child_with_its_own_parts() -> None:
    datasets = {**ABC, "a": hdf("c_a", partition_epoch=3)}  # 3, 2, 2 sequences
    tags = tags_of(combined(datasets=datasets, sampling_sizes=2), 2)
    assert tags == ["a-3", "a-4", "b-2", "b-3", "c-2", "c-0"]


# ---- interleave


def test_interleave_uses_all_children_up_evenly() -> None:
    order = interleaved_order([1000, 10, 0, 333])
    fracs = [np.flatnonzero(order == i) for i in (0, 1, 3)]
    for positions, num in zip(fracs, (1000, 10, 333), strict=True):
        assert len(positions) == num
        ideal = (np.arange(num) + 1) / num * len(order)
        assert np.abs(positions + 1 - ideal).max() < 140
    assert len(interleaved_order([0, 0])) == 0


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    scale=st.sampled_from([0.1, 1.0, 5.0, "remaining"]),
    seed=st.integers(1, 99),
)
def test_gumbel_order_equals_the_steps_on_demand(counts: list[int], scale: Any, seed: int) -> None:
    order = gumbel_order(counts, seed, scale)
    assert np.bincount(order, minlength=len(counts)).tolist() == counts
    # The definition, step by step.
    rng = np.random.RandomState(seed)
    used = [0] * len(counts)
    for step, child in enumerate(order.tolist()):
        active = [i for i, count in enumerate(counts) if used[i] < count]
        noise = rng.gumbel(size=len(active))
        factor = 1 - max((used[i] + 1) / counts[i] for i in active) if scale == "remaining" else scale
        logits = np.log([max(counts[i] - used[i], 1) for i in active])
        assert active[int(np.argmax(logits + factor * noise))] == child, step
        used[child] += 1


def test_complete_frac_of_interleave_is_the_childs() -> None:
    dataset = init_dataset(combined(seq_ordering="interleave"))
    dataset.init_seq_order(epoch=1)
    fracs = [dataset.get_complete_frac(i) for i in range(15)]
    assert fracs[:4] == [1 / 7, 1 / 5, 2 / 7, 1 / 3]
    assert fracs == sorted(fracs, key=lambda frac: frac or 0) and fracs[-1] == 1.0
    dataset = init_dataset(combined(seq_ordering="interleave", interleave_gumbel_scale=1.0))
    dataset.init_seq_order(epoch=1)
    assert [dataset.get_complete_frac(i) for i in range(15)] == [(i + 1) / 15 for i in range(15)]


# ---- children of unknown length


def test_on_demand_default_and_reversed() -> None:
    dataset = init_dataset(streams())
    seqs = read_epoch(dataset, 1)
    assert [tag for tag, _ in seqs] == X + Y + Z
    assert seqs[0][1]["data"][:, 0].tolist() == [100.0] and seqs[0][1]["z"].shape == (0, 2)
    assert not dataset.supports_bulk() and dataset.num_seqs == 15
    assert tags_of(streams(seq_ordering="reversed")) == Z + Y + X


@pytest.mark.parametrize("ordering", ["random_dataset", "interleave"])
def test_on_demand_random_is_reproducible(ordering: str) -> None:
    opts = streams(seq_ordering=ordering)
    if ordering == "interleave":
        opts["interleave_gumbel_scale"] = 1.0
    np.random.seed(1)
    tags = tags_of(opts)
    np.random.seed(2)
    assert tags_of(opts) == tags
    for child in (X, Y, Z):
        assert [tag for tag in tags if tag in child] == child
    assert len({tuple(tags_of(opts, epoch)) for epoch in range(1, 6)}) > 1


def test_on_demand_interleave_is_as_with_known_lengths() -> None:
    for scale in (None, "remaining", 0.5):
        children: dict[str, Any] = {
            "x": {"class": StreamDataset, "num": 5, "start": 100, "exact_frac": True},
            "y": {"class": StreamDataset, "num": 3, "start": 200, "exact_frac": True, "estimated_num_seqs": 3},
        }
        data_map = {("x", "data"): "data", ("y", "data"): "data"}
        opts = combined(datasets=children, data_map=data_map, seq_ordering="interleave", interleave_gumbel_scale=scale)
        dataset = init_dataset(opts)
        dataset.init_seq_order(epoch=1)
        fracs: list[float] = []
        tags: list[str] = []
        while dataset.is_less_than_num_seqs(len(tags)):
            dataset.load_seqs(len(tags), len(tags) + 1)
            fracs.append(dataset.get_complete_frac(len(tags)) or 0.0)
            tags.append(dataset.get_tag(len(tags)))
        assert fracs == sorted(fracs) and fracs[-1] == 1.0
        if scale is None:
            by_child = [[X, Y][i] for i in interleaved_order([5, 3])]
            assert tags == _take(by_child)


def _take(children: list[list[str]]) -> list[str]:
    iters = {id(child): iter(child) for child in children}
    return [next(iters[id(child)]) for child in children]


def test_on_demand_refuses_what_needs_the_number() -> None:
    dataset = init_dataset(streams(seq_ordering="random"))
    with pytest.raises(
        NotImplementedError,
        match="The sorting method 'random' is not implemented for the case that number of sequences is not known in advance.",
    ):
        dataset.init_seq_order(epoch=1)
    for option, value in (
        ("partition_epoch", 2),
        ("repeat_epoch", 2),
        ("sampling_sizes", 2),
        ("unique_seq_tags", True),
    ):
        dataset = init_dataset(streams(**{option: value}))
        with pytest.raises(ConfigError, match=f'"{option}" cannot be combined with children .*x, y'):
            dataset.init_seq_order(epoch=1)


# ---- mistakes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_map": {"data": ("a", "data")}}, ["data_map", "Swap key and value", "MetaDataset"]),
        ({"data_map": {("nope", "data"): "data"}}, ["('nope', 'data')", "['a', 'b', 'c']"]),
        ({"data_map": {("a", "nope"): "data"}}, ["('a', 'nope')", "no stream 'nope'", "['data']"]),
        ({"data_map": {}}, ["nonempty"]),
        ({"data_map": {**MAP, ("c", "data"): "data"}}, ["different dims of stream 'data'", "(2, 2)", "(7, 1)"]),
        ({"data_dims": {"data": 2}}, ["data_dims", "classes"]),
        ({"sampling_sizes": {"a": 1}}, ["sampling_sizes", "['a', 'b', 'c']"]),
        ({"sampling_sizes": 1.5}, ["sampling_sizes", "1.5"]),
        ({"sampling_sizes": 2, "partition_epoch": 2}, ['"partition_epoch" cannot be combined with sampling_sizes']),
        ({"sampling_sizes": 2, "unique_seq_tags": True}, ['"unique_seq_tags" cannot be combined with sampling_sizes']),
        (
            {"seq_ordering": "interleave", "partition_epoch": 2},
            ['"partition_epoch" cannot be combined with interleave'],
        ),
        ({"seq_ordering": "interleave", "_num_shards": 2}, ['"_num_shards" cannot be combined with interleave']),
        ({"interleave_gumbel_scale": "half"}, ["interleave_gumbel_scale", "'half'"]),
        ({"seq_ordering": "random_datasets"}, ["random_datasets"]),
        ({"seq_ordering": "random_dataset:2"}, ["random_dataset:2"]),
        ({"window": 3}, ["window"]),
        ({"sampling_sizes": {"a": 1, "b": 1, "c": 1, "d": 1}}, ["sampling_sizes", "one for each of ['a', 'b', 'c']"]),
    ],
)
def test_option_errors(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises((ConfigError, DatasetError, NotImplementedError)) as info:
        init_dataset(combined(**changes))
    for word in words:
        assert word in str(info.value)


def test_one_dataset_object_twice_is_refused() -> None:
    """Each place would read in the order of the other; and copies in other processes would be two."""
    a = init_dataset(hdf("c_a"))
    inner = {"class": "ConcatDataset", "datasets": [a]}
    for first, second in ((a, a), (a, inner), (inner, a)):
        with pytest.raises(ConfigError, match="children a and b are, or contain, the same dataset object"):
            init_dataset(
                combined(datasets={"a": first, "b": second}, data_map={("a", "data"): "x", ("b", "data"): "y"})
            )
    with pytest.raises(ConfigError, match="children 0 and 1"):
        init_dataset({"class": "ConcatDataset", "datasets": [a, a]})


def test_unknown_lengths_and_empty_children_are_named() -> None:
    datasets = {**ABC, "a": {"class": "AnythingDataset", "data_keys": {"data": {"dim": 2, "shape": (None, 2)}}}}
    with pytest.raises(NotImplementedError, match=r"not known of \['a'\]"):
        tags_of(combined(datasets=datasets, seq_ordering="random"))
    with pytest.raises(DatasetError, match="Call init_seq_order"):
        init_dataset(combined()).load_seqs(0, 1)
    dataset = init_dataset(combined())
    dataset.init_seq_order(epoch=1)
    with pytest.raises(KeyError, match="No such data key.*'nope'"):
        dataset.read_seqs(np.arange(2), ["nope"])


def test_chunk_shuffle_is_refused_with_a_reason() -> None:
    with pytest.raises(NotImplementedError, match="'ChunkShuffleDataset' is not supported: .*chunking"):
        init_dataset({"class": "ChunkShuffleDataset", "dataset": hdf("c_a")})


def test_options_without_effect_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    init_dataset(combined(interleave_gumbel_scale=1.0, name="train"))
    assert "CombinedDataset 'train': no effect of interleave_gumbel_scale" in capsys.readouterr().out
    init_dataset(combined(data_dims={"data": (3, 2), "other": (2, 2), "classes": (7, 1)}))
    assert "data_dims['data'] = (3, 2) replaces (2, 2)" in capsys.readouterr().out


@pytest.mark.parametrize("ordering", ["laplace:.4", "interleave"])
def test_batches_do_not_depend_on_how_data_is_read(ordering: str) -> None:
    check_same_batches(combined(seq_ordering=ordering), 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "opts",
    [
        combined(seq_ordering="random", sampling_sizes={"a": 4, "b": 5, "c": 4}),
        streams(seq_ordering="random_dataset"),
    ],
    ids=["sampling", "on demand"],
)
def test_everyday_use(opts: dict[str, Any]) -> None:
    check_everyday_use(opts)
