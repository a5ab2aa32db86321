"""
Lexicon (Bliss XML) whose phonemes are the labels of a vocabulary of byte pair encoding.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO
from xml.sax.saxutils import escape

from returnn.datasets._lm.lexicon import Lexicon
from returnn.datasets._vocabulary.files import read_vocab_file
from returnn.errors import DataFileError
from returnn.util.bpe import BpePostMergeSymbol, CharSyncSearch, PrefixTree
from returnn.util.fs import open_binary

__all__ = ["read_labels", "iter_lemmas", "write_lexicon"]

# XML 1.0, production "Char".
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_XML_STARTS = (b"<?xml", b"<lexicon")


def read_labels(filename: str, *, phonemes: bool) -> list[str]:
    """
    :param filename: lexicon XML, or any vocabulary file, see :func:`read_vocab_file`; ``.gz`` allowed
    :param phonemes: of a lexicon: its phonemes; else its words, in both cases in the order of the file
    :raises DataFileError: missing or broken file
    """
    with open_binary(filename) as f:
        try:
            start = f.read(20)
        except (OSError, EOFError, zlib.error) as exc:
            raise DataFileError(f"Cannot read file {filename!r}: {exc}.") from exc
    if not start.removeprefix(b"\xef\xbb\xbf").startswith(_XML_STARTS):
        return list(read_vocab_file(filename).labels)
    lexicon = Lexicon(filename)
    return list(lexicon.phoneme_list) if phonemes else [word for word in lexicon.lemmas if word]


def iter_lemmas(
    bpe_labels: Sequence[str], words: Sequence[str], *, skip_special: bool = False, lower_case: bool = False
) -> Iterator[tuple[str, list[list[str]]]]:
    """
    First the words in their order, then the labels which are whole words of the list and did not occur yet.

    :param bpe_labels: the vocabulary
    :param words: to be segmented
    :param skip_special: leave out ``[..]`` and ``<..>``, except those which are labels
    :param lower_case: of the words
    :return: each word once, with all its segmentations; none if the labels cannot give the word
    """
    tree = PrefixTree()
    for label in bpe_labels:
        tree.add(label)
    seen: set[str] = set()
    for word in words:
        if skip_special and (word[:1], word[-1:]) in (("[", "]"), ("<", ">")):
            continue
        if lower_case:
            word = word.lower()
        if word and word not in seen:
            seen.add(word)
            yield word, CharSyncSearch(tree, word).search()
    in_words = set(words)
    for label in bpe_labels:
        if label in in_words and label not in seen and label and not label.endswith(BpePostMergeSymbol):
            seen.add(label)
            yield label, [[label]]


def write_lexicon(file: IO[str], bpe_labels: Sequence[str], lemmas: Iterable[tuple[str, list[list[str]]]]) -> None:
    """
    :param file: open for writing
    :param bpe_labels: the phonemes, each with variation "context"
    :param lemmas: word and its pronunciations
    :raises DataFileError: a character that XML cannot represent
    """
    file.write("<lexicon>\n  <phoneme-inventory>\n")
    for label in bpe_labels:
        file.write(f"    <phoneme>\n      <symbol>{_xml(label)}</symbol>\n")
        file.write("      <variation>context</variation>\n    </phoneme>\n")
    file.write("  </phoneme-inventory>\n")
    for word, segmentations in lemmas:
        file.write(f"  <lemma>\n    <orth>{_xml(word)}</orth>\n")
        for segmentation in segmentations:
            file.write(f"    <phon>{_xml(' '.join(segmentation))}</phon>\n")
        file.write("  </lemma>\n")
    file.write("</lexicon>\n")


def _xml(text: str) -> str:
    wrong = _NOT_IN_XML.search(text)
    if wrong:
        raise DataFileError(
            f"{text!r} cannot be written to the lexicon: XML has no character {wrong[0]!r}. Remove it from the vocabulary."
        )
    return escape(text)
