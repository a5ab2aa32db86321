"""ConcatSeqsDataset: several sequences of another dataset become one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from returnn.datasets._basic.epoch_wise_filter import EpochWiseFilter
from returnn.datasets._basic.jump import reads_as_its_class
from returnn.datasets._hdf.tag_table import TagTable
from returnn.datasets._meta.children import DatasetSpec, make_child, warn_about_unused_options
from returnn.datasets._meta.delegating import ChildStreams
from returnn.datasets._meta.options import get_order_options
from returnn.datasets._meta.part_frames import PartOptions, Parts
from returnn.datasets._meta.seq_rows import get_tag_table, takes_corpus_order
from returnn.datasets.basic import Dataset, DatasetSeq
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.ragged import Ragged
from returnn.datasets.seq_lists import load_seq_lens_file, load_seq_list_file
from returnn.errors import ConfigError, DatasetError, UnknownSeqTagError, describe
from returnn.util.cache_manager import cf

__all__ = ["ConcatSeqsDataset"]


class ConcatSeqsDataset(ChildStreams, CachedDataset2):
    """
    Each line of a file lists the sequences of the inner dataset which make one sequence; the line is its tag.
    All streams are concatenated along the time axis.
    """

    _getnewargs_remap: ClassVar[dict[str, str]] = {"random_seed_offset": "_given_random_seed_offset"}

    def __init__(
        self,
        dataset: DatasetSpec,
        seq_list_file: str | os.PathLike[str],
        seq_len_file: str | os.PathLike[str],
        seq_tag_delim: str = ";",
        remove_in_between_postfix: Mapping[str, int] | None = None,
        repeat_in_between_last_frame_up_to_multiple_of: Mapping[str, int] | None = None,
        pad_narrow_data_to_multiple_of_target_len: Mapping[str, Sequence[Any]] | None = None,
        use_cache_manager: bool = False,
        epoch_wise_filter: EpochWiseFilter | Mapping[Any, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """
        :param dataset: inner one: dict of options, dataset, or function
        :param seq_list_file: text; each line is tags joined by seq_tag_delim
        :param seq_len_file: text of one dict tag -> length, as Python literal or JSON
        :param seq_tag_delim: between the tags of a line
        :param remove_in_between_postfix: stream -> label which ends each part, and is removed from all but the last
        :param repeat_in_between_last_frame_up_to_multiple_of: stream -> m: all parts but the last are filled up with
            their last frame to a multiple of m
        :param pad_narrow_data_to_multiple_of_target_len: stream -> (target stream, m): all parts but the last are cut, or
            filled up with their last frame, to m times the length of the target. Any: str, int
        :param use_cache_manager: read local copies of the files, made by :func:`returnn.util.basic.cf`
        :param epoch_wise_filter: (first, last epoch) -> {"max_mean_len": x}. Any: see EpochWiseFilter
        :param kwargs: see Dataset; about the order of the lines. Any: each has its own type
        :raises ConfigError: for a wrong option
        :raises DatasetError: a tag has no length
        """
        super().__init__(**kwargs)
        self._given_random_seed_offset: int | None = kwargs.get("random_seed_offset")
        self._dataset = dataset
        self._seq_list_file = seq_list_file
        self._seq_len_file = seq_len_file
        self.seq_tag_delim = seq_tag_delim
        self.remove_in_between_postfix = dict(remove_in_between_postfix or {})
        self.repeat_in_between_last_frame_up_to_multiple_of = dict(repeat_in_between_last_frame_up_to_multiple_of or {})
        self.pad_narrow_data_to_multiple_of_target_len = dict(pad_narrow_data_to_multiple_of_target_len or {})
        self.use_cache_manager = use_cache_manager
        if epoch_wise_filter is not None and not isinstance(epoch_wise_filter, EpochWiseFilter):
            epoch_wise_filter = EpochWiseFilter(epoch_wise_filter, f"{self.name}, EpochWiseFilter")
        self.epoch_wise_filter = epoch_wise_filter
        self._part_options = self._check_part_options()
        self.dataset: Dataset = make_child(
            dataset, name=f"{self.name}_subdataset", owner=self, seed_offset=self._given_random_seed_offset, shard=False
        )
        self._child = self.sub_dataset = self.dataset
        self._take_info_of_child()
        warn_about_unused_options(
            self,
            [f"{name} of the inner dataset" for name in get_order_options(self.dataset)],
            reason="the order comes from seq_list_file and the options of this dataset",
        )
        self._streams_are_checked = False
        self._read_files()
        self._part_to_corpus: np.ndarray | None = None
        self._has_looked_up_parts = False
        self._order: np.ndarray | None = None
        self._first_parts = np.zeros(1, np.int64)  # of each sequence of the epoch, in the epoch of the inner dataset

    def _check_part_options(self) -> PartOptions:
        for name in ("remove_in_between_postfix", "repeat_in_between_last_frame_up_to_multiple_of"):
            for stream, value in getattr(self, name).items():
                is_int = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
                if not is_int or (value < 1 and name.startswith("repeat")):
                    raise ConfigError(
                        describe(
                            f'option "{name}", stream {stream!r} is invalid',
                            where=self._where(),
                            expected="int > 0" if name.startswith("repeat") else "int, the label",
                            got=value,
                        )
                    )
        targets: dict[str, tuple[str, int]] = {}
        for stream, value in self.pad_narrow_data_to_multiple_of_target_len.items():
            ok = isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[0], str)
            if not ok or not isinstance(value[1], (int, np.integer)) or value[1] < 1:
                raise ConfigError(
                    describe(
                        f'option "pad_narrow_data_to_multiple_of_target_len", stream {stream!r} is invalid',
                        where=self._where(),
                        expected="(target stream, int > 0)",
                        got=value,
                    )
                )
            targets[stream] = (value[0], int(value[1]))
        return PartOptions(self.remove_in_between_postfix, targets, self.repeat_in_between_last_frame_up_to_multiple_of)

    def child_datasets(self) -> Iterable[Dataset]:
        """:return: the inner dataset"""
        return (self.dataset,)

    # ---- the lines

    def _read_files(self) -> None:
        list_file, len_file = os.fspath(self._seq_list_file), os.fspath(self._seq_len_file)
        if self.use_cache_manager:
            list_file, len_file = cf(list_file), cf(len_file)
        if not self.seq_tag_delim:
            raise ConfigError(
                describe(
                    'option "seq_tag_delim" is invalid', where=self._where(), expected="str", got=self.seq_tag_delim
                )
            )
        lines = load_seq_list_file(list_file)
        parts_of_lines = [line.split(self.seq_tag_delim) for line in lines]
        tags = [tag for parts in parts_of_lines for tag in parts]
        lens = load_seq_lens_file(len_file)
        missing = [tag for tag in tags if tag not in lens]
        if missing:
            raise UnknownSeqTagError(
                f"{self._where()}: seq_len_file {len_file!r} has no length for {len(missing)} of the {len(tags)} tags of"
                f" seq_list_file {list_file!r}, e.g. {missing[:3]}. Tags of a line are separated by"
                f" {self.seq_tag_delim!r} (seq_tag_delim)."
            )
        self._lines = TagTable.from_tags(lines)
        self._parts = TagTable.from_tags(tags)
        self._line_starts = np.zeros(len(lines) + 1, dtype=np.int64)  # in _parts
        np.cumsum([len(parts) for parts in parts_of_lines], out=self._line_starts[1:])
        part_lens = np.array([lens[tag] for tag in tags])
        self._line_lens = np.add.reduceat(part_lens, self._line_starts[:-1]) if len(lines) else np.zeros(0, np.int64)

    def _look_up_parts(self) -> None:
        """Find the parts in the corpus of the inner dataset, if it can list it; this finds missing ones at the start."""
        if self._has_looked_up_parts:
            return
        self._has_looked_up_parts = True
        table = get_tag_table(self.dataset) if takes_corpus_order(self.dataset) else None
        if table is None:
            return
        idxs = table.find_table(self._parts)
        missing = np.flatnonzero(idxs < 0)
        if len(missing):
            raise UnknownSeqTagError(
                f"{self._where()}: {len(missing)} of {len(idxs)} tags in seq_list_file"
                f" {os.fspath(self._seq_list_file)!r} are not in the inner dataset {self.dataset.name!r}, first:"
                f" {self._parts.select(missing[:3])}; it has {len(table)}, e.g. {table.select(range(min(3, len(table))))}."
                f" Tags of a line are separated by {self.seq_tag_delim!r} (seq_tag_delim)."
            )
        self._part_to_corpus = idxs.astype(np.int64)

    def check_corpus(self) -> None:
        """See :func:`Dataset.check_corpus`. Also whether the inner dataset has all sequences."""
        super().check_corpus()
        self._look_up_parts()

    # ---- order

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | np.ndarray | None = None,
    ) -> bool:
        """
        :param epoch: from 1
        :param seq_list: lines, instead of the ordering
        :param seq_order: line numbers from 0, instead of the ordering
        """
        self._order = None
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self._look_up_parts()
        order: Any  # range, list or array
        if seq_order is not None:
            order = seq_order
        elif seq_list is not None:
            order = self._lines.lookup(list(seq_list), dataset_name=self.name)
        else:
            order = self.get_seq_order_for_epoch(
                epoch, len(self._lines), self._lens_for_order_of_epoch(self._line_lens)
            )
            if self.epoch_wise_filter is not None:
                order = self.epoch_wise_filter.filter(epoch, order, self._line_lens)
        order = np.array(order, dtype=np.int64)
        if len(order) and not 0 <= int(order.min()) <= int(order.max()) < len(self._lines):
            raise DatasetError(
                self._describe(
                    "seq_order has an index outside of the list",
                    expected=f"0 <= index < {len(self._lines)}",
                    got=[int(order.min()), int(order.max())],
                )
            )
        counts = np.diff(self._line_starts)[order]
        self._first_parts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        parts = self._parts_of(order)
        if self._part_to_corpus is not None:
            self.dataset.init_seq_order(epoch=self.epoch, seq_order=self._part_to_corpus[parts])
        else:
            self.dataset.init_seq_order(epoch=self.epoch, seq_list=self._parts.select(parts))
        self._order = order
        self._num_seqs = len(order)
        return True

    def _parts_of(self, lines: np.ndarray) -> np.ndarray:
        """:return: indices in ``_parts`` of these lines, one line after the other"""
        return _ranges(self._line_starts[lines], np.diff(self._line_starts)[lines])

    def _require_order(self) -> np.ndarray:
        if self._order is None:
            raise DatasetError(self._describe("the order of the epoch is not known", todo="Call init_seq_order first"))
        return self._order

    def finish_epoch(self, *, free_resources: bool = False) -> None:
        """See :func:`Dataset.finish_epoch`."""
        super().finish_epoch(free_resources=free_resources)
        self._order = None
        self.dataset.finish_epoch(free_resources=free_resources)

    def get_current_seq_order(self) -> np.ndarray:
        """:return: int64 [num_seqs] line numbers"""
        return self._require_order()

    def have_corpus_seq_idx(self) -> bool:
        """:return: True. It is the line number"""
        return True

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """:return: line number from 0"""
        return int(self._require_order()[sorted_seq_idx])

    def known_corpus_lens(self) -> Mapping[str, np.ndarray]:
        """See :func:`Dataset.known_corpus_lens`."""
        return {"lines": self._line_lens}

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """:return: number of lines"""
        return len(self._lines)

    @property
    def tag_table(self) -> TagTable:
        """:return: the lines"""
        return self._lines

    def get_all_tags(self) -> list[str]:
        """:return: the lines"""
        return self._lines.to_list()

    def get_tag(self, sorted_seq_idx: int) -> str:
        """:return: the line"""
        return self._lines[int(self._require_order()[sorted_seq_idx])]

    def supports_seq_order_sorting(self) -> bool:
        """:return: True, by seq_len_file"""
        return True

    def get_estimated_seq_length(self, seq_idx: int) -> int:
        """:return: sum of the lengths in seq_len_file"""
        return int(self._line_lens[self._require_order()[seq_idx]])

    def get_estimated_seq_lengths(self) -> np.ndarray:
        """:return: [num_seqs] sums of the lengths in seq_len_file"""
        return self._line_lens[self._require_order()]

    # ---- data

    def _check_streams(self) -> None:
        if self._streams_are_checked:
            return
        known = self.get_data_keys()
        options = self._part_options
        for name, streams in (
            ("remove_in_between_postfix", list(options.postfix)),
            ("repeat_in_between_last_frame_up_to_multiple_of", list(options.multiple)),
            (
                "pad_narrow_data_to_multiple_of_target_len",
                [*options.target_multiple, *(target for target, _ in options.target_multiple.values())],
            ),
        ):
            unknown = sorted(set(streams) - set(known))
            if unknown:
                raise ConfigError(
                    describe(
                        f'option "{name}" has unknown streams',
                        where=self._where(),
                        expected=f"streams of the inner dataset: {known}",
                        got=unknown,
                    )
                )
        self._streams_are_checked = True

    def _parts_at(self, seq_idxs: np.ndarray) -> tuple[Parts, np.ndarray, np.ndarray]:
        """
        :param seq_idxs: int64 [B]
        :return: their parts; positions of the parts in the epoch of the inner dataset; int64 [B] number of parts
        """
        counts = self._first_parts[seq_idxs + 1] - self._first_parts[seq_idxs]
        is_last = np.zeros(int(counts.sum()), dtype=bool)
        is_last[np.cumsum(counts) - 1] = True
        idxs = self._parts_of(self._require_order()[seq_idxs])
        parts = Parts(is_last, lambda i: self._parts[int(idxs[i])], self._where())
        return parts, _ranges(self._first_parts[seq_idxs], counts), counts

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        order = self._require_order()
        if seq_idx >= len(order):
            return None
        self._check_streams()
        parts, positions, _ = self._parts_at(np.array([seq_idx]))
        start, end = int(positions[0]), int(positions[-1]) + 1
        self.dataset.load_seqs(start, end)
        for i in range(start, end):
            self._check_tag(i, parts.tag_of(i - start), self.dataset.get_tag(i))
        data: dict[str, list[np.ndarray]] = {
            stream: [self.dataset.get_data(i, stream) for i in range(start, end)] for stream in self.get_data_keys()
        }
        for stream, arrays in data.items():
            if not arrays[0].ndim:
                raise self._no_time_axis(stream)
        lens = {stream: np.array([len(a) for a in arrays], dtype=np.int64) for stream, arrays in data.items()}
        features = {
            stream: parts.take_frames(stream, np.concatenate(arrays), lens, self._part_options)[0]
            for stream, arrays in data.items()
        }
        return DatasetSeq(seq_idx=seq_idx, features=features, seq_tag=self.get_tag(seq_idx))

    def _no_time_axis(self, stream: str) -> DatasetError:
        return DatasetError(f"{self._where()}: stream {stream!r} has no time axis, so it cannot be concatenated.")

    def _check_tag(self, position: int, expected: str, got: str) -> None:
        if got != expected:
            raise DatasetError(
                self._describe(
                    f"the inner dataset {self.dataset.name!r} gives another sequence than asked for at position {position}",
                    expected=f"tag {expected!r}",
                    got=got,
                    todo="Its init_seq_order must follow seq_list",
                )
            )

    def _load_seqs(self, start: int, end: int) -> None:
        super()._load_seqs(start, min(end, max(start, len(self._require_order()))))

    def supports_jump(self) -> bool:
        """See :func:`Dataset.supports_jump`. If the inner dataset does."""
        return reads_as_its_class(self) and self.dataset.supports_jump()

    def supports_bulk(self) -> bool:
        """:return: whether the inner dataset does"""
        return super().supports_bulk() and self.dataset.supports_bulk()

    def get_epoch_seq_lens(self, key: str) -> np.ndarray | None:
        """
        :param key: data key
        :return: int64 [num_seqs]; None if the inner dataset does not know them
        """
        order = self._require_order()
        self._check_streams()
        found = {key: self.dataset.get_epoch_seq_lens(key)}
        target = self._part_options.target_multiple.get(key)
        if target is not None:
            found[target[0]] = self.dataset.get_epoch_seq_lens(target[0])
        lens = {stream: np.asarray(a, dtype=np.int64) for stream, a in found.items() if a is not None}
        if len(lens) < len(found):
            return None
        if not len(order):
            return np.zeros(0, np.int64)
        parts, _, _ = self._parts_at(np.arange(len(order)))
        return np.add.reduceat(parts.new_lens(key, lens, self._part_options), self._first_parts[:-1])

    def read_seqs(self, seq_idxs: np.ndarray, keys: Sequence[str]) -> dict[str, Ragged] | None:
        """
        :param seq_idxs: [B], positions in the epoch
        :param keys: data keys
        :return: key -> data; None if the inner dataset does not support it
        """
        self._require_order()
        self._check_streams()
        targets = [target for target, _ in self._part_options.target_multiple.values()]
        needed = list(dict.fromkeys([*keys, *targets]))
        seq_idxs = np.asarray(seq_idxs, dtype=np.int64)
        if not len(seq_idxs):
            data = self.dataset.read_seqs(seq_idxs, keys)
            return None if data is None else {key: data[key] for key in keys}
        parts, positions, counts = self._parts_at(seq_idxs)
        data = self.dataset.read_seqs(positions, needed)
        if data is None:
            return None
        if self._part_to_corpus is None:
            # Its sequences were not verified at the start.
            for i, tag in enumerate(self.dataset.get_seq_tags(positions)):
                self._check_tag(int(positions[i]), parts.tag_of(i), tag)
        lens = {}
        for stream, ragged in data.items():
            if ragged.lens is None:
                raise self._no_time_axis(stream)
            lens[stream] = ragged.lens
        result = {}
        for key in keys:
            flat, part_lens = parts.take_frames(key, data[key].flat, lens, self._part_options)
            result[key] = Ragged(flat, np.add.reduceat(part_lens, np.cumsum(counts) - counts))
        return result

    def get_seq_tags(self, seq_idxs: np.ndarray | Sequence[int]) -> list[str]:
        """
        :param seq_idxs: [B], positions in the epoch
        :return: the lines
        """
        return self._lines.select(self._require_order()[np.asarray(seq_idxs, dtype=np.int64)])


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """:return: start, start + 1, ..., count numbers; for all, one after the other"""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))
