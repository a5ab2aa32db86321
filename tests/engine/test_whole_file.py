"""Whole, truncated, and otherwise broken checkpoint files."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from returnn.engine.whole_file import is_whole
from tests.engine.checkpoint_files import write


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_torch_file_is_whole_and_every_cut_is_not() -> None:
    torch = pytest.importorskip("torch")
    torch.save({"model": {"a": torch.arange(300), "b": torch.zeros(3, 4)}, "epoch": 1}, "x.pt")
    assert is_whole("x.pt")
    content = Path("x.pt").read_bytes()
    for size in {*range(0, len(content), 61), *range(len(content) - 40, len(content))}:
        write("cut.pt", content=content[:size])
        assert not is_whole("cut.pt"), size
    # Blocks at the end that were never flushed to disk.
    write("hole.pt", content=content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    assert not is_whole("hole.pt")
    write("zeros.pt", content=bytes(len(content)))
    assert not is_whole("zeros.pt")
    # A part in the middle is missing.
    write("middle.pt", content=content[:200] + content[400:])
    assert not is_whole("middle.pt")


def test_old_torch_format_cannot_be_judged() -> None:
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(3)}, "x.pt", _use_new_zipfile_serialization=False)
    assert is_whole("x.pt")


def test_missing_file_and_folder() -> None:
    os.mkdir("d.pt")
    assert not is_whole("nothere") and not is_whole("d.pt") and not is_whole("")


def test_safetensors() -> None:
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    content = struct.pack("<Q", len(header)) + header + bytes(8)
    write("x.safetensors", content=content)
    assert is_whole("x.safetensors")
    for size in (len(content) - 1, 40, 9):
        write("x.safetensors", content=content[:size])
        assert not is_whole("x.safetensors")
