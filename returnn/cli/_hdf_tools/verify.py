"""Checks of HDF files: everything that is wrong with them, as sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import h5py
import numpy

from returnn.cli._hdf_tools.choose import first_of_each_tag
from returnn.cli._hdf_tools.corpus import is_stream_file, open_corpus
from returnn.datasets._hdf.file_index import FileIndex, StreamInfo, parse_file_index
from returnn.datasets._hdf.format import SEQ_TAGS_KEY, is_real_vocabulary
from returnn.datasets._hdf.handles import open_for_reading
from returnn.datasets._hdf.tag_table import TagTable
from returnn.datasets.stream_hdf import StreamHDFDataset
from returnn.errors import DataFileError, ReturnnError

__all__ = ["find_problems", "find_problems_together"]

_BLOCK_BYTES = 32 << 20
_SIZES_KEY = "sizes"
#: What h5py and numpy raise on broken files.
_READ_ERRORS = (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, UnicodeError)


def find_problems(filename: str, *, read_data: bool = True, allow_nonfinite: bool = False) -> list[str]:
    """
    :param filename: HDF file of any format that a dataset reads
    :param read_data: read all arrays; else only what describes them
    :param allow_nonfinite: inf and nan are fine
    :return: a sentence for each problem; nothing if the file is fine
    """
    try:
        with open_for_reading(filename) as h5_file:
            if is_stream_file(h5_file):
                return list(_stream_file_problems(h5_file, filename, read_data))
            return list(_flat_file_problems(h5_file, filename, read_data, allow_nonfinite))
    except ReturnnError as exc:
        return [str(exc)]
    except _READ_ERRORS as exc:
        return [f"The file is broken: {type(exc).__name__}: {exc}."]


def find_problems_together(filenames: list[str]) -> list[str]:
    """
    :param filenames: files that are fine each
    :return: what prevents that one dataset gets all of them, or makes its tags ambiguous
    """
    try:
        corpus = open_corpus(filenames)
    except ReturnnError as exc:
        return [str(exc)]
    return list(_duplicate_tags(corpus.tags, "The files together have"))


def _flat_file_problems(h5_file: h5py.File, filename: str, read_data: bool, allow_nonfinite: bool) -> Iterator[str]:
    index = parse_file_index(h5_file, filename)
    if not index.num_seqs:
        yield "There are no sequences."
    yield from _length_problems(index)
    yield from _tag_problems(h5_file, index)
    for name, actual in (
        ("numSeqs", index.num_seqs),
        ("numTimesteps", index.streams["data"].num_frames if index.has_inputs else None),
    ):
        value = h5_file.attrs.get(name)
        if (
            value is not None
            and actual is not None
            and numpy.size(value) == 1
            and int(numpy.asarray(value).item()) != actual
        ):
            yield f"The attribute {name!r} is {numpy.asarray(value).item()}, but there are {actual}."
    for key, stream in index.streams.items():
        yield from _label_problems(index, key, stream)
        if len(stream.shape) == 1 and stream.ndim == 2 and stream.shape[0] != stream.dim:
            yield f"The data of {key!r} have {stream.shape[0]} features, but the declared dimension is {stream.dim}."
    if read_data:
        for key, stream in index.streams.items():
            yield from _content_problems(h5_file, key, stream, allow_nonfinite=allow_nonfinite)
        yield from _sizes_problems(h5_file, index)


def _length_problems(index: FileIndex) -> Iterator[str]:
    for key in index.columns:
        lens = index.column(key)
        negative = numpy.flatnonzero(lens < 0)
        if len(negative):
            yield (
                f"{len(negative)} sequences have a negative length of {key!r}, first: sequence {int(negative[0])} has "
                f"{int(lens[negative[0]])}."
            )
            continue
        total = int(lens.astype(numpy.float64).sum()) if lens.dtype.itemsize == 8 else int(lens.sum(dtype=numpy.int64))
        stream = index.streams.get(key)
        if stream is None:
            if total and index.has_targets:
                yield f"There are lengths of the target {key!r} ({total} frames), but no data."
        elif stream.num_frames != total:
            what = "the data was cut off" if stream.num_frames < total else "the rest belongs to no sequence"
            yield (
                f"The lengths of {key!r} sum up to {total} frames, but there are {stream.num_frames} "
                f"({stream.path!r}): {what}."
            )


def _tag_problems(h5_file: h5py.File, index: FileIndex) -> Iterator[str]:
    tags = h5_file.get(SEQ_TAGS_KEY)
    if not isinstance(tags, h5py.Dataset) or tags.ndim != 1 or tags.dtype.kind not in "SO":
        yield f"There is no array {SEQ_TAGS_KEY!r} of texts with the tags."
        return
    if len(tags) != index.num_seqs:
        yield f"There are {len(tags)} tags, but lengths of {index.num_seqs} sequences."
    try:
        table = TagTable.from_hdf([tags], [len(tags)])
    except DataFileError as exc:
        yield str(exc)
        return
    num_empty = int(numpy.count_nonzero(table.contained_in([""])))
    if num_empty:
        yield f"{num_empty} sequences have an empty tag."
    yield from _duplicate_tags(table, "There are")


def _duplicate_tags(table: TagTable, subject: str) -> Iterator[str]:
    again = numpy.flatnonzero(first_of_each_tag(table) != numpy.arange(len(table)))
    if len(again):
        yield f"{subject} {len(again)} sequences whose tag came before, first: {table[int(again[0])]!r}."


def _label_problems(index: FileIndex, key: str, stream: StreamInfo) -> Iterator[str]:
    labels = index.root_labels if key == "data" and index.has_inputs else index.labels.get(key)
    if is_real_vocabulary(labels) and len(labels or ()) != stream.dim:
        yield f"There are {len(labels or ())} labels of {key!r}, but its dimension is {stream.dim}."


def _blocks(dataset: h5py.Dataset, frame_bytes: int) -> Iterator[numpy.ndarray]:
    step = max(_BLOCK_BYTES // max(frame_bytes, 1), 1)
    for start in range(0, dataset.shape[0], step):
        yield dataset[start : start + step]


def _content_problems(h5_file: h5py.File, key: str, stream: StreamInfo, *, allow_nonfinite: bool) -> Iterator[str]:
    """Read it all, which finds unreadable blocks; and look at the values."""
    num_bad = num_nonfinite = 0
    worst = 0
    is_class = stream.dtype.kind in "iu" and not stream.shape and stream.dim > 1
    try:
        for block in _blocks(h5_file[stream.path], stream.frame_bytes):
            if is_class and block.size:
                bad = (block < 0) | (block >= stream.dim)
                if bad.any():
                    num_bad += int(numpy.count_nonzero(bad))
                    worst = (
                        int(block[bad].max())
                        if worst >= 0 and block[bad].max() >= stream.dim
                        else int(block[bad].min())
                    )
            if stream.dtype.kind == "f" and not allow_nonfinite:
                num_nonfinite += int(block.size - numpy.count_nonzero(numpy.isfinite(block)))
    except _READ_ERRORS as exc:
        yield f"The data of {key!r} cannot be read: {type(exc).__name__}: {exc}."
        return
    if num_bad:
        yield f"{num_bad} class indices of {key!r} are not in 0..{stream.dim - 1}, e.g. {worst}."
    if num_nonfinite:
        yield f"{num_nonfinite} values of {key!r} are inf or nan."


def _sizes_problems(h5_file: h5py.File, index: FileIndex) -> Iterator[str]:
    """The stream "sizes" has, for each sequence, the sizes of the axes of which the data was flattened."""
    sizes = index.streams.get(_SIZES_KEY)
    if sizes is None or "data" not in index.streams or sizes.shape or sizes.dtype.kind not in "iu":
        return
    counts = index.column(_SIZES_KEY).astype(numpy.int64)
    if int(counts.sum()) != sizes.num_frames or not len(counts) or counts.min() != counts.max() or not counts[0]:
        return
    products = h5_file[sizes.path][...].astype(numpy.int64).reshape(len(counts), int(counts[0])).prod(axis=1)
    bad = numpy.flatnonzero(products != index.column("data"))
    if len(bad):
        row = int(bad[0])
        yield (
            f"{len(bad)} sequences have {_SIZES_KEY!r} that do not fit to their length, first: sequence {row}, "
            f"product {int(products[row])}, length {int(index.column('data')[row])}."
        )


def _stream_file_problems(h5_file: h5py.File, filename: str, read_data: bool) -> Iterator[str]:
    streams = h5_file["streams"]
    if not isinstance(streams, h5py.Group) or not len(streams):
        yield "There are no streams."
        return
    dataset = StreamHDFDataset(input_stream_name=sorted(streams)[0], files=[filename])
    names = dataset.get_all_tags()
    if not names:
        yield "There are no sequences."
    yield from _duplicate_tags(TagTable.from_tags(names), "There are")
    members = {name.replace("/", "\\") for name in names}
    for stream in sorted(streams):
        have = set(streams[stream]["data"])
        for what, extra in (("has no data of", members - have), ("has data of unknown", have - members)):
            if extra:
                yield f"The stream {stream!r} {what} {len(extra)} sequences, e.g. {min(extra)!r}."
    if not read_data:
        return
    num_bad = 0
    first_error = ""
    get_seq: Callable[[int], object] = dataset.get_corpus_seq
    for i, name in enumerate(names):
        try:
            get_seq(i)
        except ReturnnError as exc:
            num_bad += 1
            first_error = first_error or f"{name!r}: {exc}"
    if num_bad:
        yield f"{num_bad} sequences cannot be read, first: {first_error}"
