"""returnn.datasets._audio.zip_archive: compared with the module zipfile."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.datasets._audio import zip_archive
from returnn.datasets._audio.zip_archive import ZipArchive
from returnn.errors import DataFileError


def _check(path: Path, *, texts_only: bool = False) -> int:
    """:return: number of members"""
    archive = ZipArchive(str(path))
    directory = archive.read_directory(texts_only=texts_only)
    with zipfile.ZipFile(path) as expected:
        names = [n for n in expected.namelist() if not texts_only or (n.endswith(".txt") and "/" not in n)]
        for name in names:
            assert archive.read_member(directory, name) == expected.read(name)
    assert set(names) <= {name.decode("utf8", "replace") for name in directory.index}
    return len(directory.offset)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.text(st.characters(codec="utf8"), min_size=1, max_size=20), st.binary(max_size=50), st.booleans()),
        max_size=8,
    ),
    st.binary(max_size=30),
    st.sampled_from([b"", b"#!/bin/sh\n"]),
)
def test_as_zipfile(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes, bool]], comment: bytes, front: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "as_zipfile.zip"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data, deflated in {name.split("\0")[0] or "x": (name, data, d) for name, data, d in members}.values():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED)
        archive.comment = comment
    path.write_bytes(front + buffer.getvalue())
    _check(path)
    _check(path, texts_only=True)


def test_zip64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zip"
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(5):
            with archive.open(f"{i}.txt", "w", force_zip64=True) as member:
                member.write(bytes([i]) * 200)
    monkeypatch.undo()
    monkeypatch.setattr(ZipArchive, "_read_directory_slowly", None)  # not needed
    assert _check(path) == 5


def test_names_in_old_code_page(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    info = zipfile.ZipInfo("k_se.txt")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, b"x")
    data = path.read_bytes()
    for raw in (b"k\x84se.txt", "k\u00e4e.txt".encode()):  # by zipfile; by programs that do not set the flag
        path.write_bytes(data.replace(b"k_se.txt", raw))
        directory = ZipArchive(str(path)).read_directory()
        assert (raw if raw.startswith("k\u00e4".encode()) else "k\u00e4se.txt".encode()) in directory.index


def test_unusual_and_broken(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", b"x" * 100, zipfile.ZIP_BZIP2)
        archive.writestr("b.txt", b"y" * 100, zipfile.ZIP_DEFLATED)
    archive_ = ZipArchive(str(path))
    directory = archive_.read_directory()
    with pytest.raises(DataFileError, match=r"'a\.txt'.*compression method"):
        archive_.read_member(directory, "a.txt")
    slow = ZipArchive(str(path))._read_directory_slowly()
    for field in ("offset", "size", "crc", "method"):
        assert getattr(slow, field).tolist() == getattr(directory, field).tolist()
    assert slow.index == directory.index
    data = path.read_bytes()
    for broken in (b"", b"PK", data[: len(data) // 2], b"x" * 1000):
        path.write_bytes(broken)
        with pytest.raises(DataFileError, match=r"a\.zip"):
            ZipArchive(str(path)).read_directory()
    position = data.index(b"b.txt") + len("b.txt")
    path.write_bytes(data[:position] + b"\xff" + data[position + 1 :])
    with pytest.raises(DataFileError, match=r"'b\.txt'.*(broken|checksum)"):
        archive_.read_member(directory, "b.txt")


def test_long_extra_field_of_the_local_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zip"
    monkeypatch.setattr(zip_archive, "_LOCAL_SLACK_BYTES", 0)
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("a.txt")
        info.extra = b"\xfe\xca\x40\x00" + bytes(64)
        archive.writestr(info, b"x" * 10)
        archive.writestr("b.txt", b"y" * 300)
    assert _check(path) == 2
