#!/usr/bin/env python3
"""
Speed of the byte pair encoders against a plain reading of the algorithm, and against one dict look-up per word.

    python benchmarks/bpe.py [--num_words 20000] [--num_codes 10000] [--num_sentences 20000]

Each line: case, words per second of ours, of the other, ratio.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from returnn.datasets.util.vocabulary import BytePairEncoding, SamplingBytePairEncoding  # noqa: E402
from returnn.util.bpe import StandardBytePairEncoder  # noqa: E402

_END = "</w>"


def make_words(rnd: np.random.RandomState, num: int) -> list[str]:
    """:return: different words of syllables, as in natural text of some languages"""
    syllables = [c + v for c in "bcdfghklmnprstvwz" for v in ("a", "e", "i", "o", "u", "en", "er", "ing")]
    words: dict[str, None] = {}
    while len(words) < num:
        words["".join(rnd.choice(syllables, rnd.randint(1, 6)))] = None
    return list(words)


def merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """:return: all occurrences merged"""
    result, i = [], 0
    while i < len(symbols):
        if tuple(symbols[i : i + 2]) == pair:
            result.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            result.append(symbols[i])
            i += 1
    return result


def plain_encode(ranks: dict[tuple[str, str], int], word: str) -> list[str]:
    """:return: symbols, with the end marker. The algorithm as it is described"""
    symbols = [*word[:-1], word[-1] + _END]
    while len(symbols) > 1:
        pairs = [pair for pair in zip(symbols, symbols[1:], strict=False) if pair in ranks]
        if not pairs:
            break
        symbols = merged(symbols, min(pairs, key=lambda pair: ranks[pair]))
    return symbols


def plain_segment(ranks: dict[tuple[str, str], int], vocab: list[str], word: str) -> list[str]:
    """:return: pieces, checked against a list of labels as the peers do; all merges are in the vocabulary"""
    *inner, last = plain_encode(ranks, word)
    pieces = [piece + "@@" for piece in inner] + [last[: -len(_END)]]
    assert all(piece in vocab for piece in pieces), pieces
    return pieces


def make_codes(rnd: np.random.RandomState, words: list[str], num: int) -> list[tuple[str, str]]:
    """:return: merges that fit to the words: for a random word, a random pair of its present symbols"""
    ranks: dict[tuple[str, str], int] = {}
    for _ in range(100 * num):
        if len(ranks) >= num:
            break
        symbols = plain_encode(ranks, words[rnd.randint(len(words))])
        if len(symbols) > 1:
            i = rnd.randint(len(symbols) - 1)
            ranks[symbols[i], symbols[i + 1]] = len(ranks)
    return list(ranks)


def seconds(func: Callable[[], object]) -> float:
    """:return: of one call"""
    start = time.perf_counter()
    func()
    return time.perf_counter() - start


def report(case: str, num: int, ours: float, other: float, name: str) -> None:
    """Print one line."""
    print(
        f"{case}: ours {num / ours:,.0f} words/s, {name} {num / other:,.0f} words/s, ours / {name} time {ours / other:.2f}"
    )


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description="Speed of the byte pair encoders.")
    parser.add_argument("--num_words", type=int, default=20_000, help="different words")
    parser.add_argument("--num_codes", type=int, default=10_000, help="merges")
    parser.add_argument("--num_sentences", type=int, default=20_000, help="of 20 words each")
    args = parser.parse_args()
    rnd = np.random.RandomState(1)
    words = make_words(rnd, args.num_words)
    codes = make_codes(rnd, words, args.num_codes)
    ranks = {pair: i for i, pair in enumerate(codes, start=1)}
    symbols = dict.fromkeys(c for word in words for char in word for c in (char, char + "@@"))
    for a, b in codes:
        piece = a + b
        symbols[piece.removesuffix(_END) if piece.endswith(_END) else piece + "@@"] = None
    labels = ["UNK", *symbols]
    # Frequencies as in natural text.
    freqs = 1 / np.arange(1, len(words) + 1)
    picked = rnd.choice(len(words), (args.num_sentences, 20), p=freqs / freqs.sum())
    sentences = [" ".join(words[i] for i in row) for row in picked]
    num_running = picked.size
    with tempfile.TemporaryDirectory() as folder:
        codes_file, vocab_file = os.path.join(folder, "codes"), os.path.join(folder, "vocab")
        with open(codes_file, "w", encoding="utf8") as f:
            f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in codes))
        with open(vocab_file, "w", encoding="utf8") as f:
            f.write("\n".join(labels))
        print(f"{len(codes)} merges, {len(labels)} labels, {len(words)} different words, {num_running} running words")
        report(
            "load codes and labels",
            len(labels),
            seconds(lambda: BytePairEncoding(vocab_file, codes_file)),
            seconds(
                lambda: [line.split() for name in (codes_file, vocab_file) for line in open(name, encoding="utf8")]
            ),
            "split of all lines",
        )
        encoder = StandardBytePairEncoder(codes_file, labels)
        part = words[:2000]
        report(
            "new words",
            len(part),
            seconds(lambda: [encoder.segment_sentence(word) for word in part]),
            seconds(lambda: [plain_segment(ranks, labels, word) for word in part]),
            "plain reading",
        )
        vocab = BytePairEncoding(vocab_file, codes_file)
        known = {word: tuple(vocab.get_seq(word)) for word in words}
        report(
            "text",
            num_running,
            seconds(lambda: [vocab.get_seq(sentence) for sentence in sentences]),
            seconds(lambda: [[i for w in sentence.split() for i in known[w]] for sentence in sentences]),
            "look-up per word",
        )
        for prob in (0.0, 0.1):
            sampling = SamplingBytePairEncoding(vocab_file, prob)
            part_sentences = sentences[: max(1, len(sentences) // 20)]
            report(
                f"sampling {prob}",
                20 * len(part_sentences),
                seconds(lambda: [sampling.get_seq(sentence) for sentence in part_sentences]),  # noqa: B023
                seconds(lambda: [vocab.get_seq(sentence) for sentence in part_sentences]),  # noqa: B023
                "without sampling",
            )
        long_word = "".join(words[:2000])
        report(
            f"one word of {len(long_word)} characters (per character)",
            len(long_word),
            seconds(lambda: encoder.segment_sentence(long_word)),
            seconds(lambda: [encoder.segment_sentence(word) for word in words[2000:4000]]),
            "the same in words",
        )


if __name__ == "__main__":
    main()
