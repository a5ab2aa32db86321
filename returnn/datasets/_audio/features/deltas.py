"""Derivatives over time, as in ``librosa.feature.delta``, i.e. a Savitzky-Golay filter."""

from __future__ import annotations

import functools

import numpy

from returnn.errors import DatasetError, describe

__all__ = ["WIDTH", "compute_deltas", "with_deltas"]

#: frames of the filter; also the largest order plus one
WIDTH = 9


@functools.cache
def _weights(order: int) -> numpy.ndarray:
    """
    :param order: of the polynomial that is fitted to a window by least squares, and of its derivative
    :return: ``[position in the window, frame of the window]``: derivative at this position
    """
    positions = numpy.arange(WIDTH) - WIDTH // 2
    fit = numpy.linalg.pinv(numpy.vander(positions, order + 1, increasing=True))
    # The order-th derivative of a polynomial of this order is constant.
    derivative = fit[order] * float(numpy.prod(numpy.arange(1, order + 1)))
    derivative.setflags(write=False)
    return derivative


def compute_deltas(features: numpy.ndarray, order: int) -> numpy.ndarray:
    """
    :param features: ``[time, ...]`` with at least :data:`WIDTH` frames
    :param order: 1 to 8
    :return: same shape and dtype. At the edges: of the polynomial for the first or last window
    """
    weights = _weights(order).astype(features.dtype)
    num_inner = len(features) - WIDTH + 1
    result = numpy.zeros_like(features)
    inner = result[WIDTH // 2 : WIDTH // 2 + num_inner]
    for shift, weight in enumerate(weights):
        inner += features[shift : shift + num_inner] * weight
    result[: WIDTH // 2] = inner[0]
    result[WIDTH // 2 + num_inner :] = inner[-1]
    return result


def with_deltas(features: numpy.ndarray, num_deltas: int, *, where: str) -> numpy.ndarray:
    """
    :param features: ``[time, ..., dim]``
    :param num_deltas: highest order
    :param where: the sequence, for error texts
    :return: ``[time, ..., (num_deltas + 1) * dim]``: the features, their first derivative, ...
    :raises DatasetError: too few frames
    """
    if len(features) < WIDTH:
        raise DatasetError(
            describe(
                "The sequence is too short for with_delta",
                where=where,
                expected=f"at least {WIDTH} frames",
                got=len(features),
                todo="Leave out the sequence, or with_delta",
            )
        )
    return numpy.concatenate(
        [features, *(compute_deltas(features, order) for order in range(1, num_deltas + 1))], axis=-1
    )
