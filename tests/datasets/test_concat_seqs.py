"""ConcatSeqsDataset and EpochWiseFilter."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from returnn.datasets._meta.part_frames import PartOptions, Parts
from returnn.datasets.basic import init_dataset
from returnn.datasets.meta import ConcatSeqsDataset, EpochWiseFilter
from returnn.errors import ConfigError, DatasetError
from tests.datasets.combining import check_bulk, check_same_batches, load_cases, tags_of
from tests.datasets.combining_data import GOLDEN, StreamDataset, hdf
from tests.datasets.everyday_use import check_everyday_use, check_jump, read_epoch

CASES = load_cases("orders_concat.json", "concatseqs")
META = {
    "class": "MetaDataset",
    "datasets": {"feat": hdf("feat"), "lab": hdf("lab_perm")},
    "data_map": {"data": ("feat", "data"), "classes": ("lab", "data")},
    "seq_order_control_dataset": "feat",
}


def concat_seqs(**opts: Any) -> dict[str, Any]:
    """:return: options"""
    return {
        "class": "ConcatSeqsDataset",
        "dataset": META,
        "seq_list_file": str(GOLDEN / "concatseqs_list.txt"),
        "seq_len_file": str(GOLDEN / "concatseqs_lens.py"),
        **opts,
    }


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("pickled", [False, True])
def test_golden(case: str, pickled: bool) -> None:
    opts = dict(CASES[case]["opts"])
    if "epoch_wise_filter" in opts:
        opts["epoch_wise_filter"] = {
            tuple(map(int, epochs.split(".."))): value for epochs, value in opts["epoch_wise_filter"].items()
        }
    dataset = init_dataset(opts)
    for epoch, expected in CASES[case]["epochs"].items():
        if pickled:
            dataset = pickle.loads(pickle.dumps(dataset))
        seqs = read_epoch(dataset, int(epoch))
        assert len(seqs) == len(expected) == dataset.num_seqs
        for (tag, data), expected_seq in zip(seqs, expected, strict=True):
            if isinstance(expected_seq, str):
                assert tag == expected_seq
                continue
            assert tag == expected_seq["tag"]
            assert {key: list(value.shape) for key, value in data.items()} == expected_seq["shapes"]
            assert {key: float(value.sum()) for key, value in data.items()} == expected_seq["sums"]
        check_bulk(dataset, seqs)


def test_attributes_and_given_order() -> None:
    dataset = init_dataset(concat_seqs(name="train", seq_ordering="random"))
    assert isinstance(dataset, ConcatSeqsDataset)
    assert dataset.sub_dataset is dataset.dataset and dataset.dataset.name == "train_subdataset"
    assert dataset.have_corpus_seq_idx() and dataset.get_total_num_seqs() == 6
    lines = (GOLDEN / "concatseqs_list.txt").read_text().splitlines()
    assert dataset.get_all_tags() == lines
    dataset.init_seq_order(epoch=1, seq_order=[4, 1, 4])
    assert [dataset.get_tag(i) for i in range(3)] == [lines[4], lines[1], lines[4]]
    dataset.init_seq_order(epoch=1, seq_list=[lines[5], lines[0]])
    assert [dataset.get_corpus_seq_idx(i) for i in range(2)] == [5, 0]
    assert dataset.get_estimated_seq_length(1) == 14
    assert dataset.get_seq_length(1)["data"] == 14
    assert (dataset.get_data_dim("classes"), dataset.is_data_sparse("classes"), dataset.get_data_dtype("data")) == (
        11,
        True,
        "float32",
    )


def test_child_without_corpus_list_gets_tags(tmp_path: Path) -> None:
    """A class of a user; its order cannot be given, so that the check of tags shows it."""
    (tmp_path / "list.txt").write_text("stream-0;stream-1\nstream-2\n")
    (tmp_path / "lens.json").write_text('{"stream-0": 1, "stream-1": 2, "stream-2": 3}')
    opts = concat_seqs(
        dataset={"class": StreamDataset, "num": 5},
        seq_list_file=tmp_path / "list.txt",
        seq_len_file=tmp_path / "lens.json",
    )
    seqs = read_epoch(init_dataset(opts), 1)
    assert [(tag, data["data"][:, 0].tolist()) for tag, data in seqs] == [
        ("stream-0;stream-1", [0.0, 1.0, 1.0]),
        ("stream-2", [2.0, 2.0, 2.0]),
    ]
    with pytest.raises(DatasetError, match="another sequence than asked for at position 0.*'stream-2'.*'stream-0'"):
        read_epoch(init_dataset({**opts, "seq_ordering": "reverse"}), 1)


# ---- the parts, against the definition

parts_strategy = st.lists(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=4), min_size=1, max_size=4
)


def _expected(
    parts: list[np.ndarray], targets: list[int], postfix: int | None, pad: int | None, mult: int | None
) -> Any:
    result = []
    for i, part in enumerate(parts):
        if i + 1 < len(parts):
            if postfix is not None:
                assert part[-1] == postfix
                part = part[:-1]
            if pad is not None:
                want = targets[i] * pad
                part = np.concatenate([part[:want], np.repeat(part[-1:], max(want - len(part), 0))])
            if mult is not None:
                part = np.concatenate([part, np.repeat(part[-1:], -len(part) % mult)])
        result.append(part)
    return np.concatenate(result)


@settings(max_examples=60, deadline=None)
@given(
    seqs=parts_strategy,
    with_postfix=st.booleans(),
    pad=st.sampled_from([None, 1, 2]),
    mult=st.sampled_from([None, 1, 3, 4]),
)
@example(seqs=[[(2, 1), (1, 1)]], with_postfix=True, pad=None, mult=3)
def test_frames_of_parts(
    seqs: list[list[tuple[int, int]]], with_postfix: bool, pad: int | None, mult: int | None
) -> None:
    flat_parts = [lens for seq in seqs for lens in seq]
    # A part that is only a postfix has no frame to repeat.
    lens = np.array([num + with_postfix for num, _ in flat_parts], dtype=np.int64)
    targets = np.array([num for _, num in flat_parts], dtype=np.int64)
    arrays = [np.concatenate([np.arange(num - 1) + 10 * i, [-1]]) for i, num in enumerate(lens.tolist())]
    is_last = np.array([i + 1 == len(seq) for seq in seqs for i in range(len(seq))])
    options = PartOptions(
        {"x": -1} if with_postfix else {}, {"x": ("t", pad)} if pad else {}, {"x": mult} if mult else {}
    )
    parts = Parts(is_last, str, "test")
    all_lens = {"x": lens, "t": targets}
    flat, new_lens = parts.take_frames("x", np.concatenate(arrays), all_lens, options)
    assert parts.new_lens("x", all_lens, options).tolist() == new_lens.tolist()
    start = 0
    expected = []
    for seq in seqs:
        end = start + len(seq)
        expected.append(
            _expected(arrays[start:end], targets[start:end].tolist(), -1 if with_postfix else None, pad, mult)
        )
        start = end
    np.testing.assert_array_equal(flat, np.concatenate(expected))
    ends = np.flatnonzero(is_last) + 1
    assert [int(part.sum()) for part in np.split(new_lens, ends)[:-1]] == [len(e) for e in expected]


# ---- mistakes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"remove_in_between_postfix": {"nope": 0}}, ["remove_in_between_postfix", "'classes', 'data'", "nope"]),
        ({"remove_in_between_postfix": {"classes": 5}}, ["does not end with the label 5, but with 0", "corp/r0/s0"]),
        ({"remove_in_between_postfix": {"data": 0}}, ["'data' has 2 axes"]),
        ({"remove_in_between_postfix": {"classes": "x"}}, ["int, the label"]),
        ({"repeat_in_between_last_frame_up_to_multiple_of": {"data": 0}}, ["'data' is invalid", "int > 0"]),
        ({"pad_narrow_data_to_multiple_of_target_len": {"data": "classes"}}, ["(target stream, int > 0)"]),
        ({"pad_narrow_data_to_multiple_of_target_len": {"data": ("nope", 2)}}, ["unknown streams", "nope"]),
        ({"epoch_wise_filter": {(1, 3): {"max_len": 3}}}, ["unknown options ['max_len']", "max_mean_len"]),
        ({"epoch_wise_filter": {1: {"max_mean_len": 3}}}, ["(first epoch, last epoch)"]),
        ({"epoch_wise_filter": [(1, 3)]}, ["(first epoch, last epoch)", "[(1, 3)]"]),
        ({"epoch_wise_filter": {(7, 9): {"max_len": 3}}}, ["(7, 9)", "unknown options ['max_len']"]),
        ({"epoch_wise_filter": {(7, 9): {"max_mean_len": "3"}}}, ["(7, 9)", "max_mean_len must be a number", "'3'"]),
        ({"epoch_wise_filter": {(7, 9): 3}}, ["(7, 9)", "dict of options", "got 3"]),
        ({"seq_tag_delim": "+"}, ["no length for", "separated by '+'"]),
        ({"seq_tag_delim": ""}, ["seq_tag_delim"]),
        ({"seq_list_file": "nope.txt"}, ["nope.txt", "does not exist"]),
        ({"dataset": hdf("c_a")}, ["tags in seq_list_file", "'corp/r0/s0'", "'a-0'"]),
    ],
)
def test_errors(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises((ConfigError, DatasetError)) as info:
        dataset = init_dataset(concat_seqs(**changes))
        read_epoch(dataset, 1)
    for word in words:
        assert word in str(info.value)


def test_options_of_the_inner_dataset_without_effect_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    init_dataset(concat_seqs(dataset=hdf("feat", seq_ordering="random", partition_epoch=2), name="train"))
    assert (
        "ConcatSeqsDataset 'train': no effect of seq_ordering of the inner dataset, partition_epoch of the inner dataset"
        in capsys.readouterr().out
    )


def test_check_corpus_finds_missing_tags() -> None:
    with pytest.raises(KeyError, match="are not in the inner dataset"):
        init_dataset(concat_seqs(dataset=hdf("c_a"))).check_corpus()


def test_same_mistakes_in_bulk() -> None:
    dataset = init_dataset(concat_seqs(remove_in_between_postfix={"classes": 5}))
    dataset.init_seq_order(epoch=1)
    with pytest.raises(DatasetError, match="'classes' of 'corp/r0/s0' does not end with the label 5"):
        dataset.read_seqs(np.arange(3), ["classes"])
    with pytest.raises(DatasetError, match="index outside of the list.*0 <= index < 6"):
        dataset.init_seq_order(epoch=1, seq_order=[6])


def test_length_file_is_not_executed(tmp_path: Path) -> None:
    (tmp_path / "lens.py").write_text("__import__('os').mkdir('/nope')")
    with pytest.raises(DatasetError, match="neither a Python literal nor JSON"):
        init_dataset(concat_seqs(seq_len_file=str(tmp_path / "lens.py")))


def test_filter_object_and_shards() -> None:
    ranges: Any = {(1, 2): {"max_mean_len": 9}}
    by_dict = tags_of(concat_seqs(epoch_wise_filter=ranges))
    assert by_dict == tags_of(concat_seqs(epoch_wise_filter=EpochWiseFilter(ranges))) and len(by_dict) == 5
    assert len(tags_of(concat_seqs(epoch_wise_filter=ranges), 3)) == 6
    parts = [tags_of(concat_seqs(seq_ordering="random", _num_shards=4, _shard_index=i)) for i in range(4)]
    assert sorted(sum(parts, [])) == sorted(tags_of(concat_seqs()))


@settings(max_examples=50, deadline=None)
@given(lens=st.lists(st.integers(1, 30), min_size=1, max_size=20), limit=st.integers(1, 30))
def test_epoch_wise_filter_by_its_definition(lens: list[int], limit: int) -> None:
    """The bisection of the spec; equal lengths go by index; the order is kept."""
    order = np.random.RandomState(len(lens)).permutation(len(lens))
    by_len = sorted(order.tolist(), key=lambda i: (lens[i], i))
    low, high = 1, len(lens) + 1
    while low < high:
        mid = (low + high) // 2
        diff = np.mean([lens[i] for i in by_len[:mid]]) - limit
        if diff < 0:
            low = mid + 1
        elif diff > 0:
            high = mid
        else:
            low = mid
            break
    kept = set(by_len[:low])
    result = EpochWiseFilter({(None, -1): {"max_mean_len": limit}}).filter(None, order, lens.__getitem__)
    assert list(result) == [i for i in order if i in kept]


def test_batches_do_not_depend_on_how_data_is_read() -> None:
    options = {
        "remove_in_between_postfix": {"classes": 0},
        "pad_narrow_data_to_multiple_of_target_len": {"data": ("classes", 2)},
    }
    check_same_batches(concat_seqs(seq_ordering="laplace:2", **options))


def test_jump() -> None:
    check_jump(concat_seqs(seq_ordering="random", partition_epoch=2))


@pytest.mark.slow
def test_everyday_use() -> None:
    check_everyday_use(
        concat_seqs(
            seq_ordering="random", partition_epoch=2, repeat_in_between_last_frame_up_to_multiple_of={"data": 4}
        )
    )
