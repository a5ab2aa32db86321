"""What a command line asks for before any config is loaded: a run, the help, the version, or nothing useful."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

__all__ = ["Request", "classify"]

Request = Literal["run", "help", "version", "usage"]


def classify(args: Sequence[str]) -> Request:
    """
    :param args: without the program name
    :return: "help" or "version" if that is asked for anywhere except as the value of an option; "usage" if there is nothing to run
    """
    if not args:
        return "usage"
    expects_value = False
    for arg in args:
        if expects_value:
            expects_value = False
        elif arg in ("-h", "--help"):
            return "help"
        elif arg in ("-V", "--version"):
            return "version"
        elif arg.startswith(("++", "-")):
            # All other options take one value: ++key value, --key value, -x value. Either may hold it itself: --key=value.
            expects_value = not (arg.startswith("--") and "=" in arg) and not (
                arg.startswith("-") and not arg.startswith("--") and len(arg) > 2
            )
    return "run"
