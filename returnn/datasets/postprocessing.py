"""
PostprocessingDataset: functions of the user change the sequences of a dataset.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing import util
from typing import Any

import numpy

from returnn.datasets._basic.jump import is_plain_function, reads_as_its_class
from returnn.datasets._loading.remote_error import add_place
from returnn.datasets._loading.source import known_num_seqs
from returnn.datasets._postprocessing.apply import MapFunctions, Mapper, worker_seed
from returnn.datasets._postprocessing.feeder import MapPool
from returnn.datasets._postprocessing.helpers import LaplaceOrdering, Sequential
from returnn.datasets._postprocessing.streams import Seq, StreamSpec, specs_of_info, specs_of_options
from returnn.datasets._postprocessing.worker import MapJob, PassOptions
from returnn.datasets._procs.dataset_server import complete_frac, make_info
from returnn.datasets.basic import Dataset, DatasetSeq
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.registry import init_dataset
from returnn.errors import DatasetError, DatasetOptionError, ReturnnError
from returnn.tensor import TensorDict
from returnn.util.markers import OptionalNotImplementedError

__all__ = ["PostprocessingDataset", "LaplaceOrdering", "Sequential"]


class PostprocessingDataset(CachedDataset2):
    """
    Each sequence of another dataset goes through ``map_seq``, or the whole stream of sequences through
    ``map_seq_stream``, e.g. for augmentation, filters, or an order of its own (:class:`LaplaceOrdering`)::

        def map_seq(tensor_dict, *, epoch, seq_idx, rng, **_kwargs):
            data = tensor_dict.data["data"]  # with raw_tensor: numpy array, dims, dtype, sparse_dim
            data.raw_tensor = data.raw_tensor + rng.normal(size=data.raw_tensor.shape).astype("float32")
            return tensor_dict
    """

    def __init__(
        self,
        *,
        dataset: Any,
        map_seq: Callable[..., TensorDict] | None = None,
        map_seq_stream: Callable[..., Iterator[TensorDict]] | None = None,
        map_outputs: Mapping[str, Any] | None = None,
        map_seq_stream_preserves_num_seqs: bool | None = None,
        buf_size: int = 1,
        num_workers: int = 0,
        random_state_per_seq: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """
        :param dataset: dict (Any: or another form that init_dataset takes) of the dataset to read
        :param map_seq: ``f(tensor_dict, *, epoch, seq_idx, rng, **kwargs) -> TensorDict``
        :param map_seq_stream: ``f(iterator, *, epoch, rng, **kwargs) -> iterator`` of TensorDict. It must keep the
            entries seq_tag and complete_frac; without a tag, they are "seq-<i>"
        :param map_outputs: streams of the result, if they are others: data key -> options of Tensor
            (dims, or dim/shape/sparse; dtype; vocab). Any: these
        :param map_seq_stream_preserves_num_seqs: as many sequences go out as in; default is the attribute
            ``preserves_num_seqs`` of the function
        :param buf_size: sequences that each process prepares ahead (small ones: more, up to 128 kB)
        :param num_workers: processes for the function, each for every W-th sequence; a stream function sees only these.
            0: in this process
        :param random_state_per_seq: rng of map_seq depends only on the sequence (its position and tag) and the epoch,
            so that results do not depend on num_workers. None: if the data pipeline reads this dataset; else, as in
            the peers, one generator per process for all its sequences
        :param kwargs: see Dataset. Any: each has its own type
        :raises DatasetOptionError: for an invalid value
        """
        super().__init__(**kwargs)
        if self.seq_ordering != "default":
            raise DatasetOptionError(
                f"{self._where()}: seq_ordering = {self.seq_ordering!r}: specify seq_ordering in wrapped dataset."
            )
        if (map_seq is None) == (map_seq_stream is None):
            raise DatasetOptionError(
                f"{self._where()}: needs exactly one of map_seq and map_seq_stream, got "
                f"{'neither' if map_seq is None else 'both'}."
            )
        for option, func in (("map_seq", map_seq), ("map_seq_stream", map_seq_stream)):
            self._check_function(option, func)
        if map_seq_stream_preserves_num_seqs is not None and map_seq_stream is None:
            raise DatasetOptionError(f"{self._where()}: map_seq_stream_preserves_num_seqs is only for map_seq_stream.")
        for option, value, least in (("buf_size", buf_size, 1), ("num_workers", num_workers, 0)):
            if not isinstance(value, (int, numpy.integer)) or isinstance(value, bool) or value < least:
                raise DatasetOptionError(
                    self._describe(f'option "{option}" is invalid', expected=f"int >= {least}", got=value)
                )
        self._dataset_def = dataset
        self._map_seq = map_seq
        self._map_seq_stream = map_seq_stream
        self._map_outputs = map_outputs
        self._map_seq_stream_preserves_num_seqs = map_seq_stream_preserves_num_seqs
        self._buf_size = int(buf_size)
        self._num_workers = int(num_workers)
        self._random_state_per_seq = random_state_per_seq
        self._dataset = init_dataset(dataset, default_kwargs={"name": f"{self.name}_wrapped"}, parent_dataset=self)
        self._dataset._is_top_level = False
        # Asked for once, before the first epoch: later, another thread may be using the dataset.
        info = make_info(self._dataset)
        self._supports_sharding = info.supports_sharding
        inputs = specs_of_info(info)
        outputs = None
        if map_outputs is not None:
            outputs = specs_of_options(map_outputs, where=self._where())
        self._outputs: dict[str, StreamSpec] = inputs if outputs is None else outputs
        self._funcs = MapFunctions(map_seq, map_seq_stream, inputs, outputs, f"{type(self).__name__} {self.name!r}")
        if outputs is None:
            self.num_inputs = info.num_inputs
            self.num_outputs = info.num_outputs
            self.labels = info.labels
        else:
            self.num_outputs = {key: (spec.dim, len(spec.shape)) for key, spec in outputs.items()}
            self.num_inputs = outputs["data"].dim if "data" in outputs else None
            self.labels = {key: spec.labels for key, spec in outputs.items() if spec.labels is not None}
        preserves = map_seq_stream_preserves_num_seqs
        if preserves is None:
            preserves = map_seq is not None or bool(getattr(map_seq_stream, "preserves_num_seqs", False))
        self._preserves_num_seqs = preserves
        self._pool: MapPool | None = None
        self._pool_closer: util.Finalize | None = None
        self._mapper: Mapper | None = None
        self._results: Iterator[Seq] | None = None  # stream function in this process
        self._next_idx = 0
        self._max_frac: float | None = None
        self._failure: BaseException | None = None
        self._expected_num_seqs: int | None = None
        self._child_can_jump = False
        #: of the epoch: arguments of init_seq_order. Any: each has its own type
        self._given_order: tuple[Any, ...] = (None, None, None)

    _getnewargs_remap = {"dataset": "_dataset_def"}

    def _check_function(self, option: str, func: object) -> None:
        if func is None:
            return
        if not callable(func):
            raise DatasetOptionError(self._describe(f'option "{option}" is invalid', expected="a function", got=func))
        try:
            parameters = inspect.signature(func).parameters.values()
        except (TypeError, ValueError):  # some builtins
            return
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            raise DatasetOptionError(
                f"{self._where()}: the {option} function {getattr(func, '__name__', func)!r} must take **kwargs, as it "
                "may get further arguments in later versions."
            )

    def child_datasets(self) -> Iterable[Dataset]:
        """:return: the wrapped dataset"""
        return (self._dataset,)

    # ---- order

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """
        See :func:`Dataset.init_seq_order`.

        :raises DatasetError: an order is given although there is a stream function
        """
        if self._map_seq_stream is not None and (seq_list is not None or seq_order is not None):
            raise DatasetError(
                f"{self._where()}: seq_list and seq_order are not possible with map_seq_stream, which makes its own order."
            )
        self._stop_pass()
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self._failure = None
        self._next_idx = 0
        self._max_frac = None
        self._mapper = self._results = None
        # Before its number of sequences is read, and before another thread reads from it.
        self._dataset.init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        if epoch is None and seq_list is None and seq_order is None:
            self._num_seqs = 0
            return True
        # A class of the user may have the methods to read alone.
        self._child_can_jump = hasattr(self._dataset, "supports_jump") and bool(self._dataset.supports_jump())
        self._expected_num_seqs = known_num_seqs(self._dataset) if self._preserves_num_seqs else None
        self._num_seqs = self._expected_num_seqs
        if self._num_workers:
            self._given_order = epoch, seq_list, seq_order
            self._start_pool(0)
            return True
        options = self._pass_options(epoch, 0)
        self._mapper = Mapper(self._funcs, epoch=epoch, seed=options.seed, per_seq_seed=options.per_seq_seed)
        if self._map_seq_stream is not None:
            self._results = self._mapper.map_stream(_iter_seqs(self._dataset))
        return True

    def _start_pool(self, start: int) -> None:
        """:param start: first sequence that it reads; the order of the wrapped dataset is known"""
        options = [self._pass_options(self._given_order[0], i, start) for i in range(self._num_workers)]
        try:
            self._get_pool().start_pass(_iter_seqs(self._dataset, start), options)
        except BaseException:
            self.close()
            raise
        self._next_idx = start

    def _jump(self, seq_idx: int) -> None:
        """The pool has read ahead, maybe farther than that."""
        self._stop_pass()
        epoch, seq_list, seq_order = self._given_order
        self._dataset.init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self._start_pool(seq_idx)

    def _pass_options(self, epoch: int | None, worker: int, start: int = 0) -> PassOptions:
        seed = self._get_random_seed_for_epoch(epoch)
        own_seed = worker_seed(seed, worker, self._num_workers)
        return PassOptions(epoch, own_seed, seed if self._is_per_seq else None, start)

    @property
    def _is_per_seq(self) -> bool:
        """:return: whether random draws of map_seq depend on the sequence only"""
        return bool(self._random_per_seq if self._random_state_per_seq is None else self._random_state_per_seq)

    def _get_pool(self) -> MapPool:
        if self._pool is None or not self._pool.is_own:
            self._pool = MapPool(
                [MapJob(self._funcs, i, self._num_workers, self._buf_size) for i in range(self._num_workers)]
            )
            # The thread of the pool does not refer to this object.
            self._pool_closer = util.Finalize(self, self._pool.close, exitpriority=110)
        return self._pool

    def _stop_pass(self) -> None:
        if self._pool is not None and self._pool.is_own:
            self._pool.stop_pass()

    def close(self) -> None:
        """End the processes. They start again when needed."""
        if self._pool is not None and self._pool.is_own and self._pool_closer is not None:
            self._pool_closer()
        self._pool = self._pool_closer = None

    def finish_epoch(self, *, free_resources: bool = False) -> None:
        """See :func:`Dataset.finish_epoch`."""
        self._stop_pass()
        super().finish_epoch(free_resources=free_resources)
        self._mapper = self._results = None
        self._dataset.finish_epoch(free_resources=free_resources)
        if free_resources:
            self.close()

    # ---- data

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        if self._failure is not None:
            raise self._failure
        if self._num_seqs == 0:
            return None
        try:
            seq = self._next_from_function(seq_idx) if self._is_random_access() else self._next_from_stream(seq_idx)
        except BaseException as exc:
            self._failure = exc
            if self._num_workers:
                self.close()
            raise
        if seq is None:
            return None
        frac = seq.frac
        if frac is not None:
            frac = self._max_frac = max(frac, self._max_frac or 0.0)
        return DatasetSeq(seq_idx, dict(seq.features), seq_tag=seq.tag, complete_frac=frac)

    def _is_random_access(self) -> bool:
        return not self._num_workers and self._map_seq is not None

    def _next_from_function(self, seq_idx: int) -> Seq | None:
        if self._mapper is None or not self._dataset.is_less_than_num_seqs(seq_idx):
            return None
        seq = _load(self._dataset, seq_idx)
        with self._placing_errors(self._mapper):
            return self._mapper.map_seq(seq)

    def _next_from_stream(self, seq_idx: int) -> Seq | None:
        seq: Seq | None = None
        if seq_idx - self._next_idx > self._num_workers * self._buf_size and self.supports_jump():
            self._jump(seq_idx)
        while self._next_idx <= seq_idx:
            seq = self._next_result()
            if seq is None:
                break
            self._next_idx += 1
        expected = self._expected_num_seqs
        # Nobody asks for more than the expected number.
        has_more = expected is not None and self._next_idx >= expected and self._next_result() is not None
        if has_more or (seq is None and expected is not None and seq_idx < expected):
            raise DatasetError(
                f"{self._where()}: map_seq_stream was said to preserve the number of sequences, {expected}, but gave "
                f"{'more' if has_more else f'only {self._next_idx}'}. Set map_seq_stream_preserves_num_seqs = False."
            )
        return seq

    def _next_result(self) -> Seq | None:
        if self._num_workers:
            result = self._pool.next_seq() if self._pool is not None else None
            return Seq(self._next_idx, result[1], result[2], result[0]) if result is not None else None
        if self._results is None or self._mapper is None:
            return None
        with self._placing_errors(self._mapper):
            return next(self._results, None)

    @contextlib.contextmanager
    def _placing_errors(self, mapper: Mapper) -> Iterator[None]:
        """Errors say where they happened, as those of processes do."""
        try:
            yield
        except Exception as exc:
            place = f"{self._funcs.where}, epoch {self.epoch}, {mapper.describe_place()}"
            add_place(exc, place)
            if not isinstance(exc, ReturnnError) and hasattr(exc, "add_note"):
                exc.add_note(f"In {place}.")
            raise

    def supports_jump(self) -> bool:
        """
        See :func:`Dataset.supports_jump`. If the wrapped dataset does, and map_seq is a function with random draws per
        sequence. Not with map_seq_stream: what it gives may depend on all that came before.
        """
        if self._map_seq is None or not self._is_per_seq or not is_plain_function(self._map_seq):
            return False
        return self._child_can_jump and reads_as_its_class(self)

    # ---- what the data is

    def get_data_keys(self) -> list[str]:
        """:return: streams of the result"""
        return list(self._outputs)

    def get_target_list(self) -> list[str]:
        """:return: all but "data" """
        return [key for key in self._outputs if key != "data"]

    def get_data_dim(self, key: str) -> int:
        """See :func:`Dataset.get_data_dim`."""
        return self._outputs[key].dim if key in self._outputs else super().get_data_dim(key)

    def is_data_sparse(self, key: str) -> bool:
        """See :func:`Dataset.is_data_sparse`."""
        if key in self._outputs:
            return self._outputs[key].num_classes is not None
        return super().is_data_sparse(key)

    def get_data_dtype(self, key: str) -> str:
        """See :func:`Dataset.get_data_dtype`."""
        return self._outputs[key].dtype if key in self._outputs else super().get_data_dtype(key)

    def get_data_shape(self, key: str) -> list[int | None]:
        """See :func:`Dataset.get_data_shape`."""
        return list(self._outputs[key].shape[1:]) if key in self._outputs else super().get_data_shape(key)

    # ---- what the wrapped dataset knows

    def supports_sharding(self) -> bool:
        """:return: as the wrapped dataset"""
        return self._supports_sharding

    def supports_seq_order_sorting(self) -> bool:
        """:return: False: the order is made by the wrapped dataset"""
        return False

    def _need_map_seq(self, method: str) -> None:
        if self._map_seq is None:
            raise OptionalNotImplementedError(f"{self!r}: {method} is not known with map_seq_stream")

    def get_current_seq_order(self) -> Sequence[int] | numpy.ndarray:
        """See :func:`Dataset.get_current_seq_order`."""
        self._need_map_seq("get_current_seq_order")
        return self._dataset.get_current_seq_order()

    def have_corpus_seq_idx(self) -> bool:
        """See :func:`Dataset.have_corpus_seq_idx`."""
        return self._map_seq is not None and self._dataset.have_corpus_seq_idx()

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """See :func:`Dataset.get_corpus_seq_idx`."""
        self._need_map_seq("get_corpus_seq_idx")
        return self._dataset.get_corpus_seq_idx(sorted_seq_idx)

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """See :func:`Dataset.get_total_num_seqs`."""
        self._need_map_seq("get_total_num_seqs")
        return self._dataset.get_total_num_seqs(fast=fast)

    def get_all_tags(self) -> list[str]:
        """See :func:`Dataset.get_all_tags`."""
        self._need_map_seq("get_all_tags")
        return self._dataset.get_all_tags()


def _iter_seqs(dataset: Dataset, start: int = 0) -> Iterator[Seq]:
    idx = start
    while dataset.is_less_than_num_seqs(idx):
        yield _load(dataset, idx)
        idx += 1


def _load(dataset: Dataset, idx: int) -> Seq:
    dataset.load_seqs(idx, idx + 1)
    features = {key: numpy.asarray(dataset.get_data(idx, key)) for key in dataset.get_data_keys()}
    return Seq(idx, str(dataset.get_tag(idx)), complete_frac(dataset, idx), features)
