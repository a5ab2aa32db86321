"""returnn.datasets.audio."""

from __future__ import annotations

import ast
import json
import pickle
from typing import Any

import numpy as np
import pytest

from returnn.datasets.audio import OggZipDataset
from returnn.datasets.basic import Dataset, init_dataset
from returnn.errors import UserError
from tests.helpers import GOLDEN

FOLDER = GOLDEN / "05-audio-text" / "oggzip"
CASES: dict[str, dict[str, Any]] = {
    peer: json.loads((FOLDER / f"expected.{peer}.json").read_text(encoding="utf8")) for peer in ("mini", "main")
}
#: Peer errors where we deliver, and why.
NO_ERROR = {
    "intdur": "a duration that is an int is accepted",
    "wrongname": "a renamed zip file with only one text is accepted",
}
#: Sound that libsndfile decodes to float32 here, and to float64 there.
RTOL = 1e-4
ATOL = 1e-6


@pytest.fixture(autouse=True)
def _in_golden_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)  # file names in the cases are relative


def _opts_of(case: dict[str, Any]) -> dict[str, Any]:
    opts = dict(case["opts"])
    if isinstance(opts.get("epoch_wise_filter"), str):
        opts["epoch_wise_filter"] = ast.literal_eval(opts["epoch_wise_filter"])
    return opts


def _check_seq(dataset: Dataset, idx: int, expected: dict[str, Any]) -> None:
    assert dataset.get_corpus_seq_idx(idx) == expected["corpus_seq_idx"]
    for key, value in expected.items():
        if key == "corpus_seq_idx" or (key not in dataset.get_data_keys() and key in ("data", "classes")):
            continue  # mini has dummy values where a key is not configured
        data = dataset.get_data(idx, key)
        assert list(data.shape) == value["shape"], key
        assert str(data.dtype) == value["dtype"]
        if "value" in value:
            assert data.tolist() == value["value"]
        if "sum" in value:
            np.testing.assert_allclose(np.abs(data).sum(dtype="float64"), value["abs_sum"], rtol=RTOL, atol=ATOL)
            np.testing.assert_allclose(data.ravel()[: len(value["head"])], value["head"], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(("peer", "name"), [(peer, name) for peer, cases in CASES.items() for name in sorted(cases)])
def test_golden(peer: str, name: str, pickled: bool) -> None:
    case = CASES[peer][name]
    expected = case["res"]
    opts = _opts_of(case)
    orders = {key: case[key] for key in ("seq_list", "seq_order") if case[key] is not None}
    if isinstance(expected, str):
        if name in NO_ERROR:
            init_dataset(opts).init_seq_order(epoch=1)
            return
        error = {"AssertionError": AssertionError, "KeyError": KeyError}[expected.split()[1].rstrip(":")]
        with pytest.raises(error) as info:
            init_dataset(opts).init_seq_order(epoch=1, **orders)
        assert isinstance(info.value, UserError)
        assert len(str(info.value)) > 40
        return
    dataset = init_dataset(opts)
    assert isinstance(dataset, OggZipDataset)
    assert dataset.name == expected["name"]
    for epoch, expected_epoch in expected["eps"].items():
        if pickled:
            dataset = pickle.loads(pickle.dumps(dataset))
        dataset.init_seq_order(epoch=int(epoch), **orders)
        assert dataset.num_seqs == expected_epoch["num_seqs"]
        assert list(dataset.get_current_seq_order()) == expected_epoch["order"]
        assert [dataset.get_tag(i) for i in range(dataset.num_seqs)] == expected_epoch["tags"]
        assert dataset.get_seq_tags(range(dataset.num_seqs)) == expected_epoch["tags"]
        for i, expected_seq in enumerate(expected_epoch.get("seqs", [])):
            dataset.load_seqs(i, i + 1)
            _check_seq(dataset, i, expected_seq)
    assert dataset.get_total_num_seqs() == expected["total"]
    assert dataset.get_all_tags() == expected["all_tags"]
    if peer == "main":
        assert {**(dataset.num_outputs or {})} == ast.literal_eval(expected["num_outputs"])
