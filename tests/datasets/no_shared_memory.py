"""A dataset and a function whose processes send their data through pipes, as on systems without shared memory."""

from __future__ import annotations

from typing import Any

import numpy

from returnn._state import state
from returnn.datasets._loading import shared_slots
from returnn.datasets._procs import seq_blocks
from returnn.datasets.basic import DatasetSeq
from returnn.datasets.cached2 import CachedDataset2
from returnn.tensor import TensorDict

if state.in_worker:  # the processes import this module before they begin; a test does it for itself
    shared_slots.CAN_SHARE = seq_blocks.CAN_SHARE = False


class LargeSeqsDataset(CachedDataset2):
    """Each sequence is more than a pipe holds."""

    def __init__(self, num: int = 12, **kwargs: Any) -> None:
        """:param num: of sequences"""
        super().__init__(**kwargs)
        self.num = num
        self.num_inputs = 1
        self.num_outputs = {"data": (1, 2)}
        self.order = numpy.arange(0)

    def init_seq_order(self, epoch: int | None = None, seq_list: Any = None, seq_order: Any = None) -> bool:
        """All, or as given."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self.order = numpy.arange(self.num) if seq_order is None else seq_order
        self._num_seqs = len(self.order)
        return True

    def get_current_seq_order(self) -> numpy.ndarray:
        """:return: order"""
        return self.order

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """:return: number"""
        return self.num

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        if seq_idx >= len(self.order):
            return None
        data = numpy.full((100_000, 1), self.order[seq_idx], dtype="float32")
        return DatasetSeq(seq_idx, {"data": data}, seq_tag=f"seq-{self.order[seq_idx]}")


def negate(tensor_dict: TensorDict, **_kwargs: Any) -> TensorDict:
    """:return: with the data negated"""
    tensor_dict.data["data"].raw_tensor = -tensor_dict.data["data"].raw_tensor
    return tensor_dict
