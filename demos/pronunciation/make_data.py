"""Words with their pronunciation by espeak-ng, as parallel text for TranslationDataset: byte pair units -> phonemes."""

from __future__ import annotations

import os
import pickle
import random
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from common import ROOT  # noqa: E402, F401  (puts the package on the path)
from learn_bpe import learn_bpe  # noqa: E402

from returnn.datasets.util.vocabulary import BytePairEncoding  # noqa: E402

WORD_LIST = "/usr/share/dict/american-english-small"  # of the Debian package wamerican-small


def pronounce(words: list[str]) -> list[list[str]]:
    """
    :param words: spelling
    :return: phonemes of each, without stress marks
    """
    # Each word is a sentence, so that there is one line for each.
    text = "".join(f"{word}.\n\n" for word in words)
    command = ["espeak-ng", "-q", "-v", "en-us", "--ipa", "--sep=_"]
    result = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True, encoding="utf8")
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    if len(lines) != len(words):
        sys.exit(f"espeak-ng gave {len(lines)} pronunciations for {len(words)} words")
    return [[p for p in re.split(r"[_\s]+", re.sub("[ˈˌ]", "", line)) if p] for line in lines]


def make_data(out: str, *, num_words: int) -> None:
    """
    :param out: folder; gets source.* and target.* for train, dev, test, and the vocabularies
    :param num_words: of all parts together
    """
    with open(WORD_LIST, encoding="utf8") as file:
        words = [word for word in file.read().split() if re.fullmatch("[a-z]{3,12}", word)]
    random.Random(1).shuffle(words)
    words = words[:num_words]
    phonemes = pronounce(words)
    learn_bpe(dict.fromkeys(words[800:], 1), 150, codes_file=f"{out}/bpe.codes", vocab_file=f"{out}/bpe.vocab")
    bpe = BytePairEncoding(vocab_file=f"{out}/bpe.vocab", bpe_file=f"{out}/bpe.codes", unknown_label="<unk>")
    units = [[bpe.labels[i] for i in bpe.get_seq(word)] for word in words]
    for side, rows in (("source", units), ("target", phonemes)):
        for part, part_rows in (("dev", rows[:400]), ("test", rows[400:800]), ("train", rows[800:])):
            with open(f"{out}/{side}.{part}", "w", encoding="utf8") as file:
                file.writelines(" ".join(row) + "\n" for row in part_rows)
        labels = ["</S>", "<UNK>", *sorted({label for row in rows[800:] for label in row})]
        with open(f"{out}/{side}.vocab.pkl", "wb") as file:
            pickle.dump({label: i for i, label in enumerate(labels)}, file)
    with open(f"{out}/test.words.txt", "w", encoding="utf8") as file:
        file.writelines(word + "\n" for word in words[400:800])
    print(f"{len(words)} words, e.g. {words[800]}: {' '.join(units[800])} -> {' '.join(phonemes[800])}")
