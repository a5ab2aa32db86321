"""HDF files of one form as a corpus, of which any sequences can be written to a new file."""

from __future__ import annotations

import abc
import sys
from collections.abc import Sequence

import h5py
import numpy

from returnn.cli._hdf_tools.output import HdfOutput
from returnn.datasets._hdf.file_index import FileIndex, StreamInfo, check_fits
from returnn.datasets._hdf.format import (
    HDF_SEQ_LENGTHS_KEY,
    HDF_TIMES_KEY,
    INPUTS_KEY,
    LABELS_KEY,
    SEQ_TAGS_KEY,
    TARGETS_KEY,
    decode_strings,
    encode_fixed_strings,
)
from returnn.datasets._hdf.handles import open_for_reading
from returnn.datasets._hdf.reader import CorpusReader
from returnn.datasets._hdf.tag_table import TagTable
from returnn.datasets.stream_hdf import StreamHDFDataset
from returnn.errors import DataFileError, describe
from returnn.util.terminal import progress_bar_with_time

__all__ = ["HdfCorpus", "FlatCorpus", "StreamCorpus", "open_corpus", "is_stream_file"]

#: Data that is copied at once.
_BLOCK_BYTES = 32 << 20
_MAX_BLOCK_SEQS = 1 << 16
#: Root objects that are copied or made anew; others are left out.
_KNOWN_OBJECTS = {INPUTS_KEY, SEQ_TAGS_KEY, HDF_SEQ_LENGTHS_KEY, TARGETS_KEY, LABELS_KEY, HDF_TIMES_KEY}


def is_stream_file(h5_file: h5py.File) -> bool:
    """:return: whether it has one array per sequence and stream, see StreamHDFDataset"""
    return "seq_names" in h5_file and "streams" in h5_file


def open_corpus(filenames: Sequence[str]) -> HdfCorpus:
    """
    :param filenames: HDF files of one form
    :return: all their sequences, file by file
    :raises DataFileError: a file is missing or broken, or they do not fit together
    """
    kinds = {}
    for filename in filenames:
        with open_for_reading(filename) as h5_file:
            kinds[filename] = is_stream_file(h5_file)
    if len(set(kinds.values())) > 1:
        streams = [name for name, is_stream in kinds.items() if is_stream]
        raise DataFileError(
            describe(
                "The files have different formats",
                expected="only files with 'inputs'/'targets', or only files with 'streams'",
                got=streams,
                todo="Convert one kind with tools/hdf_dump.py",
            )
        )
    return StreamCorpus(filenames) if kinds[filenames[0]] else FlatCorpus(filenames)


class HdfCorpus(abc.ABC):
    """Sequences of several files, counted through in the order of the files."""

    filenames: list[str]
    tags: TagTable
    #: warnings for the user
    notes: list[str]

    @property
    def num_seqs(self) -> int:
        """:return: of all files"""
        return len(self.tags)

    @abc.abstractmethod
    def write(self, order: numpy.ndarray, output: HdfOutput) -> None:
        """
        :param order: int64 [n], corpus indices, in the order to write
        :param output: new file
        """


class FlatCorpus(HdfCorpus):
    """Files of the HDF writers: one array per data key, all sequences concatenated."""

    def __init__(self, filenames: Sequence[str]):
        """
        :param filenames: at least one
        :raises DataFileError: see :func:`open_corpus`
        """
        self.filenames = list(filenames)
        self.notes = []
        self._reader = CorpusReader()
        for filename in filenames:
            index = self._reader.inspect(filename)
            self._check_fits(index)
            self._reader.add(index)
        self.tags = self._reader.tags
        self._has_times = self._check_times()
        self._note_unknown_objects()

    @property
    def first(self) -> FileIndex:
        """:return: the first file, whose form all others have"""
        return self._reader.files[0]

    def _check_fits(self, index: FileIndex) -> None:
        if not self._reader.files:
            return
        first = self.first
        check_fits(index, [first], first.target_keys)
        extra = sorted(set(index.target_keys) - set(first.target_keys))
        if extra:
            raise DataFileError(
                describe(
                    f"HDF file {index.filename!r} has targets that the first file {first.filename!r} has not",
                    expected=f"targets {first.target_keys}",
                    got=index.target_keys,
                    todo="Put only files with the same targets together",
                )
            )
        for what, mine, others in [
            *((f"target {key!r}", first.labels.get(key), index.labels.get(key)) for key in first.target_keys),
            ("inputs", first.root_labels, index.root_labels),
        ]:
            if (mine or None) != (others or None):
                raise DataFileError(
                    describe(
                        f"HDF file {index.filename!r} has other labels of {what} than the first file {first.filename!r}, "
                        "so its class indices mean something else",
                        expected=f"{len(mine or ())} labels, first {(mine or [])[:3]}",
                        got=(others or [])[:3],
                        todo="Convert the labels first",
                    )
                )

    def _check_times(self) -> bool:
        """:return: whether there are timestamps to copy: one per frame of the data in each file"""
        fits = [
            index.timestamps is not None
            and "data" in index.streams
            and len(index.timestamps) == index.streams["data"].num_frames
            for index in self._reader.files
        ]
        if any(index.timestamps is not None for index in self._reader.files) and not all(fits):
            self.notes.append(
                f"Warning: {HDF_TIMES_KEY!r} is left out: not all files have one entry per frame of the data."
            )
        return all(fits)

    def _note_unknown_objects(self) -> None:
        unknown: set[str] = set()
        for filename in self.filenames:
            with self._reader.handles.use(filename) as h5_file:
                unknown |= set(h5_file) - _KNOWN_OBJECTS
        if unknown:
            self.notes.append(f"Warning: {sorted(unknown)} are left out: they are no part of the format.")

    def write(self, order: numpy.ndarray, output: HdfOutput) -> None:
        """See base."""
        reader, first, out = self._reader, self.first, output.file
        with reader.handles.use(first.filename) as source:
            self._copy_head(source, out, num_seqs=len(order), num_frames=self._num_frames(order))
            fixed_tags = source[SEQ_TAGS_KEY].dtype.kind == "S"
        lens = numpy.stack([reader.lens(key)[order] for key in first.columns], axis=1)
        out.create_dataset(HDF_SEQ_LENGTHS_KEY, data=lens.astype(_lens_dtype(lens), copy=False))
        self._write_tags(order, output, fixed=fixed_tags)
        for i, (key, stream) in enumerate(first.streams.items()):
            self._write_stream(key, stream, order, output, text=f"{key} ({i + 1} of {len(first.streams)})")
        if self._has_times:
            times = numpy.concatenate([index.timestamps for index in reader.files if index.timestamps is not None])
            starts, ends = reader.offsets("data")[order], reader.offsets("data")[order + 1]
            parts = [times[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
            output.create_array(out, HDF_TIMES_KEY, data=numpy.concatenate(parts))
        reader.close()

    def _num_frames(self, order: numpy.ndarray) -> int | None:
        return int(self._reader.lens("data")[order].sum(dtype=numpy.int64)) if self.first.has_inputs else None

    def _copy_head(self, source: h5py.File, out: h5py.File, *, num_seqs: int, num_frames: int | None) -> None:
        """Attributes, sizes and labels, as the first file has them."""
        for name, value in source.attrs.items():
            out.attrs[name] = value
        if "numSeqs" in out.attrs:
            out.attrs["numSeqs"] = numpy.int64(num_seqs)
        if "numTimesteps" in out.attrs and num_frames is not None:
            out.attrs["numTimesteps"] = numpy.int64(num_frames)
        if LABELS_KEY in source:
            source.copy(source[LABELS_KEY], out, LABELS_KEY)
        if TARGETS_KEY in source:
            targets = out.create_group(TARGETS_KEY)
            targets.create_group("data")
            for name in ("size", "labels"):
                if f"{TARGETS_KEY}/{name}" in source:
                    source.copy(source[f"{TARGETS_KEY}/{name}"], targets, name, expand_soft=True, expand_external=True)

    def _write_tags(self, order: numpy.ndarray, output: HdfOutput, *, fixed: bool) -> None:
        tags = self.tags.select(order)
        if fixed:
            output.create_array(output.file, SEQ_TAGS_KEY, data=encode_fixed_strings(tags, extra_length=1))
        else:
            dtype = h5py.string_dtype("utf-8")
            output.file.create_dataset(SEQ_TAGS_KEY, data=numpy.array(tags, dtype=object), dtype=dtype)

    def _write_stream(
        self, key: str, stream: StreamInfo, order: numpy.ndarray, output: HdfOutput, *, text: str
    ) -> None:
        reader = self._reader
        lens = reader.lens(key)[order].astype(numpy.int64)
        ends = numpy.cumsum(lens)
        total = int(ends[-1])
        parent, _, name = stream.path.rpartition("/")
        target = output.create_array(
            output.file[parent] if parent else output.file, name, shape=(total, *stream.shape), dtype=stream.dtype
        )
        max_frames = max(_BLOCK_BYTES // max(stream.frame_bytes, 1), 1)
        start = pos = 0
        while start < len(order):
            end = max(int(numpy.searchsorted(ends, pos + max_frames, side="right")), start + 1)
            end = min(end, start + _MAX_BLOCK_SEQS)
            frames, _ = reader.read(key, order[start:end])
            if len(frames):
                target[pos : pos + len(frames)] = frames
                output.check()
            pos += len(frames)
            start = end
            progress_bar_with_time(start / len(order), prefix=text, file=sys.stderr)


class StreamCorpus(HdfCorpus):
    """Files with one array per sequence and stream, see StreamHDFDataset."""

    def __init__(self, filenames: Sequence[str]):
        """
        :param filenames: at least one
        :raises DataFileError: see :func:`open_corpus`
        """
        self.filenames = list(filenames)
        self.notes = []
        with open_for_reading(self.filenames[0]) as h5_file:
            self.streams = sorted(h5_file["streams"])
        if not self.streams:
            raise DataFileError(describe(f"HDF file {self.filenames[0]!r} has no streams", todo="Write it again"))
        # It checks each file, and that they fit together.
        dataset = StreamHDFDataset(input_stream_name=self.streams[0], files=self.filenames)
        self.tags = TagTable.from_tags(dataset.get_all_tags())
        self._heads = [self._read_head(filename) for filename in self.filenames]
        for filename, head in zip(self.filenames, self._heads, strict=True):
            self._check_head(filename, head)
        counts = [int(dataset._file_start[i + 1] - dataset._file_start[i]) for i in range(len(self.filenames))]
        self._file_of_seq = numpy.repeat(numpy.arange(len(counts)), counts)
        dataset.finish_epoch(free_resources=True)

    def _read_head(self, filename: str) -> dict[str, tuple[str, list[str] | None]]:
        """:return: stream -> parser, names of the features"""
        result = {}
        with open_for_reading(filename) as h5_file:
            for name in self.streams:
                stream = h5_file["streams"][name]
                names = stream.get("feature_names")
                parser = stream.attrs["parser"]
                parser = parser.decode("utf8") if isinstance(parser, bytes) else str(parser)
                result[name] = parser, None if names is None else decode_strings(numpy.atleast_1d(names[...]))
        return result

    def _check_head(self, filename: str, head: dict[str, tuple[str, list[str] | None]]) -> None:
        for name, (parser, features) in head.items():
            first_parser, first_features = self._heads[0][name]
            if parser != first_parser or features != first_features:
                raise DataFileError(
                    describe(
                        f"The stream {name!r} of HDF file {filename!r} has another parser or other feature names than in "
                        f"the first file {self.filenames[0]!r}",
                        expected=f"{first_parser}, {(first_features or [])[:3]}",
                        got=[parser, (features or [])[:3]],
                    )
                )

    def write(self, order: numpy.ndarray, output: HdfOutput) -> None:
        """
        See base.

        :raises DataFileError: a sequence name comes twice
        """
        if len(numpy.unique(self.tags.find(self.tags.select(order)))) != len(order):
            raise DataFileError(
                "In files with 'streams' the arrays of a sequence are found by its name, so a name cannot come twice. "
                "Keep only the first sequence of each name."
            )
        out = output.file
        names = self.tags.select(order)
        dtype = h5py.string_dtype("utf-8")
        out.create_dataset("seq_names", data=numpy.array(names, dtype=object), dtype=dtype)
        files = [open_for_reading(filename) for filename in self.filenames]
        try:
            for name, value in files[0].attrs.items():
                out.attrs[name] = value
            for stream in self.streams:
                source = files[0]["streams"][stream]
                target = out.create_group(f"streams/{stream}")
                for name, value in source.attrs.items():
                    target.attrs[name] = value
                if "feature_names" in source:
                    source.copy("feature_names", target)
                data = target.create_group("data")
                for i, (corpus_idx, name) in enumerate(zip(order.tolist(), names, strict=True)):
                    member = name.replace("/", "\\")
                    files[int(self._file_of_seq[corpus_idx])]["streams"][stream]["data"].copy(member, data)
                    output.check()
                    if i % 100 == 0:
                        progress_bar_with_time(i / len(order), prefix=stream, file=sys.stderr)
                progress_bar_with_time(1.0, prefix=stream, file=sys.stderr)
        finally:
            for file in files:
                file.close()


def _lens_dtype(lens: numpy.ndarray) -> type[numpy.generic]:
    """:return: int32, as all writers, if the lengths fit"""
    return numpy.int32 if not lens.size or int(lens.max()) <= numpy.iinfo(numpy.int32).max else numpy.int64
