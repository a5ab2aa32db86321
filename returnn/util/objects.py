"""
Objects to and from bytes, copies, code by name.
"""

from __future__ import annotations

import copy
import importlib
import io
import os
import pickle
import re
from collections.abc import Collection
from types import ModuleType
from typing import IO, Any

__all__ = [
    "serialize_object",
    "deserialize_object",
    "read_pickled_object",
    "write_pickled_object",
    "read_bytes_to_new_buffer",
    "deepcopy",
    "custom_exec",
    "generic_import_module",
    "load_txt_vector",
    "model_epoch_from_filename",
]


def serialize_object(obj: Any) -> bytes:
    """:return: pickle, for :func:`deserialize_object` in a trusted process"""
    return pickle.dumps(obj, protocol=pickle.HIGHEST_PROTOCOL)


def deserialize_object(data: bytes) -> Any:
    """:param data: from :func:`serialize_object` of a process of our own; never from a file of unknown origin"""
    return pickle.loads(data)


def write_pickled_object(p: IO[bytes], obj: Any) -> None:
    """
    :param p: pipe between our own processes; gets the size (8 bytes) and the pickle
    :param obj: any
    """
    data = serialize_object(obj)
    p.write(len(data).to_bytes(8, "big"))
    p.write(data)
    p.flush()


def read_pickled_object(p: IO[bytes]) -> Any:
    """:param p: pipe from a process of our own which uses :func:`write_pickled_object`"""
    size = int.from_bytes(read_bytes_to_new_buffer(p, 8).getvalue(), "big")
    return pickle.load(read_bytes_to_new_buffer(p, size))


def read_bytes_to_new_buffer(p: IO[bytes], size: int) -> io.BytesIO:
    """
    :param p: binary stream
    :param size: number of bytes
    :raises EOFError: the stream ends before
    """
    buffer = io.BytesIO()
    while size > 0:
        data = p.read(min(size, 1 << 20))
        if not data:
            raise EOFError(f"expected {size} more bytes, got the end of the stream")
        buffer.write(data)
        size -= len(data)
    buffer.seek(0)
    return buffer


def deepcopy(x: Any, stop_types: Collection[type] | None = None) -> Any:
    """
    :param x: copied with all that it contains
    :param stop_types: instances of these (not of subclasses) are kept, not copied. Modules are always kept
    """
    memo: dict[int, Any] = {}
    _keep(x, {ModuleType, *(stop_types or ())}, memo, set())
    return copy.deepcopy(x, memo)


def _keep(x: Any, types: set[type], memo: dict[int, Any], visited: set[int]) -> None:
    """Tell deepcopy, through its memo, that these objects are their own copies."""
    if id(x) in visited:
        return
    visited.add(id(x))
    if type(x) in types:
        memo[id(x)] = x
    elif isinstance(x, dict):
        for key, value in x.items():
            _keep(key, types, memo, visited)
            _keep(value, types, memo, visited)
    elif isinstance(x, (list, tuple, set, frozenset)):
        for item in x:
            _keep(item, types, memo, visited)
    elif hasattr(x, "__dict__") and not isinstance(x, type) and not callable(x):
        _keep(vars(x), types, memo, visited)


def custom_exec(source: str, filename: str, user_ns: dict[str, Any], user_global_ns: dict[str, Any]) -> None:
    """
    Run code of the config (never data).

    :param source: Python
    :param filename: for tracebacks
    :param user_ns: local names
    :param user_global_ns: global names
    """
    exec(compile(source + "\n", filename, "exec", dont_inherit=True), user_global_ns, user_ns)


def generic_import_module(filename: str) -> ModuleType:
    """
    :param filename: name of a module, or path of a file of it below the current folder
    :return: the module
    """
    if "/" not in filename and not filename.endswith(".py"):
        return importlib.import_module(filename)
    path = os.path.normpath(filename)
    path = path[: -len("__init__.py") - 1] if path.endswith("__init__.py") else path.removesuffix(".py")
    return importlib.import_module(path.replace("/", "."))


def load_txt_vector(filename: str) -> list[float]:
    """
    :param filename: one float per line; empty lines, and lines that start with ``<`` (xml of RASR) are skipped
    """
    with open(filename, encoding="utf8") as f:
        lines = [line.strip() for line in f]
    return [float(line) for line in lines if line and not line.startswith("<")]


def model_epoch_from_filename(filename: str) -> int | None:
    """
    :param filename: of a checkpoint, with or without ``.pt``; symlinks are followed
    :return: the epoch in the name, e.g. 20 of "net.020"; None if there is none
    """
    with_ext = filename if filename.endswith(".pt") else filename + ".pt"
    name = os.path.basename(os.path.realpath(with_ext)).removesuffix(".pt")
    matches = re.findall(r"\.(\d{3,})(?=\.|$)", name)
    return int(matches[-1]) if matches else None
