"""Options that are functions of the user: the model, the steps, the hooks; their signatures are checked at the start."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from returnn.errors import MissingOptionError, ModelError, OptionError
from returnn.options.registry import Option, closest_names, declare, read

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["LoadedModelOptions", "ModelOptions", "UserFunction", "check_signature", "describe_function"]

#: A function, class or functools.partial of the user. Any: it is called with keywords by name.
UserFunction = Callable[..., Any]

#: Keywords that our caller offers to each function. Each gets those that it accepts.
OFFERED_KEYWORDS: dict[str, tuple[str, ...]] = {
    "get_model": ("epoch", "step", "device"),
    "train_step": ("model", "data", "run_ctx", "extern_data"),
    "forward_step": ("model", "data", "run_ctx", "extern_data"),
    "forward_init_hook": ("run_ctx",),
    "forward_finish_hook": ("run_ctx",),
}
#: Of load_model_post_hooks.
_POST_HOOK_KEYWORDS = ("model",)
#: Values of default_float_dtype: what torch allows as default dtype.
_FLOAT_DTYPES = ("float32", "float64", "bfloat16", "float16")
#: These get the run context as first positional argument.
POSITIONAL = ("forward_init_hook", "forward_finish_hook")

_RUN = ("train", "eval", "forward", "initialize_model")
declare(
    Option(
        "get_model",
        "callable(epoch=, step=, device=, **kwargs) -> torch.nn.Module",
        None,
        "Builds the model; a function, a class, or a functools.partial of one.",
        tasks=_RUN,
    ),
    Option(
        "train_step",
        "callable(model=, data=, run_ctx=, **kwargs) | callable(model=, extern_data=, **kwargs)",
        None,
        "Computes the losses of one batch and marks them on the run context; used for evaluation as well. "
        "It gets those of data, extern_data and run_ctx that it names.",
        tasks=("train", "eval", "initialize_model"),
    ),
    Option(
        "forward_step",
        "callable(model=, data=, run_ctx=, **kwargs) | callable(model=, extern_data=, **kwargs)",
        None,
        "Computes the outputs of one batch in the task forward.",
        tasks=("forward",),
    ),
    Option(
        "forward_init_hook",
        "callable(run_ctx, **kwargs)",
        None,
        "Called before the first batch of the task forward.",
        tasks=("forward",),
    ),
    Option(
        "forward_finish_hook",
        "callable(run_ctx, **kwargs)",
        None,
        "Called after the last batch of the task forward.",
        tasks=("forward",),
    ),
    Option(
        "load_model_post_hooks",
        "list[callable(model=, **kwargs)]",
        None,
        "Called with the model, in this order, when its parameters are loaded and it is on its device.",
        tasks=_RUN,
    ),
    Option(
        "default_float_dtype",
        'str, e.g. "bfloat16" | None',
        None,
        "Name of the torch dtype that the model and float inputs are converted to; the default dtype in get_model and steps.",
        tasks=_RUN,
    ),
)


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """The functions of the config, each checked: callable, and with a signature that can be called."""

    get_model: UserFunction | None
    train_step: UserFunction | None
    forward_step: UserFunction | None
    forward_init_hook: UserFunction | None
    forward_finish_hook: UserFunction | None

    @classmethod
    def from_config(
        cls, config: Config | Mapping[str, Any], *, needed: Sequence[str] = (), used: Sequence[str] | None = None
    ) -> ModelOptions:
        """
        :param config:
        :param needed: names of functions that the task cannot do without, e.g. ``("get_model", "train_step")``
        :param used: names of functions that are called if they are set; None: all. Others may have any signature:
            a custom engine calls them in its own way
        :raises MissingOptionError: a needed one is not set; names a function of the config with a similar name
        :raises ModelError: not callable, or it has required arguments that are never passed
        """
        functions: dict[str, UserFunction | None] = {}
        for name in OFFERED_KEYWORDS:
            func = read(config, name)
            if func is None:
                if name in needed:
                    raise MissingOptionError(name, needed_for="this task", todo=_todo_missing(config, name))
            elif used is None or name in used or name in needed:
                check_signature(name, func, keywords=OFFERED_KEYWORDS[name], num_positional=int(name in POSITIONAL))
            functions[name] = func
        return cls(**functions)


@dataclasses.dataclass(frozen=True)
class LoadedModelOptions:
    """What is done with the model when it is there."""

    post_hooks: tuple[UserFunction, ...]
    float_dtype: str | None  # name of a dtype of torch

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> LoadedModelOptions:
        """
        :param config:
        :raises OptionError: not a list, or not a name
        :raises ModelError: a hook is no function, or cannot be called as we will call it
        """
        hooks = read(config, "load_model_post_hooks")
        if callable(hooks) or (hooks is not None and not isinstance(hooks, (list, tuple))):
            raise OptionError(
                "load_model_post_hooks", expected="a list of functions", got=hooks, todo="Write it in brackets"
            )
        for hook in hooks or ():
            check_signature("load_model_post_hooks", hook, keywords=_POST_HOOK_KEYWORDS)
        dtype = read(config, "default_float_dtype")
        if dtype is not None and (not isinstance(dtype, str) or dtype not in _FLOAT_DTYPES):
            raise OptionError(
                "default_float_dtype", expected=f"one of {', '.join(map(repr, _FLOAT_DTYPES))}", got=dtype
            )
        return cls(post_hooks=tuple(hooks or ()), float_dtype=dtype)


def check_signature(name: str, func: object, *, keywords: Sequence[str], num_positional: int = 0) -> None:
    """
    Check at the start of the run that a user's function can be called as we will call it.

    :param name: the option
    :param func: its value
    :param keywords: keywords that our call offers. The function gets those that it declares; all of them and one more
        (of unforeseeable name) if it has ``**kwargs``
    :param num_positional: the first so many keywords are passed by position instead
    :raises ModelError: not callable; needs arguments that we never pass; or takes no positional argument
    """
    usual = ", ".join([*keywords[:num_positional], *keywords[num_positional:][:3]])
    if not callable(func):
        raise ModelError(
            f'option "{name}" must be a function, got {_short(func)} ({type(func).__name__}). '
            f"Define e.g.: def {name}({'' if num_positional else '*, '}{usual}, **kwargs): ..."
        )
    try:
        signature = inspect.signature(func)
    except (TypeError, ValueError):  # C functions without signature: nothing to check
        return
    unknown = []
    positional = 0
    for param in signature.parameters.values():
        if param.kind is param.VAR_POSITIONAL:
            positional = num_positional
            continue
        if param.kind in (param.POSITIONAL_ONLY, param.POSITIONAL_OR_KEYWORD) and positional < num_positional:
            positional += 1
            continue
        required = param.default is param.empty and param.kind is not param.VAR_KEYWORD
        if required and (param.name not in keywords or param.kind is param.POSITIONAL_ONLY):
            unknown.append(param.name)
    if unknown:
        raise ModelError(
            f"{name} ({describe_function(func)}) requires argument{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}, "
            f"which {'are' if len(unknown) > 1 else 'is'} never passed. {name} must accept **kwargs (or declare: {usual}); "
            f"offered are: {', '.join(keywords)}. " + "Rename the argument or give it a default."
        )
    if positional < num_positional:
        raise ModelError(
            f"{name} ({describe_function(func)}) takes no positional argument, but is called as {name}({keywords[0]}, **kwargs). "
            f"Define it as: def {name}({keywords[0]}, **kwargs): ..."
        )


def describe_function(func: Any) -> str:
    """
    :param func: function, class, partial, method, or callable object. Any: only described
    :return: where it comes from, e.g. ``train_step at my.config:12``
    """
    while hasattr(func, "func") and not hasattr(func, "__code__"):  # functools.partial
        func = func.func
    code = getattr(func, "__code__", None) or getattr(getattr(func, "__init__", None), "__code__", None)
    name = getattr(func, "__qualname__", None) or type(func).__qualname__
    if code is None:
        return f"{name} of {getattr(func, '__module__', '?')}"
    return f"{name} at {code.co_filename}:{code.co_firstlineno}"


def _todo_missing(config: Config | Mapping[str, Any], name: str) -> str:
    values: Mapping[str, Any] = getattr(config, "typed_dict", config)  # type: ignore[arg-type]
    similar = closest_names(name, [n for n, value in values.items() if callable(value)])
    keywords = ", ".join(OFFERED_KEYWORDS[name][:3])
    define = f"Define a function {name}({keywords}, **kwargs) in the config"
    return f"Did you mean {similar[0]!r}, which the config defines? {define}" if similar else define


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."
