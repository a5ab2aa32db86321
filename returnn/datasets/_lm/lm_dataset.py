"""
LmDataset: sequences of class indices from the texts of corpus files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy

from returnn.datasets._basic.jump import are_plain_functions
from returnn.datasets._lm.lm_corpus import LmCorpus
from returnn.datasets._lm.phone_seqs import PhoneSeqGenerator
from returnn.datasets._lm.symbol_files import load_replace_map, load_symbol_list, load_symbol_map
from returnn.datasets._lm.text_encoder import InvalidText, PhoneEncoder, SymbolEncoder, TextEncoder, VocabEncoder
from returnn.datasets._lm.token_table import TokenTable
from returnn.datasets.basic import DatasetSeq
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.indexed import IndexedDataset
from returnn.datasets.ragged import Ragged
from returnn.datasets.util.post_processing import get_post_processor_function, is_only_cleaners
from returnn.datasets.util.vocabulary import Vocabulary
from returnn.errors import DatasetError, DatasetOptionError, UserError
from returnn.log import log
from returnn.util.cache_manager import cf
from returnn.util.kwargs import help_on_type_error_wrong_args
from returnn.util.markers import OptionalNotImplementedError

__all__ = ["LmDataset"]

_MAX_INT8_LABELS = 128
# Texts of that size are converted all at once (below a few seconds), and kept: then batches can be made in bulk.
_MAX_BULK_BYTES = 4 << 20
FileNames = str | os.PathLike[str] | Sequence[str]


class LmDataset(IndexedDataset):
    """
    Each line of a text file, or each segment of a Bliss corpus, is one sequence: "data" are the indices of its characters,
    words, labels of a vocabulary, or phonemes. The tags are ``line-N``, counted over all files, from 0, without the
    dropped empty lines.

    The files are indexed at the first use and mapped into memory; texts are converted when they are asked for.
    """

    def __init__(
        self,
        corpus_file: FileNames | Callable[[], FileNames],
        skip_empty_lines: bool = True,
        orth_symbols_file: str | None = None,
        orth_symbols_map_file: str | None = None,
        orth_replace_map_file: str | None = None,
        word_based: bool = False,
        word_end_symbol: str | None = None,
        seq_end_symbol: str | None = "[END]",
        unknown_symbol: str | None = "[UNKNOWN]",
        parse_orth_opts: Mapping[str, Any] | None = None,
        phone_info: Mapping[str, Any] | None = None,
        add_random_phone_seqs: int = 0,
        auto_replace_unknown_symbol: bool = False,
        log_auto_replace_unknown_symbols: int = 10,
        log_skipped_seqs: int = 10,
        error_on_invalid_seq: bool = True,
        add_delayed_seq_data: bool = False,
        delayed_seq_data_start_symbol: str = "[START]",
        *,
        use_cache_manager: bool = False,
        seq_list_file: str | Sequence[str] | None = None,
        orth_vocab: Mapping[str, Any] | Vocabulary | None = None,
        orth_post_process: Any = None,
        dtype: str | None = None,
        tag_prefix: str = "line-",
        random_state_per_seq: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Exactly one of orth_symbols_file, orth_symbols_map_file, orth_vocab and phone_info defines the data.

        :param corpus_file: Bliss XML or text lines, ``.gz`` or not; one, or several to be concatenated, or a function
            that gives these
        :param skip_empty_lines: drop empty lines of text files
        :param orth_symbols_file: one symbol per line
        :param orth_symbols_map_file: symbol -> index: pickled dict, Python dict as text, or lines ``<symbol> <index>``
        :param orth_replace_map_file: JSON dict symbol -> replacement
        :param word_based: the symbols are words, else characters
        :param word_end_symbol: with characters: this symbol after each word, instead of blanks
        :param seq_end_symbol: symbol after each sequence; None: none
        :param unknown_symbol: see auto_replace_unknown_symbol
        :param parse_orth_opts: for :func:`returnn.util.basic.parse_orthography`
        :param phone_info: options of :class:`PhoneSeqGenerator`
        :param add_random_phone_seqs: with phone_info: that many more data keys "random0", ... with random phonemes
        :param auto_replace_unknown_symbol: replace unknown symbols by unknown_symbol, or by nothing if that is None
        :param log_auto_replace_unknown_symbols: log that many of these
        :param log_skipped_seqs: log that many of the sequences skipped
        :param error_on_invalid_seq: a text with unknown symbols is an error, else it is skipped
        :param add_delayed_seq_data: one more data key "delayed": the same, but shifted by one
        :param delayed_seq_data_start_symbol: its first symbol
        :param use_cache_manager: read local copies, made by :func:`returnn.util.basic.cf`
        :param seq_list_file: tags of the sequences, one per line: one file, or one for each corpus file
        :param orth_vocab: vocabulary, or its options. No end symbol is added
        :param orth_post_process: changes each text first, see :func:`get_post_processor_function`. Any: as there
        :param dtype: of the data. Default int8 up to 128 labels, else int32
        :param tag_prefix: of the tags
        :param random_state_per_seq: random draws depend on the sequence only. False: one stream per epoch, as the peers;
            the data then depend on the number of workers. None: as the reader of the dataset wants it
        :param kwargs: see Dataset. Any: each has its own type
        :raises DatasetOptionError: invalid options
        :raises DataFileError: a file is missing or broken
        """
        super().__init__(**kwargs)
        self.corpus_file = corpus_file
        self.skip_empty_lines = skip_empty_lines
        self.orth_symbols_file = orth_symbols_file
        self.orth_symbols_map_file = orth_symbols_map_file
        self.orth_replace_map_file = orth_replace_map_file
        self.word_based = word_based
        self.word_end_symbol = word_end_symbol
        self.seq_end_symbol = seq_end_symbol
        self.unknown_symbol = unknown_symbol
        for name, value in {"parse_orth_opts": parse_orth_opts, "phone_info": phone_info}.items():
            if not (value is None or isinstance(value, Mapping)):
                raise DatasetOptionError(self._describe(f'option "{name}" is invalid', expected="a dict", got=value))
        self.parse_orth_opts = dict(parse_orth_opts or {})
        self.phone_info = dict(phone_info) if phone_info is not None else None
        self.add_random_phone_seqs = add_random_phone_seqs
        self.auto_replace_unknown_symbol = auto_replace_unknown_symbol
        self.log_auto_replace_unknown_symbols = log_auto_replace_unknown_symbols
        self.log_skipped_seqs = log_skipped_seqs
        self.error_on_invalid_seq = error_on_invalid_seq
        self.add_delayed_seq_data = add_delayed_seq_data
        self.delayed_seq_data_start_symbol = delayed_seq_data_start_symbol
        self.use_cache_manager = use_cache_manager
        self.seq_list_file = seq_list_file
        self.orth_vocab = orth_vocab
        self.orth_post_process = orth_post_process
        self.dtype = dtype
        self.tag_prefix = tag_prefix
        self.random_state_per_seq = random_state_per_seq
        self._check_which_labels()
        self._encoder = self._create_encoder()
        self._post_process = get_post_processor_function(orth_post_process) if orth_post_process else None
        self._init_data_info()
        self._corpus: LmCorpus | None = None
        self._text_lens: numpy.ndarray | None = None
        self._tokens: TokenTable | None = None
        self._next_in_order = 0
        self._next_seq_idx = 0
        self._num_skipped = 0
        self._raise_on_invalid = error_on_invalid_seq

    # ---- options

    def _check_which_labels(self) -> None:
        given = {
            "orth_vocab": self.orth_vocab,
            "orth_symbols_file": self.orth_symbols_file,
            "orth_symbols_map_file": self.orth_symbols_map_file,
            "phone_info": self.phone_info,
        }
        names = [name for name, value in given.items() if value is not None]
        if not names:
            raise DatasetOptionError(f"LmDataset: need {' or '.join(given)} ({self._where()}).")
        if len(names) > 1:
            raise DatasetOptionError(f"{self._where()}: give only one of the options {', '.join(names)}.")
        if self.orth_vocab is not None and (
            self.parse_orth_opts
            or self.auto_replace_unknown_symbol
            or self.orth_replace_map_file
            or self.word_end_symbol
        ):
            raise DatasetOptionError(
                f"{self._where()}: with orth_vocab, the options parse_orth_opts, orth_replace_map_file, word_end_symbol "
                "and auto_replace_unknown_symbol have no meaning: remove them. The vocabulary has unknown_label."
            )
        if self.add_random_phone_seqs and self.phone_info is None:
            raise DatasetOptionError(f"{self._where()}: option add_random_phone_seqs needs phone_info.")

    def _create_encoder(self) -> TextEncoder:
        if self.orth_vocab is not None:
            return VocabEncoder(Vocabulary.from_option(self.orth_vocab, option="orth_vocab", where=self._where()))
        if self.phone_info is not None:
            return PhoneEncoder(self._create_seq_gen(self.phone_info))
        if self.orth_symbols_file is not None:
            symbols = load_symbol_list(self.orth_symbols_file)
        else:
            assert self.orth_symbols_map_file is not None
            symbols = load_symbol_map(self.orth_symbols_map_file)
        replace_map = {}
        if self.orth_replace_map_file is not None:
            replace_map = load_replace_map(self.orth_replace_map_file, word_based=self.word_based)
        return SymbolEncoder(
            symbols,
            parse_opts=self.parse_orth_opts,
            replace_map=replace_map,
            word_based=self.word_based,
            word_end_symbol=self.word_end_symbol,
            seq_end_symbol=self.seq_end_symbol,
            auto_replace_unknown=self.auto_replace_unknown_symbol,
            unknown_symbol=self.unknown_symbol,
            num_log_unknown=self.log_auto_replace_unknown_symbols,
        )

    def _create_seq_gen(self, opts: Mapping[str, Any]) -> PhoneSeqGenerator:
        """:param opts: Any: each has its own type"""
        try:
            return PhoneSeqGenerator(**opts)
        except TypeError as exc:
            problem = "" if isinstance(exc, UserError) else help_on_type_error_wrong_args(PhoneSeqGenerator, opts)
            if not problem:
                raise
            raise DatasetOptionError(f'{self._where()}: option "phone_info": {problem}') from exc

    def _init_data_info(self) -> None:
        labels = self._encoder.labels
        num_labels = len(labels)
        default = "int8" if num_labels <= _MAX_INT8_LABELS else "int32"
        try:
            self._data_dtype = numpy.dtype(self.dtype or default)
            is_fine = self._data_dtype.kind in "iu" and numpy.iinfo(self._data_dtype).max >= num_labels - 1
        except TypeError:  # no such type
            is_fine = False
        if not is_fine:
            raise DatasetOptionError(
                self._describe(
                    'option "dtype" is invalid', expected=f"an integer type for {num_labels} labels", got=self.dtype
                )
            )
        keys = ["data"]
        if self.add_delayed_seq_data:
            keys.append("delayed")
        keys += [f"random{i}" for i in range(self.add_random_phone_seqs)]
        self.num_inputs = num_labels
        self.num_outputs = {key: [num_labels, 1] for key in keys}
        self.labels = dict.fromkeys(keys, labels)
        self._start_idx: int | None = None
        if self.add_delayed_seq_data:
            symbol = self.delayed_seq_data_start_symbol
            self._start_idx = self._encoder.find_label(symbol)
            if self._start_idx is None:
                raise DatasetOptionError(
                    f"{self._where()}: delayed_seq_data_start_symbol {symbol!r} is not one of the {num_labels} labels."
                )

    # ---- corpus

    @property
    def corpus(self) -> LmCorpus:
        """:return: all texts; the files are read at the first use"""
        if self._corpus is None:
            tags = None if self.seq_list_file is None else self._as_names("seq_list_file", self.seq_list_file)
            self._corpus = LmCorpus.from_files(
                self._as_names("corpus_file", self.corpus_file),
                skip_empty_lines=self.skip_empty_lines,
                tag_prefix=self.tag_prefix,
                seq_list_files=tags,
                cached=cf if self.use_cache_manager else None,
                name=self.name,
            )
        return self._corpus

    def _as_names(self, option: str, value: FileNames | Callable[[], FileNames]) -> list[str]:
        """:return: list of file names"""
        given = value() if callable(value) else value
        names = [given] if isinstance(given, (str, os.PathLike)) else given
        is_list = isinstance(names, Sequence) and len(names) > 0
        if not is_list or not all(isinstance(name, (str, os.PathLike)) for name in names):
            expected = "the name of a file, a list of names, or a function that gives these"
            raise DatasetOptionError(self._describe(f'option "{option}" is invalid', expected=expected, got=names))
        return [os.fspath(name) for name in names]

    def corpus_files(self) -> Iterable[str]:
        """See :func:`Dataset.corpus_files`."""
        return [] if self._corpus is None else self._corpus.filenames

    def known_corpus_lens(self) -> Mapping[str, numpy.ndarray]:
        """See :func:`Dataset.known_corpus_lens`."""
        return {} if self._text_lens is None else {"characters": self._text_lens}

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """
        :param fast: raise instead of reading files
        :return: number of texts, including those that are skipped as invalid
        """
        if fast and self._corpus is None:
            raise NotImplementedError(f"{self!r}: the number of lines is not known before the first epoch")
        return len(self.corpus)

    def _find_tags(self, tags: Sequence[str]) -> numpy.ndarray:
        return self.corpus.find_tags(tags, where=self._where())

    def _corpus_tags(self, corpus_idxs: numpy.ndarray) -> list[str]:
        return self.corpus.select_tags(corpus_idxs)

    def _lens_for_order(self) -> numpy.ndarray:
        """:return: number of characters"""
        if self._text_lens is None:
            self._text_lens = self.corpus.num_chars()
        return self._text_lens

    # ---- order

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """
        See Dataset. Reads the corpus files at the first call.

        :param epoch: from 1
        :param seq_list: tags, instead of the ordering. Then invalid sequences are not skipped
        :param seq_order: corpus indices likewise
        """
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self._raise_on_invalid = self.error_on_invalid_seq
        if (seq_list is not None or seq_order is not None) and not self._raise_on_invalid:
            print(f"{self._where()}: in a given order, error_on_invalid_seq=True is used", file=log.v4)
            self._raise_on_invalid = True
        if not self._raise_on_invalid:
            self._num_seqs = None
        self._next_in_order = self._next_seq_idx = self._num_skipped = 0
        self._encoder.set_random_seed(self._get_random_seed_for_epoch(epoch=epoch))
        return True

    def have_corpus_seq_idx(self) -> bool:
        """:return: whether no sequences are skipped"""
        return self.error_on_invalid_seq

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """:return: number of the text"""
        if not self._raise_on_invalid:
            raise OptionalNotImplementedError(f"{self!r}: invalid sequences are skipped, so positions are not known")
        return super().get_corpus_seq_idx(sorted_seq_idx)

    def get_current_seq_order(self) -> numpy.ndarray:
        """:return: int64 numbers of the texts"""
        if not self._raise_on_invalid:
            raise OptionalNotImplementedError(f"{self!r}: invalid sequences are skipped, so the order is not known")
        return super().get_current_seq_order()

    def get_tag(self, sorted_seq_idx: int) -> str:
        """:return: tag"""
        return super().get_tag(sorted_seq_idx) if self._raise_on_invalid else self._tag_of_loaded(sorted_seq_idx)

    def get_seq_tags(self, seq_idxs: numpy.ndarray | Sequence[int]) -> list[str]:
        """:return: tags of many sequences"""
        if self._raise_on_invalid:
            return super().get_seq_tags(seq_idxs)
        return [self._tag_of_loaded(int(i)) for i in seq_idxs]

    def _tag_of_loaded(self, seq_idx: int) -> str:
        return CachedDataset2.get_tag(self, seq_idx)

    # ---- data

    def get_target_list(self) -> list[str]:
        """:return: ["data"]"""
        return ["data"]

    def get_data_keys(self) -> list[str]:
        """:return: "data", and what options add"""
        return sorted(self.num_outputs or ())

    def get_data_dtype(self, key: str) -> str:
        """:return: the same for all keys"""
        return self._data_dtype.name

    def have_get_corpus_seq(self) -> bool:
        """:return: whether no sequences are skipped"""
        return self.error_on_invalid_seq

    def get_corpus_seq(self, corpus_seq_idx: int) -> DatasetSeq:
        """
        :param corpus_seq_idx: number of the text; no order is needed
        :return: with seq_idx = corpus_seq_idx
        :raises DatasetError: there is none, or the text is invalid
        """
        try:
            return super().get_corpus_seq(corpus_seq_idx)
        except InvalidText as exc:
            raise self._invalid_text(corpus_seq_idx, exc) from None

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        if self._raise_on_invalid:
            return super()._collect_single_seq(seq_idx)
        order = self._require_order()
        while self._next_in_order < len(order):
            corpus_idx = int(order[self._next_in_order])
            self._next_in_order += 1
            try:
                seq = self._load_seq(self._next_seq_idx, corpus_idx)
            except InvalidText as exc:
                self._log_skipped(corpus_idx, exc)
                continue
            self._next_seq_idx += 1
            if seq.seq_idx == seq_idx:
                return seq
        if self._num_skipped >= 0:
            print(f"LmDataset: reached end, skipped {self._num_skipped} sequences", file=log.v4)
            self._num_skipped = -1
        return None

    def _log_skipped(self, corpus_idx: int, exc: InvalidText) -> None:
        self._num_skipped += 1
        if self._num_skipped <= self.log_skipped_seqs:
            text = self.corpus[corpus_idx]
            print(f"LmDataset: skipping sequence {text!r} ({self.corpus.where(corpus_idx)}): {exc}", file=log.v4)
        if self._num_skipped == self.log_skipped_seqs:
            print("LmDataset: will stop logging about skipped sequences now", file=log.v4)

    def _load_seq(self, seq_idx: int, corpus_idx: int) -> DatasetSeq:
        """
        :param seq_idx: in the order of the epoch
        :param corpus_idx: number of the text
        :raises InvalidText: if these are skipped
        :raises DatasetError: if not
        """
        tag = self.corpus.tag(corpus_idx)
        self._seed_seq(seq_idx, tag)
        data = self._data_of_text(corpus_idx)
        features = {"data": data}
        if self._start_idx is not None:
            features["delayed"] = self._delayed(Ragged(data, numpy.array([len(data)]))).flat
        for i in range(self.add_random_phone_seqs):
            assert isinstance(self._encoder, PhoneEncoder)
            features[f"random{i}"] = self._encoder.encode_random(len(data)).astype(self._data_dtype)
        return DatasetSeq(seq_idx=seq_idx, seq_tag=tag, features=features)

    def _delayed(self, data: Ragged) -> Ragged:
        """:return: each sequence shifted by one"""
        flat = numpy.empty_like(data.flat)
        flat[1:] = data.flat[:-1]
        flat[data.offsets[:-1][numpy.diff(data.offsets) > 0]] = self._start_idx
        return Ragged(flat, data.lens)

    def _data_of_text(self, corpus_idx: int) -> numpy.ndarray:
        """
        :param corpus_idx: number of the text
        :raises InvalidText: if these are skipped
        :raises DatasetError: if not
        """
        try:
            return self._encode(self.corpus[corpus_idx])
        except InvalidText as exc:
            if not self._raise_on_invalid:
                raise
            raise self._invalid_text(corpus_idx, exc) from None

    def _invalid_text(self, corpus_idx: int, exc: InvalidText) -> DatasetError:
        return DatasetError(
            f"LmDataset: {exc} ({self._where()}, sequence {self.corpus.tag(corpus_idx)!r}, "
            f"{self.corpus.where(corpus_idx)}). {self._encoder.advice}, or set error_on_invalid_seq=False to skip such sequences."
        )

    @property
    def _is_random(self) -> bool:
        """:return: whether the data of a text may be others the next time"""
        return self._encoder.draws or not is_only_cleaners(self.orth_post_process)

    def _encode(self, text: str) -> numpy.ndarray:
        """:return: [T] class indices"""
        if self._post_process is not None:
            text = self._post_process(text)
        return numpy.array(self._encoder.encode(text), dtype=self._data_dtype)

    # ---- many sequences at once

    def supports_bulk(self) -> bool:
        """:return: whether the corpus is small, and the data neither random nor skipped"""
        is_small = self._corpus is not None and self._corpus.num_bytes <= _MAX_BULK_BYTES
        return super().supports_bulk() and is_small and self._raise_on_invalid and not self._is_random

    def _tokens_of(self, corpus_idxs: numpy.ndarray) -> TokenTable:
        """:return: with these texts"""
        if self._tokens is None:
            self._tokens = TokenTable(len(self.corpus), self._data_dtype)
        self._tokens.add(corpus_idxs, self._data_of_text)
        return self._tokens

    def get_epoch_seq_lens(self, key: str) -> numpy.ndarray | None:
        """:return: int64 [num_seqs] in the order of the epoch; the same for all keys. None: see supports_bulk"""
        if not self.supports_bulk():
            return None
        idxs = self._require_order()
        return self._tokens_of(idxs).lens(idxs)

    def read_seqs(self, seq_idxs: numpy.ndarray, keys: Sequence[str]) -> dict[str, Ragged] | None:
        """
        :param seq_idxs: in the order of the epoch
        :param keys: data keys
        :return: None: see supports_bulk
        """
        if not self.supports_bulk():
            return None
        idxs = self._require_order()[seq_idxs]
        data = self._tokens_of(idxs).select(idxs)
        return {key: data if key == "data" else self._delayed(data) for key in keys}

    # ---- random draws

    def supports_jump(self) -> bool:
        """
        See :func:`Dataset.supports_jump`. Not with error_on_invalid_seq = False, where which text is the n-th is only known
        after those before were converted; nor if random draws are one stream per epoch: see random_state_per_seq.
        """
        return super().supports_jump()

    def _is_same_for_any_start(self) -> bool:
        per_seq = bool(self._random_per_seq if self.random_state_per_seq is None else self.random_state_per_seq)
        is_same = not self._encoder.draws or per_seq
        return self._raise_on_invalid and is_same and are_plain_functions(self.orth_post_process)

    def _seed_seq(self, seq_idx: int, tag: str) -> None:
        """Random draws of this sequence, if they shall not depend on the others."""
        per_seq = self._random_per_seq if self.random_state_per_seq is None else self.random_state_per_seq
        if per_seq and self._encoder.draws:
            self._encoder.set_random_seed(int(self.get_seq_random_state(seq_idx, tag).randint(2**31)))
