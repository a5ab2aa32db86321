"""Which files an HDF file may refer to; the quick look says yes only where the whole look would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy
import pytest

from returnn.datasets._hdf import outside_links
from returnn.datasets._hdf.outside_links import check_links
from returnn.errors import DataFileError


def _cycle(file: h5py.File) -> None:
    file["a/up"] = file["/"]
    file["a/b/up"] = file["a"]


def _many_members(file: h5py.File) -> None:
    for i in range(150):
        file.create_group(f"a/g{i}")


def _external_storage(folder: str) -> Callable[[h5py.File], None]:
    def _make(file: h5py.File) -> None:
        file.create_dataset("a/x", (3,), "u1", external=[(f"{folder}/raw", 0, h5py.h5f.UNLIMITED)])

    return _make


def _virtual(folder: str) -> Callable[[h5py.File], None]:
    def _make(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((3,), "u1")
        layout[:] = h5py.VirtualSource(f"{folder}/other.hdf", "x", (3,))
        file.create_virtual_dataset("a/x", layout)

    return _make


def _link(folder: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__setitem__("a/x", h5py.ExternalLink(f"{folder}/other.hdf", "/x"))


CASES: dict[str, tuple[Callable[[h5py.File], None], bool, bool]] = {
    # what is added; whether the quick look is enough; whether the file is refused
    "plain": (lambda file: None, True, False),
    "chunks": (
        lambda file: file.create_dataset("a/x", data=numpy.zeros(9), chunks=(2,), compression="gzip"),
        True,
        False,
    ),
    "unlimited, empty": (lambda file: file.create_dataset("a/x", (0,), "f4", maxshape=(None,)), True, False),
    "never written": (lambda file: file.create_dataset("a/x", (5,), "f4"), True, False),
    "type": (lambda file: file.__setitem__("a/type", numpy.dtype("f4")), True, False),
    "cycle of hard links": (_cycle, True, False),
    "soft link": (lambda file: file.__setitem__("a/x", h5py.SoftLink("/b")), False, False),
    "soft link to nowhere": (lambda file: file.__setitem__("a/x", h5py.SoftLink("/nowhere")), False, False),
    "many members": (_many_members, False, False),
    "link, same folder": (_link("."), False, False),
    "storage, same folder": (_external_storage("."), False, False),
    "virtual, same folder": (_virtual("."), False, False),
    "link, other folder": (_link("/tmp"), False, True),
    "storage, other folder": (_external_storage("/etc"), False, True),
    "virtual, other folder": (_virtual(".."), False, True),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_file_refers_to(tmp_path: Path, case: str) -> None:
    add, is_plain, is_refused = CASES[case]
    path = str(tmp_path / "data.hdf")
    with h5py.File(path, "w") as file:
        file["b"] = numpy.zeros(3)
        file.create_group("a/b")
        add(file)
    with h5py.File(path, "r") as file:
        assert outside_links._is_plain(file.id) is is_plain
        if not is_refused:
            check_links(file, path)
            return
        with pytest.raises(DataFileError, match="of another folder, by its member"):
            check_links(file, path)


def test_both_looks_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the quick one is enough, the whole one refuses nothing."""
    monkeypatch.setattr(outside_links, "_is_plain", lambda file_id: False)
    for i, (add, is_plain, _) in enumerate(CASES.values()):
        path = str(tmp_path / f"{i}.hdf")
        with h5py.File(path, "w") as file:
            file["b"] = numpy.zeros(3)
            file.create_group("a/b")
            add(file)
        if is_plain:
            with h5py.File(path, "r") as file:
                check_links(file, path)
