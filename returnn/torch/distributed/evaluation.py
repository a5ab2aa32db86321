"""
Losses of one pass over a dataset of which each rank had a part.

Each rank adds up its steps in double precision; the sums of the ranks are added exactly (:func:`math.fsum`), on all ranks in
the same order, so that all have the same scores and draw the same conclusions from them (learning rates, cleanup).

How exact: losses of float32 or less have 24 bits, so sums of them in double precision (53 bits) are exact unless their sizes
differ by more than 2^29. So the score of several ranks equals that of one process to the last bit if the batches are the
same. If they are not (each rank makes batches of its own sequences), the losses of the batches themselves are rounded
differently, which is the usual tolerance of float32, about 1e-7 of the loss of a batch.
"""

from __future__ import annotations

from returnn.engine.losses import LossAccumulator
from returnn.torch.distributed.context import DistributedContext

__all__ = ["merge_losses"]


def merge_losses(ctx: DistributedContext, losses: LossAccumulator) -> LossAccumulator:
    """
    To be called on all ranks. A rank whose part was empty takes part with no losses.

    :param ctx: the ranks
    :param losses: of one pass, of this rank
    :return: of all ranks together; the same on all of them. Losses are in the order of the first rank that has them
    """
    return LossAccumulator.of_sums(ctx.all_gather_objects(losses.sums()))
