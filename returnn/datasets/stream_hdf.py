"""StreamHDFDataset: HDF files with one array per sequence and stream. Also known as NextGenHDFDataset."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import h5py
import numpy as np

from returnn.datasets._basic.jump import reads_as_its_class
from returnn.datasets._hdf.files_option import check_files_option
from returnn.datasets._hdf.format import (
    HDF_CTC_INDEX_TRANSCRIPTION_KEY,
    HDF_ERRORS,
    HDF_INPUT_PATT_SIZE_KEY,
    HDF_SEQ_LENGTHS_KEY,
    HDF_TIMES_KEY,
    decode_strings,
    worded_hdf_errors,
)
from returnn.datasets._hdf.handles import HandleCache
from returnn.datasets._hdf.stream_parsers import (
    FeatureSequenceStreamParser,
    SegmentAlignmentStreamParser,
    SparseStreamParser,
    StreamParser,
)
from returnn.datasets._hdf.tag_table import TagTable
from returnn.datasets.basic import DatasetSeq
from returnn.datasets.cached2 import CachedDataset2
from returnn.errors import DataFileError, DatasetError, describe
from returnn.util.cache_manager import cf

__all__ = [
    "StreamHDFDataset",
    "NextGenHDFDataset",
    "StreamParser",
    "FeatureSequenceStreamParser",
    "SparseStreamParser",
    "SegmentAlignmentStreamParser",
    "attr_seqLengths",
    "attr_inputPattSize",
    "attr_times",
    "attr_ctcIndexTranscription",
]

attr_seqLengths = HDF_SEQ_LENGTHS_KEY
attr_inputPattSize = HDF_INPUT_PATT_SIZE_KEY
attr_times = HDF_TIMES_KEY
attr_ctcIndexTranscription = HDF_CTC_INDEX_TRANSCRIPTION_KEY


class StreamHDFDataset(CachedDataset2):
    """Each sequence of each stream is one array in the file. All streams, and "data" for the input stream, are data keys."""

    #: Value of the attribute "parser" of a stream -> class. May be extended.
    parsers: ClassVar[dict[str, type[StreamParser]]] = {
        "feature_sequence": FeatureSequenceStreamParser,
        "sparse": SparseStreamParser,
        "segment_alignment": SegmentAlignmentStreamParser,
    }

    def __init__(
        self,
        input_stream_name: str,
        files: Sequence[str | os.PathLike[str]] | None = None,
        use_cache_manager: bool = False,
        **kwargs: Any,
    ):
        """
        :param input_stream_name: the stream that is "data", and by which orders sort
        :param files: list of file names
        :param use_cache_manager: read local copies, made by :func:`returnn.util.basic.cf`
        :param kwargs: see Dataset. Any: each has its own type
        :raises DataFileError: if a file is missing, broken, or does not fit to the others
        """
        files = check_files_option(files, class_name=type(self).__name__, dataset_name=kwargs.get("name"))
        super().__init__(**kwargs)
        self.input_stream_name = input_stream_name
        self._use_cache_manager = use_cache_manager
        self._files: list[str] = []
        self.files: list[str] = []
        self.num_outputs = {}
        self._handles = HandleCache()
        self._seq_names: list[list[str]] = []  # per file
        self._file_start = [0]
        # Each with the open file that it belongs to: another one after reopening, or in a forked process.
        self._parser_cache: dict[tuple[int, str], tuple[h5py.File, StreamParser]] = {}
        self._stream_dtypes: dict[str, str] = {}
        self._tags: TagTable | None = None
        self._seq_lens: np.ndarray | None = None
        self._order: np.ndarray | None = None
        for filename in files:
            self.add_file(filename)

    def add_file(self, path: str) -> None:
        """
        :param path: of the next file
        :raises DataFileError: if it is missing, broken, or does not fit to the earlier ones
        """
        local_name = cf(path) if self._use_cache_manager else path
        with self._handles.use(local_name) as h5_file, worded_hdf_errors(path):
            self._check_members(h5_file, path)
            names = decode_strings(h5_file["seq_names"][...])
            file_idx = len(self.files)
            streams = sorted(h5_file["streams"])
            for stream_name in streams:
                parser = self._make_parser(h5_file, stream_name, names, path)
                self._parser_cache[file_idx, stream_name] = h5_file, parser
                self._check_stream(stream_name, parser, path)
            missing = sorted(set(self.num_outputs or ()) - set(streams))
            if missing:
                raise DataFileError(
                    describe(f"{path} does not contain the streams {missing} of the earlier files {self.files[:3]}")
                )
        self._files.append(path)
        self.files.append(local_name)
        self._seq_names.append(names)
        self._file_start.append(self._file_start[-1] + len(names))
        self._tags = None
        self._seq_lens = None

    def _check_members(self, h5_file: h5py.File, path: str) -> None:
        if not {"seq_names", "streams"} <= set(h5_file):
            raise DataFileError(
                f"{path} does not contain all required datasets/groups: expected 'seq_names' and 'streams',"
                f" got {sorted(h5_file)[:10]}. For files of the HDF writers, use HDFDataset."
            )
        for name, kind, kind_name in (("seq_names", h5py.Dataset, "array"), ("streams", h5py.Group, "group")):
            if not isinstance(h5_file.get(name), kind):
                raise DataFileError(
                    f"{path}: {name!r} is no HDF5 {kind_name}. For files of the HDF writers, use HDFDataset."
                )
        streams = h5_file["streams"]
        if self.input_stream_name not in streams:
            raise DataFileError(
                f"{path} does not contain the input stream {self.input_stream_name}. It has {sorted(streams)}."
            )

    def _make_parser(self, h5_file: h5py.File, stream_name: str, names: list[str], path: str) -> StreamParser:
        stream = h5_file["streams"][stream_name]
        kind = stream.attrs.get("parser")
        kind = kind.decode("utf8") if isinstance(kind, bytes) else kind
        parser_class = self.parsers.get(str(kind))
        if parser_class is None:
            raise DataFileError(
                describe(
                    f"Stream {stream_name!r} of HDF file {path!r} has an unknown parser",
                    expected=f"attribute parser, one of {sorted(self.parsers)}",
                    got=kind,
                )
            )
        try:
            return parser_class(names, stream)
        except (KeyError, ValueError, TypeError, AttributeError, AssertionError) as exc:
            raise DataFileError(
                describe(f"Cannot read stream {stream_name!r} of HDF file {path!r} ({type(exc).__name__}: {exc})")
            ) from exc

    def _check_stream(self, stream_name: str, parser: StreamParser, path: str) -> None:
        assert self.num_outputs is not None
        if stream_name not in self.num_outputs:
            if self.files:
                raise DataFileError(
                    describe(
                        f"{path} contains the stream {stream_name!r}, which the earlier files {self.files[:3]} have not"
                    )
                )
            self.num_outputs[stream_name] = [parser.num_features, parser.feature_type]
            self._stream_dtypes[stream_name] = parser.get_dtype()
            if stream_name == self.input_stream_name:
                self.num_inputs = parser.num_features
            return
        expected, expected_type = self.num_outputs[stream_name]
        if parser.num_features != expected or parser.feature_type != expected_type:
            raise DataFileError(
                f"Number of features does not match for parser {stream_name}: {expected} (config) vs."
                f" {parser.num_features} (hdf-file). The file is {path}."
            )
        if parser.get_dtype() != self._stream_dtypes[stream_name]:
            raise DataFileError(
                describe(
                    f"Stream {stream_name!r} of HDF file {path!r} has another dtype than in the earlier files",
                    expected=self._stream_dtypes[stream_name],
                    got=parser.get_dtype(),
                )
            )

    def _with_parser(self, corpus_idx: int, key: str) -> tuple[StreamParser, str]:
        """
        :return: (parser on an open file, sequence name)
        """
        stream_name = self.input_stream_name if key == "data" else key
        file_idx = int(np.searchsorted(self._file_start, corpus_idx, side="right")) - 1
        with self._handles.use(self.files[file_idx]) as h5_file:
            cached = self._parser_cache.get((file_idx, stream_name))
            if cached is not None and cached[0] is h5_file:
                parser = cached[1]
            else:
                parser = self._make_parser(h5_file, stream_name, self._seq_names[file_idx], self.files[file_idx])
                self._parser_cache[file_idx, stream_name] = h5_file, parser
        return parser, self._seq_names[file_idx][corpus_idx - self._file_start[file_idx]]

    # Order

    def initialize(self) -> None:
        """
        Set up the first order.

        :raises DatasetError: if there are no files
        """
        if not self.files:
            raise DatasetError(
                describe("The dataset has no data", where=f"{type(self).__name__} {self.name!r}", todo="Give files")
            )
        super().initialize()

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | np.ndarray | None = None,
    ) -> bool:
        """
        :param epoch: from 1
        :param seq_list: tags, instead of the ordering
        :param seq_order: corpus indices, instead of the ordering
        :return: True
        :raises UnknownSeqTagError: if a tag of seq_list is unknown
        """
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        if seq_order is not None:
            order = np.array(seq_order, dtype=np.int64)
        elif seq_list is not None:
            if self._tags is None:
                self._tags = TagTable.from_tags(self.get_all_tags())
            order = self._tags.lookup(list(seq_list), dataset_name=self.name)
        else:
            needs_lens = self._get_seq_ordering_for_epoch(epoch).needs_seq_lens and not self._seq_order_seq_lens_file
            lens = self._get_corpus_lens() if needs_lens else None
            order = np.asarray(self.get_seq_order_for_epoch(epoch, self.get_total_num_seqs(), lens), dtype=np.int64)
        self._order = order
        self._num_seqs = len(order)
        return True

    def _get_corpus_lens(self) -> np.ndarray:
        """:return: int64 [total], lengths in the input stream; read at the first use"""
        if self._seq_lens is None:
            lens = np.empty(self.get_total_num_seqs(), dtype=np.int64)
            for i in range(len(lens)):
                parser, name = self._with_parser(i, "data")
                try:
                    lens[i] = parser.get_seq_length(name)
                except HDF_ERRORS as exc:
                    file_idx = int(np.searchsorted(self._file_start, i, side="right")) - 1
                    raise DataFileError(
                        describe(
                            f"Cannot read the length of sequence {name!r} of stream {self.input_stream_name!r} of HDF file"
                            f" {self.files[file_idx]!r} ({type(exc).__name__}: {exc})"
                        )
                    ) from exc
            self._seq_lens = lens
        return self._seq_lens

    def get_current_seq_order(self) -> np.ndarray:
        """:return: int64 [num_seqs] corpus indices"""
        if self._order is None:
            raise DatasetError(
                describe(
                    "The order of the epoch is not known", where=f"{self}", todo="Call init_seq_order(epoch) first"
                )
            )
        return self._order

    def have_corpus_seq_idx(self) -> bool:
        """:return: True"""
        return True

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """:return: position in the corpus"""
        return int(self.get_current_seq_order()[sorted_seq_idx])

    def get_estimated_seq_length(self, seq_idx: int) -> int:
        """:return: length by which the order sorts"""
        return int(self._get_corpus_lens()[self.get_corpus_seq_idx(seq_idx)])

    def get_estimated_seq_lengths(self) -> np.ndarray:
        """:return: [num_seqs] lengths by which the order sorts"""
        return self._get_corpus_lens()[self.get_current_seq_order()]

    def supports_seq_order_sorting(self) -> bool:
        """:return: True"""
        return True

    # Data

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        order = self.get_current_seq_order()
        if seq_idx >= len(order):
            return None
        return self._get_seq_data(int(order[seq_idx]), seq_idx)

    def _get_seq_data(self, corpus_idx: int, seq_idx: int) -> DatasetSeq:
        features: dict[str, np.ndarray] = {}
        name = ""
        for key in self.num_outputs or ():
            parser, name = self._with_parser(corpus_idx, key)
            try:
                features[key] = parser.get_data(name)
            except HDF_ERRORS as exc:
                raise DataFileError(
                    describe(
                        f"Cannot read sequence {name!r} of stream {key!r} ({type(exc).__name__}: {exc})",
                        where=f"{type(self).__name__} {self.name!r}, files {self.files[:3]}",
                    )
                ) from exc
        features["data"] = features[self.input_stream_name]
        return DatasetSeq(seq_idx=seq_idx, features=features, seq_tag=name)

    def supports_jump(self) -> bool:
        """See :func:`Dataset.supports_jump`."""
        return reads_as_its_class(self)

    def have_get_corpus_seq(self) -> bool:
        """:return: True"""
        return True

    def get_corpus_seq(self, corpus_seq_idx: int) -> DatasetSeq:
        """
        :param corpus_seq_idx: position in the corpus
        """
        return self._get_seq_data(corpus_seq_idx, corpus_seq_idx)

    def known_corpus_lens(self) -> Mapping[str, np.ndarray]:
        """See :func:`Dataset.known_corpus_lens`."""
        return {} if self._seq_lens is None else {"data": self._seq_lens}

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """:return: of all files"""
        return self._file_start[-1]

    def get_all_tags(self) -> list[str]:
        """:return: names of all sequences in file order"""
        return [name for names in self._seq_names for name in names]

    def get_data_keys(self) -> list[str]:
        """:return: all streams and "data", sorted"""
        return sorted({"data", *(self.num_outputs or ())})

    def get_target_list(self) -> list[str]:
        """:return: all streams, sorted"""
        return [key for key in self.get_data_keys() if key != "data" or "data" in (self.num_outputs or ())]

    def _dims(self, key: str) -> tuple[int, int]:
        stream_name = self.input_stream_name if key == "data" else key
        num_features, feature_type = (self.num_outputs or {})[stream_name]
        return int(num_features), int(feature_type)

    def get_data_dim(self, key: str) -> int:
        """:return: feature dimension or number of classes"""
        return self._dims(key)[0]

    def is_data_sparse(self, key: str) -> bool:
        """:return: whether it is class indices"""
        return self._dims(key)[1] == 1

    def get_data_dtype(self, key: str) -> str:
        """:return: dtype name"""
        return self._stream_dtypes[self.input_stream_name if key == "data" else key]

    def get_data_shape(self, key: str) -> list[int | None]:
        """:return: shape without time"""
        dim, feature_type = self._dims(key)
        return [] if feature_type == 1 else [dim]

    def finish_epoch(self, *, free_resources: bool = False) -> None:
        """
        :param free_resources: also close the files
        """
        super().finish_epoch(free_resources=free_resources)
        if free_resources:
            self._parser_cache.clear()
            self._handles.close()


class NextGenHDFDataset(StreamHDFDataset):
    """The name of StreamHDFDataset in older versions."""
