"""TimitDataset, NltkTimitDataset on made-up files. (Label tables: test_generating.py.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest

from returnn.datasets.basic import init_dataset
from returnn.datasets.generating import TimitDataset
from returnn.errors import DataFileError, DatasetError, NotSupportedError
from tests.datasets.everyday_use import check_everyday_use, check_jump, read_epoch

soundfile = pytest.importorskip("soundfile")
_PHONES = [["h#", "dh", "ax", "h#"], ["h#", "q", "ae", "tcl", "t", "h#"], ["pau", "iy"]]


def _write_seq(path: Path, phones: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{800 * i} {800 * (i + 1)} {phone}\n" for i, phone in enumerate(phones)]
    path.with_suffix(".phn").write_text("".join(lines))
    samples = numpy.random.RandomState(len(phones)).uniform(-0.5, 0.5, 800 * len(phones))
    soundfile.write(str(path.with_suffix(".wav")), samples, 16000)


@pytest.fixture
def timit_dir(tmp_path: Path) -> str:
    for i, phones in enumerate(_PHONES):
        _write_seq(tmp_path / f"TIMIT/train/dr1/a/s{i}", phones)
    (tmp_path / "TIMIT/train/filelist.phn").write_text("dr1/a/s0.phn\nTIMIT/train/dr1/a/s1\n\ndr1/a/s2.phn\n")
    _write_seq(tmp_path / "TIMIT/test/dr2/b/s7", ["aa"])
    (tmp_path / "TIMIT/test/filelist.core.phn").write_text("dr2/b/s7\n")
    return str(tmp_path)


@pytest.mark.parametrize("num_phones", [61, 48, 39])
def test_data(timit_dir: str, num_phones: int) -> None:
    opts: dict[str, Any] = {"class": "TimitDataset", "timit_dir": timit_dir, "random_permute_audio": False}
    dataset = init_dataset({**opts, "num_phones": num_phones, "with_delta": True, "num_feature_filters": 13})
    labels = TimitDataset.get_labels(num_phones)
    assert dataset.num_outputs == {"data": [26, 2], "classes": [len(labels), 1]}
    assert dataset.labels == {"classes": labels}
    seqs = read_epoch(dataset, 1)
    assert [tag for tag, _ in seqs] == ["dr1/a/s0", "TIMIT/train/dr1/a/s1", "dr1/a/s2"]
    for (_, data), phones in zip(seqs, _PHONES, strict=True):
        mapped: list[str | None] = [
            {61: phone, 48: TimitDataset.PhoneMapTo48[phone], 39: TimitDataset.PhoneMapTo39[phone]}[num_phones]
            for phone in phones
        ]
        assert data["classes"].dtype == numpy.int32
        assert [labels[idx] for idx in data["classes"]] == [phone for phone in mapped if phone is not None]
        assert data["data"].shape == (1 + 800 * len(phones) // 160, 26)
    ordered = read_epoch(init_dataset({**opts, "seq_ordering": "sorted"}), 1)
    assert [tag for tag, _ in ordered] == ["dr1/a/s2", "dr1/a/s0", "TIMIT/train/dr1/a/s1"]
    (test,) = read_epoch(init_dataset({**opts, "train": False}), 1)
    assert test[0] == "dr2/b/s7"


def test_everyday_use(timit_dir: str) -> None:
    opts = {"class": "TimitDataset", "timit_dir": timit_dir, "seq_ordering": "random", "random_permute_audio": False}
    plain = check_everyday_use(opts)
    preloaded = read_epoch(init_dataset({**opts, "preload": True}), 1)
    for (tag, data), (other_tag, other) in zip(plain[0], preloaded, strict=True):
        assert tag == other_tag and numpy.array_equal(data["data"], other["data"])


def test_jump(timit_dir: str) -> None:
    opts = {"class": "TimitDataset", "timit_dir": timit_dir, "seq_ordering": "random"}
    check_jump({**opts, "random_permute_audio": False}, positions=2)
    dataset = init_dataset({**opts, "random_permute_audio": {"rnd_zoom_switch": 1.0}, "random_state_per_seq": False})
    dataset.init_seq_order(epoch=1)
    assert not dataset.supports_jump()


@pytest.mark.slow
def test_augmentation_is_on_for_train_only(timit_dir: str) -> None:
    pytest.importorskip("librosa")
    opts: dict[str, Any] = {
        "class": "TimitDataset",
        "timit_dir": timit_dir,
        "features": "raw",
        "num_feature_filters": 1,
    }
    epochs = [read_epoch(init_dataset(opts), epoch) for epoch in (1, 2, 1)]
    assert numpy.array_equal(epochs[0][0][1]["data"], epochs[2][0][1]["data"])
    assert not numpy.array_equal(epochs[0][0][1]["data"], epochs[1][0][1]["data"])
    dataset = init_dataset({**opts, "train": False})
    epochs = [read_epoch(dataset, epoch) for epoch in (1, 2)]
    assert numpy.array_equal(epochs[0][0][1]["data"], epochs[1][0][1]["data"])


def test_nltk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(10):
        _write_seq(tmp_path / f"corpora/timit/dr1-{i}/sa1", ["h#", "aa"])
    opts = {"class": "NltkTimitDataset", "nltk_download_dir": str(tmp_path), "random_permute_audio": False}
    seqs = check_everyday_use(opts, workers=(0, 2))[0]
    assert [tag for tag, _ in seqs] == [f"dr1-{i}/sa1" for i in range(9)]
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    seqs = read_epoch(init_dataset({"class": "NltkTimitDataset", "train": False}), 1)
    assert [tag for tag, _ in seqs] == ["dr1-9/sa1"]
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "nope"))
    with pytest.raises(DataFileError, match=r"nltk\.download\('timit'"):
        init_dataset({"class": "NltkTimitDataset"})
    with pytest.raises(TypeError, match="nltk_download_dir"):
        init_dataset({"class": "NltkTimitDataset", "timit_dir": "x"})


def test_user_mistakes(timit_dir: str) -> None:
    opts: dict[str, Any] = {"class": "TimitDataset", "timit_dir": timit_dir, "random_permute_audio": False}
    with pytest.raises(DataFileError, match=r"filelist\.phn"):
        init_dataset({**opts, "timit_dir": "/nope"})
    with pytest.raises(DatasetError, match="61, 48 or 39"):
        init_dataset({**opts, "num_phones": 40})
    with pytest.raises(NotSupportedError, match="demo_play_audio"):
        init_dataset({**opts, "demo_play_audio": True})
    folder = Path(timit_dir) / "TIMIT/train"
    (folder / "dr1/a/s0.wav").unlink()
    with pytest.raises(DataFileError, match=r"s0\.wav"):
        read_epoch(init_dataset(opts), 1)
    (folder / "dr1/a/s0.phn").write_text("0 800 h#\n800 900 xyz\n")
    with pytest.raises(DataFileError, match=r"s0\.phn', line 2: expected 'start end phone', got '800 900 xyz"):
        init_dataset(opts)
    (folder / "filelist.phn").write_text("dr1/a/s0\nnope\n")
    with pytest.raises(DataFileError, match=r"filelist\.phn', line 2: neither"):
        init_dataset(opts)
