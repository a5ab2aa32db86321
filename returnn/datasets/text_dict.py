"""
TextDictDataset: sequences from a Python dict in a text file, with one text per tag or an n-best list.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy

from returnn.datasets._hdf.tag_table import TagTable
from returnn.datasets._lm.text_lines import TextLines
from returnn.datasets._lm.token_table import TokenTable
from returnn.datasets.basic import DatasetSeq
from returnn.datasets.indexed import IndexedDataset
from returnn.datasets.ragged import Ragged
from returnn.datasets.util.vocabulary import Vocabulary
from returnn.errors import DataFileError, DatasetError, DatasetOptionError, UnknownDataKeyError
from returnn.util.py_text_dict import load_text_dict

__all__ = ["TextDictDataset"]

# Texts of that size are converted all at once (below a few seconds), and kept: then batches can be made in bulk.
_MAX_BULK_BYTES = 4 << 20

ItemFormat = Literal["single", "list_with_scores"]


class TextDictDataset(IndexedDataset):
    """
    Reads the output of a search: ``{tag: text}`` or ``{tag: [(score, text), ...]}``.

    Data keys: "data": int32 [T], class indices of the text, or of the first one with the largest score. For lists also
    "data_flat": int32, all texts one after the other, "data_seq_lens": int32 [N], their lengths, and
    "scores": float32 [N].
    """

    def __init__(
        self,
        *,
        filename: str,
        item_format: ItemFormat = "list_with_scores",
        vocab: Mapping[str, Any] | Vocabulary,
        random_state_per_seq: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """
        :param filename: text with one Python dict (see :func:`returnn.util.py_text_dict.load_text_dict`), ``.gz`` or not
        :param item_format: what each tag has
        :param vocab: options of the vocabulary, or the vocabulary
        :param random_state_per_seq: random draws of the vocabulary depend on the sequence only. False: one stream per
            epoch, as the peers. None: as the reader of the dataset wants it
        :param kwargs: see Dataset. Any: each has its own type
        :raises DatasetOptionError: invalid options
        """
        super().__init__(**kwargs)
        if item_format not in ("single", "list_with_scores"):
            raise DatasetOptionError(
                self._describe(
                    'option "item_format" is invalid', expected='"single" or "list_with_scores"', got=item_format
                )
            )
        if not isinstance(filename, (str, os.PathLike)):
            raise DatasetOptionError(self._describe('option "filename" is invalid', expected="a path", got=filename))
        self.filename = os.fspath(filename)
        self.item_format = item_format
        self.vocab = vocab
        self.random_state_per_seq = random_state_per_seq
        self._vocabulary = Vocabulary.from_option(vocab, option="vocab", where=self._where())
        num_labels = self._vocabulary.num_labels
        self.num_inputs = num_labels
        self.num_outputs = {"data": [num_labels, 1]}
        self.labels = {"data": self._vocabulary.labels}
        if item_format == "list_with_scores":
            self.labels["data_flat"] = self._vocabulary.labels
            self.num_outputs["data_flat"] = [num_labels, 1]
            self.num_outputs["data_seq_lens"] = _plain_numbers("int32")
            self.num_outputs["scores"] = _plain_numbers("float32")
        self._tags: TagTable | None = None
        # All texts; of sequence i those from bounds[i] to bounds[i + 1].
        self._texts: TextLines | None = None
        self._bounds = numpy.zeros(1, dtype=numpy.int64)
        self._best = numpy.zeros(0, dtype=numpy.int64)  # the text of key "data"
        self._scores = numpy.zeros(0, dtype=numpy.float32)
        self._seq_lens = numpy.zeros(0, dtype=numpy.int64)
        self._tokens: TokenTable | None = None

    # ---- reading

    def _load(self) -> None:
        """Read the file, if not done yet."""
        if self._tags is not None:
            return
        items = load_text_dict(self.filename)
        if not items:
            raise DataFileError(f"{self._where()}: the dict in {self.filename!r} is empty.")
        counts: list[int] = []
        best: list[int] = []
        scores: list[float] = []

        def iter_texts() -> Iterator[str]:
            for tag, item in items.items():
                pairs = self._checked_item(tag, item)
                item_scores = [score for score, _ in pairs]
                # As max(): the first one, and no comparison with nan is true.
                best.append(len(scores) + item_scores.index(max(item_scores)))
                counts.append(len(pairs))
                scores.extend(item_scores)
                for _, text in pairs:
                    yield text

        texts = TextLines.from_texts(iter_texts(), name=self.filename)
        self._texts = texts
        self._bounds = numpy.cumsum([0, *counts], dtype=numpy.int64)
        self._best = numpy.array(best, dtype=numpy.int64)
        self._scores = numpy.array(scores, dtype=numpy.float32)
        self._seq_lens = numpy.add.reduceat(texts.num_chars(), self._bounds[:-1])
        self._tags = TagTable.from_tags(items)

    def _checked_item(self, tag: str, item: Any) -> list[tuple[float, str]]:
        """
        :param tag: of the sequence
        :param item: of the file. Any: as it is there
        :return: scores and texts, at least one
        """

        def error(expected: str, got: object) -> DataFileError:
            return DataFileError(
                f"{self!r}: expected {expected} ({self.item_format}), got {got!r} ({type(got)}) for tag {tag!r} in "
                f"{self.filename!r}. Is item_format={self.item_format!r} right?"
            )

        if self.item_format == "single":
            if not isinstance(item, str):
                raise error("str", item)
            return [(0.0, item)]
        if not isinstance(item, list) or not item:
            raise error("list" if not isinstance(item, list) else "at least one text in the list", item)
        for pair in item:
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise error("(score, text)", pair)
            if not isinstance(pair[0], (float, int)) or isinstance(pair[0], bool):
                raise error("float as score", pair[0])
            if not isinstance(pair[1], str):
                raise error("str as text", pair[1])
        return item

    @property
    def _all_texts(self) -> TextLines:
        self._load()
        assert self._texts is not None
        return self._texts

    @property
    def tag_table(self) -> TagTable:
        """:return: tags of the corpus; reads the file at the first use"""
        self._load()
        assert self._tags is not None
        return self._tags

    # ---- corpus

    def known_corpus_lens(self) -> Mapping[str, numpy.ndarray]:
        """See :func:`Dataset.known_corpus_lens`."""
        return {} if self._tags is None else {"characters": self._seq_lens}

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """
        :param fast: do not read the file for it
        :raises NotImplementedError: with fast, before it is read
        """
        if fast and self._tags is None:
            raise NotImplementedError(f"{self!r}: the number of sequences is not known before the first epoch")
        return len(self.tag_table)

    def _find_tags(self, tags: Sequence[str]) -> numpy.ndarray:
        return self.tag_table.lookup(tags, dataset_name=self.name)

    def _corpus_tags(self, corpus_idxs: numpy.ndarray) -> list[str]:
        return self.tag_table.select(corpus_idxs)

    def _lens_for_order(self) -> numpy.ndarray:
        """:return: number of characters; of a list the sum"""
        self._load()
        return self._seq_lens

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """
        See Dataset. Reads the file at the first call.

        :param epoch: from 1
        :param seq_list: tags
        :param seq_order: corpus indices
        """
        result = super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self._vocabulary.set_random_seed(self._get_random_seed_for_epoch(epoch=epoch))
        return result

    # ---- data

    def get_data_keys(self) -> list[str]:
        """:return: depends on the item_format"""
        return list(self.num_outputs or ())

    def get_target_list(self) -> list[str]:
        """:return: all keys but "data" """
        return [key for key in self.get_data_keys() if key != "data"]

    def get_data_dtype(self, key: str) -> str:
        """:return: float32 of scores, else int32"""
        return "float32" if key == "scores" else "int32"

    def _encode(self, text_idx: int) -> numpy.ndarray:
        """:return: int32 [T]"""
        text = self._all_texts[text_idx]
        try:
            return numpy.array(self._vocabulary.get_seq(text), dtype=numpy.int32)
        except KeyError as exc:
            seq_idx = int(numpy.searchsorted(self._bounds, text_idx, side="right")) - 1
            raise DatasetError(
                f"{self!r}: sequence {self.tag_table[seq_idx]!r} of {self.filename!r}: text {text!r} is not in the "
                f"vocabulary: {exc}. Set unknown_label of the vocabulary."
            ) from exc

    def _is_same_for_any_start(self) -> bool:
        return not self._vocabulary.is_random or bool(
            self._random_per_seq if self.random_state_per_seq is None else self.random_state_per_seq
        )

    def _load_seq(self, seq_idx: int, corpus_idx: int) -> DatasetSeq:
        tag = self.tag_table[corpus_idx]
        per_seq = self._random_per_seq if self.random_state_per_seq is None else self.random_state_per_seq
        if per_seq and self._vocabulary.is_random:
            self._vocabulary.set_random_seed(int(self.get_seq_random_state(seq_idx, tag).randint(2**31)))
        start, end = int(self._bounds[corpus_idx]), int(self._bounds[corpus_idx + 1])
        if self.item_format == "single":
            return DatasetSeq(seq_idx=seq_idx, seq_tag=tag, features={"data": self._encode(start)})
        texts = [self._encode(i) for i in range(start, end)]
        features = {
            "data": texts[int(self._best[corpus_idx]) - start],
            "data_flat": numpy.concatenate(texts),
            "data_seq_lens": numpy.array([len(text) for text in texts], dtype=numpy.int32),
            "scores": self._scores[start:end].copy(),
        }
        return DatasetSeq(seq_idx=seq_idx, seq_tag=tag, features=features)

    # ---- many sequences at once

    def supports_bulk(self) -> bool:
        """:return: whether the file is small, and the data not random"""
        is_small = self._texts is not None and self._texts.num_bytes <= _MAX_BULK_BYTES
        return super().supports_bulk() and is_small and not self._vocabulary.is_random

    def _tokens_of(self, text_idxs: numpy.ndarray) -> TokenTable:
        """:return: with these texts"""
        if self._tokens is None:
            self._tokens = TokenTable(len(self._all_texts), numpy.dtype(numpy.int32))
        self._tokens.add(text_idxs, self._encode)
        return self._tokens

    def _text_idxs(self, idxs: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
        """
        :param idxs: corpus indices
        :return: all texts of these; int64 [len(idxs)] how many of each
        """
        counts = self._bounds[idxs + 1] - self._bounds[idxs]
        before = numpy.cumsum(counts) - counts
        return numpy.repeat(self._bounds[idxs] - before, counts) + numpy.arange(int(counts.sum())), counts

    def _bulk_data(self, key: str, idxs: numpy.ndarray) -> Ragged:
        """:param idxs: corpus indices"""
        if key == "data":
            texts = self._best[idxs]
            return self._tokens_of(texts).select(texts)
        if key not in (self.num_outputs or ()):
            raise UnknownDataKeyError(f"{self!r}: no data key {key!r}, only {self.get_data_keys()}.")
        texts, counts = self._text_idxs(idxs)
        if key == "scores":
            return Ragged(self._scores[texts], counts)
        tokens = self._tokens_of(texts)
        if key == "data_seq_lens":
            return Ragged(tokens.lens(texts).astype(numpy.int32), counts)
        ends = numpy.concatenate([[0], numpy.cumsum(tokens.lens(texts))])
        bounds = ends[numpy.concatenate([[0], numpy.cumsum(counts)])]
        return Ragged(tokens.select(texts).flat, numpy.diff(bounds))

    def get_epoch_seq_lens(self, key: str) -> numpy.ndarray | None:
        """:return: int64 [num_seqs] in the order of the epoch. None: see supports_bulk"""
        return self._bulk_data(key, self._require_order()).lens if self.supports_bulk() else None

    def read_seqs(self, seq_idxs: numpy.ndarray, keys: Sequence[str]) -> dict[str, Ragged] | None:
        """
        :param seq_idxs: in the order of the epoch
        :param keys: data keys
        :return: None: see supports_bulk
        """
        if not self.supports_bulk():
            return None
        idxs = self._require_order()[seq_idxs]
        return {key: self._bulk_data(key, idxs) for key in keys}


def _plain_numbers(dtype: str) -> dict[str, Any]:
    """:return: entry of num_outputs for one number per frame, which is no class index"""
    return {"dtype": dtype, "shape": (None,), "dim": 1, "sparse": False}
