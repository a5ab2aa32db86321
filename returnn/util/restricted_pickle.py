"""
Unpickling of plain data: containers, strings, numbers and numpy arrays, and nothing that could run code.
"""

from __future__ import annotations

import io
import pickle
from typing import IO, Any

from returnn.errors import DataFileError

__all__ = ["NotPlainDataError", "RestrictedUnpickler", "load", "loads"]

# Reconstructors of builtin values and of numpy arrays, scalars and dtypes (names before and since numpy 2).
_ALLOWED = frozenset(
    [
        (module, name)
        for module in ("builtins", "__builtin__")
        for name in (
            "set",
            "frozenset",
            "complex",
            "bytearray",
            "range",
            "slice",
            "int",
            "float",
            "str",
            "bytes",
            "bool",
            "list",
            "tuple",
            "dict",
            "unicode",
            "long",
            "xrange",
        )
    ]
    + [(f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")]
    + [(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")]
    + [
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("collections", "OrderedDict"),
        ("collections", "deque"),
        ("_codecs", "encode"),
    ]
)


class NotPlainDataError(pickle.UnpicklingError):
    """The pickle has an object that could run code."""


class RestrictedUnpickler(pickle.Unpickler):
    """Refuses every global that is not a plain data type."""

    def find_class(self, module: str, name: str) -> Any:
        """
        :param module: as stored in the pickle
        :param name: likewise
        :raises NotPlainDataError: not in the list of plain data types
        """
        if (module, name) in _ALLOWED or (module == "numpy.dtypes" and name.endswith("DType")):
            return super().find_class(module, name)
        raise NotPlainDataError(f"{module}.{name} is not plain data (builtin containers, numbers, numpy arrays)")


def load(file: IO[bytes], *, filename: str | None = None, encoding: str = "ASCII", unsafe: bool = False) -> Any:
    """
    :param file: binary stream
    :param filename: for the error text; default is the name of the stream
    :param encoding: of 8-bit strings in pickles written by Python 2
    :param unsafe: option ``unsafe_load``: accept any objects, which can run any code
    :return: the object; Any: depends on the data
    :raises DataFileError: broken, or not plain data
    """
    try:
        return (pickle.Unpickler if unsafe else RestrictedUnpickler)(file, encoding=encoding).load()
    except (
        # All that the pickle machine raises on broken streams.
        pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError,
        UnicodeDecodeError, OverflowError, MemoryError,
    ) as exc:  # fmt: skip
        where = filename or getattr(file, "name", None) or "pickled data"
        raise DataFileError(
            f"Cannot read {where} as pickled plain data: {type(exc).__name__}: {exc}."
            " Write it again from dicts, lists, strings, numbers and numpy arrays only"
            f"{', or, if you trust the file, set unsafe_load = True' if isinstance(exc, NotPlainDataError) else ''}."
        ) from exc


def loads(data: bytes, *, filename: str | None = None, encoding: str = "ASCII", unsafe: bool = False) -> Any:
    """As :func:`load`, from bytes."""
    return load(io.BytesIO(data), filename=filename, encoding=encoding, unsafe=unsafe)
