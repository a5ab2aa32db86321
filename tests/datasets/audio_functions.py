"""Functions for the option audio of OggZipDataset. Apart from the tests, so that worker processes import only this."""

from __future__ import annotations

import numpy as np

__all__ = ["flip_sign"]


def flip_sign(audio: np.ndarray, sample_rate: int, random_state: np.random.RandomState) -> np.ndarray:
    """:return: as pre_process, with random draws"""
    return audio * random_state.choice([-1.0, 1.0]) + random_state.uniform(size=audio.shape)
