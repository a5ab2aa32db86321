"""The order of evaluation datasets in the mainline dialect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset
    from returnn.options.data import DatasetDict

__all__ = ["sort_eval_dataset"]


def sort_eval_dataset(dataset: Dataset, opts: DatasetDict) -> None:
    """
    RETURNN evaluates by length, shortest first, unless the dataset says another order: batches have less padding then.
    Datasets that are made of others, which have orders of their own, stay as they are.

    :param dataset: just built; changed
    :param opts: of the config, from which it was built
    """
    target: Any = dataset  # Any: not all classes have all attributes
    has_own_order = isinstance(opts, dict) and ("seq_ordering" in opts or "seq_order_control_dataset" in opts)
    is_compound = getattr(target, "datasets", None) is not None or hasattr(target, "dataset")
    if has_own_order or is_compound or getattr(target, "seq_ordering", None) != "default":
        return
    if target.supports_seq_order_sorting():
        target.seq_ordering = "sorted"
