"""Join successive frames to longer ones."""

from __future__ import annotations

import numpy

__all__ = ["join_frames"]


def join_frames(features: numpy.ndarray, num_joined: int) -> numpy.ndarray:
    """
    :param features: ``[time, dim]`` or ``[time, channel, dim]``
    :param num_joined: J. The last frame is repeated up to a multiple of it
    :return: ``[ceil(time / J), (channel,) J * dim]``, earlier frames first; channels stay apart
    """
    num_frames = len(features)
    num_missing = -num_frames % num_joined
    if num_missing:
        features = numpy.concatenate([features, features[-1:].repeat(num_missing, axis=0)])
    num_out = len(features) // num_joined
    if features.ndim == 2:
        return features.reshape(num_out, -1 if num_out else features.shape[1] * num_joined)
    num_channels, dim = features.shape[1:]
    by_channel = features.reshape(num_out, num_joined, num_channels, dim).transpose(0, 2, 1, 3)
    return by_channel.reshape(num_out, num_channels, num_joined * dim)
