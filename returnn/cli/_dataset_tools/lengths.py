"""Lengths of many sequences: statistics and histogram per data key."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

import numpy

from returnn.util.stats import Stats

__all__ = ["LengthTable"]

_BAR_WIDTH = 40


class LengthTable:
    """Lengths as one array per data key, 8 bytes per sequence."""

    def __init__(self, keys: Iterable[str]):
        """
        :param keys: data keys
        """
        self._lens = {key: array("q") for key in keys}

    def add(self, lens: Mapping[str, int]) -> None:
        """:param lens: of one sequence, for all keys"""
        for key, values in self._lens.items():
            values.append(lens[key])

    @property
    def keys(self) -> list[str]:
        """:return: data keys"""
        return list(self._lens)

    def lens(self, key: str) -> numpy.ndarray:
        """:return: int64 [num_seqs], of a data key"""
        return numpy.array(self._lens[key], dtype=numpy.int64)

    def stats(self, key: str) -> Stats:
        """:return: statistics over the sequences"""
        stats = Stats()
        lens = self.lens(key)
        stats.collect(lens)
        stats.num_seqs = len(lens)
        return stats

    def write(self, stream: TextIO, *, prefix: str, histogram_bins: int = 0) -> None:
        """
        :param stream: gets the statistics as text
        :param prefix: of the first line of each key
        :param histogram_bins: 0: no histogram
        """
        for key in self.keys:
            stats = self.stats(key)
            if not stats.num_seqs:
                print(f"{prefix}{key!r} Stats:\n  0 seqs", file=stream)
                continue
            stats.dump(stream=stream, stream_prefix=f"{prefix}{key!r} ")
            if histogram_bins:
                self._write_histogram(key, stream, prefix=prefix, num_bins=histogram_bins)

    def histogram(self, key: str, num_bins: int) -> tuple[list[int], list[int]]:
        """
        :param key: data key, with at least one sequence
        :param num_bins: at most so many, of equal width in whole frames
        :return: counts [n]; and bounds [n + 1]: bin i has the lengths bounds[i] <= length < bounds[i + 1]
        """
        lens = self.lens(key)
        low, high = int(lens.min()), int(lens.max())
        width = max(-(-(high - low + 1) // num_bins), 1)
        bounds = list(range(low, high + 1 + width, width))
        counts = numpy.bincount((lens - low) // width, minlength=len(bounds) - 1)
        return [int(count) for count in counts], bounds

    def _write_histogram(self, key: str, stream: TextIO, *, prefix: str, num_bins: int) -> None:
        counts, bounds = self.histogram(key, num_bins)
        quantiles = self.quantiles(key)
        print(f"{prefix}{key!r} Histogram:", file=stream)
        texts = [
            f"{first}..{end - 1}" if end - first > 1 else f"{first}"
            for first, end in zip(bounds[:-1], bounds[1:], strict=True)
        ]
        width = max(map(len, texts))
        count_width = len(str(max(counts)))
        for text, count in zip(texts, counts, strict=True):
            bar = "#" * (-(-count * _BAR_WIDTH // max(counts)))
            print(f"  {text:>{width}} {count:>{count_width}} {bar}".rstrip(), file=stream)
        print(f"  {', '.join(f'{name}: {value}' for name, value in quantiles.items())}", file=stream)

    def quantiles(self, key: str) -> dict[str, int]:
        """:return: percentiles by nearest rank: the smallest length that so many percent of the sequences do not exceed"""
        lens = numpy.sort(self.lens(key))
        return {f"{percent}%": int(lens[-(-len(lens) * percent // 100) - 1]) for percent in (5, 50, 95, 99)}

    def to_json(self, key: str, *, histogram_bins: int = 0) -> dict[str, Any]:
        """:return: statistics as plain numbers. Any: numbers and lists"""
        lens = self.lens(key)
        result: dict[str, Any] = {"num_seqs": len(lens), "num_frames": int(lens.sum())}
        if not len(lens):
            return result
        stats = self.stats(key)
        result.update(
            mean=float(stats.get_mean()),
            std_dev=float(stats.get_std_dev()),
            min=int(lens.min()),
            max=int(lens.max()),
            quantiles=self.quantiles(key),
        )
        if histogram_bins:
            counts, bounds = self.histogram(key, histogram_bins)
            result["histogram"] = {"counts": counts, "bounds": bounds}
        return result
