"""
Files of checkpoints inside an epoch: ``<model>.<epoch>.step<N>.pt`` and its optimizer part ``.opt.pt``.

The epoch is the running one, N the number of training steps done, over all epochs. Such a checkpoint lives until a newer one, or
that of the epoch itself, is whole. As elsewhere, a checkpoint is named by its path without ".pt".
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator

from returnn.engine.model_files import epoch_model_filename

__all__ = ["InnerKey", "delete_inner", "inner_filename", "inner_checkpoints", "is_inner_name"]

#: (epoch, number of training steps done): the order in which they are written.
InnerKey = tuple[int, int]

_MODEL_POSTFIX = ".pt"
# What can be there: the pair, the folder of a sharded optimizer, and what a killed process left of them.
_POSTFIXES = r"(?:\.opt)?\.pt|\.dcp"
_LEFTOVERS = r"\.(?:tmp|old)_write"


def inner_filename(model_filename: str, epoch: int, step: int) -> str:
    """
    :param model_filename: value of the option ``model``
    :param epoch: the running one
    :param step: number of training steps done, over all epochs
    :return: path without suffix, e.g. models/epoch.010.step2500
    """
    return f"{epoch_model_filename(model_filename, epoch)}.step{step}"


def is_inner_name(path: str) -> bool:
    """:return: whether this is the name of a file, or of the checkpoint, that :func:`inner_filename` gives"""
    return re.search(rf"\.\d{{3,}}\.step\d+(?:{_POSTFIXES})?$", path) is not None


def inner_checkpoints(model_filename: str | None, last_epoch: int | None = None) -> dict[InnerKey, str]:
    """
    :param model_filename: value of the option ``model``; None or empty: no checkpoints
    :param last_epoch: ignore later ones. None: all
    :return: (epoch, step) -> path without suffix, oldest first; whether whole or not
    """
    found = {
        key: path[: -len(_MODEL_POSTFIX)]
        for key, path, postfix in _files(model_filename)
        if postfix == _MODEL_POSTFIX and (last_epoch is None or key[0] <= last_epoch)
    }
    return dict(sorted(found.items()))


def delete_inner(model_filename: str, *, last_epoch: int, keep: str | None = None) -> list[str]:
    """
    Delete the checkpoints inside epochs, and what killed processes left of them.

    :param model_filename: value of the option ``model``
    :param last_epoch: those of later epochs, which an earlier training wrote, stay
    :param keep: path without suffix of one that stays
    :return: the deleted files
    """
    deleted = []
    # The model file first: without it, the rest is no checkpoint any more.
    for key, path, _ in sorted(_files(model_filename), key=lambda entry: entry[2] != _MODEL_POSTFIX):
        is_kept = keep is not None and path.startswith(keep + ".")
        if key[0] > last_epoch or (is_kept and not re.search(rf"{_LEFTOVERS}$", path)):
            continue
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        elif os.path.exists(path):
            os.remove(path)
        deleted.append(path)
    return deleted


def _files(model_filename: str | None) -> Iterator[tuple[InnerKey, str, str]]:
    """:return: (epoch, step), path, and suffix of all files of such checkpoints"""
    if not model_filename:
        return
    folder, prefix = os.path.split(model_filename)
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return
    pattern = re.compile(re.escape(prefix) + rf"\.(\d{{3,}})\.step(\d+)((?:{_POSTFIXES})(?:{_LEFTOVERS})?)")
    for name in names:
        match = pattern.fullmatch(name)
        if match and f"{int(match[1]):03d}" == match[1]:
            yield (int(match[1]), int(match[2])), os.path.join(folder, name), match[3]
