"""
Public names of the data pipeline.
"""

from __future__ import annotations

from returnn.torch.data.batching import BatchingIterDataPipe
from returnn.torch.data.bucketing import BucketOrderingIterDataPipe
from returnn.torch.data.chunking import ChunkingIterDataPipe
from returnn.torch.data.collate import collate_batch, create_tensor
from returnn.torch.data.create import create_data_loader_from_batches, get_batching_iterable_dataset_from_config
from returnn.torch.data.len_filter import LenFilterDataPipe
from returnn.torch.data.shuffling import ShufflingDataPipe

__all__ = [
    "create_tensor",
    "collate_batch",
    "ChunkingIterDataPipe",
    "BatchingIterDataPipe",
    "LenFilterDataPipe",
    "BucketOrderingIterDataPipe",
    "ShufflingDataPipe",
    "get_batching_iterable_dataset_from_config",
    "create_data_loader_from_batches",
]
