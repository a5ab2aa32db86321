"""
Buffers that training steps change, e.g. the statistics of BatchNorm, as they were before a step that is not to count.

A step whose loss or gradient is inf or nan changes no weights; but its forward pass has changed such buffers already.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase

from returnn.log import log

__all__ = ["BufferGuard"]

#: Steps in which all buffers are copied, since it is not known yet which ones change.
_NUM_LEARNING_STEPS = 4
#: Integer type of the same size, by the size of an element.
_INT_TYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class BufferGuard:
    """
    Of one model, in one training: :meth:`before_step`, then :meth:`undo_step` or :meth:`after_update`.

    Copies only the buffers that steps have changed so far: those whose values changed in the first steps, in which all are copied;
    later those whose tensor was replaced, or counts a change; and the statistics of torch's own layers that keep some, since their
    kernels change them without counting. Steps of one accumulation group count or do not count together.
    """

    def __init__(self, model: torch.nn.Module):
        """:param model: on its device"""
        self._buffers = [
            _Buffer(name, owner, key)
            for prefix, owner in model.named_modules()
            for key, value in owner._buffers.items()
            if value is not None
            for name in (f"{prefix}.{key}" if prefix else key,)
        ]
        self._statistics = [buffer for buffer in self._buffers if isinstance(buffer.owner, _NormBase)]
        self._changing: list[_Buffer] = []
        self._num_steps = 0
        self._is_learning = True
        self._group = _Copies([])  # when the accumulation group began
        self._step = _Copies([])  # when the step began, if it is not the first of its group

    @property
    def has_buffers(self) -> bool:
        """Whether there is anything to guard."""
        return bool(self._buffers)

    @property
    def changing(self) -> list[str]:
        """Names of the buffers that steps have changed so far."""
        return [buffer.name for buffer in self._changing]

    def before_step(self, step_idx: int, *, starts_group: bool) -> None:
        """
        :param step_idx: within the epoch
        :param starts_group: no gradients of earlier steps wait for an update
        """
        if self._is_learning or step_idx == 0:
            self._note_changes()
            if starts_group or not self._group.is_taken:
                self._choose()
        self._num_steps += 1
        self._step.is_taken = False
        if not self._group.buffers:
            return
        # A training that goes on within a group takes its start for that of the group.
        (self._group if starts_group or not self._group.is_taken else self._step).take()

    def undo_step(self) -> None:
        """The step that was just done does not count, those before it in the same accumulation group do."""
        (self._step if self._step.is_taken else self._group).put_back()
        self._find_others()

    def after_update(self, skipped: bool | torch.Tensor) -> None:
        """
        For :meth:`returnn.torch.updater.Updater.add_update_hook`.

        :param skipped: whether the steps of the group do not count. A tensor: float32 scalar on the device, 1.0 or 0.0; then it is
            not waited for
        """
        if isinstance(skipped, torch.Tensor):
            self._group.put_back_if(skipped)
        elif skipped:
            self._group.put_back()
            self._find_others()

    def _note_changes(self) -> None:
        changed = [buffer for buffer in self._statistics if buffer.owner.training]
        if self._num_steps:
            changed += [buffer for buffer in self._buffers if buffer.has_changed()]
        if self._is_learning:
            changed += self._group.changed()
        self._changing += [buffer for buffer in dict.fromkeys(changed) if buffer not in self._changing]
        for buffer in self._buffers:
            buffer.note()

    def _choose(self) -> None:
        self._is_learning = self._num_steps < _NUM_LEARNING_STEPS
        buffers = self._buffers if self._is_learning else self._changing
        if len(buffers) != len(self._group.buffers):
            self._group, self._step = _Copies(list(buffers)), _Copies(list(buffers))

    def _find_others(self) -> None:
        """A buffer that steps change only now cannot be put back this time."""
        others = [b for b in self._buffers if b not in self._group.buffers and b.has_changed()]
        if not others:
            return
        self._changing += [buffer for buffer in others if buffer not in self._changing]
        for buffer in others:
            buffer.note()
        print(
            f"Warning: buffers that steps did not change until now may have values of a step with inf or nan: "
            f"{', '.join(buffer.name for buffer in others[:5])}{', ...' if len(others) > 5 else ''}. They are guarded from now on.",
            file=log.v2,
        )
        self._is_learning = True  # that is: see at the next group what is to be copied


class _Buffer:
    """A name in a module; the tensor there can be replaced by another one."""

    def __init__(self, name: str, owner: torch.nn.Module, key: str):
        self.name = name
        self.owner = owner
        self.key = key
        self._noted: tuple[int, int | None] = (0, None)

    @property
    def tensor(self) -> torch.Tensor | None:
        """What is there now."""
        return self.owner._buffers.get(self.key)

    def put(self, tensor: torch.Tensor) -> None:
        """:param tensor: to be there"""
        if self.owner._buffers.get(self.key) is not tensor:
            self.owner._buffers[self.key] = tensor

    def note(self) -> None:
        """For :meth:`has_changed`."""
        self._noted = self._state()

    def has_changed(self) -> bool:
        """:return: whether it was, since :meth:`note`"""
        return self._noted[1] is None or self._state() != self._noted

    def _state(self) -> tuple[int, int | None]:
        tensor = self.tensor
        try:
            return id(tensor), 0 if tensor is None else tensor._version
        except RuntimeError:  # made in inference mode: it has no such counter
            return id(tensor), None


class _Copies:
    """Of some buffers."""

    def __init__(self, buffers: list[_Buffer]):
        self.buffers = buffers
        self.is_taken = False
        # In the order of their types, so that those of one type can be copied at once.
        self._holders: list[_Buffer] = []
        self._tensors: list[torch.Tensor] = []
        self._copies: list[torch.Tensor] = []
        self._parts: list[slice] = []
        self._can_reuse = False

    def take(self) -> None:
        """Of what they are now. In the hot path."""
        if self._can_reuse and all(
            buffer.owner._buffers.get(buffer.key) is tensor
            for buffer, tensor in zip(self._holders, self._tensors, strict=True)
        ):
            with contextlib.suppress(RuntimeError):  # e.g. its data has another shape now
                for part in self._parts:
                    torch._foreach_copy_(self._copies[part], self._tensors[part])
                self.is_taken = True
                return
        self._take_anew()

    def _take_anew(self) -> None:
        present = [(buffer, tensor) for buffer in self.buffers if (tensor := buffer.tensor) is not None]
        present.sort(key=lambda pair: _type_of(pair[1]))
        self._holders = [buffer for buffer, _ in present]
        self._tensors = [tensor for _, tensor in present]
        self._copies = [tensor.detach().clone() for tensor in self._tensors]
        starts = [i for i, x in enumerate(self._copies) if not i or _type_of(x) != _type_of(self._copies[i - 1])]
        self._parts = [slice(*bounds) for bounds in itertools.pairwise([*starts, len(present)])]
        self._can_reuse = bool(present) and not any(tensor.requires_grad for tensor in self._tensors)
        self.is_taken = True

    def changed(self) -> list[_Buffer]:
        """:return: those with other values now. Waits for the device"""
        if not self.is_taken:
            return []
        pairs = zip(self._holders, self._copies, strict=True)
        return [b for b, copy in pairs if b.tensor is None or not torch.equal(b.tensor, copy)]

    @torch.no_grad()
    def put_back(self) -> None:
        """As they were."""
        for part in self._parts:
            torch._foreach_copy_(self._tensors[part], self._copies[part])
        self._put_tensors()

    @torch.no_grad()
    def put_back_if(self, flag: torch.Tensor) -> None:
        """
        :param flag: float32 scalar on the device: 1.0: as they were; 0.0: as they are
        """
        now: list[Any] = [buffer.tensor for buffer in self._holders]  # Any: may be None
        groups: dict[tuple[torch.device, torch.dtype], tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for old, new, copy in zip(self._tensors, now, self._copies, strict=True):
            if new is not None and new is not old and _fit(new, old):
                old.copy_(new)  # the step has put another tensor in its place
            as_int = _INT_TYPES[old.element_size()] if not old.is_complex() else None
            if as_int is None or not old.numel():
                old.copy_(torch.where(flag.to(old.device) > 0, copy, old))
                continue
            targets, sources = groups.setdefault((old.device, as_int), ([], []))
            targets.append(old.view(as_int))
            sources.append(copy.view(as_int))
        for (device, dtype), (targets, sources) in groups.items():
            _select_bits(targets, sources, flag.to(device=device, dtype=dtype))
        self._put_tensors()

    def _put_tensors(self) -> None:
        for buffer, tensor in zip(self._holders, self._tensors, strict=True):
            buffer.put(tensor)


def _type_of(tensor: torch.Tensor) -> tuple[str, str]:
    return str(tensor.device), str(tensor.dtype)


def _fit(tensor: torch.Tensor, copy: torch.Tensor) -> bool:
    return tensor.shape == copy.shape and tensor.dtype == copy.dtype and tensor.device == copy.device


def _select_bits(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor], flag: torch.Tensor) -> None:
    """
    All at once, without waiting for the device. With integers it is exact (overflows wrap around), and nan has no effect.

    :param targets: integers, changed in place
    :param sources: of the same types and shapes
    :param flag: scalar of that type: 1: take the sources; 0: leave the targets
    """
    steps = torch._foreach_sub(list(sources), list(targets))
    torch._foreach_mul_(steps, flag)
    torch._foreach_add_(list(targets), steps)
