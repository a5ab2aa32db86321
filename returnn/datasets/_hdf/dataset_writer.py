"""HDFDatasetWriter: all sequences of any dataset into one HDF file, in one pass over the dataset."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

import h5py
import numpy as np

from returnn.datasets._hdf.atomic_file import AtomicHdfFile
from returnn.datasets._hdf.file_index import read_file_index
from returnn.datasets._hdf.format import (
    HDF_INPUT_PATT_SIZE_KEY,
    HDF_SEQ_LENGTHS_KEY,
    INPUTS_KEY,
    SEQ_TAGS_KEY,
    TARGETS_KEY,
    encode_fixed_strings,
    is_real_vocabulary,
)
from returnn.datasets.basic import Dataset
from returnn.errors import DataFileError, DatasetError, describe
from returnn.log import log

__all__ = ["HDFDatasetWriter"]

_SPOOL_BYTES = 32 << 20
_COPY_BYTES = 1 << 20
_BLOCK_SEQS = 512
_IGNORED_KEYS = ("orth", "raw")


class HDFDatasetWriter:
    """
    Writes beside the target; the file gets its name at :func:`close`, an existing one is replaced.
    If the dump failed, the target stays as it was.
    """

    def __init__(self, filename: str | os.PathLike[str]):
        """
        :param filename: target
        """
        self.filename = os.fspath(filename)
        print(f"Creating HDF dataset file {self.filename}", file=log.v3)
        self._atomic = AtomicHdfFile(self.filename)
        self.file: h5py.File = self._atomic.file
        self._failed = False

    def __enter__(self) -> HDFDatasetWriter:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is not None:
            self._failed = True
        self.close()

    def close(self) -> None:
        """Publish the file, or remove it if the dump failed. The second call does nothing."""
        if not self._atomic.is_open:
            return
        if self._failed:
            self._atomic.discard()
        else:
            self._atomic.publish()

    def dump_from_dataset(
        self,
        dataset: Dataset,
        epoch: int = 1,
        start_seq: int = 0,
        end_seq: int | float = float("inf"),
        use_progress_bar: bool = True,
        generate_labels: bool = True,
    ) -> None:
        """
        :param dataset: any dataset
        :param epoch: whose order is written
        :param start_seq: position of the first sequence
        :param end_seq: position of the last sequence, inclusive
        :param use_progress_bar: on the terminal
        :param generate_labels: for targets without vocabulary, write labels ``<key>-class-<i>`` as the peers do
        :raises DatasetError: if there is nothing to write, or the data does not fit to what the dataset declares
        """
        self._failed = True
        print(f"Work on epoch: {epoch}", file=log.v3)
        dataset.init_seq_order(epoch)
        plan = _Plan(dataset)
        print(f"Data keys: {plan.source_keys}", file=log.v3)
        if plan.input_key is not None:
            print(f"Using input data key: {plan.input_key}", file=log.v3)
        print("Collect stats, iterate through all data...", file=log.v3)
        collector = _Collector(dataset, plan, directory=os.path.dirname(self._atomic.filename))
        try:
            seqs = range(start_seq, sys.maxsize if end_seq == float("inf") else int(end_seq) + 1)
            collector.collect(seqs, use_progress_bar=use_progress_bar)
            if not collector.tags:
                raise DatasetError(
                    describe(
                        f"No sequences to write into HDF file {self.filename!r}",
                        where=f"dataset {dataset.name!r}, epoch {epoch}",
                        expected="at least one sequence",
                        got=f"start_seq {start_seq}, end_seq {end_seq}",
                        todo="end_seq is inclusive",
                    )
                )
            self._write(dataset, plan, collector, generate_labels=generate_labels)
            self._atomic.check()
        finally:
            collector.close()
        # Proves that the file is consistent, before it gets its name.
        read_file_index(self.file, self.filename)
        self._failed = False
        print("All done.", file=log.v3)

    def _write(self, dataset: Dataset, plan: _Plan, collector: _Collector, *, generate_labels: bool) -> None:
        h5_file = self.file
        for source in plan.source_keys:
            stream = collector.streams[source]
            shape = [stream.num_frames, *stream.frame_shape]
            print(f"Total len of {source!r} is {stream.num_frames}, shape {shape}, dtype {stream.dtype}", file=log.v3)
        print("Set seq tags...", file=log.v3)
        h5_file.create_dataset(SEQ_TAGS_KEY, data=encode_fixed_strings(collector.tags, extra_length=1))
        print("Set seq len info...", file=log.v3)
        columns = [np.array(collector.streams[source].lens, dtype=np.int32) for source, _ in plan.columns]
        h5_file.create_dataset(HDF_SEQ_LENGTHS_KEY, data=np.stack(columns, axis=1))
        print("Create arrays in HDF...", file=log.v3)
        targets = h5_file.create_group(TARGETS_KEY)
        data, size, labels = (targets.create_group(name) for name in ("data", "size", "labels"))
        created: list[tuple[str, h5py.Dataset]] = []
        for source, key in plan.columns:
            stream = collector.streams[source]
            parent, name = (h5_file, INPUTS_KEY) if key is None else (data, key)
            created.append(
                (
                    source,
                    parent.create_dataset(name, shape=(stream.num_frames, *stream.frame_shape), dtype=stream.h5_dtype),
                )
            )
            if key is None:
                continue
            size.attrs[key] = np.array(plan.dims[source], dtype=np.int64)
            self._write_labels(dataset, labels, source, key, plan.dims[source][0], generate_labels=generate_labels)
        num_inputs = dataset.num_inputs
        if plan.input_key is not None and not num_inputs:
            num_inputs = plan.dims[plan.input_key][0]
        h5_file.attrs[HDF_INPUT_PATT_SIZE_KEY] = np.int64(num_inputs or 0)
        print("Write data...", file=log.v3)
        for source, h5_dataset in created:
            collector.streams[source].copy_to(h5_dataset, check=self._atomic.check)

    def _write_labels(
        self, dataset: Dataset, group: h5py.Group, source: str, key: str, dim: int, *, generate_labels: bool
    ) -> None:
        labels: Sequence[str] = dataset.labels.get(source, ())
        if not is_real_vocabulary(labels):
            if not generate_labels:
                return
            labels = [f"{key}-class-{i}" for i in range(dim)]
        elif len(labels) != dim:
            raise DatasetError(
                describe(
                    f"The labels of {source!r} do not fit to its dimension",
                    where=f"dataset {dataset.name!r}",
                    expected=f"{dim} labels",
                    got=len(labels),
                )
            )
        print(f"Labels for {key}: {list(labels[:3])} ...", file=log.v5)
        group.create_dataset(key, data=encode_fixed_strings([str(label) for label in labels], extra_length=1))


class _Plan:
    """Which data key of the dataset goes to which stream of the file."""

    def __init__(self, dataset: Dataset):
        """
        :param dataset: after init_seq_order
        """
        where = f"dataset {dataset.name!r}"
        self.source_keys = [key for key in sorted(set(dataset.get_data_keys())) if key not in _IGNORED_KEYS]
        if not self.source_keys:
            raise DatasetError(describe("The dataset has no data keys to write", where=where))
        target_keys = [key for key in self.source_keys if key in dataset.get_target_list()]
        input_keys = [key for key in self.source_keys if key not in target_keys]
        if len(input_keys) > 1:
            if "data" not in input_keys:
                raise DatasetError(
                    describe(
                        f"not sure which input data key to use from {input_keys}",
                        where=where,
                        todo="Name one of them 'data'",
                    )
                )
            target_keys = sorted(target_keys + [key for key in input_keys if key != "data"])
            input_keys = ["data"]
        self.input_key = input_keys[0] if input_keys else None
        names = {key: key for key in target_keys}
        if "data" in names:
            if "classes" in names:
                raise DatasetError(
                    describe(
                        "The dataset has the targets 'data' and 'classes'; 'data' would become 'classes'", where=where
                    )
                )
            names["data"] = "classes"
        # (data key of the dataset, target key in the file or None for inputs), in the order of the length columns,
        # which is the one of the names in the file.
        self.columns: list[tuple[str, str | None]] = [(key, None) for key in input_keys]
        self.columns += [(source, key) for key, source in sorted((key, source) for source, key in names.items())]
        self.dims: dict[str, tuple[int, int]] = {key: _get_dims(dataset, key) for key in self.source_keys}


def _get_dims(dataset: Dataset, key: str) -> tuple[int, int]:
    entry = (dataset.num_outputs or {}).get(key)
    if isinstance(entry, (tuple, list)):
        return int(entry[0]), int(entry[1])
    shape = dataset.get_data_shape(key)
    return int(dataset.get_data_dim(key) or 1), 1 + len(shape)


class _SpooledStream:
    """Frames of one data key: in memory, from some size on in an unnamed file."""

    def __init__(self, key: str, dtype: str, frame_shape: tuple[int, ...], directory: str):
        self.key = key
        self.is_text = dtype in ("object", "string") or np.dtype(dtype).kind in "OSU"
        self.dtype = np.dtype(object) if self.is_text else np.dtype(dtype)
        self.h5_dtype = h5py.string_dtype("utf-8") if self.is_text else self.dtype
        self.frame_shape = frame_shape
        self.lens: list[int] = []
        self.num_frames = 0
        self._texts: list[object] = []
        self._directory = directory or "."
        self._file = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES, dir=self._directory)

    def append(self, frames: np.ndarray, lens: list[int], *, where: str) -> None:
        """
        :param frames: [sum lens, ...]
        :param lens: of the sequences
        :param where: for error texts
        """
        if len(self.frame_shape) and frames.shape[1:] != self.frame_shape:
            raise DatasetError(
                describe(
                    f"The data of {self.key!r} has not the declared shape",
                    where=where,
                    expected=f"frames of shape {list(self.frame_shape)}",
                    got=list(frames.shape[1:]),
                )
            )
        if not len(self.frame_shape) and frames.ndim > 1:
            raise DatasetError(
                describe(
                    f"The data of {self.key!r} has not the declared shape",
                    where=where,
                    expected="1 axis",
                    got=frames.ndim,
                )
            )
        if self.is_text:
            self._texts.extend(item for item in frames.tolist())
        else:
            if not np.can_cast(frames.dtype, self.dtype, casting="same_kind"):
                raise DatasetError(
                    describe(
                        f"The data of {self.key!r} has not the declared dtype",
                        where=where,
                        expected=self.dtype.name,
                        got=frames.dtype.name,
                    )
                )
            self._write(np.ascontiguousarray(frames, dtype=self.dtype).tobytes())
        self.lens.extend(lens)
        self.num_frames += len(frames)

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as exc:
            raise DataFileError(
                describe(
                    f"Cannot write the temporary data of {self.key!r} in {self._directory!r} ({type(exc).__name__}: {exc})",
                    todo="Check the free space of the disk: until the end, the data is there twice",
                )
            ) from exc

    def copy_to(self, dataset: h5py.Dataset, *, check: Callable[[], None]) -> None:
        """
        :param dataset: [num_frames, ...]
        :param check: called after each block; raises an error if it could not be written
        """
        if self.is_text:
            if self._texts:
                dataset[...] = np.array(self._texts, dtype=object)
            return
        self._file.seek(0)
        frame_bytes = max(1, int(self.dtype.itemsize * np.prod(self.frame_shape, dtype=np.int64)))
        step = max(1, _COPY_BYTES // frame_bytes)
        for start in range(0, self.num_frames, step):
            num = min(step, self.num_frames - start)
            raw = self._file.read(num * frame_bytes)
            dataset[start : start + num] = np.frombuffer(raw, dtype=self.dtype).reshape(num, *self.frame_shape)
            check()

    def close(self) -> None:
        """Free the memory or the file."""
        self._file.close()


class _Collector:
    """One pass over the dataset."""

    def __init__(self, dataset: Dataset, plan: _Plan, *, directory: str):
        self._dataset = dataset
        self.tags: list[str] = []
        self.streams: dict[str, _SpooledStream] = {}
        for key in plan.source_keys:
            shape = tuple(dataset.get_data_shape(key))
            if any(size is None for size in shape):
                raise DatasetError(
                    describe(
                        f"The data of {key!r} has more than one axis of varying size",
                        where=f"dataset {dataset.name!r}",
                        expected="shape [T] or [T, fixed sizes]",
                        got=[None, *shape],
                        todo="Write it with SimpleHDFWriter, which stores the sizes of several axes",
                    )
                )
            sizes = tuple(int(size) for size in shape if size is not None)
            self.streams[key] = _SpooledStream(key, dataset.get_data_dtype(key), sizes, directory)

    def close(self) -> None:
        """Free the memory or the files."""
        for stream in self.streams.values():
            stream.close()

    def collect(self, seqs: range, *, use_progress_bar: bool) -> None:
        """
        :param seqs: positions in the epoch; stops at the end of the epoch
        :param use_progress_bar: on the terminal
        """
        total = self._get_total(seqs)
        # Only on a terminal: log files stay readable.
        show = use_progress_bar and sys.stderr.isatty()
        done = 0
        for done in self._collect_blocks(seqs):
            if show:
                of = f"/{total} ({100 * done // max(total, 1)}%)" if total is not None else ""
                print(f"\r{done}{of} sequences", end="", file=sys.stderr, flush=True)
        if show:
            print(f"\r{done} sequences", file=sys.stderr)

    def _get_total(self, seqs: range) -> int | None:
        try:
            return len(range(seqs.start, min(seqs.stop, self._dataset.num_seqs)))
        except NotImplementedError:
            return None

    def _collect_blocks(self, seqs: range) -> Iterator[int]:
        dataset = self._dataset
        keys = list(self.streams)
        total = self._get_total(seqs) if dataset.supports_bulk() else None
        if total is not None:
            for start in range(seqs.start, seqs.start + total, _BLOCK_SEQS):
                idxs = np.arange(start, min(start + _BLOCK_SEQS, seqs.start + total), dtype=np.int64)
                data = dataset.read_seqs(idxs, keys)
                if data is None:
                    break
                for key, ragged in data.items():
                    lens = [1] * len(idxs) if ragged.lens is None else ragged.lens.tolist()
                    self.streams[key].append(ragged.flat, lens, where=f"dataset {dataset.name!r}")
                self.tags.extend(dataset.get_seq_tags(idxs))
                yield len(self.tags)
            else:
                return
        for seq_idx in range(seqs.start + len(self.tags), seqs.stop):
            if not dataset.is_less_than_num_seqs(seq_idx):
                break
            dataset.load_seqs(seq_idx, seq_idx + 1)
            tag = dataset.get_tag(seq_idx)
            for key in keys:
                data_of_seq = np.atleast_1d(dataset.get_data(seq_idx, key))
                self.streams[key].append(
                    data_of_seq, [len(data_of_seq)], where=f"dataset {dataset.name!r}, sequence {seq_idx}, tag {tag!r}"
                )
            self.tags.append(tag)
            if len(self.tags) % 100 == 0:
                yield len(self.tags)
        yield len(self.tags)
