"""
The step function of the config, compiled by torch.compile.

The function is compiled as a whole: the model, the losses and their ``mark_as_loss`` calls. The model itself is not wrapped, so
that its parameters keep their names. What torch cannot compile (e.g. printing, files, ``.item()``) splits the function into several
graphs and runs as usual.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from returnn._state import state
from returnn.errors import ModelError, OptionError
from returnn.log import log
from returnn.options.compile import CompileOptions

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["CompiledStep", "compile_error", "compile_step_function"]

#: Modes whose results lie in memory that the next step uses again.
_CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")
#: In place of the argument with a random name that functions of the config get: a new name would be compiled anew.
_EXTRA_ARG = "__fwd_compat_random_arg_000"


def compile_step_function(config: Config | Mapping[str, Any], func: Callable[..., Any]) -> Callable[..., Any]:
    """
    :param config: with the option ``torch_compile``
    :param func: ``train_step`` of the config. Any: its arguments are those of the dialect
    :return: to be called in its place; the function itself if the option is not set
    :raises OptionError: see :class:`CompiledStep`
    """
    options = CompileOptions.from_config(config)
    return func if options is None else CompiledStep(func, options)


class CompiledStep:
    """Called as the function itself. It is compiled when it is first called in training, and when it is in evaluation."""

    def __init__(self, func: Callable[..., Any], options: CompileOptions):
        """
        :param func: of the config
        :param options: of the compilation
        :raises OptionError: torch knows no such backend or mode
        """
        self.__wrapped__ = func  # for inspect.signature
        self._func = func
        self._options = options
        self._failed = False
        self._has_cuda_graphs = options.mode in _CUDA_GRAPH_MODES or bool(
            (options.options or {}).get("triton.cudagraphs")
        )
        self._compiled = _compile(func, options)
        _compile_backward_at_once()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._func!r})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """
        :return: what the function returns
        :raises ModelError: it cannot be compiled, and ``suppress_errors`` is not set
        """
        if self._failed:
            return self._func(*args, **kwargs)
        compiled_kwargs = {name: value for name, value in kwargs.items() if not name.startswith("__fwd_compat")}
        if len(compiled_kwargs) != len(kwargs):
            compiled_kwargs[_EXTRA_ARG] = None
        run_ctx = state.run_ctx
        losses_before = None if run_ctx is None else dict(run_ctx.losses)
        if self._has_cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            result = self._compiled(*args, **compiled_kwargs)
        except RuntimeError as exc:
            error = compile_error(exc)
            if error is None:
                raise
            if not self._options.suppress_errors:
                raise error from exc
            log.print_warning(f"{error} It runs as it is from now on (suppress_errors).")
            self._failed = True
            if run_ctx is not None:
                run_ctx.losses.clear()
                run_ctx.losses.update(losses_before or {})
            return self._func(*args, **kwargs)
        if self._has_cuda_graphs and run_ctx is not None:
            _keep_losses(run_ctx.losses)
        return result


def compile_error(exc: BaseException) -> ModelError | None:
    """
    :param exc: any error of a step or of its backward pass, which torch may compile later
    :return: the error to show in its place, if it is one of torch.compile
    """
    errors: Any = sys.modules.get("torch._dynamo.exc")  # Any: a module; not imported unless something was compiled
    if errors is None or not isinstance(exc, errors.TorchDynamoException):
        return None
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    # "backend='inductor' raised:", and then what.
    num_lines = 2 if lines and lines[0].endswith(":") else 1
    reason = " ".join(lines[:num_lines])[:400].rstrip(".:")
    return ModelError(
        f'option "torch_compile": train_step cannot be compiled: {type(exc).__name__}: {reason}. Remove the option to see whether '
        'the function itself is wrong, try "backend": "aot_eager" in it, or set "suppress_errors": True to train without compilation.'
    )


def _compile(func: Callable[..., Any], options: CompileOptions) -> Callable[..., Any]:
    try:
        if isinstance(options.backend, str):
            torch._dynamo.lookup_backend(options.backend)
        compiled: Callable[..., Any] = torch.compile(
            func,
            backend=options.backend,
            mode=options.mode,
            dynamic=options.dynamic,
            fullgraph=options.fullgraph,
            options=None if options.options is None else dict(options.options),
        )
    except (RuntimeError, ValueError, TypeError) as exc:
        reason = (str(exc).splitlines() or [""])[0].rstrip(".")
        backends = ", ".join(torch._dynamo.list_backends(exclude_tags=()))
        raise OptionError(
            "torch_compile",
            expected=f"arguments of torch.compile; backends here are {backends}",
            got={"backend": options.backend, "mode": options.mode, "options": options.options},
            todo=f"It says: {reason}",
        ) from exc
    return compiled


def _compile_backward_at_once() -> None:
    """
    Compile the backward pass together with the forward pass, so that its errors are known when the step can still be done without.
    Not in all versions of torch.
    """
    config: Any = torch._functorch.config  # Any: a module that replaces itself by an object
    if hasattr(config, "force_non_lazy_backward_lowering"):
        config.force_non_lazy_backward_lowering = True


def _keep_losses(losses: Mapping[str, Any]) -> None:
    """The losses are looked at some steps later, when a CUDA graph has overwritten its results. Any: Loss of either dialect"""
    for loss in losses.values():
        loss.loss = loss.loss.clone()
        if isinstance(loss.inv_norm_factor, torch.Tensor):
            loss.inv_norm_factor = loss.inv_norm_factor.clone()
