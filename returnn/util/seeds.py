"""
Seeds, each derived from (configured seed, epoch, step, rank).
"""

from __future__ import annotations

from returnn.util.math import merge_random_seeds

__all__ = ["epoch_seed", "merge_random_seeds", "model_creation_seed"]


def epoch_seed(*, epoch: int, global_step: int, random_seed: int, rank: int | None = None) -> int:
    """
    Seed of torch at the start of the training pass of an epoch, as RETURNN has it.

    :param epoch: from 1
    :param global_step: training steps done before
    :param random_seed: of the config
    :param rank: of this process; None: there is only one
    :return: int of 32 bits
    """
    return merge_random_seeds([epoch, global_step, random_seed, *([] if rank is None else [rank])])


def model_creation_seed(*, epoch: int, step: int, random_seed: int) -> int:
    """
    Seed of torch before the model is created, as the peers have it.

    :param epoch: of the start
    :param step: global train step of the start
    :param random_seed: of the config
    :return: int below 2 ** 31
    """
    return (epoch * 193939 + step * 19937 + random_seed * 27644437 + 479001599) % (2**31)
