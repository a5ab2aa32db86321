"""
How the gradients of a step reach the other ranks.

The user's function gets the plain model: what is wrapped is the *step*, a module that holds the model and whose forward
calls the function. Each way has the same methods: see :class:`GradientMode`.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import torch

from returnn.errors import ModelError, OptionError
from returnn.options.distributed import DistributedOptions
from returnn.torch.distributed.context import DistributedContext
from returnn.torch.distributed.gradients import reduce_gradients

if TYPE_CHECKING:
    from returnn.torch.distributed.sharded_model import ShardedModel

__all__ = [
    "ExplicitGradients",
    "GradientMode",
    "LocalGradients",
    "ShardedGradients",
    "StepModule",
    "WrappedStep",
    "make_gradient_mode",
]

StepFunction = Callable[[], torch.Tensor]


class GradientMode(Protocol):
    """Runs training steps; all ranks call the same methods in the same order."""

    def run(self, func: StepFunction) -> torch.Tensor:
        """
        :param func: calls the user's step function
        :return: what it returns: the total loss, for backward()
        """

    def empty_step(self) -> torch.Tensor:
        """
        For a step in which this rank has no data.

        :return: zero, with zero gradients; or without gradients, if there shall be no backward()
        """

    def drop_step(self) -> None:
        """There will be no backward() for the total loss of the last step."""

    def set_gradient_sync(self, value: bool) -> None:
        """:param value: whether backward() of the next step must bring the gradients of all ranks together"""

    def reduce_gradients(self, params: Iterable[torch.nn.Parameter]) -> None:
        """
        Right before an update: bring gradients together that no backward() has brought together.

        :param params: that will be updated
        """


class StepModule(torch.nn.Module):
    """A training step as a module: its parameters are those of the model, its forward is the user's step."""

    def __init__(self, model: torch.nn.Module, *, uses_all: bool = True):
        """
        :param model: the user's
        :param uses_all: a step without data gives all parameters zero gradients; else only the first
        """
        super().__init__()
        self.model = model
        self._uses_all = uses_all

    def forward(self, func: StepFunction | None) -> torch.Tensor:
        """
        :param func: calls the user's step function; None: no data
        :return: total loss
        """
        if func is not None:
            return func()
        params = [param for param in self.model.parameters() if param.requires_grad]
        if not params:
            raise ModelError("The model has no trainable parameter.")
        # Sums over nothing: zero whatever the values are, and zero gradients.
        return torch.stack([_empty_sum(param) for param in (params if self._uses_all else params[:1])]).sum()


def _empty_sum(param: torch.nn.Parameter) -> torch.Tensor:
    flat = (torch.view_as_real(param) if param.is_complex() else param).reshape(-1)
    return flat[:0].sum().float()


class LocalGradients:
    """reduce_type "param": each rank updates by itself."""

    def run(self, func: StepFunction) -> torch.Tensor:
        """See GradientMode."""
        return func()

    def empty_step(self) -> torch.Tensor:
        """See GradientMode."""
        return torch.zeros(())

    def drop_step(self) -> None:
        """Nothing to do."""

    def set_gradient_sync(self, value: bool) -> None:
        """Nothing to do."""

    def reduce_gradients(self, params: Iterable[torch.nn.Parameter]) -> None:
        """Nothing to do."""


class ExplicitGradients(LocalGradients):
    """reduce_type "grad_explicit": the mean over the ranks is taken right before each update."""

    def __init__(self, ctx: DistributedContext):
        """:param ctx: the ranks"""
        self._ctx = ctx

    def reduce_gradients(self, params: Iterable[torch.nn.Parameter]) -> None:
        """See GradientMode."""
        reduce_gradients(self._ctx, params)


class WrappedStep:
    """
    reduce_type "grad": DistributedDataParallel (or the class of the options) around the step reduces the gradients while
    backward() still computes others.
    """

    def __init__(self, ctx: DistributedContext, model: torch.nn.Module, options: DistributedOptions):
        """
        :param ctx: the ranks
        :param model: the user's, on its device
        :param options: class and its arguments
        :raises OptionError: these do not fit
        :raises ModelError: the model has no trainable parameter
        """
        self._ctx = ctx
        wrapper_class = _wrapper_class(options.wrapper)
        kwargs = dict(options.wrapper_options)
        self._checks_unused = not kwargs.get("find_unused_parameters") and not kwargs.get("static_graph")
        if kwargs.get("static_graph") and options.uneven == "join":
            raise OptionError(
                "torch_distributed",
                expected='"uneven": "stop" with the option "static_graph", since a step without data has another graph',
                got=options.uneven,
            )
        self._model = model
        step = StepModule(model, uses_all=not kwargs.get("find_unused_parameters"))
        if not any(param.requires_grad for param in model.parameters()):
            raise ModelError("The model has no trainable parameter, so there is nothing to train on several ranks.")
        try:
            self._module: torch.nn.Module = wrapper_class(step, **kwargs)
        except (TypeError, ValueError) as exc:
            raise OptionError(
                "torch_distributed",
                expected=f'"options" to be arguments of {getattr(wrapper_class, "__qualname__", wrapper_class)}',
                got=kwargs,
                todo=f"It says: {exc}",
            ) from exc
        self._can_defer = hasattr(self._module, "require_backward_grad_sync")
        self._is_reduced = False  # whether the last backward() brought the gradients together

    def run(self, func: StepFunction) -> torch.Tensor:
        """
        See GradientMode.

        :raises ModelError: parameters had no gradient in the step before
        """
        try:
            return self._call(func)
        except RuntimeError as exc:
            if "finished reduction in the prior iteration" in str(exc):
                raise ModelError(_unused_text([])) from exc
            raise

    def empty_step(self) -> torch.Tensor:
        """See GradientMode."""
        return self._call(None)

    def _call(self, func: StepFunction | None) -> torch.Tensor:
        self._is_reduced = not self._can_defer or bool(self._module.require_backward_grad_sync)
        return self._module(func)  # type: ignore[no-any-return]

    def drop_step(self) -> None:
        """See GradientMode."""
        self._is_reduced = False

    def set_gradient_sync(self, value: bool) -> None:
        """See GradientMode. What no_sync of DistributedDataParallel does: it holds for backward() too."""
        if self._can_defer:
            setattr(self._module, "require_backward_grad_sync", value)  # noqa: B010 (Module annotates its attributes)

    def reduce_gradients(self, params: Iterable[torch.nn.Parameter]) -> None:
        """
        See GradientMode.

        :raises ModelError: parameters have no gradient
        """
        params = list(params)
        if not self._is_reduced:
            reduce_gradients(self._ctx, params)
            return
        self._is_reduced = False
        if self._checks_unused:
            self._checks_unused = False
            names = {id(param): name for name, param in self._model.named_parameters()}
            unused = [names.get(id(p), "?") for p in params if p.requires_grad and p.grad is None]
            if unused:
                raise ModelError(_unused_text(unused))


class ShardedGradients:
    """class "fsdp": FSDP2 brings the gradients together in backward(), each rank has a part of them."""

    def __init__(self, model: ShardedModel):
        """:param model: made from the user's"""
        self._model = model
        self._syncs = True
        self._is_reduced = False

    def run(self, func: StepFunction) -> torch.Tensor:
        """See GradientMode."""
        self._is_reduced = self._syncs
        return self._model.run(func)

    def empty_step(self) -> torch.Tensor:
        """See GradientMode."""
        self._is_reduced = self._syncs
        return self._model.empty_step()

    def drop_step(self) -> None:
        """See GradientMode."""
        self._is_reduced = False
        self._model.reshard()

    def set_gradient_sync(self, value: bool) -> None:
        """See GradientMode."""
        self._syncs = value
        self._model.set_gradient_sync(value)

    def reduce_gradients(self, params: Iterable[torch.nn.Parameter]) -> None:
        """See GradientMode."""
        del params  # all of the model
        if not self._is_reduced:
            self._model.reduce_gradients()
        self._is_reduced = False


def _unused_text(names: list[str]) -> str:
    shown = ": " + ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else ""
    return (
        f"Some parameters of the model got no gradient in a training step{shown}. With several ranks, say what is wanted: set "
        'torch_distributed = {"options": {"find_unused_parameters": True}} (a little slower), or {"reduce_type": "grad_explicit"}, '
        "or set requires_grad = False for parameters that are not trained."
    )


def _wrapper_class(wrapper: str | Callable[..., Any] | None) -> Callable[..., torch.nn.Module]:
    """
    :param wrapper: class, function, dotted name, or name in torch.nn.parallel
    :raises OptionError: there is no such class
    """
    if wrapper is None:
        return torch.nn.parallel.DistributedDataParallel
    if not isinstance(wrapper, str):
        return wrapper
    module_name, _, attr = wrapper.rpartition(".")
    with contextlib.suppress(ImportError, AttributeError):
        found = getattr(importlib.import_module(module_name or "torch.nn.parallel"), attr)
        if callable(found):
            return found  # type: ignore[no-any-return]
    raise OptionError(
        "torch_distributed",
        expected='"class" to be "fsdp", "DistributedDataParallel", or the dotted name of a class or function',
        got=wrapper,
    )


def make_gradient_mode(ctx: DistributedContext, model: torch.nn.Module) -> GradientMode:
    """
    :param ctx: the ranks, with the options
    :param model: the user's, on its device; not sharded
    :return: as reduce_type says
    """
    options = ctx.options
    if options.reduce_type == "param":
        return LocalGradients()
    if options.reduce_type == "grad_explicit":
        return ExplicitGradients(ctx)
    return WrappedStep(ctx, model, options)
