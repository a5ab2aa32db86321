"""Options of batching."""

from __future__ import annotations

from typing import Any

import pytest

from returnn.errors import ConfigError, OptionError
from returnn.options.batching import BatchingOptions, ChunkingOptions, ChunkStream
from returnn.util.math import PiecewiseLinear


def test_defaults() -> None:
    assert BatchingOptions.from_config({}) == BatchingOptions(batch_size=1, max_seqs=None)


def test_batch_size_per_role() -> None:
    config = {"batch_size": 10, "batch_size_train": 20, "batch_size_dev": {"data": 5}}
    assert BatchingOptions.from_config(config).batch_size == 20
    assert BatchingOptions.from_config(config, role="eval").batch_size == {"data": 5}
    assert BatchingOptions.from_config(config, role="forward").batch_size == {"data": 5}
    assert BatchingOptions.from_config({"batch_size": None}).batch_size is None


@pytest.mark.parametrize("name", ["batch_drop_last", "batching_drop_last"])
@pytest.mark.parametrize("value", [True, False, "incomplete"])
def test_drop_last_names(name: str, value: Any) -> None:
    assert BatchingOptions.from_config({name: value}).drop_last == value


def test_drop_last_names_contradict() -> None:
    with pytest.raises(ConfigError, match='"batch_drop_last" .*"batching_drop_last"'):
        BatchingOptions.from_config({"batch_drop_last": True, "batching_drop_last": False})


@pytest.mark.parametrize(
    "config",
    [
        {"batch_size": -1},
        {"batch_size": 0},
        {"batch_size": "many"},
        {"batch_size": True},
        {"batch_size": {"data": "x"}},
        {"max_seqs": 0},
        {"max_seqs": -2},
        {"max_seqs": {"data": 3}},
        {"packed_batch_size": 0},
        {"batch_drop_last": "yes"},
        {"min_seq_length": "3"},
        {"max_seq_length": {"data": "x"}},
        {"online_shuffle_batches": 0},
        {"online_shuffle_batches": {"buffer_size": 3, "sed": 1}},
        {"chunking": "a:b"},
        {"chunking": (4, 3, 2)},
        {"chunking": (0, 0)},
        {"chunking": ({"data": 4}, 3)},
        {"chunking": ({"data": 4}, {"classes": 4})},
        {"chunking": {"data": 4}, "min_chunk_size": {"classes": 2}},
        {"chunking": lambda: 4},
        {"chunking_options": {}, "chunking": [4]},
        {"chunking_options": {"data": {"size": 4}}},
        {"chunking_options": {"chunk_streams": {"data": {"step": 4}}}},
        {"chunking_options": {"chunk_streams": {"data": {"size": 0}}}},
        {"chunking_options": {"chunk_streams": {}, "random_start": True}},
    ],
)
def test_invalid(config: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as exc_info:
        BatchingOptions.from_config(config)
    name = exc_info.value.option_name
    assert name in config and f'option "{name}" is invalid' in str(exc_info.value)


def test_chunking_forms() -> None:
    new = {"chunk_streams": {"data": {"size": 4, "step": 3}, "classes": {"size": 2, "step": 2, "min_chunk_size": 1}}}
    chunking = BatchingOptions.from_config({"chunking_options": new}).chunking
    assert chunking == ChunkingOptions({"data": ChunkStream(4, 3, 0), "classes": ChunkStream(2, 2, 1)})
    chunking = BatchingOptions.from_config({"chunking": "50:25", "min_chunk_size": 3}).chunking
    assert chunking is not None
    assert chunking.for_keys(["data", "seq_tag"]) == {"data": ChunkStream(50, 25, 3)}
    switched_off: tuple[Any, ...] = (None, 0, "0", {})
    for off in switched_off:
        assert BatchingOptions.from_config({"chunking": off}).chunking is None


def test_chunking_both_forms() -> None:
    new = {"chunk_streams": {"data": {"size": 4, "step": 3}}}
    same = {"chunking_options": new, "chunking": ({"data": 4}, {"data": 3})}
    assert BatchingOptions.from_config(same).chunking is not None
    with pytest.raises(ConfigError, match='"chunking_options" .*"chunking" .*contradict'):
        BatchingOptions.from_config({"chunking_options": new, "chunking": 4})


def test_length_limits() -> None:
    options = BatchingOptions.from_config({"min_seq_length": 2, "max_seq_length": {"data": float("inf"), "x": None}})
    assert options.min_seq_length == 2 and options.max_seq_length == {"data": float("inf")}


def test_functions_stay() -> None:
    def limit(**_: Any) -> int:
        return 3

    options = BatchingOptions.from_config({"batch_size": limit, "max_seqs": limit})
    assert options.batch_size is limit and options.max_seqs is limit


def test_mainline_without_batch_size() -> None:
    """Mini's default of one sequence per batch would make max_seqs useless; the peer has no default."""
    mainline = {"extern_data": {"data": {"dim": 3}}}
    assert BatchingOptions.from_config({**mainline, "max_seqs": 4}).batch_size is None
    assert BatchingOptions.from_config({**mainline, "packed_batch_size": 4}, role="eval").batch_size is None
    assert BatchingOptions.from_config({**mainline, "max_seqs": 4, "batch_size": 7}).batch_size == 7
    assert BatchingOptions.from_config({"max_seqs": 4}).batch_size == 1
    with pytest.raises(ConfigError, match='"batch_size" is not set'):
        BatchingOptions.from_config(mainline)


@pytest.mark.parametrize("name", ["batch_size", "max_seqs", "packed_batch_size"])
def test_functions_must_accept_what_they_get(name: str) -> None:
    with pytest.raises(OptionError, match=rf'option "{name}" is invalid: expected a function with \*\*kwargs'):
        BatchingOptions.from_config({name: lambda epoch: 3})
    schedule = PiecewiseLinear({0: 1.0, 3: 10.0}, kw_name="epoch_continuous", ignore_other_kwargs=True)
    assert getattr(BatchingOptions.from_config({name: schedule}), name) is schedule
