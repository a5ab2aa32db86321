"""
A dataset in a process of its own: what runs in there.

Requests: ("info", id), ("call", id, method, args), ("init", id, InitOptions), ("stream", id, start, step),
("free", slot), ("free_resources",). Answers: ("reply", id, value), ("error", id, RemoteError), and for a stream
("memory", slot, size), ("block", id, ...), ("end", id).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy

from returnn._state import state
from returnn.datasets._loading.plan import BulkKeys, probe_bulk
from returnn.datasets._loading.source import known_num_seqs
from returnn.datasets._loading.status_page import current_page, knows_tags_before_data
from returnn.datasets._procs.process import send_error
from returnn.datasets._procs.seq_blocks import BlockBuilder, BlockSender, BlockSize, SeqBlock
from returnn.datasets.basic import Dataset
from returnn.datasets.registry import init_dataset

__all__ = ["DatasetJob", "DatasetInfo", "KeyInfo", "InitOptions", "InitResult", "serve_dataset"]

# Positions whose sizes are looked at together.
_NUM_POSITIONS = 1024


@dataclasses.dataclass(frozen=True)
class DatasetJob:
    """
    :param opts: for init_dataset. Any: its forms
    :param extra_kwargs: for it
    :param default_kwargs: for it
    :param buffer_size: sequences that may be on their way
    :param where: the dataset that reads from this one, for messages
    :param index: of several processes with the same dataset; only the first one writes to the log
    """

    opts: Any
    extra_kwargs: Mapping[str, Any]
    default_kwargs: Mapping[str, Any]
    buffer_size: int
    where: str
    index: int = 0


@dataclasses.dataclass(frozen=True)
class KeyInfo:
    """What a dataset says about a data key, see the methods of Dataset."""

    dim: int
    sparse: bool
    dtype: str
    shape: list[int | None]


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a dataset says about itself, before its first epoch."""

    num_inputs: int | None
    num_outputs: dict[str, Any]  # Any: (dim, ndim) or a dict
    labels: dict[str, Sequence[str]]
    target_list: list[str]
    keys: dict[str, KeyInfo]
    supports_sharding: bool
    supports_seq_order_sorting: bool
    total_num_seqs: int | None  # None: not known, or not without reading files


@dataclasses.dataclass(frozen=True)
class InitOptions:
    """
    :param epoch: for init_seq_order, as the next two
    :param seq_list: -
    :param seq_order: -
    :param random_per_seq: see :func:`returnn.datasets._basic.children.ChildrenMixin.set_random_per_seq`
    :param want_order: the resulting order is asked for
    """

    epoch: int | None
    seq_list: Sequence[str] | None = None
    seq_order: numpy.ndarray | None = None
    random_per_seq: bool = False
    want_order: bool = False


@dataclasses.dataclass(frozen=True)
class InitResult:
    """
    :param num_seqs: None: not known
    :param order: corpus indices, if wanted and known
    :param order_error: why the order is not known
    :param supports_jump: see :func:`Dataset.supports_jump`
    """

    num_seqs: int | None
    order: numpy.ndarray | None = None
    order_error: str = ""
    supports_jump: bool = False


def make_info(dataset: Dataset) -> DatasetInfo:
    """
    :param dataset: before its first epoch
    """
    try:
        keys = list(dataset.get_data_keys())
        targets = list(dataset.get_target_list())
    except Exception:  # a class of the user that knows them only with data
        keys = list(dataset.num_outputs or ())
        targets = [key for key in keys if key != "data"]
    total = None
    try:
        total = int(dataset.get_total_num_seqs(fast=True))
    except Exception:  # as above
        total = None
    key_infos = {
        key: KeyInfo(
            dataset.get_data_dim(key),
            dataset.is_data_sparse(key),
            dataset.get_data_dtype(key),
            list(dataset.get_data_shape(key)),
        )
        for key in keys
    }
    return DatasetInfo(
        dataset.num_inputs,
        dict(dataset.num_outputs or {}),
        dict(dataset.labels),
        targets,
        key_infos,
        dataset.supports_sharding(),
        dataset.supports_seq_order_sorting(),
        total,
    )


class _Server:
    """Answers requests; while there is nothing else to do, reads ahead."""

    def __init__(self, conn: Connection, job: DatasetJob) -> None:
        self._conn = conn
        self._job = job
        self._dataset: Dataset | None = None
        self._info: DatasetInfo | None = None
        self._sender = BlockSender(conn)
        self._blocks: Iterator[SeqBlock] | None = None
        self._stream_id = -1
        self._epoch: int | None = None
        self._options: InitOptions | None = None  # of the epoch
        self._last_loaded = -1  # in the epoch, one by one
        self._position: int | None = None  # at work
        self._tag: str | None = None

    def serve(self) -> None:
        """Until the connection is closed."""
        while True:
            if self._blocks is not None and self._sender.has_free and not self._conn.poll():
                self._send_block(self._blocks)
                continue
            message = self._conn.recv()
            kind = message[0]
            if kind == "free":
                self._sender.free(message[1])
            elif kind == "free_resources":
                self._blocks = None
                if self._dataset is not None:
                    self._dataset.finish_epoch(free_resources=True)
                self._dataset = None
            elif kind == "stream":
                self._stream_id = message[1]
                self._begin_stream(message[2], message[3])
            else:
                self._answer(message)

    def _answer(self, message: tuple[Any, ...]) -> None:
        kind, request_id = message[:2]
        try:
            if kind == "info":
                value: Any = self._get_info()
            elif kind == "init":
                value = self._init(message[2])
            else:
                value = getattr(self._get_dataset(), message[2])(*message[3])
        except Exception as exc:
            self._send_error(request_id, exc)
        else:
            self._conn.send(("reply", request_id, value))

    def _send_error(self, request_id: int, exc: BaseException) -> None:
        name = getattr(self._dataset, "name", None) or self._job.default_kwargs.get("name")
        where = f"dataset {name!r} of {self._job.where}"
        if self._epoch is not None:
            where += f", epoch {self._epoch}"
        if self._position is not None and self._tag is None:
            where += f", position {self._position}"
        elif self._position is not None:
            where += f", sequence {self._tag!r} (position {self._position})"
        send_error(self._conn, request_id, exc, where=where, who=f"process of {self._job.where}")

    def _get_dataset(self) -> Dataset:
        if self._dataset is None:
            job = self._job
            dataset = init_dataset(job.opts, job.extra_kwargs, job.default_kwargs)
            dataset._is_top_level = False
            self._info = make_info(dataset)
            self._dataset = dataset
        return self._dataset

    def _get_info(self) -> DatasetInfo:
        self._get_dataset()
        assert self._info is not None
        return self._info

    def _init(self, options: InitOptions) -> InitResult:
        self._blocks = None
        self._epoch, self._position = options.epoch, None
        page = current_page()
        if page is not None:
            page.begin("making the order", options.epoch)
        dataset = self._get_dataset()
        if hasattr(dataset, "set_random_per_seq"):  # else a class of the user with the methods to read alone
            dataset.set_random_per_seq(options.random_per_seq)
        dataset.init_seq_order(epoch=options.epoch, seq_list=options.seq_list, seq_order=options.seq_order)
        self._options, self._last_loaded = options, -1
        order, order_error = None, ""
        if options.want_order:
            try:
                order = numpy.asarray(dataset.get_current_seq_order(), dtype=numpy.int64)
            except (NotImplementedError, AssertionError) as exc:  # the ways of the peers' classes to say it
                order_error = f"{type(exc).__name__}: {exc}"
        supports_jump = hasattr(dataset, "supports_jump") and bool(dataset.supports_jump())
        return InitResult(known_num_seqs(dataset), order, order_error, supports_jump)

    # ---- reading ahead

    def _begin_stream(self, start: int, step: int) -> None:
        """A second one in an epoch may begin before what was read ahead for the first one."""
        options = self._options
        try:
            if options is not None and start <= self._last_loaded:
                self._init(InitOptions(options.epoch, options.seq_list, options.seq_order, options.random_per_seq))
        except Exception as exc:
            self._send_error(self._stream_id, exc)
            return
        self._blocks = self._iter_blocks(start, step)

    def _send_block(self, blocks: Iterator[SeqBlock]) -> None:
        try:
            block = next(blocks, None)
        except Exception as exc:
            self._blocks = None
            self._send_error(self._stream_id, exc)
            return
        if block is None:
            self._blocks = None
            self._conn.send(("end", self._stream_id))
        else:
            self._sender.send(self._stream_id, block)

    def _iter_blocks(self, start: int, step: int) -> Iterator[SeqBlock]:
        dataset = self._get_dataset()
        self._position = None
        page = current_page()
        if page is not None:
            page.begin("reading", self._epoch)
        keys = probe_bulk(dataset)
        if keys is None:
            yield from self._iter_blocks_per_seq(dataset, start, step)
        else:
            yield from self._iter_blocks_bulk(dataset, keys, start, step)
        self._position = None

    def _iter_blocks_per_seq(self, dataset: Dataset, start: int, step: int) -> Iterator[SeqBlock]:
        builder = BlockBuilder(self._job.buffer_size)
        keys: list[str] | None = None
        position = start
        page = current_page()
        is_tag_known = page is not None and knows_tags_before_data(dataset)
        while True:
            self._position, self._tag = position, None
            if page is not None:
                page.at(position)
            if not dataset.is_less_than_num_seqs(position):
                break
            if page is not None and is_tag_known:
                page.at(position, dataset.get_tag(position))
            dataset.load_seqs(position, position + 1)
            self._last_loaded = position
            self._tag = dataset.get_tag(position)
            if page is not None:
                page.have_read(str(self._tag))
            if keys is None:
                keys = list(dataset.get_data_keys())
            features = {key: numpy.asarray(dataset.get_data(position, key)) for key in keys}
            yield from builder.add(features, str(self._tag), complete_frac(dataset, position))
            position += step
        if len(builder):
            yield builder.take()

    def _iter_blocks_bulk(self, dataset: Dataset, keys: BulkKeys, start: int, step: int) -> Iterator[SeqBlock]:
        num_seqs = dataset.num_seqs
        size = BlockSize(self._job.buffer_size)
        position = start
        while position < num_seqs:
            self._position, self._tag = position, None
            idxs = numpy.arange(position, min(position + _NUM_POSITIONS * step, num_seqs), step)
            seq_bytes = numpy.zeros(len(idxs), dtype=numpy.int64)
            for key in keys.keys:
                seq_bytes += keys.frame_bytes[key] * (keys.lens[key][idxs] if key in keys.lens else 1)
            idxs = idxs[: size.num_seqs(seq_bytes)]
            size.grow()
            page = current_page()
            if page is not None:
                page.at(position, last_position=int(idxs[-1]))
            data = dataset.read_seqs(idxs, keys.keys)
            assert data is not None, f"{dataset!r}: read_seqs gave data before, and now None"
            if type(dataset).get_complete_frac is Dataset.get_complete_frac:
                fracs = (idxs + 1) / num_seqs
            else:
                values = [complete_frac(dataset, int(i)) for i in idxs]
                fracs = numpy.array([numpy.nan if v is None else v for v in values])
            yield SeqBlock(dataset.get_seq_tags(idxs), fracs, dict(data))
            position = int(idxs[-1]) + step


def complete_frac(dataset: Dataset, position: int) -> float | None:
    """:return: how much of the epoch is done after this sequence; None: not known exactly"""
    try:
        return dataset.get_complete_frac(position, allow_only_lr_suitable=True)
    except (NotImplementedError, TypeError):  # TypeError: an override without the keyword
        return None


def serve_dataset(conn: Connection, job: DatasetJob) -> None:
    """Main function of the process, see :class:`returnn.datasets._procs.process.ChildProcess`."""
    state.worker_id = state.worker_id or job.index
    _Server(conn, job).serve()
