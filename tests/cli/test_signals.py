"""Ctrl-C and SIGTERM while a run is at work."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from returnn.cli.signals import SignalHandling, Terminated, end_children
from returnn.util import stop_request
from returnn.util.signals import signal_handler
from tests.cli.helpers import command, environment, rnn, write_config

# They wait in short sleeps: a signal that comes between Python's last look for signals and the system call of one long sleep
# would not interrupt it, and its handler would run only after it.
#: Says that it runs, then waits long; notes in a file that it was unwound.
SLEEP = """
import sys, time
task = "config:wait"
log_verbosity = 4

def wait():
    try:
        print("WAITING", flush=True)
        for _ in range(2000):
            time.sleep(0.05)
    finally:
        open("unwound", "w").close()
"""
CHILDREN = """
import subprocess, sys, time, multiprocessing
task = "config:wait"
log_verbosity = 4

def wait():
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(100,))
    child.start()
    print("WAITING", child.pid, flush=True)
    for _ in range(2000):
        time.sleep(0.05)
"""


def start(folder: Path, text: str) -> tuple[subprocess.Popen[str], str]:
    """:return: the process, and the line that shows that it works"""
    write_config(folder, text)
    proc = subprocess.Popen(
        command(["my.config"]),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # A shell starts background jobs with SIGINT ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert proc.stdout is not None
    for line in proc.stdout:
        if line.startswith("WAITING"):
            return proc, line
    raise AssertionError(f"ended early: {proc.communicate()[1]}")


def test_ctrl_c(tmp_path: Path) -> None:
    proc, _ = start(tmp_path, SLEEP)
    proc.send_signal(signal.SIGINT)
    out, err = proc.communicate(timeout=60)
    assert proc.returncode == 1
    assert out.splitlines() == ["KeyboardInterrupt", "Quitting"]
    assert err == ""
    assert (tmp_path / "unwound").exists()


def test_two_fast_ctrl_c(tmp_path: Path) -> None:
    proc, _ = start(tmp_path, SLEEP)
    proc.send_signal(signal.SIGINT)
    proc.send_signal(signal.SIGINT)
    out, err = proc.communicate(timeout=60)
    assert proc.returncode == 1
    assert out.splitlines() == ["KeyboardInterrupt", "Quitting"]
    assert err == ""
    assert (tmp_path / "unwound").exists()


def test_sigterm(tmp_path: Path) -> None:
    proc, _ = start(tmp_path, SLEEP)
    proc.send_signal(signal.SIGTERM)
    out, err = proc.communicate(timeout=60)
    assert proc.returncode == 143
    assert out.splitlines() == ["Quitting"]
    assert err == ""
    assert (tmp_path / "unwound").exists()


def read_until(fd: int, text: str) -> str:
    """:return: what came from the terminal until that text, or its end"""
    result = ""
    while text not in result:
        try:
            part = os.read(fd, 1000)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        result += part.decode()
    return result


def test_ctrl_c_in_a_terminal(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    write_config(tmp_path, SLEEP)
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, command(["my.config"]), environment())
    read_until(fd, "WAITING")
    os.write(fd, b"\x03\x03")
    out = read_until(fd, "(never)")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    lines = [line.replace("^C", "") for line in out.splitlines()]
    assert [line for line in lines if line] == ["KeyboardInterrupt", "Quitting"]


@pytest.mark.parametrize("signum, code", [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_children_end_too(signum: signal.Signals, code: int, tmp_path: Path) -> None:
    proc, line = start(tmp_path, CHILDREN)
    child_pid = int(line.split()[1])
    proc.send_signal(signum)
    proc.communicate(timeout=60)
    assert proc.returncode == code
    with pytest.raises(ProcessLookupError):
        os.kill(child_pid, 0)


def test_handlers_are_restored_after_a_normal_end() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with SignalHandling():
        pass
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_terminated_carries_the_exit_code() -> None:
    assert Terminated().code == 143


def test_end_children_without_children() -> None:
    end_children()


def test_ctrl_c_when_all_is_done(tmp_path: Path) -> None:
    # At the end of the interpreter, e.g. while torch ends.
    config = "import atexit, os, signal\ntask = 'nop'\natexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
    result = rnn([write_config(tmp_path, config)], tmp_path)
    assert (result.code, result.err) == (0, "")


#: A stand-in for a training: steps of 50 ms that accept stops, then "saves".
STOPPABLE = """
import signal, time
from returnn.util import stop_request

task = "config:train_it"
log_verbosity = 4

def train_it():
    with stop_request.accept_stops():
        print("WAITING", flush=True)
        while True:
            time.sleep(0.05)
            reason = stop_request.requested()
            if reason:
                open("saved", "w").close()
                raise stop_request.TrainingStopped(reason)
"""
#: As STOPPABLE, but its step never ends.
LONG_STEP = STOPPABLE.replace("if reason:", "if False:")


@pytest.mark.parametrize(
    ("signum", "reason"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGUSR1, "SIGUSR1"), (signal.SIGINT, "Ctrl-C")]
)
def test_a_training_stops_after_its_step(signum: signal.Signals, reason: str, tmp_path: Path) -> None:
    proc, _ = start(tmp_path, STOPPABLE)
    proc.send_signal(signum)
    if signum != signal.SIGUSR1:
        proc.send_signal(signum)  # timeout(1) and torchrun send it twice
    out, err = proc.communicate(timeout=60)
    assert proc.returncode == 85
    assert out.splitlines()[-2:] == [
        f"Stopped as requested ({reason}). All is saved, the next start goes on there. Exit code 85.",
        "Quitting",
    ]
    assert (tmp_path / "saved").exists()
    if signum == signal.SIGUSR1:
        assert "The training saves after this step and stops." in out and "That were all threads." in out
        assert "Traceback" not in out and "test_signals" not in err
    else:
        assert err.splitlines() == [
            f"{reason}: the training saves after this step and stops. Another {reason} ends it without that."
        ]


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_the_second_signal_ends_it_at_once(signum: signal.Signals, code: int, tmp_path: Path) -> None:
    proc, _ = start(tmp_path, LONG_STEP)
    assert proc.stderr is not None
    proc.send_signal(signum)
    assert "saves after this step" in proc.stderr.readline()
    other = signal.SIGINT if signum == signal.SIGTERM else signal.SIGTERM
    proc.send_signal(other)  # another kind is another request, as job systems send both
    assert "saves after this step" in proc.stderr.readline()
    while proc.poll() is None:  # the same within two seconds belongs to the first
        proc.send_signal(signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            proc.wait(timeout=2.5)
    out, err = proc.communicate(timeout=60)
    assert proc.returncode == code
    assert out.splitlines()[-1] == "Quitting" and err == ""
    assert not (tmp_path / "saved").exists()


def test_usr2_only_says_where_it_is(tmp_path: Path) -> None:
    proc, _ = start(tmp_path, STOPPABLE)
    assert proc.stdout is not None
    proc.send_signal(signal.SIGUSR2)
    assert any("That were all threads." in line for line in proc.stdout)
    assert proc.poll() is None and not (tmp_path / "saved").exists()
    proc.send_signal(signal.SIGTERM)
    proc.communicate(timeout=60)
    assert proc.returncode == 85


def test_usr1_in_the_middle_of_a_print(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    class Busy(io.StringIO):
        def write(self, text: str) -> int:
            raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

        def fileno(self) -> int:
            return 1

    monkeypatch.setattr(sys, "stdout", Busy())
    signal_handler(signal.SIGUSR1, None)
    assert "got signal 10 (SIGUSR1)" in capfd.readouterr().out
    stop_request.forget()  # a training that begins in this process now would stop after its first step
