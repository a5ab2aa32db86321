"""Signals to all processes of a job do not end the server that workers are forked from, not even while it starts."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, run_program

PROGRAM = """
import multiprocessing, os, signal, time
from multiprocessing import forkserver
from returnn.datasets._loading.server import start_server

if __name__ == "__main__":
    start_server(with_torch=False)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(forkserver._forkserver._forkserver_pid, signum)
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=print, args=("from the server",))
    process.start()
    process.join()
    # Processes start as always, and can be ended.
    for signum in (signal.SIGTERM, signal.SIGUSR1):
        process = context.Process(target=time.sleep, args=(100,))
        process.start()
        os.kill(process.pid, signum)
        process.join()
        print(signal.Signals(-process.exitcode).name)
    print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs it")
def test_the_server_stands_signals_from_its_start_on(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    res = run_program([sys.executable, "program.py"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert res.stdout.splitlines() == ["from the server", "SIGTERM", "SIGUSR1", "set()"]
    assert res.stderr == ""
