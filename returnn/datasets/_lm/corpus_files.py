"""
Corpus files of texts: Bliss XML or lines of text. Functions that client code imports.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from xml.parsers import expat

from returnn.datasets._lm.text_lines import TextLines
from returnn.datasets.util.bliss import iter_segments
from returnn.errors import DataFileError

__all__ = ["read_lines", "read_corpus", "iter_corpus", "_is_bliss", "_iter_bliss", "_iter_txt"]

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK_BYTES = 1 << 12


class _RootFound(Exception):
    """Stops the parser at the root element."""


def _is_bliss(filename: str) -> bool:
    """
    :param filename: any file, plain or compressed by gzip
    :return: whether it is XML with root element ``corpus``
    :raises DataFileError: it cannot be read
    """
    root: list[str] = []

    def start(tag: str, _attrs: dict[str, str]) -> None:
        root.append(tag)
        raise _RootFound

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    try:
        with open(filename, "rb") as raw:
            is_zipped = raw.peek(2)[:2] == _GZIP_MAGIC
            file = gzip.open(raw) if is_zipped else raw
            while data := file.read(_CHUNK_BYTES):
                parser.Parse(data, False)
    except _RootFound:
        return root[0] == "corpus"
    except expat.ExpatError:
        return False
    except (LookupError, ValueError) as exc:  # it is XML that declares such an encoding
        raise DataFileError(
            f"Cannot read the corpus file {filename!r}: {exc}. Convert it to the encoding UTF-8."
        ) from exc
    except (OSError, EOFError, zlib.error) as exc:
        reason = getattr(exc, "strerror", None) or f"{type(exc).__name__}: {exc}"
        raise DataFileError(f"Cannot read the corpus file {filename!r}: {reason}. Check the path.") from exc
    return False


def read_lines(filename: str, *, skip_empty_lines: bool = True) -> TextLines:
    """
    :param filename: Bliss XML or text lines, plain or compressed by gzip
    :param skip_empty_lines: drop empty lines of text. Segments of a Bliss corpus without text are kept
    :return: all texts
    :raises DataFileError: missing, or broken
    """
    if _is_bliss(filename):
        return TextLines.from_texts((segment.orth for segment in iter_segments(filename)), name=filename)
    return TextLines.from_file(filename, keep_empty=not skip_empty_lines)


def _iter_bliss(filename: str, callback: Callable[[str], object]) -> None:
    """
    :param filename: Bliss XML
    :param callback: called with the text of each segment
    """
    for segment in iter_segments(filename):
        callback(segment.orth)


def _iter_txt(filename: str, callback: Callable[[str], object], skip_empty_lines: bool = True) -> None:
    """
    :param filename: text lines
    :param callback: called with each line, stripped
    :param skip_empty_lines: not with empty lines
    """
    for line in TextLines.from_file(filename, keep_empty=not skip_empty_lines):
        callback(line)


def iter_corpus(filename: str, callback: Callable[[str], object], skip_empty_lines: bool = True) -> None:
    """
    :param filename: Bliss XML or text lines
    :param callback: called with each text
    :param skip_empty_lines: not with empty lines of a text file
    """
    if _is_bliss(filename):
        _iter_bliss(filename, callback)
    else:
        _iter_txt(filename, callback, skip_empty_lines=skip_empty_lines)


def read_corpus(filename: str, skip_empty_lines: bool = True) -> list[str]:
    """
    :param filename: Bliss XML or text lines
    :param skip_empty_lines: drop empty lines of a text file
    :return: all texts
    """
    return list(read_lines(filename, skip_empty_lines=skip_empty_lines))
