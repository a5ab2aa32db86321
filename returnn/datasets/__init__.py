"""Datasets: everything that delivers sequences. Free of torch."""

from __future__ import annotations

from returnn.datasets.basic import Dataset, init_dataset, init_dataset_via_str

__all__ = ["Dataset", "init_dataset", "init_dataset_via_str"]
