"""Matrix products which BLAS libraries compute in the calling thread."""

from __future__ import annotations

import numpy

__all__ = ["matmul_in_one_thread"]

#: OpenBLAS starts threads for more multiplications than this. For products as ours that is not faster, and where
#: several processes do it at once (two loader workers on two cores), all of them become five times slower.
_MAX_MULTIPLICATIONS = 4 * 65536


def matmul_in_one_thread(left: numpy.ndarray, right: numpy.ndarray, *, out: numpy.ndarray) -> None:
    """
    :param left: ``[rows, inner]``
    :param right: ``[inner, columns]``
    :param out: ``[rows, columns]``
    """
    num_rows = max(1, _MAX_MULTIPLICATIONS // max(1, right.size))
    for start in range(0, len(left), num_rows):
        rows = slice(start, start + num_rows)
        numpy.matmul(left[rows], right, out=out[rows])
