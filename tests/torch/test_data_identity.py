"""returnn.torch.data_identity: a restart on changed data says so before it trains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from returnn._state import process_state_ctx
from returnn.datasets import init_dataset
from returnn.datasets.basic import Dataset
from returnn.log import log
from returnn.torch.data_identity import fingerprints, report_changed_data
from tests.torch.test_engine import _config, _dataset, _train


@pytest.fixture(autouse=True)
def _in_tmp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PT_DEVICE", raising=False)
    log.initialize(verbosity=[3])
    with process_state_ctx(global_config=None, run_ctx=None):
        yield


def test_restart_on_changed_data(capsys: pytest.CaptureFixture[str]) -> None:
    _train(_config(num_epochs=1))
    data = torch.load("models/epoch.001.pt", weights_only=True)["data"]
    assert set(data) == {"train", "dev"} and data["train"]["num_seqs"] == 12
    _train(_config(num_epochs=2))
    assert "the data are not those" not in capsys.readouterr().out
    _train(_config(num_epochs=3, train=_dataset(9, seq_ordering="random")))
    out = capsys.readouterr().out
    said = out.index("Warning: the data are not those with which models/epoch.002 was trained.")
    assert said < out.index("dataset 'train': The data: the number of sequences was 12, and now is 9.")
    assert said < out.index("Starting training at epoch 3.") and "dataset 'dev': " not in out
    assert torch.load("models/epoch.003.pt", weights_only=True)["data"]["train"]["num_seqs"] == 9


def test_what_cannot_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = init_dataset(_dataset(2))
    assert set(fingerprints({"own": object(), "train": dataset})) == {"train"}

    def broken(self: Dataset) -> Any:  # Any: never returns
        raise ValueError("not yet")

    monkeypatch.setattr(type(dataset), "known_corpus_lens", broken)
    assert fingerprints({"train": dataset}) == {}
    assert report_changed_data(None, {"train": {}}, filename="x") == []
    assert report_changed_data({"train": 1}, {"train": {"version": 1}}, filename="x") == []
