"""The command lines of the golden data: exit codes and lines, with the intended differences named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import rnn, write_config

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/01-config-cli/cli.json").read_text())
CONFIG = """
import sys
task = config.value("task", "nop")
device = "cpu"
log_verbosity = 5


def my_action():
    print("ACTION", task)


def exit3():
    sys.exit(3)


def kbi():
    raise KeyboardInterrupt
"""
#: Command line -> reason, and what we do instead: exit code, last line on stderr.
DIFFERENT: dict[str, tuple[str, int, str]] = {
    "": ("a usage line instead of an assertion with traceback", 1, "usage: python .*rnn.py CONFIG .*"),
    "nop.config ++task config:nope": (
        "a sentence; the type is still a KeyError",
        1,
        'MissingOptionError: option "nope" is not set, .*',
    ),
    "nop.config ++task bogus": ("lists the known tasks", 1, "ConfigError: unknown task: 'bogus'. Known are: train, .*"),
    "nop.config ++task search": (
        "names the replacement; the type is still a NotImplementedError",
        1,
        "NotSupportedError: .* forward .*",
    ),
    "nop.config ++task compute_priors": ("as for search", 1, "NotSupportedError: .* forward .*"),
    "nop.config ++task eval": ("the task exists here, but this config has no model", 1, r"\w+Error: .*"),
    "nop.config --task nop": ("--key value is accepted, as by mainline for this key", 0, ""),
    "nop.config +x 1": ("a sentence; the type is still an AssertionError", 1, r"ConfigError: .*\+x.*"),
    "nop.config ++x": ("as above", 1, r"ConfigError: .*\+\+x.*"),
    "nop.config ++x -1": ("says how to write it", 2, r".*error: .*\+-1.*"),
    "--version": ("as mainline", 0, ""),
}
CASES = {" ".join(case["args"]): case for case in GOLDEN["cases"]}


def as_pattern(line: str) -> str:
    """:return: pattern for a line of the golden data, with its placeholders"""
    line = line.replace("Mini-RETURNN starting up", "RETURNN starting up").replace(
        "RETURNN version LONGVERSION", "RETURNN version LONGVERSION"
    )
    pattern = re.escape(line)
    for placeholder in ("VERSION", "PID", "CWD", "EXE", "HOST", "LONGVERSION"):
        pattern = re.sub(rf"\b{placeholder}\b", r".+", pattern)
    pattern = pattern.replace(re.escape("YYYY-mm-dd-HH-MM-SS (UTC+HHMM)"), r"\d{4}(-\d\d){5} \(UTC[+-]\d{4}\)")
    pattern = pattern.replace(re.escape("H:MM:SS.ffff"), r"\d+:\d\d:\d\d\.\d{4}").replace(
        re.escape("0x..."), "0x[0-9a-f]+"
    )
    return pattern.replace(re.escape("started N"), r"started \d+")


@pytest.mark.parametrize("name", [name for name in CASES if name != "nop.config ++task eval"])
def test_command_line(name: str, tmp_path: Path) -> None:
    case: dict[str, Any] = CASES[name]
    write_config(tmp_path, CONFIG, "nop.config")
    result = rnn(case["args"], tmp_path)
    if name in DIFFERENT:
        _, code, last = DIFFERENT[name]
        assert result.code == code, result.err
        assert re.fullmatch(last, result.last_error_line), result.err
        return
    assert result.code == case["rc"], result.err
    lines = result.out.splitlines()
    if "stdout_lines" in case:
        assert len(lines) == len(case["stdout_lines"]), result.out
        for line, expected in zip(lines, case["stdout_lines"], strict=True):
            assert re.fullmatch(as_pattern(expected), line)
    for expected in case.get("stdout_contains", ()):
        assert re.search(as_pattern(expected), result.out), result.out
    for unexpected in case.get("stdout_not_contains", ()):
        assert unexpected not in result.out


@pytest.mark.slow
def test_eval_exists_but_needs_a_model(tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG, "nop.config")
    result = rnn(["nop.config", "++task", "eval"], tmp_path)
    assert result.code == 1
    assert re.fullmatch(DIFFERENT["nop.config ++task eval"][2], result.last_error_line), result.err


def test_all_differences_are_about_golden_cases() -> None:
    assert set(DIFFERENT) <= set(CASES)
