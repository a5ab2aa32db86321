"""Padded batches of any accepted form to concatenated frames and lengths, with all checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import h5py
import numpy as np

from returnn.errors import DatasetError, describe

__all__ = [
    "MainData",
    "StreamData",
    "main_to_frames",
    "extra_to_frames",
    "cast_numbers",
    "is_storable_text",
    "num_entries",
    "to_numpy",
]

_STRING_DTYPE = h5py.string_dtype("utf-8")


@dataclasses.dataclass
class MainData:
    """The main stream of a batch. Frames may share memory with the batch."""

    frames: np.ndarray  # [sum T] or [sum T, dim]
    lens: np.ndarray  # int64 [B], product of the axis lengths
    sizes: np.ndarray | None  # int32 [B, num axes] if several dynamic axes

    @property
    def num_seqs(self) -> int:
        """:return: B"""
        return len(self.lens)


@dataclasses.dataclass
class StreamData:
    """An extra stream of a batch. Frames may share memory with the batch."""

    frames: np.ndarray  # [sum T, ...]
    lens: np.ndarray  # int64 [B]
    dim: int
    ndim: int

    @property
    def dtype(self) -> np.dtype:
        """:return: dtype to store"""
        return _STRING_DTYPE if self.frames.dtype.kind == "O" else self.frames.dtype

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """:return: shape without time"""
        return self.frames.shape[1:]


def to_numpy(value: Any, *, where: str | None = None) -> np.ndarray:
    """
    :param value: array, tensor, list, number, text. Any: whatever numpy converts
    :param where: for the error text
    :return: array; texts as objects
    :raises DatasetError: numpy cannot convert it
    """
    array = value if isinstance(value, np.ndarray) else _convert(value, where)
    if array.dtype.kind in "US":
        array = array.astype(object)
    return array


def _convert(value: Any, where: str | None) -> np.ndarray:
    """As :func:`to_numpy`, of what is no array."""
    original = value
    try:
        if hasattr(value, "detach"):
            try:
                array: np.ndarray = value.numpy()
                return array
            except (AttributeError, RuntimeError, TypeError):
                # A torch tensor that needs a gradient, or is on another device.
                value = value.detach().cpu()
            if str(value.dtype) == "torch.bfloat16":  # numpy has no such type
                value = value.float()
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as exc:  # RuntimeError: of torch
        raise DatasetError(
            describe(
                f"insert_batch: numpy cannot make an array of this ({exc})",
                where=where,
                expected="array, tensor, or list with entries of equal shape",
                got=original,
                todo="Pad the entries of a list to one length, and give the lengths; convert other tensors to usual ones",
            )
        ) from exc


def num_entries(value: Any) -> int:
    """
    :param value: what should be a list or an array. Any: of the user
    :return: number of entries; -1 if it has none: a number, a text
    """
    if isinstance(value, (str, bytes)):
        return -1
    try:
        return len(value)
    except TypeError:  # of arrays of no axis, too
        return -1


def main_to_frames(inputs: Any, seq_len: Any, *, dim: int, ndim: int, where: str) -> MainData:
    """
    :param inputs: [B, ...] with ndim axes after B. Any: see to_numpy
    :param seq_len: [B], or dict axis -> [B]. Any: see to_numpy
    :param dim: size of the feature axis, if there is one
    :param ndim: number of axes without batch
    :param where: for error texts
    """
    data = to_numpy(inputs, where=where)
    if data.dtype.kind == "O":
        raise DatasetError(
            describe("insert_batch: inputs must be numbers", where=where, expected="array of numbers", got=inputs)
        )
    if data.ndim != ndim + 1:
        raise DatasetError(
            describe(
                "insert_batch: inputs have the wrong number of axes",
                where=where,
                expected=f"[batch and {ndim} axes] (ndim={ndim})",
                got=list(data.shape),
                todo="Set ndim of the writer to the number of axes without batch",
            )
        )
    num_seqs = data.shape[0]
    axes = _get_axis_lens(seq_len, num_seqs=num_seqs, ndim=ndim, where=where)
    for axis, lens in enumerate(axes):
        if num_seqs and int(lens.max()) > data.shape[axis + 1]:
            raise DatasetError(
                describe(
                    f"insert_batch: seq_len of axis {axis} is longer than inputs",
                    where=where,
                    expected=f"lengths <= {data.shape[axis + 1]}",
                    got=int(lens.max()),
                )
            )
    if ndim - len(axes) > 1:
        raise DatasetError(
            describe(
                f"insert_batch: inputs have {ndim} axes but only {len(axes)} of them have lengths",
                where=where,
                expected="lengths for all axes, or all but the last",
                got=list(range(len(axes))),
                todo="Give seq_len as dict axis -> lengths",
            )
        )
    if len(axes) < ndim and data.shape[-1] != dim:
        raise DatasetError(
            describe(
                "insert_batch: the last axis of inputs is not dim",
                where=where,
                expected=f"{dim}",
                got=data.shape[-1],
                todo="If it is a time axis, give its lengths in seq_len as dict axis -> lengths",
            )
        )
    if not axes:
        # One frame of size dim per sequence.
        return MainData(data.reshape(num_seqs, dim), np.ones(num_seqs, dtype=np.int64), None)
    frames = _select_frames(data, axes)
    if len(axes) == 1:
        return MainData(frames, axes[0], None)
    lens = np.prod(np.stack(axes), axis=0, dtype=np.int64)
    return MainData(frames, lens, np.stack(axes, axis=1).astype(np.int32))


def _get_axis_lens(seq_len: Any, *, num_seqs: int, ndim: int, where: str) -> list[np.ndarray]:
    by_axis = seq_len if isinstance(seq_len, Mapping) else {0: seq_len}
    if sorted(by_axis) != list(range(len(by_axis))) or len(by_axis) > ndim:
        raise DatasetError(
            describe(
                "insert_batch: seq_len has wrong axes",
                where=where,
                expected=f"axes 0, 1, ... without gap, at most {ndim} (counted without batch)",
                got=list(by_axis),
            )
        )
    axes = []
    for axis in range(len(by_axis)):
        value = by_axis[axis]
        if isinstance(value, (list, tuple)):
            value = [_to_item(item, where) for item in value] if _has_arrays(value) else value
        lens = to_numpy(value, where=where)
        if (
            lens.dtype.kind == "f"
            and np.array_equal(lens, np.floor(lens))
            and (not lens.size or np.isfinite(lens).all())
        ):
            lens = lens.astype(np.int64)
        if lens.shape != (num_seqs,) or lens.dtype.kind not in "iu" or (num_seqs and int(lens.min()) < 0):
            raise DatasetError(
                describe(
                    f"insert_batch: bad seq_len of axis {axis}",
                    where=where,
                    expected=f"{num_seqs} ints >= 0",
                    got=value,
                )
            )
        axes.append(lens.astype(np.int64))
    return axes


def _to_item(value: Any, where: str) -> Any:
    """:return: number of an array of one; anything else as it is. Any: of the user"""
    array = to_numpy(value, where=where)
    return array.item() if array.size == 1 else value


def _has_arrays(values: list[Any] | tuple[Any, ...]) -> bool:
    return any(not issubclass(kind, (int, np.integer)) for kind in set(map(type, values)))


def _select_frames(data: np.ndarray, axes: list[np.ndarray]) -> np.ndarray:
    """
    :param data: [B, T..., (dim)]
    :param axes: per dynamic axis int64 [B]
    :return: [sum of frames, (dim)], row-major in each sequence
    """
    if len(data) == 1:
        return data[0][tuple([slice(0, int(lens[0])) for lens in axes])].reshape(-1, *data.shape[1 + len(axes) :])
    num_dyn = len(axes)
    shape = data.shape[1 : 1 + num_dyn]
    rest = data.shape[1 + num_dyn :]
    if all((lens == size).all() for lens, size in zip(axes, shape, strict=True)):
        return data.reshape(-1, *rest)
    mask = np.ones((len(data), *shape), dtype=bool)
    for axis, (lens, size) in enumerate(zip(axes, shape, strict=True)):
        axis_mask = np.arange(size) < lens[:, None]
        mask &= axis_mask.reshape(len(data), *([1] * axis), size, *([1] * (num_dyn - axis - 1)))
    return data[mask]


def extra_to_frames(
    key: str,
    value: Any,
    *,
    num_seqs: int,
    seq_len: Any,
    dtype: np.dtype | None,
    frame_shape: tuple[int, ...] | None,
    where: str,
) -> StreamData:
    """
    :param key: of the extra stream
    :param value: [B, ...]: array, or a sequence of entries. Any: see to_numpy
    :param num_seqs: B
    :param seq_len: [B]: cut the entries to these lengths. None: whole entries. Any: see to_numpy
    :param dtype: of the stream if it exists already
    :param frame_shape: of the stream if it exists already
    :param where: for error texts
    """
    is_list = isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.dtype.kind == "O")
    fits = num_entries(value) == num_seqs
    data = to_numpy(value, where=where) if fits and not is_list else None
    if not fits or (data is not None and data.ndim == 0):
        raise DatasetError(
            describe(
                f"insert_batch: extra {key!r} does not fit to inputs",
                where=where,
                expected=f"{num_seqs} entries",
                got=value,
            )
        )
    if data is None:
        entries = [to_numpy(entry, where=where) for entry in value]
    else:
        _check_has_values(key, data.shape[2:], where=where)
        if data.ndim in (1, 2) or (data.ndim == 3 and frame_shape != ()):
            return _cut(_batch_to_frames(data), seq_len, key=key, dtype=dtype, frame_shape=frame_shape, where=where)
        entries = list(data)
    entries = [entry[None] if entry.ndim == 0 else entry for entry in entries]
    if any(entry.ndim > 2 for entry in entries):
        raise DatasetError(
            describe(
                f"insert_batch: extra {key!r} supports only a dynamic dim in the first axis",
                where=where,
                expected="entries [T] or [T, dim]",
                got=[list(entry.shape) for entry in entries[:3]],
                todo="Flatten them, and write the sizes as another extra stream",
            )
        )
    if len({entry.shape[1:] for entry in entries}) > 1:
        raise DatasetError(
            describe(
                f"insert_batch: entries of extra {key!r} have different feature axes",
                where=where,
                expected="one shape after the first axis",
                got=[list(entry.shape) for entry in entries[:3]],
            )
        )
    _check_has_values(key, entries[0].shape[1:] if entries else (), where=where)
    if not entries:
        frames = np.zeros((0, *(frame_shape or ())), dtype=dtype or np.float32)
    else:
        frames = np.concatenate(entries)
    stream = StreamData(
        frames,
        np.array([len(entry) for entry in entries], dtype=np.int64),
        dim=frames.shape[1] if frames.ndim > 1 else 1,
        ndim=frames.ndim,
    )
    return _cut(stream, seq_len, key=key, dtype=dtype, frame_shape=frame_shape, where=where)


def _check_has_values(key: str, frame_shape: tuple[int, ...], *, where: str) -> None:
    if 0 in frame_shape:
        raise DatasetError(
            describe(
                f"insert_batch: the frames of extra {key!r} hold no values",
                where=where,
                expected="feature axes of size 1 or more",
                got=list(frame_shape),
                todo="Leave this stream out",
            )
        )


def _batch_to_frames(data: np.ndarray) -> StreamData:
    num_seqs = data.shape[0]
    if data.ndim == 1:
        return StreamData(data, np.ones(num_seqs, dtype=np.int64), dim=1, ndim=1)
    lens = np.full(num_seqs, data.shape[1], dtype=np.int64)
    frames = data.reshape(-1, *data.shape[2:])
    return StreamData(frames, lens, dim=data.shape[2] if data.ndim > 2 else 1, ndim=data.ndim - 1)


def _cut(
    stream: StreamData,
    seq_len: Any,
    *,
    key: str,
    dtype: np.dtype | None,
    frame_shape: tuple[int, ...] | None,
    where: str,
) -> StreamData:
    """Cut to lengths if given, and check that it fits to the stream in the file."""
    is_text = stream.frames.dtype.kind == "O"
    if is_text:
        flat = stream.frames.reshape(-1)
        bad = [item for item in flat if not is_storable_text(item)]
        if bad:
            raise DatasetError(
                describe(
                    f"insert_batch: extra {key!r} has a bad text",
                    where=where,
                    expected="UTF-8 text without NUL",
                    got=bad[0],
                )
            )
    if dtype is not None and (dtype.kind == "O") != is_text and len(stream.frames):
        raise DatasetError(
            describe(
                f"insert_batch: extra {key!r} has another type than declared or than in earlier batches",
                where=where,
                expected="texts" if dtype.kind == "O" else dtype.name,
                got=stream.frames.reshape(-1)[0],
            )
        )
    if frame_shape is not None and stream.frames.shape[1:] != frame_shape:
        if stream.frames.shape[1:] == (1,) and frame_shape == ():
            stream.frames = stream.frames[:, 0]
        else:
            raise DatasetError(
                describe(
                    f"insert_batch: extra {key!r} has another form than declared or than in earlier batches",
                    where=where,
                    expected=f"frames of shape {list(frame_shape)}",
                    got=list(stream.frames.shape[1:]),
                )
            )
    if seq_len is None:
        return stream
    lens = to_numpy(seq_len, where=where)
    if lens.shape != stream.lens.shape or lens.dtype.kind not in "iu" or (lens < 0).any() or (lens > stream.lens).any():
        raise DatasetError(
            describe(
                f"insert_batch: bad extra_seq_len of {key!r}",
                where=where,
                expected=f"{len(stream.lens)} ints from 0 to the lengths {stream.lens.tolist()[:10]}",
                got=seq_len,
            )
        )
    starts = np.cumsum(stream.lens) - stream.lens
    inside = np.arange(len(stream.frames)) - np.repeat(starts, stream.lens) < np.repeat(lens, stream.lens)
    return dataclasses.replace(stream, frames=stream.frames[inside], lens=lens.astype(np.int64))


def tags_to_list(seq_tag: Sequence[str | bytes], num_seqs: int, *, where: str) -> list[str]:
    """
    :param seq_tag: [B]
    :param num_seqs: B
    :param where: for error texts
    """
    if num_entries(seq_tag) != num_seqs:
        raise DatasetError(
            describe(
                "insert_batch: seq_tag does not fit to inputs",
                where=where,
                expected=f"list of {num_seqs} tags",
                got=seq_tag,
            )
        )
    # NUL and half surrogates are not printable.
    if set(map(type, seq_tag)) == {str} and "".join(cast(Sequence[str], seq_tag)).isprintable():
        return list(cast(Sequence[str], seq_tag))
    tags = []
    for tag in seq_tag:
        value = tag.item() if isinstance(tag, np.ndarray) and tag.ndim == 0 else tag
        if not is_storable_text(value):
            raise DatasetError(
                describe("insert_batch: bad seq_tag", where=where, expected="UTF-8 text without NUL", got=tag)
            )
        tags.append(bytes(value).decode("utf8") if isinstance(value, bytes) else str(value))
    return tags


def cast_numbers(frames: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """
    :param frames: of any shape
    :param dtype: of earlier frames
    :return: with this dtype; None if one of them has no numbers, or integers would not keep their values
    """
    if frames.dtype.kind not in "iubf" or dtype.kind not in "iubf":
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        converted = frames.astype(dtype)
    return converted if dtype.kind == "f" or np.array_equal(converted, frames) else None


def is_storable_text(value: object) -> bool:
    """:return: whether it is str or bytes that an HDF file can hold: valid as UTF-8, without NUL"""
    try:
        if isinstance(value, str):
            return b"\0" not in value.encode("utf8")
        return isinstance(value, bytes) and "\0" not in value.decode("utf8")
    except UnicodeError:
        return False
