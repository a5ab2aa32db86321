"""
Byte pair encoding learned from word counts, written in the format of subword-nmt, for the demos: codes, and the vocabulary.
(Sennrich et al. 2016, Neural Machine Translation of Rare Words with Subword Units, algorithm 1.)
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Mapping

END_OF_WORD = "</w>"


def learn_bpe(word_counts: Mapping[str, int], num_merges: int, *, codes_file: str, vocab_file: str) -> None:
    """
    :param word_counts: word -> how often
    :param num_merges: how many pairs become one symbol
    :param codes_file: the merges are written here, in their order
    :param vocab_file: all units with their index as Python dict, after the special <s>, </s> (both 0) and <unk>
    """
    words = {word: [*word[:-1], word[-1] + END_OF_WORD] for word in word_counts}
    merges = []
    for _ in range(num_merges):
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for word, units in words.items():
            for pair in itertools.pairwise(units):
                pairs[pair] += word_counts[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for units in words.values():
            i = 0
            while i < len(units) - 1:
                if (units[i], units[i + 1]) == best:
                    units[i : i + 2] = ["".join(best)]
                i += 1
    with open(codes_file, "w", encoding="utf8") as file:
        file.write("#version: 0.2\n")
        file.writelines(f"{first} {second}\n" for first, second in merges)
    chars = sorted({char for word in word_counts for char in word})
    units = set(chars) | {char + "@@" for char in chars}
    for pair in merges:
        merged = "".join(pair)
        units.add(merged.removesuffix(END_OF_WORD) if merged.endswith(END_OF_WORD) else merged + "@@")
    vocab = {"<s>": 0, "</s>": 0, "<unk>": 1, **{unit: i for i, unit in enumerate(sorted(units), 2)}}
    with open(vocab_file, "w", encoding="utf8") as file:
        file.write("{\n" + "".join(f"{unit!r}: {i},\n" for unit, i in vocab.items()) + "}\n")
