"""
Dataset, the base of all datasets: life cycle, sequence order, data per sequence. And DatasetSeq, one sequence.
"""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy

from returnn.datasets import seq_order as _seq_order
from returnn.datasets._basic.children import ChildrenMixin
from returnn.datasets._basic.data_dims import convert_data_dims
from returnn.datasets._basic.data_info import DataInfoMixin
from returnn.datasets._basic.ordering import SeqOrderMixin
from returnn.datasets._basic.pickling import collect_new_kwargs, create_from_reduce
from returnn.datasets.ragged import Ragged
from returnn.datasets.registry import (
    extend_dataset_dict_from_parent_dataset,
    get_dataset_class,
    init_dataset,
    init_dataset_via_str,
)
from returnn.datasets.seq_lists import load_seq_list_file
from returnn.datasets.seq_order import SeqLens
from returnn.datasets.util.vocabulary import Vocabulary
from returnn.errors import DatasetError, NotSupportedError
from returnn.options.datasets import RANDOM_SEED_OFFSET_ENV_VAR
from returnn.tensor.tensor_dict import TensorDict
from returnn.util.containers import try_run
from returnn.util.markers import OptionalNotImplementedError
from returnn.util.numbers_dict import NumbersDict

__all__ = [
    "Dataset",
    "DatasetSeq",
    "init_dataset",
    "init_dataset_via_str",
    "get_dataset_class",
    "convert_data_dims",
    "extend_dataset_dict_from_parent_dataset",
    "RANDOM_SEED_OFFSET_ENV_VAR",
    "TensorDict",
    "Vocabulary",
    "NumbersDict",
    "OptionalNotImplementedError",
    "try_run",
]

# Options of the peers for batching inside of a dataset: accepted if neutral. Name -> what replaces it.
_LEGACY_OPTIONS = {
    "window": "stack the frames in the model",
    "context_window": "stack the frames in the model",
    "chunking": "use the config option 'chunking' of the data pipeline",
    "shuffle_frames_of_nseqs": "shuffle sequences by seq_ordering",
    "min_chunk_size": "use the config option 'min_chunk_size' of the data pipeline",
    "chunking_variance": "remove it, chunks have fixed sizes",
}
# A class that overrides one of these in front of the one that implements the bulk protocol changes what the bulk
# protocol would deliver.
_PER_SEQ_HOOKS = (
    "get_data get_input_data get_targets _collect_single_seq load_seqs _load_seqs get_tag get_seq_length"
    " num_seqs is_less_than_num_seqs generate_seq get_corpus_seq __getitem__"
).split()


class Dataset(SeqOrderMixin, DataInfoMixin, ChildrenMixin):
    """
    Base of all datasets. Sequences are counted from 0 in the order of the current epoch ("seq idx");
    their position in the unshuffled corpus is the "corpus idx".

    Life cycle: construct, ``init_seq_order(epoch=...)``, then for i = 0, 1, ..: ``is_less_than_num_seqs(i)``,
    ``load_seqs(i, i + 1)``, ``get_data(i, key)``, ``get_tag(i)``; next epoch.

    A subclass stores each constructor argument ``arg`` as ``self.arg`` or ``self._arg``: copies in other processes
    are constructed from these.
    """

    _getnewargs_exclude_attrs: ClassVar[Iterable[str]] = set()
    _getnewargs_remap: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        name: str | None = None,
        seq_ordering: str | Callable[..., str] = "default",
        fixed_random_seed: int | None = None,
        random_seed_offset: int | None = None,
        partition_epoch: int | None = None,
        repeat_epoch: int | None = None,
        seq_list_filter_file: str | None = None,
        unique_seq_tags: bool = False,
        seq_order_seq_lens_file: str | None = None,
        estimated_num_seqs: int | None = None,
        *,
        window: int | None = 1,
        context_window: object = None,
        chunking: object = None,
        shuffle_frames_of_nseqs: int | None = 0,
        min_chunk_size: int | None = 0,
        chunking_variance: float | None = 0,
        _num_shards: int = 1,
        _shard_index: int = 0,
    ) -> None:
        """
        :param name: for messages
        :param seq_ordering: e.g. "default", "random", "laplace:.1000"; or a function ``f(epoch=..., **_) -> str``
        :param fixed_random_seed: seed of every epoch
        :param random_seed_offset: added to the epoch to get its seed. None: 0, or by rank
        :param partition_epoch: cut the corpus into that many sub-epochs
        :param repeat_epoch: each epoch holds the corpus that many times. Not together with partition_epoch
        :param seq_list_filter_file: only sequences with a tag in this file (text, .gz, .pkl)
        :param unique_seq_tags: of sequences with equal tags, only the first in the order
        :param seq_order_seq_lens_file: lengths for the ordering: dict tag -> length as Python literal or JSON
        :param estimated_num_seqs: for the progress display
        :param window: only neutral values, as all up to chunking_variance
        :param context_window: -
        :param chunking: -
        :param shuffle_frames_of_nseqs: -
        :param min_chunk_size: -
        :param chunking_variance: -
        :param _num_shards: the data is cut into that many disjoint shards (ranks, processes)
        :param _shard_index: which of them this dataset delivers
        :raises DatasetError: for an invalid value
        """
        self.name: str = name or f"dataset_id{id(self)}"
        self.lock = None
        self.rnd_seq_drop: random.Random | None = None
        self.num_inputs: int | None = 0
        # Any: (dim, ndim) as tuple or list, or a dict in some classes.
        self.num_outputs: dict[str, Any] | None = None
        self.labels: dict[str, Sequence[str]] = {}
        self.weights: dict[int, tuple[float, float]] = {}
        self.epoch: int | None = None
        self._num_timesteps: Any = 0  # int, or NumbersDict in subclasses
        self._num_seqs: int | None = 0
        self._estimated_num_seqs = estimated_num_seqs
        self.seq_ordering = seq_ordering
        self.fixed_random_seed = fixed_random_seed
        self._random_seed_offset = random_seed_offset
        self.partition_epoch: int = partition_epoch or 1
        self.repeat_epoch: int = repeat_epoch or 1
        self.unique_seq_tags = unique_seq_tags
        self._seq_list_filter_file = seq_list_filter_file
        self._seq_order_seq_lens_file = seq_order_seq_lens_file
        self._seq_lens_of_file: numpy.ndarray | None = None
        self._warned_empty_parts = False
        self._num_shards = _num_shards
        self._shard_index = _shard_index
        self._check_options(
            window=None if window == 1 else window,
            context_window=context_window,
            chunking=None if chunking == "0" else chunking,
            shuffle_frames_of_nseqs=shuffle_frames_of_nseqs,
            min_chunk_size=min_chunk_size,
            chunking_variance=chunking_variance,
        )
        self.seq_tags_filter: set[str] | None = None
        if seq_list_filter_file:
            self.seq_tags_filter = set(self._load_seq_list_file(seq_list_filter_file))

    def _check_options(self, **legacy: object) -> None:
        """:param legacy: None or falsy where neutral"""
        for key, value in legacy.items():
            if value:
                raise NotSupportedError(
                    f"dataset {self.name!r}: option {key!r} = {value!r} is not supported: datasets do no windowing or "
                    f"chunking. Instead: {_LEGACY_OPTIONS[key]}."
                )
        for key in ("partition_epoch", "repeat_epoch", "_num_shards"):
            value = getattr(self, key)
            if not isinstance(value, (int, numpy.integer)) or value < 1:
                raise DatasetError(self._describe(f'option "{key}" is invalid', expected="int >= 1", got=value))
        for key, value in (
            ("fixed_random_seed", self.fixed_random_seed),
            ("random_seed_offset", self._random_seed_offset),
        ):
            if value is not None and not isinstance(value, (int, numpy.integer)):
                raise DatasetError(self._describe(f'option "{key}" is invalid', expected="int or None", got=value))
        if self.partition_epoch > 1 and self.repeat_epoch > 1:
            raise DatasetError(
                "Combining partition_epoch and repeat_epoch is prohibited. "
                f"(dataset {self.name!r}: partition_epoch {self.partition_epoch}, repeat_epoch {self.repeat_epoch})"
            )
        if not 0 <= self._shard_index < self._num_shards:
            raise DatasetError(
                self._describe(
                    'option "_shard_index" is invalid', expected=f"0 <= int < {self._num_shards}", got=self._shard_index
                )
            )
        if self._uses_custom_seq_ordering(self.seq_ordering):
            return
        if not callable(self.seq_ordering):
            _seq_order.parse_seq_ordering(self.seq_ordering, where=self._where())

    def __repr__(self) -> str:
        name = getattr(self, "name", "<not constructed>")
        return f"<{type(self).__name__} {name!r} epoch={getattr(self, 'epoch', None)}>"

    def __reduce__(self) -> tuple[Any, ...]:
        kwargs = collect_new_kwargs(self, Dataset, skip_of_base=frozenset(_LEGACY_OPTIONS))
        return Dataset._create_from_reduce, (type(self), kwargs, self._reduce_state())

    def _reduce_state(self) -> dict[str, Any]:
        """:return: attributes to carry besides the constructor arguments. Any: each has its own type"""
        return {"epoch": self.epoch}

    @staticmethod
    def _create_from_reduce(cls: type[Dataset], kwargs: dict[str, Any], state: dict[str, Any]) -> Dataset:
        """
        :param cls: class of the dataset
        :param kwargs: constructor arguments
        :param state: attributes to set afterwards
        """
        dataset: Dataset = create_from_reduce(cls, kwargs, state)
        return dataset

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> Dataset:
        """
        :param config: unused, for compatibility. Any: nothing is read from it
        :param kwargs: constructor arguments
        """
        return cls(**kwargs)

    @staticmethod
    def _load_seq_list_file(filename: str, expect_list: bool = True) -> Any:
        """See :func:`returnn.datasets.seq_lists.load_seq_list_file`."""
        return load_seq_list_file(filename, expect_list=expect_list)

    # ---- life cycle

    def initialize(self) -> None:
        """Check ``num_outputs`` and order the sequences without an epoch. Not needed before ``init_seq_order``."""
        if not self.num_outputs:
            raise DatasetError(f"{self._where()}: num_outputs is not set. The constructor must set it.")
        self.init_seq_order()

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """
        Start an epoch. Subclasses extend this and compute the order.

        :param epoch: from 1
        :param seq_list: tags in the order wanted, instead of the ordering
        :param seq_order: corpus indices likewise
        :return: whether the order may have changed
        """
        if self._num_shards > 1 and not self.supports_sharding():
            raise DatasetError(f"{self!r}: does not support sharding, but got num_shards == {self._num_shards}.")
        self.epoch = epoch
        self.rnd_seq_drop = random.Random(int(self._get_random_seed_for_epoch(epoch=epoch)))
        return False

    def finish_epoch(self, *, free_resources: bool = False) -> None:
        """
        No data can be read until the next ``init_seq_order``.

        :param free_resources: also close files and drop buffers
        """
        self.epoch = None

    def load_seqs(self, start: int, end: int) -> None:
        """
        Make the data of these sequences available, and forget those before.

        :param start: seq idx, not smaller than in earlier calls of this epoch
        :param end: exclusive; may exceed the number of sequences
        """
        if not 0 <= start <= end:
            raise DatasetError(f"{self!r}: load_seqs({start}, {end}): expected 0 <= start <= end.")
        if not self.is_cached(start, end):
            self._load_seqs(start, end)

    def _load_seqs(self, start: int, end: int) -> None:
        raise NotImplementedError(f"{type(self).__name__}._load_seqs")

    def is_cached(self, start: int, end: int) -> bool:
        """:return: whether load_seqs has nothing to do"""
        return start == end

    # ---- number and identity of sequences

    @property
    def num_seqs(self) -> int:
        """:return: number of sequences in the current epoch"""
        raise NotImplementedError(f"{type(self).__name__}.num_seqs")

    @property
    def estimated_num_seqs(self) -> int | None:
        """:return: num_seqs if known, else the option, else None"""
        try:
            return self.num_seqs
        except NotImplementedError:
            return self._estimated_num_seqs

    def is_less_than_num_seqs(self, n: int) -> bool:
        """:return: whether the current epoch has a sequence n. May load data if the number is not known"""
        return n < self.num_seqs

    def _is_whole_corpus(self) -> bool:
        """:return: whether an epoch has each sequence of the corpus exactly once, as far as the options tell"""
        return (
            self.partition_epoch == 1
            and self.repeat_epoch == 1
            and self._num_shards == 1
            and not self.unique_seq_tags
            and self.seq_tags_filter is None
            and not str(self.seq_ordering).startswith(("default_every_n", "random_sample"))
        )

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """
        :param fast: raise instead of reading files
        :return: number of sequences in the whole corpus
        """
        if not self._is_whole_corpus():
            raise OptionalNotImplementedError(
                f"{self}: get_total_num_seqs with partition epoch {self.partition_epoch}, or with another option "
                "by which an epoch is not the whole corpus"
            )
        num_seqs = self.num_seqs
        if not num_seqs and self.epoch is None:
            # As e.g. CachedDataset2 says it before the first epoch.
            raise OptionalNotImplementedError(f"{self}: get_total_num_seqs is not known before the first epoch")
        return num_seqs

    def have_seqs(self) -> bool:
        """:return: whether there is any sequence"""
        try:
            return self.get_total_num_seqs() > 0
        except NotImplementedError:
            if self.epoch is None:
                raise
            return self.is_less_than_num_seqs(0)

    def get_all_tags(self) -> list[str]:
        """:return: tags of the whole corpus, in corpus order"""
        if not self._is_whole_corpus() or self.epoch is None:
            raise OptionalNotImplementedError(
                f"{type(self).__name__}.get_all_tags is not implemented, and an epoch is not the whole corpus "
                f"(dataset {self.name!r}, partition_epoch {self.partition_epoch}, seq_ordering {self.seq_ordering!r})"
            )
        tags = [self.get_tag(i) for i in range(self.num_seqs)]
        by_corpus_idx = {self.get_corpus_seq_idx(i): tag for i, tag in enumerate(tags)}
        return [by_corpus_idx[i] for i in range(len(tags))]

    def get_tag(self, sorted_seq_idx: int) -> str:
        """:return: tag of a sequence of the current epoch"""
        return f"seq-{sorted_seq_idx}"

    def have_corpus_seq_idx(self) -> bool:
        """:return: whether get_corpus_seq_idx works for every order"""
        return False

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """:return: corpus idx of a sequence of the current epoch"""
        try:
            return int(self.get_current_seq_order()[sorted_seq_idx])
        except NotImplementedError:
            if self.seq_ordering == "default" and self._is_whole_corpus():
                return sorted_seq_idx
            raise OptionalNotImplementedError(
                f"{type(self).__name__}.get_corpus_seq_idx (dataset {self.name!r}, seq_ordering {self.seq_ordering!r})"
            ) from None

    def have_get_corpus_seq(self) -> bool:
        """:return: whether get_corpus_seq works"""
        return False

    def get_corpus_seq(self, corpus_seq_idx: int) -> DatasetSeq:
        """:return: one sequence of the corpus, independent of the order"""
        raise OptionalNotImplementedError(f"{type(self).__name__}.get_corpus_seq")

    def get_current_seq_order(self) -> Sequence[int] | numpy.ndarray:
        """:return: corpus indices of the current epoch"""
        raise OptionalNotImplementedError(f"{type(self).__name__}.get_current_seq_order")

    # ---- lengths

    def get_seq_length(self, sorted_seq_idx: int) -> NumbersDict:
        """:return: data key -> number of frames"""
        raise NotImplementedError(f"{type(self).__name__}.get_seq_length")

    def get_estimated_seq_length(self, seq_idx: int) -> int:
        """:return: length by which the ordering sorts, without loading data"""
        raise OptionalNotImplementedError(f"{type(self).__name__}.get_estimated_seq_length")

    def get_estimated_seq_lengths(self) -> numpy.ndarray:
        """:return: get_estimated_seq_length of all sequences of the epoch"""
        return numpy.array([self.get_estimated_seq_length(i) for i in range(self.num_seqs)])

    def get_num_timesteps(self) -> int | NumbersDict:
        """:return: number of frames of the epoch, if known"""
        if not self._num_timesteps:
            raise OptionalNotImplementedError(f"{self!r}: the number of frames is not known")
        timesteps: int | NumbersDict = self._num_timesteps
        return timesteps

    # ---- data; what the keys are: DataInfoMixin

    def get_data_keys(self) -> list[str]:
        """:return: keys for get_data"""
        return ["data", *self.get_target_list()]

    def get_target_list(self) -> list[str]:
        """:return: keys that are targets"""
        return ["classes"]

    def get_data(self, seq_idx: int, key: str) -> numpy.ndarray:
        """
        :param seq_idx: loaded sequence
        :param key: one of get_data_keys
        :return: [T], [T, dim] or 0-d
        """
        return self.get_input_data(seq_idx) if key == "data" else self.get_targets(key, seq_idx)

    def get_input_data(self, sorted_seq_idx: int) -> numpy.ndarray:
        """Old hook for key "data". :return: [T, dim]"""
        if type(self).get_data is Dataset.get_data:
            raise NotImplementedError(f"{type(self).__name__} overrides neither get_data nor get_input_data")
        return self.get_data(sorted_seq_idx, "data")

    def get_targets(self, target: str, sorted_seq_idx: int) -> numpy.ndarray:
        """Old hook for the other keys. :return: [T] or [T, dim]"""
        if type(self).get_data is Dataset.get_data:
            raise NotImplementedError(f"{type(self).__name__} overrides neither get_data nor get_targets")
        return self.get_data(sorted_seq_idx, target)

    # ---- bulk protocol

    def get_epoch_seq_lens(self, key: str) -> numpy.ndarray | None:
        """:return: int64 [num_seqs of the epoch], in its order, without loading data. None: not known"""
        return None

    def read_seqs(self, seq_idxs: numpy.ndarray, keys: Sequence[str]) -> dict[str, Ragged] | None:
        """
        Random access to the data of many sequences at once.

        :param seq_idxs: positions in the current epoch order, any order
        :param keys: data keys
        :return: key -> data. None: not supported
        """
        return None

    def get_seq_tags(self, seq_idxs: numpy.ndarray | Sequence[int]) -> list[str]:
        """:return: tags of many sequences of the current epoch"""
        return [self.get_tag(int(i)) for i in seq_idxs]

    def supports_bulk(self) -> bool:
        """:return: whether read_seqs delivers the same as get_data: no subclass overrides the latter alone"""
        for cls in type(self).__mro__:
            if cls is Dataset:
                return False
            if "read_seqs" in vars(cls):
                return True
            if any(name in vars(cls) for name in _PER_SEQ_HOOKS):
                return False
        return False

    def supports_jump(self) -> bool:
        """
        Asked after ``init_seq_order``. A training that is stopped within an epoch can then go on at once. Else the epoch is
        read again from its start up to there, unless the class has methods ``state_dict()`` and ``load_state_dict(state)``:
        the state before a sequence is loaded (plain values, lists, dicts, arrays), and back to it after ``init_seq_order``
        of the same epoch.

        :return: whether, after ``init_seq_order``, ``load_seqs(p, p + 1)`` for any p gives what it gives after all
            sequences before were loaded
        """
        return False

    # ---- information

    def len_info(self, *, fast: bool = False) -> str:
        """
        :param fast: do not read files for it
        :return: e.g. "HDFDataset, sequences: 10, frames: unknown"
        """
        num_seqs: Any = "unknown"
        frames: Any = "unknown"
        # Whatever a class of the user raises before its first epoch: this is only for the log.
        with contextlib.suppress(Exception):
            if not fast:
                num_seqs = self.get_total_num_seqs()
            elif "fast" in inspect.signature(self.get_total_num_seqs).parameters:
                num_seqs = self.get_total_num_seqs(fast=True)
        with contextlib.suppress(Exception):
            frames = self.get_num_timesteps()
        return f"{type(self).__name__}, sequences: {num_seqs}, frames: {frames}"

    def get_complete_frac(self, sorted_seq_idx: int, *, allow_only_lr_suitable: bool = False) -> float | None:
        """
        :param sorted_seq_idx: of the current epoch
        :param allow_only_lr_suitable: None if it would only be an estimate
        :return: in (0, 1]: how much of the epoch is done after this sequence
        """
        try:
            num_seqs: int | None = self.num_seqs
        except NotImplementedError:
            if allow_only_lr_suitable:
                return None
            num_seqs = self.estimated_num_seqs
        return self.generic_complete_frac(sorted_seq_idx, num_seqs)

    @classmethod
    def generic_complete_frac(cls, seq_idx: int, num_seqs: int | None) -> float:
        """
        :param seq_idx: from 0
        :param num_seqs: None if not known
        :return: (seq_idx + 1) / num_seqs, at most 1
        """
        if num_seqs:
            return min(float(seq_idx + 1) / num_seqs, 1.0)
        return max(1.0e-10, 1.0 - float(numpy.exp(-1000.0 * seq_idx)))

    def sample(self, seq_idx: int) -> bool:
        """:return: False if the weight of the sequence is below its threshold. Legacy"""
        if seq_idx not in self.weights:
            return True
        weight, threshold = self.weights[seq_idx]
        return weight >= threshold


class DatasetSeq:
    """One sequence: its data of all keys."""

    def __init__(
        self,
        seq_idx: int,
        features: numpy.ndarray | dict[str, numpy.ndarray],
        targets: numpy.ndarray | dict[str, numpy.ndarray] | None = None,
        seq_tag: str | None = None,
        complete_frac: float | None = None,
    ) -> None:
        """
        :param seq_idx: in the order of the epoch
        :param features: data of key "data", or of all keys
        :param targets: data of key "classes", or of all keys but "data"
        :param seq_tag: default "seq-%i" of seq_idx
        :param complete_frac: how much of the epoch is done after this sequence
        """
        if not isinstance(seq_idx, (int, numpy.integer)):
            raise DatasetError(f"DatasetSeq: seq_idx must be an int, got {seq_idx!r} ({type(seq_idx).__name__}).")
        self.seq_idx = int(seq_idx)
        self.seq_tag = seq_tag or f"seq-{int(seq_idx)}"
        self.complete_frac = complete_frac
        if isinstance(features, dict):
            if targets is not None:
                raise DatasetError(f"DatasetSeq {self.seq_tag!r}: features is a dict, so targets must be None.")
            self.features = features
        else:
            self.features = {"data": features}
            if isinstance(targets, dict):
                self.features.update(targets)
            elif targets is not None:
                self.features["classes"] = targets
        for key, value in self.features.items():
            if not isinstance(value, numpy.ndarray):
                raise DatasetError(
                    f"DatasetSeq {self.seq_tag!r}: data of key {key!r} must be a numpy array, got {type(value).__name__}."
                )

    @property
    def num_frames(self) -> NumbersDict:
        """:return: data key -> number of frames; 1 for 0-d data"""
        return NumbersDict({key: (v.shape[0] if v.ndim >= 1 else 1) for key, v in self.features.items()})

    def get_data(self, key: str) -> numpy.ndarray:
        """:return: data of that key"""
        return self.features[key]

    def get_data_keys(self) -> Iterable[str]:
        """:return: all keys"""
        return self.features.keys()

    def __repr__(self) -> str:
        return f"<DatasetSeq seq_idx={self.seq_idx}>"


def _get_seq_len_as_array(get_seq_len: SeqLens, num_seqs: int) -> numpy.ndarray:
    """
    :param get_seq_len: function or array
    :param num_seqs: of the corpus
    :return: [num_seqs], int64 or float64
    """
    return _seq_order.seq_lens_to_array(get_seq_len, num_seqs)
