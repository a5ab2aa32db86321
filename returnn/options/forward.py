"""Options of the task forward: who gets the outputs, in which order, and what to do when memory is short."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from returnn.errors import ConfigError, ModelError, OptionError
from returnn.options.dialect import is_mainline
from returnn.options.model import check_signature
from returnn.options.registry import Option, declare, is_given, read

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["ForwardOptions", "make_callback"]

#: Methods of a callback, with the keywords that each gets.
_CALLBACK_METHODS: dict[str, tuple[str, ...]] = {
    "init": ("model",),
    "process_seq": ("seq_tag", "outputs"),
    "finish": (),
}
_EXAMPLE = (
    "Derive a class from returnn.forward_iface.ForwardCallbackIface, with init(*, model), "
    "process_seq(*, seq_tag, outputs) and finish(), and set forward_callback to the class or an instance of it."
)

declare(
    Option(
        "forward_callback",
        "ForwardCallbackIface | class | callable() -> ForwardCallbackIface",
        None,
        "Gets the outputs that forward_step marks, one sequence at a time: an instance, a class, or a function that returns an instance.",
        tasks=("forward",),
    ),
    Option(
        "sort_dataset",
        "bool",
        True,
        "With a forward_callback: forward the longest sequences first, if the dataset knows their lengths; False keeps its order.",
        tasks=("forward",),
    ),
    Option(
        "forward_auto_split_batch_on_oom",
        "bool",
        False,
        "When a batch does not fit into the memory of the device: forward its two halves one after the other.",
        tasks=("forward",),
    ),
    Option(
        "output_file",
        "str",
        "output.hdf",
        "HDF file for outputs that forward_step marks, if there is neither a forward_finish_hook nor a callback.",
        tasks=("forward",),
    ),
    Option(
        "forward_override_hdf_output",
        "bool",
        False,
        "Whether the forward task may overwrite an existing output_file.",
        tasks=("forward",),
    ),
)


@dataclasses.dataclass(frozen=True)
class ForwardOptions:
    """Read once when the forward task is initialised."""

    callback: Any  # as given: an instance, or what makes one; None: not set
    sort_dataset: bool
    split_batch_on_oom: bool
    output_file: str
    override: bool
    #: The config makes clear that there will be outputs: it names the file, describes outputs, or is in the dialect in
    #: which outputs are the only result. Else forward_step may do its work without marking any.
    expects_output_file: bool

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> ForwardOptions:
        """
        :param config: the user's. Any: options of all types
        :raises OptionError: invalid value
        :raises ConfigError: a callback and hooks
        """
        output_file = read(config, "output_file")
        if not isinstance(output_file, str) or not output_file:
            raise OptionError("output_file", expected="a file name", got=output_file)
        callback = read(config, "forward_callback")
        if callback is not None:
            hooks = [name for name in ("forward_init_hook", "forward_finish_hook") if read(config, name) is not None]
            if hooks:
                raise ConfigError(
                    f'options "forward_callback" and "{hooks[0]}" are both set, but only one of them can take the results '
                    "of forward_step. Keep the callback and do the work of the hook in its init or finish, or keep the hooks."
                )
            _check_callback(callback)
        return cls(
            callback=callback,
            sort_dataset=_bool(config, "sort_dataset"),
            split_batch_on_oom=_bool(config, "forward_auto_split_batch_on_oom"),
            output_file=output_file,
            override=_bool(config, "forward_override_hdf_output"),
            expects_output_file=is_mainline(config)
            or is_given(config, "output_file")
            or is_given(config, "model_outputs"),
        )


def make_callback(value: object) -> Any:
    """
    :param value: of the option: an instance, a class, or a function that returns an instance
    :return: the instance. Any: a ForwardCallbackIface, or a class of the user with the same methods
    :raises ModelError: a method is missing, or cannot be called with what it will get
    """
    if callable(value) and not _is_callback(value):
        value = value()
        if not _is_callback(value):
            raise ModelError(
                f"forward_callback() returned {_short(value)}, expected an instance with the methods "
                f"{', '.join(_CALLBACK_METHODS)}. {_EXAMPLE}"
            )
    for name, keywords in _CALLBACK_METHODS.items():
        check_signature(f"{type(value).__name__}.{name}", getattr(value, name), keywords=keywords)
    return value


def _check_callback(value: object) -> None:
    """:raises OptionError: no callback, and nothing that could make one"""
    if _is_callback(value):
        return
    if isinstance(value, type):
        missing = [name for name in _CALLBACK_METHODS if not callable(getattr(value, name, None))]
        if missing:
            raise OptionError(
                "forward_callback",
                expected=f"a class with the methods {', '.join(_CALLBACK_METHODS)}",
                got=value,
                todo=f"It has no {', no '.join(missing)}. {_EXAMPLE}",
            )
    elif not callable(value):
        raise OptionError(
            "forward_callback",
            expected=f"an instance with the methods {', '.join(_CALLBACK_METHODS)}, a class of such, or a function",
            got=value,
            todo=_EXAMPLE,
        )


def _is_callback(value: object) -> bool:
    return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in _CALLBACK_METHODS)


def _bool(config: Config | Mapping[str, Any], name: str) -> bool:
    value = read(config, name)
    if value is None:
        return False
    if not isinstance(value, (bool, int)):
        raise OptionError(name, expected="True or False", got=value)
    return bool(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."
