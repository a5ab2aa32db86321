"""Datasets that combine other datasets."""

from returnn.datasets._basic.epoch_wise_filter import EpochWiseFilter
from returnn.datasets._meta.by_seq_list import MetaDataset
from returnn.datasets._meta.combined import CombinedDataset

__all__ = ["CombinedDataset", "EpochWiseFilter", "MetaDataset"]
