"""
Text datasets: :class:`LmDataset`, :class:`TranslationDataset` and what belongs to them.
"""

from __future__ import annotations

from returnn.datasets._lm.allophones import AllophoneState, StateTying
from returnn.datasets._lm.confusion_network import ConfusionNetworkDataset
from returnn.datasets._lm.corpus_files import _is_bliss, _iter_bliss, _iter_txt, iter_corpus, read_corpus
from returnn.datasets._lm.lexicon import Lexicon
from returnn.datasets._lm.lm_dataset import LmDataset
from returnn.datasets._lm.phone_seqs import PhoneSeqGenerator
from returnn.datasets._lm.translation import TranslationDataset
from returnn.datasets._lm.translation_factors import TranslationFactorsDataset
from returnn.datasets.util.cleaners import (
    basic_cleaners,
    collapse_whitespace,
    convert_to_ascii,
    english_cleaners,
    english_cleaners_keep_special,
    expand_abbreviations,
    get_remove_chars,
    get_replace,
    lowercase,
    lowercase_keep_special,
    normalize_numbers,
    transliteration_cleaners,
)
from returnn.datasets.util.post_processing import get_post_processor_function

__all__ = [
    "LmDataset",
    "TranslationDataset",
    "TranslationFactorsDataset",
    "ConfusionNetworkDataset",
    "AllophoneState",
    "Lexicon",
    "StateTying",
    "PhoneSeqGenerator",
    "iter_corpus",
    "read_corpus",
    "_is_bliss",
    "_iter_bliss",
    "_iter_txt",
    "get_post_processor_function",
    "basic_cleaners",
    "collapse_whitespace",
    "convert_to_ascii",
    "english_cleaners",
    "english_cleaners_keep_special",
    "expand_abbreviations",
    "get_remove_chars",
    "get_replace",
    "lowercase",
    "lowercase_keep_special",
    "normalize_numbers",
    "transliteration_cleaners",
]
