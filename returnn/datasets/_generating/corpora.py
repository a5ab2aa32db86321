"""
Corpora read from their original files: LibriSpeech transcriptions, enwik8 text.
"""

from __future__ import annotations

import glob
import os
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy

from returnn.datasets._basic.epoch_wise_filter import EpochRanges, EpochWiseFilter, options_of_epoch
from returnn.datasets._basic.predefined_order import idxs_of_tags, predefined_order
from returnn.datasets.basic import DatasetSeq
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.seq_order import SeqOrder, fixed_random_subset, part_of_order
from returnn.errors import ConfigError, DataFileError, DatasetError, NotSupportedError
from returnn.util.markers import OptionalNotImplementedError

__all__ = ["LibriSpeechCorpus", "Enwik8Corpus"]


class _IndexedCorpus(CachedDataset2):
    """Order and tags of a corpus with known tags."""

    def __init__(self, **kwargs: Any) -> None:
        """
        :param kwargs: see :class:`Dataset`. Any: each has its own type
        """
        super().__init__(**kwargs)
        self._seq_order: SeqOrder | None = None

    def _corpus_tag(self, corpus_idx: int) -> str:
        raise NotImplementedError

    def _order_of_epoch(self, epoch: int | None) -> SeqOrder:
        raise NotImplementedError

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """See :func:`Dataset.init_seq_order`."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        order = predefined_order(seq_list, seq_order, order_of_tags=self._order_of_tags)
        self._seq_order = self._order_of_epoch(epoch) if order is None else order
        self._num_seqs = len(self._seq_order)
        return True

    def _order_of_tags(self, seq_list: Sequence[str]) -> numpy.ndarray:
        return idxs_of_tags(seq_list, {tag: i for i, tag in enumerate(self.get_all_tags())}, where=repr(self))

    def supports_seq_order_sorting(self) -> bool:
        """:return: True"""
        return True

    def get_current_seq_order(self) -> Sequence[int] | numpy.ndarray:
        """See :func:`Dataset.get_current_seq_order`."""
        if self._seq_order is None:
            raise OptionalNotImplementedError(f"{self!r}: no order before init_seq_order")
        return self._seq_order

    def have_corpus_seq_idx(self) -> bool:
        """:return: True"""
        return True

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """See :func:`Dataset.get_corpus_seq_idx`."""
        return int(self.get_current_seq_order()[sorted_seq_idx])

    def get_all_tags(self) -> list[str]:
        """See :func:`Dataset.get_all_tags`."""
        return [self._corpus_tag(i) for i in range(self.get_total_num_seqs())]

    def get_tag(self, sorted_seq_idx: int) -> str:
        """See :func:`Dataset.get_tag`. Loads no data."""
        return self._corpus_tag(self.get_corpus_seq_idx(sorted_seq_idx))


class LibriSpeechCorpus(_IndexedCorpus):
    """
    LibriSpeech transcriptions, in the directory layout (or zips) as downloaded.
    Audio features and targets are not available yet: convert to ogg-zip or HDF for these.
    """

    def __init__(
        self,
        path: str,
        prefix: str,
        audio: dict[str, Any] | None,
        orth_post_process: Any = None,
        targets: dict[str, Any] | None = None,
        chars: dict[str, Any] | None = None,
        bpe: dict[str, Any] | None = None,
        use_zip: bool = False,
        use_ogg: bool = False,
        use_cache_manager: bool = False,
        fixed_random_subset: int | float | None = None,
        epoch_wise_filter: EpochRanges | None = None,
        name: str | None = None,
        seq_tag_format: str = "%(subdir)s-%(speaker)i-%(chapter)i-%(seq)04i",
        **kwargs: Any,
    ) -> None:
        """
        :param path: directory with ``train-clean-100`` and so on, or ``train-clean-100.zip``
        :param prefix: "train", "dev", "test", "train-clean", "dev-other", ...
        :param audio: None. Any: options of the feature extraction, not available yet
        :param orth_post_process: None. Any: not available yet
        :param targets: None. Any: options of the vocabulary, not available yet
        :param chars: None, likewise
        :param bpe: None, likewise
        :param use_zip: read PREFIX*.zip
        :param use_ogg: audio files end with .flac.ogg
        :param use_cache_manager: False
        :param fixed_random_subset: number or fraction of the sequences
        :param epoch_wise_filter: (first, last epoch) -> {"subdirs", "max_mean_len", "use_new_filter"}
        :param name: default "prefix:PREFIX"
        :param seq_tag_format: of the sequence tags
        :param kwargs: see :class:`Dataset`. Any: each has its own type
        """
        super().__init__(name=name or f"prefix:{prefix}", **kwargs)
        unavailable = {
            "audio": audio, "orth_post_process": orth_post_process, "targets": targets, "chars": chars, "bpe": bpe,
            "use_cache_manager": use_cache_manager,
        }  # fmt: skip
        for key, value in unavailable.items():
            if value:
                raise NotSupportedError(
                    f"{self._where()}: option {key!r} is not available yet in this version. "
                    "Set it to None, or use HDFDataset with extracted features and targets."
                )
        self.path, self.prefix, self.seq_tag_format = path, prefix, seq_tag_format
        self.audio, self.targets, self.chars, self.bpe = audio, targets, chars, bpe
        self.orth_post_process = orth_post_process
        self.use_zip, self.use_ogg, self.use_cache_manager = use_zip, use_ogg, use_cache_manager
        self.epoch_wise_filter = epoch_wise_filter
        self._fixed_random_subset = fixed_random_subset
        self._check_location()
        self.num_inputs = 0
        self.num_outputs = {"raw": {"dtype": "string", "shape": ()}}
        self.transs = self._collect_transcriptions()
        #: (subdir, speaker, chapter, seq)
        self._reference_seq_order: list[tuple[str, int, int, int]] = sorted(self.transs)
        if fixed_random_subset:
            self._set_fixed_random_subset(fixed_random_subset)
        self._corpus_seq_lens = numpy.array(
            [len(self.transs[key]) for key in self._reference_seq_order], dtype=numpy.int64
        )
        if epoch_wise_filter:
            options_of_epoch(epoch_wise_filter, 1)  # checks the keys

    def _set_fixed_random_subset(self, subset: int | float) -> None:
        self._reference_seq_order = fixed_random_subset(self._reference_seq_order, subset, where=self._where())

    def _check_location(self) -> None:
        if self.prefix.split("-")[0] not in ("train", "dev", "test"):
            raise DatasetError(
                self._describe('option "prefix" is invalid', expected="train..., dev... or test...", got=self.prefix)
            )
        wanted = os.path.join(self.path, "train-clean-100" + (".zip" if self.use_zip else ""))
        if not os.path.exists(wanted):
            raise DataFileError(f"{self._where()}: {wanted!r} does not exist. Check the option path.")

    def _collect_transcriptions(self) -> dict[tuple[str, int, int, int], str]:
        transs = {}
        for subdir, name, content in self._iter_trans_files():
            for line in content.decode("utf8").splitlines():
                seq_name, _, text = line.partition(" ")
                try:
                    speaker, chapter, seq = map(int, seq_name.split("-"))
                except ValueError as exc:
                    raise DataFileError(f"{name!r}: expected lines 'SPEAKER-CHAPTER-SEQ text', got {line!r}.") from exc
                transs[(subdir, speaker, chapter, seq)] = text
        if not transs:
            raise DataFileError(f"{self._where()}: no transcription below {self.path!r} for prefix {self.prefix!r}.")
        return transs

    def _iter_trans_files(self) -> Iterator[tuple[str, str, bytes]]:
        """:return: subdir, name, content"""
        pattern = os.path.join(glob.escape(self.path), glob.escape(self.prefix) + "*")
        if self.use_zip:
            for zip_name in sorted(glob.glob(pattern + ".zip")):
                subdir = os.path.splitext(os.path.basename(zip_name))[0]
                with zipfile.ZipFile(zip_name) as zip_file:
                    for name in zip_file.namelist():
                        if name.startswith(f"LibriSpeech/{subdir}/") and name.endswith(".trans.txt"):
                            yield subdir, name, zip_file.read(name)
            return
        for name in sorted(glob.glob(os.path.join(pattern, "*", "*", "*.trans.txt"))):
            subdir = os.path.relpath(name, self.path).split(os.sep)[0]
            with open(name, "rb") as file:
                yield subdir, name, file.read()

    def _order_of_epoch(self, epoch: int | None) -> SeqOrder:
        order = self.get_seq_order_for_epoch(epoch, self.get_total_num_seqs(), self._corpus_seq_lens)
        for opts in options_of_epoch(self.epoch_wise_filter or {}, epoch):
            order = self._filter_order_by(opts, numpy.asarray(order, dtype=numpy.int64))
            if not len(order):
                raise DatasetError(f"{self!r}: no sequences left after epoch_wise_filter {opts!r}.")
        return order

    def _filter_order_by(self, opts: Any, order: numpy.ndarray) -> SeqOrder:
        """:param opts: of an epoch range. Any: each option has its own type"""
        unknown = sorted(set(opts) - {"subdirs", "max_mean_len", "use_new_filter"})
        if unknown:
            raise ConfigError(
                f"{self._where()}: epoch_wise_filter: unknown options {unknown}. "
                "Known are 'subdirs', 'max_mean_len', 'use_new_filter'."
            )
        if opts.get("subdirs") is not None:
            subdirs = set(opts["subdirs"])
            order = numpy.array([i for i in order if self._reference_seq_order[i][0] in subdirs], dtype=numpy.int64)
        max_mean_len = opts.get("max_mean_len")
        if not max_mean_len or not len(order):
            return order
        if opts.get("use_new_filter"):
            return EpochWiseFilter.filter_epoch({"max_mean_len": max_mean_len}, order, self._corpus_seq_lens, self.name)
        lens = self._corpus_seq_lens[order]
        order = order[numpy.lexsort((order, lens))]
        means = numpy.cumsum(self._corpus_seq_lens[order]) / numpy.arange(1, len(order) + 1)
        low, high = 1, len(order) + 1
        while True:
            mid = (low + high) // 2
            if means[mid - 1] <= max_mean_len:
                return order[:mid]
            if mid <= 1:
                return order[:0]
            high = mid

    def _corpus_tag(self, corpus_idx: int) -> str:
        subdir, speaker, chapter, seq = self._reference_seq_order[corpus_idx]
        return self.seq_tag_format % {"subdir": subdir, "speaker": speaker, "chapter": chapter, "seq": seq}

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """See :func:`Dataset.get_total_num_seqs`."""
        return len(self._reference_seq_order)

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        if seq_idx >= self.num_seqs:
            return None
        corpus_idx = self.get_corpus_seq_idx(seq_idx)
        raw = numpy.empty((), dtype=object)
        raw[()] = self.transs[self._reference_seq_order[corpus_idx]]
        return DatasetSeq(
            seq_idx=seq_idx, features={"raw": raw, "data": numpy.array(0.0)}, seq_tag=self._corpus_tag(corpus_idx)
        )


class Enwik8Corpus(_IndexedCorpus):
    """The first 10^8 bytes of Wikipedia (hutter prize) as language modeling data, from ``enwik8.hdf5``."""

    def __init__(
        self,
        path: str,
        subset: str,
        seq_len: int,
        batch_num_seqs: int | None = None,
        subsubset: int | tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        """
        :param path: directory with enwik8.hdf5: attribute "unique" (byte values), datasets "split/SUBSET/default"
        :param subset: "training", "validation" or "test"
        :param seq_len: number of bytes of each sequence
        :param batch_num_seqs: order such that each batch of that many sequences continues the one before
        :param subsubset: use only bytes [0, end) or [start, end)
        :param kwargs: see :class:`Dataset`. Any: each has its own type
        """
        super().__init__(**kwargs)
        if subset not in ("training", "validation", "test"):
            raise DatasetError(
                self._describe('option "subset" is invalid', expected="training, validation or test", got=subset)
            )
        if not isinstance(seq_len, int) or seq_len <= 0:
            raise DatasetError(self._describe('option "seq_len" is invalid', expected="int > 0", got=seq_len))
        if batch_num_seqs is not None and self.seq_ordering != "default":
            raise DatasetError(
                self._describe(
                    'option "batch_num_seqs" needs', expected='seq_ordering="default"', got=self.seq_ordering
                )
            )
        self.path, self.subset, self.seq_len = path, subset, seq_len
        self._batch_num_seqs = batch_num_seqs
        self._subsubset = subsubset
        self._read_file(os.path.join(path, "enwik8.hdf5"))
        # A sequence needs one more byte for its shifted targets.
        self._starts = numpy.arange(0, len(self._data) - 1, seq_len, dtype=numpy.int64)
        self._lens = numpy.minimum(self._starts + seq_len, len(self._data) - 1) - self._starts
        if not len(self._starts):
            raise DatasetError(f"{self._where()}: no sequences in {subset!r} with subsubset {subsubset!r}.")

    def _read_file(self, filename: str) -> None:
        if not os.path.exists(filename):
            raise DataFileError(
                f"{self._where()}: {filename!r} does not exist. It is not downloaded: write it from enwik8.zip "
                "(mattmahoney.net/dc), with attribute 'unique' and datasets 'split/{training,validation,test}/default'."
            )
        try:
            with h5py.File(filename, "r") as file:
                unique = numpy.asarray(file.attrs["unique"])
                dataset = file[f"split/{self.subset}/default"]
                limits = self._subsubset
                start, end = (0, None) if limits is None else (0, limits) if isinstance(limits, int) else limits
                self._data: numpy.ndarray = dataset[start:end]
        except (OSError, KeyError) as exc:
            raise DataFileError(f"{self._where()}: cannot read {filename!r}: {exc}.") from exc
        num = len(unique)
        self.num_inputs = num
        self.num_outputs = {"data": (num, 1), "classes": (num, 1)}
        self.labels = {key: [chr(int(c)) for c in unique] for key in ("data", "classes")}

    def _order_of_epoch(self, epoch: int | None) -> SeqOrder:
        num_seqs = self.get_total_num_seqs()
        if self._batch_num_seqs is None:
            return self.get_seq_order_for_epoch(epoch, num_seqs, self._lens)
        rows = self._batch_num_seqs
        order = numpy.arange(num_seqs - num_seqs % rows, dtype=numpy.int64).reshape(rows, -1).T.reshape(-1)
        return part_of_order(order, epoch=epoch, partition_epoch=self.partition_epoch)

    def supports_sharding(self) -> bool:
        """:return: not with batch_num_seqs, where the order of sequences has a meaning"""
        return self._batch_num_seqs is None

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """See :func:`Dataset.get_total_num_seqs`."""
        return len(self._starts)

    def _corpus_tag(self, corpus_idx: int) -> str:
        return f"offset_{self._starts[corpus_idx]}_{self._lens[corpus_idx]}"

    def get_data_keys(self) -> list[str]:
        """:return: data and classes"""
        return ["data", "classes"]

    def get_target_list(self) -> list[str]:
        """:return: classes"""
        return ["classes"]

    def get_data_dtype(self, key: str) -> str:
        """:return: as in the file"""
        return str(self._data.dtype)

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        if seq_idx >= self.num_seqs:
            return None
        corpus_idx = self.get_corpus_seq_idx(seq_idx)
        start = int(self._starts[corpus_idx])
        end = start + int(self._lens[corpus_idx])
        return DatasetSeq(
            seq_idx=seq_idx,
            features=self._data[start:end],
            targets=self._data[start + 1 : end + 1],
            seq_tag=self._corpus_tag(corpus_idx),
        )
