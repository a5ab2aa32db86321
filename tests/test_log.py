"""The log: golden cases, targets, threads, warnings."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.errors import ConfigError, NotSupportedError
from returnn.log import Log, Stream, StreamDummy, StreamThreadLocal, log, wrap_log_streams
from returnn.util.time_format import get_utc_start_time_filename_part

_CASES = json.loads((Path(__file__).parent / "golden" / "01-config-cli" / "log.json").read_text())["cases"]
# We print milliseconds (spec 01 section 13, row 7), the peers the minute and "S".
_TIME = r"\d\d\d\d-\d\d-\d\d,\d\d:\d\d:\d\d\.\d\d\d"


@pytest.fixture(autouse=True)
def _restore_logger() -> Iterator[None]:
    logger = logging.getLogger("returnn")
    saved = (list(logger.handlers), logger.level, logger.propagate)
    logger.handlers = []
    with process_state_ctx(shown_warnings=set()):
        yield
    for handler in logger.handlers:
        handler.close()
    logger.handlers, logger.level, logger.propagate = saved


def _expect_lines(text: str, expected: list[str]) -> None:
    lines = text.splitlines()
    assert len(lines) == len(expected), text
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(re.escape(pattern).replace("TIME", _TIME), line), (line, pattern)


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_golden(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    kwargs = case["initialize"]
    log = Log()
    if "verbosity" in case.get("error", ""):
        with pytest.raises(AssertionError, match="invalid verbosity: 9"):
            log.initialize(**kwargs)
        return
    log.initialize(**kwargs)
    target = kwargs.get("logs", ["stdout"])[0].replace("$date", get_utc_start_time_filename_part())
    if "error" in case:  # file name without folder, or folder that does not exist: both work here
        print("x", file=log.v1)
        assert Path(target).read_text() == "x\n"
        return
    if "calls" in case:
        log.print_warning("w1")
        log.print_warning("w1")
        log.print_warning("w2", extra_text="more")
        log.print_deprecation_warning("d1")
        log.print_deprecation_warning("d2", behavior_version=12)
        assert capsys.readouterr().out.splitlines() == case["stdout"]
        return
    for i in range(1, 6):
        print(f"lvl{i}", i, file=getattr(log, f"v{i}"))
    assert log.verbose == [bool(v) for v in case["verbose"]]
    _expect_lines(capsys.readouterr().out, case["file"] if case["stdout"] == "same as file" else case["stdout"])
    if "file" in case:
        assert log.filename == target
        _expect_lines(Path(target).read_text(), case["file"])


def test_before_init_prints_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log()
    assert (log.initialized, log.filename, log.v, log.verbose, log.v1, log.v5) == (False, None, None, None, None, None)
    print("a", file=log.v5)
    log.print_warning("w")
    assert capsys.readouterr().out == "a\nWARNING: w\n"


def test_input_lists_are_not_modified() -> None:
    logs: list[Any] = []
    verbosity = [4]
    Log().initialize(logs=logs, verbosity=verbosity)
    config = Config()
    config.parse_cmd_args(["++log", "x_not_written"])
    assert logs == [] and verbosity == [4] and config.dict["log"] == ["x_not_written"]


def test_reinit_closes_files(tmp_path: Path) -> None:
    log = Log()
    log.initialize(logs=[str(tmp_path / "new" / "folder" / "a.log")])
    (handler,) = [h for h in logging.getLogger("returnn").handlers if isinstance(h, logging.FileHandler)]
    stream = handler.stream
    print("one", file=log.v1)
    log.initialize(logs=[str(tmp_path / "b.log")])
    assert stream is not None and stream.closed
    print("two", file=log.v1)
    assert (tmp_path / "new" / "folder" / "a.log").read_text() == "one\n"
    assert (tmp_path / "b.log").read_text() == "two\n"


def test_append_and_unusual_text(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("before\n")
    log = Log()
    log.initialize(logs=[str(path)])
    print("100% \udc80 ü %s\nsecond line", file=log.v1)
    print(file=log.v1)
    assert path.read_text() == "before\n100% \\udc80 ü %s\nsecond line\n\n"


def test_flush_of_empty_buffer_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log()
    log.initialize()
    log.flush()
    print("a", end="", file=log.v1)
    log.flush()
    log.flush()
    assert capsys.readouterr().out == "a\n"


def test_pipe_target(tmp_path: Path) -> None:
    log = Log()
    log.initialize(logs=[f"| cat > {tmp_path / 'out'}"], verbosity=[4])
    print("hello ü", file=log.v4)
    print("not", file=log.v5)
    log.initialize()  # ends the pipe
    assert (tmp_path / "out").read_text() == "hello ü\n"


def test_handler_target_and_propagate() -> None:
    buffer = io.StringIO()
    log = Log()
    log.initialize(logs=[logging.StreamHandler(buffer)], verbosity=[2], formatter=["timed"], propagate=True)
    assert [type(h) for h in logging.getLogger("returnn").handlers] == [logging.StreamHandler]
    print("two", file=log.v2)
    print("three", file=log.v3)
    logging.getLogger("returnn.util.something").log(logging.INFO, "child %d", 5)
    _expect_lines(buffer.getvalue(), ["TIME two", "TIME child 5"])
    assert all(log.verbose)


def test_stdout_is_that_of_the_time_of_the_print(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    log.initialize()
    for _ in range(2):
        buffer = io.StringIO()
        monkeypatch.setattr(sys, "stdout", buffer)
        print("x", file=log.v1)
        assert buffer.getvalue() == "x\n"


def test_lines_of_threads_do_not_mix(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log()
    log.initialize()
    half_written, done = threading.Event(), threading.Event()

    def other() -> None:
        half_written.wait(10)
        print("other", file=log.v1)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    log.v1.write("main ")
    half_written.set()
    assert done.wait(10)
    print("continued", file=log.v1)
    thread.join()
    assert capsys.readouterr().out == "other\nmain continued\n"


def test_suppressed_line_makes_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    log.initialize(verbosity=[3])

    def fail(*_args: Any) -> None:
        raise AssertionError("a suppressed line was handled")

    monkeypatch.setattr(logging.Logger, "log", fail)
    monkeypatch.setattr(Stream, "_emit", fail)
    print("x", 1, file=log.v5)
    log.v5.flush()


@pytest.mark.parametrize(
    "kwargs,text",
    [
        ({"verbosity": [6]}, "invalid verbosity: 6"),
        ({"verbosity": [-1]}, "invalid verbosity: -1"),
        ({"verbosity": ["3"]}, "invalid verbosity: '3'"),
        ({"logs": [5]}, "invalid log target 5"),
        ({"logs": ["/proc/not/possible.log"]}, "invalid log target '/proc/not/possible.log'"),
    ],
)
def test_errors(kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Log().initialize(**kwargs)


def test_init_by_config(tmp_path: Path) -> None:
    log = Log()
    log.init_by_config(Config({"log": str(tmp_path / "x.y.log"), "log_verbosity": 5, "log_format": "verbose"}))
    print("x", file=log.v5)
    _expect_lines((tmp_path / "x.y.log").read_text(), ["DEBUG - TIME x"])
    with process_state_ctx(rank=1, world_size=4):
        log.init_by_config(Config({"log": [str(tmp_path / "x.y.log"), "stdout"]}))
    assert log.filename == str(tmp_path / "x.y.torch-distrib-1-4.log")
    with pytest.raises(NotSupportedError, match="use_horovod"):
        log.init_by_config(Config({"use_horovod": True}))


def test_ranks_other_than_0_show_only_warnings_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with process_state_ctx(rank=2, world_size=4, shown_warnings=set()):
        log = Log()
        file = str(tmp_path / "x.log")
        log.init_by_config(Config({"log": [file, f"|cat > {tmp_path}/pipe"], "log_verbosity": [5, 5, 5]}))
        print("start", file=log.v1)
        print("step", file=log.v5)
        print("Warning: two\nlines", file=log.v2)
        log.print_warning("once")
        with log.same_on_all_ranks():
            print("Warning: unknown option", file=log.v1)
        logging.getLogger("returnn").error("bad")
    assert capsys.readouterr().out == "[rank 2] Warning: two\n[rank 2] lines\n[rank 2] WARNING: once\n[rank 2] bad\n"
    text = (tmp_path / "x.torch-distrib-2-4.log").read_text()
    assert text == "start\nstep\nWarning: two\nlines\nWARNING: once\nWarning: unknown option\nbad\n"
    assert not (tmp_path / "pipe").exists()


def test_verbosity_of_other_ranks_without_log_file() -> None:
    log = Log()
    with process_state_ctx(rank=1, world_size=2):
        log.initialize(verbosity=[5])
    assert log.verbose == [True, True, True, False, False, False]  # so that steps need not fetch losses for nothing


@pytest.mark.parametrize(
    "args, targets, levels",
    [
        (["++log_verbosity", "[5,1]"], ["stdout"], [10]),
        (["++log", "[{0!r},'stdout',{1!r}]", "++log_verbosity", "[5,1,3]"], ["{0}", "stdout", "{1}"], [10, 21, 12]),
        (["++log", "{0},{1}", "++log_verbosity", "5,1,3"], ["{0}", "{1}", "stdout"], [10, 21, 12]),
        (["++log", "{0}", "++log_verbosity", "4"], ["{0}", "stdout"], [11, 11]),
        (["++log", "None"], ["stdout"], [12]),
        (["++log", ""], ["stdout"], [12]),
        (["++log", "{0}", "++log_format", "timed,verbose"], ["{0}", "stdout"], [12, 12]),
    ],
)
def test_options_of_the_command_line(args: list[str], targets: list[str], levels: list[int], tmp_path: Path) -> None:
    files = [str(tmp_path / "a.log"), str(tmp_path / "b.log")]
    config = Config()
    config.parse_cmd_args([arg.format(*files) for arg in args])
    log = Log()
    log.init_by_config(config)
    handlers = logging.getLogger("returnn").handlers
    assert [getattr(h, "baseFilename", "stdout") for h in handlers] == [t.format(*files) for t in targets]
    assert [h.level for h in handlers] == levels


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_full_disk_is_said_once_and_the_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log()
    log.initialize(logs=["/dev/full"], verbosity=[3])
    for i in range(3):
        print("line", i, file=log.v3)
    captured = capsys.readouterr()
    assert captured.out == "line 0\nline 1\nline 2\n"
    assert captured.err.count("\n") == 1 and "Cannot write to the log file /dev/full: No space left" in captured.err


def test_wrap_log_streams(capsys: pytest.CaptureFixture[str]) -> None:
    log.initialize(verbosity=[5])
    streams = [getattr(log, f"v{i}") for i in range(1, 6)]
    alternative = StreamThreadLocal()
    with pytest.raises(KeyError), wrap_log_streams(alternative, also_sys_stdout=True) as (v1, yielded):
        assert v1 is streams[0] and yielded is alternative
        print("a", file=log.v5)
        print("b")
        print("orig", file=v1)  # goes to what sys.stdout is now
        raise KeyError
    assert alternative.buf.getvalue() == "a\nb\norig\n"
    assert [getattr(log, f"v{i}") for i in range(1, 6)] == streams
    with wrap_log_streams(StreamDummy()):
        print("nothing", file=log.v1)
    assert capsys.readouterr().out == ""
    log.__init__()  # type: ignore[misc]


def test_pickling_gives_the_log_of_the_process() -> None:
    # For functions of a config with `from returnn.log import log`, in workers.
    log.initialize(verbosity=[5])
    assert pickle.loads(pickle.dumps(log)) is log
    assert pickle.loads(pickle.dumps(log.v4)) is log.v4
    with pytest.raises(pickle.PicklingError):  # not that of the process
        pickle.dumps(Log())
    log.__init__()  # type: ignore[misc]


def test_terminal_that_cannot_show_all_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    log = Log()
    log.initialize()
    print("a", "\xe9", file=log.v1)
    sys.stdout.flush()
    assert raw.getvalue() == b"a \\xe9\n"
