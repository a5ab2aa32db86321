"""
From a text to class indices: by a table of orthography symbols, by a vocabulary, or by a lexicon of phonemes.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy

from returnn.datasets._lm.phone_seqs import PhoneSeqGenerator
from returnn.datasets._lm.symbol_files import labels_of_symbols
from returnn.datasets.util.vocabulary import Vocabulary
from returnn.errors import DatasetOptionError
from returnn.log import log
from returnn.util.strings import parse_orthography, parse_orthography_into_symbols

__all__ = ["InvalidText", "TextEncoder", "SymbolEncoder", "VocabEncoder", "PhoneEncoder"]


class InvalidText(Exception):
    """A text that has no class indices. Argument: the message."""


class SymbolEncoder:
    """
    Splits a text into symbols (characters or words), replaces some, and looks up their indices.

    All encoders have ``labels`` by class, ``draws`` (whether there are random draws), and ``advice`` about invalid texts.
    """

    draws = False
    advice = "Add the symbol, or set auto_replace_unknown_symbol=True"

    def __init__(
        self,
        symbols: dict[str, int],
        *,
        parse_opts: Mapping[str, Any],
        replace_map: Mapping[str, Sequence[str]],
        word_based: bool,
        word_end_symbol: str | None,
        seq_end_symbol: str | None,
        auto_replace_unknown: bool,
        unknown_symbol: str | None,
        num_log_unknown: int,
    ) -> None:
        """
        :param symbols: symbol -> index
        :param parse_opts: for :func:`returnn.util.strings.parse_orthography`
        :param replace_map: symbol -> symbols that take its place
        :param word_based: symbols are words, else characters
        :param word_end_symbol: for characters: after each word, instead of blanks
        :param seq_end_symbol: after each sequence
        :param auto_replace_unknown: replace unknown symbols
        :param unknown_symbol: by this; None: by nothing
        :param num_log_unknown: log only that many replacements of unknown symbols
        """
        self.labels: Sequence[str] = labels_of_symbols(symbols)
        self._symbols = symbols
        self._word_based = word_based
        self._replace_map = {symbol: list(by) for symbol, by in replace_map.items()}
        self._space = " "
        postfix = [] if seq_end_symbol is None else [seq_end_symbol]
        if word_end_symbol is not None and not word_based:
            self._replace_map[" "] = [word_end_symbol]
            self._space = word_end_symbol
            postfix.insert(0, word_end_symbol)
        self._parse_opts = {"word_based": word_based, "postfix": postfix, **parse_opts}
        self._check_parse_opts()
        self._auto_replace_unknown = auto_replace_unknown
        self._unknown_symbol = unknown_symbol
        self._num_log_unknown = num_log_unknown
        self._logged: set[str] = set()

    def _check_parse_opts(self) -> None:
        functions = (parse_orthography, parse_orthography_into_symbols)
        known = [name for function in functions for name in list(inspect.signature(function).parameters)[1:]]
        known.remove("kwargs")
        for name in self._parse_opts:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1)
                hint = f"Did you mean {close[0]!r}" if close else f"There are {', '.join(known)}"
                raise DatasetOptionError(f'option "parse_orth_opts" has an unknown entry {name!r}. {hint}?')
        try:
            parse_orthography("some [text]", **self._parse_opts)
        except TypeError as exc:
            raise DatasetOptionError(f'option "parse_orth_opts" is invalid: {exc} (in {self._parse_opts!r}).') from exc

    def find_label(self, label: str) -> int | None:
        """:return: its class; None: there is no such label"""
        return self._symbols.get(label)

    def set_random_seed(self, seed: int) -> None:
        """Nothing is drawn."""

    def encode(self, text: str) -> list[int]:
        """
        :param text: of one sequence
        :return: class indices
        :raises InvalidText: there are none
        """
        symbols = parse_orthography(text, **self._parse_opts)
        if self._replace_map:
            symbols = [new for symbol in symbols for new in self._replace_map.get(symbol, (symbol,))]
        symbols = self._collapse_spaces(symbols)
        if self._auto_replace_unknown and not all(map(self._symbols.__contains__, symbols)):
            symbols = self._collapse_spaces([new for symbol in symbols for new in self._known(symbol)])
        try:
            return list(map(self._symbols.__getitem__, symbols))
        except KeyError as exc:
            shown = repr(symbols if self._word_based else "".join(symbols))
            raise InvalidText(f"invalid seq {shown}, missing orth symbol {exc.args[0]!r}") from None

    def _collapse_spaces(self, symbols: list[str]) -> list[str]:
        space = self._space
        if symbols.count(space) < 2:
            return symbols
        return [symbol for i, symbol in enumerate(symbols) if symbol != space or not i or symbols[i - 1] != space]

    def _known(self, symbol: str) -> Sequence[str]:
        """:return: what stands for the symbol"""
        if symbol in self._symbols:
            return (symbol,)
        if self._unknown_symbol is not None and self._unknown_symbol not in self._symbols:
            raise DatasetOptionError(
                f"option auto_replace_unknown_symbol: unknown_symbol {self._unknown_symbol!r} is not one of the "
                f"{len(self._symbols)} orthography symbols. Set unknown_symbol to one of them, or to None."
            )
        self._log_unknown(symbol)
        return () if self._unknown_symbol is None else (self._unknown_symbol,)

    def _log_unknown(self, symbol: str) -> None:
        if len(self._logged) >= self._num_log_unknown or symbol in self._logged:
            return
        self._logged.add(symbol)
        print(
            f"LmDataset: orth symbol {symbol!r} is unknown, it is replaced by {self._unknown_symbol!r} everywhere",
            file=log.v4,
        )
        if len(self._logged) == self._num_log_unknown:
            print("LmDataset: will stop logging about auto-replace with unknown symbol now", file=log.v4)


class VocabEncoder:
    """By a vocabulary."""

    advice = "Add it to the vocabulary, or set its option unknown_label"

    def __init__(self, vocab: Vocabulary) -> None:
        """
        :param vocab: any
        """
        self._vocab = vocab
        self.draws = vocab.is_random

    @property
    def labels(self) -> Sequence[str]:
        """:return: of the vocabulary"""
        return self._vocab.labels

    def find_label(self, label: str) -> int | None:
        """As in :class:`SymbolEncoder`."""
        return self._vocab.label_to_id(label, None)

    def set_random_seed(self, seed: int) -> None:
        """Restart the random numbers."""
        self._vocab.set_random_seed(seed)

    def encode(self, text: str) -> Sequence[int]:
        """As in :class:`SymbolEncoder`."""
        try:
            return self._vocab.get_seq(text)
        except KeyError as exc:
            raise InvalidText(f"invalid seq {text!r}, missing in orth_vocab: {exc}") from exc


class PhoneEncoder:
    """By a lexicon: random allophone states."""

    draws = True
    advice = "Add it to the lexicon"

    def __init__(self, seq_gen: PhoneSeqGenerator) -> None:
        """
        :param seq_gen: of random states
        """
        self._seq_gen = seq_gen
        self.labels: Sequence[str] = seq_gen.get_class_labels()

    def find_label(self, label: str) -> int | None:
        """As in :class:`SymbolEncoder`."""
        return list(self.labels).index(label) if label in self.labels else None

    def set_random_seed(self, seed: int) -> None:
        """Restart the random numbers."""
        self._seq_gen.set_random_seed(seed)

    def encode(self, text: str) -> numpy.ndarray:
        """As in :class:`SymbolEncoder`."""
        try:
            phones = self._seq_gen.generate_seq(text)
        except KeyError as exc:
            raise InvalidText(f"invalid seq {text!r}, missing lexicon entry {exc!r}") from exc
        return self._seq_gen.seq_to_class_idxs(phones)

    def encode_random(self, length: int) -> numpy.ndarray:
        """:return: [length] classes of random phonemes"""
        return self._seq_gen.seq_to_class_idxs(self._seq_gen.generate_garbage_seq(length))


#: Gives the data of a text
TextEncoder: TypeAlias = SymbolEncoder | VocabEncoder | PhoneEncoder
