"""Options of the log: targets, verbosity, formats."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from returnn.errors import OptionError
from returnn.options.registry import Option, declare, read

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["LoggingOptions"]

FORMATS = ("default", "raw", "timed", "verbose")

declare(
    Option(
        "log",
        "str | list[str | logging.Handler] | None",
        (),
        'Log targets besides stdout: file names ("$date" is replaced by the start time), or "|COMMAND" for a pipe.',
    ),
    Option(
        "log_verbosity",
        "int | list[int]",
        (),
        "How much to log, 0 (errors) to 5 (each step); one value, or one per target (3 if missing).",
    ),
    Option(
        "log_format",
        "str | list[str]",
        (),
        'Line format, one value or one per target: "default" (= "raw"), "timed", "verbose".',
    ),
)


@dataclasses.dataclass(frozen=True)
class LoggingOptions:
    """Where to log and how much; checked before the log is opened."""

    targets: tuple[Any, ...]  # Any: str or logging.Handler
    verbosity: tuple[int, ...]
    formats: tuple[str, ...]

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> LoggingOptions:
        """
        :param config:
        :raises OptionError: verbosity not in 0..5
        """
        verbosity = []
        for value in _as_list(read(config, "log_verbosity")):
            if isinstance(value, str) and value.strip().isdigit():
                value = int(value)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 5:
                raise OptionError(
                    "log_verbosity",
                    expected="int from 0 to 5, or a list of them",
                    got=value,
                    todo="Set e.g. log_verbosity = 4",
                )
            verbosity.append(value)
        return cls(
            targets=tuple(_as_list(read(config, "log"))),
            verbosity=tuple(verbosity),
            # Unknown formats fall back to "default", as the peers do.
            formats=tuple(str(f) if f in FORMATS else "default" for f in _as_list(read(config, "log_format"))),
        )


def _as_list(value: Any) -> list[Any]:  # Any: raw option value
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
