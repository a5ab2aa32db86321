"""A training and a forward job as job systems run them, against the files and the log of Mini-RETURNN."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from returnn.learning_rate_control import LearningRateControl
from tests.helpers import GOLDEN, run_rnn

pytestmark = pytest.mark.slow

TRAIN = GOLDEN / "07-tools-demos" / "train"
#: Lines that differ on purpose: pattern of the peer's line -> ours, or None: it is gone.
DIFFERENCES: list[tuple[str, str | None]] = [
    (r"Mini-RETURNN starting up, version 0\.5, (.*)", r"RETURNN starting up, version [^ ]+, \1"),
    (r"Created Dataset f(.*)", r"Created Dataset \1"),  # a stray letter
    (r"Learning-rate-control: file .* does not exist yet", None),  # the start block says it
    (r"    lr: 1\.0", r"    lr: 0\.01"),  # ours shows what the first epoch uses
    (r"Applied sharding of .*", None),  # noise where nothing is sharded
    (r"Learning-rate-control: error key .*", None),  # see below: order of the losses, and after "Finished evaluating"
    (r"Deleted .*B\.", r"Deleted .*B\."),  # our checkpoints carry more
    (r"forward epoch None, (.*)", r"forward epoch 4, \1"),  # ours knows the epoch of the checkpoint
]


def _assert_log(golden: str, log: str) -> None:
    """Every line of the golden log is in ours, in the same order."""
    lines = iter(log.splitlines())
    for golden_line in golden.splitlines():
        pattern: str | None = re.escape(golden_line)
        for old, new in DIFFERENCES:
            match = re.fullmatch(old, golden_line)
            if match:
                groups = [re.escape(g) for g in match.groups()]
                pattern = new.replace(r"\1", groups[0]) if new and groups else new
        if pattern is None:
            continue
        pattern = re.sub(r"<T>s?", r"[-\\d:.+() UTC]+s?", pattern)
        pattern = re.sub(r"<(?:P|N|H|CWD|EXE|ETA)>", r"\\S+", pattern)
        assert any(re.fullmatch(pattern, line) for line in lines), f"not found, or not in this order: {golden_line!r}"


def test_training_and_forward_job(tmp_path: Path) -> None:
    for name in ("train.config", "fwd.config"):
        shutil.copy(TRAIN / name, tmp_path)
    shutil.copy(TRAIN / "net.py.txt", tmp_path / "net.py")
    res = run_rnn("train.config", cwd=tmp_path)
    assert res.stderr == ""
    assert (tmp_path / "returnn.log").read_text() == res.stdout
    _assert_log((TRAIN / "mini_train_log.txt").read_text(), res.stdout)
    assert re.findall(r"^Learning-rate-control: error key '(.*)' from {'(.*?)': ", res.stdout, re.M) == [
        ("ce", "ce"),
        ("dev_loss_ce", "dev_loss_ce"),
        ("dev_loss_ce", "devtrain_loss_ce"),
    ]
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == sorted(
        [f"epoch.{e:03}.pt" for e in (2, 3, 4)] + [f"epoch.{e:03}.opt.pt" for e in (3, 4)]
    )
    ours, golden = (
        LearningRateControl(default_learning_rate=1.0, filename=str(d / "learning_rates")) for d in (tmp_path, TRAIN)
    )
    for epoch in range(1, 5):
        assert ours.epoch_data[epoch].learning_rate == golden.epoch_data[epoch].learning_rate
        assert ours.get_epoch_error_dict(epoch) == pytest.approx(golden.get_epoch_error_dict(epoch), rel=1e-6)
    # What the job system does with the file.
    parsed = eval(
        (tmp_path / "learning_rates").read_text().strip(), {"EpochData": dict, "nan": float("nan"), "inf": float("inf")}
    )
    assert list(parsed) == [1, 2, 3, 4] and set(parsed[4]) == {"learningRate", "error"}

    res = run_rnn("fwd.config", cwd=tmp_path)
    assert res.stderr == ""
    _assert_log((TRAIN / "mini_forward_log.txt").read_text(), res.stdout)
    assert (tmp_path / "search_out.py").read_text() == (TRAIN / "search_out.py.txt").read_text()
