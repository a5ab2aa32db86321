"""
Checkpoint files: their names, which exist, deletion.

Functions over file names; nothing here loads a model. A checkpoint is named by its path without ".pt".
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from typing import Literal

from returnn.engine.whole_file import is_whole
from returnn.errors import CheckpointError, describe

__all__ = [
    "StartPoint",
    "epoch_model_filename",
    "epoch_of_filename",
    "existing_models",
    "optimizer_filename",
    "sharded_folder",
    "is_whole_folder",
    "has_optimizer",
    "model_file",
    "strip_suffix",
    "is_whole",
    "delete_model",
    "delete_optimizer",
    "prune_optimizer_files",
]

MODEL_POSTFIX = ".pt"
OPTIMIZER_POSTFIX = ".opt.pt"
#: Added to the name of a file or folder while it is written.
HALF_WRITTEN_POSTFIX = ".tmp_write"
#: A folder with the parts of all ranks, in place of the optimizer file; see returnn.torch.distributed.sharded_checkpoint.
SHARDED_POSTFIX = ".dcp"
#: In that folder: JSON with the sizes of all other files by name.
SHARDED_FILES_LIST = "files.json"
# Suffixes that users put behind the name of a checkpoint; the latter two are from another framework's time.
_SUFFIXES = (".pt", ".index", ".meta")


def epoch_model_filename(model_filename: str, epoch: int) -> str:
    """
    :param model_filename: value of the option ``model``
    :param epoch: four digits from 1000 on
    :return: path without suffix, e.g. models/epoch.010
    """
    return f"{model_filename}.{epoch:03d}"


def existing_models(model_filename: str | None, last_epoch: int | None = None) -> dict[int, str]:
    """
    :param model_filename: value of the option ``model``; None or empty: no models
    :param last_epoch: ignore later ones. None: all
    :return: epoch -> path without suffix, sorted, epochs from 1
    """
    res = {}
    for epoch, names in _epoch_files(model_filename).items():
        if epoch >= 1 and (last_epoch is None or epoch <= last_epoch) and names & {"", MODEL_POSTFIX}:
            assert model_filename
            res[epoch] = epoch_model_filename(model_filename, epoch)
    return dict(sorted(res.items()))


def _epoch_files(model_filename: str | None) -> dict[int, set[str]]:
    """:return: epoch -> suffixes of its files that exist"""
    if not model_filename:
        return {}
    folder, prefix = os.path.split(model_filename)
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return {}
    pattern = re.compile(re.escape(prefix) + r"\.(\d{3,})((?:\.opt)?\.pt|\.dcp)?")
    res: dict[int, set[str]] = {}
    for name in names:
        match = pattern.fullmatch(name)
        if not match or f"{int(match[1]):03d}" != match[1]:
            continue
        exists = os.path.isdir if match[2] == SHARDED_POSTFIX else os.path.isfile
        if exists(os.path.join(folder, name)):
            res.setdefault(int(match[1]), set()).add(match[2] or "")
    return res


def strip_suffix(path: str | os.PathLike[str]) -> str:
    """
    :param path: of a checkpoint, with or without suffix
    :return: without ".pt", ".index", ".meta"
    """
    path = os.fspath(path)
    for suffix in _SUFFIXES:
        if path.endswith(suffix):
            return path[: -len(suffix)]
    return path


def model_file(path: str | os.PathLike[str]) -> str:
    """
    :param path: of a checkpoint, with or without suffix; or any file
    :return: the file that exists: the path with ".pt", or else the path itself
    :raises CheckpointError: neither exists
    """
    path = os.fspath(path)
    candidates = [strip_suffix(path) + MODEL_POSTFIX, path, strip_suffix(path)]
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    raise CheckpointError(describe(f"checkpoint {candidates[0]!r} does not exist", todo="Check the path"))


def optimizer_filename(path: str | os.PathLike[str]) -> str:
    """
    :param path: of a checkpoint, with or without suffix
    :return: path of its optimizer file (which may not exist)
    """
    return strip_suffix(path) + OPTIMIZER_POSTFIX


def sharded_folder(path: str | os.PathLike[str]) -> str:
    """
    :param path: of a checkpoint, with or without suffix
    :return: path of the folder with its sharded state (which may not exist)
    """
    return strip_suffix(path) + SHARDED_POSTFIX


def is_whole_folder(folder: str) -> bool:
    """
    :param folder: with the sharded state of a checkpoint; existing or not
    :return: whether all of its files are there with the sizes that they had when it was written
    """
    try:
        with open(os.path.join(folder, SHARDED_FILES_LIST), encoding="utf-8") as file:
            sizes = json.load(file)
        return isinstance(sizes, dict) and all(
            os.path.getsize(os.path.join(folder, os.path.basename(name))) == size for name, size in sizes.items()
        )
    except (OSError, ValueError):
        return False


def has_optimizer(path: str) -> bool:
    """
    :param path: of a checkpoint, with or without suffix
    :return: whether there is a state of the optimizer beside it, as a file or as a folder
    """
    return os.path.exists(optimizer_filename(path)) or os.path.isdir(sharded_folder(path))


def epoch_of_filename(path: str) -> int | None:
    """
    :param path: of a checkpoint, e.g. models/epoch.010 or a link to it
    :return: the number behind the last dot before the suffix, None if there is none
    """
    for name in (path + MODEL_POSTFIX, path):
        if os.path.exists(name):
            path = os.path.realpath(name)
            break
    match = re.search(r"\.(\d+)$", strip_suffix(path))
    return int(match[1]) if match else None


@dataclasses.dataclass(frozen=True)
class StartPoint:
    """Where a run starts from."""

    #: "fresh": new model. "resume": own checkpoint, the training goes on. "import": weights from elsewhere for epoch 1.
    #: "load": the checkpoint given by the option ``load``.
    kind: Literal["fresh", "resume", "import", "load"]
    #: Epoch of the checkpoint as far as the options tell. 0: import. None: fresh, or only the file knows.
    epoch: int | None
    #: Checkpoint without ".pt" (or any other file that exists). None: fresh.
    filename: str | None
    #: What the user should know: ignored options, broken files.
    notes: list[str] = dataclasses.field(default_factory=list)
    #: Whether it is a checkpoint of the option ``model``, and not one from elsewhere.
    is_own_model: bool = False
    #: The checkpoint is inside the epoch behind ``epoch``, after so many training steps over all epochs. None: no such one.
    step: int | None = None

    @property
    def start_epoch(self) -> int:
        """The first epoch to train."""
        return (self.epoch or 0) + 1

    @property
    def log_line(self) -> str:
        """The line that the log has always had for it."""
        if self.kind == "resume":
            return f"Using existing model {self.filename}"
        if self.kind == "import":
            return f"Using import model {self.filename}"
        if self.kind == "load":
            return f"Using load model {self.filename} with start_epoch {self.start_epoch}"
        return "Using fresh model"


# --- deletion


def delete_model(path: str, *, with_optimizer: bool = False) -> int:
    """
    :param path: of a checkpoint, without suffix. Its ".pt" file must exist
    :param with_optimizer: also delete its optimizer file or sharded state, if it exists
    :return: number of bytes
    :raises CheckpointError: it does not exist
    """
    if not os.path.isfile(path + MODEL_POSTFIX):
        raise CheckpointError(f"checkpoint {path + MODEL_POSTFIX!r} does not exist, so it cannot be deleted.")
    size = os.path.getsize(path + MODEL_POSTFIX)
    os.remove(path + MODEL_POSTFIX)
    return size + (delete_optimizer(path) if with_optimizer else 0)


def delete_optimizer(path: str, *, keep: str | None = None) -> int:
    """
    :param path: of a checkpoint, with or without suffix
    :param keep: one of its files that stays
    :return: number of bytes of the optimizer file and the sharded state that were there
    """
    size = 0
    for filename in (optimizer_filename(path), sharded_folder(path)):
        if filename == keep:
            continue
        if os.path.isdir(filename):
            size += sum(entry.stat().st_size for entry in os.scandir(filename) if entry.is_file())
            shutil.rmtree(filename)
        elif os.path.exists(filename):
            size += os.path.getsize(filename)
            os.remove(filename)
    return size


def prune_optimizer_files(model_filename: str, epoch: int, *, keep: int = 2) -> list[str]:
    """
    Delete all optimizer files and sharded states of earlier epochs except for the newest ones.

    :param model_filename: value of the option ``model``
    :param epoch: the epoch just saved; files of later epochs (of an earlier training) are left alone
    :param keep: so many files stay, including the one of this epoch
    :return: the deleted files
    """
    epochs = sorted(
        ep
        for ep, names in _epoch_files(model_filename).items()
        if names & {OPTIMIZER_POSTFIX, SHARDED_POSTFIX} and ep <= epoch
    )
    deleted = []
    for old in epochs[: max(len(epochs) - keep, 0)]:
        path = epoch_model_filename(model_filename, old)
        deleted += [name for name in (optimizer_filename(path), sharded_folder(path)) if os.path.exists(name)]
        delete_optimizer(path)
    return deleted
