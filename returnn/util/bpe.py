"""
Byte pair encoding of words: by a codes file of subword-nmt, or all or random segmentations by a list of labels.

Codes: Sennrich, Haddow, Birch 2016, "Neural Machine Translation of Rare Words with Subword Units".
Random segmentation: by depth first search in the prefix tree of the labels. Implemented in ``_bpe``.
"""

from __future__ import annotations

from returnn.util._bpe.markers import BpeMergeSymbol, BpeOpts, BpePostMergeSymbol
from returnn.util._bpe.prefix_tree import PrefixTree
from returnn.util._bpe.sampling import SamplingBytePairEncoder
from returnn.util._bpe.search import CharSyncSearch, DepthFirstSearch, Hyp, HypInPos
from returnn.util._bpe.standard import StandardBytePairEncoder

__all__ = [
    "BpeMergeSymbol",
    "BpePostMergeSymbol",
    "StandardBytePairEncoder",
    "BpeOpts",
    "PrefixTree",
    "Hyp",
    "HypInPos",
    "CharSyncSearch",
    "DepthFirstSearch",
    "SamplingBytePairEncoder",
]
