"""
Map-style datasets: the user gives random access by corpus index, the wrapper makes a Dataset of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy

from returnn.datasets._basic.jump import reads_as_its_class
from returnn.datasets._basic.predefined_order import idxs_of_tags, predefined_order
from returnn.datasets.basic import DatasetSeq
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.seq_order import SeqOrder, order_to_array, seq_lens_to_array
from returnn.errors import DatasetError
from returnn.util.markers import OptionalNotImplementedError

__all__ = ["MapDatasetBase", "MapDatasetWrapper", "FromListDataset"]

# Any: dim, sparse, dtype, shape have different types.
DataTypes = dict[str, dict[str, Any]]


class MapDatasetBase:
    """To be subclassed: override ``__len__`` and ``__getitem__``, and others if known."""

    def __init__(self, data_types: DataTypes | None = None) -> None:
        """
        :param data_types: data key -> dict(dim=, sparse=, dtype=, shape=)
        """
        self.data_types: DataTypes = data_types or {}

    def __len__(self) -> int:
        """:return: number of sequences of the corpus"""
        raise NotImplementedError(f"{type(self).__name__}.__len__")

    def __getitem__(self, seq_idx: int) -> dict[str, numpy.ndarray]:
        """
        :param seq_idx: corpus index
        :return: data key -> array
        """
        raise NotImplementedError(f"{type(self).__name__}.__getitem__")

    def get_seq_len(self, seq_idx: int) -> int:
        """
        :param seq_idx: corpus index
        :return: length by which orderings sort
        """
        raise OptionalNotImplementedError(f"{type(self).__name__}.get_seq_len")

    def get_seq_tag(self, seq_idx: int) -> str:
        """
        :param seq_idx: corpus index
        :return: tag
        """
        return f"seq-{int(seq_idx)}"

    def get_seq_order(self, epoch: int | None = None) -> list[int]:
        """
        :param epoch: from 1
        :return: corpus indices; replaces seq_ordering, partition_epoch and filter. May drop or repeat sequences
        """
        raise OptionalNotImplementedError(f"{type(self).__name__}.get_seq_order")

    def supports_jump(self) -> bool:
        """
        To be overridden: True lets a training that was stopped within an epoch go on without reading again what came
        before in the epoch.

        :return: whether the data of a sequence depends on its index only (and on the generators of the process, as
            ``numpy.random``), not on what was asked for before, e.g. by a random generator of the object
        """
        return False


class MapDatasetWrapper(CachedDataset2):
    """A Dataset around a map-style dataset."""

    _getnewargs_remap: ClassVar[Mapping[str, str]] = {"map_dataset": "map_dataset"}

    def __init__(self, map_dataset: MapDatasetBase | Callable[..., MapDatasetBase], **kwargs: Any) -> None:
        """
        :param map_dataset: or its class, or a function that gives it. It gets those of the other options as keywords
            that it takes by name
        :param kwargs: see :class:`Dataset`. Any: each has its own type
        """
        super().__init__(**kwargs)
        if not isinstance(map_dataset, MapDatasetBase) and callable(map_dataset):
            map_dataset = map_dataset(**_kwargs_taken_by(map_dataset, kwargs))
        if not isinstance(map_dataset, MapDatasetBase):
            raise DatasetError(
                self._describe(
                    'option "map_dataset" is invalid',
                    expected="a MapDatasetBase, or a class or function that gives one",
                    got=map_dataset,
                )
            )
        self._dataset = map_dataset
        if self._dataset.data_types:
            self.num_outputs = {key: self._dim_and_ndim(key) for key in self._dataset.data_types}
            self.num_inputs = self.num_outputs["data"][0] if "data" in self.num_outputs else 0
        self._seq_order: SeqOrder | None = None
        self._corpus_seq_lens: numpy.ndarray | None = None
        self._real_idx_by_tag: dict[str, int] | None = None

    @property
    def map_dataset(self) -> MapDatasetBase:
        """:return: the wrapped one"""
        return self._dataset

    def _opts(self, key: str) -> dict[str, Any]:
        """:return: entry of data_types. Any: see DataTypes"""
        return self._dataset.data_types.get(key, {})

    def _dim_and_ndim(self, key: str) -> tuple[int, int]:
        opts = self._opts(key)
        shape = opts.get("shape")
        sparse = opts.get("sparse", False)
        ndim = len(shape) if shape is not None else (1 if sparse else 2)
        dim = opts.get("dim")
        if dim is None and shape:
            dim = shape[-1]
        return dim or 0, ndim

    # ---- order

    def _get_lens(self) -> numpy.ndarray | None:
        """:return: [corpus size] lengths, asked for once; None if not known"""
        if self._corpus_seq_lens is None:
            num_seqs = len(self._dataset)
            try:
                lens = [self._dataset.get_seq_len(i) for i in range(num_seqs)]
            except OptionalNotImplementedError:
                return None
            self._corpus_seq_lens = seq_lens_to_array(lens, num_seqs)
        return self._corpus_seq_lens

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """See :func:`Dataset.init_seq_order`."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        order = predefined_order(seq_list, seq_order, order_of_tags=self._order_of_tags)
        self._seq_order = self._order_of_epoch(epoch) if order is None else order
        self._num_seqs = len(self._seq_order)
        return True

    def _order_of_epoch(self, epoch: int | None) -> SeqOrder:
        try:
            return self._dataset.get_seq_order(epoch=epoch)
        except OptionalNotImplementedError:
            pass
        needs_lens = self._get_seq_ordering_for_epoch(epoch).needs_seq_lens and not self._seq_order_seq_lens_file
        return self.get_seq_order_for_epoch(epoch, len(self._dataset), self._get_lens() if needs_lens else None)

    def _order_of_tags(self, seq_list: Sequence[str]) -> numpy.ndarray:
        if self._real_idx_by_tag is None:
            self._real_idx_by_tag = {tag: i for i, tag in enumerate(self.get_all_tags())}
        return idxs_of_tags(seq_list, self._real_idx_by_tag, where=repr(self))

    def supports_seq_order_sorting(self) -> bool:
        """:return: whether lengths are known"""
        if not len(self._dataset):
            return False
        try:
            self._dataset.get_seq_len(0)
        except OptionalNotImplementedError:
            return False
        return True

    def _order(self) -> SeqOrder:
        if self._seq_order is None:
            raise NotImplementedError("num_seqs is only known after calling init_seq_order().")
        return self._seq_order

    @property
    def num_seqs(self) -> int:
        """:return: see :func:`Dataset.num_seqs`"""
        if self._seq_order is None:
            raise NotImplementedError("'num_seqs' is only known after calling init_seq_order().")
        return len(self._seq_order)

    def known_corpus_lens(self) -> Mapping[str, numpy.ndarray]:
        """See :func:`Dataset.known_corpus_lens`."""
        return {} if self._corpus_seq_lens is None else {"data": self._corpus_seq_lens}

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """See :func:`Dataset.get_total_num_seqs`."""
        return len(self._dataset)

    def get_all_tags(self) -> list[str]:
        """See :func:`Dataset.get_all_tags`. Loads no data."""
        return [self._dataset.get_seq_tag(i) for i in range(len(self._dataset))]

    def get_tag(self, sorted_seq_idx: int) -> str:
        """See :func:`Dataset.get_tag`. Loads no data."""
        return self._dataset.get_seq_tag(self.get_corpus_seq_idx(sorted_seq_idx))

    def have_corpus_seq_idx(self) -> bool:
        """:return: True"""
        return True

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """See :func:`Dataset.get_corpus_seq_idx`."""
        return int(self._order()[sorted_seq_idx])

    def get_current_seq_order(self) -> Sequence[int] | numpy.ndarray:
        """See :func:`Dataset.get_current_seq_order`."""
        return self._order()

    def have_get_corpus_seq(self) -> bool:
        """:return: True"""
        return True

    def get_corpus_seq(self, corpus_seq_idx: int) -> DatasetSeq:
        """See :func:`Dataset.get_corpus_seq`."""
        return DatasetSeq(
            seq_idx=corpus_seq_idx,
            features=self._dataset[corpus_seq_idx],
            seq_tag=self._dataset.get_seq_tag(corpus_seq_idx),
        )

    def get_estimated_seq_length(self, seq_idx: int) -> int:
        """See :func:`Dataset.get_estimated_seq_length`."""
        return self._dataset.get_seq_len(self.get_corpus_seq_idx(seq_idx))

    def get_estimated_seq_lengths(self) -> numpy.ndarray:
        """See :func:`Dataset.get_estimated_seq_lengths`. Asks for the lengths of the corpus once."""
        lens = self._get_lens()
        return super().get_estimated_seq_lengths() if lens is None else lens[order_to_array(self._order())]

    # ---- data

    def _load_seqs(self, start: int, end: int) -> None:
        super()._load_seqs(start, min(end, max(start, self.num_seqs)))

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        if seq_idx >= self.num_seqs:
            return None
        seq = self.get_corpus_seq(self.get_corpus_seq_idx(seq_idx))
        seq.seq_idx = seq_idx
        return seq

    def supports_jump(self) -> bool:
        """See :func:`Dataset.supports_jump`. If the map-style dataset says so."""
        return reads_as_its_class(self) and self._dataset.supports_jump()

    def _first_seq(self) -> DatasetSeq | None:
        return None if self._seq_order is None else super()._first_seq()

    def get_data_keys(self) -> list[str]:
        """:return: those of data_types; if that is empty, sorted keys of the first sequence"""
        return list(self._dataset.data_types) or super().get_data_keys()

    def get_data_dim(self, key: str) -> int:
        """:return: "dim" of data_types; 1 if unknown"""
        opts = self._opts(key)
        dim = opts.get("dim")
        if dim is None:
            dim = (opts.get("shape") or (1,))[-1] if not opts.get("sparse", False) else 1
        return dim if dim is not None else 1

    def get_data_dtype(self, key: str) -> str:
        """:return: "dtype" of data_types, else int32 if sparse, else float32"""
        return self._opts(key).get("dtype") or ("int32" if self.is_data_sparse(key) else "float32")

    def is_data_sparse(self, key: str) -> bool:
        """:return: "sparse" of data_types"""
        return bool(self._opts(key).get("sparse", False))

    def get_data_shape(self, key: str) -> list[int | None]:
        """See :func:`Dataset.get_data_shape`."""
        shape = self._opts(key).get("shape")
        if shape is not None:
            if not len(shape):
                return []
            if shape[0] is not None:
                raise DatasetError(
                    f"{self!r}: data_types[{key!r}]['shape'] must begin with None, the time axis, got {shape!r}."
                )
            return list(shape[1:])
        return [] if self.is_data_sparse(key) else [self.get_data_dim(key)]


def _kwargs_taken_by(func: Callable[..., MapDatasetBase], kwargs: dict[str, Any]) -> dict[str, Any]:
    """:return: those of kwargs that the function takes by name, all of them with ``**kwargs``. Any: own types"""
    try:
        params = inspect.signature(func).parameters.values()
    except (TypeError, ValueError):  # some builtins
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in params):
        return dict(kwargs)
    names = {p.name for p in params if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {key: value for key, value in kwargs.items() if key in names}


class FromListDataset(MapDatasetBase):
    """A list of dicts as map-style dataset."""

    def __init__(
        self, data_list: list[dict[str, numpy.ndarray]], sort_data_key: str | None = None, **kwargs: Any
    ) -> None:
        """
        :param data_list: data key -> array for each sequence
        :param sort_data_key: its number of frames is the length by which orderings sort
        :param kwargs: see :class:`MapDatasetBase`. Any: its options
        """
        super().__init__(**kwargs)
        self._data_list = data_list
        self._sort_data_key = sort_data_key

    def __len__(self) -> int:
        return len(self._data_list)

    def __getitem__(self, seq_idx: int) -> dict[str, numpy.ndarray]:
        return self._data_list[seq_idx]

    def supports_jump(self) -> bool:
        """:return: True, except for classes derived from this one"""
        return type(self) is FromListDataset

    def get_seq_len(self, seq_idx: int) -> int:
        """See :func:`MapDatasetBase.get_seq_len`."""
        if not self._sort_data_key:
            raise DatasetError(
                "Specify which data key should be used for sequence sorting via 'sort_data_key'. (FromListDataset)"
            )
        return len(self._data_list[seq_idx][self._sort_data_key])
