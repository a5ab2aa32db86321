"""
The log: streams by verbosity, to standard output, files, pipes or handlers.

Use as ``print("...", file=log.v3)``. Before :func:`Log.initialize`, the streams are None, which prints to standard output.
Modules below this layer, and user code, may use stdlib loggers below "returnn", which end in the same handlers.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from returnn._state import state
from returnn.errors import ConfigError, NotSupportedError
from returnn.util.log_levels import LEVELS
from returnn.util.rank_failure import prefix_lines
from returnn.util.time_format import get_utc_start_time_filename_part

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["Log", "Stream", "StdoutHandler", "StreamThreadLocal", "StreamDummy", "wrap_log_streams", "log"]

_MAX_VERBOSITY = 5
_DEFAULT_VERBOSITY = 3
#: Warnings have it at most. What standard output shows of ranks other than 0.
_WARNINGS_VERBOSITY = 2
_FORMATS = {
    "default": "%(message)s",
    "raw": "%(message)s",
    "timed": "%(asctime)s %(message)s",
    "verbose": "%(levelname)s - %(asctime)s %(message)s",
}


class _Formatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """:return: e.g. ``2024-01-31,23:59:59.123``"""
        seconds = time.strftime(datefmt or "%Y-%m-%d,%H:%M:%S", self.converter(record.created))
        return f"{seconds}.{int(record.msecs):03d}"


def _complain_once(handler: logging.Handler, target: str) -> bool:
    """
    To be called in an exception handler. That a log cannot be written (full disk, quota) is said once; the run goes on.

    :return: whether it was such an error
    """
    exc = sys.exc_info()[1]
    if not isinstance(exc, OSError):
        return False
    if not getattr(handler, "complained", False):
        handler.complained = True  # type: ignore[attr-defined]
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(f"Cannot write to the log {target}: {exc.strerror or exc}. Its lines may get lost.\n")
            sys.stderr.flush()
    return True


class StdoutHandler(logging.StreamHandler):
    """Writes to what ``sys.stdout`` is at that time."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """:return: the current ``sys.stdout``"""
        return sys.stdout

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        pass

    def format(self, record: logging.LogRecord) -> str:
        """:return: the text; what the terminal's encoding does not have is escaped"""
        text = super().format(record)
        encoding = getattr(sys.stdout, "encoding", None) or "utf8"
        if text.isascii() or encoding.lower().replace("-", "") == "utf8":
            return text
        return text.encode(encoding, "backslashreplace").decode(encoding)

    def handleError(self, record: logging.LogRecord) -> None:
        """A reader that is gone (``rnn.py my.config | head``) is no reason to complain at each line."""
        if not isinstance(sys.exc_info()[1], BrokenPipeError) and not _complain_once(self, "on stdout"):
            super().handleError(record)


class _RankStdoutHandler(StdoutHandler):
    """Of all ranks but the first: only warnings and errors, each line with the rank. Rank 0 shows the rest."""

    def __init__(self, owner: Log) -> None:
        super().__init__()
        self._owner = owner

    def filter(self, record: logging.LogRecord) -> bool:  # type: ignore[override]
        """:return: whether it is shown"""
        if record.levelno >= logging.WARNING:
            return True
        text = record.getMessage().lstrip().lower()
        return not self._owner.is_same_on_all_ranks and text.startswith(("warning", "deprecation warning", "error"))

    def format(self, record: logging.LogRecord) -> str:
        """:return: the text, each line with the rank"""
        return prefix_lines(super().format(record))


class _FileHandler(logging.FileHandler):
    """Appends. Each record is written at once, so several processes can share the file."""

    def __init__(self, filename: str) -> None:
        super().__init__(filename, mode="a", encoding="utf8", errors="backslashreplace")

    def handleError(self, record: logging.LogRecord) -> None:
        """Complain once if the disk is full."""
        if not _complain_once(self, f"file {self.baseFilename}"):
            super().handleError(record)

    def close(self) -> None:
        """Close the file; what could not be written is lost."""
        with contextlib.suppress(OSError):
            super().close()


class _PipeHandler(logging.StreamHandler):
    """Writes to the standard input of a shell command."""

    def __init__(self, command: str) -> None:
        self._proc = subprocess.Popen(command, shell=True, stdin=subprocess.PIPE, text=True)
        assert self._proc.stdin is not None, "subprocess without stdin despite PIPE"
        super().__init__(self._proc.stdin)

    def close(self) -> None:
        """End the command: close its input, and wait for it."""
        with contextlib.suppress(OSError):
            self.stream.close()
        self._proc.wait()
        super().close()


class Stream:
    """
    File-like object for ``print``: what is written before a write of exactly a newline becomes one log record.

    Each thread has its own buffer, so that lines of several threads do not mix.
    """

    def __init__(self, log: logging.Logger, lvl: int, *, enabled: bool = True) -> None:
        """
        :param log: gets the records
        :param lvl: stdlib logging level of the records
        :param enabled: if not, everything is discarded at once: that no handler takes this level is known
        """
        self.lvl = lvl
        self.log = log
        self.enabled = enabled
        self._local = threading.local()
        self.lock = threading.RLock()

    def write(self, msg: str) -> int:
        """
        :param msg: buffered; a single newline ends the record
        :return: number of characters
        """
        if not self.enabled:
            return len(msg)
        if msg == "\n":
            self._emit()
        else:
            self._local.__dict__.setdefault("parts", []).append(msg)
        return len(msg)

    def _emit(self) -> None:
        parts: list[str] = self._local.__dict__.pop("parts", [])
        with self.lock:
            self.log.log(self.lvl, "%s", "".join(parts))

    def flush(self) -> None:
        """Make a record of an unfinished line, if there is one."""
        if self._local.__dict__.get("parts"):
            self._emit()

    def isatty(self) -> bool:
        """:return: False"""
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        # In another process, the stream of its own log.
        return _stream_of_level, (self.lvl,)


def _stream_of_level(lvl: int) -> TextIO | None:
    """:return: that stream of the log of this process"""
    stream: TextIO | None = getattr(log, f"v{LEVELS.index(lvl)}")
    return stream


class StreamThreadLocal(threading.local):
    """Collects what is written, per thread, in ``buf``."""

    def __init__(self) -> None:
        self.buf = io.StringIO()

    def write(self, msg: str) -> int:
        """:return: number of characters"""
        return self.buf.write(msg)

    def flush(self) -> None:
        """Nothing to do."""


class StreamDummy:
    """Discards everything."""

    def write(self, msg: str) -> int:
        """:return: number of characters"""
        return len(msg)

    def flush(self) -> None:
        """Nothing to do."""


# What a log stream may be: unset, ours, or what wrap_log_streams puts there.
LogStream = Stream | StreamThreadLocal | StreamDummy | TextIO | None


class Log:
    """The streams ``v1`` (important) to ``v5`` (each step), and their targets."""

    def __init__(self) -> None:
        self.initialized = False
        #: the last file target, after substitution of ``$date``
        self.filename: str | None = None
        self.v: list[logging.Logger] | None = None
        #: arguments of :func:`initialize` that give another process the same targets, as far as they can be sent there
        self.settings_for_workers: dict[str, Any] = {}  # Any: the types of these arguments
        #: what is printed now is the same on all ranks of a distributed run, so one of them is enough to show it
        self.is_same_on_all_ranks = False
        # Typed for the state after initialize, because that is when they are indexed.
        self.verbose: list[bool] = None  # type: ignore[assignment]
        self.v1: TextIO = None  # type: ignore[assignment]
        self.v2: TextIO = None  # type: ignore[assignment]
        self.v3: TextIO = None  # type: ignore[assignment]
        self.v4: TextIO = None  # type: ignore[assignment]
        self.v5: TextIO = None  # type: ignore[assignment]

    def initialize(
        self,
        logs: Sequence[str | logging.Handler] | None = None,
        verbosity: Sequence[int] | None = None,
        formatter: Sequence[str] | None = None,
        propagate: bool = False,
    ) -> None:
        """
        Set the targets. Can be called again, which closes the earlier files and starts anew.

        In a distributed run, ranks other than 0 show only warnings and errors on standard output, and have no pipes: many
        processes would write to what the command writes.

        :param logs: "stdout", "|shell command", a handler, or a file name with optional ``$date`` (UTC process start);
            the folder is created. "stdout" is added if missing, unless propagate
        :param verbosity: per target, 0 (nothing but errors) to 5 (everything). One value is for all; missing: 3
        :param formatter: per target, "default" or "raw" (message only), "timed", "verbose". One value is for all
        :param propagate: hand the records also to the root logger
        :raises ConfigError: invalid verbosity or target
        """
        targets = list(logs or [])
        verbosities = list(verbosity or [])
        formats = list(formatter or [])
        if "stdout" not in targets and not propagate:
            targets.append("stdout")
        for value in verbosities:
            if not isinstance(value, int) or not 0 <= value <= _MAX_VERBOSITY:
                raise ConfigError(f'invalid verbosity: {value!r} (option "log_verbosity"): expected int from 0 to 5.')
        logger = logging.getLogger("returnn")
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        self.filename = None
        logger.propagate = propagate
        logger.setLevel(logging.DEBUG)
        _register_level_names()
        max_verbosity = _MAX_VERBOSITY if propagate else 0
        settings: dict[str, Any] = {"logs": [], "verbosity": [], "formatter": [], "propagate": propagate}
        for i, target in enumerate(targets):
            target_verbosity = _entry(verbosities, i, _DEFAULT_VERBOSITY)
            target_format = _entry(formats, i, "default")
            if state.rank and target == "stdout":
                target_verbosity = min(target_verbosity, _WARNINGS_VERBOSITY)
            if state.rank and isinstance(target, str) and target.startswith("|"):
                continue
            max_verbosity = max(max_verbosity, target_verbosity)
            handler = self._make_handler(target)
            handler.setLevel(LEVELS[target_verbosity])
            handler.setFormatter(_Formatter(_FORMATS.get(target_format, _FORMATS["default"])))
            logger.addHandler(handler)
            if isinstance(target, str):  # handler objects belong to this process
                settings["logs"].append(target)
                settings["verbosity"].append(target_verbosity)
                settings["formatter"].append(target_format)
        self.settings_for_workers = settings
        self.v = [logger] * (_MAX_VERBOSITY + 1)
        self.verbose = [level <= max_verbosity for level in range(_MAX_VERBOSITY + 1)]
        for level in range(1, _MAX_VERBOSITY + 1):
            setattr(self, f"v{level}", Stream(logger, LEVELS[level], enabled=self.verbose[level]))
        self.initialized = True

    def _make_handler(self, target: str | logging.Handler) -> logging.Handler:
        if isinstance(target, logging.Handler):
            return target
        if not isinstance(target, str) or not target:
            raise ConfigError(
                f'invalid log target {target!r} (option "log"): expected "stdout", "|command" or a file name.'
            )
        if target == "stdout":
            return _RankStdoutHandler(self) if state.rank else StdoutHandler()
        if target.startswith("|"):
            return _PipeHandler(target[1:].strip())
        filename = target.replace("$date", get_utc_start_time_filename_part())
        try:
            os.makedirs(os.path.dirname(filename) or ".", exist_ok=True)
            handler = _FileHandler(filename)
        except OSError as exc:
            raise ConfigError(
                f'invalid log target {target!r} (option "log"): cannot open the file: {exc.strerror or exc}.'
                " Use a file name in a folder where you may write."
            ) from exc
        self.filename = filename
        return handler

    def init_by_config(self, config: Config) -> None:
        """
        :param config: its options ``log`` (targets), ``log_verbosity``, ``log_format`` are the arguments of
            :func:`initialize`. In a distributed run each rank gets files of its own
        :raises NotSupportedError: option ``use_horovod``
        """
        if config.bool("use_horovod", False):
            raise NotSupportedError(
                'Option "use_horovod" is not supported. Remove it, set torch_distributed = {}, and start with torchrun: '
                "python -m torch.distributed.run --nproc-per-node N rnn.py my.config"
            )
        # `from returnn.log import log` in a config puts this object under the name of the option.
        logs = [target for target in _option_list(config, "log") if not isinstance(target, Log)]
        if state.world_size > 1:
            logs = [_name_for_rank(target) for target in logs]
        self.initialize(
            logs=logs,
            verbosity=_option_list(config, "log_verbosity"),
            formatter=_option_list(config, "log_format"),
        )

    def print_warning(self, text: str, *, prefix_text: str = "WARNING:", extra_text: str | None = None) -> None:
        """
        Print to v2, each text only once per process.

        :param text: decides whether it was shown before
        :param prefix_text: before the text
        :param extra_text: on a line of its own
        """
        if text in state.shown_warnings:
            return
        state.shown_warnings.add(text)
        print(prefix_text, text, file=self.v2)
        if extra_text:
            print(extra_text, file=self.v2)

    def print_deprecation_warning(self, text: str, *, behavior_version: int | None = None) -> None:
        """
        :param text: what should not be used any more
        :param behavior_version: first version which disallows it
        """
        if behavior_version is not None:
            extra = f"This will be disallowed with behavior_version {behavior_version}."
        else:
            extra = "This might be disallowed with a future behavior_version."
        self.print_warning(text, prefix_text="DEPRECATION WARNING:", extra_text=extra)

    @contextlib.contextmanager
    def same_on_all_ranks(self) -> Iterator[None]:
        """What is printed inside the block is the same on all ranks of a distributed run: only rank 0 shows it on stdout."""
        saved, self.is_same_on_all_ranks = self.is_same_on_all_ranks, True
        try:
            yield
        finally:
            self.is_same_on_all_ranks = saved

    def __reduce__(self) -> str:
        # By name: functions of a config that use the log get that of the process where they run.
        return "log"

    def flush(self) -> None:
        """Flush all streams."""
        for level in range(1, _MAX_VERBOSITY + 1):
            stream = getattr(self, f"v{level}")
            if stream is not None:
                stream.flush()


def _option_list(config: Config, key: str) -> list[Any]:  # Any: raw option values
    """:return: the values. On the command line, one value, a Python list, or values separated by commas"""
    value = config.typed_value(key)
    if isinstance(value, str) and not config.is_typed(key):
        return [text for text in config.list(key) if text]
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _entry(values: list[Any], index: int, default: Any) -> Any:
    """:return: the entry of that target; a single value is for all"""
    if len(values) == 1:
        return values[0]
    return values[index] if index < len(values) else default


def _name_for_rank(target: str | logging.Handler) -> str | logging.Handler:
    if not isinstance(target, str) or target == "stdout" or target.startswith("|"):
        return target
    base, ext = os.path.splitext(target)
    return f"{base}.torch-distrib-{state.rank}-{state.world_size}{ext}"


def _register_level_names() -> None:
    for level in LEVELS[1:3]:
        logging.addLevelName(level, "INFO")
    for level in LEVELS[3:]:
        logging.addLevelName(level, "DEBUG")


@contextlib.contextmanager
def wrap_log_streams(
    alternative_stream: StreamThreadLocal | StreamDummy | TextIO,
    also_sys_stdout: bool = False,
    tf_log_verbosity: int | str | None = None,
) -> Iterator[tuple[LogStream, StreamThreadLocal | StreamDummy | TextIO]]:
    """
    Replace all log streams inside the block.

    :param alternative_stream: used instead
    :param also_sys_stdout: replace ``sys.stdout`` too
    :param tf_log_verbosity: no effect, there is no TensorFlow here; accepted for old callers
    :return: yields the original ``log.v1`` and the alternative
    """
    names = [f"v{level}" for level in range(1, _MAX_VERBOSITY + 1)]
    saved = {name: getattr(log, name) for name in names}
    saved_stdout = sys.stdout
    try:
        for name in names:
            setattr(log, name, alternative_stream)
        if also_sys_stdout:
            sys.stdout = alternative_stream  # type: ignore[assignment]
        yield saved["v1"], alternative_stream
    finally:
        for name, stream in saved.items():
            setattr(log, name, stream)
        if also_sys_stdout:
            sys.stdout = saved_stdout


log = Log()
