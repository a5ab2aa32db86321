"""
The text that lists the sequences of an ogg-zip: a Python literal, a list of dicts. Read into columns.
"""

from __future__ import annotations

import ast
import codecs
import dataclasses
import re
from typing import Any

import numpy

from returnn.datasets._audio.string_column import Block, StringColumn, block_of, outside_heap
from returnn.errors import DataFileError, MissingPartError, describe
from returnn.util.literal import LiteralError, parse_literal

__all__ = ["MetaColumns", "parse_meta_text"]

_BLOCK_ENTRIES = 1 << 13
_UTF8_CHUNK_BYTES = 1 << 20
# Different layouts (order of keys, which of them) in one file that are read fast.
_MAX_LAYOUTS = 8

_SPACE = rb"[ \t\r\n]*"
_SINGLE_QUOTED = rb"'[^'\\\n\r\0]*(?:\\[^\n\r\0][^'\\\n\r\0]*)*'"
_DOUBLE_QUOTED = rb'"[^"\\\n\r\0]*(?:\\[^\n\r\0][^"\\\n\r\0]*)*"'
_NUMBER = rb"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|Infinity|inf|nan|NaN)"
# Of a string: group 1 is the text as it is, group 2 the literal if it has escapes or double quotes.
_STRING_GROUPS = rb"(?:'([^'\\\n\r\0]*)'|(" + _SINGLE_QUOTED + rb"|" + _DOUBLE_QUOTED + rb"))"
_ANY_VALUE = rb"(?:" + _SINGLE_QUOTED + rb"|" + _DOUBLE_QUOTED + rb"|" + _NUMBER + rb"|None|True|False)"
_KEY = rb"(?:'([A-Za-z_0-9]+)'|\"([A-Za-z_0-9]+)\")"
_FIRST_ITEM = re.compile(_SPACE + _KEY + _SPACE + rb":" + _SPACE + _ANY_VALUE + _SPACE)
_COMMA = re.compile(rb"," + _SPACE)


@dataclasses.dataclass
class MetaColumns:
    """
    N sequences.

    :param text: transcriptions
    :param tag: sequence tags
    :param file: names of the audio files, "" where there is none
    :param duration: float64 [N], seconds; may be inf or nan
    """

    text: StringColumn
    tag: StringColumn
    file: StringColumn
    duration: numpy.ndarray

    def __len__(self) -> int:
        return len(self.duration)


def parse_meta_text(data: bytes, *, where: str, need_file: bool) -> MetaColumns:
    """
    Entries as the tool bliss-to-ogg-zip writes them (and others, as long as most entries have the same keys in the same
    order, with plain strings and numbers) are read without building Python objects per entry.
    The result is always the same as by evaluating the literal.

    :param data: UTF-8
    :param where: file and member, for messages
    :param need_file: the first entry must have an audio file
    :return: in order of the text
    :raises DataFileError: no such literal, an entry of wrong form, or no entries
    :raises MissingPartError: (a KeyError) an entry has no text or duration
    """
    _check_utf8(data, where)
    try:
        columns = _FastReader(data, where).read()
    except _OtherForm:
        columns = _read_literal(data, where)
    if not len(columns):
        raise DataFileError(
            describe("The meta text has no entries", where=where, todo="Check the program that wrote it")
        )
    if not columns.file.offsets[1]:
        if need_file:
            raise DataFileError(
                f"{where}: feature extraction is enabled, but no audio files are specified: the first entry has no 'file'. "
                "Set audio=None, or write the data with audio."
            )
        if not columns.tag.offsets[1]:
            raise DataFileError(
                describe(
                    "The first entry has neither 'seq_name' nor 'file'",
                    where=where,
                    todo="Give each entry a 'seq_name'",
                )
            )
    return columns


def _check_utf8(data: bytes, where: str) -> None:
    if data.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf8")()  # in parts: a large text need not be there twice
    try:
        for start in range(0, len(data), _UTF8_CHUNK_BYTES):
            decoder.decode(data[start : start + _UTF8_CHUNK_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as exc:
        raise DataFileError(f"The meta text {where} is no UTF-8 text: {exc}.") from exc


class _Builder:
    """Collects entries; their bytes are put together now and then."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.tags: list[bytes] = []
        self.files: list[bytes] = []
        self.durations: list[float] = []
        self._blocks: tuple[list[Block], ...] = ([], [], [])
        self._duration_blocks: list[numpy.ndarray] = []
        self.num_flushed = 0

    def flush(self) -> None:
        """Pack the lists."""
        for blocks, texts in zip(self._blocks, (self.texts, self.tags, self.files), strict=True):
            buf, lens = block_of(texts)
            blocks.append((outside_heap(buf), numpy.frombuffer(outside_heap(lens.data), dtype=lens.dtype)))
            texts.clear()
        durations = numpy.array(self.durations, dtype=numpy.float64)
        self._duration_blocks.append(numpy.frombuffer(outside_heap(durations.data), dtype=durations.dtype))
        self.num_flushed += len(self.durations)
        self.durations.clear()

    def columns(self) -> MetaColumns:
        """:return: all entries"""
        self.flush()
        columns = []
        for blocks in self._blocks:
            columns.append(StringColumn.from_blocks(blocks))
            blocks.clear()
        text, tag, file = columns
        return MetaColumns(text, tag, file, numpy.concatenate(self._duration_blocks))

    def add(self, entry: object, where: str) -> None:
        """
        :param entry: should be a dict
        :param where: for errors
        """
        idx = self.num_flushed + len(self.durations)
        if not isinstance(entry, dict):
            raise DataFileError(
                describe(f"Entry {idx} of the meta text has a wrong form", where=where, expected="a dict", got=entry)
            )
        tag, file = entry.get("seq_name"), entry.get("file")
        if tag is None:
            tag = file if file is not None else ""
        name = f"Entry {idx} (tag {tag!r}) of the meta text"
        for key in ("text", "duration"):
            if key not in entry:
                raise MissingPartError(
                    describe(
                        f"{name} has no {key!r}, only {list(entry)}",
                        where=where,
                        todo="Check the program that wrote it",
                    )
                )
        self.texts.append(_encoded(entry["text"], "text", name, where))
        self.tags.append(_encoded(tag, "seq_name", name, where))
        self.files.append(b"" if file is None else _encoded(file, "file", name, where))
        duration = entry["duration"]
        if isinstance(duration, bool) or not isinstance(duration, (int, float)):
            raise DataFileError(
                describe(f"{name} has an invalid 'duration'", where=where, expected="seconds as float", got=duration)
            )
        self.durations.append(float(duration))


def _encoded(value: object, key: str, name: str, where: str) -> bytes:
    if not isinstance(value, str):
        raise DataFileError(describe(f"{name} has an invalid {key!r}", where=where, expected="str", got=value))
    try:
        return value.encode("utf8")
    except UnicodeEncodeError as exc:
        raise DataFileError(
            describe(f"{name} has an invalid {key!r}", where=where, expected="Unicode text", got=value)
        ) from exc


def _read_literal(data: bytes, where: str) -> MetaColumns:
    try:
        entries: Any = parse_literal(data, filename=where)
    except LiteralError as exc:
        raise DataFileError(f"The meta text is no list of dicts. {exc}") from exc
    if not isinstance(entries, (list, tuple)):
        raise DataFileError(
            describe("The meta text has a wrong form", where=where, expected="a list of dicts", got=entries)
        )
    builder = _Builder()
    for entry in entries:
        builder.add(entry, where)
    return builder.columns()


class _OtherForm(Exception):
    """The text has something that only the parser of literals knows."""


@dataclasses.dataclass(frozen=True)
class _Layout:
    """
    Entries with the same keys in the same order.

    :param pattern: of an entry, the comma after it, and white space. The last group is the comma
    :param text: number of the first of two groups, see _STRING_GROUPS
    :param file: likewise
    :param tag: likewise
    :param duration: number of the group
    """

    pattern: re.Pattern[bytes]
    text: int
    file: int
    tag: int
    duration: int


def _layout_of_line(line: bytes) -> _Layout | None:
    """
    :param line: with one dict
    :return: None: not simple enough
    """
    keys: list[bytes] = []
    pos = line.find(b"{") + 1
    while match := _FIRST_ITEM.match(line, pos):
        keys.append(match[1] or match[2])
        pos = match.end()
        comma = _COMMA.match(line, pos)
        if comma is None:
            break
        pos = comma.end()
    if line[pos : pos + 1] != b"}" or len(set(keys)) != len(keys) or not {b"text", b"duration"}.issubset(keys):
        return None
    groups: dict[bytes, int] = {}
    num_groups = 0
    items = []
    for key in keys:
        value = _ANY_VALUE
        if key in (b"text", b"file", b"seq_name"):
            value = _STRING_GROUPS if key == b"text" else rb"(?:" + _STRING_GROUPS + rb"|None)"
            groups[key] = num_groups
            num_groups += 2
        elif key == b"duration":
            value = rb"(" + _NUMBER + rb")"
            groups[key] = num_groups
            num_groups += 1
        items.append(rb"(?:'" + key + rb"'|\"" + key + rb"\")" + _SPACE + rb":" + _SPACE + value)
    sep = _SPACE + rb"," + _SPACE
    pattern = rb"\{" + _SPACE + sep.join(items) + _SPACE + rb",?" + _SPACE + rb"\}"
    # Two groups that never match stand for keys that are not there.
    pattern += rb"((?!))?((?!))?" + _SPACE + rb"(,)?" + _SPACE
    return _Layout(
        re.compile(pattern),
        groups[b"text"],
        groups.get(b"file", num_groups),
        groups.get(b"seq_name", num_groups),
        groups[b"duration"],
    )


def _unquote(literal: bytes) -> bytes:
    """
    :param literal: of a string without line breaks
    :return: its value in UTF-8
    """
    num_escapes = literal.count(b"\\")
    if not num_escapes:
        return literal[1:-1]
    if num_escapes == literal.count(b"\\'"):
        return literal[1:-1].replace(b"\\'", b"'")
    try:
        value: str = ast.literal_eval(literal.decode("utf8"))
        return value.encode("utf8")
    except (SyntaxError, ValueError) as exc:
        raise _OtherForm from exc


class _FastReader:
    """Reads a list of dicts, entry after entry, by patterns made of the first ones."""

    def __init__(self, data: bytes, where: str) -> None:
        """
        :param data: UTF-8
        :param where: for errors
        """
        self._data = data
        self._where = where
        self._builder = _Builder()
        self._layouts: list[_Layout] = []

    def read(self) -> MetaColumns:
        """
        :return: all entries
        :raises _OtherForm: not possible that way
        """
        data = self._data
        start = re.compile(_SPACE + rb"\[" + _SPACE).match(data)
        if start is None:
            raise _OtherForm
        pos, more = start.end(), True
        while more and data[pos : pos + 1] != b"]":
            pos, more = self._read_run(pos)
        if data[pos : pos + 1] != b"]" or data[pos + 1 :].strip(b" \t\r\n"):
            raise _OtherForm
        return self._builder.columns()

    def _read_run(self, pos: int) -> tuple[int, bool]:
        """
        Read as many entries of one layout as there are; if none, then one of any form.

        :param pos: of an entry
        :return: position behind; whether a comma was there, so that another entry may follow
        """
        for i, layout in enumerate(self._layouts):
            match = layout.pattern.match(self._data, pos)
            if match is not None:
                if i:
                    self._layouts.insert(0, self._layouts.pop(i))
                return self._read_run_of_layout(layout, match)
        end = self._data.find(b"\n", pos)
        line = self._data[pos : end if end >= 0 else len(self._data)]
        if len(self._layouts) < _MAX_LAYOUTS:
            new = _layout_of_line(line)
            match = new.pattern.match(self._data, pos) if new is not None else None
            if new is not None and match is not None:
                self._layouts.insert(0, new)
                return self._read_run_of_layout(new, match)
        return self._read_line(line, end)

    def _read_line(self, line: bytes, end: int) -> tuple[int, bool]:
        """One dict of any form on a line of its own. Same result as :func:`_read_run`."""
        line = line.rstrip()
        more = line.endswith(b",")
        if end < 0 or not line.startswith(b"{") or not line.endswith((b"}", b"},")):
            raise _OtherForm
        try:
            entry = parse_literal(line[:-1] if more else line)
        except LiteralError as exc:
            raise _OtherForm from exc
        if not isinstance(entry, dict):
            raise _OtherForm
        self._builder.add(entry, self._where)
        space = re.compile(_SPACE).match(self._data, end)
        assert space is not None
        return space.end(), more

    def _read_run_of_layout(self, layout: _Layout, match: re.Match[bytes]) -> tuple[int, bool]:
        """
        :param layout: of the entry
        :param match: of its pattern there
        :return: see :func:`_read_run`
        """
        builder, data = self._builder, self._data
        match_entry = layout.pattern.match
        text_group, file_group, tag_group, duration_group = layout.text, layout.file, layout.tag, layout.duration
        next_match: re.Match[bytes] | None = match
        while next_match is not None:
            match = next_match
            groups = match.groups()
            text = groups[text_group]
            if text is None:
                text = _unquote(groups[text_group + 1])
            file = groups[file_group]
            if file is None:
                literal = groups[file_group + 1]
                file = _unquote(literal) if literal is not None else b""
            tag = groups[tag_group]
            if tag is None:
                literal = groups[tag_group + 1]
                tag = _unquote(literal) if literal is not None else file
            builder.texts.append(text)
            builder.files.append(file)
            builder.tags.append(tag)
            builder.durations.append(float(groups[duration_group]))
            if len(builder.durations) >= _BLOCK_ENTRIES:
                builder.flush()
            if groups[-1] is None:
                return match.end(), False
            next_match = match_entry(data, match.end())
        return match.end(), True
