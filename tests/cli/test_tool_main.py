"""The end of each tool: exit codes and what is seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, program_env, run_program

HEAD = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from returnn.cli.tool_main import run_tool
from returnn.errors import ConfigError
"""


def _run(tmp_path: Path, body: str, *args: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "tool.py"
    script.write_text(HEAD + body + '\nif __name__ == "__main__":\n    run_tool(main)\n')
    return run_program([sys.executable, str(script), *args], cwd=tmp_path, check=False)


@pytest.mark.parametrize(
    ("statement", "code"),
    [("pass", 0), ("return None", 0), ("return 0", 0), ("return 3", 3), ("sys.exit(2)", 2), ("sys.exit()", 0)],
)
def test_exit_code(tmp_path: Path, statement: str, code: int) -> None:
    res = _run(tmp_path, f"def main(argv):\n    {statement}")
    assert (res.returncode, res.stderr) == (code, "")


def test_command_line(tmp_path: Path) -> None:
    res = _run(tmp_path, "def main(argv):\n    print(argv)", "--a", "b")
    assert res.stdout.endswith("tool.py', '--a', 'b']\n")
    assert res.returncode == 0


def test_mistake_of_the_user_is_one_sentence(tmp_path: Path) -> None:
    res = _run(tmp_path, "def main(argv):\n    raise ConfigError('x is wrong.')")
    assert res.returncode == 1
    assert res.stderr.splitlines()[-1] == "ConfigError: x is wrong."


def test_other_exception(tmp_path: Path) -> None:
    res = _run(tmp_path, "def main(argv):\n    {}['a']")
    assert res.returncode == 1
    assert "Traceback" in res.stderr
    assert res.stderr.splitlines()[-1] == "KeyError: 'a'"


def test_keyboard_interrupt(tmp_path: Path) -> None:
    res = _run(tmp_path, "def main(argv):\n    raise KeyboardInterrupt")
    assert (res.returncode, res.stdout, res.stderr) == (1, "", "KeyboardInterrupt\n")


def test_terminated(tmp_path: Path) -> None:
    res = _run(tmp_path, "import os, signal\ndef main(argv):\n    os.kill(os.getpid(), signal.SIGTERM)")
    assert (res.returncode, res.stderr) == (143, "")


@pytest.mark.parametrize("num_lines", [1, 100_000])
def test_nobody_reads(tmp_path: Path, num_lines: int) -> None:
    """As in ``tool.py | head -n 0``, also if the little output is only written at the end."""
    script = tmp_path / "tool.py"
    script.write_text(
        HEAD
        + f"def main(argv):\n    for i in range({num_lines}):\n        print(i)\nsys.stdin.read()\nrun_tool(main)\n"
    )
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=program_env(),
        text=True,
    ) as proc:
        assert proc.stdin and proc.stdout and proc.stderr
        proc.stdout.close()
        proc.stdin.close()  # only now it begins to write
        assert proc.stderr.read() == "BrokenPipeError\n"
        assert proc.wait() == 1


def test_no_process_is_left(tmp_path: Path) -> None:
    body = """
import multiprocessing, time
def sleep():
    time.sleep(1000)
def main(argv):
    child = multiprocessing.get_context("spawn").Process(target=sleep)
    child.start()
    print(child.pid, flush=True)
    raise ConfigError("x.")
"""
    res = _run(tmp_path, body)
    assert res.returncode == 1
    assert not Path(f"/proc/{res.stdout.strip()}").exists()


def test_imports_no_torch(tmp_path: Path) -> None:
    res = _run(tmp_path, "def main(argv):\n    return int('torch' in sys.modules or 'numpy' in sys.modules)")
    assert res.returncode == 0
