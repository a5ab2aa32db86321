"""Transcriptions of a config's dataset, a Bliss corpus, or a text file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from returnn.cli._dataset_tools.reading import Seq, iter_seqs, positions_from
from returnn.cli._dataset_tools.texts import text_of_data
from returnn.cli.dataset_source import init_tool_log, open_dataset
from returnn.datasets._lm.corpus_files import _is_bliss, read_lines
from returnn.datasets.basic import Dataset
from returnn.datasets.util.bliss import iter_segments
from returnn.errors import DatasetError, describe

__all__ = ["Orth", "iter_orths"]

#: Data keys that hold texts, by custom.
_TEXT_KEYS = ("raw", "orth")


class Orth(NamedTuple):
    """
    One transcription.

    :param tag: of the sequence; "line-<i>" in a text file
    :param text: transcription
    :param num_frames: length of the audio; None: not known
    """

    tag: str
    text: str
    num_frames: int | None


def iter_orths(
    source: str, *, dataset_name: str | None, key: str | None, frame_time: float, verbosity: int
) -> Iterator[Orth]:
    """
    :param source: config file, dataset literal or HDF file, Bliss XML or text; the latter two plain or .gz
    :param dataset_name: option of the config; None: train
    :param key: data key of the texts; None: "raw", "orth", or the first one with labels
    :param frame_time: milliseconds per frame, for the length of Bliss segments
    :param verbosity: of the log
    """
    init_tool_log(verbosity)
    if _is_dataset(source):
        _, dataset = open_dataset(source, dataset_name, verbosity=verbosity)
        return _iter_dataset(dataset, key)
    if _is_bliss(source):
        return (
            Orth(segment.name, segment.orth, _num_frames(float(segment.end - segment.start) * 1000.0 / frame_time))
            for segment in iter_segments(source)
        )
    return (Orth(f"line-{i}", line, None) for i, line in enumerate(read_lines(source)))


def _num_frames(value: float) -> int | None:
    return round(value) if value < float("inf") else None


def _is_dataset(source: str) -> bool:
    if source.strip().startswith("{") or source.endswith((".hdf", ".config", ".py")):
        return True
    with contextlib.suppress(OSError), open(source, "rb") as file:
        return file.read(2) == b"#!"
    return False


def _iter_dataset(dataset: Dataset, key: str | None) -> Iterator[Orth]:
    dataset.init_seq_order(epoch=1)
    keys = list(dataset.get_data_keys())
    if key is None:
        with_labels = [k for k in keys if dataset.can_serialize_data(k)]
        key = next((k for k in (*_TEXT_KEYS, *with_labels) if k in keys), None)
    if key is None or key not in keys:
        raise DatasetError(
            describe(
                f"Dataset {dataset.name!r} has no texts",
                expected="a data key 'raw' or 'orth', or one with labels; or --key",
                got=key if key is not None else keys,
            )
        )
    length_key = next((k for k in keys if k != key and k not in _TEXT_KEYS), None)
    for seq in iter_seqs(dataset, positions_from(0, None), keys=[key] if length_key is None else [key, length_key]):
        yield Orth(seq.tag, _text(dataset, seq, key), seq.lens[length_key] if length_key is not None else None)


def _text(dataset: Dataset, seq: Seq, key: str) -> str:
    data = seq.data[key]
    if dataset.can_serialize_data(key) and data.dtype.kind in "iu":
        return dataset.serialize_data(key, data)
    return text_of_data(data, where=f"dataset {dataset.name!r}, key {key!r}, sequence {seq.tag!r}")
