"""
Vocabularies of characters and of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from returnn.datasets._vocabulary.base import Vocabulary
from returnn.errors import LabelError

__all__ = ["CharacterTargets", "Utf8ByteTargets"]


class CharacterTargets(Vocabulary):
    """Labels are characters."""

    _separator = ""

    def __init__(
        self,
        vocab_file: str | None = None,
        seq_postfix: Sequence[int] | numpy.ndarray | None = None,
        unknown_label: str | int | None = "@",
        **kwargs: Any,
    ) -> None:
        """
        :param vocab_file: as for Vocabulary, likewise the others
        :param seq_postfix: ids that get_seq appends
        :param unknown_label: default "@", which then must be a label. None: an unknown character is an error
        :param kwargs: as for Vocabulary. Any: each option has its own type
        """
        super().__init__(vocab_file, seq_postfix, unknown_label, **kwargs)

    def get_seq(self, sentence: str) -> list[int]:
        """
        :param sentence: any text
        :return: id of each character, with seq_postfix
        :raises LabelError: (also KeyError) an unknown character, and no unknown_label
        """
        return self.get_seq_indices(sentence) + self.seq_postfix


class Utf8ByteTargets(Vocabulary):
    """Labels are the 256 bytes of UTF-8 text."""

    _separator = ""

    def __init__(
        self,
        seq_postfix: Sequence[int] | numpy.ndarray | None = None,
        *,
        unknown_label: str | int | None = None,
        **kwargs: Any,
    ) -> None:
        """
        :param seq_postfix: bytes that get_seq appends
        :param unknown_label: has no effect, since all bytes are known; None by default
        :param kwargs: as for Vocabulary, except vocab_file and labels. Any: each option has its own type
        """
        super().__init__(None, seq_postfix, unknown_label, labels=[chr(i) for i in range(256)], **kwargs)

    def get_seq(self, sentence: str) -> list[int]:
        """
        :param sentence: any text
        :return: its UTF-8 bytes, with seq_postfix
        """
        return list(sentence.encode("utf8")) + self.seq_postfix

    def get_seq_labels(self, seq: Sequence[int] | numpy.ndarray) -> str:
        """
        :param seq: [T], bytes, of any integer type
        :return: text
        :raises LabelError: (also IndexError) not in 0..255
        :raises UnicodeDecodeError: not UTF-8
        """
        ids = seq.tolist() if hasattr(seq, "tolist") else list(seq)
        try:
            content = bytes(ids)
        except ValueError as exc:
            wrong = [idx for idx in ids if not 0 <= idx < 256]
            raise LabelError(f"id {wrong[0]} is out of range: a byte is 0 to 255.") from exc
        return content.decode("utf8")
