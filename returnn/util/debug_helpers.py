"""
For use in a debugger: find an object in the running program, look into HDF files.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, TypeVar

from returnn.util.optional_import import optional_import

__all__ = ["find_obj_in_stack", "SimpleHdf"]

_T = TypeVar("_T")


def find_obj_in_stack(cls: type[_T], stack: FrameType | None = None, all_threads: bool = True) -> _T | None:
    """
    :param cls: of the object
    :param stack: start at this frame; default is that of the caller
    :param all_threads: search also in the frames of the other threads
    :return: the first instance among the local variables, from the innermost frame on; None if there is none
    """
    starts = [stack if stack is not None else sys._getframe(1)]
    if all_threads:
        starts += [frame for frame in sys._current_frames().values() if frame is not starts[0]]
    for start in starts:
        frame: FrameType | None = start
        while frame is not None:
            for value in list(frame.f_locals.values()):
                if isinstance(value, cls):
                    return value
            frame = frame.f_back
    return None


class SimpleHdf:
    """Sequences of one HDF file by tag or index."""

    def __init__(self, filename: str) -> None:
        """
        :param filename: HDF file in the format of HDFDataset
        """
        self.filename = filename
        h5py = optional_import("h5py", needed_by="SimpleHdf")
        self.file = h5py.File(filename, "r")
        self.seq_tags = [tag.decode("utf8") if isinstance(tag, bytes) else tag for tag in self.file["seqTags"][:]]
        self.num_seqs = len(self.seq_tags)
        self._index_by_tag = {tag: i for i, tag in enumerate(self.seq_tags)}
        lens = self.file["seqLengths"][:]
        self.seq_lens = lens[:, 0] if lens.ndim > 1 else lens
        self.seq_starts = self.seq_lens.cumsum() - self.seq_lens

    def get_seq_tags(self) -> list[str]:
        """:return: all, in the order of the file"""
        return self.seq_tags

    def get_data(self, seq_idx: int | str) -> Any:
        """
        :param seq_idx: index or tag
        :return: inputs [T, ...] of that sequence
        """
        if isinstance(seq_idx, str):
            seq_idx = self._index_by_tag[seq_idx]
        start = int(self.seq_starts[seq_idx])
        return self.file["inputs"][start : start + int(self.seq_lens[seq_idx])]

    def close(self) -> None:
        """Close the file."""
        self.file.close()
