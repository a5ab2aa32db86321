"""
Seeds, each derived from (configured seed, epoch, step, rank).
"""

from __future__ import annotations

from returnn.util.math import merge_random_seeds

__all__ = ["merge_random_seeds", "model_creation_seed"]


def model_creation_seed(*, epoch: int, step: int, random_seed: int) -> int:
    """
    Seed of torch before the model is created, as Mini-RETURNN has it.

    :param epoch: of the start
    :param step: global train step of the start
    :param random_seed: of the config
    :return: int below 2 ** 31
    """
    return (epoch * 193939 + step * 19937 + random_seed * 27644437 + 479001599) % (2**31)
