"""Values as text: like ``repr`` where that is small and harmless."""

from __future__ import annotations

import collections
import dataclasses
import sys
from typing import Any, NamedTuple

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn.errors import OptionError, describe
from returnn.util.safe_repr import safe_repr, shorten

_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.complex_numbers(),
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner, inner),
        st.dictionaries(st.text(st.sampled_from("abc"), max_size=3), inner, max_size=3),
        st.frozensets(_LEAVES, max_size=3),
    ),
    max_leaves=6,
)


@given(_VALUES)
def test_small_values_as_repr(value: Any) -> None:
    text = repr(value)
    if len(text) <= 500 and "..." not in safe_repr(value, limit=1000):
        assert safe_repr(value, limit=1000) == text


@given(_VALUES, st.integers(0, 60))
def test_limit(value: Any, limit: int) -> None:
    assert len(safe_repr(value, limit=limit)) <= limit + 3


@dataclasses.dataclass
class _Opts:
    host: str
    api_key: str
    hidden_anyway: int = dataclasses.field(default=3, repr=False)


class _Login(NamedTuple):
    user: str
    password: str


class _Dict(dict):  # type: ignore[type-arg]  # as users write it
    pass


class _Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class _Shows:
    def __repr__(self) -> str:
        return "Shows(password='x-x')"


@pytest.mark.parametrize(
    "value",
    [
        {"password": "x-x"}, {"a": [{"b": ({"secret": "x-x"},)}]}, _Opts("h", "x-x"), [_Login("u", "x-x")], ("password", "x-x"),
        {"password": "x-x"}.items(), _Dict(api_key="x-x"), collections.OrderedDict(token="x-x"), _Shows(),
        ["rnn.py", "++password", "x-x"], {b"password": b"x-x"}, "postgres://u:x-x@host", collections.defaultdict(str, pwd="x-x"),
    ],
)  # fmt: skip
def test_secrets_are_hidden(value: object) -> None:
    text = safe_repr(value)
    assert "x-x" not in text and "hidden" in text
    assert "x-x" in repr(value)


def test_names() -> None:
    assert safe_repr("x-x", name="password") == "<hidden, str>"
    assert safe_repr(None, name="password") == "None"
    assert safe_repr("x-x", name="host") == "'x-x'"


def test_large_and_strange_values() -> None:
    again: list[Any] = [1]
    again.append(again)
    assert safe_repr(again) == "[1, [...]]"
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert safe_repr(deep) == "[[[[[[[...]]]]]]]"
    assert safe_repr(_Broken()) == "<repr failed: RuntimeError>"
    assert safe_repr([_Broken(), 1]) == "[<repr failed: RuntimeError>, 1]"
    assert safe_repr(10**100_000).startswith("<int of 3321")
    assert safe_repr("x" * 10**7, limit=10) == "'xxxxxxxxx..."
    assert safe_repr(range(10**9)) == "range(0, 1000000000)"
    assert len(safe_repr(list(range(10**6)))) == 303
    assert safe_repr([list(range(1000))] * 3, limit=10_000).count("... (1000 items)") == 3
    assert safe_repr(numpy.zeros((3000, 2), "float32")) == "<ndarray [3000, 2] float32>"
    assert safe_repr(numpy.arange(3)) == "array([0, 1, 2])"
    assert safe_repr(sys) == "<module 'sys'>"
    assert safe_repr(collections.deque([1])) == "deque([1])"
    assert safe_repr(_Opts("h", "")) == "_Opts(host='h', api_key='')"


def test_tensors_are_not_waited_for() -> None:
    torch = pytest.importorskip("torch")
    assert safe_repr(torch.zeros(2)) == "tensor([0., 0.])"
    assert safe_repr(torch.zeros(20, 3)) == "<Tensor [20, 3] float32>"
    assert safe_repr(torch.nn.Parameter(torch.zeros(20, device="meta"))) == "<Parameter [20] float32, meta>"


def test_shorten() -> None:
    assert shorten("abc", 3) == "abc" and shorten("abcd", 3) == "abc..."


def test_sentences_for_options() -> None:
    text = str(OptionError("hub_password", expected="str", got=5123))
    assert text == 'option "hub_password" is invalid: expected str, got <hidden, int> (int).'
    assert "x-x" not in str(OptionError("opts", expected="str", got={"api_key": "x-x"}))
    assert "x-x" not in describe("bad", expected="list", got=["++token", "x-x"])
