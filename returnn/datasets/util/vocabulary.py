"""Vocabularies: from text to class indices and back; implemented in ``returnn.datasets._vocabulary``."""

from __future__ import annotations

from returnn.datasets._vocabulary.base import Vocabulary
from returnn.datasets._vocabulary.characters import CharacterTargets, Utf8ByteTargets
from returnn.datasets._vocabulary.subwords import BytePairEncoding, SamplingBytePairEncoding

__all__ = [
    "Vocabulary",
    "BytePairEncoding",
    "SamplingBytePairEncoding",
    "CharacterTargets",
    "Utf8ByteTargets",
]
