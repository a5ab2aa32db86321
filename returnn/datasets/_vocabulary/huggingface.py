"""
Vocabulary of a HuggingFace tokenizer.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy

from returnn.datasets._vocabulary.base import Vocabulary
from returnn.datasets._vocabulary.label_table import LabelTable
from returnn.errors import DataFileError, DatasetOptionError, LabelError, OptionError
from returnn.log import log
from returnn.util.optional_import import optional_import

__all__ = ["HuggingFaceTokenizer"]


class HuggingFaceTokenizer(Vocabulary):
    """Text to ids by a tokenizer of the package transformers. Special labels are those of the tokenizer."""

    def __init__(
        self,
        *,
        huggingface_repo_dir: str | os.PathLike[str] | None = None,
        tokenizer: Any = None,
        map_bos_to_eos: bool = False,
        text_preprocessing: Callable[[str], str] | None = None,
        bpe_dropout: float = 0.0,
        trust_remote_code: bool = False,
    ) -> None:
        """
        :param huggingface_repo_dir: folder written by ``save_pretrained``, loaded with ``AutoTokenizer``
        :param tokenizer: instead of that: a tokenizer object. Any: the package is optional
        :param map_bos_to_eos: bos_label_id is eos_label_id, for tokenizers without begin of sentence
        :param text_preprocessing: applied to each sentence
        :param bpe_dropout: probability 0..1 that a merge is left out, at random. The tokenizers package cannot be seeded
        :param trust_remote_code: whether Python code in the folder may run. (RETURNN: always)
        :raises MissingDependencyError: the package transformers is not installed
        :raises DataFileError: the tokenizer cannot be loaded
        :raises DatasetOptionError: not exactly one of huggingface_repo_dir and tokenizer
        :raises OptionError: bpe_dropout with a tokenizer that has none
        """
        if (huggingface_repo_dir is None) == (tokenizer is None):
            got = "none" if tokenizer is None else "both"
            raise DatasetOptionError(
                f"HuggingFaceTokenizer: expected one of the options huggingface_repo_dir and tokenizer, got {got}."
            )
        if isinstance(bpe_dropout, bool) or not isinstance(bpe_dropout, (int, float)) or not 0.0 <= bpe_dropout <= 1.0:
            raise OptionError("bpe_dropout", expected="float in 0..1", got=bpe_dropout)
        self.vocab_file = None if huggingface_repo_dir is None else os.fspath(huggingface_repo_dir)
        self._given_tokenizer = tokenizer
        self._trust_remote_code = trust_remote_code
        self._bpe_dropout = bpe_dropout
        self._text_preprocessing = text_preprocessing
        self._init_ids(map_bos_to_eos=map_bos_to_eos)
        if bpe_dropout:
            print(
                f"{self!r}: bpe_dropout draws from a generator that cannot be seeded, so runs are not reproducible.",
                file=log.v2,
            )

    def _init_ids(self, *, map_bos_to_eos: bool) -> None:
        tokenizer = self.tokenizer
        self.num_labels = len(tokenizer)
        self._init_checks(num_labels=None, seq_postfix=None)
        self._label_regex = None
        self.unknown_label, self.unknown_label_id = tokenizer.unk_token, tokenizer.unk_token_id
        self.eos_label_id, self.pad_label_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        self.bos_label_id = tokenizer.eos_token_id if map_bos_to_eos else tokenizer.bos_token_id
        self.control_symbol_ids: dict[str, int | None] = {}
        self.user_defined_symbol_ids: dict[str, int | None] = {}

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the package transformers. Any: the package is optional."""
        tokenizer = self._given_tokenizer if self._given_tokenizer is not None else self._load()
        if not self._bpe_dropout:
            return tokenizer
        tokenizer = copy.deepcopy(tokenizer)
        model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
        if not hasattr(model, "dropout"):
            expected = f"0, since this tokenizer ({type(tokenizer).__name__}) is none of byte pair encoding"
            raise OptionError("bpe_dropout", expected=expected, got=self._bpe_dropout, where=self.vocab_file)
        model.dropout = float(self._bpe_dropout)
        return tokenizer

    def _load(self) -> Any:
        """:return: Any: the package is optional"""
        folder = self.vocab_file
        assert folder is not None, "neither folder nor tokenizer"
        if not os.path.isdir(folder):  # transformers would ask the hub, for a minute
            raise DataFileError(
                f"huggingface_repo_dir {folder!r} is no folder. Write it with the method save_pretrained of a tokenizer."
            )
        transformers = optional_import("transformers", needed_by="the vocabulary class HuggingFaceTokenizer")
        try:
            return transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=self._trust_remote_code, local_files_only=True
            )
        except (OSError, ValueError, KeyError, ImportError) as exc:
            text = f"Cannot load the tokenizer of huggingface_repo_dir {folder!r}: {exc}"
            if not self._trust_remote_code and "trust_remote_code" in str(exc):
                text += " If you trust the Python code in that folder, set the vocabulary's option trust_remote_code to True."
            raise DataFileError(text) from exc

    @functools.cached_property
    def _table(self) -> LabelTable:  # type: ignore[override]  # lazy here
        # Ids that no label uses are None.
        labels = [label or "" for label in self.tokenizer.convert_ids_to_tokens(list(range(self.num_labels)))]
        return LabelTable(labels, dict(self.tokenizer.get_vocab()))

    def __getstate__(self) -> dict[str, Any]:
        """The tokenizer is loaded again at first use. Any: attributes."""
        return {name: value for name, value in vars(self).items() if name not in ("tokenizer", "_table")}

    # Any: KeyError or the caller's default, returned as it is.
    def label_to_id(self, label: str, default: Any = KeyError) -> int | None:
        """
        :param label: for one that is not in the vocabulary, the id of the tokenizer's unknown label is returned
        :param default: returned if the tokenizer has no unknown label
        :raises LabelError: (also KeyError) not in the vocabulary, no unknown label, and no default
        """
        idx = self.tokenizer.convert_tokens_to_ids(label)
        if idx is None:
            if default is KeyError:
                raise LabelError(f"label {label!r} not found in {self._source}, and that has no unknown label.")
            return default
        return idx

    @property
    def is_random(self) -> bool:
        """:return: whether merges are left out at random, or a function of the user may do anything"""
        return bool(self._bpe_dropout) or self._text_preprocessing is not None

    def get_seq(self, sentence: str) -> list[int]:
        """
        :param sentence: any text
        :return: ids, with those that the tokenizer adds
        """
        if self._text_preprocessing is not None:
            sentence = self._text_preprocessing(sentence)
        return list(self.tokenizer(sentence)["input_ids"])

    def get_seq_labels(self, seq: Sequence[int] | numpy.ndarray) -> str:
        """
        :param seq: [T], ids
        :return: text, without special labels
        """
        ids = seq.tolist() if isinstance(seq, numpy.ndarray) else list(seq)
        return self.tokenizer.decode(ids, skip_special_tokens=True)
