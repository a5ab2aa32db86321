"""
The random generators of the process that code of users draws from: numpy's and Python's global ones, and torch's if it is
imported. Their state is kept where reading a sequence draws from them, so that a pass can go on from there.
"""

from __future__ import annotations

import ctypes
import importlib
import random
import sys
from typing import Any, NamedTuple

import numpy

__all__ = ["Generators", "DrawWatch", "seed_generators"]

#: 624 words of 32 bits and the position in them: what numpy's MT19937 has at its state_address.
_MT19937_BYTES = 625 * 4


class Generators(NamedTuple):
    """
    The state of the generators, as plain values and arrays. torch: only that of the CPU; None: torch is not imported.
    """

    numpy: tuple[Any, ...]  # Any: of numpy.random.get_state
    python: tuple[Any, ...]  # Any: of random.getstate
    torch: numpy.ndarray | None  # uint8 [number of bytes]

    @classmethod
    def current(cls) -> Generators:
        """:return: the state now"""
        default = _torch_generator()
        torch_state = None if default is None else default.get_state().numpy()
        return cls(tuple(numpy.random.get_state()), random.getstate(), torch_state)

    def restore(self) -> None:
        """Bring the generators back to this state."""
        numpy.random.set_state(self.numpy)  # type: ignore[arg-type]  # the tuple that get_state gave
        random.setstate(self.python)
        if self.torch is not None:
            # The process that the state is of had imported it.
            torch: Any = importlib.import_module("torch")  # Any: not imported by this module on purpose
            torch.set_rng_state(torch.from_numpy(self.torch.copy()))


def seed_generators(numpy_seed: int, python_seed: int, torch_seed: int) -> None:
    """Seed them all. :param torch_seed: not used if torch is not imported"""
    numpy.random.seed(numpy_seed)
    random.seed(python_seed)
    default = _torch_generator()
    if default is not None:
        default.manual_seed(torch_seed)


def _torch_generator() -> Any:  # Any: torch is not imported here on purpose
    """:return: that of the CPU; None: torch is not imported, or not wholly yet"""
    return getattr(sys.modules.get("torch"), "default_generator", None)


def _mark() -> tuple[object, ...]:
    """:return: equal to an earlier one if nobody drew in between. Much faster than the whole state"""
    bits = numpy.random.get_bit_generator() if hasattr(numpy.random, "get_bit_generator") else None
    if isinstance(bits, numpy.random.MT19937):
        of_numpy: object = ctypes.string_at(bits.ctypes.state_address, _MT19937_BYTES)
    else:
        of_numpy = repr(numpy.random.get_state())
    default = _torch_generator()
    of_torch = default.get_state().numpy().tobytes() if default is not None else None
    return of_numpy, random.getstate(), of_torch


def _from_mark(mark: tuple[Any, ...]) -> Generators | None:  # Any: of _mark
    """:return: the state, but for half a pair of numpy's normal deviates"""
    of_numpy, of_python, of_torch = mark
    if not isinstance(of_numpy, bytes):
        return None
    words = numpy.frombuffer(of_numpy, dtype=numpy.uint32)
    torch_state = None if of_torch is None else numpy.frombuffer(of_torch, dtype=numpy.uint8)
    return Generators(("MT19937", words[:-1].copy(), int(words[-1]), 0, 0.0), of_python, torch_state)


class DrawWatch:
    """
    Notices whether reading sequences draws from the generators. From then on, the state before each sequence is kept.
    """

    def __init__(self) -> None:
        #: Reading drew from them in this pass.
        self.has_drawn = False
        #: The state before the sequence at work; None: not kept, nobody draws as far as we know.
        self.before_seq: Generators | None = None
        #: The state when the consumer wanted the batch whose reading drew for the first time.
        self.before_batch: Generators | None = None
        self._keeps = True  # for the first batch, until we know
        self._mark: tuple[object, ...] | None = None

    def reading_begins(self) -> None:
        """From here on until :func:`batch_is_read`, only reading may draw."""
        if not self.has_drawn:
            self._mark = _mark()

    def seq_begins(self) -> None:
        """Before a sequence is read."""
        if self._keeps:
            self.before_seq = Generators.current()

    def batch_is_read(self) -> None:
        """All sequences of a batch are read, and the first one of the next batch."""
        if not self.has_drawn:
            mark = _mark()
            if self._mark is not None and mark != self._mark:
                self.has_drawn = True
                self.before_batch = _from_mark(self._mark)
        if not self.has_drawn:
            self.before_seq = None
        self._keeps = self.has_drawn
