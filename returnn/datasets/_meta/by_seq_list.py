"""MetaDataset: several datasets with the same sequences become one with several data streams."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from returnn._state import state
from returnn.datasets._basic.epoch_lens import EpochLens, epoch_lens_of
from returnn.datasets._basic.jump import reads_as_its_class
from returnn.datasets._basic.shared_corpus import SharedPart
from returnn.datasets._hdf.shared_files import tags_part
from returnn.datasets._hdf.tag_table import TagTable
from returnn.datasets._meta.children import check_no_shared_dataset, lens_to_order_by
from returnn.datasets._meta.mapped_streams import MappedStreams
from returnn.datasets._meta.options import check_data_map, get_order_options, load_json_lens
from returnn.datasets._meta.seq_rows import (
    Join,
    SeqListFile,
    check_control_list,
    find_join,
    forget_tag_table,
    get_tag_key,
    get_tag_table,
    join_key,
    load_row_tables,
    map_rows,
    require_tag_table,
    rows_to_corpus,
    takes_corpus_order,
)
from returnn.datasets.basic import Dataset, DatasetSeq, init_dataset
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.ragged import Ragged
from returnn.datasets.seq_order import SeqLens, order_to_array
from returnn.errors import ConfigError, DataFileError, DatasetError, NotSupportedError, describe
from returnn.log import log
from returnn.util.numbers_dict import NumbersDict

__all__ = ["MetaDataset"]


class MetaDataset(MappedStreams, CachedDataset2):
    """
    The children describe the same sequences, each with other streams. The order of an epoch comes from one child
    (``seq_order_control_dataset``) or from the options of this dataset, and is given to the children as indices.
    """

    _getnewargs_exclude_attrs: ClassVar[set[str]] = {"data_dtypes"}

    def __init__(
        self,
        datasets: Mapping[str, Mapping[str, Any] | Dataset | Callable[[], Any]],
        data_map: Mapping[str, Sequence[str]],
        seq_list_file: SeqListFile | None = None,
        seq_order_control_dataset: str | None = None,
        seq_lens_file: str | os.PathLike[str] | None = None,
        data_dims: Any = None,
        data_dtypes: Any = None,
        **kwargs: Any,
    ):
        """
        :param datasets: key -> child (dict of options, dataset, or function). Only those in data_map are constructed
        :param data_map: own stream -> (key of the child, stream of the child)
        :param seq_list_file: which sequences belong together, where the tags differ; see seq_rows.load_row_tables
        :param seq_order_control_dataset: key of the child whose options define the order
        :param seq_lens_file: JSON: tag of the default child -> own stream -> length
        :param data_dims: deprecated: replaces the dims of the children. Any: see convert_data_dims
        :param data_dtypes: no effect
        :param kwargs: see Dataset; without effect on the order if there is a control dataset. Any: each has its own type
        :raises ConfigError: if the options do not fit together
        :raises DatasetError: if a child does not have all sequences
        """
        super().__init__(**kwargs)
        self._where_text = f"MetaDataset {self.name!r}"
        self.data_map = check_data_map(datasets, data_map, seq_order_control_dataset, where=self._where_text)
        self.data_keys: set[str] = set(self.data_map)
        self.dataset_keys: set[str] = {key for key, _ in self.data_map.values()}
        self.seq_order_control_dataset = seq_order_control_dataset
        self.default_dataset_key = seq_order_control_dataset or self.data_map["data"][0]
        # Only what a copy in another process needs.
        self._datasets = {key: opts for key, opts in datasets.items() if key in self.dataset_keys}
        self._seq_list_file = seq_list_file
        self._seq_lens_file = seq_lens_file
        self._data_dims = data_dims
        self.datasets: dict[str, Dataset] = {key: self._make_child(key) for key in self._datasets}
        self._seq_lens_by_tag = None if seq_lens_file is None else load_json_lens(os.fspath(seq_lens_file))
        self._rows: dict[str, TagTable] = {}
        self._joins: dict[str, Join] = {}
        self._by_tags: set[str] = set()
        self._own_order_lens: np.ndarray | None = None
        self._order: np.ndarray | None = None
        self._order_is_given = False
        self.target_list = sorted(self.data_keys - {"data"})
        self._take_dims(data_dims)
        self._warn_about_unused_options(data_dtypes)
        self._init_rows()

    # Construction

    def _make_child(self, key: str) -> Dataset:
        defaults: dict[str, int] = {}
        if key == self.seq_order_control_dataset and self._num_shards > 1:
            defaults = {"_num_shards": self._num_shards, "_shard_index": self._shard_index}
        child = init_dataset(self._datasets[key], extra_kwargs={"name": f"{self.name}_{key}"}, default_kwargs=defaults)
        child._is_top_level = False
        if defaults and (child._num_shards, child._shard_index) != (self._num_shards, self._shard_index):
            raise ConfigError(
                describe(
                    f"The control dataset {key!r} has another shard than the MetaDataset",
                    where=self._where_text,
                    expected=f"shard {self._shard_index} of {self._num_shards}",
                    got=[child._shard_index, child._num_shards],
                    todo="Give the control dataset as dict of options, without shard",
                )
            )
        return child

    def child_datasets(self) -> Iterable[Dataset]:
        """:return: the children"""
        return self.datasets.values()

    def _warn_about_unused_options(self, data_dtypes: Any) -> None:
        """Once, with the names of the given options that have no effect."""
        unused = ["data_dtypes"] if data_dtypes is not None else []
        if self.seq_order_control_dataset:
            unused += get_order_options(self)
            if self._random_seed_offset:
                unused.append("random_seed_offset (for the order)")
            if self._seq_lens_by_tag is not None:
                unused.append("seq_lens_file (for the order)")
        for key, child in self.datasets.items():
            if key != self.seq_order_control_dataset:
                unused += [f"datasets[{key!r}][{name!r}]" for name in get_order_options(child)]
        if unused and not state.in_worker:
            source = (
                f"the control dataset {self.seq_order_control_dataset!r}"
                if self.seq_order_control_dataset
                else "the options of the MetaDataset"
            )
            print(
                f"Warning: {self._where_text}: no effect of {', '.join(unused)}: the order comes from {source}.",
                file=log.v2,
            )

    def _init_rows(self) -> None:
        """Find out which sequences belong together, and that no child misses one."""
        where = self._where_text
        default = self.datasets[self.default_dataset_key]
        if self._seq_list_file is not None:
            rows_from = "seq_list_file"
            self._rows = load_row_tables(self._seq_list_file, sorted(self.dataset_keys), where=where)
        else:
            rows_from = self.default_dataset_key
            if not state.in_worker:
                print(
                    f"Reading sequence list for MetaDataset {self.name!r} from sub-dataset {default.name!r}",
                    file=log.v3,
                )
            table = require_tag_table(default, self.default_dataset_key, where=where)
            self._rows = dict.fromkeys(self.dataset_keys, table)
        for key, child in self.datasets.items():
            if key == self.default_dataset_key and self._seq_list_file is None:
                continue  # rows are its corpus indices
            self._init_join(key, child, rows_from)
        self._forget_tables()
        self._check_shared_children()

    def _init_join(self, key: str, child: Dataset, rows_from: str) -> None:
        where = self._where_text
        rows = self._rows[key]
        join = find_join(join_key(rows, get_tag_key(child)), self._get_needed_rows)
        if join is None:
            tags = get_tag_table(child)
            if tags is None:
                self._check_num_seqs(key, rows_from)
                self._by_tags.add(key)
                return
            mapping = map_rows(
                child, key, rows, tags=tags, needed=self._get_needed_rows, rows_from=rows_from, where=where
            )
            join = Join(mapping, join_key(rows, tags.key))
            tags.forget_index()
        if key == self.seq_order_control_dataset and join.mapping is not None:
            check_control_list(child, key, join.mapping, rows, where=where)
        self._joins[key] = join
        if not takes_corpus_order(child):
            self._by_tags.add(key)

    def _forget_tables(self) -> None:
        """Free what was needed only to find out which sequences belong together."""
        for rows in self._rows.values():
            rows.forget_index()
        for child in self.datasets.values():
            if self._seq_list_file is not None or child is not self.datasets[self.default_dataset_key]:
                forget_tag_table(child)

    def _mapping(self, key: str) -> np.ndarray | None:
        """:return: [num rows], corpus index of each row in this child; None: the row itself"""
        join = self._joins.get(key)
        return None if join is None else join.mapping

    def shared_parts(self) -> Iterable[SharedPart]:
        """See :func:`Dataset.shared_parts`. Tags of the rows, and where they are in the children."""
        tables = {rows.key: rows for rows in self._rows.values() if rows.key is not None}
        yield from (tags_part(rows, key) for key, rows in tables.items())
        for join in self._joins.values():
            part = join.shared_part()
            if part is not None:
                yield part

    def _check_shared_children(self) -> None:
        """One dataset object as two children is fine: it gets the same order twice, unless their rows are different."""
        names: dict[int, str] = {}
        for key, child in self.datasets.items():
            first = names.setdefault(id(child), key)
            if not self._rows[first].same_tags(self._rows[key]):
                raise ConfigError(
                    describe(
                        f"The children {first!r} and {key!r} are the same dataset object, but seq_list_file has other"
                        " sequences for them",
                        where=self._where_text,
                        todo="Give each of them as dict of options, or make two objects",
                    )
                )
        check_no_shared_dataset({key: self.datasets[key] for key in names.values()}, where=self._where_text)

    def _get_needed_rows(self) -> np.ndarray | None:
        """:return: bool [num rows], which ones the filter of the order lets through; None: all"""
        source = self.datasets[self.seq_order_control_dataset] if self.seq_order_control_dataset else self
        if source.seq_tags_filter is None:
            return None
        return self._rows[self.default_dataset_key].contained_in(source.seq_tags_filter)

    def _check_num_seqs(self, key: str, rows_from: str) -> None:
        """A child that cannot list its tags: at least it must be large enough."""
        try:
            num = self.datasets[key].get_total_num_seqs()
        except NotImplementedError:
            return
        if num < len(self._rows[key]):
            raise DatasetError(
                f"Dataset {key!r} is missing seqs. ({self._where_text}) Dataset {key!r} has less sequences ({num}) than"
                f" in sequence list ({len(self._rows[key])}) read from {rows_from!r}, this cannot work out!"
            )

    # Lists of tags, as old client code accesses them; made on access

    @property
    def seq_list_original(self) -> dict[str, list[str]]:
        """:return: key of child -> tags of all rows"""
        return {key: rows.to_list() for key, rows in self._rows.items()}

    @property
    def seq_list_ordered(self) -> dict[str, list[str]] | None:
        """:return: key of child -> tags in the order of the epoch; None before the first epoch"""
        if self._order is None:
            return None
        return {key: rows.select(self._order) for key, rows in self._rows.items()}

    @property
    def tag_idx(self) -> dict[str, int]:
        """:return: tag of the default child -> row; the last one for duplicates"""
        return {tag: i for i, tag in enumerate(self.get_all_tags())}

    # Order

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | np.ndarray | None = None,
    ) -> bool:
        """
        :param epoch: from 1
        :param seq_list: tags of the default child, instead of the ordering
        :param seq_order: rows, instead of the ordering
        :return: False if nothing changed
        :raises UnknownSeqTagError: if a tag of seq_list is unknown
        """
        given = seq_list is not None or seq_order is not None
        if not given and not self._order_is_given and self._order is not None:
            if self.epoch == (epoch or 1) and self.expected_load_seq_start == 0:
                return False
        self._order = None
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        order = self._get_order(seq_list=seq_list, seq_order=seq_order)
        self._check_rows(order)
        for key, child in self.datasets.items():
            if key == self.seq_order_control_dataset and not given:
                continue  # it gave the order
            mapping = self._mapping(key)
            if key in self._by_tags:
                child.init_seq_order(epoch=self.epoch, seq_list=self._rows[key].select(order))
            else:
                child.init_seq_order(
                    epoch=self.epoch,
                    seq_order=rows_to_corpus(child, self._rows[key], mapping, order, key=key, where=self._where_text),
                )
        self._order = order
        self._order_is_given = given
        self._num_seqs = len(order)
        return True

    def check_corpus(self) -> None:
        """See :func:`Dataset.check_corpus`. The order is that of the control dataset, if there is one."""
        if self.seq_order_control_dataset:
            self.datasets[self.seq_order_control_dataset].check_corpus()
        else:
            super().check_corpus()

    def _get_order(self, *, seq_list: Sequence[str] | None, seq_order: Sequence[int] | np.ndarray | None) -> np.ndarray:
        if seq_order is not None:
            return np.array(seq_order, dtype=np.int64)
        rows = self._rows[self.default_dataset_key]
        if seq_list is not None:
            return rows.lookup(list(seq_list), dataset_name=self.name)
        if self.seq_order_control_dataset:
            control = self.datasets[self.seq_order_control_dataset]
            control.init_seq_order(epoch=self.epoch)
            # User classes may shard themselves; the loader must know.
            self._sharding_applied = control._sharding_applied
            try:
                order = control.get_current_seq_order()
            except NotImplementedError as exc:
                raise NotSupportedError(
                    describe(
                        f"The control dataset {self.seq_order_control_dataset!r} cannot tell its order"
                        " (get_current_seq_order)",
                        where=self._where_text,
                        todo="Choose another control dataset, or give seq_ordering to the MetaDataset instead",
                    )
                ) from exc
            # The memory of the control dataset itself, unless a class of the user may write to it.
            is_ours = type(control).get_current_seq_order.__module__.startswith("returnn.")
            return np.asarray(order, dtype=np.int64) if is_ours else np.array(order, dtype=np.int64)
        needs_lens = self._get_seq_ordering_for_epoch(self.epoch).needs_seq_lens and not self._seq_order_seq_lens_file
        lens: SeqLens | None = None
        if needs_lens:
            lens = self._lens_for_order_of_epoch(self._get_lens_for_order())
        elif self._has_own_order():  # a class of the user may ask for them all the same
            lens = lambda idx: self._get_lens_for_order()[idx]  # noqa: E731
        return order_to_array(self.get_seq_order_for_epoch(self.epoch, len(rows), lens))

    def _get_lens_for_order(self) -> np.ndarray:
        """:return: [num rows], read once"""
        if self._own_order_lens is not None:
            return self._own_order_lens
        rows = self._rows[self.default_dataset_key]
        if self._seq_lens_by_tag is not None:
            lens = np.array([self._lens_of_tag(tag)["data"] for tag in rows.to_list()])
        else:
            key = self.default_dataset_key
            child = self.datasets[key]
            mapping = self._mapping(key)
            if key in self._by_tags:
                child.init_seq_order(epoch=self.epoch, seq_list=rows.to_list())
            else:
                # Rows that the filter excludes may be missing: any length does for them.
                known = np.arange(len(rows)) if mapping is None else np.maximum(mapping, 0).astype(np.int64)
                child.init_seq_order(epoch=self.epoch, seq_order=known)
            bulk_lens = child.get_epoch_seq_lens("data") if child.supports_bulk() else None
            lens = (
                np.array([child.get_seq_length(i)["data"] for i in range(len(rows))])
                if bulk_lens is None
                else bulk_lens
            )
        self._own_order_lens = lens
        return lens

    def _check_rows(self, order: np.ndarray) -> None:
        num_rows = len(self._rows[self.default_dataset_key])
        if len(order) and not (0 <= int(order.min()) and int(order.max()) < num_rows):
            raise DatasetError(
                describe(
                    "The order has an index outside of the sequence list",
                    where=f"{self._where_text}, control dataset {self.seq_order_control_dataset!r}",
                    expected=f"0 <= index < {num_rows}",
                    got=[int(order.min()), int(order.max())],
                    todo="With a control dataset, seq_list_file must have all its sequences in its order",
                )
            )

    def get_current_seq_order(self) -> np.ndarray:
        """:return: int64 [num_seqs] rows of the sequence list"""
        if self._order is None:
            raise DatasetError(
                describe(
                    "The order of the epoch is not known", where=f"{self}", todo="Call init_seq_order(epoch) first"
                )
            )
        return self._order

    def have_corpus_seq_idx(self) -> bool:
        """:return: True. It is the row of the sequence list"""
        return True

    @property
    def tag_table(self) -> TagTable:
        """:return: tags of the default child for all rows"""
        return self._rows[self.default_dataset_key]

    @property
    def tag_table_key(self) -> str | None:
        """:return: the key of :func:`tag_table`; None: it has none"""
        return self.tag_table.key

    def get_all_tags(self) -> list[str]:
        """:return: tags of the default child for all rows"""
        return self._rows[self.default_dataset_key].to_list()

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """:return: number of rows"""
        return len(self._rows[self.default_dataset_key])

    def supports_seq_order_sorting(self) -> bool:
        """:return: whether the children know lengths without loading data"""
        return self.datasets[self.default_dataset_key].supports_seq_order_sorting()

    def finish_epoch(self, *, free_resources: bool = False) -> None:
        """
        :param free_resources: also close files of the children
        """
        super().finish_epoch(free_resources=free_resources)
        self._order = None
        for child in self.datasets.values():
            child.finish_epoch(free_resources=free_resources)

    # Data one by one

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        order = self.get_current_seq_order()
        if seq_idx >= len(order):
            return None
        row = int(order[seq_idx])
        for key, child in self.datasets.items():
            child.load_seqs(seq_idx, seq_idx + 1)
            self._check_tag(key, seq_idx, self._rows[key][row], child.get_tag(seq_idx))
        features = {
            stream: self.datasets[key].get_data(seq_idx, sub_stream)
            for stream, (key, sub_stream) in self.data_map.items()
        }
        return DatasetSeq(seq_idx=seq_idx, features=features, seq_tag=self._rows[self.default_dataset_key][row])

    def _check_tag(self, key: str, seq_idx: int, expected: str, got: str) -> None:
        if got != expected:
            raise DatasetError(
                describe(
                    f"Dataset {key!r} gives another sequence than asked for at position {seq_idx} of the epoch",
                    where=self._where_text,
                    expected=f"tag {expected!r}",
                    got=got,
                    todo=f"Dataset {key!r} must follow init_seq_order(seq_list=...)"
                    if key in self._by_tags
                    else f"Check get_all_tags of dataset {key!r}, and the order in seq_list_file",
                )
            )

    def get_tag(self, sorted_seq_idx: int) -> str:
        """:return: tag in the default child. Loads nothing"""
        return self._rows[self.default_dataset_key][int(self.get_current_seq_order()[sorted_seq_idx])]

    def get_seq_length(self, sorted_seq_idx: int) -> NumbersDict:
        """:return: length per stream; from seq_lens_file if given, else of the loaded data"""
        if self._seq_lens_by_tag is not None:
            return NumbersDict(self._lens_of_tag(self.get_tag(sorted_seq_idx)))
        return super().get_seq_length(sorted_seq_idx)

    def _lens_of_tag(self, tag: str) -> Mapping[str, float]:
        assert self._seq_lens_by_tag is not None
        try:
            lens = self._seq_lens_by_tag[tag]
            lens["data"]
        except (KeyError, TypeError) as exc:
            raise DataFileError(
                describe(
                    f"seq_lens_file {os.fspath(self._seq_lens_file or '')!r} has no length of 'data' for tag {tag!r}",
                    where=self._where_text,
                )
            ) from exc
        return lens

    def get_estimated_seq_length(self, seq_idx: int) -> int:
        """:return: length in the default child"""
        if self._seq_lens_by_tag is not None:
            return int(self._lens_of_tag(self.get_tag(seq_idx))["data"])
        return self.datasets[self.default_dataset_key].get_estimated_seq_length(seq_idx)

    def get_estimated_seq_lengths(self) -> np.ndarray:
        """:return: [num_seqs] lengths in the default child"""
        if self._seq_lens_by_tag is not None:
            return super().get_estimated_seq_lengths()
        return lens_to_order_by(self.datasets[self.default_dataset_key], self.num_seqs)

    def supports_jump(self) -> bool:
        """See :func:`Dataset.supports_jump`. If all children do."""
        return reads_as_its_class(self) and all(child.supports_jump() for child in self.datasets.values())

    # Data in bulk

    def supports_bulk(self) -> bool:
        """:return: whether all children do"""
        return super().supports_bulk() and all(child.supports_bulk() for child in self.datasets.values())

    def get_epoch_seq_lens(self, key: str) -> np.ndarray | None:
        """
        :param key: own stream
        :return: int64 [num_seqs], if the child knows it
        """
        if key not in self.data_map:
            return None
        self.get_current_seq_order()
        dataset_key, sub_stream = self.data_map[key]
        child = self.datasets[dataset_key]
        return child.get_epoch_seq_lens(sub_stream) if child.supports_bulk() else None

    def epoch_lens(self, key: str) -> EpochLens | None:
        """As :func:`get_epoch_seq_lens`, without making the array of all lengths if the child need not."""
        if key not in self.data_map:
            return None
        self.get_current_seq_order()
        dataset_key, sub_stream = self.data_map[key]
        child = self.datasets[dataset_key]
        return epoch_lens_of(child, sub_stream) if child.supports_bulk() else None

    def read_seqs(self, seq_idxs: np.ndarray, keys: Sequence[str]) -> dict[str, Ragged] | None:
        """
        :param seq_idxs: int64 [B], positions in the epoch
        :param keys: own streams
        :return: stream -> data; None if a child does not support it
        """
        rows = self.get_current_seq_order()[seq_idxs]
        unknown = sorted(set(keys) - self.data_keys)
        if unknown:
            raise DatasetError(
                describe(
                    f"No such data key: {unknown}",
                    where=self._where_text,
                    expected=f"{sorted(self.data_keys)}",
                    got=unknown,
                )
            )
        res: dict[str, Ragged] = {}
        for dataset_key, child in self.datasets.items():
            streams = {stream: self.data_map[stream][1] for stream in keys if self.data_map[stream][0] == dataset_key}
            if not streams:
                continue
            if dataset_key in self._by_tags:
                # Its indices were not verified against its tags at the start.
                expected = self._rows[dataset_key].select(rows)
                for seq_idx, tag, got in zip(seq_idxs.tolist(), expected, child.get_seq_tags(seq_idxs), strict=True):
                    self._check_tag(dataset_key, seq_idx, tag, got)
            data = child.read_seqs(seq_idxs, sorted(set(streams.values())))
            if data is None:
                return None
            res.update({stream: data[sub_stream] for stream, sub_stream in streams.items()})
        return {key: res[key] for key in keys}

    def get_seq_tags(self, seq_idxs: np.ndarray | Sequence[int]) -> list[str]:
        """
        :param seq_idxs: [B], positions in the epoch
        :return: their tags in the default child
        """
        idxs = np.asarray(seq_idxs, dtype=np.int64)
        return self._rows[self.default_dataset_key].select(self.get_current_seq_order()[idxs])
