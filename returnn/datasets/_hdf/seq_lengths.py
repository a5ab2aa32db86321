"""Reading the lengths of all sequences, with their sums on the way: large files have them in the memory of the processor once."""

from __future__ import annotations

import h5py
import numpy as np

__all__ = ["read_with_sums", "FrameSums"]

#: Per column: the sum of its lengths, none of which is negative. None: not known.
FrameSums = tuple[int, ...] | None

# Rows that are read and added up at a time: they stay in the cache of a core.
_BLOCK_ROWS = 1 << 16
# Rows that are added to each other element by element: 32 bits hold the sums of a block then, see _MAX_LEN.
_LANES = 512
_MAX_LEN = 2**32 // (_BLOCK_ROWS // _LANES)


def read_with_sums(array: h5py.h5d.DatasetID) -> tuple[np.ndarray, FrameSums] | None:
    """
    :param array: ``seqLengths`` of an HDF file
    :return: lengths [num_seqs, columns] and their sums; None if it is not of the usual form: two axes, integers of 32 bits
    """
    shape, dtype = array.shape, array.dtype
    if shape is None or len(shape) != 2 or dtype.kind not in "iu" or dtype.itemsize != 4 or not dtype.isnative:
        return None
    lens = np.empty(shape, dtype=dtype)
    if not lens.size:
        return lens, (0,) * shape[1]
    # In chunks they are read whole: else a chunk would be unpacked again for each block.
    in_blocks = array.get_offset() is not None
    if not in_blocks:
        array.read(h5py.h5s.ALL, h5py.h5s.ALL, lens)
    space = array.get_space()
    unsigned = lens.view(np.uint32)  # a negative length is a very large one
    sums = [0] * shape[1]
    is_small = True
    for start in range(0, len(lens), _BLOCK_ROWS):
        block = unsigned[start : start + _BLOCK_ROWS]
        if in_blocks:
            space.select_hyperslab((start, 0), block.shape)
            array.read(h5py.h5s.create_simple(block.shape), space, lens[start : start + _BLOCK_ROWS])
        is_small = is_small and int(block.max()) < _MAX_LEN
        if is_small:
            sums = [total + part for total, part in zip(sums, _add_up(block), strict=True)]
    return lens, (tuple(sums) if is_small else None)


def _add_up(block: np.ndarray) -> list[int]:
    """
    :param block: uint32 [rows, columns], all less than _MAX_LEN
    :return: per column the sum. Whole rows of lanes are added, which numpy does far quicker than along a short axis
    """
    num_rows, num_columns = block.shape
    num_whole = num_rows - num_rows % _LANES
    sums = block[num_whole:].sum(axis=0, dtype=np.uint64)
    if num_whole:
        lanes = np.add.reduce(block[:num_whole].reshape(-1, _LANES * num_columns), axis=0, dtype=np.uint32)
        sums += lanes.reshape(_LANES, num_columns).sum(axis=0, dtype=np.uint64)
    result: list[int] = sums.tolist()
    return result
