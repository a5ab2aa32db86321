"""Temporary files of killed processes are removed, and those in use are not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from returnn.datasets.util.hdf import SimpleHDFWriter
from returnn.util.fs import atomic_write
from returnn.util.leftovers import hold, remove_leftovers
from tests.helpers import ROOT, program_env

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs flock")

#: No process has it: the limit of Linux is 2 ** 22.
NO_PID = 2**22 + 1


def test_names(tmp_path: Path) -> None:
    left = [f".a.{NO_PID}.tmp", f".a.{NO_PID}-x_1.tmp", f"..a.{NO_PID}.new.{NO_PID}.tmp", f".a.{NO_PID}.new"]
    others = ["a", ".a.tmp", f".a.b.{NO_PID}.tmp", f".ab.{NO_PID}.tmp", f"a.{NO_PID}.tmp", f".a.{os.getppid()}.tmp"]
    for name in left + others:
        (tmp_path / name).touch()
    assert sorted(remove_leftovers(str(tmp_path / "a"))) == sorted(str(tmp_path / name) for name in left)
    assert sorted(os.listdir(tmp_path)) == sorted(others)
    assert remove_leftovers(str(tmp_path / "a")) == remove_leftovers(str(tmp_path / "gone/a")) == []


def test_files_in_use_stay(tmp_path: Path) -> None:
    for pid in (os.getpid(), NO_PID):  # in another container, pids say nothing
        path = tmp_path / f".a.{pid}.tmp"
        with path.open("w") as file:
            hold(file.fileno())
            assert remove_leftovers(str(tmp_path / "a")) == []
        assert remove_leftovers(str(tmp_path / "a")) == [str(path)]


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "important").touch()
    (tmp_path / f".a.{NO_PID}.tmp").symlink_to("important")
    assert remove_leftovers(str(tmp_path / "a")) == []
    assert (tmp_path / "important").exists()


@pytest.mark.parametrize(
    "writing",
    [
        "SimpleHDFWriter({path!r}, dim=2)",
        "contextlib.ExitStack().__enter__()\nwriter.enter_context(atomic_write({path!r}))",
    ],
    ids=["hdf", "text"],
)
def test_the_next_writer_removes_what_a_killed_one_left(writing: str, tmp_path: Path) -> None:
    path = str(tmp_path / "out")
    code = (
        "import contextlib\nfrom returnn.datasets.util.hdf import SimpleHDFWriter\nfrom returnn.util.fs import atomic_write\n"
        f"writer = {writing.format(path=path)}\nprint('ready', flush=True)\ninput()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=program_env(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    (left,) = os.listdir(tmp_path)
    assert remove_leftovers(path) == [], "it still writes"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert os.listdir(tmp_path) == [left]
    if "atomic" in writing:
        with atomic_write(path):
            assert left not in os.listdir(tmp_path)
    else:
        writer = SimpleHDFWriter(path, dim=2)
        assert left not in os.listdir(tmp_path)
        writer.discard()
