"""
Ragged: data of several sequences of different length in one flat array.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy

__all__ = ["Ragged"]


@dataclasses.dataclass(frozen=True, eq=False)
class Ragged:
    """
    :param flat: [sum of T, ...]: all frames, sequence after sequence. For scalars per sequence: [B]
    :param lens: int64 [B], number of frames of each; None for scalars per sequence (0-d data)
    """

    flat: numpy.ndarray
    lens: numpy.ndarray | None

    def __post_init__(self) -> None:
        if self.lens is None:
            return
        lens = numpy.asarray(self.lens, dtype=numpy.int64)
        object.__setattr__(self, "lens", lens)
        total = int(lens.sum())
        if lens.ndim != 1 or self.flat.ndim < 1 or total != self.flat.shape[0]:
            raise ValueError(
                f"Ragged: lens {lens.shape} sum up to {total} frames, but the flat array has shape {self.flat.shape}"
            )

    @classmethod
    def from_list(cls, arrays: Sequence[numpy.ndarray]) -> Ragged:
        """
        :param arrays: nonempty; each [T, ...] with the same shape after T, or all 0-d
        """
        if arrays[0].ndim == 0:
            return cls(numpy.stack(arrays), None)
        return cls(numpy.concatenate(arrays), numpy.array([len(a) for a in arrays], dtype=numpy.int64))

    @functools.cached_property
    def offsets(self) -> numpy.ndarray:
        """:return: int64 [B + 1]: sequence i is ``flat[offsets[i]:offsets[i + 1]]``"""
        if self.lens is None:
            return numpy.arange(len(self.flat) + 1, dtype=numpy.int64)
        offsets = numpy.zeros(len(self.lens) + 1, dtype=numpy.int64)
        numpy.cumsum(self.lens, out=offsets[1:])
        return offsets

    def __len__(self) -> int:
        return len(self.flat) if self.lens is None else len(self.lens)

    def __getitem__(self, idx: int) -> numpy.ndarray:
        """
        :param idx: sequence
        :return: view [T, ...]; 0-d for scalars
        """
        num = len(self)
        if not -num <= idx < num:
            raise IndexError(f"Ragged: sequence {idx} of {num}")
        idx %= num
        if self.lens is None:
            return self.flat[idx : idx + 1].reshape(self.flat.shape[1:])
        return self.flat[self.offsets[idx] : self.offsets[idx + 1]]

    def __iter__(self) -> Iterator[numpy.ndarray]:
        return (self[i] for i in range(len(self)))

    def to_padded(self, out: numpy.ndarray | None = None) -> numpy.ndarray:
        """
        :param out: array [B, max T or more, ...] to write into
        :return: [B, max T, ...], zeros behind the end of each sequence. Scalars: [B]
        """
        if self.lens is None:
            if out is None:
                return self.flat.copy()
            out[:] = self.flat
            return out
        num = len(self.lens)
        max_len = int(self.lens.max()) if num else 0
        if out is None:
            if num and int(self.lens.min()) == max_len:  # nothing to pad
                return self.flat.reshape((num, max_len) + self.flat.shape[1:]).copy()
            out = numpy.zeros((num, max_len) + self.flat.shape[1:], dtype=self.flat.dtype)
        elif out.shape[0] != num or out.shape[1] < max_len:
            raise ValueError(f"Ragged.to_padded: out has shape {out.shape}, needed [{num}, >= {max_len}, ...]")
        else:
            out[...] = numpy.zeros((), dtype=out.dtype) if out.dtype.kind != "O" else 0
        mask = numpy.arange(out.shape[1]) < self.lens[:, None]
        out[mask] = self.flat
        return out

    def select(self, idxs: numpy.ndarray | Sequence[int]) -> Ragged:
        """
        :param idxs: sequences, any order, repeats allowed
        :return: new Ragged with these
        """
        idxs = numpy.asarray(idxs, dtype=numpy.int64)
        if self.lens is None:
            return Ragged(self.flat[idxs], None)
        lens = self.lens[idxs]
        out_starts = numpy.cumsum(lens) - lens
        frames = numpy.repeat(self.offsets[:-1][idxs] - out_starts, lens) + numpy.arange(int(lens.sum()))
        return Ragged(self.flat[frames], lens)

    @staticmethod
    def concat(parts: Sequence[Ragged]) -> Ragged:
        """
        :param parts: nonempty
        :return: the sequences of all parts, one after the other
        """
        flat = numpy.concatenate([p.flat for p in parts])
        if parts[0].lens is None:
            return Ragged(flat, None)
        return Ragged(flat, numpy.concatenate([p.lens for p in parts if p.lens is not None]))
