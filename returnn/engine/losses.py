"""`LossAccumulator`: sums of losses and norm factors over the steps of one pass, fetched from the device rarely."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from returnn.engine.host_copy import HostCopy
from returnn.frontend.loss import Loss, Scalar

__all__ = ["LossAccumulator", "LossSums", "StepLosses"]

#: Steps whose losses stay on the device until they are sent to the host together. Each costs two scalars per loss.
_MAX_PENDING_STEPS = 100
#: Losses of some steps: step, per name value and norm factor.
_Steps = list[tuple[int, dict[str, tuple[torch.Tensor, Scalar | None]]]]


@dataclasses.dataclass
class StepLosses:
    """Fetched numbers of one step: per loss name the summed value and the norm factor (1 if it has none or zero)."""

    values: dict[str, float]
    norms: dict[str, float]

    def means(self) -> dict[str, float]:
        """:return: per loss name value / norm"""
        return {name: value / self.norms[name] for name, value in self.values.items()}

    def is_finite(self) -> bool:
        """:return: whether no value is inf or nan"""
        return all(math.isfinite(v) for v in self.values.values())


@dataclasses.dataclass
class LossSums:
    """
    Of some steps: per loss name the sum of the values and of the norm factors.

    :param values: sums
    :param norms: sums, of the same names
    :param num_steps: number of steps
    :param errors: names of those that are errors rather than losses
    :param nonfinite_steps: steps with inf or nan
    """

    values: dict[str, float]
    norms: dict[str, float]
    num_steps: int
    errors: set[str]
    nonfinite_steps: list[int]


class LossAccumulator:
    """
    Adds up in Python floats (double), in the order of the steps, as the peers do, but without waiting for the device
    in each step: on a GPU, tensors of 100 steps are sent together, and added up when they have come, or are asked for.
    """

    def __init__(self, *, skips_nonfinite: bool = False) -> None:
        """
        :param skips_nonfinite: an inf or nan of one step does not count in the means, as it does not change the weights. A
            loss that is never finite has the mean nan
        """
        self._skips_nonfinite = skips_nonfinite
        self._values: dict[str, float] = {}
        self._norms: dict[str, float] = {}
        self._pending: _Steps = []
        self._sent: collections.deque[tuple[_Steps, HostCopy]] = collections.deque()
        self._last: StepLosses | None = None
        #: steps with inf or nan among the fetched ones
        self.nonfinite_steps: list[int] = []
        #: number of steps added
        self.num_steps = 0
        #: names of the losses that are errors (``as_error``) rather than losses
        self.errors: set[str] = set()

    def add(self, losses: Mapping[str, Loss], step: int) -> None:
        """
        Add the losses of one step. The graph is released.

        :param losses: marked in the step
        :param step: number that :attr:`nonfinite_steps` shows
        """
        self.num_steps += 1
        self.errors.update(name for name, x in losses.items() if x.as_error)
        self._pending.append((step, {name: (x.loss.detach(), x.inv_norm_factor) for name, x in losses.items()}))
        if len(self._pending) >= _MAX_PENDING_STEPS:
            tensors = self._tensors()
            if _are_here(tensors):
                self.fetch()
                return
            self._sent.append((self._pending, HostCopy(tensors)))
            self._pending = []
            while self._sent and self._sent[0][1].is_ready():
                self._take_first()

    def fetch(self) -> None:
        """Add up all numbers. Waits for the device."""
        while self._sent:
            self._take_first()
        if self._pending:
            tensors = self._tensors()
            numbers = [float(t.item()) for t in tensors] if _are_here(tensors) else HostCopy(tensors).numbers()
            self._add_up(self._pending, numbers)
            self._pending = []

    def _tensors(self) -> list[torch.Tensor]:
        """:return: of the pending steps, in the order in which they are added up"""
        tensors: list[torch.Tensor] = []
        for _, losses in self._pending:
            for value, norm in losses.values():
                tensors.append(value)
                if isinstance(norm, torch.Tensor):
                    tensors.append(norm.detach())
        return tensors

    def _take_first(self) -> None:
        steps, copy = self._sent.popleft()
        self._add_up(steps, copy.numbers())

    def _add_up(self, steps: _Steps, fetched: Sequence[float]) -> None:
        """
        :param steps: the next ones
        :param fetched: numbers of their tensors
        """
        numbers = iter(fetched)
        for step, losses in steps:
            values, norms = {}, {}
            for name, (_, norm) in losses.items():
                values[name] = next(numbers)
                factor = next(numbers) if isinstance(norm, torch.Tensor) else float(1 if norm is None else norm)
                norms[name] = factor if factor else 1.0
            self._last = StepLosses(values, norms)
            if not self._last.is_finite():
                self.nonfinite_steps.append(step)
            for name, number in values.items():
                counts = not self._skips_nonfinite or math.isfinite(number)
                self._values[name] = self._values.get(name, 0.0) + (number if counts else 0.0)
                self._norms[name] = self._norms.get(name, 0.0) + (norms[name] if counts else 0.0)

    def last_step(self) -> StepLosses:
        """:return: numbers of the last added step; fetches"""
        self.fetch()
        return self._last if self._last is not None else StepLosses({}, {})

    def sums(self) -> LossSums:
        """:return: what was added so far; fetches"""
        self.fetch()
        return LossSums(
            dict(self._values), dict(self._norms), self.num_steps, set(self.errors), list(self.nonfinite_steps)
        )

    @classmethod
    def of_sums(cls, parts: Sequence[LossSums], *, skips_nonfinite: bool = False) -> LossAccumulator:
        """
        :param parts: each of other steps, e.g. of several processes
        :param skips_nonfinite: see the constructor, for further steps
        :return: all together. The sums are exact, so their order does not matter
        """
        names = list(dict.fromkeys(name for part in parts for name in part.values))
        merged = cls(skips_nonfinite=skips_nonfinite)
        merged._values = {
            name: _exact_sum(part.values[name] for part in parts if name in part.values) for name in names
        }
        merged._norms = {name: _exact_sum(part.norms[name] for part in parts if name in part.norms) for name in names}
        merged.num_steps = sum(part.num_steps for part in parts)
        merged.errors = set().union(*(part.errors for part in parts))
        merged.nonfinite_steps = [step for part in parts for step in part.nonfinite_steps]
        return merged

    def means(self) -> dict[str, float]:
        """:return: per loss name sum(values) / sum(norms) over all steps; fetches"""
        self.fetch()
        return {
            name: value / self._norms[name] if self._norms[name] else math.nan for name, value in self._values.items()
        }


def _are_here(tensors: Sequence[torch.Tensor]) -> bool:
    """:return: whether their numbers can be taken one by one, without waiting"""
    return all(tensor.is_cpu for tensor in tensors)


def _exact_sum(numbers: Iterable[float]) -> float:
    """:return: their sum, rounded once; inf and nan as in a sum one by one"""
    values = list(numbers)
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # too large in between; inf and -inf
        return sum(values)
