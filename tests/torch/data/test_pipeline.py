"""The public data pipes against the golden data of the peers."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from returnn.datasets._loading.collate import CollateError
from returnn.errors import ConfigError, DatasetError, NotSupportedError
from returnn.torch.data.pipeline import (
    BatchingIterDataPipe,
    BucketOrderingIterDataPipe,
    ChunkingIterDataPipe,
    LenFilterDataPipe,
    ShufflingDataPipe,
    collate_batch,
    create_tensor,
    get_batching_iterable_dataset_from_config,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "06-engine"
PEERS = ("mini_head", "mini_r0.3", "mainline")


def _golden(peer: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"pipeline_{peer}.json").read_text())


def _seqs(data_lens: list[int], classes_lens: list[int], *, mainline: bool = False) -> list[dict[str, Any]]:
    seqs: list[dict[str, Any]] = []
    for i, (n, m) in enumerate(zip(data_lens, classes_lens, strict=True)):
        seq: dict[str, Any] = {"data": numpy.arange(n), "classes": numpy.arange(m), "seq_idx": i, "seq_tag": f"seq-{i}"}
        if mainline:
            num = len(data_lens)
            seq.update(
                seq_idx=numpy.array(i),
                seq_tag=numpy.array(f"seq-{i}"),
                epoch=numpy.array(1),
                num_seqs=numpy.array(num),
                complete_frac=numpy.array((i + 1) / num, dtype="float32"),
            )
        seqs.append(seq)
    return seqs


def _cases(section: str) -> list[Any]:
    return [pytest.param(peer, i, id=f"{peer}-{i}") for peer in PEERS for i in range(len(_golden(peer)[section]))]


#: Config text of golden rows that cannot be JSON.
FUNCTIONS: dict[str, dict[str, Callable[..., Any] | None]] = {
    "max_seqs = lambda: 1 + seq_idx // 4, batch_size None": {
        "max_seqs": lambda *, seq_idx, **_: 1 + seq_idx // 4,
        "batch_size": None,
    },
    "batch_size = lambda: 5 + 10*epoch_continuous": {
        "batch_size": lambda *, epoch_continuous, **_: 5 + 10 * epoch_continuous
    },
}


@pytest.mark.parametrize(("peer", "i"), _cases("batching"))
def test_batching_golden(peer: str, i: int) -> None:
    golden = _golden(peer)
    opts, expected = golden["batching"][i]
    if isinstance(opts, str):
        opts = FUNCTIONS[opts]
    is_mainline = peer == "mainline"
    seqs = _seqs(golden["data_lens"], golden["classes_lens"], mainline=is_mainline)
    batches = BatchingIterDataPipe(seqs, **opts, count_scalars=not is_mainline)
    assert [[int(seq["seq_idx"]) for seq in batch] for batch in batches] == expected


@pytest.mark.parametrize(("peer", "i"), _cases("filter"))
def test_len_filter_golden(peer: str, i: int) -> None:
    golden = _golden(peer)
    minimum, maximum, expected = golden["filter"][i]
    seqs = _seqs(golden["data_lens"], golden["classes_lens"], mainline=peer == "mainline")
    pipe = LenFilterDataPipe(seqs, minimum, maximum)
    assert [int(seq["seq_idx"]) for seq in pipe] == expected
    assert sum(pipe.num_dropped.values()) == len(seqs) - len(expected)


def _chunks(pipe: ChunkingIterDataPipe) -> list[Any]:
    return [[int(c["seq_idx"]), c["data"].tolist(), c["classes"].tolist()] for c in pipe]


@pytest.mark.parametrize(("peer", "i"), _cases("chunking"))
def test_chunking_golden(peer: str, i: int) -> None:
    row = _golden(peer)["chunking"][i]
    if peer == "mini_head":
        opts, data_lens, *rest = row
        kwargs: dict[str, Any] = {}
    else:
        text, min_chunk_size, data_lens, *rest = row
        opts, kwargs = ast.literal_eval(text), {"min_chunk_size": min_chunk_size}
    expected = rest[-1]
    if data_lens == "numpy global seed 1":
        data_lens = [10, 7, 3, 1]
        kwargs["rng"] = numpy.random.RandomState(1)
    seqs = _seqs(data_lens, rest[0] if len(rest) == 2 else data_lens, mainline=peer == "mainline")
    if isinstance(expected, str):
        if expected.startswith("TypeError"):  # Mini needs min_chunk_size; here it has a default
            assert _chunks(ChunkingIterDataPipe(seqs, opts, **kwargs))[3] == [0, [9], list(range(10))]
            return
        error = {"AssertionError": AssertionError, "ValueError": ValueError}[expected.partition(":")[0]]
        with pytest.raises(error) as exc_info:
            list(ChunkingIterDataPipe(seqs, opts, **kwargs))
        if "different number" in expected:
            assert expected.partition(": ")[2].partition("\n")[0] in str(exc_info.value)
            assert "seq-" in str(exc_info.value)
        return
    assert _chunks(ChunkingIterDataPipe(seqs, opts, **kwargs)) == expected


def test_chunking_uses_global_generator() -> None:
    opts = {"chunk_streams": {"data": {"size": 4, "step": 3}}, "random_chunk_start": True}
    seqs = _seqs([10, 7], [1, 1])
    state = numpy.random.get_state()
    try:
        numpy.random.seed(1)
        from_global = _chunks(ChunkingIterDataPipe(seqs, opts))
    finally:
        numpy.random.set_state(state)
    assert from_global == _chunks(ChunkingIterDataPipe(seqs, opts, rng=numpy.random.RandomState(1)))


def test_chunking_missing_key() -> None:
    pipe = ChunkingIterDataPipe(_seqs([3], [3]), {"chunk_streams": {"audio": {"size": 4}}})
    with pytest.raises(ConfigError, match=r"'audio'.*\['data', 'classes'\]"):
        list(pipe)


def test_chunks_share_what_is_not_chunked() -> None:
    seqs = _seqs([10], [5])
    chunks = list(ChunkingIterDataPipe(seqs, {"chunk_streams": {"data": {"size": 4}}}))
    assert all(c["classes"] is seqs[0]["classes"] for c in chunks)


def test_bucket_golden() -> None:
    golden = _golden("mainline")
    pipe = BucketOrderingIterDataPipe(
        _seqs(golden["data_lens"], golden["classes_lens"]), buckets=[(6, 3), (3, 2), (9, 2)], length_key="data"
    )
    assert [[seq["seq_idx"] for seq in batch] for batch in pipe] == golden["bucket"][0]
    assert pipe.num_dropped == 1


def test_bucket_invalid() -> None:
    for buckets in ([], [(3, 0)], [(3, 1), (3, 2)]):
        with pytest.raises(ConfigError, match="buckets"):
            BucketOrderingIterDataPipe([], buckets=buckets, length_key="data")


def test_shuffle_golden() -> None:
    golden = _golden("mainline")
    seqs = _seqs(golden["data_lens"], golden["classes_lens"], mainline=True)
    pipe = ShufflingDataPipe(BatchingIterDataPipe(seqs, batch_size=None, max_seqs=2), buffer_size=3, seed=5)
    batches = list(pipe)
    assert [[str(seq["seq_tag"]) for seq in batch] for batch in batches] == golden["shuffle_seed5_buf3_maxseqs2"]
    flat = [seq for batch in batches for seq in batch]
    assert [int(seq["seq_idx"]) for seq in flat] == list(range(12))
    fracs = [float(seq["complete_frac"]) for seq in flat]
    assert fracs == sorted(fracs)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        *[(d, d) for d in ("int8", "int16", "int32", "int64", "uint8", "bool", "float16", "float32", "float64")],
        *[("uint16", "int32"), ("uint32", "int64"), ("uint64", "uint64"), ("complex64", "complex64"), (">i4", "int32")],
    ],
)
def test_collate_dtypes(dtype: str, expected: str) -> None:
    values = [numpy.ones(3, dtype), numpy.ones(2, dtype)]
    batch = collate_batch([{"x": v} for v in values])
    assert batch["x"].dtype == getattr(torch, expected)
    assert batch["x"].to(torch.complex128).real.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert create_tensor(values[0]).dtype == getattr(torch, expected)


def test_collate_entries() -> None:
    batch = collate_batch(
        [
            {
                "data": numpy.full((n, 2), n, "float32"),
                "scalar": numpy.array(n, "int64"),
                "raw": numpy.array(["a"] * n, dtype=object),
                "text": numpy.array("abc"),
                "seq_idx": n,
                "seq_tag": f"s{n}",
            }
            for n in (3, 1)
        ]
    )
    assert list(batch) == [
        *("data:size1", "data:size2", "data", "data:size0", "scalar", "scalar:size0"),
        *("raw", "text", "seq_idx", "seq_tag"),
    ]
    assert batch["data"].tolist() == [[[3, 3]] * 3, [[1, 1], [0, 0], [0, 0]]]
    assert batch["data:size1"].tolist() == [3, 1] and batch["data:size1"].dtype == torch.int64
    assert batch["data:size2"].tolist() == [2, 2]
    assert batch["data:size0"].shape == () and batch["data:size0"].item() == 2
    assert batch["scalar"].tolist() == [3, 1]
    assert [len(v) for v in batch["raw"]] == [3, 1]
    assert batch["seq_idx"] == [3, 1] and batch["seq_tag"] == ["s3", "s1"]


def test_collate_mismatch() -> None:
    with pytest.raises(CollateError, match=r"'data'.*'b' has shape \[2, 3\].*'a'.*\[2, 2\]") as exc_info:
        collate_batch([{"data": numpy.zeros((2, n)), "seq_tag": tag} for n, tag in ((2, "a"), (3, "b"))])
    assert isinstance(exc_info.value, RuntimeError) and isinstance(exc_info.value, DatasetError)
    with pytest.raises(CollateError, match="'x' is missing in sequence 'b'"):
        collate_batch([{"x": numpy.zeros(1), "seq_tag": "a"}, {"seq_tag": "b"}])


def _mainline_seqs() -> list[dict[str, Any]]:
    return [
        {
            "data": numpy.full((n, 2), n, "float32"),
            "scalar": numpy.array(n, "int32"),
            "raw": numpy.array("abc"[:n]),
            "seq_idx": numpy.array(i),
            "seq_tag": numpy.array(f"seq-{i}"),
            "epoch": numpy.array(3),
            "num_seqs": numpy.array(7),
            "complete_frac": numpy.array(0.5 - 0.1 * i, dtype="float32"),
        }
        for i, n in enumerate((3, 1))
    ]


def test_collate_mainline() -> None:
    batch = collate_batch(_mainline_seqs())
    assert list(batch) == [
        *("data", "data:seq_len", "scalar", "raw", "seq_idx", "seq_tag", "epoch", "num_seqs", "complete_frac")
    ]
    assert batch["data"].tolist() == [[[3, 3]] * 3, [[1, 1], [0, 0], [0, 0]]]
    assert batch["data:seq_len"].tolist() == [3, 1] and batch["data:seq_len"].dtype == torch.int32
    assert batch["scalar"].tolist() == [3, 1] and batch["seq_idx"].tolist() == [0, 1]
    assert isinstance(batch["seq_tag"], numpy.ndarray) and batch["seq_tag"].tolist() == ["seq-0", "seq-1"]
    assert batch["raw"].tolist() == ["abc", "a"]
    assert batch["epoch"].item() == 3 and batch["num_seqs"].item() == 7
    assert batch["complete_frac"].item() == 0.5


def test_collate_form_by_packing() -> None:
    seqs = [{"data": numpy.zeros(n), "seq_tag": f"s{n}"} for n in (3, 1)]
    batch = collate_batch(seqs, packing=None)
    assert list(batch) == ["data", "data:seq_len", "seq_tag"] and batch["seq_tag"].tolist() == ["s3", "s1"]
    assert list(collate_batch(seqs)) == ["data:size1", "data", "data:size0", "seq_tag"]
    with pytest.raises(NotSupportedError, match="packed batches are not supported"):
        collate_batch(seqs, packing={"gap": 1})


def test_from_config() -> None:
    config = {"batch_size": 20, "max_seq_length": {"data": 8}, "chunking": "4:3", "max_seqs": 3}
    pipe = get_batching_iterable_dataset_from_config(
        dataset=_seqs([4, 9, 5], [4, 9, 5]),  # type: ignore[arg-type]
        config=config,
        train=True,
    )
    assert [[(c["seq_idx"], len(c["data"])) for c in batch] for batch in pipe] == [[(0, 4), (0, 1), (2, 4)], [(2, 2)]]
