"""
The state of a sharded training as a folder ``<model>.NNN.dcp``, into which each rank writes its part.

Format: ``torch.distributed.checkpoint`` (files ``__<rank>_<n>.distcp`` and ``.metadata``) with the tensors
``model.<name>``, ``optimizer.<parameter>.<entry>`` and ``gradients.<parameter>``; ``optimizer.pt`` is the content of an
optimizer file (``.opt.pt``) in which ``{"sharded_tensor": key}`` stands in place of these tensors; ``files.json`` has the
sizes of all files. Any number of ranks can read it, also one process without sharding.

Nothing in the folder can run code when it is read: ``.metadata`` is a pickle, which torch would load without any
restriction, so it is read with a list of the few classes that it may contain; all else is tensors.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from returnn.engine.model_files import SHARDED_FILES_LIST, is_whole_folder
from returnn.errors import CheckpointError
from returnn.torch.checkpoint import TMP_POSTFIX, load_file, save_error_text, save_file_atomic, sync_folder
from returnn.torch.distributed.tensors import is_sharded, map_tensors
from returnn.torch.optim.state import EXTRA_KEY

if TYPE_CHECKING:
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata

    from returnn.torch.distributed.context import DistributedContext

__all__ = ["save_sharded", "load_sharded_optimizer", "read_metadata"]

_OLD_POSTFIX = ".old_write"
_OPTIMIZER_FILE = "optimizer.pt"
_PLACEHOLDER = "sharded_tensor"
_METADATA_FILE = ".metadata"
#: What the metadata of torch may consist of: plain records, enums and names of types.
_METADATA_GLOBALS = frozenset(
    {
        *(
            ("torch.distributed.checkpoint.metadata", name)
            for name in (
                *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties"),
                *("ChunkStorageMetadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
            )
        ),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
        ("collections", "OrderedDict"),
        *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "PurePosixPath")),
        *(("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
    }
)


# --- writing


def save_sharded(
    folder: str,
    *,
    model: torch.nn.Module,
    optimizer_state: Mapping[str, Any],
    epoch: int,
    step: int,
    ranks: DistributedContext,
) -> None:
    """
    Write the folder such that under this name there is always a whole one: the old or the new one. All ranks must call it.

    :param folder: ends with ".dcp"; on a file system that all ranks share
    :param model: sharded
    :param optimizer_state: content of an optimizer file, its tensors sharded. Any: as there
    :param epoch: finished one
    :param step: number of training steps done
    :param ranks: this rank and the others
    :raises CheckpointError: on all ranks, if any of them cannot write; an old folder of that name stays
    """
    tmp = folder + TMP_POSTFIX
    tensors: dict[str, torch.Tensor] = {
        f"model.{name}": value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)
    }
    content = _without_sharded(optimizer_state, tensors)
    content[EXTRA_KEY] = {**content.get(EXTRA_KEY, {}), "epoch": epoch, "step": step}
    with _together(ranks, folder):
        if ranks.is_first:
            shutil.rmtree(tmp, ignore_errors=True)
            os.makedirs(tmp)
    with _together(ranks, folder):
        _write_tensors(tensors, tmp, ranks)
    with _together(ranks, folder):
        if ranks.is_first:
            save_file_atomic(content, os.path.join(tmp, _OPTIMIZER_FILE))
            _write_files_list(tmp)
            _rename(tmp, folder)


class _together(contextlib.AbstractContextManager["_together"]):
    """At its end all ranks wait for each other; if any has failed, all raise."""

    def __init__(self, ranks: DistributedContext, folder: str):
        self._ranks = ranks
        self._folder = folder

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        if exc is not None and not isinstance(exc, Exception):
            return
        own = None
        if exc is not None:
            own = str(exc)
            if not isinstance(exc, CheckpointError):
                own = save_error_text(self._folder, os.path.dirname(self._folder) or ".", exc)
        texts = [(rank, text) for rank, text in enumerate(self._ranks.all_gather_objects(own)) if text]
        if not texts:
            return
        if self._ranks.is_first:
            shutil.rmtree(self._folder + TMP_POSTFIX, ignore_errors=True)
        rank, text = texts[0]
        raise CheckpointError(text if own else f"Rank {rank}: {text}") from exc


def _without_sharded(state: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """
    :param state: content of an optimizer file. Any: as there
    :param tensors: gets the sharded ones
    :return: the same with placeholders
    """
    names = list(state.get(EXTRA_KEY, {}).get("param_names", ()))

    def replace(path: tuple[str | int, ...], tensor: torch.Tensor) -> Any:
        if not is_sharded(tensor):
            return tensor.detach().cpu()
        if path[0] == "state":
            name = names[int(path[1])]
            key = ".".join(map(str, ("optimizer", name, *path[2:])))
        else:
            name = str(path[-1])
            key = f"gradients.{name}"
        tensors[key] = tensor.detach()
        return {_PLACEHOLDER: key, "parameter": name}

    res: dict[str, Any] = map_tensors(state, replace)
    return res


def _write_tensors(tensors: dict[str, torch.Tensor], folder: str, ranks: DistributedContext) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
            dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder), process_group=ranks.object_group)
    except CheckpointException as exc:  # no Exception; it holds those of all ranks
        raise CheckpointError(f"Cannot save {folder}: {_reason(exc)}.") from exc
    if ranks.is_first:
        present = set(os.listdir(folder))
        needed = {info.relative_path for info in read_metadata(folder).storage_data.values()}
        if missing := sorted(needed - present):
            raise CheckpointError(
                f"Cannot save {folder}: rank 0 does not see the files of other ranks ({', '.join(missing[:3])}). "
                "Sharded checkpoints need a file system that all ranks share: set another folder in the option model."
            )


def _write_files_list(folder: str) -> None:
    sizes = {name: os.path.getsize(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}
    with open(os.path.join(folder, SHARDED_FILES_LIST), "w", encoding="utf-8") as file:
        json.dump(sizes, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def _rename(tmp: str, folder: str) -> None:
    old = folder + _OLD_POSTFIX
    shutil.rmtree(old, ignore_errors=True)
    if os.path.lexists(folder):  # of an earlier training; folders cannot be replaced in one step
        os.rename(folder, old)
    os.rename(tmp, folder)
    sync_folder(os.path.dirname(folder) or ".")
    shutil.rmtree(old, ignore_errors=True)


# --- reading


def load_sharded_optimizer(
    folder: str, *, model: torch.nn.Module, step: int | None, ranks: DistributedContext | None = None
) -> dict[str, Any]:
    """
    Read the content of an optimizer file. With several ranks, all must call it.

    :param folder: ends with ".dcp"; written by any number of ranks
    :param model: sharded or not: tensors of the shape of a parameter are sharded as it is
    :param step: number of training steps of the model checkpoint; None: not checked
    :param ranks: this rank and the others; None: one process
    :return: for :func:`returnn.torch.optim.state.unpack_state`; tensors that are not sharded in host memory. Any: as there
    :raises CheckpointError: missing, broken, of another step, or with other objects than such a folder has
    """
    if not is_whole_folder(folder):
        raise CheckpointError(
            f"{folder} is broken or only half written: a file is missing or has another size than {SHARDED_FILES_LIST} says. "
            "Use another checkpoint."
        )
    content = load_file(os.path.join(folder, _OPTIMIZER_FILE))
    metadata = read_metadata(folder)
    if not isinstance(content, dict) or not isinstance(content.get(EXTRA_KEY), dict):
        raise CheckpointError(f"{os.path.join(folder, _OPTIMIZER_FILE)} is not an optimizer state.")
    saved_step = content[EXTRA_KEY].get("step")
    if step is not None and saved_step != step:
        raise CheckpointError(
            f"{folder} is of training step {saved_step}, but the model file beside it is of step {step}: they are of different "
            "trainings, or the later one was interrupted while saving. Use another epoch, or remove the folder and set "
            "allow_missing_optimizer_checkpoint = True."
        )
    params = dict(model.named_parameters())
    tensors: dict[str, torch.Tensor] = {}
    full = _fill(content, folder, metadata, params, tensors)
    _read_tensors(tensors, folder, ranks)
    res: dict[str, Any] = full
    return res


def _fill(
    obj: Any, folder: str, metadata: Metadata, params: Mapping[str, torch.Tensor], tensors: dict[str, torch.Tensor]
) -> Any:
    """
    :param obj: part of the content with placeholders. Any: as there
    :param folder: for messages
    :param metadata: of the folder
    :param params: of the model by name
    :param tensors: gets those in place of placeholders by key; still to be read
    :return: the same with tensors
    """
    if isinstance(obj, Mapping):
        if _PLACEHOLDER in obj:
            key = obj[_PLACEHOLDER]
            tensors[key] = _empty_like_saved(key, folder, metadata, params.get(obj.get("parameter", "")))
            return tensors[key]
        return {key: _fill(value, folder, metadata, params, tensors) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return type(obj)(_fill(value, folder, metadata, params, tensors) for value in obj)
    return obj


def _empty_like_saved(key: str, folder: str, metadata: Metadata, param: torch.Tensor | None) -> torch.Tensor:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    saved = metadata.state_dict_metadata.get(key)
    if not isinstance(saved, TensorStorageMetadata):  # an entry of another kind would be unpickled
        raise CheckpointError(f"{folder} is broken: it has no tensor {key!r}. Use another checkpoint.")
    dtype, size = saved.properties.dtype, torch.Size(saved.size)
    if param is not None and is_sharded(param) and param.shape == size:
        return torch.zeros_like(param, dtype=dtype, requires_grad=False).detach()
    return torch.zeros(size, dtype=dtype)


def read_metadata(folder: str) -> Metadata:
    """
    :param folder: written by torch.distributed.checkpoint
    :return: names, shapes and places of its tensors
    :raises CheckpointError: missing, broken, or with other objects than torch writes there, which could run code
    """
    from torch.distributed.checkpoint.metadata import Metadata

    path = os.path.join(folder, _METADATA_FILE)
    try:
        with open(path, "rb") as file:
            metadata = _MetadataUnpickler(io.BytesIO(file.read()), path).load()
    except CheckpointError:
        raise
    except Exception as exc:  # a broken pickle can raise nearly anything
        raise CheckpointError(
            f"{path} cannot be read ({type(exc).__name__}: {exc}). Use another checkpoint, or remove the folder."
        ) from exc
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise CheckpointError(f"{path} is not the metadata of a sharded checkpoint.")
    for info in metadata.storage_data.values():
        name = getattr(info, "relative_path", None)
        if not isinstance(name, str) or os.path.basename(name) != name or name in ("", ".", ".."):
            raise CheckpointError(f"{path} refers to a file outside of its folder: {name!r}.")
    return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Builds nothing but the records that torch's metadata consists of."""

    def __init__(self, file: io.BytesIO, path: str):
        super().__init__(file)
        self._path = path

    def find_class(self, module_name: str, global_name: str) -> Any:
        """:raises CheckpointError: not one of those records. Any: a class or function of torch"""
        if (module_name, global_name) not in _METADATA_GLOBALS:
            raise CheckpointError(
                f"{self._path} contains {module_name}.{global_name}, which torch does not write there and which could run code, "
                "so the checkpoint is not read. Use another one."
            )
        return super().find_class(module_name, global_name)


def _reader(folder: str) -> FileSystemReader:
    import torch.distributed.checkpoint as dcp

    class Reader(dcp.FileSystemReader):
        """With the restricted unpickler."""

        def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # Any: differs between versions of torch
            del args, kwargs
            return read_metadata(folder)

    return Reader(folder)


def _read_tensors(tensors: dict[str, torch.Tensor], folder: str, ranks: DistributedContext | None) -> None:
    """
    Fill them in place. Only tensors are asked for: entries of other kinds, which torch would unpickle, are not read.

    :param tensors: by key
    :param folder:
    :param ranks: of this run
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    if not tensors:
        return
    group = {} if ranks is None else {"process_group": ranks.object_group}
    try:
        with warnings.catch_warnings():
            if ranks is None:  # it says that it does as one process does
                warnings.filterwarnings("ignore", message="torch.distributed is")
            dcp.load(tensors, storage_reader=_reader(folder), **group)
    except (Exception, CheckpointException) as exc:  # the latter is no Exception; it holds those of all ranks
        raise CheckpointError(f"{folder} cannot be read ({_reason(exc)}). Use another checkpoint.") from exc


def _reason(exc: BaseException) -> str:
    """:return: one line"""
    failures = getattr(exc, "failures", None)
    if isinstance(failures, dict) and failures:
        rank, (failure, _) = sorted(failures.items())[0]
        return f"rank {rank}: {_reason(failure)}"
    return f"{type(exc).__name__}: {(str(exc).strip().splitlines() or [''])[0]}"
