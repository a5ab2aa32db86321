"""Union of datasets with different sequences: which sequence of the epoch comes from which child."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from returnn.datasets._basic.jump import reads_as_its_class
from returnn.datasets._hdf.tag_table import TagTable
from returnn.datasets._meta.children import corpus_idxs_of_epoch
from returnn.datasets._meta.union_streams import UnionStreams
from returnn.datasets.basic import Dataset, DatasetSeq
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.ragged import Ragged
from returnn.errors import DatasetError, NotSupportedError

__all__ = ["UnionDataset"]


class UnionDataset(UnionStreams, CachedDataset2):
    """
    Base. The corpus is the one of the first child, then that of the second, and so on.

    A subclass calls :func:`_set_children`, and implements :func:`_init_own_order`, where it calls
    :func:`_set_child_of_seq`, or leaves the order open and overrides :func:`_locate`.
    """

    _getnewargs_remap: ClassVar[dict[str, str]] = {"random_seed_offset": "_given_random_seed_offset"}

    def __init__(self, **kwargs: Any) -> None:
        """
        :param kwargs: see Dataset. Any: each has its own type
        """
        super().__init__(**kwargs)
        self._given_random_seed_offset: int | None = kwargs.get("random_seed_offset")
        self._children: list[Dataset] = []
        self._streams: list[dict[str, str]] = []  # per child: own stream -> its stream
        self._sources: dict[str, list[tuple[Dataset, str]]] = {}  # own stream -> children that have it
        self._dtypes: dict[str, np.dtype] = {}
        self._dtype_options: dict[str, str] = {}
        self._has_order = False
        self._order_is_given = False
        self._child_of_seq: np.ndarray | None = None  # [num_seqs]; None: not known before the end of the epoch
        self._pos_of_seq: np.ndarray | None = None  # [num_seqs] position in the epoch of the child
        self._union_tags: TagTable | None = None

    def _set_children(self, children: Sequence[Dataset], streams: Sequence[dict[str, str]]) -> None:
        """
        :param children: constructed
        :param streams: per child: own stream -> its stream
        """
        self._children = list(children)
        self._streams = list(streams)
        for child, names in zip(children, streams, strict=True):
            for stream, sub_stream in names.items():
                self._sources.setdefault(stream, []).append((child, sub_stream))
                if sub_stream in child.labels:
                    self.labels[stream] = child.labels[sub_stream]

    def child_datasets(self) -> Iterable[Dataset]:
        """:return: the children"""
        return self._children

    # ---- order

    def _init_own_order(self) -> None:
        """Start ``self.epoch`` in all children, and :func:`_set_child_of_seq`."""
        raise NotImplementedError

    def _init_order_of_tags(self, seq_list: Sequence[str]) -> None:
        self._init_order_of_corpus(self._require_union_tags().lookup(list(seq_list), dataset_name=self.name))

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | np.ndarray | None = None,
    ) -> bool:
        """
        :param epoch: from 1
        :param seq_list: tags, instead of the ordering
        :param seq_order: indices in the union of the corpora, instead of the ordering
        :return: False if nothing changed
        :raises DatasetError: a list or order is given, but a child does not know its corpus
        """
        given = seq_list is not None or seq_order is not None
        if not given and self._has_order and not self._order_is_given:
            if self.epoch == (epoch or 1) and self.expected_load_seq_start == 0:
                return False
        self._has_order = False
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self._child_of_seq = self._pos_of_seq = None
        if seq_order is not None:
            self._init_order_of_corpus(np.asarray(seq_order, dtype=np.int64))
        elif seq_list is not None:
            self._init_order_of_tags(seq_list)
        else:
            self._init_own_order()
        self._has_order = True
        self._order_is_given = given
        return True

    def _set_child_of_seq(self, child_of_seq: np.ndarray) -> None:
        """
        :param child_of_seq: [num_seqs] which child each sequence is from; each child goes on in its own order
        """
        num = len(child_of_seq)
        self._child_of_seq = np.asarray(child_of_seq, dtype=np.min_scalar_type(len(self._children)))
        pos = np.empty(num, dtype=np.uint32 if num < 2**32 else np.int64)
        for i in range(len(self._children)):
            where = np.flatnonzero(self._child_of_seq == i)
            pos[where] = np.arange(len(where))
        self._pos_of_seq = pos
        self._num_seqs = num

    def _corpus_offsets(self) -> np.ndarray:
        """:return: int64 [num children + 1]"""
        return np.cumsum([0, *(child.get_total_num_seqs() for child in self._children)], dtype=np.int64)

    def _init_order_of_corpus(self, idxs: np.ndarray) -> None:
        try:
            offsets = self._corpus_offsets()
        except NotImplementedError as exc:
            raise self._no_given_order(f"the number of its sequences is not known: {exc}") from exc
        if len(idxs) and not 0 <= int(idxs.min()) <= int(idxs.max()) < offsets[-1]:
            raise DatasetError(
                self._describe(
                    "seq_order has an index outside of the corpus",
                    expected=f"0 <= index < {offsets[-1]}",
                    got=[int(idxs.min()), int(idxs.max())],
                )
            )
        child_of_seq = np.searchsorted(offsets, idxs, side="right") - 1
        for i, child in enumerate(self._children):
            child.init_seq_order(epoch=self.epoch, seq_order=idxs[child_of_seq == i] - offsets[i])
        self._set_child_of_seq(child_of_seq)

    def _require_union_tags(self) -> TagTable:
        if self._union_tags is None:
            try:
                self._union_tags = TagTable.from_tags(chain.from_iterable(c.get_all_tags() for c in self._children))
            except NotImplementedError as exc:
                raise self._no_given_order(f"a child cannot list its tags: {exc}") from exc
        return self._union_tags

    def _no_given_order(self, reason: str) -> DatasetError:
        return DatasetError(
            self._describe(
                f"init_seq_order with seq_list or seq_order is not possible, {reason}",
                todo="Use children which know their corpus, e.g. HDFDataset",
            )
        )

    def get_current_seq_order(self) -> np.ndarray:
        """:return: int64 [num_seqs], indices in the union of the corpora"""
        child_of_seq, _ = self._require_arrays()
        offsets = self._corpus_offsets()
        order = np.empty(len(child_of_seq), dtype=np.int64)
        for i, child in enumerate(self._children):
            where = np.flatnonzero(child_of_seq == i)
            order[where] = corpus_idxs_of_epoch(child, len(where))[: len(where)] + offsets[i]
        return order

    def _require_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """:return: [num_seqs] child, [num_seqs] position in its epoch"""
        if not self._has_order:
            raise DatasetError(self._describe("the order of the epoch is not known", todo="Call init_seq_order first"))
        if self._child_of_seq is None or self._pos_of_seq is None:
            raise NotSupportedError(
                self._describe("the order of the epoch is not known before its end, as the children do not know theirs")
            )
        return self._child_of_seq, self._pos_of_seq

    def have_corpus_seq_idx(self) -> bool:
        """:return: whether all children have it, and know their number of sequences"""
        try:
            self._corpus_offsets()
        except NotImplementedError:
            return False
        return all(child.have_corpus_seq_idx() for child in self._children)

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """:return: index in the union of the corpora"""
        loc = self._locate(sorted_seq_idx)
        if loc is None:
            raise DatasetError(f"{self!r}: sequence {sorted_seq_idx} does not exist.")
        child, pos = loc
        return int(self._corpus_offsets()[child]) + self._children[child].get_corpus_seq_idx(pos)

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """:return: sum over the children"""
        return int(self._corpus_offsets()[-1])

    def get_all_tags(self) -> list[str]:
        """:return: those of the first child, then those of the second, and so on"""
        return [tag for child in self._children for tag in child.get_all_tags()]

    @property
    def estimated_num_seqs(self) -> int | None:
        """:return: num_seqs if known, else the option, else the sum over the children"""
        own = super().estimated_num_seqs
        if own is not None:
            return own
        nums = [child.estimated_num_seqs for child in self._children]
        return None if any(num is None or num == float("inf") for num in nums) else sum(num or 0 for num in nums)

    def check_corpus(self) -> None:
        """See :func:`Dataset.check_corpus`. Of all children."""
        for child in self._children:
            child.check_corpus()

    def finish_epoch(self, *, free_resources: bool = False) -> None:
        """
        :param free_resources: also close files of the children
        """
        super().finish_epoch(free_resources=free_resources)
        self._has_order = False
        for child in self._children:
            child.finish_epoch(free_resources=free_resources)

    def supports_seq_order_sorting(self) -> bool:
        """:return: whether all children know lengths without loading data"""
        return all(child.supports_seq_order_sorting() for child in self._children)

    # ---- data one by one

    def _locate(self, seq_idx: int) -> tuple[int, int] | None:
        """:return: child, position in its epoch; None behind the end"""
        child_of_seq, pos_of_seq = self._require_arrays()
        return (int(child_of_seq[seq_idx]), int(pos_of_seq[seq_idx])) if seq_idx < len(child_of_seq) else None

    def _load_seqs(self, start: int, end: int) -> None:
        if not self._has_order:
            raise DatasetError(self._describe("the order of the epoch is not known", todo="Call init_seq_order first"))
        if self._num_seqs is not None:
            end = min(end, max(start, self._num_seqs))
        super()._load_seqs(start, end)

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        loc = self._locate(seq_idx)
        if loc is None:
            return None
        idx, pos = loc
        child, streams = self._children[idx], self._streams[idx]
        child.load_seqs(pos, pos + 1)
        features = {}
        for stream in self.get_data_keys():
            if stream in streams:
                features[stream] = self._cast(stream, child.get_data(pos, streams[stream]), child)
            else:
                features[stream] = self._empty(stream)
        return DatasetSeq(seq_idx=seq_idx, features=features, seq_tag=child.get_tag(pos))

    def get_tag(self, sorted_seq_idx: int) -> str:
        """:return: tag of the child"""
        seq = self._get_seq(sorted_seq_idx)
        if seq is not None:
            return seq.seq_tag
        loc = self._locate(sorted_seq_idx) if self._child_of_seq is not None else None
        return super().get_tag(sorted_seq_idx) if loc is None else self._children[loc[0]].get_tag(loc[1])

    def get_estimated_seq_length(self, seq_idx: int) -> int:
        """:return: as the child says"""
        loc = self._locate(seq_idx)
        if loc is None:
            raise DatasetError(f"{self!r}: sequence {seq_idx} does not exist.")
        return self._children[loc[0]].get_estimated_seq_length(loc[1])

    def get_estimated_seq_lengths(self) -> np.ndarray:
        """:return: [num_seqs], as the children say"""
        child_of_seq, _ = self._require_arrays()
        parts = []
        for i, child in enumerate(self._children):
            num = int(np.count_nonzero(child_of_seq == i))
            parts.append(child.get_estimated_seq_lengths()[:num] if num else np.zeros(0, np.int64))
        result = np.empty(len(child_of_seq), dtype=np.result_type(*parts))
        for i, part in enumerate(parts):
            result[child_of_seq == i] = part
        return result

    def supports_jump(self) -> bool:
        """
        See :func:`Dataset.supports_jump`. If all children do. Not if they do not know their number of sequences: then
        which child is next depends on what was read of them.
        """
        if self._child_of_seq is None or not reads_as_its_class(self):
            return False
        return all(child.supports_jump() for child in self._children)

    # ---- data in bulk

    def supports_bulk(self) -> bool:
        """:return: whether all children do, and the order is known in advance"""
        if self._has_order and self._child_of_seq is None:
            return False
        return super().supports_bulk() and all(child.supports_bulk() for child in self._children)

    def get_epoch_seq_lens(self, key: str) -> np.ndarray | None:
        """
        :param key: own stream
        :return: int64 [num_seqs], 0 where it is missing; None if a child does not know it
        """
        if key not in self._sources:
            return None
        child_of_seq, _ = self._require_arrays()
        lens = np.zeros(len(child_of_seq), dtype=np.int64)
        for i, (child, streams) in enumerate(zip(self._children, self._streams, strict=True)):
            if key not in streams:
                continue
            where = np.flatnonzero(child_of_seq == i)
            if len(where):
                child_lens = child.get_epoch_seq_lens(streams[key]) if child.supports_bulk() else None
                if child_lens is None:
                    return None
                lens[where] = child_lens[: len(where)]
        return lens

    def read_seqs(self, seq_idxs: np.ndarray, keys: Sequence[str]) -> dict[str, Ragged] | None:
        """
        :param seq_idxs: int64 [B], positions in the epoch
        :param keys: own streams
        :return: stream -> data; None if a child does not support it
        """
        for key in keys:
            self._require_stream(key)
        child_of_seq, pos_of_seq = self._require_arrays()
        seq_idxs = np.asarray(seq_idxs, dtype=np.int64)
        children, positions = child_of_seq[seq_idxs], pos_of_seq[seq_idxs].astype(np.int64)
        parts: dict[str, list[Ragged | None]] = {key: [] for key in keys}
        rows: list[np.ndarray] = []
        for i in np.unique(children).tolist():
            child, streams = self._children[i], self._streams[i]
            where = np.flatnonzero(children == i)
            rows.append(where)
            data = child.read_seqs(positions[where], sorted({streams[key] for key in keys if key in streams}))
            if data is None:
                return None
            for key in keys:
                part = data[streams[key]] if key in streams else None
                if part is not None:
                    part = Ragged(self._cast(key, part.flat, child), part.lens)
                parts[key].append(part)
        return {key: self._join(key, parts[key], rows) for key in keys}

    def _join(self, key: str, parts: list[Ragged | None], rows: list[np.ndarray]) -> Ragged:
        """
        :param parts: per child; None where the stream is missing
        :param rows: per child, which sequences of the result they are
        """
        num = sum(len(r) for r in rows)
        present = [(p, r) for p, r in zip(parts, rows, strict=True) if p is not None]
        if len(present) == 1 and present[0][0].lens is not None:
            # The usual case: no other child has frames of this stream, so that the order of frames is right.
            lens = np.zeros(num, dtype=np.int64)
            lens[present[0][1]] = present[0][0].lens
            return Ragged(present[0][0].flat, lens)
        trail: tuple[int, ...] | None = present[0][0].flat.shape[1:] if present else None
        filled = [self._empty_ragged(key, len(r), trail) if p is None else p for p, r in zip(parts, rows, strict=True)]
        if not filled:
            return self._empty_ragged(key, 0, None)
        if len(filled) == 1:
            return filled[0]
        inverse = np.empty(num, dtype=np.int64)
        inverse[np.concatenate(rows)] = np.arange(num)
        return Ragged.concat(filled).select(inverse)

    def get_seq_tags(self, seq_idxs: np.ndarray | Sequence[int]) -> list[str]:
        """
        :param seq_idxs: [B], positions in the epoch
        :return: their tags
        """
        if self._child_of_seq is None:
            return super().get_seq_tags(seq_idxs)
        child_of_seq, pos_of_seq = self._require_arrays()
        idxs = np.asarray(seq_idxs, dtype=np.int64)
        children, positions = child_of_seq[idxs], pos_of_seq[idxs].astype(np.int64)
        tags = [""] * len(idxs)
        for i in np.unique(children).tolist():
            where = np.flatnonzero(children == i)
            for row, tag in zip(where.tolist(), self._children[i].get_seq_tags(positions[where]), strict=True):
                tags[row] = tag
        return tags
