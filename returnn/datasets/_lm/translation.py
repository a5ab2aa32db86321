"""
TranslationDataset: two text files, line by line source and target, with word vocabularies.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy

from returnn.datasets._lm.word_files import WordIds, find_file, labels_of_words, load_word_vocab, read_word_columns
from returnn.datasets.basic import DatasetSeq
from returnn.datasets.indexed import IndexedDataset
from returnn.datasets.ragged import Ragged
from returnn.datasets.seq_lists import load_seq_list_file
from returnn.errors import DataFileError, DatasetOptionError, UnknownDataKeyError, UnknownSeqTagError
from returnn.util.cache_manager import cf
from returnn.util.numbers_dict import NumbersDict

__all__ = ["TranslationDataset"]

_TAG_PREFIX = "line-"


class TranslationDataset(IndexedDataset):
    """
    Files in one directory: ``source.POSTFIX`` and ``target.POSTFIX`` (text, one sequence per line, UTF-8, maybe with
    ``.gz``), ``source.vocab.pkl`` and ``target.vocab.pkl`` (pickled dict word -> index).

    Data: int32 word indices, "data" of the source and "classes" of the target. All text is read once, at the first
    epoch, and kept as two flat arrays.
    """

    source_file_prefix: ClassVar[str] = "source"
    target_file_prefix: ClassVar[str] = "target"
    main_source_data_key: ClassVar[str] = "data"
    main_target_data_key: ClassVar[str] = "classes"

    def __init__(
        self,
        path: str,
        file_postfix: str,
        source_postfix: str = "",
        target_postfix: str = "",
        source_only: bool = False,
        search_without_reference: bool = False,
        unknown_label: str | Mapping[str, str | None] | None = None,
        seq_list_file: str | None = None,
        use_cache_manager: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        :param path: of the directory
        :param file_postfix: e.g. "train" for the files source.train and target.train
        :param source_postfix: appended to each source line, e.g. " </S>" (with the blank, or it belongs to the last word)
        :param target_postfix: likewise
        :param source_only: no target file and vocabulary
        :param search_without_reference: no target file, but its vocabulary is there
        :param unknown_label: word that stands for unknown words; or one per data key. Without, these are errors
        :param seq_list_file: text with a line number (from 0) per line, maybe repeated: these are the corpus, in that order
        :param use_cache_manager: read local copies, made by :func:`returnn.util.basic.cf`
        :param kwargs: see Dataset. Any: each has its own type
        :raises DataFileError: a file is missing or broken
        """
        super().__init__(**kwargs)
        paths = {"path": path, "file_postfix": file_postfix}
        for name, value in {**paths, "source_postfix": source_postfix, "target_postfix": target_postfix}.items():
            if not isinstance(value, (str, os.PathLike) if name in paths else str):
                raise DatasetOptionError(self._describe(f'option "{name}" is invalid', expected="str", got=value))
        self.path = os.fspath(path)
        self.file_postfix = file_postfix
        self.source_postfix = source_postfix
        self.target_postfix = target_postfix
        self.source_only = source_only
        self.search_without_reference = search_without_reference
        # A copy: the dict of the user stays as it is.
        self.unknown_label = dict(unknown_label) if isinstance(unknown_label, Mapping) else unknown_label
        self.seq_list_file = seq_list_file
        self.use_cache_manager = use_cache_manager
        self._files: dict[str, str] = {}
        self._vocab_files: list[str] = []
        self._keys_of_file: dict[str, list[str]] = {}
        self._word_ids: dict[str, WordIds] = {}
        self.num_outputs = {}
        self._columns: dict[str, tuple[numpy.ndarray, numpy.ndarray]] = {}
        self._num_lines: int | None = None
        self._line_of_seq: numpy.ndarray | None = None  # of the corpus; None: the same
        self._add_sources()
        if not source_only:
            self._add_targets()
        self._check_unknown_label()
        self.num_inputs = self.num_outputs[self.main_source_data_key][0]

    def _add_sources(self) -> None:
        self._add_file(self.source_file_prefix, [self.main_source_data_key])

    def _add_targets(self) -> None:
        self._add_file(self.target_file_prefix, [self.main_target_data_key], read=not self.search_without_reference)

    def _add_file(self, prefix: str, keys: list[str], *, read: bool = True) -> None:
        """
        :param prefix: of the file name
        :param keys: data keys of the factors of its words
        :param read: whether there is data, not only a vocabulary
        """
        if read:
            path = os.path.join(self.path, f"{prefix}.{self.file_postfix}")
            self._files[prefix] = find_file(path, what="Data", gz=True)
            self._keys_of_file[prefix] = keys
        for key in keys:
            # The first factor is named by the file.
            name = prefix if key in (self.main_source_data_key, self.main_target_data_key) else key
            self._add_vocab(key, os.path.join(self.path, f"{name}.vocab.pkl"))

    def _add_vocab(self, key: str, path: str) -> None:
        filename = find_file(path, what="Vocab", gz=False)
        self._vocab_files.append(filename)
        vocab = load_word_vocab(filename, cached=self._cached)
        self._word_ids[key] = WordIds(vocab, unknown_label=self._unknown_label_of(key), key=key, filename=filename)
        self.labels[key] = labels_of_words(vocab)
        assert self.num_outputs is not None
        self.num_outputs[key] = [len(self.labels[key]), 1]

    @property
    def _cached(self) -> Any:
        return cf if self.use_cache_manager else None

    def _unknown_label_of(self, key: str) -> str | None:
        return self.unknown_label.get(key) if isinstance(self.unknown_label, dict) else self.unknown_label

    def _check_unknown_label(self) -> None:
        if self.unknown_label is not None and not isinstance(self.unknown_label, (str, dict)):
            raise DatasetOptionError(
                self._describe(
                    'option "unknown_label" is invalid',
                    expected="a word, or a dict data key -> word",
                    got=self.unknown_label,
                )
            )
        unused = set(self.unknown_label if isinstance(self.unknown_label, dict) else ()).difference(self._word_ids)
        if unused and not self.source_only:
            raise DatasetOptionError(
                self._describe(
                    f'option "unknown_label" has unknown data keys {sorted(unused)}',
                    expected=f"keys of {sorted(self._word_ids)}",
                    got=self.unknown_label,
                )
            )

    # ---- reading

    def _postfix_of(self, prefix: str) -> str:
        return self.source_postfix if prefix == self.source_file_prefix else self.target_postfix

    def _load(self) -> None:
        """Read all files, if not done yet."""
        if self._num_lines is not None:
            return
        columns: dict[str, tuple[numpy.ndarray, numpy.ndarray]] = {}
        num_lines: dict[str, int] = {}
        for prefix in self._files:
            columns.update(self._read_file(prefix))
            num_lines[prefix] = len(columns[self._keys_of_file[prefix][0]][1]) - 1
        if len(set(num_lines.values())) > 1:
            raise DataFileError(
                f"{self._where()}: the files must have the same number of lines, but "
                + ", ".join(f"{self._files[prefix]!r} has {num}" for prefix, num in num_lines.items())
                + "."
            )
        num = next(iter(num_lines.values()))
        if self.seq_list_file:
            self._line_of_seq = self._read_seq_list(num)
        self._columns = columns
        self._num_lines = num

    def _read_file(self, prefix: str) -> dict[str, tuple[numpy.ndarray, numpy.ndarray]]:
        """:return: key -> (flat data, int64 offsets of the lines)"""
        keys = self._keys_of_file[prefix]
        flats, offsets = read_word_columns(
            self._files[prefix],
            postfix=self._postfix_of(prefix),
            vocabs=[self._word_ids[key] for key in keys],
            keys=keys,
            separator=self._separator,
            cached=self._cached,
        )
        return {key: (flat, offsets) for key, flat in zip(keys, flats, strict=True)}

    @property
    def _separator(self) -> str:
        return "|"

    def _read_seq_list(self, num_lines: int) -> numpy.ndarray:
        """:return: int64, line number of each sequence of the corpus"""
        assert self.seq_list_file
        lines = []
        for number, text in enumerate(load_seq_list_file(self.seq_list_file), 1):
            text = str(text).strip()
            if not (text.isascii() and text.isdigit() and int(text) < num_lines):
                raise DataFileError(
                    f"seq_list_file {self.seq_list_file!r}, line {number}: expected a line number from 0 to "
                    f"{num_lines - 1}, got {text!r}."
                )
            lines.append(int(text))
        return numpy.array(lines, dtype=numpy.int64)

    def _lines(self, corpus_idxs: numpy.ndarray) -> numpy.ndarray:
        """:return: line numbers"""
        return corpus_idxs if self._line_of_seq is None else self._line_of_seq[corpus_idxs]

    def _select(self, key: str, corpus_idxs: numpy.ndarray) -> Ragged:
        if key not in self._columns:
            raise UnknownDataKeyError(f"{self!r}: no data key {key!r}, only {sorted(self._columns)}.")
        flat, offsets = self._columns[key]
        lines = self._lines(corpus_idxs)
        if len(lines) == 1:
            part = flat[offsets[lines[0]] : offsets[lines[0] + 1]].copy()
            return Ragged(part, numpy.array([len(part)]))
        lens = offsets[lines + 1] - offsets[lines]
        out_starts = numpy.cumsum(lens) - lens
        places = numpy.repeat(offsets[lines] - out_starts, lens) + numpy.arange(int(lens.sum()))
        return Ragged(flat[places], lens)

    def _corpus_lens(self, key: str) -> numpy.ndarray:
        """:return: int64 over the corpus"""
        lens = numpy.diff(self._columns[key][1])
        return lens if self._line_of_seq is None else lens[self._line_of_seq]

    # ---- corpus

    def _find_tags(self, tags: Sequence[str]) -> numpy.ndarray:
        """:return: corpus indices; of a line that is there several times the last"""
        self._load()
        assert self._num_lines is not None
        seq_of_line = numpy.arange(self._num_lines)
        if self._line_of_seq is not None:
            seq_of_line = numpy.full(self._num_lines, -1, dtype=numpy.int64)
            seq_of_line[self._line_of_seq] = numpy.arange(len(self._line_of_seq))
        order = numpy.empty(len(tags), dtype=numpy.int64)
        for i, tag in enumerate(tags):
            text = tag[len(_TAG_PREFIX) :] if tag.startswith(_TAG_PREFIX) else ""
            is_line = text.isascii() and text.isdigit() and int(text) < self._num_lines
            order[i] = seq_of_line[int(text)] if is_line else -1
        unknown = numpy.flatnonzero(order < 0)
        if len(unknown):
            raise UnknownSeqTagError(
                f"{self._where()}: {len(unknown)} of {len(tags)} tags are not in the corpus, e.g. "
                f"{[tags[i] for i in unknown[:3]]}. Its tags are line-0 to line-{self._num_lines - 1}"
                + (", as far as seq_list_file has them." if self._line_of_seq is not None else ".")
            )
        return order

    def _corpus_tags(self, corpus_idxs: numpy.ndarray) -> list[str]:
        return [f"{_TAG_PREFIX}{line}" for line in self._lines(corpus_idxs).tolist()]

    def _lens_for_order(self) -> numpy.ndarray:
        """:return: number of source words, with postfix"""
        return self._corpus_lens(self.main_source_data_key)

    def corpus_files(self) -> Iterable[str]:
        """See :func:`Dataset.corpus_files`."""
        return [*self._files.values(), *self._vocab_files]

    def known_corpus_lens(self) -> Mapping[str, numpy.ndarray]:
        """See :func:`Dataset.known_corpus_lens`."""
        return {key: self._corpus_lens(key) for key in self._columns}

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """
        :param fast: do not read the files for it
        :raises NotImplementedError: with fast, before they are read
        """
        if self._num_lines is None:
            if fast:
                raise NotImplementedError(f"{self!r}: the number of lines is not known before the first epoch")
            self._load()
        assert self._num_lines is not None
        return self._num_lines if self._line_of_seq is None else len(self._line_of_seq)

    def get_seq_length(self, sorted_seq_idx: int) -> NumbersDict:
        """:return: data key -> number of words"""
        line = self._lines(self._require_order()[[sorted_seq_idx]])[0]
        return NumbersDict({key: int(bounds[line + 1] - bounds[line]) for key, (_, bounds) in self._columns.items()})

    # ---- data

    def get_data_keys(self) -> list[str]:
        """:return: those with data"""
        return sorted(key for keys in self._keys_of_file.values() for key in keys)

    def get_data_dtype(self, key: str) -> str:
        """:return: "int32" """
        return "int32"

    def _load_seq(self, seq_idx: int, corpus_idx: int) -> DatasetSeq:
        idx = numpy.array([corpus_idx])
        self._load()
        features = {key: self._select(key, idx).flat for key in self._columns}
        return DatasetSeq(seq_idx=seq_idx, features=features, seq_tag=f"{_TAG_PREFIX}{int(self._lines(idx)[0])}")

    def get_epoch_seq_lens(self, key: str) -> numpy.ndarray:
        """:return: int64 [num_seqs], in the order of the epoch"""
        return self._corpus_lens(key)[self._require_order()]

    def read_seqs(self, seq_idxs: numpy.ndarray, keys: Sequence[str]) -> dict[str, Ragged]:
        """
        :param seq_idxs: in the order of the epoch
        :param keys: data keys
        """
        idxs = self._require_order()[seq_idxs]
        return {key: self._select(key, idxs) for key in keys}
