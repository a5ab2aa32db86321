"""BundleFile."""

from __future__ import annotations

from pathlib import Path

import pytest

from returnn.datasets.bundle_file import BundleFile
from returnn.errors import DataFileError


def test_bundle_file(tmp_path: Path) -> None:
    path = tmp_path / "files.bundle"
    path.write_text("a.hdf\n\n  /data/b c.hdf \r\n\t\nd.hdf")
    bundle = BundleFile(path)
    assert bundle.dataset_file_paths == ["a.hdf", "/data/b c.hdf", "d.hdf"]
    assert bundle.number_of_dataset_files == 3
    path.write_text("")
    assert BundleFile(str(path)).number_of_dataset_files == 0


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="cannot read"):
        BundleFile(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataFileError, match="cannot read"):
        BundleFile(tmp_path / "binary")
