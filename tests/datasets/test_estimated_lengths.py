"""Lengths by which orders sort, of all sequences at once: a dataset that combines others asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from returnn.datasets.basic import init_dataset
from returnn.datasets.map import FromListDataset, MapDatasetWrapper
from tests.datasets.combining_data import hdf
from tests.datasets.lm_golden import GOLDEN, LM, TRANSLATION
from tests.helpers import GOLDEN as ALL_GOLDEN


def _map_dataset() -> FromListDataset:
    items = [{"data": np.zeros((i * 5 % 7, 2), "float32")} for i in range(7)]
    return FromListDataset(items, sort_data_key="data", data_types={"data": {"dim": 2, "shape": (None, 2)}})


BYTES = {"class": "Utf8ByteTargets"}
OPTS: dict[str, Any] = {
    "hdf": hdf("c_a"),
    "ogg_zip": {
        "class": "OggZipDataset",
        "path": str(GOLDEN / "oggzip" / "demo_noaudio.zip"),
        "audio": None,
        "targets": None,
    },
    "lm": {"class": "LmDataset", "corpus_file": str(LM / "corpus.txt"), "orth_vocab": BYTES},
    "translation": {
        "class": "TranslationDataset",
        "path": str(TRANSLATION / "plain"),
        "file_postfix": "train",
        "unknown_label": "<UNK>",
    },
    "text_dict": {"class": "TextDictDataset", "filename": str(LM / "dict_nbest.txt"), "vocab": BYTES},
    "map": {"class": MapDatasetWrapper, "map_dataset": _map_dataset},
    "stream_hdf": {
        "class": "StreamHDFDataset",
        "input_stream_name": "features",
        "files": [str(ALL_GOLDEN / "03-hdf" / "n1_stream.hdf")],
    },
    "meta": {
        "class": "MetaDataset",
        "datasets": {"a": hdf("c_a", seq_ordering="random")},
        "data_map": {"x": ("a", "data")},
        "seq_order_control_dataset": "a",
    },
    "concat": {"class": "ConcatDataset", "datasets": [hdf("c_a"), hdf("c_b")]},
    "multi_epoch": {"class": "MultiEpochDataset", "dataset": hdf("c_a", seq_ordering="random"), "multi_epoch": 2},
}


@pytest.mark.parametrize("name", sorted(OPTS))
def test_all_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = init_dataset(OPTS[name])
    dataset.init_seq_order(epoch=1)
    assert dataset.supports_seq_order_sorting()
    expected = [dataset.get_estimated_seq_length(i) for i in range(dataset.num_seqs)]
    assert len(set(expected)) > 1

    def one_by_one(_seq_idx: int) -> int:
        raise AssertionError("asked one by one")

    monkeypatch.setattr(dataset, "get_estimated_seq_length", one_by_one)
    lens = dataset.get_estimated_seq_lengths()
    assert isinstance(lens, np.ndarray) and lens.tolist() == expected


def test_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"id": ["x", "y", "z"], "n": [3, 1, 2], "data": [[1], [2], [3]]}).save_to_disk(
        str(tmp_path / "d")
    )
    dataset = init_dataset(
        {
            "class": "HuggingFaceDataset",
            "dataset_opts": str(tmp_path / "d"),
            "data_format": {"data": {"dim": 9, "shape": [None], "dtype": "int64", "sparse": True}},
            "sorting_seq_len_column": "n",
            "seq_ordering": "sorted",
        }
    )
    dataset.init_seq_order(epoch=1)
    assert dataset.get_estimated_seq_lengths().tolist() == [1, 2, 3]
    assert dataset.get_estimated_seq_length(1) == 2
