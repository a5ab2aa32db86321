"""
Codes files of subword-nmt (versions 0.1 and 0.2): pairs of symbols that are merged, best first.
"""

from __future__ import annotations

import re
import zlib
from typing import Any

from returnn.errors import DataFileError, NotSupportedError, describe
from returnn.util.fs import open_text

__all__ = ["END", "BpeCodes"]

#: The end of a word
END = "</w>"
_VERSION_PREFIX = "#version:"


class BpeCodes:
    """The content of a codes file. Never changed, so that encoders and their copies share it."""

    __slots__ = ("version", "ranks", "merged_to_pair")

    def __init__(self, version: tuple[int, ...], ranks: dict[tuple[str, str], int]) -> None:
        """
        :param version: (0, 1): the end of a word is a symbol of its own; (0, 2): it is part of the last one
        :param ranks: pair -> the lower, the earlier it is merged; in the order of the file
        """
        self.version = version
        self.ranks = ranks
        # The pair nearest to the file start wins, so insert that last.
        self.merged_to_pair = {a + b: (a, b) for a, b in reversed(ranks)}

    @classmethod
    def read(cls, filename: str) -> BpeCodes:
        """
        :param filename: text, ``.gz`` allowed. Optional first line ``#version: 0.2``, then two symbols per line
        :raises DataFileError: missing or broken file, with line number
        :raises NotSupportedError: other version
        """
        return cls(*_read_codes(filename))

    def __copy__(self) -> BpeCodes:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> BpeCodes:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Any: as object.__reduce__.
        return BpeCodes, (self.version, self.ranks)


def _read_codes(filename: str) -> tuple[tuple[int, ...], dict[tuple[str, str], int]]:
    """:return: version, pair -> rank, in the order of the file"""
    version: tuple[int, ...] = (0, 1)
    ranks: dict[tuple[str, str], int] = {}
    line_idx = -1
    with open_text(filename, encoding="utf-8-sig") as f:
        try:
            for line_idx, line in enumerate(f):
                line = line.strip("\r\n ")
                if line_idx == 0 and line.startswith(_VERSION_PREFIX):
                    version = _parse_version(line, filename)
                    continue
                if not line:
                    continue
                symbols = line.split(" ")
                if len(symbols) != 2 or not all(symbols):
                    where = f"file {filename!r}, line {line_idx + 1}"
                    text = describe(
                        "Broken BPE codes", where=where, expected="two symbols separated by one blank", got=line
                    )
                    raise DataFileError(text)
                ranks.setdefault((symbols[0], symbols[1]), line_idx)
        except UnicodeDecodeError as exc:
            raise DataFileError(
                f"BPE codes are not UTF-8 (in file {filename!r}, after line {line_idx + 1}): {exc}."
            ) from exc
        except DataFileError:
            raise
        except (OSError, EOFError, zlib.error) as exc:
            raise DataFileError(
                f"Cannot read BPE codes (in file {filename!r}, after line {line_idx + 1}): {exc}."
            ) from exc
    return version, ranks


def _parse_version(line: str, filename: str) -> tuple[int, ...]:
    """:return: e.g. (0, 2), also for 0.2.0"""
    text = line[len(_VERSION_PREFIX) :].strip()
    where = f"file {filename!r}, line 1"
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)*", text):
        raise DataFileError(describe("Broken BPE codes", where=where, expected="a version like 0.2", got=text))
    version = tuple(int(part) for part in re.sub(r"(\.0+)*$", "", text).split("."))
    if version not in ((0, 1), (0, 2)):
        raise NotSupportedError(
            describe("BPE codes of unknown version", where=where, expected="version 0.1 or 0.2", got=text)
        )
    return version
