"""Whether a continued training has the data that it had before: said in the log, before it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from returnn.datasets.basic import Dataset
from returnn.datasets.fingerprint import data_fingerprint, fingerprint_changes
from returnn.log import log

__all__ = ["changed_sequences", "fingerprints", "report_changed_data"]

#: Of a fingerprint: what positions in the data depend on.
_SEQUENCE_KEYS = ("version", "class", "num_seqs", "lens")


def fingerprints(datasets: Mapping[str, object]) -> dict[str, Any]:
    """
    :param datasets: by name, before their first epoch: what is known of a dataset may become more with it
    :return: for checkpoints, see :func:`returnn.datasets.fingerprint.data_fingerprint`; without those that it cannot be made of,
        e.g. since a class of a user raises an error. Any: as there
    """
    result = {}
    for name, dataset in datasets.items():
        if not isinstance(dataset, Dataset):
            continue
        try:
            result[name] = data_fingerprint(dataset)
        except Exception as exc:  # of a class of the user, which may raise anything before its first epoch
            print(f"Note: dataset {name!r} has no fingerprint: {type(exc).__name__}: {exc}", file=log.v4)
    return result


def changed_sequences(old: object, new: object) -> list[str]:
    """
    :param old: fingerprint of a dataset, of a checkpoint
    :param new: of the dataset now
    :return: sentences on other sequences (numbers, lengths); other files with the same sequences do not count
    """
    return fingerprint_changes(_of_sequences(old), _of_sequences(new))


def _of_sequences(fingerprint: object) -> object:
    if not isinstance(fingerprint, Mapping):
        return None
    reduced: dict[str, Any] = {key: fingerprint[key] for key in _SEQUENCE_KEYS if key in fingerprint}
    children = fingerprint.get("children")
    if isinstance(children, Mapping):
        reduced["children"] = {name: _of_sequences(child) for name, child in children.items()}
    return reduced


def report_changed_data(old: object, new: Mapping[str, Any], *, filename: str) -> list[str]:
    """
    Say what has changed. The training goes on nevertheless.

    :param old: of the checkpoint; anything but a dict, of older versions: nothing is compared
    :param new: of :func:`fingerprints`. Any: as there
    :param filename: of the checkpoint
    :return: the sentences
    """
    if not isinstance(old, Mapping):
        return []
    changes = [
        f"dataset {name!r}: {sentence}"
        for name, fingerprint in new.items()
        for sentence in fingerprint_changes(old.get(name), fingerprint)
    ]
    if changes:
        print(
            f"Warning: the data are not those with which {filename} was trained. The training goes on with what is there now.",
            file=log.v1,
        )
    for change in changes:
        print(f"  {change}", file=log.v1)
    return changes
