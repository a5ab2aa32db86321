"""returnn.torch.inner_checkpoints with all kinds of data, and other numbers of workers: the trainings of the kill matrix, in one process."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.log import log
from tests.robustness.kill_configs import CASES, Case, make_data
from tests.torch.test_inner_checkpoints import whole_and_parts

BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


@pytest.fixture(autouse=True)
def _in_tmp_dir(tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PT_DEVICE", raising=False)
    monkeypatch.setenv("KILL_MATRIX_DATA", str(data_folder))
    log.initialize(verbosity=[5])
    with process_state_ctx(global_config=None, run_ctx=None):
        yield


def _config(folder: str, opts: dict[str, Any], *, case: Case) -> Config:  # Any: options
    path = Path(f"{folder}.config")
    path.write_text(case.config + "\nstep_secs = 0\nnum_epochs = 2\n")
    config = Config()
    config.load_file(str(path))
    updates = {"model": f"{folder}/epoch", "learning_rate_file": f"{folder}/learning_rates", **opts}
    updates["save_every_steps"] = updates["stop_after_minutes"] = None
    config.update(updates)
    return config


@pytest.mark.parametrize("name", BY_NAME)
def test_in_the_main_process(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = BY_NAME[name]
    config = functools.partial(_config, case=case)
    opts = {"num_workers_per_gpu": 0} if "mainline" not in name else {"torch_dataloader_opts": {"num_workers": 0}}
    whole_and_parts(opts, monkeypatch, make_config=config, stop_after={1, 5, 12})


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_with_workers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other numbers of workers than in the kill matrix."""
    num_workers = 1 if "2 workers" in name else 2
    config = functools.partial(_config, case=BY_NAME[name])
    opts: dict[str, Any] = {"num_workers_per_gpu": num_workers}  # Any: options
    if "mainline" in name:
        opts = {"torch_dataloader_opts": {"num_workers": num_workers}}
    if num_workers > 1 and ("own dataset" in name or "generated" in name):
        opts["worker_batching"] = "global"
    whole_and_parts(opts, monkeypatch, make_config=config, stop_after={1, 6, 12})


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0), (2, 1)])
def test_other_number_of_workers(before: int, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The epoch goes on as it was. (The next one has other random numbers, as in runs without interruption.)"""

    def config(folder: str, opts: dict[str, Any]) -> Config:  # Any: options
        goes_on = folder == "parts" and (tmp_path / folder).exists()
        # Batches do not depend on the number of workers.
        opts = {
            **opts,
            "worker_batching": "global",
            "num_epochs": 1,
            "num_workers_per_gpu": after if goes_on else before,
        }
        return _config(folder, opts, case=BY_NAME["hdf, chunks, 2 workers, average"])

    whole_and_parts({}, monkeypatch, make_config=config, stop_after={3, 9})
