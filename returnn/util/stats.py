"""
Running mean and variance over sequences of vectors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import numpy

from returnn.util.fs import atomic_write

__all__ = ["Stats"]


class Stats:
    """
    Collects blocks of data; mean and population variance are over axis 0 of all blocks together.

    Any: values are numbers for 1-D data, and arrays otherwise.
    """

    def __init__(self, format_str: str | Callable[[Any], str] | None = None) -> None:
        """
        :param format_str: for the values in texts: a format specification such as ".3f", or a function. Default is str
        """
        self.format_str = format_str
        self.mean: Any = 0.0
        self.mean_sq: Any = 0.0
        self.var: Any = 0.0
        self.min: Any = None
        self.max: Any = None
        self.total_data_len = 0
        self.num_seqs = 0

    def collect(self, data: numpy.ndarray | Sequence[Any]) -> None:
        """
        Merge one block: exact in the sense of the pairwise algorithm of Chan et al.

        :param data: [T, ...], e.g. one sequence. Empty blocks count as nothing
        """
        data = original = numpy.asarray(data)
        if data.shape[0] == 0:
            return
        num_before, num_new = self.total_data_len, data.shape[0]
        num_total = num_before + num_new
        if data.dtype.kind in "biuf":
            data = data.astype(numpy.float64, copy=False)  # float32 would lose digits in sums over many frames
        new_mean = numpy.mean(data, axis=0)
        new_var = numpy.mean((data - new_mean) ** 2, axis=0)
        delta = new_mean - self.mean
        self.var = (self.var * num_before + new_var * num_new + delta**2 * num_before * num_new / num_total) / num_total
        self.mean = self.mean + (numpy.sum(data, axis=0) - self.mean * num_new) / num_total
        new_min, new_max = numpy.min(original, axis=0), numpy.max(original, axis=0)
        self.min = new_min if self.min is None else numpy.minimum(self.min, new_min)
        self.max = new_max if self.max is None else numpy.maximum(self.max, new_max)
        self.total_data_len = num_total
        self.num_seqs += 1

    def _check_data(self) -> None:
        if not self.num_seqs:
            raise AssertionError("Stats: expected some data before asking for statistics, got none.")

    def get_mean(self) -> Any:
        """:return: mean over axis 0; AssertionError without data"""
        self._check_data()
        return self.mean

    def get_std_dev(self) -> Any:
        """:return: square root of the population variance; AssertionError without data"""
        self._check_data()
        return numpy.sqrt(self.var)

    def _format(self, value: Any) -> str:
        if self.format_str is None:
            return str(value)
        if callable(self.format_str):
            return self.format_str(value)
        if numpy.ndim(value):
            return "[" + " ".join(format(v, self.format_str) for v in numpy.asarray(value).flat) + "]"
        return format(value, self.format_str)

    def _parts(self) -> list[tuple[str, str]]:
        parts = []
        if self.num_seqs:
            values = {"mean": self.get_mean(), "std_dev": self.get_std_dev(), "min": self.min, "max": self.max}
            parts += [(name, self._format(value)) for name, value in values.items()]
        parts.append(("num_seqs", str(self.num_seqs)))
        if self.num_seqs and self.total_data_len == self.num_seqs:
            parts.append(("avg_data_len", "1"))
        elif self.num_seqs:
            parts.append(("total_data_len", str(self.total_data_len)))
            parts.append(("avg_data_len", f"{self.total_data_len / self.num_seqs:f}"))
        return parts

    def __str__(self) -> str:
        return f"Stats({', '.join(f'{name}={text}' for name, text in self._parts())})"

    def dump(
        self, output_file_prefix: str | None = None, stream: TextIO | None = None, stream_prefix: str = ""
    ) -> None:
        """
        :param output_file_prefix: if given, also write ``<prefix>.mean.txt`` and ``<prefix>.std_dev.txt``
            by ``numpy.savetxt``, one value per line
        :param stream: gets the statistics as text; default is standard output
        :param stream_prefix: of the first line
        """
        stream = stream or sys.stdout
        print(f"{stream_prefix}Stats:", file=stream)
        if self.num_seqs != self.total_data_len:
            print(
                f"  {self.num_seqs} seqs, {self.total_data_len} total frames,"
                f" {self.total_data_len / max(self.num_seqs, 1):f} average frames",
                file=stream,
            )
        else:
            print(f"  {self.num_seqs} seqs", file=stream)
        print(f"  Mean: {self._format(self.get_mean())}", file=stream)
        print(f"  Std dev: {self._format(self.get_std_dev())}", file=stream)
        print(f"  Min/max: {self._format(self.min)} / {self._format(self.max)}", file=stream)
        if output_file_prefix:
            print(f"  Write mean/std-dev to {output_file_prefix}.(mean|std_dev).txt.", file=stream)
            for name, value in (("mean", self.get_mean()), ("std_dev", self.get_std_dev())):
                with atomic_write(f"{output_file_prefix}.{name}.txt", "wb") as file:
                    numpy.savetxt(file, numpy.atleast_1d(value))
