"""Whole command lines: help, mistakes of the user, errors in the config, files instead of a terminal."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.helpers import RNN, command, environment, rnn, write_config

NOP = 'task = "nop"\n'


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["my.config", "--help"], ["my.config", "++task", "nop", "-h"]])
def test_help(args: list[str], tmp_path: Path) -> None:
    result = rnn(args, tmp_path)
    assert result.code == 0
    assert result.err == ""
    for word in (
        "usage: python",
        "++KEY VALUE",
        "--KEY VALUE",
        "+-0.5",
        "initialize_model",
        "config:NAME",
        "Exit codes",
        "docs/options.md",
    ):
        assert word in result.out


@pytest.mark.parametrize("args", [["--version"], ["-V"], ["my.config", "--version"]])
def test_version(args: list[str], tmp_path: Path) -> None:
    result = rnn(args, tmp_path)
    assert result.code == 0
    assert result.out.startswith("RETURNN version ")
    assert "Python " in result.out


def test_text_like_an_option_is_no_option_as_value(tmp_path: Path) -> None:
    write_config(tmp_path, NOP + "print('value:', config.value('name', None))\n")
    result = rnn(["my.config", "++name", "+-h"], tmp_path)
    assert result.code == 0
    assert "value: -h" in result.out


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["my.config"], ["my.config", "++task", "config:action"]])
def test_light_commands_do_not_import_torch(args: list[str], tmp_path: Path) -> None:
    write_config(tmp_path, "task = config.value('task', 'nop')\ndef action():\n    pass\n")
    program = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('TORCH' if 'torch' in sys.modules else 'LIGHT'))\n"
        f"sys.argv = ['rnn.py', *{args!r}]\n"
        f"runpy.run_path({RNN!r}, run_name='__main__')\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, env=environment()
    )
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines()[-1] == "LIGHT"


def test_module_form(tmp_path: Path) -> None:
    write_config(
        tmp_path,
        "task = 'config:action'\ndef action():\n    import returnn.__main__ as rnn\n    print('SAME', rnn.config.typed_dict['task'])\n",
    )
    env = environment({"PYTHONPATH": str(Path(RNN).parent)})
    out = subprocess.run(
        [sys.executable, "-m", "returnn", "my.config"], cwd=tmp_path, capture_output=True, text=True, env=env
    )
    assert out.returncode == 0, out.stderr
    assert "SAME config:action" in out.stdout


def test_typo_in_an_option_is_a_warning(tmp_path: Path) -> None:
    write_config(tmp_path, NOP + "batch_sizee = 100\n")
    result = rnn(["my.config"], tmp_path)
    assert result.code == 0
    assert 'WARNING: unknown option "batch_sizee" in my.config: did you mean "batch_size"?' in result.out


def test_typo_on_the_command_line_is_a_warning(tmp_path: Path) -> None:
    write_config(tmp_path, NOP)
    result = rnn(["my.config", "++batch_sze", "100"], tmp_path)
    assert 'unknown option "batch_sze" in the command line: did you mean "batch_size"?' in result.out


def test_strict_config_makes_a_typo_an_error(tmp_path: Path) -> None:
    write_config(tmp_path, NOP + "batch_sizee = 100\ngradient_clip_nrom = 1.0\n")
    result = rnn(["my.config", "++strict_config", "True"], tmp_path)
    assert result.code == 1
    assert "ConfigError: strict_config is set, and the config has 2 problems:" in result.err
    assert '"batch_size"' in result.err and '"gradient_clip_norm"' in result.err


def test_refused_option(tmp_path: Path) -> None:
    write_config(tmp_path, NOP + "use_tensorflow = True\n")
    result = rnn(["my.config"], tmp_path)
    assert result.code == 1
    assert result.last_error_line.startswith(
        'NotSupportedError: option "use_tensorflow" (in my.config) is not supported.'
    )


def test_other_backend(tmp_path: Path) -> None:
    write_config(tmp_path, NOP + "backend = 'tensorflow'\n")
    result = rnn(["my.config"], tmp_path)
    assert result.code == 1
    assert result.last_error_line.startswith("NotSupportedError: backend = 'tensorflow' is not supported.")


def test_missing_config_file(tmp_path: Path) -> None:
    result = rnn(["nope.config"], tmp_path)
    assert result.code == 1
    assert result.err.count("\n") == 1, result.err
    assert result.err.startswith("ConfigFileError: config file not found: 'nope.config'")
    assert result.out == ""


def test_syntax_error_in_the_config(tmp_path: Path) -> None:
    write_config(tmp_path, "x = 1\ny = = 2\n")
    result = rnn(["my.config"], tmp_path)
    assert result.code == 1
    assert result.err.count("\n") == 1, result.err
    assert "my.config, line 3" in result.err and "SyntaxError" in result.err


def test_exception_while_the_config_loads(tmp_path: Path) -> None:
    write_config(tmp_path, "def f():\n    return 1 / 0\n\nx = f()\n")
    result = rnn(["my.config"], tmp_path)
    assert result.code == 1
    assert result.last_error_line.startswith("ConfigFileError: ")
    assert (
        "my.config, line 3" in result.last_error_line
        and "ZeroDivisionError: division by zero" in result.last_error_line
    )


def test_exception_in_a_function_of_the_config_shows_its_frames_only(tmp_path: Path) -> None:
    write_config(tmp_path, "task = 'config:f'\ndef g(x):\n    return x / 0\n\ndef f():\n    g(3)\n")
    result = rnn(["my.config"], tmp_path)
    assert result.code == 1
    assert result.last_error_line == "ZeroDivisionError: division by zero"
    assert 'File "my.config", line 7, in f' in result.err
    assert 'File "my.config", line 4, in g' in result.err
    assert "calls inside of returnn" in result.err
    assert "returnn/cli/tasks.py" not in result.err
    assert "Quitting" not in result.err


_LOCAL = re.compile(r"seventeen = (<local> )?17")  # as we write it, and the package better_exchook


def test_the_long_dump_goes_to_the_log_file_only(tmp_path: Path) -> None:
    write_config(
        tmp_path,
        "task = 'config:f'\nlog = 'my.log'\nlog_verbosity = 4\ndef f():\n    seventeen = 17\n    seventeen / 0\n",
    )
    result = rnn(["my.config"], tmp_path)
    assert result.code == 1
    shown = result.out.replace("    seventeen = 17\n", "") + result.err
    assert not _LOCAL.search(shown)
    text = (tmp_path / "my.log").read_text()
    assert _LOCAL.search(text)
    assert "Unhandled exception" in text
    assert "ZeroDivisionError: division by zero" in text
    assert "Unhandled exception" not in result.out
    assert "\x1b[" not in text


def test_the_long_dump_goes_to_stdout_at_verbosity_5(tmp_path: Path) -> None:
    write_config(tmp_path, "task = 'config:f'\nlog_verbosity = 5\ndef f():\n    seventeen = 17\n    seventeen / 0\n")
    result = rnn(["my.config"], tmp_path)
    assert "Unhandled exception" in result.out and _LOCAL.search(result.out)
    assert "\x1b[" not in result.out
    assert result.last_error_line == "ZeroDivisionError: division by zero"


def test_finalize_runs_after_an_error(tmp_path: Path) -> None:
    write_config(tmp_path, "task = 'config:f'\nlog_verbosity = 4\ndef f():\n    1 / 0\n")
    assert rnn(["my.config"], tmp_path).out.splitlines()[-1] == "Quitting"


def test_unread_keys_of_the_command_line_are_named(tmp_path: Path) -> None:
    write_config(tmp_path, "task = 'config:f'\ndef f():\n    print(config.value('used', None))\n")
    result = rnn(["my.config", "++used", "a", "++not_used", "b"], tmp_path)
    assert result.code == 0, result.err
    assert "nothing has read these keys of the command line: not_used\n" in result.out


def test_config_file_option_and_several_files(tmp_path: Path) -> None:
    write_config(tmp_path, "a = 1\nb = 1\nc = 1\n", "a.config")
    write_config(
        tmp_path, "b = 2\nc = 2\ntask = 'config:show'\ndef show():\n    print('VALUES', a, b, c)\n", "b.config"
    )
    write_config(tmp_path, "c = 3\n", "c.config")
    result = rnn(["a.config", "b.config", "--config", "c.config", "++a", "10"], tmp_path)
    assert "VALUES 10 2 3" in result.out


def test_output_into_a_closed_pipe(tmp_path: Path) -> None:
    write_config(tmp_path, "task = 'config:f'\ndef f():\n    for i in range(100000):\n        print('line', i)\n")
    proc = subprocess.Popen(
        command(["my.config"]),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    assert proc.stdout is not None and proc.stderr is not None
    assert proc.stdout.readline()
    proc.stdout.close()
    err = proc.stderr.read()
    assert proc.wait() == 1
    assert err.rstrip().splitlines()[-1].startswith("BrokenPipeError"), err
    assert "Exception ignored" not in err
    assert "Logging error" not in err


def test_exit_codes_of_functions_of_the_config(tmp_path: Path) -> None:
    write_config(tmp_path, "import sys\ntask = 'config:f'\ndef f():\n    sys.exit(7)\n")
    assert rnn(["my.config"], tmp_path).code == 7


def test_log_verbosity_out_of_range(tmp_path: Path) -> None:
    write_config(tmp_path, NOP + "log_verbosity = 9\n")
    result = rnn(["my.config"], tmp_path)
    assert result.code == 1
    assert result.err.startswith('OptionError: option "log_verbosity" is invalid: expected int from 0 to 5')


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize("redirection", [">&-", ">&- 2>&-", "| head -n 1"])
@pytest.mark.parametrize("args", ["--help", "my.config"])
def test_closed_output(redirection: str, args: str, tmp_path: Path) -> None:
    write_config(tmp_path, NOP)
    out = subprocess.run(
        f"'{sys.executable}' '{RNN}' {args} {redirection}",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert out.returncode == 0
    assert out.stderr == ""


def test_plus_config_is_no_option(tmp_path: Path) -> None:
    result = rnn([write_config(tmp_path, "task = 'nop'\n"), "++config", "other.config"], tmp_path)
    assert result.code == 1
    assert result.last_error_line.endswith(
        "'++config' is no option. To load a further config file, write '--config FILE'."
    )


def test_folder_instead_of_config(tmp_path: Path) -> None:
    result = rnn(["."], tmp_path)
    assert result.code == 1 and "config file is a folder, no config file: '.'" in result.last_error_line


def test_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "my.config").write_bytes(
        b"\xef\xbb\xbf#!rnn.py\r\ntask = 'nop'\r\nbatch_sizee = 3\r\nbatch_size = batch_sizee\r\n"
    )
    result = rnn(["my.config"], tmp_path)
    assert result.code == 0 and "WARNING" not in result.out, result.err
