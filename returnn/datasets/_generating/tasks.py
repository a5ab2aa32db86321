"""
Artificial tasks: sequences of symbols with rules, to test models on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, TypeVar

import numpy

from returnn.datasets._generating.base import GeneratingDataset, one_hot
from returnn.datasets.basic import DatasetSeq
from returnn.errors import DatasetError

__all__ = [
    "Task12AXDataset",
    "TaskEpisodicCopyDataset",
    "TaskXmlModelingDataset",
    "TaskVariableAssignmentDataset",
    "TaskNumberBaseConvertDataset",
    "CopyTaskDataset",
]

T = TypeVar("T")


class _TaskDataset(GeneratingDataset):
    """The constructor of a task fixes the dims."""

    _getnewargs_exclude_attrs: ClassVar[Iterable[str]] = {"input_dim", "output_dim"}

    def _choice(self, options: Sequence[T]) -> T:
        """:return: as ``self.random.choice(options)``, the same draw"""
        return options[self.random.randint(0, len(options))]


class _SymbolTaskDataset(_TaskDataset):
    """Input symbols one-hot as "data", output symbols as "classes"."""

    _input_symbols: ClassVar[str]
    _output_symbols: ClassVar[str]

    def __init__(self, **kwargs: Any) -> None:
        """
        :param kwargs: ``num_seqs`` and those of :class:`Dataset`. Any: each has its own type
        """
        super().__init__(input_dim=len(self._input_symbols), output_dim=len(self._output_symbols), **kwargs)

    def _symbols_to_seq(self, seq_idx: int, inputs: Sequence[int], outputs: Sequence[int]) -> DatasetSeq:
        return DatasetSeq(
            seq_idx=seq_idx,
            features=one_hot(inputs, len(self._input_symbols)),
            targets=numpy.array(outputs, dtype="int32"),
        )


class Task12AXDataset(_SymbolTaskDataset):
    """
    12AX memory task: answer R on the X of "AX" if the last number was 1, and on the Y of "BY" if it was 2, else L.
    See O'Reilly & Frank (2006).
    """

    _input_symbols = "123ABCXYZ"
    _output_symbols = "LR"

    def get_random_seq_len(self) -> int:
        """:return: number of symbols"""
        return int(self.random.randint(10, 100))

    def generate_input_seq(self, seq_len: int) -> list[int]:
        """
        :param seq_len: number of symbols
        :return: input class indices
        """
        text = self._choice(["", "1", "2"])
        while len(text) < seq_len:
            if self.random.uniform() < 0.5:
                text += self._choice("12")
            if self.random.uniform() < 0.9:
                text += self._choice(["AX", "BY"])
            while self.random.uniform() < 0.5:
                text += self._choice(self._input_symbols)
        return [self._input_symbols.index(c) for c in text[:seq_len]]

    @classmethod
    def make_output_seq(cls, input_seq: Sequence[int]) -> list[int]:
        """
        :param input_seq: input class indices
        :return: output class indices, of the same length
        """
        outer = inner = ""
        result = []
        for idx in input_seq:
            symbol = cls._input_symbols[idx]
            output = "L"
            if symbol in "12":
                outer = symbol
            elif symbol in "AB":
                inner = symbol
            elif symbol in "XY":
                if outer + inner + symbol in ("1AX", "2BY"):
                    output = "R"
                inner = ""
            result.append(cls._output_symbols.index(output))
        return result

    def estimate_output_class_priors(self, num_trials: int, seq_len: int = 10) -> tuple[float, float]:
        """
        :param num_trials: number of sequences to draw
        :param seq_len: of each
        :return: share of L and R
        """
        counts = numpy.zeros(2)
        for _ in range(num_trials):
            counts += numpy.bincount(self.make_output_seq(self.generate_input_seq(seq_len)), minlength=2)
        return float(counts[0] / counts.sum()), float(counts[1] / counts.sum())

    def generate_seq(self, seq_idx: int) -> DatasetSeq:
        """See :func:`GeneratingDataset.generate_seq`."""
        inputs = self.generate_input_seq(self.get_random_seq_len())
        return self._symbols_to_seq(seq_idx, inputs, self.make_output_seq(inputs))


class TaskEpisodicCopyDataset(_SymbolTaskDataset):
    """Remember symbols over a long blank stretch, and repeat them after the first "."."""

    _input_symbols = _output_symbols = " .01234567"

    def generate_input_seq(self) -> list[int]:
        """:return: input class indices"""
        num = self.random.randint(1, 10)
        text = "".join(self._choice("01234567") for _ in range(num))
        text += " " * self.random.randint(1, 100)
        text += "." * (num + 2)
        return [self._input_symbols.index(c) for c in text]

    @classmethod
    def make_output_seq(cls, input_seq: Sequence[int]) -> list[int]:
        """
        :param input_seq: input class indices
        :return: output class indices, of the same length
        """
        end = list(input_seq).index(cls._input_symbols.index("."))
        memory = [idx for idx in input_seq[:end] if idx != 0]
        result = [0] * (end + 1) + memory
        return (result + [cls._output_symbols.index(".")] * len(input_seq))[: len(input_seq)]

    def generate_seq(self, seq_idx: int) -> DatasetSeq:
        """See :func:`GeneratingDataset.generate_seq`."""
        inputs = self.generate_input_seq()
        return self._symbols_to_seq(seq_idx, inputs, self.make_output_seq(inputs))


class TaskXmlModelingDataset(_SymbolTaskDataset):
    """Predict the next symbol of nested tags, where it can be known. See Zaremba & Sutskever (2015)."""

    _input_symbols = _output_symbols = " <>/abcdefgh"

    def __init__(self, limit_stack_depth: int = 4, **kwargs: Any) -> None:
        """
        :param limit_stack_depth: deepest nesting
        :param kwargs: ``num_seqs`` and those of :class:`Dataset`. Any: each has its own type
        """
        super().__init__(**kwargs)
        self.limit_stack_depth = limit_stack_depth

    def generate_input_seq(self) -> list[int]:
        """:return: input class indices"""
        text = " "
        stack: list[str] = []
        while True:
            if not stack or (len(stack) < self.limit_stack_depth and self.random.rand() > 0.6):
                length = self.random.randint(1, 10)
                tag = "".join(self._choice("abcdefgh") for _ in range(length))
                text += f"<{tag}>"
                stack.append(tag)
            else:
                text += f"</{stack.pop()}>"
            if not stack and self.random.rand() > 0.2:
                return [self._input_symbols.index(c) for c in text]

    @classmethod
    def make_output_seq(cls, input_seq: Sequence[int]) -> list[int]:
        """
        :param input_seq: input class indices
        :return: output class indices: the next symbol, or blank if it cannot be known
        """
        stack: list[str] = []
        mode = "start"
        result = ""
        for idx in input_seq:
            symbol = cls._input_symbols[idx]
            output = " "
            if symbol in " >":
                output, mode = "<", "start"
            elif symbol == "<":
                pass
            elif mode == "start" and symbol != "/":
                stack.append(symbol)
                mode = "opening"
            elif mode == "opening":
                stack[-1] += symbol
            elif stack[-1]:  # "/" or a further symbol of the closing tag
                mode = "closing"
                output, stack[-1] = stack[-1][0], stack[-1][1:]
            else:
                output = ">"
                stack.pop()
            result += output
        return [cls._output_symbols.index(c) for c in result]

    def generate_seq(self, seq_idx: int) -> DatasetSeq:
        """See :func:`GeneratingDataset.generate_seq`."""
        inputs = self.generate_input_seq()
        return self._symbols_to_seq(seq_idx, inputs, self.make_output_seq(inputs))


class TaskVariableAssignmentDataset(_SymbolTaskDataset):
    """Remember assignments ``S(key,value)`` and answer the query ``Q(key)``. See Zaremba & Sutskever (2015)."""

    _input_symbols = _output_symbols = " ,.SQ()abcdefgh"
    _letters = "abcdefgh"

    def _word(self, length: int) -> str:
        return "".join(self._choice(self._letters) for _ in range(length))

    def generate_input_seq(self) -> list[int]:
        """:return: input class indices"""
        values: dict[str, str] = {}
        for _ in range(self.random.randint(1, 5)):
            key_len = self.random.randint(2, 5)
            key = self._word(key_len)
            while key in values:
                key = self._word(key_len)
            values[key] = self._word(self.random.randint(1, 2))
        query = self._choice(list(values))
        text = ",".join(f"S({key},{value})" for key, value in values.items())
        text += f",Q({query}){values[query]}."
        return [self._input_symbols.index(c) for c in text]

    @classmethod
    def make_output_seq(cls, input_seq: Sequence[int]) -> list[int]:
        """
        :param input_seq: input class indices
        :return: output class indices: blank, but the value and "." from the end of the query on
        """
        text = "".join(cls._input_symbols[i] for i in input_seq)
        head, _, tail = text.rpartition(")")
        query = head.rpartition("Q(")[2]
        values = dict(part.split(",") for part in head.rpartition(",Q(")[0][2:-1].split("),S("))
        # tail is the value and ".", as seen from the input; the output is one symbol ahead.
        output = " " * len(head) + (values[query] + ".")[: len(tail)] + " "
        return [cls._output_symbols.index(c) for c in output]

    def generate_seq(self, seq_idx: int) -> DatasetSeq:
        """See :func:`GeneratingDataset.generate_seq`."""
        inputs = self.generate_input_seq()
        return self._symbols_to_seq(seq_idx, inputs, self.make_output_seq(inputs))


class TaskNumberBaseConvertDataset(_TaskDataset):
    """Convert a number to another base, digit sequence to digit sequence."""

    def __init__(
        self,
        input_base: int = 8,
        output_base: int = 2,
        min_input_seq_len: int = 1,
        max_input_seq_len: int = 8,
        **kwargs: Any,
    ) -> None:
        """
        :param input_base: 2 to 36
        :param output_base: 2 to 36
        :param min_input_seq_len: number of digits
        :param max_input_seq_len: inclusive
        :param kwargs: ``num_seqs`` and those of :class:`Dataset`. Any: each has its own type
        """
        for key, base in (("input_base", input_base), ("output_base", output_base)):
            if not 2 <= base <= 36:
                raise DatasetError(f'TaskNumberBaseConvertDataset: option "{key}" must be from 2 to 36, got {base!r}.')
        super().__init__(
            input_dim=input_base, output_dim={"data": (input_base, 1), "classes": (output_base, 1)}, **kwargs
        )
        if not 1 <= min_input_seq_len <= max_input_seq_len:
            raise DatasetError(
                f"{self._where()}: expected 1 <= min_input_seq_len <= max_input_seq_len, "
                f"got {min_input_seq_len}, {max_input_seq_len}."
            )
        self.input_base = input_base
        self.output_base = output_base
        self.min_input_seq_len = min_input_seq_len
        self.max_input_seq_len = max_input_seq_len
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"
        self.labels = {"data": list(digits[:input_base]), "classes": list(digits[:output_base])}

    def get_random_input_seq_len(self) -> int:
        """:return: number of digits"""
        return int(self.random.randint(self.min_input_seq_len, self.max_input_seq_len + 1))

    def generate_input_seq(self) -> list[int]:
        """:return: digits, most significant first"""
        length = self.get_random_input_seq_len()
        return [int(self.random.randint(0, self.input_base)) for _ in range(length)]

    def make_output_seq(self, input_seq: Sequence[int]) -> list[int]:
        """
        :param input_seq: digits
        :return: digits in the output base; [0] for zero
        """
        number = 0
        for digit in input_seq:
            number = number * self.input_base + digit
        result = [number % self.output_base]
        while number >= self.output_base:
            number //= self.output_base
            result.insert(0, number % self.output_base)
        return result

    def generate_seq(self, seq_idx: int) -> DatasetSeq:
        """See :func:`GeneratingDataset.generate_seq`."""
        inputs = self.generate_input_seq()
        return DatasetSeq(
            seq_idx=seq_idx,
            features=numpy.array(inputs, dtype="int32"),
            targets=numpy.array(self.make_output_seq(inputs), dtype="int32"),
        )


class CopyTaskDataset(_TaskDataset):
    """Input equals output; lengths may grow with the epoch."""

    def __init__(
        self,
        nsymbols: int,
        minlen: float = 0,
        maxlen: float = 0,
        minlen_epoch_factor: float = 0,
        maxlen_epoch_factor: float = 0,
        **kwargs: Any,
    ) -> None:
        """
        :param nsymbols: number of classes
        :param minlen: shortest sequence is int(minlen + minlen_epoch_factor * epoch)
        :param maxlen: longest, likewise; inclusive
        :param minlen_epoch_factor: see minlen
        :param maxlen_epoch_factor: see maxlen
        :param kwargs: ``num_seqs`` and those of :class:`Dataset`. Any: each has its own type
        """
        if not 1 <= nsymbols <= 256:
            raise DatasetError(f'CopyTaskDataset: option "nsymbols" must be from 1 to 256, got {nsymbols!r}.')
        super().__init__(input_dim=nsymbols, output_dim={"data": (nsymbols, 1), "classes": (nsymbols, 1)}, **kwargs)
        self.nsymbols = nsymbols
        self.minlen = minlen
        self.maxlen = maxlen
        self.minlen_epoch_factor = minlen_epoch_factor
        self.maxlen_epoch_factor = maxlen_epoch_factor

    def get_random_seq_len(self) -> int:
        """:return: number of symbols"""
        if not isinstance(self.epoch, (int, numpy.integer)):
            raise DatasetError(f"{self!r}: call init_seq_order(epoch=...) first.")
        low = int(self.minlen + self.minlen_epoch_factor * self.epoch)
        high = int(self.maxlen + self.maxlen_epoch_factor * self.epoch)
        if not 0 < low <= high:
            raise DatasetError(
                f"{self!r}: minlen and maxlen give sequence lengths from {low} to {high}, expected 0 < min <= max."
            )
        return int(self.random.randint(low, high + 1))

    def generate_seq(self, seq_idx: int) -> DatasetSeq:
        """See :func:`GeneratingDataset.generate_seq`."""
        length = self.get_random_seq_len()
        symbols = numpy.array([self.random.randint(0, self.nsymbols) for _ in range(length)], dtype="int32")
        return DatasetSeq(seq_idx=seq_idx, features=symbols, targets=symbols.copy())
