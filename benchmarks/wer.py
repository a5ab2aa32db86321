"""Word error rate of 10k pairs of 30 words: ours, and the bare library calls."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from returnn.cli._dataset_tools.wer import compute_wer
from returnn.util import edit_distance
from returnn.util.optional_import import optional_import

NUM_PAIRS, NUM_WORDS, VOCAB_SIZE = 10_000, 30, 1000


def _seconds(func: Callable[[], object]) -> float:
    start = time.perf_counter()
    func()
    return time.perf_counter() - start


def main() -> None:
    """Print a line per case."""
    rng = random.Random(1)
    refs = {f"seq-{i}": [f"w{rng.randrange(VOCAB_SIZE)}" for _ in range(NUM_WORDS)] for i in range(NUM_PAIRS)}
    hyps = {tag: [w if rng.random() < 0.85 else "other" for w in words] for tag, words in refs.items()}
    ref_texts = {tag: " ".join(words) for tag, words in refs.items()}
    hyp_texts = {tag: " ".join(words) for tag, words in hyps.items()}
    levenshtein = optional_import("rapidfuzz.distance.Levenshtein", needed_by="this benchmark")
    ours = _seconds(lambda: compute_wer(ref_texts.items(), hyp_texts, hyps_name="hyps"))
    limit = _seconds(lambda: [levenshtein.distance(refs[tag], hyps[tag]) for tag in refs])
    print(
        f"WER of {NUM_PAIRS} pairs, with S/I/D counts: {ours:.3f} s, bare rapidfuzz {limit:.3f} s, ratio {ours / limit:.1f}"
    )
    subset = list(refs)[:500]
    ids = {word: i for i, word in enumerate({w for words in (*refs.values(), *hyps.values()) for w in words})}
    slow = _seconds(
        lambda: [
            edit_distance._weighted_distance_in_python(
                [ids[w] for w in refs[tag]], [ids[w] for w in hyps[tag]], (31, 31, 32)
            )
            for tag in subset
        ]
    )
    print(f"without rapidfuzz, {len(subset)} pairs: {slow:.3f} s, so {slow * NUM_PAIRS / len(subset):.1f} s for all")


if __name__ == "__main__":
    main()
