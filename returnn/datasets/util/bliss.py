"""
Reader of Bliss corpus XML files: the segments one after the other, without keeping the document.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import os
import re
import zlib
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import BinaryIO, cast
from xml.parsers import expat

from returnn.errors import DataFileError, describe

__all__ = ["BlissSegment", "iter_segments"]

_CHUNK_BYTES = 1 << 16
_GZIP_MAGIC = b"\x1f\x8b"
_SAYS_UTF8 = re.compile(rb"""\s*<\?xml[^>]*encoding\s*=\s*["']utf_?8["']""", re.IGNORECASE)
_SECTIONS = ("corpus", "subcorpus", "recording", "segment")


@dataclasses.dataclass(frozen=True)
class BlissSegment:
    """
    One segment of a recording.

    :param name: names of all enclosing elements and of the segment, joined by "/"
    :param recording_name: likewise, of the recording
    :param audio: file name of the recording, as written; None if not given
    :param start: in seconds from the begin of the recording
    :param end: in seconds; Decimal("Infinity") means the end of the recording
    :param start_text: start as written; "0" if not given
    :param end_text: end as written; "inf" if not given
    :param orth: transcription with white space collapsed; "" if there is none
    :param speaker_name: of the speaker element in the segment; None if there is none
    """

    name: str
    recording_name: str
    audio: str | None
    start: Decimal
    end: Decimal
    start_text: str
    end_text: str
    orth: str
    speaker_name: str | None


def iter_segments(filename: str | os.PathLike[str], *, resolve_includes: bool = True) -> Iterator[BlissSegment]:
    """
    Format: the Bliss corpus of the RWTH ASR toolkit: ``corpus`` with nested ``subcorpus``, ``recording`` (name, audio) and ``segment`` (name, start, end; ``orth``, ``speaker``).
    An element without name gets its position (from 1) among all element children of its parent.

    ``<include file="..."/>`` stands for the content of the corpus in that file, relative to the including file.
    If this corpus has another name than the including element, its name is one more part of the segment names.

    :param filename: XML file, plain or compressed by gzip
    :param resolve_includes: False: skip includes
    :return: in the order of the file
    :raises DataFileError: with file and line: the file is missing, no XML, no Bliss corpus, or a time is invalid
    """
    return _iter_file(os.fspath(filename), (), (), resolve_includes)


@dataclasses.dataclass(frozen=True)
class _Include:
    """
    :param filename: resolved
    :param names: of the including elements
    """

    filename: str
    names: tuple[str, ...]


def _iter_file(
    filename: str, names: tuple[str, ...], including: tuple[str, ...], resolve_includes: bool
) -> Iterator[BlissSegment]:
    """
    :param filename: of this file
    :param names: of the elements that include it
    :param including: files that are being read, outermost first
    :param resolve_includes: see :func:`iter_segments`
    """
    including = (*including, os.path.realpath(filename))
    handler = _Handler(filename, names)
    try:
        with _open(filename) as file:
            while not handler.finished:
                for item in handler.feed(file.read(_CHUNK_BYTES)):
                    if isinstance(item, BlissSegment):
                        yield item
                    elif resolve_includes:
                        if os.path.realpath(item.filename) in including:
                            raise DataFileError(
                                describe(f"Corpus {filename!r} includes itself, by {item.filename!r}", where=filename)
                            )
                        yield from _iter_file(item.filename, item.names, including, resolve_includes)
    except (OSError, EOFError, zlib.error) as exc:
        if isinstance(exc, DataFileError):
            raise
        included = f", included by {including[-2]!r}" if len(including) > 1 else ""
        raise DataFileError(f"Cannot read the Bliss corpus {filename!r}{included}: {exc}.") from exc


@contextlib.contextmanager
def _open(filename: str) -> Iterator[BinaryIO]:
    with open(filename, "rb") as file:
        if file.peek(2)[:2] == _GZIP_MAGIC:
            with gzip.open(file, "rb") as unzipped:
                yield cast(BinaryIO, unzipped)
        else:
            yield file


class _Handler:
    """Collects what is complete while the text of one file is fed."""

    def __init__(self, filename: str, names: tuple[str, ...]) -> None:
        """
        :param filename: for messages, and for includes relative to it
        :param names: of the elements that include it
        """
        self._filename = filename
        self._including_names = names
        self._names: list[str] = list(names)
        self._sections: list[str] = []  # names of the open elements
        self._num_children: list[int] = [0]  # of each open element
        self._items: list[BlissSegment | _Include] = []
        self._audio: str | None = None
        self._times = ("0", "inf")
        self._orth: list[str] | None = None
        self._orth_depth: int | None = None
        self._speaker: str | None = None
        self.finished = False
        self._parser: expat.XMLParserType | None = None

    def _make_parser(self, data: bytes) -> expat.XMLParserType:
        """:param data: start of the file"""
        # The parser itself does not know this frequent name of UTF-8.
        parser = expat.ParserCreate("utf-8" if _SAYS_UTF8.match(data) else None)
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        return parser

    def feed(self, data: bytes) -> list[BlissSegment | _Include]:
        """
        :param data: next bytes of the file; none: its end
        :return: what is complete with it
        """
        self._items = []
        if self._parser is None:
            self._parser = self._make_parser(data)
        try:
            self._parser.Parse(data, not data)
        except expat.ExpatError as exc:
            raise DataFileError(
                f"Bliss corpus {self._filename!r}, line {exc.lineno}: this is no valid XML: "
                f"{expat.errors.messages[exc.code]}."
            ) from exc
        except DataFileError:
            raise
        except (LookupError, ValueError) as exc:  # it declares such an encoding
            raise DataFileError(f"Bliss corpus {self._filename!r}: {exc}. Convert it to the encoding UTF-8.") from exc
        self.finished = not data
        return self._items

    def _error(self, what: str) -> DataFileError:
        line = self._parser.CurrentLineNumber if self._parser else 1
        return DataFileError(f"Bliss corpus {self._filename!r}, line {line}: {what}.")

    def _start(self, tag: str, attrs: dict[str, str]) -> None:
        self._num_children[-1] += 1
        position = self._num_children[-1]
        parent = self._sections[-1] if self._sections else None
        if parent is None and tag != "corpus":
            raise self._error(f"expected <corpus> as root element, got <{tag}>")
        self._sections.append(tag)
        self._num_children.append(0)
        if tag in _SECTIONS:
            self._start_section(tag, attrs, parent, position)
        elif tag == "include":
            self._start_include(attrs, parent)
        elif parent == "segment" and tag == "orth" and self._orth is None:
            self._orth = []
            self._orth_depth = len(self._sections)
        elif parent == "segment" and tag == "speaker":
            self._speaker = attrs.get("name")

    def _start_section(self, tag: str, attrs: dict[str, str], parent: str | None, position: int) -> None:
        allowed = {
            "corpus": (None,),
            "subcorpus": ("corpus", "subcorpus"),
            "recording": ("corpus", "subcorpus"),
            "segment": ("recording",),
        }
        if parent not in allowed[tag]:
            raise self._error(f"<{tag}> is not allowed inside of <{parent}>")
        if tag == "corpus":
            if "name" not in attrs:
                raise self._error('<corpus> needs a name: write <corpus name="...">')
            if self._names and self._names[-1] == attrs["name"]:
                return  # included by the element of the same name
            self._names.append(attrs["name"])
            return
        self._names.append(attrs.get("name", str(position)))
        if tag == "recording":
            self._audio = attrs.get("audio")
        elif tag == "segment":
            self._times = (attrs.get("start", "0").strip(), attrs.get("end", "inf").strip())
            self._orth = None
            self._speaker = None

    def _start_include(self, attrs: dict[str, str], parent: str | None) -> None:
        if parent not in ("corpus", "subcorpus"):
            raise self._error(f"<include> is not allowed inside of <{parent}>")
        if not attrs.get("file"):
            raise self._error('<include> needs a file: write <include file="..."/>')
        included = os.path.join(os.path.dirname(self._filename), attrs["file"])
        self._items.append(_Include(included, tuple(self._names)))

    def _text(self, text: str) -> None:
        if self._orth is not None and self._orth_depth is not None:
            self._orth.append(text)

    def _end(self, tag: str) -> None:
        if self._orth_depth == len(self._sections):
            self._orth_depth = None
        self._sections.pop()
        self._num_children.pop()
        if tag == "segment":
            self._items.append(self._segment())
        if tag in _SECTIONS and self._sections:
            self._names.pop()

    def _segment(self) -> BlissSegment:
        name = "/".join(self._names)
        return BlissSegment(
            name=name,
            recording_name="/".join(self._names[:-1]),
            audio=self._audio,
            start=self._time("start", self._times[0], name),
            end=self._time("end", self._times[1], name),
            start_text=self._times[0],
            end_text=self._times[1],
            orth=" ".join("".join(self._orth or ()).split()),
            speaker_name=self._speaker,
        )

    def _time(self, attr: str, text: str, segment_name: str) -> Decimal:
        try:
            value = Decimal(text)
        except InvalidOperation:
            value = Decimal("nan")
        if value.is_nan():
            raise self._error(f"segment {segment_name!r}: expected seconds as {attr}, got {text!r}")
        return value
