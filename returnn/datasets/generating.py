"""Datasets without files or from original corpora, all in one place; implemented in ``_generating``."""

from __future__ import annotations

import numpy

from returnn.datasets._generating.artificial import (
    DummyDataset,
    DummyDatasetMultipleDataKeys,
    DummyDatasetMultipleSequenceLength,
    DummyGenericDataset,
)
from returnn.datasets._generating.base import GeneratingDataset
from returnn.datasets._generating.enwik8 import Enwik8Corpus
from returnn.datasets._generating.librispeech import LibriSpeechCorpus
from returnn.datasets._generating.static import StaticDataset
from returnn.datasets._generating.tasks import (
    CopyTaskDataset,
    Task12AXDataset,
    TaskEpisodicCopyDataset,
    TaskNumberBaseConvertDataset,
    TaskVariableAssignmentDataset,
    TaskXmlModelingDataset,
)
from returnn.datasets._generating.timit import NltkTimitDataset, TimitDataset
from returnn.datasets.basic import Dataset, DatasetSeq, convert_data_dims
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.util.vocabulary import BytePairEncoding, CharacterTargets, Vocabulary

__all__ = [
    "numpy",
    "Dataset",
    "DatasetSeq",
    "CachedDataset2",
    "convert_data_dims",
    "GeneratingDataset",
    "StaticDataset",
    "DummyDataset",
    "DummyDatasetMultipleSequenceLength",
    "DummyDatasetMultipleDataKeys",
    "DummyGenericDataset",
    "CopyTaskDataset",
    "Task12AXDataset",
    "TaskEpisodicCopyDataset",
    "TaskXmlModelingDataset",
    "TaskVariableAssignmentDataset",
    "TaskNumberBaseConvertDataset",
    "TimitDataset",
    "NltkTimitDataset",
    "LibriSpeechCorpus",
    "Enwik8Corpus",
    "Vocabulary",
    "BytePairEncoding",
    "CharacterTargets",
]
