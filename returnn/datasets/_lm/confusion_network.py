"""
ConfusionNetworkDataset: translation with weighted alternatives for each source word.
"""

from __future__ import annotations

import array
import math
from collections.abc import Sequence
from typing import Any

import numpy

from returnn.datasets._lm.translation import TranslationDataset
from returnn.datasets._lm.word_files import iter_text_lines
from returnn.errors import DataFileError, DatasetOptionError

__all__ = ["ConfusionNetworkDataset"]

_MARKER = "__ALT__"
_IDS, _WEIGHTS = "sparse_inputs", "sparse_weights"


class ConfusionNetworkDataset(TranslationDataset):
    """
    TranslationDataset with confusion networks as source. A source line ``__ALT__ w1|0.7__w2|0.3 w3|1.0`` has for each
    position the words and their weights; a line without ``__ALT__`` is plain text, with weight 1.

    Data: "sparse_inputs" int32 [T, max_density], word indices; "sparse_weights" float32 of the same shape, 0 where there
    is no word; and "classes" as in TranslationDataset.
    """

    main_source_data_key = _IDS

    def __init__(self, max_density: int = 20, **kwargs: Any) -> None:
        """
        :param max_density: words per position, at most; the further ones are cut
        :param kwargs: see TranslationDataset. unknown_label is needed for the source. Any: each has its own type
        :raises DatasetOptionError: invalid options
        """
        self.max_density = max_density
        super().__init__(**kwargs)
        if not isinstance(max_density, int) or max_density < 1:
            raise DatasetOptionError(
                self._describe('option "max_density" is invalid', expected="int >= 1", got=max_density)
            )
        if self._unknown_label_of(_IDS) is None:
            raise DatasetOptionError(
                self._describe(f'option "unknown_label" is needed for the data key "{_IDS}"', todo="Set it to a word")
            )
        assert self.num_outputs is not None
        num_words = self.num_outputs[_IDS][0]
        self.num_outputs[_IDS] = {"dim": num_words, "shape": (None, max_density), "sparse": True, "dtype": "int32"}
        self.num_outputs[_WEIGHTS] = {"dim": max_density, "shape": (None, max_density), "dtype": "float32"}

    def get_data_keys(self) -> list[str]:
        """:return: those with data"""
        return sorted([*super().get_data_keys(), _WEIGHTS])

    def get_data_dtype(self, key: str) -> str:
        """:return: float32 of the weights, else int32"""
        return "float32" if key == _WEIGHTS else "int32"

    def get_data_shape(self, key: str) -> list[int | None]:
        """:return: [max_density] of the source"""
        return [self.max_density] if key in (_IDS, _WEIGHTS) else super().get_data_shape(key)

    def _read_file(self, prefix: str) -> dict[str, tuple[numpy.ndarray, numpy.ndarray]]:
        if prefix != self.source_file_prefix:
            return super()._read_file(prefix)
        vocab, density = self._word_ids[_IDS], self.max_density
        ids, weights = array.array("i"), array.array("f")
        ends = array.array("q", [0])
        filename = self._files[prefix]
        for line in iter_text_lines(filename, cached=self._cached):
            words = (line.strip() + self.source_postfix).split()
            has_alternatives = words[:1] == [_MARKER]
            for word in words[1:] if has_alternatives else words:
                try:
                    arcs = _split_arcs(word) if has_alternatives else [(word, 1.0)]
                except ValueError:
                    raise DataFileError(
                        f"{filename}, line {len(ends)}: expected words and weights as 'w1|0.7__w2|0.3', got {word!r}."
                    ) from None
                arcs = arcs[:density]
                ids.extend([vocab[text] for text, _ in arcs] + [0] * (density - len(arcs)))
                weights.extend([weight for _, weight in arcs] + [0.0] * (density - len(arcs)))
            ends.append(len(ids) // density)
        offsets = numpy.array(ends, dtype=numpy.int64)
        return {
            _IDS: (numpy.array(ids, dtype=numpy.int32).reshape(-1, density), offsets),
            _WEIGHTS: (numpy.array(weights, dtype=numpy.float32).reshape(-1, density), offsets),
        }


def _split_arcs(word: str) -> Sequence[tuple[str, float]]:
    """
    :param word: e.g. ``w1|0.7__w2|0.3``
    :raises ValueError: not of that form
    """
    result = []
    for arc in word.split("__"):
        text, separator, weight = arc.rpartition("|")
        if not separator or not text or not math.isfinite(float(weight)):
            raise ValueError
        result.append((text, float(weight)))
    return result
