"""
Vocabulary: from class indices to labels and back, for a given list of labels.

Vocabulary files and subword units are not available yet in this version.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from returnn.errors import DatasetError, NotSupportedError

__all__ = ["Vocabulary", "CharacterTargets", "Utf8ByteTargets"]


class Vocabulary:
    """Labels by index."""

    _separator = " "

    def __init__(
        self, vocab_file: str | None = None, *, labels: Sequence[str] | None = None, unknown_label: str | None = None
    ) -> None:
        """
        :param vocab_file: not available yet, must be None
        :param labels: label of each class index
        :param unknown_label: stands for labels that are not in the list
        """
        if vocab_file is not None:
            raise NotSupportedError(
                f"{type(self).__name__}: vocab_file {vocab_file!r} is not available yet in this version. Give labels=[...]."
            )
        if labels is None:
            raise DatasetError(f"{type(self).__name__}: give labels=[...].")
        self.vocab_file = vocab_file
        self.labels = list(labels)
        self.num_labels = len(self.labels)
        self.unknown_label = unknown_label
        self._idx_by_label = {label: i for i, label in reversed(list(enumerate(self.labels)))}
        if unknown_label is not None and unknown_label not in self._idx_by_label:
            raise DatasetError(f"{type(self).__name__}: unknown_label {unknown_label!r} is not one of the labels.")

    @classmethod
    def create_vocab_from_labels(cls, labels: Sequence[str], unknown_label: str | None = None) -> Vocabulary:
        """
        :param labels: of each class index. Fewer than 1000, all of one character: characters, joined without space
        :param unknown_label: stands for labels that are not in the list
        """
        if len(labels) < 1000 and all(len(label) == 1 for label in labels):
            if len(labels) == 256 and all(ord(label) == i for i, label in enumerate(labels)):
                return Utf8ByteTargets()
            return CharacterTargets(labels=labels, unknown_label=unknown_label)
        return Vocabulary(labels=labels, unknown_label=unknown_label)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_labels={self.num_labels}, unknown_label={self.unknown_label!r})"

    def id_to_label(self, idx: int, default: str | None = None) -> str | None:
        """
        :param idx: class index
        :param default: for an index that is not valid
        """
        return self.labels[idx] if 0 <= idx < self.num_labels else default

    def label_to_id(self, label: str, default: int | None = None) -> int | None:
        """
        :param label: of the list
        :param default: for a label that is not in the list, if there is no unknown_label
        :raises KeyError: not in the list, neither unknown_label nor default
        """
        if label in self._idx_by_label:
            return self._idx_by_label[label]
        if self.unknown_label is not None:
            return self._idx_by_label[self.unknown_label]
        if default is not None:
            return default
        raise KeyError(f"label {label!r} not found")

    def get_seq(self, sentence: str) -> list[int]:
        """
        :param sentence: labels with spaces between them
        :return: class indices
        """
        idxs = [self.label_to_id(label) for label in sentence.split()]
        return [i for i in idxs if i is not None]

    def get_seq_labels(self, seq: Sequence[int] | numpy.ndarray) -> str:
        """
        :param seq: class indices
        :return: labels with spaces between them
        """
        return self._separator.join(self.labels[i] for i in seq)

    def serialize_labels(self, data: numpy.ndarray) -> str:
        """
        :param data: class indices, 0-d: one label; 1-d: as get_seq_labels; n-d: rows ``[a,b],[c,d]``
        """
        if data.ndim == 0:
            return self.labels[int(data)]
        if data.ndim == 1:
            return self.get_seq_labels(data)
        return ",".join(f"[{self.serialize_labels(row)}]" for row in data)


class CharacterTargets(Vocabulary):
    """Labels are characters."""

    _separator = ""

    def get_seq(self, sentence: str) -> list[int]:
        """
        :param sentence: any text of known characters
        :return: class index of each character
        """
        idxs = [self.label_to_id(label) for label in sentence]
        return [i for i in idxs if i is not None]


class Utf8ByteTargets(Vocabulary):
    """Labels are the 256 bytes of UTF-8 text."""

    def __init__(self) -> None:
        """All 256 bytes."""
        super().__init__(labels=[chr(i) for i in range(256)])

    def get_seq(self, sentence: str) -> list[int]:
        """
        :param sentence: any text
        :return: its UTF-8 bytes
        """
        return list(sentence.encode("utf8"))

    def get_seq_labels(self, seq: Sequence[int] | numpy.ndarray) -> str:
        """
        :param seq: bytes
        :return: text
        """
        return bytes(int(i) for i in seq).decode("utf8")
