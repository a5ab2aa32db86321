"""SimpleHDFWriter: batches of padded sequences into one HDF file."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from returnn.datasets._hdf.atomic_file import AtomicHdfFile
from returnn.datasets._hdf.batch_to_frames import (
    MainData,
    StreamData,
    extra_to_frames,
    main_to_frames,
    tags_to_list,
)
from returnn.datasets._hdf.file_index import read_file_index
from returnn.datasets._hdf.format import (
    DUMMY_LABEL,
    HDF_INPUT_PATT_SIZE_KEY,
    HDF_SEQ_LENGTHS_KEY,
    INPUTS_KEY,
    LABELS_KEY,
    SEQ_TAGS_KEY,
    TARGETS_KEY,
    encode_fixed_strings,
)
from returnn.datasets._hdf.growing import GrowingDataset
from returnn.datasets._hdf.single_seqs import SEQ_BYTES, SingleSeqs, StreamForm
from returnn.datasets._hdf.writer_arguments import check_labels_and_types, checked_streams, problem_of_key
from returnn.errors import ConfigError, DataFileError, DatasetError, NotSupportedError, describe

__all__ = ["SimpleHDFWriter"]

_SIZES_KEY = "sizes"
_STRING_DTYPE = h5py.string_dtype("utf-8")
_MAX_PENDING_BYTES = 16 << 20


class SimpleHDFWriter:
    """
    Writes sequences batch by batch, e.g. in forward hooks. The file appears under its name at :func:`close`,
    whole or not at all; until then the data is in :attr:`tmp_filename` in the same directory.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        dim: int | None,
        labels: Sequence[str] | None = None,
        ndim: int | None = None,
        extra_type: Mapping[str, tuple[int | None, int, Any]] | None = None,
        swmr: bool = False,
        extend_existing_file: bool = False,
        extra_labels: Mapping[str, Sequence[str]] | None = None,
    ):
        """
        :param filename: must not exist, unless extend_existing_file
        :param dim: of the feature axis, or number of classes. None counts as 1
        :param labels: vocabulary, dim entries
        :param ndim: number of axes without batch. Default: 1 if dim is None, else 2
        :param extra_type: key -> (dim or None, ndim, dtype) of extra streams; dtype "string" for texts
        :param swmr: not supported
        :param extend_existing_file: append to the existing file
        :param extra_labels: key -> vocabulary of an extra stream
        :raises DataFileError: about the file
        :raises ConfigError: if the arguments do not fit together
        """
        self.filename = os.fspath(filename)
        self.dim = dim
        self.ndim = ndim if ndim is not None else (1 if dim is None else 2)
        self.labels = list(labels) if labels is not None else None
        self._where = f"SimpleHDFWriter {self.filename!r}"
        self._extra_labels = {key: list(values) for key, values in (extra_labels or {}).items()}
        if swmr:
            raise NotSupportedError(describe("swmr is not supported", where=self._where, todo="Leave it out"))
        check_labels_and_types(dim, self.labels, self._extra_labels, extra_type or {}, where=self._where)
        self._check_file(extend=extend_existing_file)
        self._replaces = extend_existing_file
        self._atomic = AtomicHdfFile(self.filename, extend=extend_existing_file)
        self.tmp_filename = self._atomic.tmp_filename
        self._inputs: GrowingDataset | None = None
        self._extras: dict[str, GrowingDataset] = {}
        self._rows: list[np.ndarray] = []  # [B, 1 + num extras] each
        self._tags: list[str] = []
        self._num_timesteps = 0  # without the single ones
        self._singles = SingleSeqs()
        self._singles.room = _MAX_PENDING_BYTES
        try:
            if extend_existing_file:
                self._open_existing()
            else:
                self._create(extra_type or {})
        except BaseException:
            self._atomic.discard()
            raise

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.filename!r} dim={self.dim} ndim={self.ndim}>"

    def __enter__(self) -> SimpleHDFWriter:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # All sequences that were inserted are complete, also after an error.
        self.close()

    def insert_batch(
        self,
        inputs: np.ndarray | Any,
        seq_len: Any,
        seq_tag: Sequence[str | bytes],
        extra: Mapping[str, Any] | None = None,
        extra_seq_len: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Everything is checked before anything is written, so after an error the file is as before the call.

        :param inputs: [B, ...] with ndim axes after B: the dynamic axes (T..., padded), then the feature axis, if any.
            Any: what numpy converts, e.g. a tensor
        :param seq_len: [B] lengths of the first axis, or dict axis (from 0, without batch) -> [B].
            Any: list, tuple, array, tensor, dict of these
        :param seq_tag: [B]
        :param extra: key -> [B, ...], further streams. Entry i is written whole, including padding. Any: as inputs, or list
        :param extra_seq_len: key -> [B]: cut the entries of this extra stream to these lengths
        :raises DatasetError: if something does not fit
        """
        singles = self._singles
        try:
            is_added = singles.add(inputs, seq_len, seq_tag, extra, extra_seq_len)
        except Exception:
            singles.drop_half()
            is_added = False  # the long way says what is wrong
        except BaseException:
            singles.drop_half()
            raise
        if is_added:
            if singles.room < 0:
                self._flush()
            return
        if not self._atomic.is_open:
            raise DatasetError(describe("insert_batch on a closed writer", where=self._where))
        main = main_to_frames(inputs, seq_len, dim=self.dim or 1, ndim=self.ndim, where=self._where)
        tags = tags_to_list(seq_tag, main.num_seqs, where=self._where)
        extras = self._check_extras(
            checked_streams(extra, "extra", where=self._where),
            checked_streams(extra_seq_len, "extra_seq_len", where=self._where),
            main,
        )
        frames = self._check_main(main)
        if not main.num_seqs:
            return
        # Nothing fails from here on, but writing.
        self._collect_singles()
        is_first = not self._atomic.loss_warning
        if self._inputs is None:
            self._inputs = self._new_inputs(frames)
        for key, stream in extras.items():
            if key not in self._extras:
                # Labels tell the number of classes, the data of one axis does not.
                dim = len(self._extra_labels.get(key, ())) or stream.dim
                self._extras[key] = self._new_extra(key, dim, stream.ndim, stream.dtype, stream.frame_shape)
        row = np.zeros((main.num_seqs, 1 + len(self._extras)), dtype=np.int32)
        row[:, 0] = main.lens
        with self._writing():
            num_bytes = self._inputs.append(frames)
            for column, (key, dataset) in enumerate(sorted(self._extras.items()), start=1):
                if key in extras:
                    row[:, column] = extras[key].lens
                    num_bytes += dataset.append(extras[key].frames)
        self._rows.append(row)
        self._tags.extend(tags)
        self._num_timesteps += len(frames)
        singles.num_before += main.num_seqs
        singles.room -= num_bytes + SEQ_BYTES * main.num_seqs
        if is_first:
            self._start_singles()
        if singles.room < 0:
            self._flush()

    def _start_singles(self) -> None:
        """After the first sequences: single ones like them need no conversion."""
        self._atomic.loss_warning.append(functools.partial(_get_loss_text, self._where, self._singles))
        inputs = self._inputs
        if inputs is None or inputs.frame_shape != ((), (self.dim or 1,))[self.ndim > 1] or self.ndim not in (1, 2):
            return
        self._singles.start(
            StreamForm(INPUTS_KEY, inputs.dtype, inputs.frame_shape),
            [StreamForm(key, dataset.dtype, dataset.frame_shape) for key, dataset in sorted(self._extras.items())],
        )

    def _collect_singles(self) -> None:
        """What came the short way goes to the streams."""
        if not self._singles.num_collected:
            return
        taken = self._singles.get_all()
        num_seqs = len(taken.tags)
        row = np.zeros((num_seqs, 1 + len(self._extras)), dtype=np.int32)
        row[:, 0] = taken.lens
        num_timesteps = sum(taken.lens)
        assert self._inputs is not None  # they have its form
        self._inputs.append_raw(taken.data, num_timesteps)
        for column, (key, dataset) in enumerate(sorted(self._extras.items()), start=1):
            row[:, column] = taken.extra_lens[key]
            dataset.append_raw(taken.extra_data[key], sum(taken.extra_lens[key]))
        self._rows.append(row)
        self._tags.extend(taken.tags)
        self._num_timesteps += num_timesteps
        self._singles.clear()
        self._singles.num_before += num_seqs

    def close(self) -> None:
        """
        Write the rest and give the file its name. The second call does nothing.

        :raises DataFileError: if a file of this name was made meanwhile
        """
        if not self._atomic.is_open:
            return
        if not self._replaces and os.path.exists(self.filename):
            raise DataFileError(
                describe(
                    f"HDF file {self.filename!r} was made by somebody else while this writer was open",
                    todo=f"The data is in {self.tmp_filename!r} until the end of the process; remove the other file and"
                    " call close() again",
                )
            )
        self._flush()
        self._singles.stop()
        if self._singles.num_seqs:
            # An interrupt (Ctrl-C) may have come in the middle of insert_batch.
            try:
                read_file_index(self._atomic.file, self.filename)
            except DataFileError:
                self._atomic.discard()
                raise
        self._atomic.publish()

    def discard(self) -> None:
        """Give up: remove the temporary file, leave the target as it is."""
        self._singles.stop()
        self._atomic.discard()

    def _check_file(self, *, extend: bool) -> None:
        exists = os.path.exists(self.filename)
        if extend and not exists:
            raise DataFileError(
                describe(
                    f"extend_existing_file: HDF file {self.filename!r} does not exist",
                    todo="Use extend_existing_file=os.path.exists(filename)",
                )
            )
        if not extend and exists:
            raise DataFileError(
                describe(
                    f"HDF file {self.filename!r} exists already", todo="Remove it, or set extend_existing_file=True"
                )
            )

    def _create(self, extra_type: Mapping[str, tuple[int | None, int, Any]]) -> None:
        h5_file = self._atomic.file
        for name, value in [
            ("numTimesteps", 0),
            (HDF_INPUT_PATT_SIZE_KEY, self.dim or 1),
            ("numDims", 1),
            ("numLabels", self.dim or 1),
            ("numSeqs", 0),
        ]:
            h5_file.attrs[name] = np.int64(value)
        _write_strings(h5_file, LABELS_KEY, self.labels or [])
        self._seq_lengths: h5py.Dataset | None = None
        self._seq_tags = GrowingDataset(h5_file, SEQ_TAGS_KEY, _STRING_DTYPE, ())
        for key, (dim, ndim, dtype_arg) in extra_type.items():
            dtype = _STRING_DTYPE if dtype_arg == "string" else np.dtype(dtype_arg)
            ndim = max(ndim, 1)
            if ndim > 2:
                raise ConfigError(
                    describe(
                        f"extra_type[{key!r}] supports only a dynamic dim in the first axis",
                        where=self._where,
                        expected="ndim 0, 1 or 2",
                        got=ndim,
                        todo="Flatten the data, and write the sizes as another extra stream",
                    )
                )
            self._extras[key] = self._new_extra(key, dim, ndim, dtype, (dim or 1,) if ndim == 2 else ())

    def _open_existing(self) -> None:
        h5_file = self._atomic.file
        try:
            self._seq_lengths = h5_file[HDF_SEQ_LENGTHS_KEY]
            tags = h5_file[SEQ_TAGS_KEY]
            inputs = h5_file.get(INPUTS_KEY)
            self._seq_tags = _existing(h5_file, SEQ_TAGS_KEY, tags)
            if inputs is not None:
                self._inputs = _existing(h5_file, INPUTS_KEY, inputs)
            data = h5_file.get(f"{TARGETS_KEY}/data", {})
            for key in data:
                self._extras[key] = _existing(data, key, data[key])
            self._singles.num_before = int(tags.shape[0])
            self._num_timesteps = int(h5_file.attrs.get("numTimesteps", 0 if inputs is None else inputs.shape[0]))
            growable = (
                [self._seq_lengths, tags] + [data[key] for key in data] + ([inputs] if inputs is not None else [])
            )
            fixed = [d.name for d in growable if d.maxshape[0] is not None]
        except (KeyError, AttributeError) as exc:
            raise DataFileError(
                describe(
                    f"Cannot extend HDF file {self.filename!r} ({exc})", todo="Only files of SimpleHDFWriter can grow"
                )
            ) from exc
        if fixed:
            raise DataFileError(
                describe(
                    f"Cannot extend HDF file {self.filename!r}: {fixed} have a fixed size",
                    todo="Only files of SimpleHDFWriter can grow; write another file and give both to the dataset",
                )
            )
        num_columns = self._seq_lengths.shape[1]
        if num_columns != 1 + len(self._extras) and not (num_columns == 2 and not self._extras):
            raise DataFileError(
                describe(
                    f"Cannot extend HDF file {self.filename!r}: {HDF_SEQ_LENGTHS_KEY!r} does not fit to its data",
                    expected=f"{1 + len(self._extras)} columns",
                    got=num_columns,
                )
            )

    def _check_main(self, main: MainData) -> np.ndarray:
        """
        :return: frames, cast to the dtype of the earlier ones
        """
        if self._inputs is None:
            return main.frames
        if main.frames.shape[1:] != self._inputs.frame_shape:
            raise DatasetError(
                describe(
                    "insert_batch: inputs have another form than in earlier batches",
                    where=self._where,
                    expected=f"frames of shape {list(self._inputs.frame_shape)}",
                    got=list(main.frames.shape[1:]),
                )
            )
        return _cast(main.frames, self._inputs.dtype, what="inputs", where=self._where)

    def _check_extras(
        self, extra: Mapping[str, Any], extra_seq_len: Mapping[str, Any], main: MainData
    ) -> dict[str, StreamData]:
        unknown = sorted(set(extra_seq_len) - set(extra))
        if unknown:
            raise DatasetError(
                describe(f"insert_batch: extra_seq_len for {unknown}, which extra does not have", where=self._where)
            )
        streams: dict[str, StreamData] = {}
        values = dict(extra)
        if main.sizes is not None:
            if _SIZES_KEY in values:
                raise DatasetError(
                    describe(
                        f"insert_batch: extra key {_SIZES_KEY!r} is taken by the sizes of inputs", where=self._where
                    )
                )
            values[_SIZES_KEY] = main.sizes
        for key, value in values.items():
            problem = problem_of_key(key)
            if problem:
                raise DatasetError(describe(f"insert_batch: {problem}", where=self._where, todo="Choose another key"))
            known = self._extras.get(key)
            if known is None and self._singles.num_seqs:
                raise DatasetError(
                    describe(
                        f"insert_batch: extra key {key!r} comes too late, the file has {self._singles.num_seqs} sequences without it",
                        where=self._where,
                        expected=f"one of {sorted(self._extras)}",
                        got=key,
                        todo="Give new keys with the first batch, or declare them in extra_type",
                    )
                )
            streams[key] = extra_to_frames(
                key,
                value,
                num_seqs=main.num_seqs,
                seq_len=extra_seq_len.get(key),
                dtype=None if known is None else known.dtype,
                frame_shape=None if known is None else known.frame_shape,
                where=self._where,
            )
            labels = self._extra_labels.get(key)
            if known is None and labels and streams[key].ndim > 1 and len(labels) != streams[key].dim:
                raise DatasetError(
                    describe(
                        f"insert_batch: extra_labels[{key!r}] do not fit to the data",
                        where=self._where,
                        expected=f"{streams[key].dim} labels",
                        got=len(labels),
                    )
                )
            if known is not None:
                streams[key].frames = _cast(streams[key].frames, known.dtype, what=f"extra {key!r}", where=self._where)
        return streams

    def _new_inputs(self, frames: np.ndarray) -> GrowingDataset:
        shape = frames.shape[1:]
        return GrowingDataset(self._atomic.file, INPUTS_KEY, frames.dtype, shape, maxshape=(None,) * (1 + len(shape)))

    def _new_extra(
        self, key: str, dim: int | None, ndim: int, dtype: np.dtype, frame_shape: tuple[int, ...]
    ) -> GrowingDataset:
        targets = self._atomic.file.require_group(TARGETS_KEY)
        data = targets.require_group("data")
        targets.require_group("size").attrs[key] = np.array([dim or 1, ndim], dtype=np.int64)
        labels = targets.require_group("labels")
        _write_strings(labels, key, self._extra_labels.get(key) or [DUMMY_LABEL])
        return GrowingDataset(data, key, dtype, frame_shape)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """:raises DataFileError: e.g. if the disk is full. Then the file is given up, as it may be inconsistent"""
        try:
            yield
            self._atomic.check()
        except BaseException as exc:
            self.discard()
            if isinstance(exc, DataFileError) or not isinstance(exc, (OSError, ValueError, RuntimeError)):
                raise
            raise DataFileError(
                describe(
                    f"Cannot write HDF file {self.filename!r} ({type(exc).__name__}: {exc})",
                    todo="Check the free space of the disk; no file was left",
                )
            ) from exc

    def _flush(self) -> None:
        with self._writing():
            self._write_pending()

    def _write_pending(self) -> None:
        self._collect_singles()
        h5_file = self._atomic.file
        num_columns = max(1 + len(self._extras), 2)
        num_new = len(self._tags)
        streams = [*([] if self._inputs is None else [self._inputs]), *self._extras.values()]
        is_consistent = all(stream.is_consistent() for stream in streams)
        if self._seq_tags.num_frames + num_new != self._singles.num_seqs or not is_consistent:
            raise DataFileError(
                describe(
                    f"HDF file {self.filename!r} would be inconsistent: insert_batch was interrupted",
                    expected=f"{self._singles.num_seqs} sequences",
                    got=self._seq_tags.num_frames + num_new if is_consistent else "frames of others, too",
                    todo="Write it again",
                )
            )
        rows = np.zeros((num_new, num_columns), dtype=np.int32)
        pos = 0
        for row in self._rows:
            rows[pos : pos + len(row), : row.shape[1]] = row
            pos += len(row)
        if self._seq_lengths is None:
            chunk = min(max(num_new, 256), 8192)
            self._seq_lengths = h5_file.create_dataset(
                HDF_SEQ_LENGTHS_KEY, data=rows, maxshape=(None, None), chunks=(chunk, num_columns)
            )
        else:
            start = self._seq_lengths.shape[0]
            self._seq_lengths.resize((start + num_new, num_columns))
            self._seq_lengths[start:] = rows
        if self._tags:
            self._seq_tags.append(np.array(self._tags, dtype=object))
        self._seq_tags.flush()
        for stream in streams:
            stream.flush()
        h5_file.attrs["numSeqs"] = np.int64(self._singles.num_seqs)
        h5_file.attrs["numTimesteps"] = np.int64(self._num_timesteps)
        self._rows = []
        self._tags = []
        self._singles.room = _MAX_PENDING_BYTES


def _get_loss_text(where: str, singles: SingleSeqs) -> str:
    return f"Warning: {where} was not closed, its {singles.num_seqs} sequences are lost. Call close()."


def _existing(parent: h5py.Group, name: str, dataset: h5py.Dataset) -> GrowingDataset:
    return GrowingDataset(parent, name, dataset.dtype, tuple(dataset.shape[1:]), existing=dataset)


def _cast(frames: np.ndarray, dtype: np.dtype, *, what: str, where: str) -> np.ndarray:
    if frames.dtype == dtype or dtype.kind == "O":
        return frames
    with np.errstate(invalid="ignore", over="ignore"):
        converted = frames.astype(dtype)
    if frames.dtype.kind in "iubf" and dtype.kind in "iub" and not np.array_equal(converted, frames):
        raise DatasetError(
            describe(
                f"insert_batch: values of {what} do not fit into the dtype of the earlier batches",
                where=where,
                expected=dtype.name,
                got=frames.dtype.name,
                todo="Use the larger dtype from the first batch on",
            )
        )
    return converted


def _write_strings(parent: h5py.Group, name: str, values: list[str]) -> None:
    if not values:
        parent.create_dataset(name, shape=(0,), dtype="S5")
    elif all(value.isascii() for value in values):
        parent.create_dataset(name, data=encode_fixed_strings(values))
    else:
        parent.create_dataset(name, data=np.array(values, dtype=object), dtype=_STRING_DTYPE)
