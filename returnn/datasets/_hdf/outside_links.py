"""
HDF files can refer to other files: by links, as external storage (the raw bytes of any file), and as virtual arrays.
Only files of the same folder are accepted, unless ``unsafe_load`` is set.
"""

from __future__ import annotations

import os

import h5py
from h5py import h5d, h5f, h5g, h5l, h5o

from returnn.errors import DataFileError, describe
from returnn.options.loading import LoadingOptions

__all__ = ["check_array", "check_links", "is_inside"]

#: Groups with more members have one array per sequence, which is checked when it is read.
_MAX_MEMBERS = 100


def check_links(h5_file: h5py.File, filename: str) -> None:
    """
    Look at all members, except of groups with very many of them.

    :param h5_file: open
    :param filename: for messages
    :raises DataFileError: something refers to a file of another folder
    """
    if _is_plain(h5_file.id) or LoadingOptions.from_global_config().allow_unsafe:
        return
    todo: list[h5py.Group] = [h5_file]
    seen: set[int] = set()
    try:
        while todo:
            group = todo.pop()
            address = h5py.h5o.get_info(group.id).addr
            if address in seen or len(group) > _MAX_MEMBERS:
                continue
            seen.add(address)
            for name in group:
                link = group.get(name, getlink=True)
                if isinstance(link, h5py.ExternalLink):
                    _check(link.filename, f"{str(group.name).rstrip('/')}/{name}", filename)
                elif isinstance(link, h5py.HardLink):
                    member = group[name]
                    if isinstance(member, h5py.Group):
                        todo.append(member)
                    elif isinstance(member, h5py.Dataset):
                        check_array(member, filename)
    except DataFileError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, UnicodeError):
        return  # The file is broken. Who reads that part says so, and nothing of it can be read otherwise.


def _is_plain(file_id: h5f.FileID) -> bool:
    """:return: True: hard links only, and nothing is stored elsewhere. By h5py's lower level, which takes a quarter of the time"""
    links: list[int] = []
    arrays: list[bytes] = []

    def _note_link(_name: bytes, info: h5l.LinkInfo) -> int | None:
        links.append(info.type)
        return 1 if info.type != h5l.TYPE_HARD or len(links) > _MAX_MEMBERS else None  # 1 ends the walk

    def _note_object(name: bytes, info: h5o.ObjInfo) -> None:
        if info.type == h5o.TYPE_DATASET:
            arrays.append(name)

    try:
        root = h5g.open(file_id, b"/")  # the proxy of its links does not hold it
        if root.links.visit(_note_link, info=True) is not None:
            return False
        h5o.visit(root, _note_object, info=True)
        return all(is_inside(h5d.open(root, name)) for name in arrays)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError):
        return False  # broken


def is_inside(array: h5d.DatasetID) -> bool:
    """
    :param array: reached by hard links
    :return: whether its data is in the file itself
    """
    if array.get_offset() is not None:
        return True
    plist = array.get_create_plist()
    layout = plist.get_layout()
    return bool(layout != h5d.VIRTUAL and (layout != h5d.CONTIGUOUS or not plist.get_external_count()))


def check_array(array: h5py.Dataset, filename: str) -> None:
    """
    :param array: that is about to be read
    :param filename: of the file which it was asked from
    :raises DataFileError: its data is in a file of another folder
    """
    where = h5py.h5f.get_name(array.id)
    others = [] if os.path.samefile(where, filename) else [os.fsdecode(where)]
    plist = array.id.get_create_plist()
    others += [os.fsdecode(plist.get_external(i)[0]) for i in range(plist.get_external_count())]
    if plist.get_layout() == h5py.h5d.VIRTUAL:
        others += [source.file_name for source in array.virtual_sources() if source.file_name != "."]
    if others and not LoadingOptions.from_global_config().allow_unsafe:
        for other in others:
            _check(other, str(array.name), filename)


def _check(other: str, member: str, filename: str) -> None:
    folder = os.path.dirname(os.path.realpath(filename))
    if os.path.dirname(os.path.realpath(os.path.join(folder, other))) != folder:
        raise DataFileError(
            describe(
                f"HDF file {filename!r} refers to the file {other!r} of another folder, by its member {member!r}",
                todo="If you trust the file, put both into one folder, or set unsafe_load = True",
            )
        )
