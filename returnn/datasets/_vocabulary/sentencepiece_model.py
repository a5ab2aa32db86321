"""
The pieces in a SentencePiece model file (sentencepiece_model.proto, in the wire format of protocol buffers).
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

from returnn.errors import DataFileError

__all__ = ["PieceType", "SentencePieceModel"]

# Numbers of fields.
_PIECES, _TRAINER_SPEC = 1, 2
_TEXT, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _BYTE_FALLBACK = 3, 35
# Value of _MODEL_TYPE -> name.
_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


class PieceType:
    """Kinds of pieces that can be in a text."""

    NORMAL, UNKNOWN, USER_DEFINED, UNUSED, BYTE = 1, 2, 4, 5, 6


@dataclasses.dataclass(frozen=True)
class SentencePieceModel:
    """
    :param model_type: "unigram", "bpe", "word" or "char"
    :param byte_fallback: a character that is no piece is written as its bytes
    :param pieces: by id: text, score, type
    """

    model_type: str
    byte_fallback: bool
    pieces: list[tuple[str, float, int]]

    @classmethod
    def parse(cls, proto: bytes, *, source: str) -> SentencePieceModel:
        """
        :param proto: content of the file
        :param source: its name, for the error
        :raises DataFileError: it is none
        """
        pieces: list[tuple[str, float, int]] = []
        spec: dict[int, int | bytes] = {}
        try:
            for field, value in _iter_fields(proto):
                if field == _PIECES and isinstance(value, bytes):
                    pieces.append(_parse_piece(value))
                elif field == _TRAINER_SPEC and isinstance(value, bytes):
                    spec.update(_iter_fields(value))
            model_type = _MODEL_TYPES[int(spec.get(_MODEL_TYPE, 1))]
        except (IndexError, KeyError, ValueError, struct.error) as exc:
            raise DataFileError(f"Cannot read the pieces of the SentencePiece model {source}: {exc!r}.") from exc
        return cls(model_type, bool(spec.get(_BYTE_FALLBACK, 0)), pieces)


def _parse_piece(message: bytes) -> tuple[str, float, int]:
    fields = dict(_iter_fields(message))
    text, score = fields.get(_TEXT, b""), fields.get(_SCORE, b"\0\0\0\0")
    if not isinstance(text, bytes) or not isinstance(score, bytes):
        raise ValueError("broken piece")
    return text.decode("utf8"), struct.unpack("<f", score)[0], int(fields.get(_TYPE, PieceType.NORMAL))


def _iter_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """:return: number of each field, and its value: int of the variable-length type, else bytes"""
    pos = 0
    while pos < len(message):
        key, pos = _read_varint(message, pos)
        kind = key & 7
        if kind == 0:
            value, pos = _read_varint(message, pos)
            yield key >> 3, value
            continue
        if kind == 2:
            size, pos = _read_varint(message, pos)
        else:
            size = {1: 8, 5: 4}[kind]
        if pos + size > len(message):
            raise ValueError("unexpected end")
        yield key >> 3, message[pos : pos + size]
        pos += size


def _read_varint(message: bytes, pos: int) -> tuple[int, int]:
    """:return: value, and the position after it"""
    value = shift = 0
    while True:
        byte = message[pos]
        value |= (byte & 0x7F) << shift
        pos, shift = pos + 1, shift + 7
        if byte < 0x80:
            return value, pos
