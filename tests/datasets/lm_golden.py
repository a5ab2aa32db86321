"""Golden data of the text datasets: what the peers return."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy

from returnn.datasets.basic import Dataset
from tests.datasets.everyday_use import Seq, read_epoch

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "05-audio-text"
LM = GOLDEN / "lm"
TRANSLATION = GOLDEN / "translation"
PEERS = ("mini", "main")


def load_expected(folder: Path, peer: str) -> dict[str, Any]:
    """:return: item name -> what the peer returned"""
    result: dict[str, Any] = json.loads((folder / f"expected.{peer}.json").read_text(encoding="utf8"))
    return result


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """The file names of the golden options are relative to their folder."""
    old = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(old)


def read_by_tags(dataset: Dataset, seq_list: list[str]) -> list[Seq]:
    """:return: sequences in that order"""
    dataset.init_seq_order(epoch=1, seq_list=seq_list)
    result: list[Seq] = []
    for i in range(dataset.num_seqs):
        dataset.load_seqs(i, i + 1)
        result.append((dataset.get_tag(i), {key: dataset.get_data(i, key) for key in dataset.get_data_keys()}))
    return result


def as_golden(seqs: list[Seq]) -> list[dict[str, Any]]:
    """:return: in the form of the golden files, without dtypes"""
    return [{"tag": tag, **{key: value.tolist() for key, value in data.items()}} for tag, data in seqs]


def bulk_epoch(dataset: Dataset, epoch: int) -> list[Seq]:
    """:return: all sequences, read at once"""
    dataset.init_seq_order(epoch=epoch)
    assert dataset.supports_bulk()
    idxs = numpy.arange(dataset.num_seqs)
    keys = dataset.get_data_keys()
    data = dataset.read_seqs(idxs, keys)
    assert data is not None
    for key in keys:
        lens = dataset.get_epoch_seq_lens(key)
        assert lens is not None and lens.tolist() == [len(x) for x in data[key]], key
    return [(tag, {key: data[key][i] for key in keys}) for i, tag in enumerate(dataset.get_seq_tags(idxs))]


def check_bulk(dataset: Dataset, epoch: int = 1) -> None:
    """Reading at once, in any order, is the same as reading one by one."""
    one_by_one = read_epoch(dataset, epoch)
    at_once = bulk_epoch(dataset, epoch)
    assert as_golden(at_once) == as_golden(one_by_one)
    keys = dataset.get_data_keys()
    assert {k: str(v.dtype) for k, v in at_once[0][1].items()} == {k: str(v.dtype) for k, v in one_by_one[0][1].items()}
    some = numpy.array([dataset.num_seqs - 1, 0, 0])
    data = dataset.read_seqs(some, keys)
    assert data is not None
    for key in keys:
        assert [x.tolist() for x in data[key]] == [one_by_one[i][1][key].tolist() for i in some]
