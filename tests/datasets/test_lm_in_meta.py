"""Text datasets as children of MetaDataset: orders by tags, with and without reading in bulk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from returnn.datasets.basic import init_dataset
from tests.datasets.everyday_use import check_everyday_use, read_epoch


def _opts(tmp_path: Path, *, error_on_invalid_seq: bool = True) -> dict[str, Any]:
    """:return: a text with its n-best list, of the same tags in another order"""
    num = 7
    (tmp_path / "text.txt").write_text("".join(f"{'w ' * i}x\n" for i in range(num)))
    (tmp_path / "tags.txt").write_text("".join(f"utt-{i}\n" for i in range(num)))
    (tmp_path / "nbest.txt").write_text(
        "{" + "".join(f"'utt-{i}': [(-1.0, 'y{i}'), (-0.5, 'z')],\n" for i in reversed(range(num))) + "}"
    )
    (tmp_path / "words.syms").write_text("[END]\nw\nx\n")
    return {
        "class": "MetaDataset",
        "datasets": {
            "text": {
                "class": "LmDataset",
                "corpus_file": str(tmp_path / "text.txt"),
                "seq_list_file": str(tmp_path / "tags.txt"),
                "orth_symbols_file": str(tmp_path / "words.syms"),
                "word_based": True,
                "seq_ordering": "laplace:.3",
                "partition_epoch": 2,
                "error_on_invalid_seq": error_on_invalid_seq,
            },
            "nbest": {
                "class": "TextDictDataset",
                "filename": str(tmp_path / "nbest.txt"),
                "vocab": {"class": "Utf8ByteTargets"},
            },
        },
        "data_map": {"data": ("text", "data"), "best": ("nbest", "data"), "scores": ("nbest", "scores")},
        "seq_order_control_dataset": "text",
    }


def test_order_by_text(tmp_path: Path) -> None:
    dataset = init_dataset(_opts(tmp_path))
    seqs = read_epoch(dataset, 1) + read_epoch(dataset, 2)
    assert sorted(tag for tag, _ in seqs) == [f"utt-{i}" for i in range(7)]
    for tag, data in seqs:
        assert len(data["data"]) == int(tag[-1]) + 2
        assert bytes(data["best"].astype("uint8")) == b"z"
        assert data["scores"].tolist() == [-1, -0.5]


@pytest.mark.slow
@pytest.mark.parametrize("is_small", [True, False])
def test_everyday_use(is_small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_small:
        monkeypatch.setattr("returnn.datasets._lm.lm_dataset._MAX_BULK_BYTES", 1)
    check_everyday_use(_opts(tmp_path), workers=(0, 1))
