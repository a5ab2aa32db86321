"""
Exceptions that travel from a worker process to its parent.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import traceback
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

from returnn.errors import ReturnnError, WorkerError
from returnn.util.safe_repr import cut_middle
from returnn.util.secret_values import find_secrets, hide

__all__ = ["RemoteError", "RemoteTraceback", "add_place"]


_MAX_TEXT_LEN = 20_000

#: File, line number, function, and source line.
Frame: TypeAlias = tuple[str, int | None, str, str | None]


def add_place(exc: BaseException, where: str) -> None:
    """
    One of our own exceptions gets the place at the end of its text, once.

    :param exc: just caught
    :param where: what was being read, e.g. ``dataset 'train', epoch 3, sequence 'seq-5' (position 5)``
    """
    if isinstance(exc, ReturnnError) and not exc.is_located and exc.args and isinstance(exc.args[0], str):
        exc.args = (f"{exc.args[0]} (While reading {where}.)", *exc.args[1:])
        exc.is_located = True


def _without_secrets(value: Any, secrets: Collection[str]) -> Any:
    """Any: an attribute of an exception. :return: with texts, also those in lists and tuples, without the secrets"""
    if isinstance(value, str):
        return hide(value, secrets)
    if type(value) in (list, tuple):
        return type(value)(_without_secrets(item, secrets) for item in value)
    return value


class RemoteTraceback(Exception):
    """Shows the traceback of the worker as cause of the exception in the parent."""

    def __init__(self, text: str, frames: Sequence[Frame] = ()):
        """
        :param text: formatted traceback
        :param frames: of the traceback, for the report of the error
        """
        super().__init__(text)
        self.text = text
        self.frames = frames

    def __str__(self) -> str:
        return f"\n{self.text}"


@dataclasses.dataclass(frozen=True)
class RemoteError:
    """
    :param kind: name of the exception's type
    :param message: its text, with the notes of the exception
    :param traceback_text: formatted
    :param where: what was being read
    :param pid: of the worker
    :param frames: of the traceback
    :param original: pickled (class, args, attributes) if it is one of our own exceptions; else None
    :param who: the kind of process
    """

    kind: str
    message: str
    traceback_text: str
    where: str
    pid: int
    frames: tuple[Frame, ...]
    original: bytes | None
    who: str = "loader worker"

    @classmethod
    def from_exception(cls, exc: BaseException, *, where: str, who: str = "loader worker") -> RemoteError:
        """
        :param exc: just caught
        :param where: what was being read
        :param who: the kind of process, for the message
        """
        secrets = find_secrets(exc)  # they are here, so the other process would not know them
        original = None
        if isinstance(exc, ReturnnError):
            try:
                attributes = {name: _without_secrets(value, secrets) for name, value in vars(exc).items()}
                original = pickle.dumps((type(exc), _without_secrets(exc.args, secrets), attributes))
            except Exception:  # an own class or attribute of the user that does not pickle: text only
                original = None
        text = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
        text = hide(cut_middle(text, _MAX_TEXT_LEN), secrets)
        frames = tuple(
            (f.filename, f.lineno, f.name, f.line and hide(f.line, secrets))
            for f in traceback.extract_tb(exc.__traceback__)
        )
        if isinstance(exc.__cause__, RemoteTraceback):  # of a process of this process
            frames += tuple(exc.__cause__.frames)
        message = " ".join([str(exc), *(f"({note})" for note in getattr(exc, "__notes__", ()))])
        message = hide(cut_middle(message, _MAX_TEXT_LEN), secrets)
        return cls(type(exc).__name__, message, text, where, os.getpid(), frames, original, who)

    def to_exception(self) -> Exception:
        """:return: our own exceptions as they were, others as WorkerError; the remote traceback is its cause"""
        exc: Exception
        try:
            exc = self._load_original()
        except Exception:  # a class that only the worker can import
            place = "" if self.where in self.message else f", while reading {self.where}"
            text = f"{self.kind}: {self.message} (In {self.who} with pid {self.pid}{place}.)"
            if self.kind == "MemoryError":
                text += " There is not enough memory: use fewer workers (num_workers_per_gpu), or smaller batches and buffers."
            exc = WorkerError(text)
            exc.is_located = True
        exc.__cause__ = RemoteTraceback(self.traceback_text, self.frames)
        return exc

    def _load_original(self) -> Exception:
        if self.original is None:
            raise ValueError("not one of our own exceptions")
        cls, args, attributes = pickle.loads(self.original)  # from our own worker
        # Without __init__: its arguments are not the ones in args. By the builtin class that decides about the memory:
        # cls.__new__ is that of the first base, which is refused where another one is an OSError.
        builtin_cls = cls
        while builtin_cls.__module__ != "builtins":
            builtin_cls = builtin_cls.__base__
        exc: Any = builtin_cls.__new__(cls)
        exc.args = args
        exc.__dict__.update(attributes)
        assert isinstance(exc, Exception)
        return exc
