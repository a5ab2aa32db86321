"""
Text cleaners: functions str -> str that normalize transcriptions, as options of datasets name them.
"""

from __future__ import annotations

import re

from returnn.util import number_words
from returnn.util.optional_import import optional_import

__all__ = [
    "lowercase",
    "lowercase_keep_special",
    "collapse_whitespace",
    "convert_to_ascii",
    "expand_abbreviations",
    "normalize_numbers",
    "basic_cleaners",
    "transliteration_cleaners",
    "english_cleaners",
    "english_cleaners_keep_special",
    "get_remove_chars",
    "get_replace",
]

_ABBREVIATIONS = {
    "mrs": "misses",
    "ms": "miss",
    "mr": "mister",
    "dr": "doctor",
    "st": "saint",
    "co": "company",
    "jr": "junior",
    "maj": "major",
    "gen": "general",
    "drs": "doctors",
    "rev": "reverend",
    "lt": "lieutenant",
    "hon": "honorable",
    "sgt": "sergeant",
    "capt": "captain",
    "esq": "esquire",
    "ltd": "limited",
    "col": "colonel",
    "ft": "fort",
}
_ABBREVIATION_RE = re.compile(rf"\b({'|'.join(_ABBREVIATIONS)})\.", re.IGNORECASE)
_NOT_SPECIAL_TOKEN_RE = re.compile(r"(?<!\S)(?!\[\S*\]|<\S*>)\S+")
_COMMA_NUMBER_RE = re.compile(r"([0-9][0-9,]+[0-9])")
_POUNDS_RE = re.compile(r"£([0-9,]*[0-9]+)")
_DOLLARS_RE = re.compile(r"\$([0-9.,]*[0-9]+)")
_DECIMAL_RE = re.compile(r"([0-9]+)\.([0-9]+)")
_ORDINAL_RE = re.compile(r"([0-9]+)(?:st|nd|rd|th)")
_NUMBER_RE = re.compile(r"[0-9]+")


def lowercase(text: str) -> str:
    """:return: in lower case"""
    return text.lower()


def lowercase_keep_special(text: str) -> str:
    """:return: in lower case, but for tokens that begin with ``[...]`` or ``<...>``"""
    return _NOT_SPECIAL_TOKEN_RE.sub(lambda match: match[0].lower(), text)


def collapse_whitespace(text: str) -> str:
    """:return: with one blank for each run of white space, and none at the ends"""
    return re.sub(r"\s+", " ", text.strip())


def convert_to_ascii(text: str) -> str:
    """
    :return: transliteration to ASCII by the package Unidecode, e.g. "Cafe" for "Café"
    :raises MissingDependencyError: text with other characters than ASCII, and Unidecode is not installed
    """
    if text.isascii():
        return text
    package = optional_import("unidecode", needed_by="the text cleaner convert_to_ascii", install="Unidecode")
    result: str = package.unidecode(text)
    return result


def expand_abbreviations(text: str) -> str:
    """:return: e.g. "doctor" for "Dr." """
    return _ABBREVIATION_RE.sub(lambda match: _ABBREVIATIONS[match[1].lower()], text)


def _dollar_words(match: re.Match[str]) -> str:
    """:return: e.g. "5 dollars, 50 cents" """
    amount = match[1]
    parts = amount.replace(",", "").split(".")
    if len(parts) > 2:
        return amount + " dollars"
    dollars = int(parts[0]) if parts[0] else 0
    cents = int(parts[1]) if len(parts) > 1 and parts[1] else 0
    words = []
    if dollars:
        words.append(f"{dollars} {'dollar' if dollars == 1 else 'dollars'}")
    if cents:
        words.append(f"{cents} {'cent' if cents == 1 else 'cents'}")
    return ", ".join(words) or "zero dollars"


def _integer_words(digits: str) -> str:
    number = int(digits)
    if digits.startswith("0") or number == 747:
        return number_words.digit_words(digits)
    if 1000 < number < 3000:
        # As a year.
        if number == 2000:
            return "two thousand"
        if 2000 < number < 2010:
            return "two thousand " + number_words.cardinal_words(str(number % 100))
        if number % 100 == 0:
            return number_words.cardinal_words(str(number // 100)) + " hundred"
        return number_words.pairwise_words(digits)
    try:
        return number_words.cardinal_words(digits)
    except ValueError:  # too large to have a name
        return number_words.digit_words(digits)


def _ordinal_words(match: re.Match[str]) -> str:
    try:
        return number_words.ordinal_words(match[1])
    except ValueError:  # too large to have a name
        return match[0]


def normalize_numbers(text: str, with_spacing: bool = False) -> str:
    """
    English words for numbers, amounts of money, ordinals.

    :param text: any
    :param with_spacing: a blank on both sides of each number
    :return: e.g. "three point fourteen" for "3.14", "nineteen ninety-nine" for "1999"
    """
    text = _COMMA_NUMBER_RE.sub(lambda match: match[1].replace(",", ""), text)
    text = _POUNDS_RE.sub(r"\1 pounds", text)
    text = _DOLLARS_RE.sub(_dollar_words, text)
    text = _DECIMAL_RE.sub(r"\1 point \2", text)
    text = _ORDINAL_RE.sub(_ordinal_words, text)
    space = " " if with_spacing else ""
    return _NUMBER_RE.sub(lambda match: f"{space}{_integer_words(match[0])}{space}", text)


def basic_cleaners(text: str) -> str:
    """:return: lower case, white space collapsed"""
    return collapse_whitespace(lowercase(text))


def transliteration_cleaners(text: str) -> str:
    """:return: ASCII, lower case, white space collapsed"""
    return collapse_whitespace(lowercase(convert_to_ascii(text)))


def english_cleaners(text: str) -> str:
    """:return: ASCII, lower case, numbers and abbreviations as words, white space collapsed"""
    text = normalize_numbers(lowercase(convert_to_ascii(text)), with_spacing=True)
    return collapse_whitespace(expand_abbreviations(text))


def english_cleaners_keep_special(text: str) -> str:
    """:return: as :func:`english_cleaners`, but special tokens keep their case, see :func:`lowercase_keep_special`"""
    text = normalize_numbers(lowercase_keep_special(convert_to_ascii(text)), with_spacing=True)
    return collapse_whitespace(expand_abbreviations(text))


class get_remove_chars:  # noqa: N801
    """Cleaner that replaces each of some characters by a blank, and collapses white space. Can be pickled."""

    def __init__(self, chars: str) -> None:
        """
        :param chars: to be removed
        """
        self._table = str.maketrans(dict.fromkeys(chars, " "))

    def __call__(self, text: str) -> str:
        """:return: without the characters"""
        return collapse_whitespace(text.translate(self._table))


class get_replace:  # noqa: N801
    """Cleaner that replaces a text by another. Can be pickled."""

    def __init__(self, old: str, new: str) -> None:
        """
        :param old: what to look for
        :param new: what to put there
        """
        self._old, self._new = old, new

    def __call__(self, text: str) -> str:
        """:return: with all occurrences replaced"""
        return text.replace(self._old, self._new)
