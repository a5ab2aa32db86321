"""English number words. The expected values are what the package inflect 7.6 gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn.util.number_words import cardinal_words, digit_words, ordinal_words, pairwise_words


@pytest.mark.parametrize(
    ("digits", "cardinal", "ordinal"),
    [
        ("0", "zero", "zeroth"),
        ("8", "eight", "eighth"),
        ("00012", "twelve", "twelfth"),
        ("20", "twenty", "twentieth"),
        ("101", "one hundred one", "one hundred and first"),
        ("1001", "one thousand one", "one thousand and first"),
        ("1100", "one thousand, one hundred", "one thousand, one hundredth"),
        ("1000099", "one million ninety-nine", "one million and ninety-ninth"),
        ("2345678", "two million, three hundred forty-five thousand, six hundred seventy-eight",
         "two million, three hundred and forty-five thousand, six hundred and seventy-eighth"),
        ("1" + 33 * "0", "one decillion", "one decillionth"),
    ],
)  # fmt: skip
def test_cardinals_and_ordinals(digits: str, cardinal: str, ordinal: str) -> None:
    assert cardinal_words(digits) == cardinal
    assert ordinal_words(digits) == ordinal


def test_digits_and_pairs() -> None:
    assert digit_words("0747") == "zero seven four seven"
    assert pairwise_words("1999") == "nineteen ninety-nine"
    assert pairwise_words("1001") == "ten oh one"
    assert pairwise_words("1000") == "ten oh oh"


@given(st.integers(10**36, 10**50))
def test_too_large(number: int) -> None:
    with pytest.raises(ValueError, match="too large"):
        cardinal_words(str(number))


@given(st.integers(0, 10**36 - 1))
def test_different_numbers_have_different_words(number: int) -> None:
    assert cardinal_words(str(number)) != cardinal_words(str((number + 1) % 10**36))
    assert ordinal_words(str(number)) != cardinal_words(str(number))
