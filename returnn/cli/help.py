"""The texts of ``--help``, of ``--version``, and of the usage line."""

from __future__ import annotations

import datetime
import os
import sys

from returnn._config.cmdline import SHORT_OPTIONS
from returnn.cli.tasks import REFUSED_TASKS, TASKS
from returnn.util.stop_request import EXIT_CODE_STOPPED

__all__ = ["usage_line", "help_text", "version_text", "start_info"]

_HELP = """\
{usage}

Train, evaluate and run a model from one Python config.

Config files come first, and are loaded in this order into one namespace. The config sets the options as global variables:
datasets (train, dev, eval_datasets, forward), functions (get_model, train_step, forward_step), and all other settings.

Options of the command line:
  ++KEY VALUE        set option KEY; overrides the config. VALUE is a Python literal (1000, 1e-3, True, [1,2], "{{'a': 1}}"),
                     or else a text. A negative number needs a plus before it: ++KEY +-0.5
  --KEY VALUE        the same; short forms: {short_options}
  --config FILE      load one more config file
  -h, --help         show this text and exit
  -V, --version      show the version and exit

Tasks (++task NAME; without it {default_task}):
{tasks}
  Not supported: {refused}; docs/tasks.md says what to use.

Examples:
  {program} my.config
  {program} my.config ++num_epochs 10 ++learning_rate 1e-4
  {program} my.config ++task forward ++load models/epoch.010
  {program} my.config ++task config:my_function

A second run of the same command continues from the newest complete checkpoint.
All options: docs/options.md, or: python -m returnn.options.docs
Exit codes: 0 done; 1 an error (the last line on stderr says which) or Ctrl-C; 2 a wrong option; 143 ended by SIGTERM;
  {stopped} a training that was stopped by SIGTERM, SIGUSR1, Ctrl-C or a limit of time, and has saved all: start it again.
"""


def usage_line(program: str) -> str:
    """
    :param program: as called
    :return: one line
    """
    return f"usage: {_shown(program)} CONFIG [CONFIG ...] [++KEY VALUE ...]   (--help shows tasks and options)"


def help_text(program: str) -> str:
    """
    :param program: as called
    :return: the whole help
    """
    width = max(len(name) for name in TASKS)
    return _HELP.format(
        usage=usage_line(program),
        stopped=EXIT_CODE_STOPPED,
        program=_shown(program),
        default_task="train",
        short_options=", ".join(f"-{short} {key}" for short, key in SHORT_OPTIONS.items()),
        tasks="\n".join(f"  {name:<{width}}  {task.doc}" for name, task in TASKS.items()),
        refused=", ".join(REFUSED_TASKS),
    )


def version_text() -> str:
    """:return: one line with version, Python, and the place of the package"""
    import returnn  # the only use of the git information, which takes two git calls

    return f"RETURNN version {returnn.__long_version__}, {start_info()}"


def start_info() -> str:
    """:return: date/time, pid, cwd, Python, in the form that scripts look for in the first line of a log"""
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d-%H-%M-%S (UTC%z)")
    return f"date/time {now}, pid {os.getpid()}, cwd {os.getcwd()}, Python {sys.executable}"


def _shown(program: str) -> str:
    name = os.path.basename(program)
    if name == "__main__.py":
        return "python -m returnn"
    return f"python {program}" if name.endswith(".py") else name
