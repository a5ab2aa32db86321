"""
The quick way to read what an HDF file holds, for one of many files of the same form.

h5py's objects for groups, arrays and attributes cost more than what is read by them. Here a file is compared with an earlier one by
the lower level of h5py. Whatever is not just as there makes it a case for :mod:`file_index`, which also words all errors.
"""

from __future__ import annotations

import os

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5l, h5s, h5t

from returnn.datasets._hdf.file_index import FileIndex, StreamInfo, lens_fit
from returnn.datasets._hdf.format import (
    HDF_ERRORS,
    HDF_INPUT_PATT_SIZE_KEY,
    HDF_SEQ_LENGTHS_KEY,
    LABELS_KEY,
    SEQ_TAGS_KEY,
    TARGETS_KEY,
)
from returnn.datasets._hdf.outside_links import is_inside
from returnn.datasets._hdf.seq_lengths import read_with_sums

__all__ = ["FileForm"]

_SIZE_GROUP = f"{TARGETS_KEY}/size"
_LABELS_GROUP = f"{TARGETS_KEY}/labels"
# More members than that have files of other forms.
_MAX_MEMBERS = 200


class FileForm:
    """The form of one file: all its members, and all that is not of the single sequences."""

    def __init__(self, h5_file: h5py.File, index: FileIndex):
        """
        :param h5_file: open
        :param index: of it, checked
        :raises _OtherForm: it has something that is not compared here; or what h5py raises
        """
        self._index = index
        self._access = h5_file.id.get_access_plist()
        self._members = _hard_links(h5_file.id)
        self._root_attrs: list[_Attr] = []
        if index.has_inputs and len(index.streams["data"].shape) == 0:  # else the array tells the dimension
            self._root_attrs.append(_Attr(h5g.open(h5_file.id, b"/"), HDF_INPUT_PATT_SIZE_KEY))
        sizes = h5_file.get(_SIZE_GROUP)
        self._size_attrs = [] if sizes is None else [_Attr(sizes.id, name) for name in sizes.attrs]
        self._streams = {
            key: (
                stream.path.encode("utf8"),
                h5d.open(h5_file.id, stream.path.encode("utf8")).get_type().copy(),
                stream,
            )
            for key, stream in index.streams.items()
        }
        self._labels: dict[bytes, tuple[h5t.TypeID, np.ndarray, list[object]]] = {}
        self._empty_groups: list[bytes] = []
        known = {HDF_SEQ_LENGTHS_KEY.encode(), SEQ_TAGS_KEY.encode(), *(path for path, _, _ in self._streams.values())}
        for member in self._members:
            path = member.decode("utf8")
            obj = h5_file[path]
            if isinstance(obj, h5py.Group) and not len(obj):
                if path != _SIZE_GROUP or not self._size_attrs:
                    self._empty_groups.append(member)
            elif isinstance(obj, h5py.Dataset) and (path == LABELS_KEY or path.startswith(f"{_LABELS_GROUP}/")):
                if obj.dtype.kind not in "SO":
                    raise _OtherForm  # equal numbers need not be equal texts
                labels = obj[...]
                self._labels[member] = obj.id.get_type().copy(), labels, labels.tolist()
            elif not isinstance(obj, h5py.Group) and member not in known:
                raise _OtherForm
        is_text = any(stream.dtype.kind == "O" for stream in index.streams.values())
        if is_text or index.timestamps is not None or index.lens.ndim != 2:
            raise _OtherForm

    @classmethod
    def of(cls, h5_file: h5py.File, index: FileIndex) -> FileForm | None:
        """
        :param h5_file: open
        :param index: of it, checked
        :return: None: other files cannot be compared with this one
        """
        try:
            return cls(h5_file, index)
        except (_OtherForm, *HDF_ERRORS):
            return None

    def read(self, filename: str) -> FileIndex | None:
        """
        :param filename: of another file
        :return: what it holds; None if it has another form, is broken, or anything about it is to be said: then by
            :func:`~returnn.datasets._hdf.file_index.read_file_index`
        """
        try:
            # It is closed when nobody refers to it: a third quicker than by close(), which looks for what is open.
            return self._read(h5f.open(os.fsencode(filename), h5f.ACC_RDONLY, self._access), filename)
        except (_OtherForm, *HDF_ERRORS):
            return None

    def _read(self, file_id: h5f.FileID, filename: str) -> FileIndex:
        first = self._index
        if _hard_links(file_id) != self._members:
            raise _OtherForm
        for name in self._empty_groups:
            h5g.open(file_id, name)
        for attr in self._root_attrs:
            attr.check(file_id)
        if self._size_attrs:
            sizes = h5g.open(file_id, _SIZE_GROUP.encode())
            if h5a.get_num_attrs(sizes) != len(self._size_attrs):
                raise _OtherForm
            for attr in self._size_attrs:
                attr.check(sizes)
        for name, (stored_type, labels, texts) in self._labels.items():
            array = _open_array(file_id, name)
            if array.shape != labels.shape or not array.get_type().equal(stored_type):
                raise _OtherForm
            if labels.size:
                values = np.empty_like(labels)
                array.read(h5s.ALL, h5s.ALL, values)
                if values.tolist() != texts:
                    raise _OtherForm
        usual = read_with_sums(_open_array(file_id, HDF_SEQ_LENGTHS_KEY.encode()))
        if usual is None or usual[0].dtype != first.lens.dtype or usual[0].shape[1] != first.lens.shape[1]:
            raise _OtherForm
        lens, frame_sums = usual
        streams = {}
        for key, (path, stored_type, stream) in self._streams.items():
            array = _open_array(file_id, path)
            shape = array.shape
            if (
                shape[1:] != stream.shape
                or len(shape) != 1 + len(stream.shape)
                or not array.get_type().equal(stored_type)
            ):
                raise _OtherForm
            streams[key] = StreamInfo(stream.path, int(shape[0]), stream.shape, stream.dtype, stream.dim, stream.ndim)
        tags = _open_array(file_id, SEQ_TAGS_KEY.encode())
        if tags.shape != (len(lens),) or tags.get_type().get_class() != h5t.STRING:
            raise _OtherForm
        index = FileIndex(
            filename=filename,
            num_seqs=len(lens),
            has_inputs=first.has_inputs,
            has_targets=first.has_targets,
            target_keys=first.target_keys,
            lens=lens,
            frame_sums=frame_sums,
            columns=first.columns,
            streams=streams,
            num_outputs=first.num_outputs,
            num_inputs=first.num_inputs,
            labels=first.labels,
            root_labels=first.root_labels,
            timestamps=None,
        )
        if not lens_fit(index):
            raise _OtherForm
        return index


class _OtherForm(Exception):
    """Not like the file that it is compared with."""


class _Attr:
    """Name and value of an attribute of numbers."""

    def __init__(self, group_id: h5g.GroupID, name: str):
        """
        :param group_id: which has it
        :param name: of the attribute
        :raises _OtherForm: its value is no number
        """
        self._name = name.encode("utf8")
        attr = h5a.open(group_id, self._name)
        if attr.dtype.kind not in "iuf":
            raise _OtherForm
        self._size = attr.get_storage_size()
        self._found = np.empty(attr.shape, dtype=attr.dtype)
        self._type = h5t.py_create(attr.dtype)
        attr.read(self._found, self._type)
        self._value = self._found.tobytes()

    def check(self, group_id: h5g.GroupID | h5f.FileID) -> None:
        """
        :param group_id: of another file
        :raises _OtherForm: the value is another one there
        """
        attr = h5a.open(group_id, self._name)
        # Another shape could be of the same size here, but longer when it is converted: there is no room for that.
        if attr.get_storage_size() != self._size or attr.shape != self._found.shape:
            raise _OtherForm
        attr.read(self._found, self._type)
        if self._found.tobytes() != self._value:
            raise _OtherForm


def _hard_links(file_id: h5f.FileID) -> list[bytes]:
    """
    :return: paths of all members, groups first
    :raises _OtherForm: one of them is a link to elsewhere, or there are too many
    """
    members: list[bytes] = []

    def _add(name: bytes, info: h5l.LinkInfo) -> int | None:
        if info.type != h5l.TYPE_HARD or len(members) >= _MAX_MEMBERS:
            return 1  # ends the walk
        members.append(name)
        return None

    root = h5g.open(file_id, b"/")  # the proxy of its links does not hold it
    if root.links.visit(_add, info=True) is not None:
        raise _OtherForm
    return members


def _open_array(file_id: h5f.FileID, path: bytes) -> h5d.DatasetID:
    """
    :return: array whose data is in this file
    :raises _OtherForm: it may be elsewhere
    """
    array = h5d.open(file_id, path)
    if not is_inside(array):
        raise _OtherForm
    return array
