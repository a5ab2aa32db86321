"""
HDF files can refer to other files: by links, as external storage (the raw bytes of any file), and as virtual arrays.
Only files of the same folder are accepted, unless ``unsafe_load`` is set.
"""

from __future__ import annotations

import os

import h5py

from returnn.errors import DataFileError, describe
from returnn.options.loading import LoadingOptions

__all__ = ["check_array", "check_links"]

#: Groups with more members have one array per sequence, which is checked when it is read.
_MAX_MEMBERS = 100


def check_links(h5_file: h5py.File, filename: str) -> None:
    """
    Look at all members, except of groups with very many of them.

    :param h5_file: open
    :param filename: for messages
    :raises DataFileError: something refers to a file of another folder
    """
    if LoadingOptions.from_global_config().allow_unsafe:
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
