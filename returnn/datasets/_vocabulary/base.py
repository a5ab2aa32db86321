"""
Vocabulary of words: from text to class indices and back. Base class of all others.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy

from returnn.datasets._vocabulary.files import read_vocab_file
from returnn.datasets._vocabulary.label_table import LabelTable, ids_from_labels
from returnn.datasets._vocabulary.special_symbols import SpecialSymbols
from returnn.errors import DatasetOptionError, LabelError, OptionError, UnknownClassError, UserError, describe
from returnn.util.kwargs import help_on_type_error_wrong_args
from returnn.util.markers import NotSpecified

__all__ = ["Vocabulary"]


class Vocabulary:
    """
    Labels with ids 0..n-1, separated by whitespace in the text.

    Created by a worker process from its pickle; copies share their labels, so they are cheap.
    """

    _separator = " "

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        seq_postfix: Sequence[int] | numpy.ndarray | None = None,
        unknown_label: str | int | None | type[NotSpecified] = NotSpecified,
        bos_label: str | int | None = None,
        eos_label: str | int | None = None,
        pad_label: str | int | None = None,
        control_symbols: Mapping[str, str | int] | None = None,
        user_defined_symbols: Mapping[str, str | int] | None = None,
        num_labels: int | None = None,
        labels: Sequence[str] | Callable[[], Sequence[str]] | None = None,
        *,
        special_symbols_via_file: str | os.PathLike[str] | None = None,
        single_whitespace_split: bool = False,
    ) -> None:
        """
        :param vocab_file: see :func:`returnn.datasets._vocabulary.files.read_vocab_file` for the formats
        :param seq_postfix: ids that :func:`get_seq` appends
        :param unknown_label: label or id, replaces what is not in the vocabulary. Default "UNK", which then must be a label.
            None: what is not in the vocabulary is an error
        :param bos_label: label or id of the begin of a sentence; None or -1: there is none
        :param eos_label: likewise, end of a sentence
        :param pad_label: likewise, padding
        :param control_symbols: name -> label or id
        :param user_defined_symbols: name -> label or id
        :param num_labels: if given, verified
        :param labels: instead of vocab_file: labels by id, or a function that returns them
        :param special_symbols_via_file: Python dict literal with the options that end with ``_label`` or ``_symbols``.
            What is given directly wins
        :param single_whitespace_split: labels can contain blanks; see :func:`get_seq`
        :raises DataFileError: file missing or broken
        :raises LabelError: (also KeyError) one of the special labels is not in the vocabulary
        :raises OptionError: other invalid options
        """
        if vocab_file is not None and not isinstance(vocab_file, (str, os.PathLike)):
            where = f"vocabulary {type(self).__name__}"
            raise OptionError("vocab_file", expected="name of a file", got=vocab_file, where=where)
        self.vocab_file = None if vocab_file is None else os.fspath(vocab_file)
        self._table = self._load_labels(labels)
        self.num_labels = len(self._table)
        self._init_checks(num_labels=num_labels, seq_postfix=seq_postfix)
        self._init_special_symbols(
            SpecialSymbols.from_options(
                filename=special_symbols_via_file,
                unknown_label=unknown_label,
                bos_label=bos_label,
                eos_label=eos_label,
                pad_label=pad_label,
                control_symbols=control_symbols,
                user_defined_symbols=user_defined_symbols,
            )
        )
        self._label_regex = _single_whitespace_regex(self._table.labels) if single_whitespace_split else None

    def _load_labels(self, labels: Sequence[str] | Callable[[], Sequence[str]] | None) -> LabelTable:
        cls_name = type(self).__name__
        if (self.vocab_file is None) == (labels is None):
            got = "none" if labels is None else "both"
            raise DatasetOptionError(f"{cls_name}: expected one of the options vocab_file and labels, got {got}.")
        if self.vocab_file is not None:
            return read_vocab_file(self.vocab_file)
        return LabelTable.from_list(labels() if callable(labels) else labels or ())

    def _init_checks(self, *, num_labels: int | None, seq_postfix: Sequence[int] | numpy.ndarray | None) -> None:
        """Needs self.num_labels, sets self.seq_postfix."""
        if num_labels is not None and num_labels != self.num_labels:
            expected = f"{self.num_labels}, the number of labels of the vocabulary"
            raise OptionError("num_labels", expected=expected, got=num_labels, where=self._source)
        is_list = isinstance(seq_postfix, (list, tuple, numpy.ndarray))
        if seq_postfix is not None and not (is_list and all(self._is_valid_id(idx) for idx in seq_postfix)):
            expected = f"list of ids, each in 0..{self.num_labels - 1}"
            raise OptionError("seq_postfix", expected=expected, got=seq_postfix, where=self._source)
        self.seq_postfix: list[int] = [int(idx) for idx in (() if seq_postfix is None else seq_postfix)]

    def _is_valid_id(self, idx: object) -> bool:
        return isinstance(idx, (int, numpy.integer)) and not isinstance(idx, bool) and 0 <= int(idx) < self.num_labels

    @property
    def _source(self) -> str:
        """For error texts, also of an object which is not complete yet."""
        name = type(self).__name__
        return f"{name} of vocab_file {self.vocab_file!r}" if self.vocab_file is not None else f"{name} of given labels"

    def _init_special_symbols(self, symbols: SpecialSymbols) -> None:
        self.unknown_label_id = self._special_id("unknown_label", symbols.unknown_label)
        self.unknown_label = None if self.unknown_label_id is None else self._table.labels[self.unknown_label_id]
        self.bos_label_id = self._special_id("bos_label", symbols.bos_label)
        self.eos_label_id = self._special_id("eos_label", symbols.eos_label)
        self.pad_label_id = self._special_id("pad_label", symbols.pad_label)
        self.control_symbol_ids = {
            name: self._special_id(f"control_symbols[{name!r}]", label)
            for name, label in symbols.control_symbols.items()
        }
        self.user_defined_symbol_ids = {
            name: self._special_id(f"user_defined_symbols[{name!r}]", label)
            for name, label in symbols.user_defined_symbols.items()
        }

    def _special_id(self, option: str, label: str | int | None) -> int | None:
        try:
            return self.to_id(label, allow_none=True)
        except LabelError as exc:
            todo = f"Set {option} to one of its {self.num_labels} labels, e.g. {self._table.labels[:3]}"
            if option == "unknown_label":
                todo += ', or to None if all words are known (the default is "UNK")'
            problem = (
                f"invalid label id {label}" if isinstance(label, int) else f"label {label!r} is not in the vocabulary"
            )
            raise LabelError(f'option "{option}" is invalid: {problem} (in {self._source}). {todo}.') from exc

    def __repr__(self) -> str:
        parts = [repr(self.vocab_file), f"num_labels={self.num_labels}"]
        if self.unknown_label is not None:
            parts.append(f"unknown_label={self.unknown_label!r}")
        for name in ("bos_label", "eos_label", "pad_label"):
            idx = getattr(self, f"{name}_id")
            if idx is not None:
                parts.append(f"{name}={self.id_to_label(idx)!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    # Creation by options.

    @classmethod
    def create_vocab(cls, **opts: Any) -> Vocabulary:
        """
        :param opts: of the constructor; ``class``: name of the class. Default: BytePairEncoding if there is a ``bpe_file``,
            else the class on which this is called. Any: each option has its own type
        :raises UnknownClassError: (also KeyError, TypeError) no vocabulary class of that name
        :raises DatasetOptionError: (also TypeError) the class has no such option, or needs another one
        """
        name = opts.pop("class", None)
        if name is not None:
            vocab_cls = _find_class(name)
        elif "bpe_file" in opts:
            vocab_cls = _find_class("BytePairEncoding")
        else:
            vocab_cls = cls
        try:
            return vocab_cls(**opts)
        except UserError:
            raise
        except TypeError as exc:
            problem = help_on_type_error_wrong_args(vocab_cls, opts)
            if not problem:
                raise
            raise DatasetOptionError(f"Cannot create the vocabulary {vocab_cls.__name__}: {problem}") from exc

    @classmethod
    def from_option(cls, value: object, *, option: str, where: str) -> Vocabulary:
        """
        :param value: of an option of a dataset: options of :func:`create_vocab`, or a vocabulary
        :param option: its name, for the error
        :param where: dataset, for the error
        :raises DatasetOptionError: (also TypeError) neither
        """
        if isinstance(value, Vocabulary):
            return value
        if not isinstance(value, Mapping):
            expected = "a dict of options of a vocabulary, or a Vocabulary"
            raise DatasetOptionError(
                describe(f'option "{option}" is invalid', where=where, expected=expected, got=value)
            )
        return cls.create_vocab(**value)

    @classmethod
    def create_vocab_from_labels(
        cls, labels: Sequence[str], *, unknown_label: str | int | None = None, **kwargs: Any
    ) -> Vocabulary:
        """
        :param labels: by id. Fewer than 1000, all of one character: characters, joined without space.
            If these are exactly chr(0) to chr(255): bytes
        :param unknown_label: as for the constructor, but None by default
        :param kwargs: other options of the constructor. Any: each option has its own type
        """
        if len(labels) < 1000 and all(len(label) == 1 for label in labels):
            if len(labels) == 256 and all(ord(label) == i for i, label in enumerate(labels)):
                return _find_class("Utf8ByteTargets")(unknown_label=unknown_label, **kwargs)
            return _find_class("CharacterTargets")(labels=labels, unknown_label=unknown_label, **kwargs)
        return Vocabulary(labels=labels, unknown_label=unknown_label, **kwargs)

    @classmethod
    def create_vocab_dict_from_labels(cls, labels: Sequence[str]) -> dict[str, int]:
        """
        :param labels: by id
        :return: label -> id
        :raises DatasetError: (also AssertionError) duplicates
        """
        return ids_from_labels(labels)

    # Labels and ids.

    @property
    def labels(self) -> list[str]:
        """Labels by id. Not to be changed."""
        return self._table.labels

    @property
    def _vocab(self) -> dict[str, int]:
        """Label -> id, also those labels that share their id with another one. A name that client code uses."""
        return self._table.ids

    # Any: KeyError or the caller's default, returned as it is.
    def to_id(self, label: str | int | None, default: Any = KeyError, allow_none: bool = False) -> int | None:
        """
        :param label: label, or id
        :param default: returned if there is no such label or id
        :param allow_none: None, and -1 as in SentencePiece, give None
        :raises LabelError: (also KeyError) no such label or id, without default
        :raises DatasetOptionError: (also TypeError) neither str nor int, or None without allow_none
        """
        if isinstance(label, str):
            return self.label_to_id(label, default)
        if isinstance(label, int):
            if self.is_id_valid(label):
                return label
            if allow_none and label == -1:
                return None
            if default is KeyError:
                raise LabelError(f"invalid label id {label}: {self._source} has the ids 0 to {self.num_labels - 1}.")
            return None
        if label is None and allow_none:
            return None
        raise DatasetOptionError(f"invalid label type {type(label)}: expected str or int, got {label!r}.")

    def label_to_id(self, label: str, default: Any = KeyError) -> int | None:
        """
        :param label: of the vocabulary
        :param default: returned for others, without regard of the unknown label. Any: the caller's choice
        :raises LabelError: (also KeyError) not in the vocabulary, without default
        """
        idx = self._table.ids.get(label)
        if idx is None:
            if default is KeyError:
                raise LabelError(f"label {label!r} not found in {self._source}.")
            return default
        return idx

    def id_to_label(self, idx: int, default: Any = KeyError) -> str | None:
        """
        :param idx: 0..n-1
        :param default: returned for others. Any: the caller's choice
        :raises LabelError: (also KeyError) out of range, without default
        """
        if self.is_id_valid(idx):
            return self.labels[idx]
        if default is KeyError:
            raise LabelError(f"idx {idx} out of range: {self._source} has the ids 0 to {self.num_labels - 1}.")
        return default

    def is_id_valid(self, idx: int) -> bool:
        """:return: whether there is a label with that id"""
        return 0 <= idx < self.num_labels

    # Sentences.

    @property
    def is_random(self) -> bool:
        """:return: whether the same sentence can get other ids the next time, so that they must not be kept"""
        return type(self).set_random_seed is not Vocabulary.set_random_seed

    def set_random_seed(self, seed: int) -> None:
        """
        For vocabularies that draw: restart the random numbers. Cheap, to be called before each sequence if wanted.

        :param seed: up to 2**32 - 1
        """

    def get_seq(self, sentence: str) -> list[int]:
        """
        :param sentence: labels separated by whitespace. With single_whitespace_split, from left to right: the first label
            (by id) that ends before a blank or at the end, else all up to the next whitespace; one blank after it is skipped
        :return: ids, with seq_postfix
        :raises LabelError: (also KeyError) a label that is not in the vocabulary, and no unknown_label
        """
        words = sentence.split() if self._label_regex is None else self._label_regex.findall(sentence)
        return self.get_seq_indices(words) + self.seq_postfix

    def get_seq_indices(self, seq: Iterable[str]) -> list[int]:
        """
        :param seq: labels
        :return: ids, without seq_postfix
        :raises LabelError: (also KeyError) a label that is not in the vocabulary, and no unknown_label
        """
        ids = self._table.ids
        if self.unknown_label_id is not None:
            unknown, get = self.unknown_label_id, ids.get
            return [get(label, unknown) for label in seq]
        try:
            return [ids[label] for label in seq]
        except KeyError as exc:
            raise LabelError(
                f"label {exc.args[0]!r} is not in the {self._source}, and unknown_label is None."
                " Set unknown_label, or check that the text was prepared for this vocabulary."
            ) from exc

    def get_seq_labels(self, seq: Sequence[int] | numpy.ndarray) -> str:
        """
        :param seq: [T], ids
        :return: labels with the separator of the class between them
        :raises LabelError: (also IndexError) an id is out of range
        """
        ids = seq.tolist() if hasattr(seq, "tolist") else seq
        labels = self.labels
        try:
            return self._separator.join([labels[idx] for idx in ids])
        except IndexError as exc:
            wrong = [idx for idx in ids if not -len(labels) <= idx < len(labels)]
            raise LabelError(
                f"id {wrong[0]} is out of range: {self._source} has the ids 0 to {len(labels) - 1}."
            ) from exc

    def serialize_labels(self, data: numpy.ndarray) -> str:
        """
        :param data: ids. 0-d: one label; 1-d: as :func:`get_seq_labels`; n-d: rows ``[a,b],[c,d]``
        :raises LabelError: (also IndexError) an id is out of range
        """
        if data.ndim == 0:
            return self.get_seq_labels(data[None])
        if data.ndim == 1:
            return self.get_seq_labels(data)
        return ",".join(self._serialize_row(row) for row in data)

    def _serialize_row(self, data: numpy.ndarray) -> str:
        parts = (
            self.get_seq_labels(data[i : i + 1]) if data.ndim == 1 else self._serialize_row(data[i])
            for i in range(len(data))
        )
        return f"[{','.join(parts)}]"


def _find_class(name: str | type) -> type[Any]:
    """:return: Any: a class derived from Vocabulary, whose constructor has options of its own"""
    known: dict[str, type[Vocabulary]] = {}
    todo: list[type[Vocabulary]] = [Vocabulary]
    for cls in todo:  # grows
        if name is cls:
            return cls
        known.setdefault(cls.__name__, cls)
        todo.extend(cls.__subclasses__())
    if not isinstance(name, str) or name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UnknownClassError(f'option "class" of a vocabulary: expected one of {sorted(known)}, got {name!r}.{hint}')
    return known[name]


def _single_whitespace_regex(labels: Sequence[str]) -> re.Pattern[str]:
    r"""
    ``(<label>|<label>|...|\S+)(?: |$)`` with all labels, but without those alternatives that cannot change the result:
    a label without whitespace gives what ``\S+`` gives, and one whose first word is a label before it is never reached.
    This makes it independent of the size of the vocabulary. Not if a label has a line end: ``$`` matches before the last one.
    """
    if any("\n" in label for label in labels):
        return re.compile(f"({'|'.join([*map(re.escape, labels), chr(92) + 'S+'])})(?: |$)")
    alternatives: list[str] = []
    before: set[str] = set()
    for label in labels:
        first = re.match(r"\S*", label)[0]  # type: ignore[index]  # matches always
        is_word = first == label and label != ""
        if not is_word and not (label[len(first) : len(first) + 1] == " " and first in before):
            alternatives.append(re.escape(label))
        if is_word:
            before.add(label)
    return re.compile(f"({'|'.join([*alternatives, chr(92) + 'S+'])})(?: |$)")
