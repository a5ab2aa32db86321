"""What content is compressed by, from its first bytes; bombs are refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib

import pytest

from returnn.errors import DataFileError
from returnn.util.bounded_read import decompress, max_unpacked_bytes, packed_by, read_all


def test_packed_by() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        assert archive is not None
    empty = buffer.getvalue()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", "text")
    for data in (b"text", b""):
        assert packed_by(gzip.compress(data)[:10]) == "gzip"
        assert packed_by(bz2.compress(data)[:10]) == "bzip2"
        assert packed_by(lzma.compress(data)[:10]) == "xz"
        assert packed_by(data) is None
    assert packed_by(empty[:10]) == packed_by(buffer.getvalue()[:10]) == "zip"
    for text in (b"BZh is a word", b"PK is a word", b"7z is a word", b"BZh9 1AY"):
        assert packed_by(text[:10]) is None


def test_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("returnn.util.bounded_read._MIN_BYTES", 1000)
    monkeypatch.setattr("returnn.util.bounded_read._STEP_BYTES", 1000)
    zeros = gzip.compress(b"\0" * 10**6)
    with pytest.raises(DataFileError, match="no real data does that"):
        read_all(gzip.GzipFile(fileobj=io.BytesIO(zeros)), packed_bytes=len(zeros) // 10, filename="a.gz")
    assert len(read_all(gzip.GzipFile(fileobj=io.BytesIO(zeros)), packed_bytes=10**5, filename="a.gz")) == 10**6
    packed = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    data = packed.compress(b"\0" * 10**6) + packed.flush()
    with pytest.raises(ValueError, match="no real data does that"):
        decompress(data)
    with pytest.raises(zlib.error):
        decompress(data[:10])
    assert max_unpacked_bytes(1) == 1000
