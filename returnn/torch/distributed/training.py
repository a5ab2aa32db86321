"""What a training does differently if there are other ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch

from returnn.engine.pauses import PausePlan
from returnn.errors import ModelError, OptionError
from returnn.frontend.run_ctx import RunCtx
from returnn.log import log
from returnn.torch.distributed.context import DistributedContext
from returnn.torch.distributed.normalization import GlobalNorms
from returnn.torch.distributed.parameters import (
    average_parameters,
    broadcast_buffers,
    broadcast_model,
    check_equal,
    check_same_model,
)
from returnn.torch.distributed.step import GradientMode, ShardedGradients, make_gradient_mode
from returnn.torch.distributed.uneven import EvenSteps
from returnn.torch.updater import Updater, all_updaters
from returnn.util.math import merge_random_seeds

__all__ = ["RankedTraining"]

T = TypeVar("T")
#: (raw batch, run context) -> total loss. Any: tensors and lists by key.
Step = Callable[[Any, RunCtx], torch.Tensor]


class RankedTraining:
    """
    One training of several ranks, seen from one of them. As a function, it is the training step of the engine: the total loss
    whose gradients are brought together with those of the other ranks.
    """

    def __init__(
        self,
        ctx: DistributedContext,
        *,
        model: torch.nn.Module,
        step: Step,
        seeds: tuple[int, int, int],
        sharded: Any = None,
    ):
        """
        All ranks get parameters and buffers of rank 0, and other random numbers than rank 0.

        :param ctx: the ranks, with the options
        :param model: the user's, on its device
        :param step: calls the user's step function
        :param seeds: epoch, step and the option random_seed, for the random generators of torch
        :param sharded: the ShardedModel, with class "fsdp". Any: it is imported only then
        :raises UserError: the model or the options do not fit
        """
        self._ctx = ctx
        self._options = ctx.options
        self._model = model
        self._step = step
        self._is_sharded = sharded is not None
        self._uneven = self._options.uneven
        self._check_join()
        if sharded is None:
            check_same_model(ctx, model)
            broadcast_model(ctx, model)
        self._mode: GradientMode = make_gradient_mode(ctx, model) if sharded is None else ShardedGradients(sharded)
        self._norms = GlobalNorms(ctx) if self._options.loss_normalization == "global" else None
        self._pass: EvenSteps[Any] | None = None
        self._had_data = False  # since the last time the parameters were averaged
        self._trained = {param for param in model.parameters() if param.requires_grad}
        self._own_steps = False  # of a custom engine: all ranks have data in each of them
        #: time in the user's step function in this pass, which does not wait for other ranks
        self.secs_in_step = 0.0
        self._noise = torch.Generator(device=ctx.device)
        self._noise.manual_seed(merge_random_seeds(seeds, num_bytes=4))
        if ctx.rank:
            torch.manual_seed(merge_random_seeds([*seeds, ctx.rank], num_bytes=4))
        self._connected: list[Any] = []

    def _check_join(self) -> None:
        if self._uneven != "join":
            return
        for name, module in self._model.named_modules():
            if isinstance(module, torch.nn.SyncBatchNorm):
                raise OptionError(
                    "torch_distributed",
                    expected=f'"uneven": "stop", since {name or "the model"} is a SyncBatchNorm, which needs data on all ranks in each step',
                    got=self._uneven,
                )

    def connect(self, updater: Any, *, own_steps: bool) -> None:
        """
        Before each epoch, since custom engines may make their updaters late: let all updates wait for the gradients of the other ranks.

        :param updater: of the engine: an Updater, a dict or list of them, or what a custom engine has. Any: see there
        :param own_steps: a custom engine computes losses and updates in its own way: only right before an update, gradients are
            brought together
        :raises ModelError: there is no way to do so
        """
        self._own_steps = own_steps
        if own_steps and self._uneven == "join":
            print(
                'Note: the engine of the config has its own training steps, which cannot be done without data: uneven = "stop" is '
                "used, so the epoch ends with the first rank that has no data left.",
                file=log.v2,
            )
            self._uneven = "stop"
        ours = all_updaters(updater)
        items = list(updater.values()) if isinstance(updater, dict) else updater
        for item in items if isinstance(items, (list, tuple)) else [items]:
            if any(item is other for other in self._connected):
                continue
            self._connected.append(item)
            if any(item is other for other in ours):
                item.connect_ranks(self._mode.reduce_gradients, noise_generator=self._noise)
                if type(item).step is Updater.step:
                    continue
            optimizer = item if isinstance(item, torch.optim.Optimizer) else getattr(item, "optimizer", None)
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise ModelError(
                    f"The updater of the engine ({type(item).__name__}) has no attribute optimizer, so its gradients cannot be brought "
                    "together with those of other ranks. Derive it from returnn.torch.updater.Updater, or train in one process."
                )
            print(
                f"Note: {type(item).__name__} has its own step: the gradients of the ranks are averaged right before its optimizer "
                "changes the weights, so clipping works on those of each rank.",
                file=log.v2,
            )
            optimizer.register_step_pre_hook(self._reduce_for_optimizer)

    def _reduce_for_optimizer(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        self._mode.reduce_gradients([param for group in optimizer.param_groups for param in group["params"]])

    # ---- one step

    def begin_step(self, *, updates: bool) -> None:
        """:param updates: whether the weights will be updated after this step: only then gradients must be exchanged"""
        self._mode.set_gradient_sync(updates)

    def __call__(self, data: Any, run_ctx: RunCtx) -> torch.Tensor:
        """
        :param data: raw batch; None: only other ranks have data in this step
        :param run_ctx: of the step
        :return: total loss: the mean over the ranks of its gradients is what the update uses
        """
        if data is None:
            total = self._mode.empty_step()
            if self._norms is not None:
                self._norms.total_loss({})
            return total
        self._had_data = True
        return self._mode.run(lambda: self._total(self._timed_step(data, run_ctx), run_ctx))

    def _timed_step(self, data: Any, run_ctx: RunCtx) -> torch.Tensor:
        start = time.perf_counter()
        total = self._step(data, run_ctx)
        self.secs_in_step += time.perf_counter() - start
        return total

    def _total(self, local: torch.Tensor, run_ctx: RunCtx) -> torch.Tensor:
        if self._norms is not None:
            total = self._norms.total_loss(run_ctx.losses)
            return local if total is None else total
        num_active = self._pass.num_active if self._pass is not None else self._ctx.size
        if num_active == self._ctx.size or self._options.reduce_type == "param":
            return local
        return local * (self._ctx.size / num_active)  # the mean over the ranks that have data

    def all_usable(self, usable: bool) -> bool:
        """
        :param usable: whether the losses of this rank are no inf or nan
        :return: whether those of all ranks are; if not, there must be no backward(). For training on the CPU only, since the
            host waits
        """
        if self._options.reduce_type == "param":
            return usable  # each rank updates by itself
        bad = self._ctx.sum_on_host(torch.tensor([0.0 if usable else 1.0], dtype=torch.float64))
        if float(bad[0]) == 0.0:
            return True
        self._mode.drop_step()
        return False

    def after_step(self, num_steps: int) -> None:
        """:param num_steps: done so far, over all epochs"""
        if self._options.param_sync_step and num_steps % self._options.param_sync_step == 0:
            self._average()

    def _average(self) -> None:
        """A rank that had no data since the last time has nothing to say."""
        weight = 1.0 if self._had_data or self._own_steps else 0.0
        # A custom engine may switch requires_grad on and off between its updates.
        self._trained.update(param for param in self._model.parameters() if param.requires_grad)
        params = [param for param in self._model.parameters() if param in self._trained]
        average_parameters(self._ctx, params, weight=weight, on_cpu=self._options.sync_on_cpu)
        self._had_data = False

    # ---- one pass over the data

    def even_batches(
        self,
        batches: Iterable[T],
        complete_frac: Callable[[], float | None],
        *,
        pauses: PausePlan | None = None,
        steps_before: int = 0,
    ) -> Iterator[T | None]:
        """
        :param batches: of this rank
        :param complete_frac: which part of the epoch is done with the batch read last
        :param pauses: gets the pauses that the ranks agree on
        :param steps_before: number of training steps done before, over all epochs
        :return: as many on all ranks, see EvenSteps
        """
        self._pass = EvenSteps(self._ctx, uneven=self._uneven, pauses=pauses, steps_before=steps_before)
        self.secs_in_step = 0.0
        return self._pass.iterate(batches, complete_frac)

    @property
    def is_in_pass(self) -> bool:
        """Whether the ranks step together through :meth:`even_batches`."""
        return self._pass is not None

    @property
    def complete_frac(self) -> float | None:
        """:return: which part of the epoch is done with the current step, the same number on all ranks; None: unknown"""
        return None if self._pass is None else self._pass.complete_frac

    # ---- checkpoints inside an epoch

    def own_state(self, model: torch.nn.Module, *, with_gradients: bool) -> dict[str, Any]:
        """
        :param model: the user's
        :param with_gradients: there are some that are not applied yet
        :return: what is special to this rank between two steps, on the host: for :meth:`load_own_state`. Any: tensors by name
        """
        state: dict[str, Any] = {
            "noise": self._noise.get_state(),
            "buffers": {name: buffer.detach().cpu().clone() for name, buffer in model.named_buffers()},
        }
        if with_gradients:
            grads = {name: param.grad for name, param in model.named_parameters() if param.grad is not None}
            state["gradients"] = {name: grad.detach().cpu().clone() for name, grad in grads.items()}
        return state

    @torch.no_grad()
    def load_own_state(self, state: Mapping[str, Any], model: torch.nn.Module) -> None:
        """
        :param state: of :meth:`own_state`, of this rank. Any: as there
        :param model: the user's, on its device
        """
        self._noise.set_state(state["noise"])
        buffers = dict(model.named_buffers())
        for name, value in state["buffers"].items():
            if name in buffers and buffers[name].shape == value.shape:
                buffers[name].copy_(value)
        params = dict(model.named_parameters())
        for name, grad in state.get("gradients", {}).items():
            if name in params:
                params[name].grad = grad.to(device=params[name].device, dtype=params[name].dtype)

    def after_pass(self, *, epoch: int) -> None:
        """
        All ranks have the same model then.

        :param epoch: that was trained
        :raises DistributedError: they have not
        """
        self._pass = None
        if self._norms is not None:
            self._norms.agree()
        if self._is_sharded:
            return
        if self._options.reduce_type == "param":
            self._average()
        broadcast_buffers(self._ctx, self._model)
        check_equal(self._ctx, self._model, what=f"After epoch {epoch},")
