"""
English words of whole numbers, in the spelling of the package ``inflect`` with the options that the text cleaners use.
"""

from __future__ import annotations

__all__ = ["cardinal_words", "ordinal_words", "pairwise_words", "digit_words"]

_UNITS = "zero one two three four five six seven eight nine".split()
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
_THOUSANDS = (
    "- thousand million billion trillion quadrillion quintillion sextillion septillion octillion nonillion decillion"
).split()
_IRREGULAR_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}


def _below_hundred(number: int) -> str:
    if number < 10:
        return _UNITS[number]
    if number < 20:
        return _TEENS[number - 10]
    tens, unit = divmod(number, 10)
    return f"{_TENS[tens]}-{_UNITS[unit]}" if unit else _TENS[tens]


def _below_thousand(number: int, *, conjunction: str) -> str:
    hundreds, rest = divmod(number, 100)
    words = [f"{_UNITS[hundreds]} hundred"] if hundreds else []
    if hundreds and rest and conjunction:
        words.append(conjunction)
    if rest:
        words.append(_below_hundred(rest))
    return " ".join(words)


def cardinal_words(digits: str, *, conjunction: str = "") -> str:
    """
    :param digits: decimal digits, leading zeros allowed
    :param conjunction: between the hundreds and the rest ("and" or nothing)
    :return: e.g. "two thousand, three hundred forty-five", "three thousand one"
    :raises ValueError: 10 ** 36 or larger
    """
    number = int(digits)
    if number == 0:
        return _UNITS[0]
    groups: list[int] = []
    while number:
        number, group = divmod(number, 1000)
        groups.append(group)
    if len(groups) > len(_THOUSANDS):
        raise ValueError(f"number {digits} is too large for words")
    parts = []
    for power in range(len(groups) - 1, -1, -1):
        if groups[power]:
            words = _below_thousand(groups[power], conjunction=conjunction)
            parts.append(f"{words} {_THOUSANDS[power]}" if power else words)
    if len(groups) > 1 and 0 < groups[0] < 100:
        # "one thousand and one", "one thousand one": without comma.
        return " ".join(filter(None, [", ".join(parts[:-1]), conjunction, parts[-1]]))
    return ", ".join(parts)


def ordinal_words(digits: str) -> str:
    """
    :param digits: decimal digits
    :return: e.g. "twenty-third", "one hundred and first"
    :raises ValueError: too large
    """
    words = cardinal_words(digits, conjunction="and")
    cut = max(words.rfind(" "), words.rfind("-")) + 1
    head, last = words[:cut], words[cut:]
    if last in _IRREGULAR_ORDINALS:
        return head + _IRREGULAR_ORDINALS[last]
    return head + (last[:-1] + "ieth" if last.endswith("y") else last + "th")


def digit_words(digits: str) -> str:
    """:return: e.g. "seven four seven" """
    return " ".join(_UNITS[int(digit)] for digit in digits)


def pairwise_words(digits: str, *, zero: str = "oh") -> str:
    """
    Two digits at a time, as years are read.

    :param digits: decimal digits, an even number of them
    :param zero: the first digit of a pair, if it is 0
    :return: e.g. "nineteen ninety-nine", "ten oh one"
    """
    words = []
    for pos in range(0, len(digits), 2):
        tens, unit = int(digits[pos]), int(digits[pos + 1])
        if tens:
            words.append(_below_hundred(tens * 10 + unit))
        else:
            words.append(f"{zero} {_UNITS[unit] if unit else zero}")
    return " ".join(words)
