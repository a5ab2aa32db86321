"""What one HDF file holds: streams, lengths, dimensions, labels; read in bulk and checked for consistency."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import h5py
import numpy as np

from returnn.datasets._hdf.format import (
    HDF_INPUT_PATT_SIZE_KEY,
    HDF_SEQ_LENGTHS_KEY,
    HDF_TIMES_KEY,
    INPUTS_KEY,
    LABELS_KEY,
    PHANTOM_TARGET_KEY,
    SEQ_TAGS_KEY,
    TARGETS_KEY,
    decode_strings,
    dtype_name,
)
from returnn.datasets._hdf.seq_lengths import FrameSums, read_with_sums
from returnn.errors import DataFileError, describe

__all__ = ["StreamInfo", "FileIndex", "read_file_index", "parse_file_index", "lens_fit", "check_fits"]

_WRITE_AGAIN = "The file was not written completely or by a faulty program; write it again"


@dataclasses.dataclass(frozen=True)
class StreamInfo:
    """One array of the file: all sequences of one data key."""

    path: str  # in the HDF file
    num_frames: int
    shape: tuple[int, ...]  # of one frame
    dtype: np.dtype
    dim: int
    ndim: int  # counts the time axis

    @property
    def layout(self) -> tuple[str, tuple[int, ...], np.dtype]:
        """:return: all but the number of frames"""
        return self.path, self.shape, self.dtype

    @property
    def frame_bytes(self) -> int:
        """:return: size of one frame in memory"""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def dtype_name(self) -> str:
        """:return: as get_data_dtype gives it"""
        return dtype_name(self.dtype)


@dataclasses.dataclass(frozen=True)
class FileIndex:
    """Metadata of one file. No open handle, no object per sequence."""

    filename: str
    num_seqs: int
    has_inputs: bool
    has_targets: bool
    target_keys: list[str]  # sorted; the phantom key if there is no targets group
    lens: np.ndarray  # [num_seqs, columns] as stored
    frame_sums: FrameSums
    columns: list[str]  # data key per column; "data" first if has_inputs
    streams: dict[str, StreamInfo]  # data key -> stream
    num_outputs: dict[str, list[int] | tuple[int, int]]
    num_inputs: int
    labels: dict[str, list[str]]  # of targets/labels
    root_labels: list[str] | None
    timestamps: np.ndarray | None

    def column(self, key: str) -> np.ndarray:
        """
        :param key: data key
        :return: [num_seqs] lengths
        """
        return self.lens[:, self.columns.index(key)]


def read_file_index(h5_file: h5py.File, filename: str) -> FileIndex:
    """
    :param h5_file: open file
    :param filename: for messages
    :raises DataFileError: if something is missing or does not fit together; names file and key
    """
    index = parse_file_index(h5_file, filename)
    _check_lens(index)
    _check_tags(h5_file, index)
    return index


def parse_file_index(h5_file: h5py.File, filename: str) -> FileIndex:
    """
    As :func:`read_file_index`, but without the checks whether lengths, data and tags fit together.

    :param h5_file: open file
    :param filename: for messages
    :raises DataFileError: if something is missing or of the wrong form; names file and key
    """
    has_inputs = INPUTS_KEY in h5_file
    has_targets = TARGETS_KEY in h5_file
    if not has_inputs and not has_targets and h5_file.attrs.get("numSeqs") == 0:
        raise DataFileError(
            describe(
                f"HDF file {filename!r} holds no sequences: its writer was closed before anything was written",
                todo="Leave it out, or check why the program that wrote it had no input",
            )
        )
    if not has_inputs and not has_targets:
        raise DataFileError(
            describe(
                f"HDF file {filename!r} has neither 'inputs' nor 'targets', it holds {sorted(h5_file)[:10]}",
                todo="Give a file in the format of the HDF writers; for the format with 'streams' use StreamHDFDataset",
            )
        )
    target_keys = _get_target_keys(h5_file, filename, has_targets=has_targets)
    if has_inputs and "data" in target_keys:
        raise DataFileError(
            describe(
                "Cannot use 'data' key for both a target and 'inputs'",
                where=f"HDF file {filename!r}",
                todo="Rename the target",
            )
        )
    columns = (["data"] if has_inputs else []) + target_keys
    lens, frame_sums = _read_lens(h5_file, filename, columns)
    streams: dict[str, StreamInfo] = {}
    num_outputs: dict[str, list[int] | tuple[int, int]] = {}
    num_inputs = 0
    if has_inputs:
        stream = _get_input_stream(h5_file, filename)
        streams["data"] = stream
        num_inputs = stream.dim
        num_outputs["data"] = [stream.dim, stream.ndim]
    if has_targets:
        for key in target_keys:
            stream_or_none, dims = _get_target_stream(h5_file, filename, key)
            if stream_or_none is not None:
                streams[key] = stream_or_none
            num_outputs[key] = dims
    times = _get(h5_file, HDF_TIMES_KEY, h5py.Dataset, filename)
    return FileIndex(
        filename=filename,
        num_seqs=len(lens),
        has_inputs=has_inputs,
        has_targets=has_targets,
        target_keys=target_keys,
        lens=lens,
        frame_sums=frame_sums,
        columns=columns,
        streams=streams,
        num_outputs=num_outputs,
        num_inputs=num_inputs,
        labels=_read_target_labels(h5_file, filename),
        root_labels=_read_labels(h5_file, LABELS_KEY, filename),
        timestamps=None if times is None else times[...],
    )


def _get(h5_file: h5py.File, path: str, kind: type[h5py.Dataset | h5py.Group], filename: str) -> Any:
    """:return: the object of this kind; None if there is none, or only a link to nowhere. Any: of type kind"""
    obj = h5_file.get(path)
    if obj is None or isinstance(obj, kind):
        return obj
    names = {h5py.Dataset: "array", h5py.Group: "group"}
    raise DataFileError(
        describe(
            f"{path!r} of HDF file {filename!r} is of the wrong kind",
            expected=f"HDF5 {names[kind]}",
            got=names.get(type(obj), type(obj).__name__),
            todo=_WRITE_AGAIN,
        )
    )


def _get_target_keys(h5_file: h5py.File, filename: str, *, has_targets: bool) -> list[str]:
    if not has_targets:
        return [PHANTOM_TARGET_KEY]
    _get(h5_file, TARGETS_KEY, h5py.Group, filename)
    data = _get(h5_file, f"{TARGETS_KEY}/data", h5py.Group, filename)
    size = _get(h5_file, f"{TARGETS_KEY}/size", h5py.Group, filename)
    return sorted(set(() if data is None else data) | set(() if size is None else size.attrs))


def _read_lens(h5_file: h5py.File, filename: str, columns: list[str]) -> tuple[np.ndarray, FrameSums]:
    dataset = _get(h5_file, HDF_SEQ_LENGTHS_KEY, h5py.Dataset, filename)
    if dataset is None:
        raise DataFileError(describe(f"HDF file {filename!r} has no {HDF_SEQ_LENGTHS_KEY!r}", todo=_WRITE_AGAIN))
    usual = read_with_sums(dataset.id)
    lens, frame_sums = usual if usual is not None else (np.asarray(dataset[...]), None)
    if lens.ndim == 1:
        # One length for all keys.
        lens = np.repeat(lens[:, None], len(columns), axis=1)
        if columns[-1:] == [PHANTOM_TARGET_KEY] and TARGETS_KEY not in h5_file:
            lens[:, -1] = 0
    if lens.dtype.kind not in "iu" or lens.ndim != 2 or lens.shape[1] != len(columns):
        raise DataFileError(
            describe(
                f"{HDF_SEQ_LENGTHS_KEY!r} of HDF file {filename!r} does not fit to its data keys",
                expected=f"integers [num_seqs, {len(columns)}], a column for each of {columns}",
                got=f"{lens.dtype.name} {list(lens.shape)}",
                todo=_WRITE_AGAIN,
            )
        )
    return lens, frame_sums


def _get_input_stream(h5_file: h5py.File, filename: str) -> StreamInfo:
    inputs = _get(h5_file, INPUTS_KEY, h5py.Dataset, filename)
    if inputs is None or inputs.ndim == 0:
        what = "a link to nowhere" if inputs is None else "a scalar"
        raise DataFileError(describe(f"'inputs' of HDF file {filename!r} is {what}", todo=_WRITE_AGAIN))
    if inputs.ndim >= 2:
        dim = int(inputs.shape[-1])
    elif HDF_INPUT_PATT_SIZE_KEY in h5_file.attrs:
        size = np.asarray(h5_file.attrs[HDF_INPUT_PATT_SIZE_KEY])
        if size.size != 1 or size.dtype.kind not in "iuf":
            raise DataFileError(
                describe(
                    f"The attribute {HDF_INPUT_PATT_SIZE_KEY!r} of HDF file {filename!r} is invalid",
                    expected="the number of classes, or 1",
                    got=size.tolist(),
                    todo=_WRITE_AGAIN,
                )
            )
        dim = int(size.item())
    else:
        raise DataFileError(
            describe(
                f"HDF file {filename!r} has 1-D 'inputs', but no attribute {HDF_INPUT_PATT_SIZE_KEY!r}",
                todo="Add it to the root of the file: the number of classes, or 1",
            )
        )
    return _make_stream(inputs, INPUTS_KEY, dim, inputs.ndim)


def _get_target_stream(
    h5_file: h5py.File, filename: str, key: str
) -> tuple[StreamInfo | None, list[int] | tuple[int, int]]:
    path = f"{TARGETS_KEY}/data/{key}"
    dataset = _get(h5_file, path, h5py.Dataset, filename)
    size_group = _get(h5_file, f"{TARGETS_KEY}/size", h5py.Group, filename)
    size = size_group.attrs.get(key) if size_group is not None else None
    if dataset is not None and dataset.ndim == 0:
        raise DataFileError(describe(f"{path!r} of HDF file {filename!r} is a scalar", todo=_WRITE_AGAIN))
    if size is None:
        if size_group is not None:
            raise DataFileError(
                describe(
                    f"HDF file {filename!r} has no size of the target {key!r}",
                    todo=f"Add the attribute {key!r} = [dim, ndim] to the group 'targets/size'",
                )
            )
        assert dataset is not None, f"target key {key!r} comes from targets/data or targets/size"
        dims: tuple[int, int] = (1 if dataset.ndim == 1 else int(dataset.shape[-1]), dataset.ndim)
    elif np.size(size) == 1 and np.asarray(size).dtype.kind in "iuf":
        dims = (int(np.asarray(size).item()), 1 if dataset is None else dataset.ndim)
    elif np.shape(size) == (2,):
        dims = (int(size[0]), int(size[1]))
    else:
        raise DataFileError(
            describe(
                f"HDF file {filename!r} has an invalid size of the target {key!r}",
                expected="dim or [dim, ndim]",
                got=np.asarray(size).tolist(),
                todo=_WRITE_AGAIN,
            )
        )
    return (None if dataset is None else _make_stream(dataset, path, *dims)), dims


def _make_stream(dataset: h5py.Dataset, path: str, dim: int, ndim: int) -> StreamInfo:
    return StreamInfo(
        path=path,
        num_frames=int(dataset.shape[0]),
        shape=tuple(int(size) for size in dataset.shape[1:]),
        dtype=dataset.dtype,
        dim=dim,
        ndim=ndim,
    )


def _read_target_labels(h5_file: h5py.File, filename: str) -> dict[str, list[str]]:
    group = _get(h5_file, f"{TARGETS_KEY}/labels", h5py.Group, filename)
    labels = {key: _read_labels(h5_file, f"{TARGETS_KEY}/labels/{key}", filename) for key in group or ()}
    return {key: values for key, values in labels.items() if values is not None}


def _read_labels(h5_file: h5py.File, path: str, filename: str) -> list[str] | None:
    """:return: vocabulary; None if the file has none there"""
    dataset = _get(h5_file, path, h5py.Dataset, filename)
    if dataset is None:
        return None
    try:
        return decode_strings(np.atleast_1d(dataset[...]))
    except UnicodeDecodeError as exc:
        raise DataFileError(
            describe(f"{path!r} of HDF file {filename!r} is no UTF-8 text ({exc})", todo=_WRITE_AGAIN)
        ) from exc


def lens_fit(index: FileIndex) -> bool:
    """
    :param index: with the lengths as stored
    :return: whether no length is negative, and each stream has as many frames as they say; False also if the sums are not known
    """
    return index.frame_sums is not None and all(
        num_frames == (index.streams[key].num_frames if key in index.streams else 0)
        for key, num_frames in zip(index.columns, index.frame_sums, strict=True)
    )


def _check_lens(index: FileIndex) -> None:
    if lens_fit(index):
        return
    if index.num_seqs and int(index.lens.min()) < 0:
        row = int(np.argmin(index.lens.min(axis=1)))
        raise DataFileError(
            describe(
                f"HDF file {index.filename!r} has a negative length for sequence {row}",
                expected="lengths >= 0",
                got=index.lens[row].tolist(),
                todo=_WRITE_AGAIN,
            )
        )
    if index.num_seqs and index.lens.dtype.itemsize == 8:
        # Such sums could wrap around.
        _check_no_huge_len(index)
    for column, key in enumerate(index.columns):
        num_frames = int(index.lens[:, column].sum(dtype=np.int64))  # one by one: far quicker than along axis 0
        stream = index.streams.get(key)
        if stream is None and (num_frames == 0 or not index.has_targets):
            continue
        if stream is None:
            raise DataFileError(
                describe(
                    f"HDF file {index.filename!r} has lengths but no data of the target {key!r}",
                    expected=f"{num_frames} frames",
                    got=0,
                    todo=_WRITE_AGAIN,
                )
            )
        if stream.num_frames != num_frames:
            raise DataFileError(
                describe(
                    f"HDF file {index.filename!r} is inconsistent: data of {key!r} ({stream.path!r}) does not have as"
                    f" many frames as {HDF_SEQ_LENGTHS_KEY!r} says",
                    expected=f"{num_frames} frames for {index.num_seqs} sequences",
                    got=stream.num_frames,
                    todo=_WRITE_AGAIN,
                )
            )


def _check_no_huge_len(index: FileIndex) -> None:
    for column, key in enumerate(index.columns):
        stream = index.streams.get(key)
        row = int(np.argmax(index.lens[:, column]))
        length = int(index.lens[row, column])
        if stream is not None and length > stream.num_frames:
            raise DataFileError(
                describe(
                    f"HDF file {index.filename!r} is inconsistent: {HDF_SEQ_LENGTHS_KEY!r} says that sequence {row} is"
                    f" longer than all data of {key!r} ({stream.path!r})",
                    expected=f"at most {stream.num_frames} frames",
                    got=length,
                    todo=_WRITE_AGAIN,
                )
            )


def _check_tags(h5_file: h5py.File, index: FileIndex) -> None:
    tags = _get(h5_file, SEQ_TAGS_KEY, h5py.Dataset, index.filename)
    if tags is not None and tags.dtype.kind not in "SO":
        raise DataFileError(
            describe(
                f"{SEQ_TAGS_KEY!r} of HDF file {index.filename!r} are no texts",
                expected="fixed-length bytes or variable-length strings",
                got=tags.dtype.name,
                todo=_WRITE_AGAIN,
            )
        )
    if tags is None or tags.ndim != 1 or tags.shape[0] != index.num_seqs:
        raise DataFileError(
            describe(
                f"{SEQ_TAGS_KEY!r} of HDF file {index.filename!r} does not fit to {HDF_SEQ_LENGTHS_KEY!r}",
                expected=f"{index.num_seqs} tags",
                got=None if tags is None else list(tags.shape),
                todo=_WRITE_AGAIN,
            )
        )


def check_fits(index: FileIndex, earlier: list[FileIndex], target_keys: list[str]) -> None:
    """
    :param index: of a further file
    :param earlier: the first file, or nothing
    :param target_keys: those that are used
    :raises DataFileError: if the file has other data keys, dimensions or types than the earlier ones
    """
    if not earlier:
        return
    (first,) = earlier
    filename = index.filename
    todo = "Put only files of the same form into one dataset"
    missing = [key for key in target_keys if key not in index.target_keys]
    if missing:
        raise DataFileError(
            describe(
                f"HDF file {filename!r} has not all target keys of the earlier files (first {first.filename!r})",
                expected=f"{target_keys}",
                got=index.target_keys,
                todo="Put the file with the fewest target keys first; or add the missing targets",
            )
        )
    if index.has_inputs != first.has_inputs or index.num_inputs != first.num_inputs:
        raise DataFileError(
            f"wrong input dimension in file {filename} (expected {first.num_inputs} got {index.num_inputs})."
            f" The first file is {first.filename}. {todo}."
        )
    outputs = {key: index.num_outputs.get(key) for key in first.num_outputs}
    if any(tuple(outputs[key] or ()) != tuple(dims) for key, dims in first.num_outputs.items()):
        raise DataFileError(
            f"wrong dimensions in file {filename} (expected {first.num_outputs} got {outputs})."
            f" The first file is {first.filename}. {todo}."
        )
    for key, stream in first.streams.items():
        got = index.streams.get(key)
        if got is not None and got.dtype == stream.dtype and got.shape == stream.shape:
            continue
        if got is None or got.dtype_name != stream.dtype_name or got.shape != stream.shape:
            raise DataFileError(
                describe(
                    f"HDF file {filename!r} has another dtype or frame shape of {key!r} than the first file"
                    f" {first.filename!r}",
                    expected=f"{stream.dtype_name} {list(stream.shape)}",
                    got=None if got is None else f"{got.dtype_name} {list(got.shape)}",
                    todo=f"Convert {key!r} in one of the files. {todo}",
                )
            )
