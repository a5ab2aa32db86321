"""Vocabularies: from text to class indices and back; implemented in ``returnn.datasets._vocabulary``."""

from __future__ import annotations

from returnn.datasets._vocabulary.base import Vocabulary
from returnn.datasets._vocabulary.characters import CharacterTargets, Utf8ByteTargets
from returnn.datasets._vocabulary.huggingface import HuggingFaceTokenizer
from returnn.datasets._vocabulary.sentencepieces import SentencePieces
from returnn.datasets._vocabulary.subwords import BytePairEncoding, SamplingBytePairEncoding

__all__ = [
    "Vocabulary",
    "BytePairEncoding",
    "SamplingBytePairEncoding",
    "SentencePieces",
    "CharacterTargets",
    "Utf8ByteTargets",
    "HuggingFaceTokenizer",
]
