"""Checkpoint files: atomic saving, safe loading, and putting a state into a model with a report of what fitted."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Collection, Mapping
from typing import Any

import numpy
import torch

from returnn.engine.model_files import HALF_WRITTEN_POSTFIX
from returnn.errors import CheckpointError
from returnn.log import log
from returnn.util.optional_import import optional_import

__all__ = [
    "save_file_atomic",
    "save_error_text",
    "sync_folder",
    "load_file",
    "find_checkpoint_file",
    "get_model_state",
    "load_model_state",
    "LoadReport",
    "TMP_POSTFIX",
]

#: A file that is being written has this added to its name; a leftover of a killed process is overwritten by the next save.
TMP_POSTFIX = HALF_WRITTEN_POSTFIX
_UNSAFE_OPTION = "unsafe_load"


def save_file_atomic(obj: object, path: str | os.PathLike[str]) -> None:
    """
    Write an object with torch.save such that under this name there is always a whole file: the old or the new one.

    The temporary file in the same folder is flushed to disk before it gets the name, then the folder is flushed.

    :param obj: for torch.save; tensors and plain containers, so that safe loading accepts it
    :param path: a missing folder is created
    :raises CheckpointError: no permission, disk full, unpicklable object; the old file stays as it was
    """
    path = os.fspath(path)
    folder = os.path.dirname(path) or "."
    tmp_path = path + TMP_POSTFIX
    try:
        os.makedirs(folder, exist_ok=True)
        with open(tmp_path, "wb") as file:
            torch.save(obj, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp_path, path)
        sync_folder(folder)
    except (OSError, RuntimeError, pickle.PicklingError, AttributeError, TypeError) as exc:
        with contextlib.suppress(OSError):
            os.remove(tmp_path)
        raise CheckpointError(save_error_text(path, folder, exc)) from exc
    except BaseException:  # e.g. Ctrl-C
        with contextlib.suppress(OSError):
            os.remove(tmp_path)
        raise


def sync_folder(folder: str) -> None:
    """
    After a file got a new name: the name must survive a power failure, too.

    :param folder: of the file
    """
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:  # e.g. folders cannot be opened on that system
        return
    try:
        os.fsync(fd)
    except OSError:  # some network file systems refuse it; the file itself is flushed
        pass
    finally:
        os.close(fd)


def save_error_text(path: str, folder: str, exc: BaseException) -> str:
    """
    :param path: that cannot be written
    :param folder: of it, for the free space
    :param exc: why not
    :return: for the user
    """
    os_error: BaseException | None = exc
    while os_error is not None and not isinstance(os_error, OSError):  # torch hides it behind its own error
        os_error = os_error.__cause__ or os_error.__context__
    reason = str(os_error or exc).splitlines()[0] if str(os_error or exc) else type(exc).__name__
    text = f"Cannot save {path}: {reason}."
    if isinstance(os_error, PermissionError):
        return text + " Check the permissions of the folder, or set another folder in the option model."
    if isinstance(os_error, OSError) or isinstance(exc, RuntimeError):
        with contextlib.suppress(OSError):
            free_mib = shutil.disk_usage(folder).free / 2**20
            text += f" The file system has {free_mib:.0f} MiB free."
        return text + " An older file of that name is unchanged."
    return text


def find_checkpoint_file(path: str | os.PathLike[str]) -> str:
    """
    :param path: with or without ``.pt``; ``.index`` and ``.meta`` are stripped as the peers do
    :return: an existing file: ``<path>.pt``, else the path itself
    :raises CheckpointError: neither exists (also says which other names were tried)
    """
    path = os.fspath(path)
    base, ext = os.path.splitext(path)
    stem = base if ext in (".pt", ".index", ".meta") else path
    candidates = list(dict.fromkeys([stem + ".pt", path, stem]))
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    raise CheckpointError(f"Checkpoint not found: neither of {', '.join(candidates)} is a file.")


def load_file(
    path: str | os.PathLike[str],
    map_location: str | torch.device = "cpu",
    *,
    weights_only: bool = True,
    mmap: bool = False,
) -> Any:
    """
    Read a file of torch.save (or a ``.safetensors`` file). Tensors, plain values, containers and numpy scalars are read safely.

    :param path:
    :param map_location: device of the tensors
    :param weights_only: False: if the file has other objects too, load it nevertheless, which can run any code
    :param mmap: read tensors from disk when they are first used, where the format allows it; only for the CPU
    :return: the object. Any: mostly a dict
    :raises CheckpointError: missing, truncated or broken file, or other objects in it; the text names the file
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise CheckpointError(f"Checkpoint not found: {path} is not a file.")
    if path.endswith(".safetensors"):
        return _load_safetensors(path, map_location)
    try:
        with torch.serialization.safe_globals(_numpy_scalar_globals()):
            return torch.load(
                path, map_location=map_location, weights_only=True, mmap=mmap and zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as exc:
        unsafe_object = _unsafe_object(path, exc)
        if unsafe_object is None:
            raise CheckpointError(_broken_text(path, exc)) from exc
        if weights_only:
            raise CheckpointError(_unsafe_text(path, unsafe_object)) from exc
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        ImportError,
    ) as exc:
        raise CheckpointError(_broken_text(path, exc)) from exc
    print(f"Warning: {path} contains objects that can run code; loaded because {_UNSAFE_OPTION} is set.", file=log.v2)
    try:
        return torch.load(path, map_location=map_location, weights_only=False)
    except Exception as exc:  # unpickling runs any code, which can raise anything
        raise CheckpointError(_broken_text(path, exc)) from exc


def _numpy_scalar_globals() -> list[Any]:
    """
    :return: what numpy scalars need, e.g. learning rates of numpy.linspace in files of the peers; none of them can run code.
        Any: classes, functions and (function, name) pairs
    """
    scalar = numpy.float64(0).__reduce__()[0]  # has moved between numpy versions
    dtype_classes = {
        type(numpy.dtype(t)) for t in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "U1")
    }
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        numpy.dtype,
        *sorted(dtype_classes, key=lambda c: c.__name__),
    ]


def _unsafe_object(path: str, exc: BaseException) -> str | None:
    """:return: name of the object that torch refuses, e.g. "posix.system", or "?"; None if that is not the reason of the error"""
    found = re.search(r"GLOBAL ([\w.]+)", str(exc)) or re.search(r"[Uu]nsupported class ([\w.]+)", str(exc))
    if found:
        return found.group(1)
    # The archive is whole, so its pickle uses something that safe loading does not know.
    return "?" if zipfile.is_zipfile(path) else None


def _unsafe_text(path: str, name: str) -> str:
    what = f" ({name})" if name != "?" else ""
    return (
        f"Checkpoint {path} contains more than tensors and plain values{what}; loading such objects can run any code, so it is refused. "
        f"If you trust the file, set {_UNSAFE_OPTION} = True in the config "
        f"(tools for checkpoints: --{_UNSAFE_OPTION})."
    )


def _broken_text(path: str, exc: BaseException) -> str:
    reason = (str(exc).splitlines() or [""])[0].split(". ")[0][:200].rstrip(". ")
    return (
        f"Checkpoint {path} ({os.path.getsize(path)} bytes) cannot be read: it is truncated, broken, or no file of torch.save "
        f"({type(exc).__name__}: {reason}). A process that was killed while writing may have left it: remove it or give another checkpoint."
    )


def _load_safetensors(path: str, map_location: str | torch.device) -> dict[str, torch.Tensor]:
    loader = optional_import("safetensors.torch", needed_by=f"the checkpoint {path}")
    try:
        return loader.load_file(path, device=str(map_location))  # type: ignore[no-any-return]
    except Exception as exc:  # its own exception type exists only if the package is installed
        raise CheckpointError(_broken_text(path, exc)) from exc


def get_model_state(checkpoint: object, *, filename: str, key: str | None = "model") -> dict[str, torch.Tensor]:
    """
    :param checkpoint: loaded object
    :param filename: for messages
    :param key: entry with the state dict; None: the object itself is the state dict
    :return: parameter name -> tensor; a bare state dict is accepted for the default key as well
    :raises CheckpointError: neither
    """
    state = checkpoint
    if key is not None and isinstance(checkpoint, Mapping):
        if key in checkpoint:
            state = checkpoint[key]
        elif key != "model" or not _is_state_dict(checkpoint):
            entries = ", ".join(map(str, list(checkpoint)[:10]))
            raise CheckpointError(f'Checkpoint {filename} has no entry "{key}"; it has: {entries}.')
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(
            f"Checkpoint {filename} is not a model: expected a dict from parameter names to tensors, got {type(state).__name__}."
        )
    # Not a copy: an OrderedDict of torch also has the versions of the modules.
    return state if isinstance(state, dict) else dict(state)


def _is_state_dict(obj: Mapping[Any, Any]) -> bool:
    return bool(obj) and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in obj.items())


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What of a state fitted to the model."""

    filename: str
    num_loaded: int
    missing: tuple[str, ...] = ()  # of the model, not in the file
    unexpected: tuple[str, ...] = ()  # in the file, not of the model
    mismatched: tuple[str, ...] = ()  # with both shapes, e.g. "out.weight: file [3, 4], model [5, 4]"

    def summary(self) -> str:
        """:return: one line: counts, and the first 5 names of each kind"""
        parts = [f"loaded {self.num_loaded} parameters"]
        for label, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("shape mismatch", self.mismatched),
        ):
            if names:
                parts.append(f"{label} {len(names)}: {_first_names(names)}")
        return f"{self.filename}: " + "; ".join(parts)


def _first_names(names: Collection[str], num: int = 5) -> str:
    shown = ", ".join(list(names)[:num])
    return shown + (", ..." if len(names) > num else "")


def load_model_state(
    model: torch.nn.Module,
    state_dict: Mapping[str, Any],
    *,
    allow_missing: bool = False,
    filename: str = "checkpoint",
    provided_elsewhere: Collection[str] = (),
) -> LoadReport:
    """
    Copy a state into a model. Keys of the file that the model does not have are only reported.

    :param model:
    :param state_dict: parameter and buffer names -> tensors. Any: modules can have extra state of any type
    :param allow_missing: option ``load_ignore_missing_vars``
    :param filename: for messages
    :param provided_elsewhere: names that another file gives (``preload_from_files``): may be missing here
    :return: report; log its summary
    :raises CheckpointError: missing keys (unless allowed), other shapes, or no key fits at all
    """
    report = _load_non_strict(model, state_dict, filename)
    missing = tuple(name for name in report.missing if name not in provided_elsewhere)
    report = dataclasses.replace(report, missing=missing)
    if not report.num_loaded and (report.unexpected or missing):
        raise CheckpointError(
            f"No parameter of {filename} fits to the model. Missing keys: {_first_names(missing) or 'none'}. "
            f"Unexpected keys: {_first_names(report.unexpected) or 'none'}. Is it the checkpoint of another model?"
        )
    if missing and not allow_missing:
        raise CheckpointError(
            f"Error(s) in loading {filename} into {model.__class__.__name__}. "
            f"Loaded {report.num_loaded} parameters. "
            f"Unexpected keys ({len(report.unexpected)}): {_all_names(report.unexpected)}. "
            f"Missing keys ({len(missing)}): {_all_names(missing)}. "
            "Set load_ignore_missing_vars = True to keep their initial values, or give them in preload_from_files. "
            "Any missing key is an error."
        )
    return report


def _all_names(names: Collection[str]) -> str:
    """:return: readable list; a model with other names throughout must not print thousands"""
    return _first_names(names, 20) or "none"


def _load_non_strict(model: torch.nn.Module, state_dict: Mapping[str, Any], filename: str) -> LoadReport:
    own = model.state_dict()
    mismatched = tuple(
        f"{name}: file {list(value.shape)}, model {list(own[name].shape)}"
        for name, value in state_dict.items()
        if isinstance(value, torch.Tensor)
        and isinstance(own.get(name), torch.Tensor)
        and not torch.nn.parameter.is_lazy(own[name])
        and value.shape != own[name].shape
        and not (own[name].ndim == 0 and value.shape == (1,))  # torch accepts those of very old versions
    )
    if mismatched:
        raise CheckpointError(
            f"{filename} has parameters of other shapes than the model, {len(mismatched)} of {len(own)}: {_first_names(mismatched)}. "
            "Nothing was loaded. Use the config that made the checkpoint, or preload_from_files with ignore_params and ignore_missing."
        )
    try:
        result = model.load_state_dict(state_dict, strict=False)
    except (RuntimeError, TypeError, AttributeError) as exc:
        raise CheckpointError(f"{filename} cannot be loaded into {model.__class__.__name__}: {exc}.") from exc
    return LoadReport(
        filename=filename,
        num_loaded=len(state_dict) - len(result.unexpected_keys),
        missing=tuple(result.missing_keys),
        unexpected=tuple(result.unexpected_keys),
    )
