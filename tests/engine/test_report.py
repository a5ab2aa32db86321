"""Lines and the progress bar: formats, the terminal and the log file at the same time, the notice about the first batch."""

from __future__ import annotations

import io
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from returnn.engine import report as report_module
from returnn.engine.report import PassReport, format_losses, step_line, with_first_batch_notice
from returnn.log import log


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self) -> bool:
        return True


def _loader(frac: float = 0.25) -> types.SimpleNamespace:
    stats = types.SimpleNamespace(
        num_seqs_seen=10,
        num_batches=2,
        secs_waited=0.0,
        complete_frac=frac,
        padding_ratio=0.125,
        dropped_text=lambda: "1 of 12 seqs: 1 data longer than 5",
    )
    return types.SimpleNamespace(stats=stats)


def test_step_line() -> None:
    first = step_line(
        "train epoch 1", 0, step_secs=0.0154, secs_since_last_line=None, total_loss=1.5, losses={"b": 2, "a": 1}
    )
    assert first == "train epoch 1, step:0, step time: 0.015, total (grad) loss: 1.500000, a: 1.00000, b: 2.00000"
    later = step_line("forward epoch 3", 7, step_secs=0.5, secs_since_last_line=1.0, device_memory="GMEM: 1.0/2.0/79.0")
    assert later == "forward epoch 3, step:7, step time: 0.500, total time: 1.000, GMEM: 1.0/2.0/79.0"
    assert format_losses({}) == ""


def test_summary_names_dropped_sequences() -> None:
    line = PassReport("train epoch 1", _loader()).summary({"ce": 1.0})
    assert line is not None and line.startswith("train epoch 1: ce: 1.00000; 10 seqs in 2 batches, ")
    assert line.endswith(", dropped: 1 of 12 seqs: 1 data longer than 5")
    assert PassReport("train epoch 1", object()).summary() is None


def test_bar_on_a_terminal_and_step_lines_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    clock = [100.0]
    monkeypatch.setattr(report_module, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    log.initialize(logs=[str(tmp_path / "log")], verbosity=[5])
    loader = _loader(0.2)
    with PassReport("train epoch 1", loader) as report:
        for frac in (0.2, 0.6):
            clock[0] += 10.0
            loader.stats.complete_frac = frac
            report.line(f"train epoch 1, step line {frac}")
            report.step({"ce": 1.5})
        print("another line", file=log.v3)
    shown = terminal.getvalue()
    assert "train epoch 1  60%" in shown and "ETA 0:00:10, 0 seqs/s, padding 12%, data wait 0%, ce: 1.50000" in shown
    assert "another line" in shown and "step line" not in shown
    text = (tmp_path / "log").read_text()
    assert "step line 0.2\n" in text and "step line 0.6\n" in text and "%|" not in text


def test_what_user_code_prints_goes_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    log.initialize(verbosity=[3])
    with PassReport("train epoch 1", _loader()) as report:
        report.step({"ce": 1.0})
        print("of the user", 1)
        report.step({"ce": 2.0})
    assert sys.stdout is terminal
    line = next(part for part in terminal.getvalue().replace("\n", "\r").split("\r") if "of the user" in part)
    assert line == "of the user 1"


def test_no_bar_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    log.initialize(verbosity=[5])
    with PassReport("train epoch 1", _loader()) as report:
        report.line("a step line")
        report.step({"ce": 1.5})
    assert pipe.getvalue() == "a step line\n"


def test_notice_about_the_first_batch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    log.initialize(verbosity=[3])
    said = threading.Event()

    def print_and_say(*args: object, file: object) -> None:
        print(*args, file=file)  # type: ignore[call-overload]
        said.set()

    monkeypatch.setattr(report_module, "print", print_and_say, raising=False)

    def batches() -> Iterator[int]:
        assert said.wait(10)
        yield 1

    assert list(with_first_batch_notice(batches(), what="train", after_secs=0.0)) == [1]
    assert capsys.readouterr().out == "train: waiting for the first batch ...\n"
    assert list(with_first_batch_notice(iter([1, 2]), what="train", after_secs=100.0)) == [1, 2]
    assert capsys.readouterr().out == ""
