"""
The program: ``python rnn.py my.config``, ``python -m returnn my.config``, or the console command ``returnn``.

Also used as a library by tools: ``import returnn.__main__ as rnn``, ``rnn.init(...)``, ``rnn.config``, ``rnn.finalize()``.
The order of a run: :func:`init` (config, log, greeting, checks, engine), :func:`execute_main_task`, :func:`finalize`.
torch is imported when an engine is created, which only tasks do that need one.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from returnn._state import state
from returnn.cli import args as cli_args
from returnn.cli.rank_end import leave, leave_in_order, note_failure, part_from_ranks, say_cause
from returnn.cli.signals import EXIT_CODE_INTERRUPTED, EXIT_CODE_TERMINATED, SignalHandling, Terminated, end_children
from returnn.util.launcher import find_launch, set_process_rank
from returnn.util.rank_failure import RankFailure, write_error_file
from returnn.util.secret_names import mask_args
from returnn.util.stop_request import EXIT_CODE_STOPPED, TrainingStopped
from returnn.util.stop_request import forget as forget_stop_requests

if TYPE_CHECKING:
    from returnn.config import Config
    from returnn.datasets.basic import Dataset
    from returnn.engine.base import EngineBase
__all__ = [
    "config",
    "engine",
    "quit_returnn",
    "main",
    "console_main",
    "init",
    "init_config",
    "init_log",
    "init_engine",
    "init_backend_engine",
    "init_data",
    "print_task_properties",
    "train_data",
    "dev_data",
    "eval_data",
    "returnn_greeting",
    "execute_main_task",
    "finalize",
    "init_better_exchook",
]

# Part of the public contract: client code reads and sets these names. Written only through _set.
config: Config | None = None
engine: EngineBase | None = None
quit_returnn: bool = False
# Set by init_data only, for tools; the engine builds its own datasets.
train_data: Dataset | None = None
dev_data: Dataset | None = None
eval_data: Dataset | None = None

#: Names that client code imports from here, and their homes. Loaded at first use, to keep --help quick.
_REEXPORTS = {
    "init_faulthandler": "returnn.util.debug",
    "init_ipython_kernel": "returnn.util.debug",
    "debug_shell": "returnn.util.debug",
    "describe_returnn_version": "returnn.util.basic",
}


def __getattr__(name: str) -> Any:  # Any: functions of several signatures
    if name in _REEXPORTS:
        import importlib

        return getattr(importlib.import_module(_REEXPORTS[name]), name)
    raise AttributeError(f"module 'returnn.__main__' has no attribute {name!r}")


def _set(**values: object) -> None:
    """Set the public names of this module, which other code may look up under any of its module names."""
    globals().update(values)


def init_better_exchook() -> None:
    """Install the report of uncaught exceptions: the sentence last on stderr, the long dump in the log."""
    from returnn.cli import error_report
    from returnn.util import debug

    debug.init_better_exchook()
    error_report.install(dump=debug.dump_exception)


def init_config(
    config_filename: str | None = None,
    command_line_options: Sequence[str] = (),
    default_config: Mapping[str, Any] | None = None,
    extra_updates: Mapping[str, Any] | None = None,
) -> None:
    """
    Load the config into ``returnn.__main__.config``, which makes it the global one if no other is set.

    :param config_filename: loaded before those of the command line
    :param command_line_options: config files, then options as ``++key value``
    :param default_config: lowest precedence
    :param extra_updates: set before and after the files; only the command line overrides them
    """
    from returnn.config import load_config

    load_config(
        config_filename,
        command_line_options,
        default_config,
        extra_updates,
        # Visible as global config already while the files are loaded.
        on_created=lambda new_config: _set(config=new_config),
    )


def init_log() -> None:
    """Open the log targets that the config names."""
    from returnn.log import log
    from returnn.options.logging import LoggingOptions

    conf = _need_config()
    LoggingOptions.from_config(conf)
    log.init_by_config(conf)


def returnn_greeting(config_filename: str | None = None, command_line_options: Sequence[str] | None = None) -> None:
    """
    Log version, time, host and command line.

    :param config_filename: if given, it is named, with its target if it is a symlink
    :param command_line_options: if given, they are shown, without values of secrets
    """
    import socket

    from returnn import __version__
    from returnn.cli.help import start_info
    from returnn.log import log

    print(f"RETURNN starting up, version {__version__}, {start_info()}", file=log.v3)
    if config_filename:
        print(f"RETURNN config: {config_filename}", file=log.v4)
        if os.path.islink(config_filename):
            print(f"RETURNN config is symlink to: {os.readlink(config_filename)}", file=log.v4)
    if command_line_options is not None:
        print(f"RETURNN command line options: {mask_args(command_line_options)}", file=log.v4)
    print(f"Hostname: {socket.gethostname()}", file=log.v4)


def init_engine() -> None:
    """
    Create ``returnn.__main__.engine``: what the config's ``CustomEngine(config=...)`` gives, else the torch engine.

    :raises ModelError: CustomEngine gives no EngineBase
    """
    from returnn.log import log
    from returnn.options.task import TaskOptions

    conf = _need_config()
    custom_engine = TaskOptions.from_config(conf).custom_engine
    if custom_engine is None:
        from returnn.torch.engine import Engine

        _set(engine=Engine(config=conf))
        return
    from returnn.engine.base import EngineBase
    from returnn.errors import ModelError

    print("Using custom engine from config", file=log.v5)
    if state.world_size > 1:  # it may have no constructor of ours
        from returnn.torch.distributed.context import init_distributed

        init_distributed(conf)
    new_engine = custom_engine(config=conf)
    if not isinstance(new_engine, EngineBase):
        raise ModelError(
            f'option "CustomEngine" must give an instance of returnn.engine.base.EngineBase, got {type(new_engine).__qualname__}. '
            "Derive the class from returnn.torch.engine.Engine or from EngineBase."
        )
    _set(engine=new_engine)


def init_backend_engine(*, config_opts: Mapping[str, Any] | None = None) -> None:
    """
    Check that the config asks for a backend that exists here. For tools of client code.

    :param config_opts: set in the config before
    """
    from returnn.options.task import TaskOptions

    conf = _need_config()
    conf.update(config_opts or {})
    TaskOptions.from_config(conf)


def init_data() -> None:
    """Build the datasets ``train``, ``dev`` and ``eval`` of the config into the module's names. For tools of client code."""
    from returnn.datasets.basic import init_dataset
    from returnn.options.data import DataOptions

    options = DataOptions.from_config(_need_config())
    evals = options.eval_datasets
    for name, opts in (("train", options.train), ("dev", evals.get("dev")), ("eval", evals.get("eval"))):
        _set(**{f"{name}_data": None if opts is None else init_dataset(opts, default_kwargs={"name": name})})


def print_task_properties() -> None:
    """Log dimensions and sizes of the datasets that :func:`init_data` built."""
    from returnn.log import log

    for title, dataset in (("Train", train_data), ("Dev", dev_data), ("Eval", eval_data)):
        if dataset is not None:
            print(f"{title} data:", file=log.v2)
            print(f"  input: {dataset.num_inputs}", file=log.v2)
            print(f"  output: {dataset.num_outputs}", file=log.v2)
            print(f"  {dataset.len_info() or 'no info'}", file=log.v2)


def init(
    config_filename: str | None = None,
    command_line_options: Sequence[str] = (),
    config_updates: Mapping[str, Any] | None = None,
    extra_greeting: str | None = None,
) -> None:
    """
    Everything before the task itself: config, log, greeting, check of the options, and the engine if the task needs one.

    :param config_filename: as in :func:`init_config`, like the next two
    :param command_line_options:
    :param config_updates:
    :param extra_greeting: logged first
    """
    _set(quit_returnn=False)
    state.quitting = False  # maybe set by an earlier run in this process
    forget_stop_requests()
    init_better_exchook()
    set_process_rank(find_launch(job_systems=False))
    init_config(
        config_filename=config_filename, command_line_options=command_line_options, extra_updates=config_updates
    )
    from returnn.cli.tasks import find_task
    from returnn.log import log
    from returnn.options import check
    from returnn.options.distributed import DistributedOptions
    from returnn.options.task import TaskOptions
    from returnn.util.debug import init_faulthandler, init_ipython_kernel

    conf = _need_config()
    # Log files are named after the rank.
    set_process_rank(find_launch(job_systems=DistributedOptions.from_config(conf).is_set))
    init_log()
    if extra_greeting:
        print(extra_greeting, file=log.v1)
    returnn_greeting(config_filename=config_filename, command_line_options=command_line_options)
    init_faulthandler()
    options = TaskOptions.from_config(conf)
    task = find_task(options.task)
    if options.patch_atfork:
        print("Note: patch_atfork has no effect: worker processes are not forked.", file=log.v2)
    with log.same_on_all_ranks():
        check.report_options(conf, options.task)
    _set_environment(options)
    if options.ipython:
        init_ipython_kernel()
    if options.startup_callback is not None:
        options.startup_callback(config=conf)
    if task.needs_engine:
        init_engine()


def _set_environment(options: Any) -> None:  # Any: TaskOptions, imported late
    """Apply what must be set before torch is imported and data are built."""
    if options.behavior_version is not None:
        from returnn.util.behavior_version import BehaviorVersion

        BehaviorVersion.set(options.behavior_version)
    if options.cuda_alloc_conf is not None:
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = options.cuda_alloc_conf


def execute_main_task() -> None:
    """Run the task that the config names, and log the time it took."""
    from returnn.cli.tasks import run_task
    from returnn.log import log
    from returnn.options import check
    from returnn.options.task import TaskOptions
    from returnn.util.time_format import hms_fraction

    conf = _need_config()
    start_time = time.monotonic()
    options = TaskOptions.from_config(conf)
    if conf.is_true("dry_run"):
        print("Dry run, will not save anything.", file=log.v1)

    def after_init() -> None:
        if options.custom_engine is None:  # which reads options in its own ways
            with log.same_on_all_ranks():
                check.report_unread_options(conf, options.task)

    run_task(options.task, conf, engine, after_init=after_init)
    unread = check.unread_command_line_keys(conf)
    if unread and options.task != "nop" and state.rank == 0:
        print("Note: nothing has read these keys of the command line:", ", ".join(unread), file=log.v2)
    print(f"elapsed: {hms_fraction(time.monotonic() - start_time)}", file=log.v3)


def finalize(error_occurred: bool = False) -> None:
    """
    End the run: say so, and let waiting threads know. Can be called repeatedly.

    :param error_occurred: whether an exception ends the run
    """
    from returnn.log import log

    if log.initialized or not error_occurred:  # no word if the run ended before it began
        print("Quitting", file=log.v4)
    _set(quit_returnn=True)
    state.quitting = True
    # Long-lived code of clients looks at this name.
    sys.exited = True  # type: ignore[attr-defined]
    log.flush()
    # Worker processes end now, and not only when they notice the end of their parent.
    close_loaders = getattr(engine, "close_loaders", None)
    if callable(close_loaders):
        with contextlib.suppress(AttributeError):  # engines of client code that skip our constructor
            close_loaders()


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run as a program. Exceptions other than KeyboardInterrupt pass through, after :func:`finalize`: the hook of the
    interpreter reports them, and the exit code is 1.

    :param argv: program name, config files, options; default ``sys.argv``
    :raises SystemExit: exit code 0 after help or version, 1 without arguments and after Ctrl-C, 2 for wrong options,
        143 after SIGTERM, 85 if a training was stopped by a signal or a limit of time and has saved all, n if a function of
        the config called ``sys.exit(n)``
    """
    _open_closed_streams()
    program, *args = sys.argv if argv is None else argv
    request = cli_args.classify(args)
    if request != "run":
        _answer(request, program)
        return
    with SignalHandling() as signals:
        try:
            init(command_line_options=args)
            execute_main_task()
        except KeyboardInterrupt as exc:
            signals.ending()
            _end_of_rank(exc, signals, exit_code=EXIT_CODE_INTERRUPTED)
            _report_interrupt(exc)
            _finalize_after_error()
            _leave_if_rank(EXIT_CODE_INTERRUPTED)
            sys.exit(EXIT_CODE_INTERRUPTED)
        except TrainingStopped as exc:
            signals.stopped()
            _end_stopped(exc)
            raise
        except Terminated as exc:
            signals.ending()
            first = _end_of_rank(exc, signals, exit_code=1)
            _finalize_after_error()
            _leave_if_rank(EXIT_CODE_TERMINATED, first)
            raise
        except BaseException as exc:
            exit_code = exc.code if isinstance(exc, SystemExit) else 1
            _end_of_rank(exc, signals, exit_code=exit_code if isinstance(exit_code, int) else 1)
            _finalize_after_error()
            if isinstance(exc, SystemExit) and (exit_code is None or isinstance(exit_code, int)):
                _leave_if_rank(exit_code or 0)
            raise
        finalize()
        part_from_ranks()
        _flush_stdout()


def _open_closed_streams() -> None:
    """Started with closed standard streams (``>&-``), what we print goes nowhere, instead of failing line by line."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf8"))


def _answer(request: cli_args.Request, program: str) -> None:
    """Print help, version or usage."""
    from returnn.cli import help as cli_help

    if request == "usage":
        print(cli_help.usage_line(program), file=sys.stderr)
        sys.exit(1)
    text = cli_help.help_text(program) if request == "help" else cli_help.version_text()
    with contextlib.suppress(OSError):  # e.g. | head, or a full disk
        print(text)
    _flush_stdout()


def _report_interrupt(exc: KeyboardInterrupt) -> None:
    from returnn.log import log

    print("KeyboardInterrupt", file=log.v3)
    if log.verbose and log.verbose[5]:
        from returnn.util import debug

        buffer = io.StringIO()
        debug.dump_exception(exc, buffer)
        print(buffer.getvalue().rstrip("\n"), file=log.v5)


def _finalize_after_error() -> None:
    """Finalize and end the processes that we started, whatever state the log is in."""
    try:
        finalize(error_occurred=True)
    except Exception as exc:  # the error that brought us here is the one to show
        print(f"Error while ending: {type(exc).__name__}: {exc}", file=sys.stderr)
    end_children()
    _flush_stdout()


def _end_of_rank(exc: BaseException, signals: SignalHandling, *, exit_code: int) -> RankFailure | None:
    """
    With several ranks: tell the others, and let the process end soon in any case.

    :return: the failure of another rank which was before; None: there was none, or there is one rank only
    """
    signals.require_end(exit_code)
    if state.world_size <= 1 or (isinstance(exc, SystemExit) and not exc.code):
        return None
    from returnn.cli import error_report

    stops = {Terminated: "stopped by SIGTERM", KeyboardInterrupt: "stopped by Ctrl-C"}
    sentence = stops.get(type(exc)) or (
        f"ended by sys.exit({exc.code!r})" if isinstance(exc, SystemExit) else error_report.sentence(exc)
    )
    is_stop = type(exc) in stops
    is_error = not isinstance(exc, (SystemExit, KeyboardInterrupt))
    report = error_report.short_report(exc) if is_error else sentence
    return note_failure(exc, sentence=sentence, report=report, is_stop=is_stop)


def _end_stopped(exc: TrainingStopped) -> None:
    """The end after a stop that was requested, and after which nothing is lost. All ranks come here after the same step."""
    from returnn.log import log

    print(
        f"Stopped as requested ({exc.reason}). All is saved, the next start goes on there. Exit code {EXIT_CODE_STOPPED}.",
        file=log.v1,
    )
    finalize()
    end_children()
    part_from_ranks()
    _flush_stdout()
    if state.world_size > 1:
        write_error_file(str(exc), is_stop=True)
        leave_in_order(EXIT_CODE_STOPPED)


def _leave_if_rank(exit_code: int, first: RankFailure | None = None) -> None:
    """
    With several ranks: end now, after those who need us have heard why.

    :param exit_code: of the process, if no other rank failed
    :param first: failure of another rank
    """
    if state.world_size <= 1:
        return
    _flush_stdout()
    part_from_ranks(error=exit_code != 0, early=True)
    if first is not None and first.kind != "stopped":
        say_cause(first)
        exit_code = 1
    leave(exit_code)


def _flush_stdout() -> None:
    from returnn.cli.error_report import ignore_broken_pipe

    ignore_broken_pipe(sys.stdout)


def _need_config() -> Config:
    assert config is not None, "returnn.__main__: init_config must be called first"
    return config


def console_main() -> None:
    """Entry point of the program in all its forms: :func:`main` with the arguments of the process."""
    try:
        main(sys.argv)
    except Exception as exc:
        if state.world_size <= 1:
            raise
        from returnn.cli import error_report
        from returnn.util import debug

        error_report.report_and_leave(exc, dump=debug.dump_exception)
    # All is done. What is left is the end of the interpreter, which takes a moment if torch is loaded;
    # a Ctrl-C that comes so late would only show errors of library code that ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if state.world_size > 1:
        leave_in_order(0)


if __name__ == "__main__":
    # Run the module under its own name, so that its public names exist only once.
    from returnn.__main__ import console_main as _console_main

    _console_main()
