"""Real processes: ranks of which one is asked to stop, and what the next start makes of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers import write_config
from tests.torch.distributed.test_failures_of_ranks import CONFIG, Run, pytestmark, runs

__all__ = ["pytestmark", "runs"]

#: More steps per epoch, and who is sent which signal in the middle of the second.
STOP_CONFIG = (
    CONFIG.replace("batch_size = 400", "batch_size = 100\nsave_every_minutes = 1000").replace(
        "num_epochs = 3", "num_epochs = 2"
    )
    + """

step_of_all = train_step

def train_step(*, run_ctx, **kwargs):
    how = os.environ.get("TEST_STOP")
    if how and run_ctx.epoch == 2 and run_ctx.global_step == int(os.environ["TEST_STEP"]) and os.environ["RANK"] == "1":
        os.kill(os.getppid() if how == "torchrun" else os.getpid(), signal.SIGTERM)
    step_of_all(run_ctx=run_ctx, **kwargs)
"""
)


def _run(folder: Path, runs: list[Run], *, torchrun: bool = False, **env: str) -> tuple[list[int], list[str]]:
    """:return: exit codes, outputs; of torchrun alone, or of each rank"""
    run = Run(folder, "--tee", "3", **env) if torchrun else Run(folder, **env)
    runs.append(run)
    processes = [run.torchrun()] if torchrun else run.plain()
    outs = [process.communicate(timeout=200)[0] for process in processes]
    run.assert_no_orphans()
    return [process.returncode for process in processes], outs


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """An uninterrupted training, and the number of its steps per epoch."""
    folder = tmp_path_factory.mktemp("reference")
    write_config(folder / "my.config", STOP_CONFIG)
    started: list[Run] = []
    try:
        codes, outs = _run(folder, started, TEST_WORKERS="1")
        assert codes == [0, 0], outs
    finally:
        for run in started:
            run.end()
    num_steps = torch.load(folder / "models/epoch.001.pt", weights_only=True)["step"]
    assert num_steps >= 6
    yield folder, num_steps


@pytest.mark.parametrize("how", ["own", "torchrun"])
def test_all_ranks_stop_after_the_same_step(
    how: str, tmp_path: Path, reference: tuple[Path, int], runs: list[Run]
) -> None:
    folder, num_steps = reference
    write_config(tmp_path / "my.config", STOP_CONFIG)
    env = {"TEST_STOP": how, "TEST_STEP": str(num_steps + 2), "TEST_WORKERS": "1"}
    codes, outs = _run(tmp_path, runs, torchrun=how == "torchrun", **env)
    # torchrun has the exit code 1 whatever the ranks have.
    assert codes == ([85, 85] if how == "own" else [1]), outs
    assert "Stopped as requested (SIGTERM" in outs[0] and "Exit code 85." in outs[0]
    names = [path.name for path in (tmp_path / "models").glob("epoch.002.step*.pt") if ".opt." not in path.name]
    assert len(names) == 1, outs
    match = re.fullmatch(r"epoch\.002\.step(\d+)\.pt", names[0])
    assert match and num_steps + 2 < int(match.group(1)) <= num_steps + 6
    if how == "torchrun":
        assert "exitcode  : 85" in outs[0] or "exitcode" not in outs[0]
    codes, outs = _run(tmp_path, runs, TEST_WORKERS="1")
    assert codes == [0, 0], outs
    got, expected = (torch.load(d / "models/epoch.002.pt", weights_only=True) for d in (tmp_path, folder))
    assert got["step"] == expected["step"]
    for name, param in expected["model"].items():
        assert torch.equal(got["model"][name], param), name
    assert (tmp_path / "learning_rates").read_text() == (folder / "learning_rates").read_text()
