"""CombinedDataset."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from returnn.datasets.basic import Dataset, init_dataset

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "04-datasets-meta"
CASES: dict[str, Any] = json.loads((GOLDEN / "orders_combined.json").read_text(encoding="utf8"))


@pytest.fixture(autouse=True)
def _in_golden_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)  # file names in the cases are relative


def _iterate(dataset: Dataset) -> list[tuple[str, dict[str, np.ndarray]]]:
    seqs = []
    i = 0
    while dataset.is_less_than_num_seqs(i):
        dataset.load_seqs(i, i + 1)
        seqs.append((dataset.get_tag(i), {key: dataset.get_data(i, key) for key in dataset.get_data_keys()}))
        i += 1
    return seqs


def _opts_of_case(case: dict[str, Any]) -> dict[str, Any]:
    opts = dict(case["opts"])
    opts["data_map"] = {tuple(key.split(":")): value for key, value in opts["data_map"].items()}
    return opts


def check_bulk(dataset: Dataset, seqs: list[tuple[str, dict[str, np.ndarray]]]) -> None:
    assert dataset.supports_bulk()
    idxs = np.random.RandomState(1).permutation(len(seqs))
    keys = dataset.get_data_keys()
    bulk = dataset.read_seqs(idxs, keys)
    assert bulk is not None
    assert dataset.get_seq_tags(idxs) == [seqs[i][0] for i in idxs]
    for key in keys:
        lens = dataset.get_epoch_seq_lens(key)
        assert lens is not None and lens.tolist() == [len(data[key]) for _, data in seqs]
        for row, i in enumerate(idxs.tolist()):
            assert bulk[key][row].dtype == seqs[i][1][key].dtype
            np.testing.assert_array_equal(bulk[key][row], seqs[i][1][key])


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("pickled", [False, True])
def test_golden_orders(case: str, pickled: bool) -> None:
    dataset = init_dataset(_opts_of_case(CASES[case]))
    # Of empty streams, mainline's shape is the right one.
    epochs = CASES[case].get("epochs") or CASES[case]["epochs_main"]
    for epoch, expected in epochs.items():
        if pickled:
            dataset = pickle.loads(pickle.dumps(dataset))
        dataset.init_seq_order(epoch=int(epoch))
        seqs = _iterate(dataset)
        assert dataset.num_seqs == len(seqs)
        if isinstance(expected[0], str):
            assert [tag for tag, _ in seqs] == expected
        else:
            for (tag, data), expected_seq in zip(seqs, expected, strict=True):
                assert tag == expected_seq["tag"]
                assert {key: list(value.shape) for key, value in data.items()} == expected_seq["shapes"]
                assert {key: float(value.sum()) for key, value in data.items()} == expected_seq["sums"]
        check_bulk(dataset, seqs)
