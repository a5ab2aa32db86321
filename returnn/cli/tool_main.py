"""How each program in ``tools/`` ends: exit codes, Ctrl-C, a closed pipe, errors as one sentence, no process left."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from returnn.cli import error_report
from returnn.cli.signals import EXIT_CODE_INTERRUPTED, SignalHandling, end_children

__all__ = ["run_tool"]


def run_tool(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """
    Run a program and end the process: ``if __name__ == "__main__": run_tool(main)``.

    :param main: called with the whole command line (``argv[0]`` is the program); returns the exit code, None is 0
    :param argv: None: ``sys.argv``
    :raises SystemExit: always. Exit code (spec 07 section 1): 0 is right, or what `main` returned or gave to
        ``sys.exit`` (argparse: 2); 1 after any exception (its report on stderr, the sentence is the last line), after
        Ctrl-C (prints ``KeyboardInterrupt``) and if nobody reads the output (``BrokenPipeError``); 143 after SIGTERM.
    """
    error_report.install()  # also for what goes wrong at the interpreter's end
    code: int | None
    with SignalHandling() as signals:
        try:
            code = main(sys.argv if argv is None else argv)
            sys.stdout.flush()  # here, so that a closed pipe is seen
        except KeyboardInterrupt:
            signals.ending()
            _say("KeyboardInterrupt")
            code = EXIT_CODE_INTERRUPTED
        except Exception as exc:
            if _is_closed_output(exc):
                _say("BrokenPipeError")
            else:
                error_report.report(exc)
            code = 1
        finally:
            signals.ending()
            end_children()
    sys.exit(code)


def _is_closed_output(exc: BaseException) -> bool:
    """:return: whether nobody reads our output any more; a print in a config that fails so is told as a ConfigFileError"""
    error = exc if isinstance(exc, BrokenPipeError) else exc.__cause__
    if not isinstance(error, BrokenPipeError):
        return False
    # If stdout is fine, it may have been the pipe of another process.
    return error_report.ignore_broken_pipe(sys.stdout) or error.filename is not None or not _is_from_worker(error)


def _is_from_worker(exc: BaseException) -> bool:
    """:return: whether it was raised by the pipe of a process that we started"""
    tb = exc.__traceback__
    while tb is not None:
        if "multiprocessing" in tb.tb_frame.f_globals.get("__name__", ""):
            return True
        tb = tb.tb_next
    return False


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr)
