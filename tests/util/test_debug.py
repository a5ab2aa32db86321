"""Exception hook, signals, thread dumps, shells: mostly in processes of their own."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from returnn.util import better_exchook
from returnn.util.debug import (
    debug_shell,
    dump_all_thread_tracebacks,
    dump_exception,
    format_signum,
    init_ipython_kernel,
    setup_warn_with_traceback,
    signum_to_signame,
)
from returnn.util.debug_helpers import SimpleHdf, find_obj_in_stack
from tests.helpers import ROOT, program_env


def _run(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    (cwd / "prog.py").write_text(code)
    return subprocess.run(
        [sys.executable, "prog.py"],
        cwd=cwd,
        env=program_env({"PYTHONPATH": str(ROOT)}),
        capture_output=True,
        text=True,
        timeout=60,
    )


_FAIL = """
from returnn.util.debug import init_better_exchook
from returnn.log import log
from returnn.errors import ConfigError
init_better_exchook()
def inner(local_value):
    if local_value: raise {exc}
{log}
print("normal output")
inner("the value of the local")
"""


@pytest.fixture(params=["maybe", "not"])
def _exchook_installed(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The package better_exchook, if it is installed, and without it."""
    if request.param == "not":
        (tmp_path / "better_exchook.py").write_text("raise ImportError('not installed')\n")


@pytest.mark.usefixtures("_exchook_installed")
def test_hook_short_on_stderr_long_in_log_file(tmp_path: Path) -> None:
    code = _FAIL.format(exc="ValueError('the reason')", log="log.initialize(logs=['my.log'], verbosity=[3])")
    proc = _run(code, tmp_path)
    assert proc.returncode == 1
    assert proc.stdout == "normal output\n"
    lines = proc.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):" and lines[-1] == "ValueError: the reason"
    assert "local_value = " not in proc.stderr and "the value of the local" not in proc.stderr.replace(lines[2], "")
    text = (tmp_path / "my.log").read_text()
    assert "Unhandled exception <class 'ValueError'> in thread <_MainThread" in text
    assert "local_value = " in text and "the value of the local" in text and "\x1b" not in text
    assert "That were all threads." in text


def test_hook_user_error_is_one_sentence(tmp_path: Path) -> None:
    proc = _run(_FAIL.format(exc="ConfigError('what to do')", log="log.initialize(verbosity=[3])"), tmp_path)
    assert (proc.returncode, proc.stderr) == (1, "ConfigError: what to do\n")
    assert proc.stdout == "normal output\n"


@pytest.mark.usefixtures("_exchook_installed")
def test_hook_verbosity_5_dumps_to_stdout(tmp_path: Path) -> None:
    proc = _run(_FAIL.format(exc="ValueError('x')", log="log.initialize(verbosity=[5])"), tmp_path)
    assert "local_value = " in proc.stdout and "\x1b" not in proc.stdout
    assert proc.stderr.splitlines()[-1] == "ValueError: x"


def test_hook_without_log(tmp_path: Path) -> None:
    proc = _run(_FAIL.format(exc="ValueError('x')", log=""), tmp_path)
    assert proc.stdout == "normal output\n" and proc.stderr.splitlines()[-1] == "ValueError: x"


def test_hook_in_thread_and_quitting(tmp_path: Path) -> None:
    code = """
import threading
from returnn._state import state
from returnn.util.debug import init_better_exchook
from returnn.util.basic import is_quitting
init_better_exchook()
def f(): raise KeyError("in thread")
t = threading.Thread(target=f); t.start(); t.join()
assert not is_quitting()
import atexit
atexit.register(lambda: print("quitting", is_quitting()))
raise KeyboardInterrupt
"""
    proc = _run(code, tmp_path)
    assert "KeyError: 'in thread'" in proc.stderr
    assert proc.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert proc.stdout == "quitting True\n"


def test_signals_dump_and_go_on(tmp_path: Path) -> None:
    code = """
import os, signal
from returnn.util.debug import init_faulthandler
init_faulthandler()
init_faulthandler()
for s in (signal.SIGUSR1, signal.SIGUSR2):
    os.kill(os.getpid(), s)
print("still here")
"""
    proc = _run(code, tmp_path)
    assert proc.returncode == 0, proc.stderr
    for signum in (signal.SIGUSR1, signal.SIGUSR2):
        assert f"Signal handler: got signal {format_signum(signum)}" in proc.stdout
    assert proc.stdout.endswith("still here\n") and 'File "' in proc.stdout


def test_a_signal_at_the_very_end_does_not_spoil_the_exit_code(tmp_path: Path) -> None:
    code = """
import atexit, os, signal, sys
from returnn.util.debug import init_faulthandler

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), signals=(signal.SIGUSR1, signal.SIGUSR2), out=sys.__stdout__):
        for s in signals:
            kill(pid, s)
        out.write("end\\n")
        out.flush()

sys.late = Late()
atexit.register(Late().__del__)
init_faulthandler()
"""
    proc = _run(code, tmp_path)
    assert (proc.returncode, proc.stderr, set(proc.stdout.splitlines())) == (0, "", {"end"})


def test_segfault_is_reported(tmp_path: Path) -> None:
    code = """
import ctypes, sys
from returnn.util.debug import {func}
{func}()
ctypes.string_at(0)
"""
    proc = _run(code.format(func="init_faulthandler"), tmp_path)
    assert proc.returncode == -signal.SIGSEGV and "Segmentation fault" in proc.stderr
    proc = _run(code.format(func="install_subproc_faulthandler"), tmp_path)
    (dump,) = tmp_path.glob("faulthandler_dump.*.log")
    assert "Segmentation fault" in dump.read_text()
    dump.unlink()
    proc = _run("from returnn.util.debug import *\ninstall_subproc_faulthandler()", tmp_path)
    assert proc.returncode == 0 and not list(tmp_path.glob("faulthandler_dump.*"))


def test_format_signum() -> None:
    assert format_signum(signal.SIGUSR1) == f"{int(signal.SIGUSR1)} (SIGUSR1)"
    assert signum_to_signame[int(signal.SIGINT)] == "SIGINT" and format_signum(12345) == "12345 (unknown)"


def test_dump_all_thread_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="my waiting thread")
    thread.start()
    try:
        dump_all_thread_tracebacks(exclude_self=True)
    finally:
        stop.set()
        thread.join()
    out = capsys.readouterr().out
    assert "name='my waiting thread'" in out and "(Excluded thread.)" in out
    assert out.endswith("That were all threads.\n")


class _BadRepr:
    def __repr__(self) -> str:
        raise RuntimeError("bad repr")


def _nested(depth: int) -> None:
    bad, long_text = _BadRepr(), "x" * 1000
    if not depth:
        raise ValueError("inner", len(long_text))
    try:
        _nested(depth - 1)
    except ValueError as exc:
        raise KeyError("outer", bad is None) from exc


def test_better_exchook_and_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    _check_better_exchook_and_dump()
    monkeypatch.setitem(sys.modules, "better_exchook", None)
    _check_better_exchook_and_dump()


def _check_better_exchook_and_dump() -> None:
    try:
        _nested(1)
    except KeyError as exc:
        text = better_exchook.format_exception_with_locals(exc)
        hook_stream, dump_stream = io.StringIO(), io.StringIO()
        better_exchook.better_exchook(KeyError, exc, exc.__traceback__, file=hook_stream)
        dump_exception(exc, dump_stream)
        for printed in (hook_stream.getvalue(), dump_stream.getvalue()):
            assert "outer" in printed and "inner" in printed
    assert "bad = <repr failed: RuntimeError>" in text
    assert "x" * 290 + "..." in text.replace("'", "") or "..." in text
    assert "x" * 301 not in text
    assert text.index("inner") < text.index("direct cause") < text.index("outer")
    stream = io.StringIO()
    better_exchook.better_exchook(None, None, None, file=stream)


def test_debug_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr(better_exchook, "debug_shell", lambda **kwargs: seen.update(kwargs))
    debug_shell(user_ns={"a": 1}, user_global_ns={"b": 2}, exit_afterwards=False)
    assert seen == {"user_ns": {"a": 1}, "user_global_ns": {"b": 2}}
    with pytest.raises(SystemExit) as exc_info:
        debug_shell()
    assert exc_info.value.code == 1


def test_init_ipython_kernel_without_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", None)
    init_ipython_kernel()
    assert "IPython import error, cannot start IPython kernel." in capsys.readouterr().out


def test_setup_warn_with_traceback(tmp_path: Path) -> None:
    setup_warn_with_traceback()  # without the variable: nothing
    code = (
        "import os, warnings\nos.environ['DEBUG_WARN_WITH_TRACEBACK'] = '1'\n"
        "from returnn.util.debug import setup_warn_with_traceback\nsetup_warn_with_traceback()\n"
        "def my_func(): warnings.warn('careful')\nmy_func()\n"
    )
    err = _run(code, tmp_path).stderr
    assert "in my_func" in err and "UserWarning: careful" in err


class _Needle:
    pass


def test_find_obj_in_stack() -> None:
    needle = _Needle()
    assert (lambda: find_obj_in_stack(_Needle))() is needle
    assert find_obj_in_stack(type("NotThere", (), {})) is None


def test_simple_hdf() -> None:
    files = sorted((ROOT / "tests" / "golden").rglob("*.hdf"))
    h5py = pytest.importorskip("h5py")
    for filename in files:
        with h5py.File(filename, "r") as f:
            if "seqTags" not in f or "inputs" not in f or f["seqLengths"].ndim != 2:
                continue
            total = f["inputs"].shape[0]
        hdf = SimpleHdf(str(filename))
        if hdf.seq_lens.sum() != total or not hdf.num_seqs:
            continue
        data = [hdf.get_data(i) for i in range(hdf.num_seqs)]
        assert [len(d) for d in data] == hdf.seq_lens.tolist()
        assert (hdf.get_data(hdf.get_seq_tags()[0]) == data[0]).all()
        hdf.close()
        return
    pytest.skip("no HDF file among the golden data")
