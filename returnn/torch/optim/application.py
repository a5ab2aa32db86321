"""The part of the updater that changes the weights by the gradients as they are: noise, clipping, inf and nan, mixed precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch

from returnn.engine.host_copy import HostCopy
from returnn.errors import NonFiniteGradientError
from returnn.frontend.run_ctx import Loss
from returnn.torch.distributed.tensors import whole_tensor
from returnn.torch.optim.direct_adam import DirectAdam
from returnn.torch.optim.gradients import found_in, found_nonfinite, grad_norm_loss, gradient_noise_
from returnn.torch.optim.skipped_updates import SkippedUpdates

__all__ = ["GradientApplication", "UpdateHook"]

#: Look at the scale on a device each so many updates.
_SCALE_CHECK_INTERVAL = 50
#: A GradScaler halves its scale at each invalid update. Below this, the model itself gives inf or nan.
_MIN_GRAD_SCALE = 1e-10
#: Told whether an update was skipped, see :meth:`returnn.torch.updater.Updater.add_update_hook`.
UpdateHook: TypeAlias = Callable[[bool | torch.Tensor], None]


class GradientApplication:
    """Base of the updater; uses attributes that the updater sets."""

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer | None
    _grad_scaler: torch.amp.GradScaler | None
    _grad_clip: float | None
    _grad_clip_norm: float | None
    _grad_noise: float
    _log_grad_norm: float | None
    _update_hooks: tuple[UpdateHook, ...]
    _num_updates: int
    _num_accumulated: int
    _num_without_data: int
    _group_size: int
    _reported: dict[str, Loss] | None
    _reduce_gradients: Callable[[Iterable[torch.nn.Parameter]], None] | None
    _noise_generator: torch.Generator | None

    # Parameters of the network whose gradients are handled, and the network they are of.
    _grad_params: tuple[torch.nn.Parameter, ...] = ()
    _grad_params_of: torch.nn.Module | None = None
    # Makes the same updates as the optimizer, with less overhead.
    _direct_adam: DirectAdam | None = None
    # The scale of the gradients some updates ago.
    _sent_scale: HostCopy | None = None
    # Norm of the gradients of this update before clipping, if it is to be reported.
    _grad_norm: torch.Tensor | None = None

    @property
    def _skipped_updates(self) -> SkippedUpdates:
        raise NotImplementedError  # by Updater

    def _device_type(self) -> str:
        raise NotImplementedError  # by OptimizerCreation

    def _update(self) -> None:
        """One update with the gradients as they are; then they are cleared."""
        optimizer, scaler = self.optimizer, self._grad_scaler
        assert optimizer is not None, "create_optimizer was not called"
        if self._grad_params_of is not self.network:
            self._grad_params = tuple(self.network.parameters())
            self._grad_params_of = self.network
        if self._reduce_gradients is not None:
            self._reduce_gradients(self._grad_params)
        grads = [param.grad for param in self._grad_params if param.grad is not None]
        self._grad_norm = None
        skipped: bool | torch.Tensor = False
        if not grads and self._num_accumulated == self._num_without_data:
            self._num_accumulated = self._num_without_data = self._group_size = 0
            self._skipped_updates.update_ends()
            return
        if scaler is not None:
            if self._grad_noise or self._grad_clip or self._grad_clip_norm or self._log_grad_norm:
                scaler.unscale_(optimizer)  # also checks the gradients; else its step does
                self._change_gradients(grads)
            skipped = self._scaler_step(optimizer, scaler)
        elif not grads:
            optimizer.step()
            self._skipped_updates.count_valid()
        elif self._can_skip_on_device(optimizer, grads[0]):
            skipped = self._check_and_change_gradients(grads)
            self._step_unless_found_on_device(optimizer, skipped)
        elif not self._check_and_change_gradients(grads).item():
            self._step(optimizer)
            self._skipped_updates.count_valid()
        else:
            skipped = True
            self._skipped_updates.count_skipped("inf or nan in the gradients, update skipped")
        self._num_updates += 1
        _clear_gradients(optimizer)
        self._num_accumulated = self._num_without_data = self._group_size = 0
        if self._grad_norm is not None and self._log_grad_norm is not None:
            self._reported = grad_norm_loss(self._grad_norm, self._log_grad_norm)
        for hook in self._update_hooks:
            hook(skipped)
        self._skipped_updates.update_ends()
        self._skipped_updates.check()

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._direct_adam is None or self._direct_adam.optimizer is not optimizer:
            self._direct_adam = DirectAdam(optimizer)
        if not self._direct_adam.step():
            optimizer.step()

    def _check_and_change_gradients(self, grads: list[torch.Tensor]) -> torch.Tensor:
        """
        :param grads: those that there are
        :return: float32 scalar on their device: 1.0 if there is an inf or nan, or if their norm is
        """
        # Before clipping by value, which would make a large number of an inf.
        found = None if self._grad_clip_norm and not self._grad_clip else found_nonfinite(grads)
        norm = self._change_gradients(grads)
        if norm is None:
            assert found is not None
            return found
        bad_norm = found_in(norm)
        return bad_norm if found is None else torch.maximum(found, bad_norm)

    def _change_gradients(self, grads: list[torch.Tensor]) -> torch.Tensor | None:
        """
        Noise, norm for the report, clipping.

        :param grads: those that there are
        :return: total 2-norm before it was clipped, None if it was not needed
        """
        if self._grad_noise:
            gradient_noise_(self._grad_params, self._grad_noise, generator=self._noise_generator)
        order = self._log_grad_norm
        clip_gives_norm = order == 2.0 and bool(self._grad_clip_norm) and not self._grad_clip
        if order is not None and grads and not clip_gives_norm:
            self._grad_norm = whole_tensor(torch.nn.utils.get_total_norm(grads, order))
        if self._grad_clip:
            torch.nn.utils.clip_grad_value_(self._grad_params, self._grad_clip)
        if self._grad_clip_norm:
            norm = whole_tensor(torch.nn.utils.clip_grad_norm_(self._grad_params, self._grad_clip_norm))
            if clip_gives_norm:
                self._grad_norm = norm
            return norm
        return None

    # --- updates that decide on the device whether they are skipped

    @staticmethod
    def _can_skip_on_device(optimizer: torch.optim.Optimizer, grad: torch.Tensor) -> bool:
        """
        Fused optimizers read a flag on the device that says whether to do nothing: then the host need not wait for it.
        """
        return (
            grad.device.type != "cpu"
            and getattr(optimizer, "_step_supports_amp_scaling", False)
            and all(group.get("fused") for group in optimizer.param_groups)
        )

    def _step_unless_found_on_device(self, optimizer: torch.optim.Optimizer, found: torch.Tensor) -> None:
        """
        :param optimizer: fused
        :param found: 1.0: skip, 0.0: update; float32 scalar on the device
        """
        # The interface between torch.amp.GradScaler and fused optimizers.
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.found_inf = found  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
        self._skipped_updates.count_on_device(found)

    # --- mixed precision

    def _scaler_step(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> bool | torch.Tensor:
        """
        Updates with too large a scale have inf gradients and are skipped by the scaler: normal, but not for ever.

        :return: whether this one was, as :meth:`add_update_hook` tells it
        """
        skipped: bool | torch.Tensor = False
        on_cpu = self._device_type() == "cpu"
        scale_before = scaler.get_scale() if on_cpu else 0.0
        scaler.step(optimizer)
        if not on_cpu:
            # Private, but the only way to count without waiting for the device; update() clears it.
            states = getattr(scaler, "_per_optimizer_states", None) or {}
            for found in states.get(id(optimizer), {}).get("found_inf_per_device", {}).values():
                found = found.reshape(())
                self._skipped_updates.count_normal_on_device(found)
                skipped = found
                break
        scaler.update()
        if on_cpu and scaler.get_scale() < scale_before:
            skipped = True
            self._skipped_updates.count_normal()
        if on_cpu:
            self._check_scale(scaler.get_scale())
        elif self._sent_scale is not None and self._sent_scale.is_ready():
            self._check_scale(self._sent_scale.numbers()[0])
            self._sent_scale = None
        elif (self._num_updates + 1) % _SCALE_CHECK_INTERVAL == 0:
            # Private, as get_scale() waits for the device.
            scale = getattr(scaler, "_scale", None)
            if isinstance(scale, torch.Tensor):
                self._sent_scale = HostCopy([scale])
            else:
                self._check_scale(scaler.get_scale())
        return skipped

    @staticmethod
    def _check_scale(scale: float) -> None:
        """:raises NonFiniteGradientError: all updates were skipped for long"""
        if scale < _MIN_GRAD_SCALE:
            raise NonFiniteGradientError(
                f"All gradients have inf or nan values: the loss scale went down to {scale}, abort training. "
                "The weights were not changed by them. Try bfloat16, a lower learning rate, or gradient_clip_norm."
            )


def _clear_gradients(optimizer: torch.optim.Optimizer) -> None:
    if type(optimizer).zero_grad is not torch.optim.Optimizer.zero_grad:
        optimizer.zero_grad()
        return
    # What zero_grad() does, without its records for the profiler, which take 20 us.
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = None
