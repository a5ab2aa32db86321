"""
Ready functions for ``map_seq_stream``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from returnn.errors import DatasetOptionError, UnknownDataKeyError
from returnn.tensor import TensorDict

__all__ = ["LaplaceOrdering", "Sequential"]


class LaplaceOrdering:
    """
    Sorts each n consecutive sequences by length, in turn up and down: little padding, although the whole epoch is
    never in memory. As the ordering ``laplace:.n``, for streams.
    """

    preserves_num_seqs = True

    def __init__(self, num_seqs_per_bin: int, length_key: str = "data") -> None:
        """
        :param num_seqs_per_bin: n
        :param length_key: stream whose first axis is the length
        """
        if not isinstance(num_seqs_per_bin, int) or num_seqs_per_bin < 1:
            raise DatasetOptionError(
                f"LaplaceOrdering: num_seqs_per_bin must be an int >= 1, got {num_seqs_per_bin!r}."
            )
        self.num_seqs_per_bin = num_seqs_per_bin
        self.length_key = length_key

    def __call__(self, iterator: Iterator[TensorDict], **_kwargs: Any) -> Iterator[TensorDict]:
        """
        :param iterator: sequences with complete_frac
        :return: the same, sorted within bins. complete_frac keeps increasing
        :raises UnknownDataKeyError: (a KeyError) no complete_frac or length_key
        """
        iterator = iter(iterator)
        current = self._read(iterator, self.num_seqs_per_bin)
        is_reverse = False
        while current:
            fracs = [tensors.data["complete_frac"] for tensors in current]
            is_last = len(current) < self.num_seqs_per_bin
            # Equal lengths keep their order, also in reverse.
            current.sort(key=self._length, reverse=is_reverse)
            following: list[TensorDict] = []
            for tensors, frac in zip(current, fracs, strict=True):
                tensors.data["complete_frac"] = frac
                yield tensors
                if not is_last:
                    following += self._read(iterator, 1)
            current = following
            is_reverse = not is_reverse

    def _length(self, tensors: TensorDict) -> int:
        return int(tensors.data[self.length_key].raw_tensor.shape[0])

    def _read(self, iterator: Iterator[TensorDict], num: int) -> list[TensorDict]:
        result: list[TensorDict] = []
        while len(result) < num:
            tensors = next(iterator, None)
            if tensors is None:
                break
            for key in (self.length_key, "complete_frac"):
                if key not in tensors.data:
                    raise UnknownDataKeyError(
                        f"LaplaceOrdering: a sequence has no {key!r}, only {sorted(tensors.data)}. Functions before it "
                        "must keep complete_frac, and the wrapped dataset must know its number of sequences."
                    )
            result.append(tensors)
        return result


class Sequential:
    """Several such functions, one after the other."""

    def __init__(self, *postprocessing_funcs: Callable[..., Iterator[TensorDict]]) -> None:
        """
        :param postprocessing_funcs: the first one goes first
        """
        self.postprocessing_funcs = postprocessing_funcs
        self.preserves_num_seqs = all(getattr(func, "preserves_num_seqs", False) for func in postprocessing_funcs)

    def __call__(self, iterator: Iterator[TensorDict], **kwargs: Any) -> Iterator[TensorDict]:
        """
        :param iterator: sequences
        :param kwargs: for each function. Any: epoch, rng, and more in later versions
        """
        for func in self.postprocessing_funcs:
            iterator = func(iterator, **kwargs)
        return iterator
