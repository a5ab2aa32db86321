"""Datasets that combine other datasets."""

from returnn.datasets._basic.epoch_wise_filter import EpochWiseFilter
from returnn.datasets._meta.anything import AnythingDataset
from returnn.datasets._meta.by_seq_list import MetaDataset
from returnn.datasets._meta.clustering import ClusteringDataset
from returnn.datasets._meta.combined import CombinedDataset
from returnn.datasets._meta.concat import ConcatDataset
from returnn.datasets._meta.concat_seqs import ConcatSeqsDataset
from returnn.datasets._meta.multi_epoch import MultiEpochDataset
from returnn.datasets._meta.variable import VariableDataset

__all__ = [
    "AnythingDataset",
    "ClusteringDataset",
    "CombinedDataset",
    "ConcatDataset",
    "ConcatSeqsDataset",
    "EpochWiseFilter",
    "MetaDataset",
    "MultiEpochDataset",
    "VariableDataset",
]
