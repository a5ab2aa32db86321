"""
Torch data loaders from stages, for code that builds its own pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch.utils.data

from returnn.errors import ConfigError
from returnn.options.batching import BatchingOptions
from returnn.torch.data.batching import BatchingIterDataPipe
from returnn.torch.data.chunking import ChunkingIterDataPipe
from returnn.torch.data.collate import collate_batch
from returnn.torch.data.custom_batching import make_batches
from returnn.torch.data.len_filter import LenFilterDataPipe
from returnn.torch.data.shuffling import ShufflingDataPipe

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["get_batching_iterable_dataset_from_config", "create_data_loader_from_batches"]


def get_batching_iterable_dataset_from_config(
    *, dataset: torch.utils.data.IterableDataset, config: Config | Mapping[str, Any], train: bool
) -> torch.utils.data.IterableDataset:
    """
    :param dataset: sequences, e.g. ReturnnDatasetIterDataPipe
    :param config: with batch_size and co. Any: options
    :param train: for training data
    :return: length filter, chunking, batching and (in training) shuffling of batches over the dataset, as far as the
        options ask for them: gives lists of sequences
    :raises ConfigError: invalid options
    """
    options = BatchingOptions.from_config(config, role="train" if train else "eval")
    if options.min_seq_length is not None or options.max_seq_length is not None:
        dataset = LenFilterDataPipe(dataset, options.min_seq_length, options.max_seq_length)
    if options.chunking is not None:
        dataset = ChunkingIterDataPipe(dataset, options.chunking)
    batches: Any
    if options.custom is not None:
        batches = make_batches(options.custom, dataset, train=train)
    else:
        batches = BatchingIterDataPipe(
            dataset,
            batch_size=options.batch_size,
            max_seqs=options.max_seqs,
            drop_last=options.drop_last,
            packed_batch_size=options.packed_batch_size,
            count_scalars=options.count_scalars,
        )
    if train and options.online_shuffle is not None:
        batches = ShufflingDataPipe(
            batches, buffer_size=options.online_shuffle.buffer_size, seed=options.online_shuffle.seed
        )
    return batches


def create_data_loader_from_batches(
    batches_dataset: torch.utils.data.Dataset, loader_opts: Mapping[str, Any] | None = None
) -> torch.utils.data.DataLoader:
    """
    :param batches_dataset: gives lists of sequences, e.g. BatchingIterDataPipe
    :param loader_opts: keyword arguments of torch's DataLoader. ``num_workers`` defaults to 1. Any: as there
    :return: loader of collated batches, see :func:`returnn.torch.data.collate.collate_batch`
    :raises ConfigError: an option that contradicts
    """
    opts = dict(loader_opts or {})
    if opts.get("batch_size") is not None:
        raise ConfigError("torch_dataloader_opts: batch_size must not be set, the dataset already gives batches.")
    opts["batch_size"] = None
    opts.setdefault("collate_fn", collate_batch)
    if opts.setdefault("num_workers", 1) > 0:
        opts.setdefault("persistent_workers", True)
        context = opts.setdefault("multiprocessing_context", "spawn")
        if context == "spawn_non_daemonic":  # mainline's own context
            opts["multiprocessing_context"] = "spawn"
    return torch.utils.data.DataLoader(batches_dataset, **opts)
