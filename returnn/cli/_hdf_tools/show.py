"""What an HDF file holds, as text or JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy

from returnn.cli._dataset_tools.lengths import LengthTable
from returnn.cli._dataset_tools.reading import Seq, iter_seqs
from returnn.cli._dataset_tools.seq_dumpers import to_json
from returnn.cli._hdf_tools.corpus import is_stream_file
from returnn.datasets._hdf.file_index import parse_file_index
from returnn.datasets._hdf.format import is_real_vocabulary
from returnn.datasets._hdf.handles import open_for_reading
from returnn.datasets.basic import Dataset
from returnn.datasets.hdf import HDFDataset
from returnn.datasets.stream_hdf import StreamHDFDataset
from returnn.util.numbers import human_bytes_size
from returnn.util.pprint import pretty_print

__all__ = ["describe_file", "iter_description", "open_hdf_dataset", "iter_chosen_seqs", "seq_lines", "seq_json"]


def describe_file(filename: str) -> dict[str, Any]:
    """
    :param filename: HDF file of any format that a dataset reads
    :return: plain values: format, number of sequences, attributes, and about each data key. Any: of several types
    :raises DataFileError: no such file, or broken
    """
    with open_for_reading(filename) as h5_file:
        attrs = {name: to_json(value) for name, value in h5_file.attrs.items()}
        result: dict[str, Any] = {"file": filename, "num_bytes": h5_file.id.get_filesize(), "attributes": attrs}
        if is_stream_file(h5_file):
            result.update(_describe_streams(h5_file))
        else:
            result.update(_describe_flat(h5_file, filename))
    return result


def _describe_flat(h5_file: h5py.File, filename: str) -> dict[str, Any]:
    index = parse_file_index(h5_file, filename)
    keys: dict[str, Any] = {}
    for key, stream in index.streams.items():
        labels = index.root_labels if key == "data" and index.has_inputs else index.labels.get(key)
        table = LengthTable([key])
        for length in index.column(key).tolist():
            table.add({key: length})
        dataset = h5_file[stream.path]
        keys[key] = {
            "path": stream.path,
            "shape": [stream.num_frames, *stream.shape],
            "dtype": stream.dtype_name,
            "dim": stream.dim,
            "ndim": stream.ndim,
            "compression": dataset.compression,
            "num_bytes": stream.num_frames * stream.frame_bytes,
            "labels": list(labels or ()) if is_real_vocabulary(labels) else None,
            "lengths": table.to_json(key),
        }
    return {"format": "arrays of all sequences", "num_seqs": index.num_seqs, "keys": keys}


def _describe_streams(h5_file: h5py.File) -> dict[str, Any]:
    keys = {}
    for name, stream in sorted(h5_file["streams"].items()):
        parser = stream.attrs.get("parser", "unknown")
        names = stream.get("feature_names")
        keys[name] = {
            "parser": parser.decode("utf8") if isinstance(parser, bytes) else str(parser),
            "num_arrays": len(stream["data"]),
            "labels": None if names is None else [to_json(label) for label in names[...].tolist()],
        }
    return {"format": "an array per sequence and stream", "num_seqs": len(h5_file["seq_names"]), "keys": keys}


def iter_description(info: dict[str, Any]) -> Iterator[str]:
    """
    :param info: from :func:`describe_file`. Any: see there
    :return: lines
    """
    size = human_bytes_size(info["num_bytes"])
    yield f"{info['file']}: {info['num_seqs']} sequences, {size}, format: {info['format']}"
    if info["attributes"]:
        yield "  attributes: " + ", ".join(f"{name}={value}" for name, value in info["attributes"].items())
    for key, entry in info["keys"].items():
        if "parser" in entry:
            yield f"  {key!r}: parser {entry['parser']}, {entry['num_arrays']} arrays"
        else:
            compression = f", {entry['compression']}" if entry["compression"] else ""
            yield (
                f"  {key!r} ({entry['path']}): {entry['dtype']} {entry['shape']}, dim {entry['dim']}, ndim {entry['ndim']}"
                f"{compression}, {human_bytes_size(entry['num_bytes'])}"
            )
            lengths = entry["lengths"]
            if "mean" in lengths:
                yield (
                    f"    lengths: min {lengths['min']}, mean {lengths['mean']:.2f}, max {lengths['max']}, "
                    f"sum {lengths['num_frames']}"
                )
        labels = entry["labels"]
        if labels:
            yield f"    {len(labels)} labels: {labels[:5]}{'...' if len(labels) > 5 else ''}"


def open_hdf_dataset(filename: str) -> Dataset:
    """
    :param filename: HDF file
    :return: dataset of its format, in the order of the file
    """
    with open_for_reading(filename) as h5_file:
        streams = sorted(h5_file["streams"]) if is_stream_file(h5_file) else None
    if streams:
        return StreamHDFDataset(input_stream_name=streams[0], files=[filename], name=filename)
    return HDFDataset([filename], name=filename)


def iter_chosen_seqs(
    dataset: Dataset, *, keys: Sequence[str] | None, tags: Sequence[str] | None, num: int | None, with_data: bool
) -> Iterator[Seq]:
    """
    :param dataset: from :func:`open_hdf_dataset`
    :param keys: data keys; None: all
    :param tags: which sequences; None: the first ones
    :param num: how many; None: all
    :param with_data: whether the data are read
    """
    dataset.init_seq_order(epoch=1, seq_list=tags)
    all_keys = [key for key in dataset.get_data_keys() if not isinstance(dataset, StreamHDFDataset) or key != "data"]
    positions = range(dataset.num_seqs if num is None else min(num, dataset.num_seqs))
    return iter_seqs(dataset, positions, keys=list(keys or all_keys), with_data=with_data)


def seq_lines(seq: Seq) -> Iterator[str]:
    """:return: lines of text about one sequence"""
    yield f"seq {seq.position} {seq.tag!r}: " + ", ".join(f"{key} {length}" for key, length in seq.lens.items())
    for key, data in seq.data.items():
        yield f"  {key}: {pretty_print(_texts(data))}"


def _texts(data: numpy.ndarray) -> numpy.ndarray:
    """:return: bytes of text streams as str"""
    if data.dtype.kind != "O":
        return data
    return numpy.array([to_json(value) for value in data.tolist()], dtype=object)


def seq_json(seq: Seq) -> dict[str, Any]:
    """:return: one sequence as plain values. Any: of several types"""
    entry: dict[str, Any] = {"seq_idx": seq.position, "tag": seq.tag, "lens": seq.lens}
    if seq.data:
        entry["data"] = {key: to_json(value) for key, value in seq.data.items()}
    return {"seq": entry}
