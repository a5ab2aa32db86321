"""ConcatDataset."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from returnn.datasets.basic import init_dataset
from returnn.errors import ConfigError, DatasetError
from tests.datasets.combining import check_bulk, check_same_batches, load_cases, tags_of
from tests.datasets.combining_data import hdf
from tests.datasets.everyday_use import check_everyday_use, read_epoch

CASES = load_cases("orders_concat.json", "concat/")


def _concat(*children: Any, **opts: Any) -> dict[str, Any]:
    return {"class": "ConcatDataset", "datasets": list(children), **opts}


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("pickled", [False, True])
def test_golden_orders(case: str, pickled: bool) -> None:
    epochs = CASES[case]["epochs"]
    if "error" in epochs:
        with pytest.raises(NotImplementedError, match=epochs["msg"]):
            init_dataset(CASES[case]["opts"])
        return
    dataset = init_dataset(CASES[case]["opts"])
    for epoch, expected in epochs.items():
        if pickled:
            dataset = pickle.loads(pickle.dumps(dataset))
        seqs = read_epoch(dataset, int(epoch))
        assert [tag for tag, _ in seqs] == expected
        assert dataset.num_seqs == len(expected)
        check_bulk(dataset, seqs)


def test_same_epoch_again_after_pickling() -> None:
    """The peers fail with an assertion here: the epoch is restored, the order of the children is not."""
    dataset = init_dataset(_concat(hdf("c_a"), hdf("c_a", seq_ordering="random")))
    expected = tags_of(dataset)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.epoch == 1
    assert tags_of(copy) == expected
    assert tags_of(copy) == expected


def test_seq_list_goes_piecewise_to_the_children() -> None:
    dataset = init_dataset(_concat(hdf("c_a"), hdf("c_a")))
    tags = [f"a-{i}" for i in (6, 5, 4, 3, 2, 1, 0, 3, 3)]
    dataset.init_seq_order(epoch=1, seq_list=tags)
    assert [dataset.get_tag(i) for i in range(dataset.num_seqs)] == tags
    assert dataset.num_seqs == 9
    assert tags_of(dataset) == [f"a-{i}" for i in range(7)] * 2
    with pytest.raises(AssertionError, match="at most 14 tags, got 15"):
        dataset.init_seq_order(epoch=1, seq_list=["a-0"] * 15)


def test_seq_order_of_the_union() -> None:
    dataset = init_dataset(_concat(hdf("c_a"), hdf("c_b")))
    assert dataset.get_total_num_seqs() == 12
    assert dataset.get_all_tags() == [f"a-{i}" for i in range(7)] + [f"b-{i}" for i in range(5)]
    dataset.init_seq_order(epoch=1, seq_order=[11, 0, 7, 6])
    assert [dataset.get_tag(i) for i in range(4)] == ["b-4", "a-0", "b-0", "a-6"]
    assert dataset.get_current_seq_order().tolist() == [11, 0, 7, 6]  # type: ignore[union-attr]
    with pytest.raises(DatasetError, match="index outside of the corpus.*0 <= index < 12"):
        dataset.init_seq_order(epoch=1, seq_order=[12])


def test_shards_are_disjoint_and_cover_all() -> None:
    children = [hdf("c_a", seq_ordering="random"), hdf("c_b")]
    parts = [tags_of(init_dataset(_concat(*children, _num_shards=3, _shard_index=i)), 2) for i in range(3)]
    assert sorted(sum(parts, [])) == sorted(tags_of(init_dataset(_concat(*children)), 2))


def test_children_of_unknown_length() -> None:
    inner = {"class": "MultiEpochDataset", "dataset": hdf("c_a"), "multi_epoch": 2}
    dataset = init_dataset(_concat(hdf("c_a", seq_ordering="reverse"), inner, inner))
    forward = [f"a-{i}" for i in range(7)]
    assert tags_of(dataset) == forward[::-1] + forward * 4


def test_as_child_of_others() -> None:
    union = _concat(hdf("c_a", seq_ordering="random"), hdf("c_b"))
    combined = {
        "class": "CombinedDataset",
        "datasets": {"u": union, "c": hdf("c_c")},
        "data_map": {("u", "data"): "data", ("c", "data"): "classes"},
        "seq_ordering": "laplace:.4",
    }
    dataset = init_dataset(combined)
    seqs = read_epoch(dataset, 1)
    assert sorted(tag for tag, _ in seqs) == sorted(
        [f"a-{i}" for i in range(7)] + [f"b-{i}" for i in range(5)] + [f"c-{i}" for i in range(3)]
    )
    check_bulk(dataset, seqs)
    meta = {
        "class": "MetaDataset",
        "datasets": {"u": union, "c": combined},
        "data_map": {"x": ("u", "data"), "y": ("c", "data")},
        "seq_order_control_dataset": "u",
    }
    dataset = init_dataset(meta)
    seqs = read_epoch(dataset, 1)
    assert [tag for tag, _ in seqs] == tags_of(init_dataset(union))
    for _, data in seqs:
        np.testing.assert_array_equal(data["x"], data["y"])


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (_concat(hdf("c_a"), hdf("c_c")), ["num_inputs", "are different", "2", "7"]),
        (_concat(hdf("c_a"), hdf("feat")), ["children 0", "and 1", "CombinedDataset"]),
        ({"class": "ConcatDataset", "datasets": {"a": hdf("c_a")}}, ['option "datasets"', "list"]),
        ({"class": "ConcatDataset", "datasets": []}, ['option "datasets"', "list"]),
    ],
)
def test_option_errors(opts: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as info:
        init_dataset(opts)
    for word in words:
        assert word in str(info.value)


def test_options_without_effect_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    init_dataset(_concat(hdf("c_a"), partition_epoch=2, name="train"))
    out = capsys.readouterr().out
    assert "ConcatDataset 'train': no effect of partition_epoch" in out


def test_data_of_an_earlier_sequence_is_a_clear_error() -> None:
    dataset = init_dataset(_concat(hdf("c_a")))
    with pytest.raises(DatasetError, match="Call init_seq_order"):
        dataset.load_seqs(0, 1)
    dataset.init_seq_order(epoch=1)
    with pytest.raises(DatasetError, match="not loaded"):
        dataset.get_data(0, "data")


def test_batches_do_not_depend_on_how_data_is_read() -> None:
    check_same_batches(_concat(hdf("c_a"), hdf("c_a", seq_ordering="random")))


@pytest.mark.slow
def test_everyday_use() -> None:
    check_everyday_use(_concat(hdf("c_a"), hdf("c_a", seq_ordering="random")))
