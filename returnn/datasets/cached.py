"""
CachedDataset: base for datasets with random access to a corpus of known size, as HDFDataset.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy

from returnn._state import state
from returnn.datasets.basic import Dataset
from returnn.datasets.seq_order import SeqOrder
from returnn.errors import DatasetError, UnknownDataKeyError, UnknownSeqTagError
from returnn.log import log
from returnn.util.markers import OptionalNotImplementedError
from returnn.util.numbers_dict import NumbersDict

__all__ = ["CachedDataset"]

SeqData = dict[str, numpy.ndarray]


class CachedDataset(Dataset):
    """
    A subclass sets ``_num_seqs`` (of the corpus), ``num_inputs``, ``num_outputs``, ``target_keys``, and overrides
    ``_get_seq_length_by_real_idx``, ``_get_tag_by_real_idx``, and either ``_read_real_seqs``,
    or ``_load_seqs`` and ``get_data``. "Real" index is the corpus index.
    """

    def __init__(self, cache_byte_size: int | None = 0, **kwargs: Any) -> None:
        """
        :param cache_byte_size: keep read sequences in memory up to that many bytes. 0: off. -1: all.
            Never changes results
        :param kwargs: see :class:`Dataset`. Any: each has its own type
        """
        super().__init__(**kwargs)
        self._cache_byte_size = cache_byte_size or 0
        self.cache_byte_size_total_limit = self._cache_byte_size
        self.num_seqs_cached_at_start = 0
        self.start_cache_initialized = False
        self.definite_cache_leftover = 0
        self.target_keys: list[str] = []
        self.targets: dict[str, Any] = {}  # per key whatever the subclass keeps
        self.timestamps: Any = None  # likewise
        self._seq_index: SeqOrder = range(0)
        self._index_map: range = range(0)
        self._order_is_set = False
        self._real_idx_by_tag: dict[str, int] | None = None
        self._seq_lens_for_order: numpy.ndarray | None = None
        self._loaded: dict[int, SeqData] = {}  # by seq idx
        self._cache: OrderedDict[int, SeqData] = OrderedDict()  # by corpus idx, least recently used first
        self._cache_num_bytes = 0

    # ---- hooks

    def _get_seq_length_by_real_idx(self, real_seq_idx: int) -> numpy.ndarray:
        """:return: number of frames of "data" (if there is any), then of each of target_keys"""
        raise NotImplementedError(f"{type(self).__name__}._get_seq_length_by_real_idx")

    def _get_tag_by_real_idx(self, real_seq_idx: int) -> str:
        """:return: tag"""
        raise NotImplementedError(f"{type(self).__name__}._get_tag_by_real_idx")

    def _read_real_seqs(self, real_seq_idxs: Sequence[int]) -> list[SeqData]:
        """
        :param real_seq_idxs: in the order in which they are used
        :return: data by key for each
        """
        raise NotImplementedError(f"{type(self).__name__}._read_real_seqs")

    def _get_seq_lens_for_order(self) -> numpy.ndarray:
        """:return: [corpus size] lengths by which the ordering sorts; computed once. To be overridden by a bulk read"""
        if self._seq_lens_for_order is None:
            num = self.get_total_num_seqs()
            lens = [int(numpy.asarray(self._get_seq_length_by_real_idx(i)).reshape(-1)[0]) for i in range(num)]
            self._seq_lens_for_order = numpy.array(lens, dtype=numpy.int64)
        return self._seq_lens_for_order

    # ---- order

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """See :func:`Dataset.init_seq_order`. Returns False if the order is as before."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        order: SeqOrder
        if seq_order is not None:
            order = numpy.asarray(seq_order, dtype=numpy.int64)
            total = self.get_total_num_seqs()
            if len(order) and not 0 <= int(order.min()) <= int(order.max()) < total:
                raise DatasetError(
                    f"{self!r}: seq_order has indices from {order.min()} to {order.max()}, "
                    f"but the corpus has {total} sequences."
                )
        elif seq_list is not None:
            order = self._order_of_tags(seq_list)
        else:
            needs_lens = self._get_seq_ordering_for_epoch(epoch).needs_seq_lens and not self._seq_order_seq_lens_file
            order = self.get_seq_order_for_epoch(
                epoch, self.get_total_num_seqs(), self._get_seq_lens_for_order() if needs_lens else None
            )
        if self._order_is_set and numpy.array_equal(self._seq_index, order):
            return False
        if self._order_is_set and state.worker_id == 0:
            print(f"Reinitialize dataset seq order for epoch {epoch}.", file=log.v4)
        self._order_is_set = True
        self._seq_index = order
        self._index_map = range(len(order))
        self._loaded.clear()
        return True

    def _order_of_tags(self, seq_list: Sequence[str]) -> numpy.ndarray:
        if self._real_idx_by_tag is None:
            self._real_idx_by_tag = {tag: i for i, tag in enumerate(self.get_all_tags())}
        missing = [tag for tag in seq_list if tag not in self._real_idx_by_tag]
        if missing:
            raise UnknownSeqTagError(
                f"{self!r}: {len(missing)} of {len(seq_list)} tags of seq_list are not in the corpus, e.g. {missing[:3]}; "
                f"the corpus has e.g. {list(self._real_idx_by_tag)[:3]}"
            )
        return numpy.array([self._real_idx_by_tag[tag] for tag in seq_list], dtype=numpy.int64)

    def finish_epoch(self, *, free_resources: bool = False) -> None:
        """See :func:`Dataset.finish_epoch`."""
        super().finish_epoch(free_resources=free_resources)
        self._loaded.clear()
        if free_resources:
            self._cache.clear()
            self._cache_num_bytes = 0

    def supports_seq_order_sorting(self) -> bool:
        """:return: True"""
        return True

    def get_current_seq_order(self) -> Sequence[int] | numpy.ndarray:
        """See :func:`Dataset.get_current_seq_order`."""
        if not self._order_is_set:
            raise OptionalNotImplementedError(f"{self!r}: no order before init_seq_order")
        return self._seq_index

    def have_corpus_seq_idx(self) -> bool:
        """:return: True"""
        return True

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """See :func:`Dataset.get_corpus_seq_idx`."""
        return int(self._seq_index[sorted_seq_idx])

    @property
    def num_seqs(self) -> int:
        """:return: length of the current order"""
        return len(self._seq_index)

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """See :func:`Dataset.get_total_num_seqs`."""
        return self._num_seqs or 0

    def get_tag(self, sorted_seq_idx: int) -> str:
        """See :func:`Dataset.get_tag`."""
        return self._get_tag_by_real_idx(int(self._seq_index[sorted_seq_idx]))

    def get_all_tags(self) -> list[str]:
        """See :func:`Dataset.get_all_tags`."""
        return [self._get_tag_by_real_idx(i) for i in range(self.get_total_num_seqs())]

    # ---- lengths and data

    def get_seq_length(self, sorted_seq_idx: int) -> NumbersDict:
        """See :func:`Dataset.get_seq_length`. Loads nothing."""
        lens = numpy.asarray(self._get_seq_length_by_real_idx(int(self._seq_index[sorted_seq_idx]))).reshape(-1)
        keys = (["data"] if self.num_inputs else []) + list(self.target_keys)
        return NumbersDict({key: int(num) for key, num in zip(keys, lens, strict=False)})

    def get_estimated_seq_length(self, seq_idx: int) -> int:
        """See :func:`Dataset.get_estimated_seq_length`."""
        return int(self._get_seq_lens_for_order()[int(self._seq_index[seq_idx])])

    def get_estimated_seq_lengths(self) -> numpy.ndarray:
        """See :func:`Dataset.get_estimated_seq_lengths`."""
        return self._get_seq_lens_for_order()[numpy.asarray(self._seq_index, dtype=numpy.int64)]

    def get_target_list(self) -> list[str]:
        """:return: target_keys"""
        return list(self.target_keys)

    def get_data_dim(self, key: str) -> int:
        """See :func:`Dataset.get_data_dim`."""
        if key == "data" and self.num_inputs:
            return self.num_inputs
        return super().get_data_dim(key)

    def is_cached(self, start: int, end: int, blocking: bool = False) -> bool:
        """
        :param start: seq idx
        :param end: exclusive
        :param blocking: unused, for compatibility: reading is done when asked for
        """
        return start == end or all(i in self._loaded for i in range(start, min(end, self.num_seqs)))

    def _load_seqs(self, start: int, end: int) -> None:
        for i in [i for i in self._loaded if i < start]:
            del self._loaded[i]
        missing = [i for i in range(start, min(end, self.num_seqs)) if i not in self._loaded]
        to_read = []
        for i in missing:
            real_idx = int(self._seq_index[i])
            if real_idx in self._cache:
                self._cache.move_to_end(real_idx)
                self._loaded[i] = self._cache[real_idx]
            else:
                to_read.append(i)
        if not to_read:
            return
        for i, data in zip(to_read, self._read_real_seqs([int(self._seq_index[i]) for i in to_read]), strict=True):
            self._loaded[i] = data
            self._add_to_cache(int(self._seq_index[i]), data)

    def _add_to_cache(self, real_idx: int, data: SeqData) -> None:
        limit = self._cache_byte_size
        num_bytes = sum(v.nbytes for v in data.values())
        if limit == 0 or (limit > 0 and num_bytes > limit) or real_idx in self._cache:
            return
        self._cache[real_idx] = data
        self._cache_num_bytes += num_bytes
        while 0 < limit < self._cache_num_bytes:
            _, dropped = self._cache.popitem(last=False)
            self._cache_num_bytes -= sum(v.nbytes for v in dropped.values())

    def get_data(self, seq_idx: int, key: str) -> numpy.ndarray:
        """See :func:`Dataset.get_data`."""
        data = self._loaded.get(seq_idx)
        if data is None:
            loaded = f"{min(self._loaded)}..{max(self._loaded)}" if self._loaded else "none"
            raise DatasetError(
                f"{self!r}: sequence {seq_idx} is not loaded (loaded: {loaded}). "
                f"Call load_seqs({seq_idx}, {seq_idx + 1}) before."
            )
        if key not in data:
            raise UnknownDataKeyError(f"{self!r}: no data key {key!r}, only {sorted(data)}")
        return data[key]

    def get_input_data(self, sorted_seq_idx: int) -> numpy.ndarray:
        """See :func:`Dataset.get_input_data`."""
        return self.get_data(sorted_seq_idx, "data")

    def get_targets(self, target: str, sorted_seq_idx: int) -> numpy.ndarray:
        """See :func:`Dataset.get_targets`."""
        return self.get_data(sorted_seq_idx, target)
