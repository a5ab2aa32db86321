"""Random segmentation by SentencePiece models: reproducible, and as the package does it."""

from __future__ import annotations

import collections
import itertools
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from returnn.datasets._vocabulary.sentencepiece_model import SentencePieceModel
from returnn.datasets._vocabulary.sentencepiece_sampling import SentencePieceSampler
from returnn.datasets.util.vocabulary import SentencePieces
from returnn.errors import DataFileError, NotSupportedError, OptionError
from tests.helpers import ROOT, program_env

sentencepiece = pytest.importorskip("sentencepiece")

_MODEL = Path(__file__).resolve().parents[2] / "golden" / "05-audio-text" / "vocab" / "spm_demo.model"
_TEXTS = [
    "the cat sat on a mat",
    "zzz cat Ä é xyz",
    "  the   low ",
    "",
    "lower lowest",
    "USR the USRcat",
    "日本 the日本",
]
# Model type, and further options of the trainer.
_MODELS: list[tuple[str, dict[str, Any]]] = [
    (model_type, options)
    for model_type in ("unigram", "bpe")
    for options in (
        {},
        {"byte_fallback": True, "vocab_size": 300},
        {"user_defined_symbols": ["USR", "at"]},
        {"treat_whitespace_as_suffix": True},
    )
]


def _train(folder: Path, model_type: str, **options: Any) -> Any:
    """:return: processor. Any: the package has no types"""
    words = "the cat sat on a mat and then it ran to all of us low lower newest widest".split()
    rnd = random.Random(1)
    text = folder / "text"
    text.write_text("".join(" ".join(rnd.choices(words, k=8)) + "\n" for _ in range(200)))
    options = {"vocab_size": 40, "hard_vocab_limit": False, "minloglevel": 2, **options}
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "m"), model_type=model_type, **options
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))


def _sampler(processor: Any) -> SentencePieceSampler:
    model = SentencePieceModel.parse(processor.serialized_model_proto(), source="m")
    return SentencePieceSampler(model, processor.normalize, source="m")


@pytest.mark.parametrize(("model_type", "options"), _MODELS)
def test_segmentation_of_the_package(model_type: str, options: dict[str, Any], tmp_path: Path) -> None:
    processor = _train(tmp_path, model_type, **options)
    sampler = _sampler(processor)
    for text in _TEXTS:
        # No merge is left out, or only the most probable segmentation is drawn.
        alpha = 0.0 if model_type == "bpe" else 1e4
        for nbest_size in (-1, 2):
            drawn = sampler.sample(text, alpha=alpha, nbest_size=nbest_size, rnd=random.Random(1))
            assert drawn == processor.encode(text, out_type=int), (text, nbest_size)
        assert processor.decode(
            sampler.sample(text, alpha=0.3, nbest_size=-1, rnd=random.Random(1))
        ) == processor.decode(processor.encode(text, out_type=int))


def _score(processor: Any, ids: tuple[int, ...]) -> float:
    return sum(float(processor.get_score(idx)) for idx in ids)


@pytest.mark.parametrize("nbest_size", [-1, 4])
def test_distribution_of_a_unigram_model(nbest_size: int, tmp_path: Path) -> None:
    processor = _train(tmp_path, "unigram")
    text, alpha = "the cat", 0.4
    # All segmentations: more than there are.
    every = {tuple(ids) for ids in processor.nbest_encode(text, out_type=int, nbest_size=500)}
    assert len(every) < 500
    kept = sorted(every, key=lambda ids: -_score(processor, ids))[: nbest_size if nbest_size > 0 else None]
    weights = {ids: math.exp(alpha * _score(processor, ids)) for ids in kept}
    rnd, sampler, num = random.Random(5), _sampler(processor), 4000
    drawn = collections.Counter(
        tuple(sampler.sample(text, alpha=alpha, nbest_size=nbest_size, rnd=rnd)) for _ in range(num)
    )
    assert set(drawn) <= set(kept)
    for ids, weight in weights.items():
        probability = weight / sum(weights.values())
        assert abs(drawn[ids] / num - probability) < 4 * math.sqrt(probability / num) + 1e-3, ids


def test_dropout_of_a_bpe_model(tmp_path: Path) -> None:
    processor = _train(tmp_path, "bpe")
    sampler, rnd = _sampler(processor), random.Random(5)
    text = "the lower mat"
    num_pieces = [
        sum(len(sampler.sample(text, alpha=alpha, nbest_size=-1, rnd=rnd)) for _ in range(200)) / 200
        for alpha in (0.0, 0.2, 0.5, 1.0)
    ]
    assert all(a < b for a, b in itertools.pairwise(num_pieces))
    assert num_pieces[-1] == len(processor.normalize(text))  # characters


_DRAW = """
import sys
from returnn.datasets.util.vocabulary import SentencePieces
vocab = SentencePieces(model_file=sys.argv[1], enable_sampling=True, alpha=0.2, nbest_size=-1)
for seed in (1, 2, 2**32 - 1):
    vocab.set_random_seed(seed)
    print(vocab.get_seq("hello and that rat"), vocab.get_seq("the widest model"))
"""


def test_same_draws_in_each_process(tmp_path: Path) -> None:
    def run() -> str:
        return subprocess.run(
            [sys.executable, "-c", _DRAW, str(_MODEL)],
            env=program_env({"PYTHONPATH": str(ROOT)}),
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    first = run()
    assert first == run() and len(set(first.splitlines())) == 3


def test_special_pieces_while_sampling() -> None:
    def draw(**options: Any) -> list[int]:
        vocab = SentencePieces(model_file=str(_MODEL), enable_sampling=True, alpha=0.2, **options)
        return vocab.get_seq("hello and that rat")

    ids = draw()
    assert draw(add_bos=True, add_eos=True, seq_postfix=[7]) == [1, *ids, 2, 7]
    assert draw(reverse=True, add_eos=True) == [*ids[::-1], 2]


@pytest.mark.parametrize(
    ("options", "match"),
    [({"alpha": -1}, '"alpha"'), ({"alpha": "x"}, '"alpha"'), ({"nbest_size": 1}, '"nbest_size".*-1 for all')],
)
def test_wrong_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        SentencePieces(model_file=str(_MODEL), enable_sampling=True, **options)


def test_nothing_to_draw(tmp_path: Path) -> None:
    _train(tmp_path, "char")
    assert SentencePieces(model_file=str(tmp_path / "m.model")).get_seq("the")
    with pytest.raises(NotSupportedError, match=r"m.model' has the type 'char'"):
        SentencePieces(model_file=str(tmp_path / "m.model"), enable_sampling=True)


@pytest.mark.parametrize("cut", [1, 10, 100, 300])
def test_broken_model(cut: int) -> None:
    proto = _MODEL.read_bytes()
    try:
        model = SentencePieceModel.parse(proto[:cut], source="x.model")
    except DataFileError as exc:
        assert "x.model" in str(exc)
    else:  # the cut is behind a piece
        assert len(model.pieces) < len(SentencePieceModel.parse(proto, source="x.model").pieces)
