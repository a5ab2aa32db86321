"""Exceptions of worker processes in the parent."""

from __future__ import annotations

import pickle

import pytest

from returnn import errors
from returnn.datasets._loading.remote_error import RemoteError
from returnn.errors import DataFileError, MissingPartError, OptionError, ReturnnError, WorkerError

_WHERE = "dataset 'train', epoch 1, sequence 'a' (position 0)"
# Those with arguments of their own.
_OWN_ARGUMENTS = {"OptionError", "MissingOptionError"}


def _sent(exc: Exception) -> Exception:
    remote = RemoteError.from_exception(exc, where=_WHERE)
    result: Exception = pickle.loads(pickle.dumps(remote)).to_exception()
    return result


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, ReturnnError) and name not in _OWN_ARGUMENTS
    ],
)
def test_our_own_exceptions_stay_what_they_are(name: str) -> None:
    """Also those that are OSError and ValueError at once."""
    cls = getattr(errors, name)
    exc = cls(f"Broken. (While reading {_WHERE}.)")
    exc.note_of_test = 1
    result = _sent(exc)
    assert type(result) is cls
    assert str(result) == str(exc) and result.args == exc.args
    assert vars(result)["note_of_test"] == 1


def test_exceptions_with_own_arguments() -> None:
    """Their __init__ does not take what is in args."""
    exc = OptionError("batch_size", expected="int", got="x")
    result = _sent(exc)
    assert isinstance(result, OptionError)
    assert (str(result), result.option_name) == (str(exc), "batch_size")


def test_subclass_with_own_constructor() -> None:
    """As a user may derive it."""
    result = _sent(_OfUser(1, 2))
    assert type(result) is _OfUser and str(result) == "1 of 2" and isinstance(result, DataFileError)


class _OfUser(MissingPartError):
    def __init__(self, part: int, total: int):
        super().__init__(f"{part} of {total}")


def test_the_place_is_said_once() -> None:
    """Also where the exception itself cannot be sent, and its text has the place already."""
    exc = DataFileError(f"The file 'x.zip' is broken. (While reading {_WHERE}.)")
    exc.lock = lambda: None  # type: ignore[attr-defined]  # as an attribute that cannot be pickled
    result = _sent(exc)
    assert isinstance(result, WorkerError)
    assert str(result).count("sequence 'a'") == 1 and str(result).count("hile reading") == 1
    assert "DataFileError: The file 'x.zip' is broken." in str(result) and "loader worker with pid" in str(result)
    assert f"while reading {_WHERE}" in str(_sent(KeyError("x")))


def test_out_of_memory_says_what_to_do() -> None:
    result = _sent(MemoryError("Unable to allocate 64.0 GiB"))
    assert type(result) is WorkerError
    assert str(result).endswith("use fewer workers (num_workers_per_gpu), or smaller batches and buffers.")
