"""
Lexicon: phonemes and words of a Bliss lexicon XML file.
"""

from __future__ import annotations

import gzip
import zlib
from typing import Any
from xml.etree import ElementTree

from returnn.errors import DataFileError
from returnn.log import log

__all__ = ["Lexicon", "Lemma"]

#: {"orth": str, "phons": [{"phon": phonemes with blanks between, "score": float}]}
Lemma = dict[str, Any]

_GZIP_MAGIC = b"\x1f\x8b"


class Lexicon:
    """
    Attributes: ``phoneme_list`` (symbols in order), ``phonemes`` (symbol -> dict with "index", "symbol", "variation")
    and ``lemmas`` (orthography -> dict with "orth" and "phons", a list of dicts with "phon" and "score").
    """

    def __init__(self, filename: str) -> None:
        """
        :param filename: Bliss lexicon XML, plain or compressed by gzip
        :raises DataFileError: missing, no such XML, or an orthography with two different lemmas
        """
        print(f"Loading lexicon {filename}", file=log.v4)
        self.filename = filename
        self.phoneme_list: list[str] = []
        self.phonemes: dict[str, dict[str, Any]] = {}
        self.lemmas: dict[str, Lemma] = {}
        try:
            self._read()
        except (OSError, EOFError, zlib.error, ElementTree.ParseError, LookupError, ValueError) as exc:
            if isinstance(exc, DataFileError):
                raise
            raise DataFileError(f"Cannot read the lexicon {filename!r}: {exc}. Check the path and the XML.") from exc
        if not self.phonemes or not self.lemmas:
            raise DataFileError(
                f"Lexicon {filename!r}: found {len(self.phonemes)} phonemes and {len(self.lemmas)} lemmas. Expected a "
                "Bliss lexicon: <lexicon> with <phoneme-inventory> and <lemma> elements."
            )
        print(f"Finished whole lexicon, {len(self.lemmas)} lemmas", file=log.v4)

    def _read(self) -> None:
        with open(self.filename, "rb") as raw:
            file = gzip.open(raw) if raw.peek(2)[:2] == _GZIP_MAGIC else raw
            depth = 0
            root: ElementTree.Element | None = None
            for event, elem in ElementTree.iterparse(file, events=("start", "end")):  # type: ignore[arg-type]
                if event == "start":
                    root = elem if root is None else root
                    depth += 1
                    continue
                depth -= 1
                if elem.tag == "phoneme-inventory":
                    self._add_phonemes(elem)
                    print(f"Finished phoneme inventory, {len(self.phonemes)} phonemes", file=log.v4)
                elif elem.tag == "lemma":
                    self._add_lemma(elem)
                if depth == 1 and root is not None:
                    root.clear()  # do not keep what is done

    def _add_phonemes(self, inventory: ElementTree.Element) -> None:
        for elem in inventory.iter("phoneme"):
            symbol = (elem.findtext("symbol") or "").strip()
            variation = (elem.findtext("variation") or "context").strip()
            if not symbol or symbol in self.phonemes:
                raise DataFileError(
                    f"Lexicon {self.filename!r}: phoneme number {len(self.phonemes)} has "
                    + (f"the symbol {symbol!r} of an earlier one." if symbol else "no <symbol>.")
                )
            if variation not in ("context", "none"):
                raise DataFileError(
                    f"Lexicon {self.filename!r}: phoneme {symbol!r}: expected variation context or none, got {variation!r}."
                )
            self.phonemes[symbol] = {"index": len(self.phonemes), "symbol": symbol, "variation": variation}
            self.phoneme_list.append(symbol)

    def _add_lemma(self, elem: ElementTree.Element) -> None:
        phons = [
            {"phon": " ".join((phon.text or "").split()), "score": self._score(phon)} for phon in elem.findall("phon")
        ]
        for orth_elem in elem.findall("orth"):
            orth = " ".join((orth_elem.text or "").split())
            lemma = {"orth": orth, "phons": phons}
            old = self.lemmas.get(orth)
            if old is None:
                self.lemmas[orth] = lemma
            elif old == lemma:
                print(f"Warning: lexicon {self.filename!r}: lemma {orth!r} is there twice", file=log.v3)
            else:
                raise DataFileError(
                    f"Lexicon {self.filename!r}: orthography {orth!r} has two different lemmas, with pronunciations "
                    f"{[phon['phon'] for phon in old['phons']]} and {[phon['phon'] for phon in phons]}. Merge them."
                )

    def _score(self, phon: ElementTree.Element) -> float:
        text = phon.get("score", "0")
        try:
            return float(text)
        except ValueError as exc:
            raise DataFileError(
                f"Lexicon {self.filename!r}: expected a number as score of phon {phon.text!r}, got {text!r}."
            ) from exc
