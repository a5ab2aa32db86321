"""The parsers of text that are fuzzed: each takes any bytes, and ends in a result or in one of our own errors."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from returnn._config.cmdline import parse_override
from returnn._config.files import parse_json, parse_lines
from returnn.config import Config
from returnn.datasets.seq_lists import load_seq_lens_file, load_seq_list_file
from returnn.datasets.seq_order import order_seqs, parse_seq_ordering
from returnn.datasets.util.bliss import iter_segments
from returnn.datasets.util.vocabulary import BytePairEncoding, Vocabulary
from returnn.errors import ReturnnError
from returnn.lr import lr_file
from returnn.util.json_comments import load_json
from returnn.util.literal import parse_literal
from returnn.util.py_text_dict import load_text_dict
from returnn.util.secret_names import mask_args, mask_text

__all__ = ["TARGETS", "Target", "run_target", "fuzz_folder"]


class Target(NamedTuple):
    """A parser, and what its texts are made of."""

    parse: Callable[[bytes, Path], None]
    seeds: tuple[str, ...]
    #: parts that random texts are put together from, besides random characters
    tokens: tuple[str, ...]


_numbers = itertools.count()


def _file(data: bytes, folder: Path, suffix: str) -> str:
    """:return: a new file; readers may keep what they read by name"""
    path = folder / f"{next(_numbers)}{suffix}"
    path.write_bytes(data)
    return str(path)


def _from_file(read: Callable[[str], object], suffix: str) -> Callable[[bytes, Path], None]:
    def parse(data: bytes, folder: Path) -> None:
        filename = _file(data, folder, suffix)
        try:
            read(filename)
        finally:
            os.unlink(filename)

    return parse


def _from_text(read: Callable[[str], object]) -> Callable[[bytes, Path], None]:
    return lambda data, folder: _ignore(read(data.decode("utf8", errors="replace")))


def _ignore(_: object) -> None:
    pass


def _read_config_lines(text: str) -> None:
    config = Config()
    for key, value in parse_lines(text, "my.config"):
        config.set(key, value)
    for key in list(config.dict)[:5]:
        for get in (
            config.int,
            config.float,
            config.bool,
            config.list,
            config.int_list,
            config.float_list,
            config.int_pair,
        ):
            try:
                get(key, None)
            except ReturnnError:
                pass


def _read_overrides(text: str) -> None:
    for old in (..., None, True, 5, "text"):
        parse_override(text, old)


def _read_json(text: str) -> None:
    try:
        load_json(content=text)
    except ValueError as exc:  # which is what it promises, without being one of ours
        if not str(exc).startswith("Not valid json"):
            raise


def _read_ordering(text: str) -> None:
    order_seqs(parse_seq_ordering(text), 7, seed=1, seq_lens=[3, 1, 4, 1, 5, 9, 2].__getitem__)


def _read_bpe(filename: str) -> None:
    vocab = filename + ".vocab"
    Path(vocab).write_text(repr({c: i for i, c in enumerate(["<unk>", *"helowrd", *[c + "@@" for c in "helowrd"]])}))
    try:
        BytePairEncoding(vocab_file=vocab, bpe_file=filename, unknown_label="<unk>").get_seq("hello world")
    finally:
        os.unlink(vocab)


def _mask(text: str) -> None:
    mask_text(text)
    mask_args(text.split())


_NUMBERS = (
    "0",
    "1",
    "-1",
    "1e999",
    "-",
    "+",
    "9" * 30,
    "9" * 5000,
    "0x1",
    "1_0",
    "1j",
    ".5",
    "nan",
    "inf",
    "None",
    "True",
)
_PYTHON = (
    "{", "}", "[", "]", "(", ")", ",", ":", "'", '"', "'a'", "b'a'", "\\", "\n", " ", "#", "...", "*", "**", "lambda: 0", "f'{a}'", "f(", "a.b",
    "numpy.float32(", "np.array(", "array([1.,2.])", "set([", "float('inf')", "__import__('os').system('true')", "[" * 300, "-" * 300,
    "'a': ", "\ufeff", "\x00", "\ud7ff", "ä", "\u2028", "'''",
)  # fmt: skip
_JSON = (
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    '"a": ',
    "//",
    "/*",
    "*/",
    "\\u12",
    "\\ud800",
    "true",
    "null",
    "NaN",
    "\n",
    "[" * 2000,
    "ä",
    "\x00",
)
_LR = (*_PYTHON, "EpochData(", "learningRate=", "error=", "1: ", "'dev_score': ", "':meta:", "inf", "nan")
_LINES = (
    "\n",
    "\r\n",
    "\r",
    " ",
    "\t",
    "#",
    "a",
    "b c",
    "<unk>",
    "\x00",
    "\ufeff",
    "\u2028",
    "ä",
    "\x85",
    "@@",
    "</w>",
    "#version: 0.2",
    "=",
)
_XML = (
    "<?xml version='1.0' encoding='utf-8'?>", "<?xml version='1.0' encoding='utf-16'?>", "<?xml version='1.0' encoding='x'?>",
    "<corpus name='c'>", "</corpus>", "<corpus>", "<subcorpus name='s'>", "</subcorpus>", "<recording name='r' audio='a.wav'>",
    "<recording>", "</recording>", "<segment name='s' start='0.0' end='1.5'>", "<segment start='nan' end='inf'>", "<segment/>",
    "<segment start='a' end='-1e99999999'/>", "</segment>", "<orth>", "</orth>", "<speaker name='x'/>", "<include file='../x'/>", "<include/>",
    "&amp;", "&lol;", "&#0;", "&#x110000;", "<!DOCTYPE c [<!ENTITY lol 'lol'>]>", "<!DOCTYPE c [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>", "&x;",
    "<![CDATA[", "]]>", "<!--", "-->", "<speaker-description name='x'>", "</speaker-description>", "word", "\x00", "ä", "<", ">", "'", "\n",
)  # fmt: skip

_VOCAB = '{"a": 0, "b": 1}'
TARGETS: dict[str, Target] = {
    "literal": Target(_from_text(parse_literal), ("{'a': [1, 2.5, (None,)], 'b': {'x'}}",), (*_PYTHON, *_NUMBERS)),
    "override": Target(_from_text(_read_overrides), ("10 * 1000", "[1, 2]", "yes"), (*_PYTHON, *_NUMBERS, "yes", "off", "//", "%")),
    "learning_rates": Target(
        _from_text(lr_file.loads),
        ("{\n1: EpochData(learningRate=0.1, error={'ce': 1.0}),\n2: EpochData(learningRate=1e-05, error={\n'a': float('inf'),\n}),\n}\n",),
        (*_LR, *_NUMBERS),
    ),
    "bliss": Target(
        _from_file(lambda name: list(iter_segments(name)), ".xml"),
        (
            "<corpus name='c'><recording name='r' audio='r.wav'><segment name='s' start='0.0' end='1.5'><orth> a b </orth>"
            "</segment></recording></corpus>",
        ),
        _XML,
    ),
    "seq_list": Target(_from_file(load_seq_list_file, ".txt"), ("seq-1\nseq-2\n",), _LINES),
    "seq_lens": Target(_from_file(load_seq_lens_file, ".py"), ("{'a': 5, 'b': 3.0}", '{"a": 5}'), (*_PYTHON, *_JSON, *_NUMBERS)),
    "text_dict": Target(_from_file(load_text_dict, ".py"), ("{\n'a': 'x y',\n'b': [1, 2],\n}\n",), (*_PYTHON, *_NUMBERS, "{\n", "\n}", ",\n")),
    "vocab_text": Target(_from_file(lambda name: Vocabulary(name, unknown_label=None).get_seq("a b"), ".txt"), ("a\nb\nc\n",), _LINES),
    "vocab_dict": Target(
        _from_file(lambda name: Vocabulary(name, unknown_label=None).get_seq("a b"), ".py"), (_VOCAB,), (*_PYTHON, *_NUMBERS)
    ),
    "vocab_json": Target(
        _from_file(lambda name: Vocabulary(name, unknown_label=None).get_seq("a b"), ".json"), (_VOCAB, '["a", "b"]'), (*_JSON, *_NUMBERS)
    ),
    "bpe_codes": Target(_from_file(_read_bpe, ".codes"), ("#version: 0.2\nh e\nl l\nhe ll\nhell o</w>\n",), (*_LINES, "h e", "l l", "o</w>")),
    "config_lines": Target(
        _from_text(_read_config_lines), ("task train\nbatch_size 100,200\n# no\nflag on\n",), (*_LINES, *_NUMBERS, ",", "on", ":", "key 1\n", "x 1,2\n")
    ),
    "config_json": Target(_from_text(lambda text: parse_json(text, "a.config")), ('{"a": 1, // c\n "b": [1, 2]}',), (*_JSON, *_NUMBERS)),
    "json_comments": Target(_from_text(_read_json), ('{"a": "//", /* c */ "b": [1, 2]} // end',), (*_JSON, *_NUMBERS)),
    "seq_ordering": Target(
        _from_text(_read_ordering),
        ("laplace:.1000", "default_every_n:2", "sort_bin_shuffle:3", "random:2", "sorted_reverse"),
        ("default", "reverse", "random", "sorted", "sorted_reverse", "laplace", "sort_bin_shuffle", "sort_bin_shuffle_x2", ":", ".", " ", "²", *_NUMBERS),
    ),
    "secrets": Target(_from_text(_mask), ("password='x', http://a:b@c",), ("password", "=", ":", "'", '"', "\\", "token", "://", "@", "++", "\n", "if ")),
}  # fmt: skip


def run_target(name: str, data: bytes, folder: Path) -> str:
    """
    :param name: of TARGETS
    :param data: text to be parsed
    :param folder: for files
    :return: "ok" or "worded"
    :raises Exception: anything else than our own errors, which is a bug
    """
    try:
        TARGETS[name].parse(data, folder)
    except ReturnnError as exc:
        if len(str(exc)) < 10:
            raise AssertionError(f"an error without a sentence: {exc!r}") from exc
        return "worded"
    return "ok"


@contextmanager
def fuzz_folder() -> Iterator[Path]:
    """A folder in memory, where there is such."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)
