"""tools/analyze-dataset-batches.py as a program, and its numbers against the engine's loader."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy
import pytest

from returnn.cli._dataset_tools.batches import BatchAnalysis, analyze_batches
from returnn.cli.dataset_source import init_tool_log
from returnn.datasets._loading.source import SourceOptions
from returnn.datasets.basic import Dataset, init_dataset
from returnn.options.batching import BatchingOptions
from tests.tools.tool_program import TOOLS_GOLDEN, golden_lines, imports_torch, last_error_line, run_tool


def _analyze(*args: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run_tool("analyze-dataset-batches", *args, cwd=cwd, check=check)


def test_golden(tmp_path: Path) -> None:
    """
    All lines of the peer, but: creation and labels of the dataset are shown; no signal handler library; the percentage
    says how much is done before the batch (the peer's is of the batch before it); a mean rounded in another way.
    """
    shutil.copy(TOOLS_GOLDEN / "analyze.config", tmp_path / "a.config")
    got = golden_lines(_analyze("a.config", cwd=tmp_path).stdout)
    want = (TOOLS_GOLDEN / "main_analyze_batches_12ax.txt").read_text().splitlines()
    assert got[0] == want[0]

    def comparable(lines: list[str]) -> list[str]:
        lines = [re.sub(r"^(\d+/20) \([^,]*,", r"\1,", line) for line in lines[lines.index("Epoch: 1") :]]
        lines = [re.sub(r"(\d\.\d{14})\d+", r"\1", line) for line in lines]
        own = ("Dataset labels:", "  Padding:", "  Largest batch:")
        return [line for line in lines if not line.startswith(own)]

    assert comparable(got) == comparable(want)
    assert "  Largest batch: 194 frames = 2 seqs x 97 (batch 1)" in got
    assert "2/20 (10.00%) (<ETA>), batch 1," in "\n".join(got)


def _static(**kwargs: Any) -> Dataset:
    rng = numpy.random.RandomState(1)
    data = [
        {"data": numpy.zeros((n, 2), "float32"), "classes": numpy.zeros(n // 2, "int32")}
        for n in rng.randint(2, 60, 100).tolist()
    ]
    return init_dataset(
        {"class": "StaticDataset", "data": data, "output_dim": {"data": (2, 2), "classes": (3, 1)}, **kwargs}
    )


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 150},
        {"batch_size": {"data": 150, "classes": 60}, "max_seqs": 5, "max_seq_length": {"data": 50}, "drop_last": True},
        {"batch_size": 120, "chunking": ({"data": 20}, {"data": 10})},
    ],
)
@pytest.mark.parametrize("in_bulk", [True, False])
def test_numbers_are_those_of_the_loader(
    options: dict[str, Any], in_bulk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from returnn.torch.data.loader import EpochSource, create_loader

    init_tool_log(0)
    dataset = _static(seq_ordering="laplace:.20")
    if not in_bulk:
        monkeypatch.setattr(type(dataset), "supports_bulk", lambda self: False)
    batching = BatchingOptions(**options)
    loader = create_loader(dataset, batching=batching, epoch_source=EpochSource(2), name="train", role="train")
    shapes = [tuple(batch["data"].shape[:2]) for batch in loader]
    source = SourceOptions.create(batching, name="train", role="train")
    analysis = analyze_batches(dataset, source, epoch=2, end=None, num_workers=1)
    assert analysis.num_batches == len(shapes)
    assert analysis.batch_sizes.lens("num_seqs").tolist() == [num for num, _ in shapes]
    assert analysis.keys["data"].padded == sum(num * length for num, length in shapes)
    assert analysis.keys["data"].frames == loader.stats.frames["data"]
    assert analysis.dropped == loader.stats.num_seqs_dropped


def test_several_workers_and_end() -> None:
    init_tool_log(0)
    dataset = _static()

    def analyze(end: int | None, num_workers: int) -> BatchAnalysis:
        source = SourceOptions.create(BatchingOptions(max_seqs=4, batch_size=None), name="train", role="train")
        return analyze_batches(dataset, source, epoch=1, end=end, num_workers=num_workers)

    assert analyze(None, 1).num_batches == 25
    assert analyze(None, 3).num_batches == 9 + 9 + 9  # 34, 33, 33 sequences
    assert analyze(11, 1).batch_sizes.lens("num_seqs").tolist() == [4, 4, 4]
    assert analyze(11, 2).num_batches == 4  # starts 0, 8; 1, 9
    assert analyze(11, 2).stopped and not analyze(99, 2).stopped


def test_options_of_the_config_and_mistakes(tmp_path: Path) -> None:
    shutil.copy(TOOLS_GOLDEN / "analyze.config", tmp_path / "a.config")
    args = ["a.config", "--verbosity", "4", "++max_seq_length", "80", "++num_workers_per_gpu", "3"]
    out = _analyze(*args, cwd=tmp_path).stdout
    assert "Num batches (steps): 6\nNum seqs: 16\nNum dropped seqs, too long ('data', limit 80): 4\n" in out
    assert ", batch " not in out
    out = _analyze("a.config", "--dataset", "dev", "++max_seq_length", "{'audio': 3}", cwd=tmp_path).stdout
    assert "Num seqs: 5" in out and "has the key 'audio'" in out
    out = _analyze("a.config", "++max_seq_length", "1", "++min_seq_length", "1", cwd=tmp_path).stdout
    assert "Num batches (steps): 0" in out
    line = last_error_line(_analyze("a.config", "++batch_size", "+-1", cwd=tmp_path, check=False))
    assert '"batch_size"' in line
    assert "examples" in _analyze("--help", cwd=tmp_path).stdout
    assert not imports_torch("analyze-dataset-batches", "a.config", cwd=tmp_path)
