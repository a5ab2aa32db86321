"""MultiEpochDataset."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.datasets.basic import init_dataset
from returnn.errors import ConfigError, DatasetError
from tests.datasets.combining import check_bulk, check_same_batches, tags_of
from tests.datasets.combining_data import GOLDEN, StreamDataset, hdf
from tests.datasets.everyday_use import check_everyday_use, read_epoch

CASES = json.loads((GOLDEN / "main_wrappers.json").read_text())


def multi_epoch(num: int, inner: Any = None, **opts: Any) -> dict[str, Any]:
    """:return: options"""
    return {"class": "MultiEpochDataset", "dataset": inner or hdf("c_a"), "multi_epoch": num, **opts}


@pytest.mark.parametrize(
    ("case", "opts"),
    [
        ("multiepoch/random/p2/me2", multi_epoch(2, hdf("c_a", seq_ordering="random", partition_epoch=2))),
        ("multiepoch/random/me3", multi_epoch(3, hdf("c_c", seq_ordering="random"))),
    ],
)
@pytest.mark.parametrize("pickled", [False, True])
def test_golden(case: str, opts: dict[str, Any], pickled: bool) -> None:
    dataset = init_dataset(opts)
    for epoch, expected in CASES[case].items():
        if pickled:
            dataset = pickle.loads(pickle.dumps(dataset))
        seqs = read_epoch(dataset, int(epoch))
        assert [tag for tag, _ in seqs] == expected
        check_bulk(dataset, seqs)


@settings(max_examples=25, deadline=None)
@given(num=st.integers(1, 4), parts=st.integers(1, 9), epoch=st.integers(1, 4), bulk=st.booleans())
def test_is_the_inner_epochs_one_after_the_other(num: int, parts: int, epoch: int, bulk: bool) -> None:
    """Also with empty inner epochs: 9 parts of 7 sequences."""
    inner = hdf("c_a", seq_ordering="random", partition_epoch=parts)
    dataset = init_dataset(multi_epoch(num, inner))
    if not bulk:
        dataset.dataset.supports_bulk = lambda: False  # type: ignore[attr-defined]
    expected = [tag for e in range((epoch - 1) * num + 1, epoch * num + 1) for tag in tags_of(inner, e)]
    assert [tag for tag, _ in read_epoch(dataset, epoch)] == expected
    assert [tag for tag, _ in read_epoch(dataset, epoch)] == expected
    assert dataset.num_seqs == len(expected)


def test_inner_of_unknown_length() -> None:
    dataset = init_dataset(multi_epoch(3, {"class": StreamDataset, "num": 4, "exact_frac": True}))
    dataset.init_seq_order(epoch=1)
    with pytest.raises(NotImplementedError):
        _ = dataset.num_seqs
    fracs: list[float | None] = []
    while dataset.is_less_than_num_seqs(len(fracs)):
        dataset.load_seqs(len(fracs), len(fracs) + 1)
        fracs.append(dataset.get_complete_frac(len(fracs)))
    assert fracs == pytest.approx([(i + 1) / 12 for i in range(12)])
    assert dataset.num_seqs == 12 and not dataset.supports_bulk()


def test_some_of_the_sequences_only() -> None:
    """As a loader worker with a shard does it."""
    for inner in (hdf("c_a", seq_ordering="random"), {"class": StreamDataset, "num": 7}):
        expected = tags_of(multi_epoch(3, inner))[1::4]
        dataset = init_dataset(multi_epoch(3, inner))
        dataset.init_seq_order(epoch=1)
        tags = []
        for idx in range(1, 21, 4):
            assert dataset.is_less_than_num_seqs(idx)
            dataset.load_seqs(idx, idx + 1)
            tags.append(dataset.get_tag(idx))
        assert tags == expected


def test_given_order_is_one_pass() -> None:
    dataset = init_dataset(multi_epoch(3))
    dataset.init_seq_order(epoch=2, seq_list=["a-3", "a-1"])
    assert dataset.num_seqs == 2
    assert [dataset.get_tag(i) for i in range(2)] == ["a-3", "a-1"]
    dataset.init_seq_order(epoch=2, seq_order=[3, 1, 2])
    assert dataset.get_seq_tags([2, 0]) == ["a-2", "a-3"]
    assert dataset.get_total_num_seqs() == 7 and dataset.get_all_tags() == [f"a-{i}" for i in range(7)]
    assert len(read_epoch(dataset, 2)) == 21


def test_as_child() -> None:
    datasets = {"m": multi_epoch(2, hdf("c_c", seq_ordering="random")), "a": hdf("c_a")}
    opts = {
        "class": "CombinedDataset",
        "datasets": datasets,
        "data_map": {("m", "data"): "m", ("a", "data"): "a"},
        "seq_ordering": "random",
    }
    dataset = init_dataset(opts)
    for epoch in (1, 2):
        seqs = read_epoch(dataset, epoch)
        assert sorted(tag for tag, _ in seqs) == sorted([f"a-{i}" for i in range(7)] + [f"c-{i}" for i in range(3)] * 2)
        check_bulk(dataset, seqs)


def test_shards_cover_all() -> None:
    inner = hdf("c_a", seq_ordering="random")
    parts = [tags_of(multi_epoch(2, inner, _num_shards=2, _shard_index=i)) for i in range(2)]
    assert sorted(sum(parts, [])) == sorted(tags_of(multi_epoch(2, inner)))


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="multi_epoch.*int >= 1.*got 0"):
        init_dataset(multi_epoch(0))
    with pytest.raises(DatasetError, match="Call init_seq_order"):
        init_dataset(multi_epoch(1)).load_seqs(0, 1)
    capsys.readouterr()
    init_dataset(multi_epoch(2, seq_ordering="random"))
    assert "no effect of seq_ordering" in capsys.readouterr().out


def test_batches_do_not_depend_on_how_data_is_read() -> None:
    check_same_batches(multi_epoch(3, hdf("c_a", seq_ordering="random")))


@pytest.mark.slow
@pytest.mark.parametrize("inner", [hdf("c_a", seq_ordering="random"), {"class": StreamDataset, "num": 7}])
def test_everyday_use(inner: dict[str, Any]) -> None:
    check_everyday_use(multi_epoch(2, inner))
