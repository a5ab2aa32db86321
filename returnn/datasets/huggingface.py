"""
HuggingFaceDataset: columns of a dataset of the package ``datasets`` as data keys.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy

from returnn.datasets._basic.corpus_facts import files_of_folder
from returnn.datasets._basic.jump import reads_as_its_class
from returnn.datasets._basic.predefined_order import predefined_order
from returnn.datasets._hdf.tag_table import TagTable
from returnn.datasets._huggingface import Column, arrow_shard_files, make_column
from returnn.datasets.basic import DatasetSeq
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.ragged import Ragged
from returnn.errors import DatasetError, DatasetOptionError
from returnn.util.file_cache import get_instance
from returnn.util.optional_import import optional_import

__all__ = ["HuggingFaceDataset", "get_arrow_shard_files_from_hf_dataset_dir"]


def get_arrow_shard_files_from_hf_dataset_dir(hf_data_dir: str | os.PathLike[str]) -> list[str]:
    """See :func:`returnn.datasets._huggingface.arrow_shard_files`."""
    return arrow_shard_files(hf_data_dir)


class HuggingFaceDataset(CachedDataset2):
    """
    Each row is a sequence. Lists become axes, a ClassLabel class indices, Audio samples; text is tokenised if there is a
    vocabulary, else a string. The values have the types that the columns declare (float64 stays float64).
    """

    def __init__(
        self,
        dataset_opts: Any,
        *,
        use_file_cache: bool = False,
        map_func: Callable[[Any], Any] | None = None,
        rename_columns: Mapping[str, str] | None = None,
        cast_columns: Mapping[str, Any] | None = None,
        data_format: Mapping[str, Mapping[str, Any]],
        seq_tag_column: str | None = "id",
        sorting_seq_len_column_data: str | None = None,
        sorting_seq_len_column: str | None = None,
        **kwargs: Any,
    ) -> None:
        """
        :param dataset_opts: options of ``datasets.load_dataset``; or a folder written by ``save_to_disk``; or a list of
            Arrow files; or a function that returns one of these or a ``datasets.Dataset``; or such a dataset. Any: these
        :param use_file_cache: read local copies; only for a folder or a list of files
        :param map_func: from the dataset to another one. Any: a ``datasets.Dataset``
        :param rename_columns: old name -> new name
        :param cast_columns: column -> feature (Any: of the package), or dict of it, e.g. ``{"_type": "Value", "dtype": "int32"}``
        :param data_format: column -> dict with dim, ndim, shape (with the time axis), dtype, sparse, vocab (for
            Vocabulary.create_vocab); what is given must fit to the data
        :param seq_tag_column: text or int column with the tags; None: "seq-<i>"
        :param sorting_seq_len_column_data: its number of frames is the length by which orderings sort
        :param sorting_seq_len_column: int column with that length
        :param kwargs: see Dataset. Any: each has its own type
        :raises DatasetOptionError: for an invalid value
        """
        super().__init__(**kwargs)
        if not isinstance(data_format, Mapping) or not data_format:
            raise DatasetOptionError(
                self._describe(
                    'option "data_format" is invalid',
                    expected="nonempty dict column -> dict, e.g. {'text': {'vocab': {...}}}",
                    got=data_format,
                )
            )
        if use_file_cache and isinstance(dataset_opts, Mapping):
            raise DatasetOptionError(
                f"{self._where()}: use_file_cache is only possible if dataset_opts is a folder or a list of Arrow files."
            )
        self.dataset_opts = dataset_opts
        self.use_file_cache = use_file_cache
        self.map_func = map_func
        self.rename_columns = rename_columns
        self.cast_columns = cast_columns
        self.data_format = data_format
        self.seq_tag_column = seq_tag_column
        self.sorting_seq_len_column_data = sorting_seq_len_column_data
        self.sorting_seq_len_column = sorting_seq_len_column
        # Any: a datasets.Dataset, in Arrow format.
        self._rows: Any = None
        self._columns: dict[str, Column] = {}
        self._tags: TagTable | None = None
        self._corpus_lens: dict[str, numpy.ndarray] = {}
        self._order: numpy.ndarray | None = None

    # ---- loading

    def _get_rows(self) -> Any:
        """:return: datasets.Dataset in Arrow format, loaded at the first call"""
        if self._rows is None:
            rows = self._load()
            wanted = list(self.data_format)
            for column in (self.seq_tag_column, self.sorting_seq_len_column, self.sorting_seq_len_column_data):
                if column and column not in wanted:
                    wanted.append(column)
            missing = [column for column in wanted if column not in rows.column_names]
            if missing:
                raise DatasetError(
                    f"{self._where()}: no columns {missing}, only {list(rows.column_names)}. Check data_format, "
                    "seq_tag_column (None: tags seq-<i>), and the sorting options."
                )
            self._columns = {
                name: make_column(name, rows.features[name], opts, where=self._where())
                for name, opts in self.data_format.items()
            }
            self._rows = rows.select_columns(wanted).with_format("arrow")
        return self._rows

    def _load(self) -> Any:
        datasets = optional_import("datasets", needed_by="HuggingFaceDataset")
        opts = self.dataset_opts
        if callable(opts):
            opts = opts()
        if isinstance(opts, (str, os.PathLike)):
            opts = arrow_shard_files(opts) if self.use_file_cache else datasets.load_from_disk(os.fspath(opts))
        if isinstance(opts, Mapping) and not isinstance(opts, datasets.DatasetDict):
            opts = datasets.load_dataset(**opts)
        if isinstance(opts, (list, tuple)):
            files = self._cached(opts) if self.use_file_cache else [os.fspath(file) for file in opts]
            parts = [datasets.Dataset.from_file(file) for file in files]
            opts = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
        if isinstance(opts, (datasets.DatasetDict, datasets.IterableDatasetDict)):
            raise DatasetError(
                f"{self._where()}: dataset_opts gives a DatasetDict with splits {list(opts)}: specify split, e.g. "
                f"'split': {next(iter(opts), 'train')!r}."
            )
        if not isinstance(opts, datasets.Dataset):
            raise DatasetError(
                f"{self._where()}: dataset_opts: expected a datasets.Dataset, or what gives one, got {type(opts).__name__}."
            )
        rows: Any = opts
        if self.map_func is not None:
            rows = self.map_func(rows)
        if self.rename_columns:
            rows = rows.rename_columns(dict(self.rename_columns))
        for name, feature in (self.cast_columns or {}).items():
            if isinstance(feature, Mapping):
                feature = datasets.Features.from_dict({name: feature})[name]
            rows = rows.cast_column(name, feature)
        return rows

    def _cached(self, files: Sequence[str | os.PathLike[str]]) -> list[str]:
        cache = get_instance()
        copies: list[str] = []
        # Until this object is gone.
        weakref.finalize(self, _release, cache, copies)
        for file in files:
            copies.append(cache.get_file(os.fspath(file)))
        return list(copies)

    def _get_columns(self) -> dict[str, Column]:
        self._get_rows()
        return self._columns

    def _whole_column(self, name: str) -> Any:
        """:return: pyarrow.ChunkedArray over the corpus"""
        return self._get_rows().select_columns([name])[:].column(name)

    # ---- what the data is

    # What the base sets in its constructor is ignored.

    @property  # type: ignore[override]
    def num_outputs(self) -> dict[str, Any]:
        """:return: see Dataset. Any: dict per key"""
        return {
            name: {"dim": c.dim, "shape": c.shape, "dtype": c.dtype, "sparse": c.sparse}
            for name, c in self._get_columns().items()
        }

    @num_outputs.setter
    def num_outputs(self, value: dict[str, Any] | None) -> None:
        pass

    @property  # type: ignore[override]
    def num_inputs(self) -> int:
        """:return: see Dataset; 0 if there is no key "data" """
        columns = self._get_columns()
        return columns["data"].dim if "data" in columns else 0

    @num_inputs.setter
    def num_inputs(self, value: int | None) -> None:
        pass

    @property  # type: ignore[override]
    def labels(self) -> dict[str, Sequence[str]]:
        """:return: see Dataset"""
        return {name: c.labels for name, c in self._get_columns().items() if c.labels is not None}

    @labels.setter
    def labels(self, value: dict[str, Sequence[str]]) -> None:
        pass

    def get_data_keys(self) -> list[str]:
        """:return: columns of data_format"""
        return list(self.data_format)

    def get_target_list(self) -> list[str]:
        """:return: all but "data" """
        return [key for key in self.data_format if key != "data"]

    def get_data_dim(self, key: str) -> int:
        """See :func:`Dataset.get_data_dim`."""
        column = self._get_columns().get(key)
        return super().get_data_dim(key) if column is None else column.dim

    def get_data_dtype(self, key: str) -> str:
        """See :func:`Dataset.get_data_dtype`."""
        column = self._get_columns().get(key)
        return super().get_data_dtype(key) if column is None else column.dtype

    def is_data_sparse(self, key: str) -> bool:
        """See :func:`Dataset.is_data_sparse`."""
        column = self._get_columns().get(key)
        return super().is_data_sparse(key) if column is None else column.sparse

    def get_data_shape(self, key: str) -> list[int | None]:
        """See :func:`Dataset.get_data_shape`."""
        column = self._get_columns().get(key)
        return super().get_data_shape(key) if column is None else list(column.shape[1:])

    # ---- order

    def corpus_files(self) -> Iterable[str]:
        """See :func:`Dataset.corpus_files`."""
        folder = self.dataset_opts
        return files_of_folder(os.fspath(folder)) if isinstance(folder, (str, os.PathLike)) else []

    def known_corpus_lens(self) -> Mapping[str, numpy.ndarray]:
        """See :func:`Dataset.known_corpus_lens`."""
        return dict(self._corpus_lens)

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """:return: number of rows"""
        return len(self._get_rows())

    def _get_tags(self) -> TagTable | None:
        """:return: None: they are "seq-<i>" """
        if self._tags is None and self.seq_tag_column is not None:
            values = self._whole_column(self.seq_tag_column).to_pylist()
            wrong = next((v for v in values if isinstance(v, bool) or not isinstance(v, (str, int))), None)
            if wrong is not None or None in values:
                raise DatasetError(
                    f"{self._where()}: seq_tag_column {self.seq_tag_column!r}: tags must be text or ints, got {wrong!r}."
                )
            self._tags = TagTable.from_tags(map(str, values))
        return self._tags

    def get_all_tags(self) -> list[str]:
        """See :func:`Dataset.get_all_tags`."""
        tags = self._get_tags()
        if tags is None:
            return [f"seq-{i}" for i in range(self.get_total_num_seqs())]
        return tags.to_list()

    def _idxs_of_tags(self, seq_list: Sequence[str]) -> numpy.ndarray:
        tags = self._get_tags() or TagTable.from_tags(self.get_all_tags())
        return tags.lookup(list(seq_list), dataset_name=self.name)

    def _lens_of_column(self, name: str) -> numpy.ndarray:
        """:return: int64 [corpus]: size of the first axis; characters of a text"""
        if name not in self._corpus_lens:
            compute = optional_import("pyarrow.compute", needed_by="HuggingFaceDataset")
            column = self._whole_column(name)
            kind = str(column.type)
            shape: list[int] = []
            if "string" in kind and "list" not in kind:
                lens = compute.utf8_length(column)
            elif "list" in kind:
                lens = compute.list_value_length(column)
            else:
                lens = None
                shape = list(getattr(column.type, "shape", None) or [])  # ArrayXD: all the same
                if not shape:
                    raise DatasetError(f"{self._where()}: column {name!r} of type {kind} has no length.")
            if lens is None:
                self._corpus_lens[name] = numpy.full(len(column), shape[0], dtype=numpy.int64)
            else:
                self._corpus_lens[name] = lens.to_numpy().astype(numpy.int64)
        return self._corpus_lens[name]

    def _sorting_lens(self) -> numpy.ndarray:
        if self.sorting_seq_len_column is not None:
            values: numpy.ndarray = self._whole_column(self.sorting_seq_len_column).to_numpy()
            return values.astype(numpy.int64)
        if self.sorting_seq_len_column_data is not None:
            return self._lens_of_column(self.sorting_seq_len_column_data)
        raise DatasetError(
            f"{self._where()}: seq_ordering {self.seq_ordering!r} needs lengths: set sorting_seq_len_column (a column with "
            "the length) or sorting_seq_len_column_data (a column whose values have it)."
        )

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """See :func:`Dataset.init_seq_order`."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        order = predefined_order(seq_list, seq_order, order_of_tags=self._idxs_of_tags)
        if order is None and epoch is None:
            order = numpy.zeros(0, dtype=numpy.int64)
        if order is None:
            needs_lens = self._get_seq_ordering_for_epoch(epoch).needs_seq_lens and not self._seq_order_seq_lens_file
            lens = self._sorting_lens() if needs_lens else None
            order = numpy.asarray(
                self.get_seq_order_for_epoch(epoch, self.get_total_num_seqs(), lens), dtype=numpy.int64
            )
        self._order = order
        self._num_seqs = len(order)
        return True

    def get_estimated_seq_length(self, seq_idx: int) -> int:
        """See :func:`Dataset.get_estimated_seq_length`."""
        return int(self._sorting_lens()[self.get_corpus_seq_idx(seq_idx)])

    def get_estimated_seq_lengths(self) -> numpy.ndarray:
        """See :func:`Dataset.get_estimated_seq_lengths`."""
        return self._sorting_lens()[self.get_current_seq_order()]

    def supports_seq_order_sorting(self) -> bool:
        """:return: whether lengths are known"""
        return self.sorting_seq_len_column is not None or self.sorting_seq_len_column_data is not None

    def get_current_seq_order(self) -> numpy.ndarray:
        """See :func:`Dataset.get_current_seq_order`."""
        if self._order is None:
            raise DatasetError(f"{self!r}: the order of the epoch is not known. Call init_seq_order(epoch=...) first.")
        return self._order

    def have_corpus_seq_idx(self) -> bool:
        """:return: True"""
        return True

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """See :func:`Dataset.get_corpus_seq_idx`."""
        return int(self.get_current_seq_order()[sorted_seq_idx])

    def get_tag(self, sorted_seq_idx: int) -> str:
        """See :func:`Dataset.get_tag`."""
        return self.get_seq_tags([sorted_seq_idx])[0]

    def get_seq_tags(self, seq_idxs: numpy.ndarray | Sequence[int]) -> list[str]:
        """See :func:`Dataset.get_seq_tags`."""
        corpus_idxs = self.get_current_seq_order()[numpy.asarray(seq_idxs, dtype=numpy.int64)]
        tags = self._get_tags()
        return [f"seq-{i}" for i in corpus_idxs] if tags is None else tags.select(corpus_idxs)

    # ---- data

    def supports_bulk(self) -> bool:
        """:return: whether all lengths are known without making the data"""
        return super().supports_bulk() and all(column.has_known_lens for column in self._get_columns().values())

    def get_epoch_seq_lens(self, key: str) -> numpy.ndarray | None:
        """See :func:`Dataset.get_epoch_seq_lens`."""
        column = self._get_columns()[key]
        if not column.shape or not column.has_known_lens:
            return None
        return self._lens_of_column(key)[self.get_current_seq_order()]

    def _read(self, corpus_idxs: numpy.ndarray) -> dict[str, list[numpy.ndarray]]:
        table = self._get_rows()[corpus_idxs.tolist()]
        return {name: column.decode(table.column(name), self._where()) for name, column in self._get_columns().items()}

    def read_seqs(self, seq_idxs: numpy.ndarray, keys: Sequence[str]) -> dict[str, Ragged] | None:
        """See :func:`Dataset.read_seqs`."""
        data = self._read(self.get_current_seq_order()[seq_idxs])
        return {key: Ragged.from_list(data[key]) for key in keys}

    def supports_jump(self) -> bool:
        """See :func:`Dataset.supports_jump`."""
        return reads_as_its_class(self)

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        order = self.get_current_seq_order()
        if seq_idx >= len(order):
            return None
        data = self._read(order[seq_idx : seq_idx + 1])
        return DatasetSeq(seq_idx, {key: values[0] for key, values in data.items()}, seq_tag=self.get_tag(seq_idx))


def _release(cache: Any, copies: list[str]) -> None:
    cache.release_files(copies)
