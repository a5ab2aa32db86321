"""HDFDataset: sequences of HDF files. Also the import place of the HDF writers and of the stream file dataset."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy  # noqa: F401  # part of the public names: client code does "from returnn.datasets.hdf import *"
import numpy as np

from returnn._state import state
from returnn.datasets._basic.epoch_lens import EpochLens
from returnn.datasets._basic.epoch_order import checked_order, same_order, select_order
from returnn.datasets._basic.jump import reads_as_its_class
from returnn.datasets._hdf.corpus_knowledge import CorpusKnowledge
from returnn.datasets._hdf.dataset_writer import HDFDatasetWriter
from returnn.datasets._hdf.file_index import FileIndex, check_fits
from returnn.datasets._hdf.files_option import check_files_option
from returnn.datasets._hdf.format import (
    HDF_CTC_INDEX_TRANSCRIPTION_KEY,
    HDF_INPUT_PATT_SIZE_KEY,
    HDF_SEQ_LENGTHS_KEY,
    HDF_TIMES_KEY,
    PHANTOM_TARGET_KEY,
    is_real_vocabulary,
)
from returnn.datasets._hdf.legacy_views import CachedH5Datasets, FileSeqStarts, OpenFiles
from returnn.datasets._hdf.reader import CorpusReader
from returnn.datasets._hdf.seq_block import SeqBlock
from returnn.datasets._hdf.simple_writer import SimpleHDFWriter
from returnn.datasets.basic import Dataset, DatasetSeq
from returnn.datasets.cached import CachedDataset
from returnn.datasets.ragged import Ragged
from returnn.datasets.seq_order import SeqOrder, order_to_array
from returnn.datasets.stream_hdf import (
    FeatureSequenceStreamParser,
    NextGenHDFDataset,
    SegmentAlignmentStreamParser,
    SparseStreamParser,
    StreamHDFDataset,
    StreamParser,
)
from returnn.errors import DatasetError, describe
from returnn.log import log
from returnn.util.cache_manager import cf
from returnn.util.numbers_dict import NumbersDict

__all__ = [
    "HDFDataset",
    "StreamHDFDataset",
    "NextGenHDFDataset",
    "StreamParser",
    "FeatureSequenceStreamParser",
    "SparseStreamParser",
    "SegmentAlignmentStreamParser",
    "SimpleHDFWriter",
    "HDFDatasetWriter",
    "attr_seqLengths",
    "attr_inputPattSize",
    "attr_times",
    "attr_ctcIndexTranscription",
    "numpy",
]

# Streams that are not larger in sum are kept in memory.
_MAX_MEMORY_BYTES = 256 << 20

attr_seqLengths = HDF_SEQ_LENGTHS_KEY
attr_inputPattSize = HDF_INPUT_PATT_SIZE_KEY
attr_times = HDF_TIMES_KEY
attr_ctcIndexTranscription = HDF_CTC_INDEX_TRANSCRIPTION_KEY


class HDFDataset(CorpusKnowledge, CachedDataset):
    """
    Sequences of one or more HDF files, see :mod:`returnn.datasets._hdf.format`.

    Lengths and tags are read in bulk; data in blocks in the order of the epoch, or whole if it is small.
    """

    def __init__(
        self,
        files: Sequence[str | os.PathLike[str]] | None = None,
        use_cache_manager: bool = False,
        **kwargs: Any,
    ):
        """
        :param files: list of file names. The order of files is the order of the corpus
        :param use_cache_manager: read local copies, made by :func:`returnn.util.basic.cf`
        :param kwargs: see CachedDataset and Dataset. Any: each has its own type
        :raises DatasetOptionError: (a TypeError) if files is not a list of file names
        :raises DataFileError: if a file is missing, broken, or does not fit to the others
        """
        files = check_files_option(files, class_name=type(self).__name__, dataset_name=kwargs.get("name"))
        super().__init__(**kwargs)
        if self.partition_epoch > 1 and self._cache_byte_size != 0:
            raise DatasetError(
                "To use partition_epoch in HDFDatasets, disable caching by setting cache_byte_size=0"
                f" (dataset {self.name!r})"
            )
        self._files: list[str] = []  # as given; a copy in another process asks the cache manager again
        self._use_cache_manager = use_cache_manager
        self.files: list[str] = []  # as opened
        self.labels = {}
        self.target_keys: list[str] = []
        self.targets: dict[str, None] = {}
        self.data_dtype: dict[str, str] = {}
        self.timestamps: np.ndarray | None = None
        self._num_seqs = 0
        # The cache of the peers, where it is asked for, means here: keep larger files in memory.
        limit = _MAX_MEMORY_BYTES if self._cache_byte_size >= 0 else sys.maxsize
        self._reader = CorpusReader(max_memory_bytes=max(limit, self._cache_byte_size))
        self._order: SeqOrder | None = None
        self._length_keys: list[str] = []
        self._num_seqs_in_order = 0
        self._block = SeqBlock.empty()
        self._warned_duplicates = False
        self._filter_mask: np.ndarray | None = None
        for filename in files:
            self.add_file(filename)

    # Opening files

    def add_file(self, filename: str) -> None:
        """
        :param filename: of the next file
        :raises DataFileError: if it is missing, broken, or does not fit to the earlier ones
        """
        local_name = cf(filename) if self._use_cache_manager else filename
        index = self._reader.inspect(local_name)
        if not self._reader.files:
            self._take_first_file(index)
        if index.target_keys != self.target_keys:
            print(
                f"Warning: {self}: loaded prev files {self.files}, which defined target keys {self.target_keys}."
                f" Now loaded {local_name} and got target keys {index.target_keys}.",
                file=log.v2,
            )
        check_fits(index, self._reader.files[:1], self.target_keys)
        self._take_labels(index)
        if index.timestamps is not None:
            parts = [index.timestamps] if self.timestamps is None else [self.timestamps, index.timestamps]
            self.timestamps = np.concatenate(parts)
        self._reader.add(index)
        self._files.append(filename)
        self.files.append(local_name)
        stream = index.streams.get(self._length_keys[0])  # its number of frames is the sum of the lengths
        self._num_timesteps += 0 if stream is None else stream.num_frames
        # The order is that of the earlier files.
        self._num_seqs = self._reader.num_seqs
        self._block = SeqBlock.empty()

    def _take_first_file(self, index: FileIndex) -> None:
        self.num_inputs = index.num_inputs
        self.num_outputs = dict(index.num_outputs)
        self.target_keys = list(index.target_keys)
        self.targets = dict.fromkeys(self.target_keys)
        self._length_keys = list(index.columns)
        self.data_dtype = {key: stream.dtype_name for key, stream in index.streams.items()}

    def _take_labels(self, index: FileIndex) -> None:
        """The last file's labels of targets win. The root labels are those of the inputs."""
        labels = dict(index.labels)
        if index.has_inputs and index.root_labels:
            labels["data"] = index.root_labels
        if not index.has_targets and index.root_labels is not None:
            labels[PHANTOM_TARGET_KEY] = index.root_labels
        for key, values in labels.items():
            old = self.labels.get(key)
            if old is values or list(old or ()) == values:
                continue
            if is_real_vocabulary(old) and is_real_vocabulary(values):
                print(
                    f"Warning: {self}: file {index.filename} has other labels of {key!r} than the earlier files"
                    f" {self.files[:3]}; the last ones are taken.",
                    file=log.v2,
                )
        if index.labels:
            self.labels = dict(index.labels)
        self.labels.update({key: values for key, values in labels.items() if key not in index.labels})

    # Views that old client code uses

    @property
    def file_start(self) -> list[int]:
        """:return: number of sequences before each file, and the total at the end"""
        return self._reader.file_start

    @property
    def file_seq_start(self) -> Sequence[np.ndarray]:
        """:return: per file int64 [num_seqs + 1, columns]: where each sequence starts in the arrays of the file"""
        return FileSeqStarts(self._reader, self._length_keys)

    @property
    def h5_files(self) -> Sequence[object]:
        """:return: per file the open h5py.File, opened on access"""
        return OpenFiles(self._reader)

    @property
    def cached_h5_datasets(self) -> Sequence[dict[str, object]]:
        """:return: per file data key -> h5py.Dataset, opened on access"""
        return CachedH5Datasets(self._reader)

    # Order

    def initialize(self) -> None:
        """
        Set up the first order.

        :raises DatasetError: if there are no files
        """
        if not self.num_outputs:
            raise DatasetError(
                describe(
                    "The dataset has no data", where=f"HDFDataset {self.name!r}", todo="Give at least one file in files"
                )
            )
        self.init_seq_order()

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | np.ndarray | None = None,
    ) -> bool:
        """
        :param epoch: from 1
        :param seq_list: tags, instead of the ordering of the options. May repeat
        :param seq_order: corpus indices, instead of the ordering of the options
        :return: whether the order is another than before
        :raises UnknownSeqTagError: if a tag of seq_list is unknown
        """
        Dataset.init_seq_order(self, epoch=epoch)
        order = self._get_order(epoch, seq_list=seq_list, seq_order=seq_order)
        if self._order is not None and same_order(order, self._order):
            return False
        if epoch is not None and state.worker_id == 0:
            print(f"Reinitialize dataset seq order for epoch {epoch}.", file=log.v4)
        self._order = order
        self._seq_index = order
        self._index_map = range(len(order))
        self._order_is_set = True
        self._num_seqs_in_order = len(order)
        self._block = SeqBlock.empty()
        return True

    def _get_order(
        self, epoch: int | None, *, seq_list: Sequence[str] | None, seq_order: Sequence[int] | np.ndarray | None
    ) -> SeqOrder:
        """:return: range, or int64 array"""
        if seq_order is not None:
            return checked_order(seq_order, self._reader.num_seqs, where=f"HDFDataset {self.name!r}")
        if seq_list is not None:
            return self.tag_table.lookup(list(seq_list), dataset_name=self.name)
        if not self._reader.num_seqs:
            raise DatasetError(
                describe(
                    "The dataset has no sequences",
                    where=f"HDFDataset {self.name!r}, files {self.files[:3]}",
                    todo="Check whether the program that wrote the files found any input",
                )
            )
        lens = self._lens_for_order_of_epoch(self._reader.lens(self._length_keys[0]))
        order_ = self.get_seq_order_for_epoch(epoch, self._reader.num_seqs, lens)
        return order_ if isinstance(order_, range) else order_to_array(order_)

    def _filter_order(self, order: SeqOrder, full_order: SeqOrder, num_seqs: int) -> SeqOrder:
        """The tags are compared in the first epoch only."""
        if self._filter_mask is not None and len(self._filter_mask) == num_seqs:
            order = np.asarray(order, dtype=np.int64)
            filtered = order[self._filter_mask[order]]
            if len(filtered):
                return filtered
        self._filter_mask = self._reader.tags.contained_in(self.seq_tags_filter or ())
        return super()._filter_order(order, full_order, num_seqs)

    def _where(self) -> str:
        files: list[str] = getattr(self, "files", [])  # not yet in the constructor of the base
        shown = ", ".join(map(repr, files[:3])) + (f", ... ({len(files)} files)" if len(files) > 3 else "")
        return super()._where() + (f" ({shown})" if files else "")

    def _has_tag_of_filter(self) -> bool:
        return bool(self._reader.tags.contained_in(self.seq_tags_filter or ()).any())

    def get_current_seq_order(self) -> np.ndarray:
        """:return: int64 [num_seqs] corpus indices, do not modify"""
        order = self._order = order_to_array(self._require_order())
        return order

    def _require_order(self) -> SeqOrder:
        """:return: range, or int64 array"""
        if self._order is None:
            raise DatasetError(
                describe(
                    "The order of the epoch is not known", where=f"{self}", todo="Call init_seq_order(epoch) first"
                )
            )
        return self._order

    @property
    def num_seqs(self) -> int:
        """:return: in the current order"""
        return self._num_seqs_in_order

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """
        :param fast: always fast here
        :return: of all files
        """
        return self._reader.num_seqs

    def have_corpus_seq_idx(self) -> bool:
        """:return: True"""
        return True

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """:return: position in the corpus"""
        return int(self._require_order()[sorted_seq_idx])

    def supports_seq_order_sorting(self) -> bool:
        """:return: True"""
        return True

    def batch_set_generator_cache_whole_epoch(self) -> bool:
        """:return: True. Legacy"""
        return True

    # Data of the epoch, one by one

    def load_seqs(self, start: int, end: int) -> None:
        """
        Nothing to do, data is read when asked for.

        :param start: seq idx
        :param end: exclusive; may exceed the number of sequences
        """
        if not 0 <= start <= end or start > self._num_seqs_in_order:
            raise DatasetError(
                f"{self!r}: load_seqs({start}, {end}): expected 0 <= start <= end, start <= {self._num_seqs_in_order}."
            )

    def _load_seqs(self, start: int, end: int) -> None:
        """Nothing to do."""

    def is_cached(self, start: int, end: int, blocking: bool = False) -> bool:
        """:return: True: the data can be asked for at any time"""
        return True

    def get_data(self, seq_idx: int, key: str) -> np.ndarray:
        """
        :param seq_idx: in the order of the epoch
        :param key: data key
        :return: [T] or [T, dim], own memory
        """
        block = self._block
        i = block.index.get(seq_idx)
        if i is None:
            block = self._move_block(seq_idx)
            i = 0
        flat, bounds = block.streams.get(key) or self._load_block_data(block, key)
        return flat[bounds[i] : bounds[i + 1]].copy()

    def get_input_data(self, sorted_seq_idx: int) -> np.ndarray:
        """:return: data of key "data" """
        return self.get_data(sorted_seq_idx, "data")

    def get_targets(self, target: str, sorted_seq_idx: int) -> np.ndarray:
        """:return: data of a target key"""
        return self.get_data(sorted_seq_idx, target)

    def get_tag(self, sorted_seq_idx: int) -> str:
        """:return: tag of this sequence of the epoch"""
        block = self._block
        i = block.index.get(sorted_seq_idx)
        if i is None:
            block = self._move_block(sorted_seq_idx)
            i = 0
        if block.tags is None:
            block.tags = self._reader.select_tags(block.corpus_idxs)
        return block.tags[i]

    def get_seq_length(self, sorted_seq_idx: int) -> NumbersDict:
        """:return: length per data key, including the key "classes" with 0 for files without targets"""
        block = self._block
        i = block.index.get(sorted_seq_idx)
        if i is None:
            block = self._move_block(sorted_seq_idx)
            i = 0
        if block.lens is None:
            columns = [self._reader.lens(key)[block.corpus_idxs].tolist() for key in self._length_keys]
            block.lens = list(zip(*columns, strict=True))
        return NumbersDict(numbers_dict=dict(zip(self._length_keys, block.lens[i], strict=True)))

    def get_estimated_seq_length(self, seq_idx: int) -> int:
        """:return: length by which the order sorts"""
        return int(self._reader.lens(self._length_keys[0])[self.get_corpus_seq_idx(seq_idx)])

    def get_estimated_seq_lengths(self) -> np.ndarray:
        """:return: [num_seqs] lengths by which the order sorts"""
        return self._reader.lens(self._length_keys[0])[order_to_array(self._require_order())]

    def _move_block(self, seq_idx: int) -> SeqBlock:
        """
        Read ahead from this sequence on.

        :param seq_idx: in the order of the epoch
        :return: block that starts there
        """
        order = self._require_order()
        if not 0 <= seq_idx < len(order):
            raise DatasetError(f"{self!r}: sequence {seq_idx} does not exist, the epoch has {len(order)} sequences.")
        self._block = self._block.next(order, int(seq_idx), self._reader, list(self.data_dtype))
        return self._block

    def _load_block_data(self, block: SeqBlock, key: str) -> tuple[np.ndarray, list[int]]:
        self._check_key(key)
        flat, lens = self._reader.read(key, block.corpus_idxs)
        bounds = [0, *np.cumsum(lens).tolist()]
        block.streams[key] = flat, bounds
        return flat, bounds

    def _check_key(self, key: str) -> None:
        if key not in self.data_dtype:
            raise DatasetError(
                describe(
                    "The dataset has no such data key",
                    where=f"HDFDataset {self.name!r}",
                    expected=f"one of {self.get_data_keys()}",
                    got=key,
                )
            )

    # Data of the corpus, independent of the order

    def get_data_by_seq_tag(self, seq_tag: str, key: str) -> np.ndarray:
        """
        :param seq_tag: the last sequence with this tag
        :param key: data key
        :raises UnknownSeqTagError: if there is none
        """
        self._check_key(key)
        return self._reader.read(key, self.tag_table.lookup([seq_tag], dataset_name=self.name))[0]

    def have_get_corpus_seq(self) -> bool:
        """:return: True"""
        return True

    def get_corpus_seq(self, corpus_seq_idx: int) -> DatasetSeq:
        """
        :param corpus_seq_idx: position in the corpus
        :return: its data, independent of the order
        """
        if not 0 <= corpus_seq_idx < self._reader.num_seqs:
            raise DatasetError(
                f"{self!r}: corpus sequence {corpus_seq_idx} does not exist, there are {self._reader.num_seqs}."
            )
        idxs = np.array([corpus_seq_idx], dtype=np.int64)
        features = {key: self._reader.read(key, idxs)[0] for key in self.get_data_keys()}
        return DatasetSeq(
            seq_idx=int(corpus_seq_idx), features=features, seq_tag=self._reader.tags[int(corpus_seq_idx)]
        )

    def _get_seq_length_by_real_idx(self, real_seq_idx: int) -> np.ndarray:
        """:return: lengths of the columns of seqLengths"""
        return np.array([self._reader.lens(key)[real_seq_idx] for key in self._length_keys], dtype=np.int64)

    def _get_tag_by_real_idx(self, real_seq_idx: int) -> str:
        return self._reader.tags[int(real_seq_idx)]

    # Data of the epoch in bulk

    def get_epoch_seq_lens(self, key: str) -> np.ndarray | None:
        """
        :param key: data key
        :return: int64 [num_seqs] in the order of the epoch
        """
        lens = self.epoch_lens(key)
        return None if lens is None else lens[:]

    def epoch_lens(self, key: str) -> EpochLens | None:
        """As :func:`get_epoch_seq_lens`, without making the array of all lengths."""
        if key not in self._length_keys:
            return None
        return EpochLens(self._reader.lens(key), self._require_order())

    def read_seqs(self, seq_idxs: np.ndarray, keys: Sequence[str]) -> dict[str, Ragged] | None:
        """
        :param seq_idxs: int64 [B], positions in the epoch, in any order
        :param keys: data keys
        :return: key -> data of these sequences
        """
        corpus_idxs = select_order(self._require_order(), seq_idxs)
        res = {}
        for key in keys:
            self._check_key(key)
            res[key] = Ragged(*self._reader.read(key, corpus_idxs))
        return res

    def get_seq_tags(self, seq_idxs: Iterable[int] | np.ndarray) -> list[str]:
        """
        :param seq_idxs: [B], positions in the epoch
        :return: their tags
        """
        return self._reader.select_tags(select_order(self._require_order(), np.asarray(seq_idxs, dtype=np.int64)))

    # What data there is

    def get_data_keys(self) -> list[str]:
        """:return: "data" if there are inputs, then the targets"""
        has_inputs = bool(self._reader.files) and self._reader.files[0].has_inputs
        return (["data"] if has_inputs else []) + self.get_target_list()

    def supports_jump(self) -> bool:
        """See :func:`Dataset.supports_jump`."""
        return reads_as_its_class(self)

    def get_target_list(self) -> list[str]:
        """:return: target keys in sorted order, without the placeholder of files without targets"""
        has_targets = bool(self._reader.files) and self._reader.files[0].has_targets
        return list(self.target_keys) if has_targets else []

    def get_data_dim(self, key: str) -> int:
        """:return: feature dimension, or number of classes"""
        if key == "data" and self.num_inputs and self.num_inputs > 0:
            return self.num_inputs
        if key not in (self.num_outputs or {}):
            self._check_key(key)
        return int((self.num_outputs or {})[key][0])

    def get_data_dtype(self, key: str) -> str:
        """:return: name of the dtype in the files; "object" for texts (bytes)"""
        self._check_key(key)
        return self.data_dtype[key]

    def is_data_sparse(self, key: str) -> bool:
        """:return: whether it is class indices: any int type, one axis"""
        return "int" in self.data_dtype.get(key, "") and int((self.num_outputs or {})[key][1]) <= 1

    def get_data_shape(self, key: str) -> list[int | None]:
        """:return: shape without time"""
        self._check_key(key)
        # The stored array knows it exactly, also with several fixed axes.
        return list(self._reader.files[0].streams[key].shape)

    def can_serialize_data(self, key: str) -> bool:
        """:return: whether there is a vocabulary"""
        return is_real_vocabulary(self.labels.get(key))

    def get_num_timesteps(self) -> int:
        """:return: number of frames of all files, by the key that the order sorts by"""
        return int(self._num_timesteps)

    def len_info(self, *, fast: bool = False) -> str:
        """
        :param fast: always fast here
        """
        return f"HDF dataset, sequences: {self.get_total_num_seqs()}, frames: {self.get_num_timesteps()}"

    # Life

    def finish_epoch(self, *, free_resources: bool = False) -> None:
        """
        :param free_resources: also close the files
        """
        super().finish_epoch(free_resources=free_resources)
        self._block = SeqBlock.empty()
        if free_resources:
            self.close()

    def close(self) -> None:
        """Close all files. They are opened again when needed."""
        self._reader.close()
