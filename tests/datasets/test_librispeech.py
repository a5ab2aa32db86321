"""LibriSpeechCorpus with audio and labels, from unpacked files and from zip files. (Orders: test_generating.py.)"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest

from returnn.datasets.basic import init_dataset
from returnn.datasets.util.vocabulary import CharacterTargets
from returnn.errors import DataFileError, DatasetError, DatasetOptionError
from tests.datasets.everyday_use import check_everyday_use, check_jump, read_epoch

soundfile = pytest.importorskip("soundfile")
_TEXTS = {
    ("train-clean-100", 19, 198): ["HELLO WORLD", "THE CAT"],
    ("train-clean-100", 103, 1240): ["SAT", "ON THE MAT", "LOW"],
    ("train-other-500", 7, 9): ["A B C"],
}
_CHARS = {"labels": list("@ ABCDEFGHIJKLMNOPQRSTUVWXYZ")}


def _samples(speaker: int, seq: int) -> numpy.ndarray:
    return (numpy.sin(numpy.arange(800 + 160 * seq) * (0.01 * speaker + 0.05)) * 0.5).astype(numpy.float32)


def _flac(samples: numpy.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="FLAC")
    return file.getvalue()


@pytest.fixture(params=["files", "zip"])
def opts(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    files: dict[str, bytes] = {}
    for (subdir, speaker, chapter), texts in _TEXTS.items():
        start = f"{subdir}/{speaker}/{chapter}/{speaker}-{chapter}"
        lines = [f"{speaker}-{chapter}-{i:04} {text}\n" for i, text in enumerate(texts)]
        files[f"{start}.trans.txt"] = "".join(lines).encode()
        files.update({f"{start}-{i:04}.flac": _flac(_samples(speaker, i)) for i in range(len(texts))})
    if request.param == "zip":
        for subdir in {subdir for subdir, _, _ in _TEXTS}:
            with zipfile.ZipFile(tmp_path / f"{subdir}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in files.items():
                    if name.startswith(subdir + "/"):
                        archive.writestr(f"LibriSpeech/{name}", content)
    else:
        for name, content in files.items():
            os.makedirs((tmp_path / name).parent, exist_ok=True)
            (tmp_path / name).write_bytes(content)
    return {
        "class": "LibriSpeechCorpus",
        "path": str(tmp_path),
        "prefix": "train",
        "use_zip": request.param == "zip",
        "audio": {"features": "raw", "peak_normalization": False},
        "chars": _CHARS,
    }


def test_data(opts: dict[str, Any]) -> None:
    dataset = init_dataset(opts)
    vocab = CharacterTargets(labels=_CHARS["labels"])
    assert dataset.num_outputs == {"raw": {"dtype": "string", "shape": ()}, "data": [1, 2], "classes": [28, 1]}
    assert (dataset.num_inputs, dataset.labels["classes"]) == (1, vocab.labels)
    seqs = read_epoch(dataset, 1)
    assert [tag for tag, _ in seqs][:3] == [
        f"train-clean-100-{x}" for x in ("19-198-0000", "19-198-0001", "103-1240-0000")
    ]
    for tag, data in seqs:
        *_, speaker, chapter, seq = tag.split("-")
        (text,) = [v[int(seq)] for k, v in _TEXTS.items() if k[1:] == (int(speaker), int(chapter))]
        assert data["raw"][()] == text
        assert data["classes"].dtype == numpy.int32
        assert vocab.get_seq_labels(data["classes"]) == text
        numpy.testing.assert_allclose(data["data"][:, 0], _samples(int(speaker), int(seq)), atol=1e-4)
    dataset.init_seq_order(epoch=1)
    dataset.load_seqs(0, 1)
    assert [dataset.get_data_dtype(key) for key in ("data", "classes")] == ["float32", "int32"]
    assert not dataset.is_data_sparse("data") and dataset.is_data_sparse("classes")
    assert dataset.serialize_data("classes", seqs[0][1]["classes"]) == "HELLO WORLD"
    dataset.finish_epoch(free_resources=True)
    assert len(read_epoch(dataset, 2)) == 6


def test_everyday_use(opts: dict[str, Any]) -> None:
    opts = {**opts, "audio": {"features": "log_mel_filterbank"}, "seq_ordering": "laplace:.2", "fixed_random_subset": 5}
    seqs = check_everyday_use(opts)
    assert seqs[0][0][1]["data"].shape[1] == 40


def _noise(audio: numpy.ndarray, random_state: numpy.random.RandomState, **_kwargs: Any) -> numpy.ndarray:
    return audio + random_state.uniform(size=audio.shape)


def test_jump(opts: dict[str, Any]) -> None:
    opts = {**opts, "audio": {"features": "raw", "pre_process": _noise}, "seq_ordering": "random"}
    check_jump(opts, positions=2)
    dataset = init_dataset({**opts, "random_state_per_seq": False})
    dataset.init_seq_order(epoch=1)
    assert not dataset.supports_jump()


def test_random_draws(opts: dict[str, Any]) -> None:
    labels = ["@", *[c + x for c in "ABCDEHLMNOPRSTW" for x in ("", "@@")], "TH@@", "CAT", "AT", "HE"]
    targets = {
        "class": "SamplingBytePairEncoding",
        "labels": labels,
        "vocab_file": None,
        "breadth_prob": 0.5,
        "unknown_label": "@",
    }
    opts = {**opts, "chars": None, "targets": targets}
    check_everyday_use(opts, random_draws=True)
    opts = {**opts, "audio": {"features": "raw", "pre_process": _noise}}
    drawn = [read_epoch(init_dataset({**opts, "random_state_per_seq": x}), 1) for x in (True, False)]
    last = [
        dict(read_epoch(init_dataset({**opts, "random_state_per_seq": x, "seq_ordering": "default"}), 1))
        for x in (True, False)
    ]
    for all_seqs, again in zip(drawn, last, strict=True):
        for tag, data in all_seqs:
            assert numpy.array_equal(data["data"], again[tag]["data"])
            assert numpy.array_equal(data["classes"], again[tag]["classes"])
    assert not numpy.array_equal(drawn[0][2][1]["data"], drawn[1][2][1]["data"])


def test_post_process_and_targets_forms(opts: dict[str, Any]) -> None:
    opts = {**opts, "audio": None, "chars": None}
    seqs = read_epoch(
        init_dataset({**opts, "orth_post_process": "lowercase", "targets": CharacterTargets(labels=list("@ehlo"))}), 1
    )
    assert seqs[0][1]["raw"][()] == "hello world"
    assert seqs[0][1]["classes"].tolist() == [2, 1, 3, 3, 4, 0, 0, 4, 0, 3, 0]
    assert seqs[0][1]["data"].shape == ()
    bpe = {"bpe_file": str(Path(opts["path"]) / "codes"), "labels": ["UNK", "CAT", "THE"], "vocab_file": None}
    Path(bpe["bpe_file"]).write_text("#version: 0.2\nA T</w>\nC AT</w>\nT H\nTH E</w>\n")  # type: ignore[arg-type]
    seqs = read_epoch(init_dataset({**opts, "bpe": bpe}), 1)
    assert seqs[1][1]["classes"].tolist() == [2, 1]


def test_user_mistakes(opts: dict[str, Any]) -> None:
    with pytest.raises(DatasetOptionError, match=r"only one of the options \['targets', 'chars'\]"):
        init_dataset({**opts, "targets": _CHARS})
    with pytest.raises(DatasetOptionError, match='"targets" is invalid'):
        init_dataset({**opts, "chars": None, "targets": "x"})
    for audio in ({"foo": 1}, "raw", {"random_state": None}):
        with pytest.raises(DatasetOptionError, match="'audio' is invalid"):
            init_dataset({**opts, "audio": audio})
    with pytest.raises(DatasetError, match=r"'nope'|no text cleaner"):
        init_dataset({**opts, "orth_post_process": "nope"})
    dataset = init_dataset({**opts, "use_ogg": True})
    with pytest.raises(DataFileError, match=r"19-198-0000\.flac\.ogg.*use_ogg"):
        read_epoch(dataset, 1)
    dataset = init_dataset({**opts, "audio": None, "chars": {"labels": ["A"], "unknown_label": None}})
    with pytest.raises(
        DatasetError, match=r"'H' is not in the.*'train-clean-100-19-198-0000' of dataset 'prefix:train'"
    ):
        read_epoch(dataset, 1)


def test_broken_files(opts: dict[str, Any]) -> None:
    folder = Path(opts["path"])
    if opts["use_zip"]:
        content = bytearray((folder / "train-clean-100.zip").read_bytes())
        idx = content.index(b"19-198-0000.flac") + 60
        content[idx : idx + 20] = bytes(20)
        (folder / "train-clean-100.zip").write_bytes(content)
        expected = (
            r"member 'LibriSpeech/train-clean-100/19/198/19-198-0000\.flac' of the zip file .*train-clean-100\.zip"
        )
    else:
        (folder / "train-clean-100/19/198/19-198-0000.flac").write_bytes(b"abc")
        expected = "train-clean-100-19-198-0000"
    with pytest.raises(DataFileError, match=expected):
        read_epoch(init_dataset(opts), 1)
    if not opts["use_zip"]:
        (folder / "train-clean-100/19/198/19-198.trans.txt").write_text("19-198-0000 A\nx-1-2 B\n")
        with pytest.raises(DataFileError, match=r"19-198\.trans\.txt', line 2: expected 'SPEAKER-CHAPTER-SEQ text'"):
            init_dataset(opts)
