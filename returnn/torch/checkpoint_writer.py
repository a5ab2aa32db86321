"""Writing checkpoints beside training: a copy of the state in host memory, and a thread that runs the jobs that write."""

from __future__ import annotations

import collections
import copy
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar, cast

import numpy
import torch

from returnn.errors import CheckpointError, ReturnnError

__all__ = ["CheckpointWriter", "to_host"]

T = TypeVar("T")

#: Jobs that are not done yet, the running one included: each holds a copy of the state in host memory.
MAX_OUTSTANDING = 2


class CheckpointWriter:
    """
    Runs jobs one after the other in a thread, in the order of :meth:`submit`.

    The thread lives only while there is something to do, and the interpreter waits for it at exit: a job that has begun is finished
    unless the process is killed. When a job fails, those that wait are dropped, and the next call of any method but :meth:`close`
    raises the error, once. Used by one thread.
    """

    def __init__(self, max_outstanding: int = MAX_OUTSTANDING):
        """:param max_outstanding: :meth:`submit` waits until fewer jobs than that are left"""
        self._max_outstanding = max_outstanding
        self._changed = threading.Condition()
        self._jobs: collections.deque[tuple[Callable[[], object], str]] = collections.deque()
        self._has_thread = False
        self._num_running = 0
        self._error: BaseException | None = None
        self._error_what = ""
        # For check(), which is called in each step: an attribute, no lock.
        self._failed = False

    def submit(self, job: Callable[[], object], *, what: str) -> None:
        """
        :param job: writes files; must not use what training changes, see :func:`to_host`
        :param what: for messages, e.g. the name of the file
        :raises ReturnnError: an earlier job failed; this one is not run
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or self.num_outstanding < self._max_outstanding)
            self._raise_error()
            self._jobs.append((job, what))
            if not self._has_thread:
                self._has_thread = True
                # Not a daemon: the interpreter waits for it.
                threading.Thread(target=self._run, name="checkpoint writer", daemon=False).start()

    @property
    def num_outstanding(self) -> int:
        """Jobs that are not done yet."""
        return len(self._jobs) + self._num_running

    def check(self) -> None:
        """
        Cheap enough for each step.

        :raises ReturnnError: a job failed, see :meth:`wait`
        """
        if self._failed:
            with self._changed:
                self._raise_error()

    def wait(self) -> None:
        """
        Until all jobs are done.

        :raises ReturnnError: what a job raised, e.g. CheckpointError: disk full. Other errors come as CheckpointError with
            the original as cause
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._has_thread)
            self._raise_error()

    def close(self) -> str | None:
        """
        Wait until all jobs are done; for the end of a training that failed already, where another error would hide the first.

        :return: text of the error of a job that nobody was told yet, else None
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._has_thread)
            error, self._error, self._failed = self._error, None, False
            return None if error is None else str(self._for_user(error))

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None:
            self.wait()
        else:
            self.close()

    def _raise_error(self) -> None:
        error, self._error, self._failed = self._error, None, False
        if error is not None:
            raise self._for_user(error)

    def _for_user(self, error: BaseException) -> BaseException:
        if isinstance(error, ReturnnError):
            return error
        text = (str(error).splitlines() or [""])[0]
        wrapped = CheckpointError(f"Cannot save {self._error_what}: {type(error).__name__}: {text}")
        wrapped.__cause__ = error
        return wrapped

    def _run(self) -> None:
        """The thread."""
        while True:
            with self._changed:
                if not self._jobs:
                    self._has_thread = False
                    self._changed.notify_all()
                    return
                job, what = self._jobs.popleft()
                self._num_running = 1
            try:
                job()
            except BaseException as exc:  # raised in the thread of training
                with self._changed:
                    self._error, self._error_what, self._failed = exc, what, True
                    self._jobs.clear()
            # Before the next turn, which may wait for long: frees the copy of the state.
            del job
            with self._changed:
                self._num_running = 0
                self._changed.notify_all()


def to_host(obj: T) -> T:
    """
    Snapshot of a state that training goes on changing.

    Tensors on devices are copied to pinned host memory, all at once, and waited for together; tensors in host memory are copied,
    too. What shares memory (tied weights) is copied once. Containers are new; their types, and the versions of modules in the
    state dicts of torch, stay.

    :param obj: state dict, or any nested containers of tensors, numpy arrays and other objects (which are deep-copied)
    :return: the same with tensors without gradient in host memory
    """
    copier = _Copier()
    result = copier.copy(obj)
    copier.wait()
    return cast(T, result)


class _Copier:
    def __init__(self) -> None:
        self._tensors: dict[object, torch.Tensor] = {}
        # The originals: an id or address must not be used again while we compare with it.
        self._alive: list[object] = []
        self._devices: set[torch.device] = set()
        self._memo: dict[int, Any] = {}  # of copy.deepcopy

    def wait(self) -> None:
        for device in self._devices:
            torch.cuda.current_stream(device).synchronize()

    def copy(self, obj: Any) -> Any:
        """Any: nested containers"""
        kind = type(obj)
        if obj is None or kind in (bool, int, float, complex, str, bytes):
            return obj
        if isinstance(obj, torch.Tensor):
            return self._copy_tensor(obj.detach())
        if kind is dict or kind is collections.OrderedDict:
            result: Any = kind((key, self.copy(value)) for key, value in obj.items())
            if kind is collections.OrderedDict and hasattr(obj, "_metadata"):
                result._metadata = copy.deepcopy(obj._metadata)
            return result
        if kind is list:
            return [self.copy(item) for item in obj]
        if kind is tuple:
            return tuple(self.copy(item) for item in obj)
        if isinstance(obj, numpy.ndarray) and obj.dtype != object:
            return obj.copy()
        if isinstance(obj, tuple) and hasattr(obj, "_fields"):
            return kind(*(self.copy(item) for item in obj))
        if isinstance(obj, dict):
            with_items = copy.copy(obj)  # e.g. defaultdict: keeps its factory
            for key, value in obj.items():
                with_items[key] = self.copy(value)
            return with_items
        return copy.deepcopy(obj, self._memo)

    def _copy_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        key = _memory_of(tensor)
        found = self._tensors.get(key)
        if found is None:
            self._alive.append(tensor)
            found = self._tensors[key] = self._new_copy(tensor)
        return found

    def _new_copy(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type in ("cpu", "meta"):
            return tensor.clone()
        if tensor.device.type != "cuda" or tensor.layout != torch.strided or type(tensor) is not torch.Tensor:
            return tensor.to("cpu", copy=True)
        try:
            pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)
        except RuntimeError:  # the system allows no more of it
            return tensor.to("cpu", copy=True)
        self._devices.add(tensor.device)
        return pinned.copy_(tensor, non_blocking=True)


def _memory_of(tensor: torch.Tensor) -> object:
    """:return: equal for tensors that are the same view of the same memory"""
    if tensor.layout != torch.strided or type(tensor) is not torch.Tensor or not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.is_conj()
