"""What two runs left in their folders: equal to the last bit, apart from times and names of machines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

__all__ = ["compare_folders", "list_folder"]

#: Facts about the machine and the time, which the mainline dialect keeps in the learning-rate file.
_MACHINE = re.compile(r"^ *':meta:(?:epoch_train_time_secs|time|hostname|device|cpu|returnn|torch)'.*\n", re.MULTILINE)
_LOGS = re.compile(r".*\.(?:log|err|config)|tmp(?:/.*)?")


def list_folder(folder: Path) -> list[str]:
    """:return: relative paths of all files but logs and configs"""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in names if not _LOGS.fullmatch(name))


def compare_folders(folder: Path, expected: Path) -> list[str]:
    """
    :param folder: of the run
    :param expected: of the uninterrupted run
    :return: what differs, a line each
    """
    names, expected_names = list_folder(folder), list_folder(expected)
    res = [f"{name} is missing" for name in expected_names if name not in names]
    res += [f"{name} is too much" for name in names if name not in expected_names]
    for name in expected_names:
        if name in names:
            res += [f"{name}: {text}" for text in _compare_files(folder / name, expected / name)]
    return res


def _compare_files(path: Path, expected: Path) -> Iterator[str]:
    if path.suffix == ".pt":
        objects = [torch.load(file, weights_only=True) for file in (path, expected)]
        yield from _compare(objects[0], objects[1], "")
    elif path.suffix == ".hdf":
        values = [_read_hdf(file) for file in (path, expected)]
        yield from _compare(values[0], values[1], "")
    else:
        yield from _compare(path.read_text(), expected.read_text(), "text")


def _read_hdf(path: Path) -> dict[str, Any]:
    """:return: all members and attributes by name. Any: arrays and scalars"""
    res: dict[str, Any] = {}

    def add(name: str, obj: h5py.HLObject) -> None:
        res.update({f"{name}@{key}": np.asarray(value) for key, value in obj.attrs.items()})
        if isinstance(obj, h5py.Dataset):
            res[name] = obj[()]

    with h5py.File(path, "r") as file:
        add("", file)
        file.visititems(add)
    return res


def _compare(value: object, expected: object, where: str) -> Iterator[str]:
    """:param where: path of keys. :return: what differs"""
    if type(value) is not type(expected):
        yield f"{where}: {value!r:.200} is no {type(expected).__name__}"
    elif isinstance(value, Mapping) and isinstance(expected, Mapping):
        if value.keys() != expected.keys():  # their order in groups of parameters is torch's affair
            yield f"{where}: keys {list(value)}, expected {list(expected)}"
        for key in expected:
            if key in value:
                yield from _compare(value[key], expected[key], f"{where}/{key}")
    elif isinstance(value, (list, tuple)) and isinstance(expected, (list, tuple)):
        if len(value) != len(expected):
            yield f"{where}: {len(value)} items, expected {len(expected)}"
        found = [
            text
            for i, pair in enumerate(zip(value, expected, strict=False))
            for text in _compare(*pair, f"{where}/{i}")
        ]
        yield from found[:2]
        if len(found) > 2:
            yield f"{where}: and {len(found) - 2} more"
    elif isinstance(value, torch.Tensor) and isinstance(expected, torch.Tensor):
        if value.dtype != expected.dtype or value.shape != expected.shape:
            yield f"{where}: {value.dtype} {list(value.shape)}, expected {expected.dtype} {list(expected.shape)}"
        elif _bytes(value) != _bytes(expected):
            yield f"{where}: values differ, by at most {(value.double() - expected.double()).abs().max().item():g}"
    elif isinstance(value, np.ndarray) and isinstance(expected, np.ndarray):
        if value.dtype != expected.dtype or value.shape != expected.shape:
            yield f"{where}: {value.dtype} {value.shape}, expected {expected.dtype} {expected.shape}"
        elif value.tolist() != expected.tolist():
            yield f"{where}: values differ"
    elif isinstance(value, str) and isinstance(expected, str):
        value, expected = _MACHINE.sub("", value), _MACHINE.sub("", expected)
        if value != expected:
            yield f"{where}: {value!r}, expected {expected!r}"
    elif value != expected and not (value != value and expected != expected):  # nan
        yield f"{where}: {value!r:.200}, expected {expected!r:.200}"


def _bytes(tensor: torch.Tensor) -> bytes:
    tensor = tensor.detach().contiguous()
    return tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.ndim else repr(tensor.item()).encode()
