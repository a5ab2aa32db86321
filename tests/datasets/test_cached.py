"""CachedDataset: orders, and that the byte cache never changes results."""

from __future__ import annotations

from typing import Any

import numpy
import pytest

from returnn.errors import DatasetError
from tests.datasets.test_basic import RandomAccess, contents


@pytest.mark.parametrize("cache_byte_size", [0, -1, 1, 60, 10**6])
def test_cache_does_not_change_results(cache_byte_size: int) -> None:
    plain = RandomAccess(20, seq_ordering="laplace:.5", partition_epoch=2)
    cached = RandomAccess(20, seq_ordering="laplace:.5", partition_epoch=2, cache_byte_size=cache_byte_size)
    for epoch in (1, 2, 3, 4):
        assert contents(cached, epoch) == contents(plain, epoch)
        assert list(cached.get_current_seq_order()) == list(plain.get_current_seq_order())
    assert len(plain.reads) == 40
    if cache_byte_size == 60:
        assert 0 < cached._cache_num_bytes <= 60
    if cache_byte_size in (-1, 10**6):
        assert len(cached.reads) == 20
        cached.finish_epoch(free_resources=True)
        assert cached._cache_num_bytes == 0 and not cached._cache


def test_orders_and_tags() -> None:
    dataset = RandomAccess(6, seq_ordering="sorted")
    with pytest.raises(NotImplementedError):
        dataset.get_current_seq_order()
    assert dataset.init_seq_order(epoch=1) is True
    assert list(dataset.get_current_seq_order()) == [0, 4, 1, 5, 2, 3]
    assert dataset.init_seq_order(epoch=2) is False  # same order
    assert [dataset.get_tag(i) for i in range(2)] == ["t0", "t4"]
    assert dataset.get_corpus_seq_idx(1) == 4 and dataset.have_corpus_seq_idx()
    assert dict(dataset.get_seq_length(2).items()) == {"data": 2, "classes": 2}
    assert dataset.get_estimated_seq_length(2) == 2
    assert dataset.supports_seq_order_sorting()
    assert dataset.init_seq_order(epoch=2, seq_list=["t3", "t1"]) is True
    assert dataset.num_seqs == 2 and dataset.get_total_num_seqs() == 6 and dataset.get_tag(0) == "t3"
    dataset.init_seq_order(epoch=2, seq_order=[5, 5, 0])
    assert [dataset.get_tag(i) for i in range(3)] == ["t5", "t5", "t0"]


def test_errors() -> None:
    dataset = RandomAccess(3, name="dev")
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"seq_list": ["t0", "x", "y"]}, KeyError, r"dev.*2 of 3 tags.*\['x', 'y'\].*\['t0', 't1', 't2'\]"),
        ({"seq_order": [0, 7]}, DatasetError, "0 to 7, but the corpus has 3"),
    ]
    for kwargs, error, text in bad:
        with pytest.raises(error, match=text):
            dataset.init_seq_order(epoch=1, **kwargs)
    dataset.init_seq_order(epoch=1)
    with pytest.raises(DatasetError, match="sequence 0 is not loaded"):
        dataset.get_data(0, "data")
    dataset.load_seqs(0, 10)
    assert dataset.is_cached(0, 3, blocking=True)
    with pytest.raises(KeyError, match="no data key 'foo'"):
        dataset.get_data(0, "foo")
    dataset.load_seqs(0, 1)  # start may decrease here, and what is loaded stays
    assert numpy.array_equal(dataset.get_data(2, "classes"), [2, 2])
