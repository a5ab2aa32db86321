"""
Checkpoint files: their names, which exist, deletion.

Functions over file names; nothing here loads a model. A checkpoint is named by its path without ".pt".
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Literal

from returnn.engine.whole_file import is_whole
from returnn.errors import CheckpointError, describe

__all__ = [
    "StartPoint",
    "epoch_model_filename",
    "epoch_of_filename",
    "existing_models",
    "optimizer_filename",
    "model_file",
    "strip_suffix",
    "is_whole",
    "delete_model",
    "prune_optimizer_files",
]

MODEL_POSTFIX = ".pt"
OPTIMIZER_POSTFIX = ".opt.pt"
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
    pattern = re.compile(re.escape(prefix) + r"\.(\d{3,})((?:\.opt)?\.pt)?")
    res: dict[int, set[str]] = {}
    for name in names:
        match = pattern.fullmatch(name)
        if match and f"{int(match[1]):03d}" == match[1] and os.path.isfile(os.path.join(folder, name)):
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
    :param with_optimizer: also delete its optimizer file, if it exists
    :return: number of bytes
    :raises CheckpointError: it does not exist
    """
    if not os.path.isfile(path + MODEL_POSTFIX):
        raise CheckpointError(f"checkpoint {path + MODEL_POSTFIX!r} does not exist, so it cannot be deleted.")
    filenames = [path + MODEL_POSTFIX]
    if with_optimizer and os.path.exists(path + OPTIMIZER_POSTFIX):
        filenames.append(path + OPTIMIZER_POSTFIX)
    size = sum(map(os.path.getsize, filenames))
    for filename in filenames:
        os.remove(filename)
    return size


def prune_optimizer_files(model_filename: str, epoch: int, *, keep: int = 2) -> list[str]:
    """
    Delete all optimizer files of earlier epochs except for the newest ones.

    :param model_filename: value of the option ``model``
    :param epoch: the epoch just saved; files of later epochs (of an earlier training) are left alone
    :param keep: so many files stay, including the one of this epoch
    :return: the deleted files
    """
    epochs = sorted(
        ep for ep, names in _epoch_files(model_filename).items() if OPTIMIZER_POSTFIX in names and ep <= epoch
    )
    deleted = []
    for old in epochs[: max(len(epochs) - keep, 0)]:
        filename = epoch_model_filename(model_filename, old) + OPTIMIZER_POSTFIX
        os.remove(filename)
        deleted.append(filename)
    return deleted
