"""A process that reads files, replaced by a new one when it dies or hangs."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["ReadServer"]

_ROOT = Path(__file__).resolve().parents[2]


class ReadServer:
    """See read_file.main."""

    def __init__(self, *, patience_secs: float = 60.0):
        """:param patience_secs: a file that takes longer counts as a hang; far above what a busy machine needs"""
        self._patience_secs = patience_secs
        self._process: subprocess.Popen[str] | None = None

    def _start(self) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "tests.robustness.read_file"],
            cwd=_ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def read(self, reader: str, path: Path) -> dict[str, Any]:
        """
        :param reader: of read_file.READERS
        :param path: file
        :return: "end": ok, worded, crash, died, hang; "text". Any: JSON
        """
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{reader}\t{path}\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(self._patience_secs):
                self.close()
                return {"end": "hang", "text": f"no answer after {self._patience_secs} s"}
        line = process.stdout.readline()
        if not line:
            return {"end": "died", "text": f"exit code {process.wait()}"}
        result: dict[str, Any] = json.loads(line)
        return result

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
