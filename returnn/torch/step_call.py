"""Calling ``train_step`` and ``forward_step`` of the config, in the form of either dialect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from returnn.errors import ModelError
from returnn.frontend.run_ctx import RunCtx
from returnn.options.model import describe_function
from returnn.tensor import TensorDict
from returnn.torch.batch import Batch
from returnn.torch.data.extern_data import raw_dict_to_extern_data
from returnn.torch.float_dtype import default_float_dtype
from returnn.torch.user_functions import UserFunction, random_arg_format

__all__ = ["StepCall"]


class StepCall:
    """
    A step function of the config, called with the forms of the batch that it asks for.

    It may name any of ``data`` (raw tensors by key), ``extern_data`` (:class:`TensorDict`) and ``run_ctx`` in either
    dialect. With ``**kwargs`` it gets those of its dialect in any case.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        *,
        mainline: bool,
        template: TensorDict | None,
        device: str | torch.device,
        float_dtype: torch.dtype | None = None,
        with_eval_targets: bool = True,
    ):
        """
        :param func: the user's; its signature was checked by ``returnn.options.model``
        :param mainline: dialect of the config
        :param template: of extern_data; None: only if the function does not ask for it
        :param device: of the model
        :param float_dtype: what float inputs are cast to, and the default dtype during the call; None: both stay as they are
        :param with_eval_targets: also the streams with available_for_inference = False; False in forward
        :raises ModelError: extern_data is asked for without template
        """
        self.func = func
        self._call = UserFunction(func, random_arg=random_arg_format(mainline=mainline))
        self._passed = _passed_arguments(self._call, mainline=mainline)
        self._template = template
        self._device = device
        self._float_dtype = float_dtype
        self._with_eval_targets = with_eval_targets
        if self.takes_extern_data and template is None:
            raise ModelError(
                f"{describe_function(func)} asks for extern_data, but nothing describes the data streams. "
                "Set extern_data in the config, or let the function take data and run_ctx."
            )

    @staticmethod
    def asks_for_extern_data(func: Callable[..., Any], *, mainline: bool) -> bool:
        """
        :param func: the user's
        :param mainline: dialect of the config
        :return: whether the function is to get the batch as TensorDict
        """
        return "extern_data" in _passed_arguments(UserFunction(func), mainline=mainline)

    @property
    def takes_extern_data(self) -> bool:
        """Whether the function gets the batch as TensorDict."""
        return "extern_data" in self._passed

    def __call__(
        self,
        model: torch.nn.Module | None,
        data: Mapping[str, Any],
        run_ctx: RunCtx,
        *,
        move: Callable[[Any], Mapping[str, Any]] | None = None,
    ) -> Any:
        """
        :param model: of the user
        :param data: raw batch
        :param run_ctx: of the step
        :param move: gives a raw batch on the device; None: the data are there already
        :return: what the function returns. Any: nobody looks at it
        """
        kwargs: dict[str, Any] = {"model": model, "run_ctx": run_ctx}
        if "data" in self._passed:
            kwargs["data"] = self._cast(data if move is None else move(data))
        if self._template is not None and self.takes_extern_data:
            raw = data
            if "data" in kwargs:  # one copy to the device for both forms; lengths are wanted on the host
                raw = {key: value if ":" in key else kwargs["data"][key] for key, value in data.items()}
            kwargs["extern_data"] = raw_dict_to_extern_data(
                raw,
                extern_data_template=self._template,
                device=self._device,
                float_dtype=self._float_dtype,
                with_eval_targets=self._with_eval_targets,
            )
        if "run_ctx" not in self._passed:
            del kwargs["run_ctx"]
        if self._float_dtype is None:
            return self._call(**kwargs)
        with default_float_dtype(self._float_dtype):
            return self._call(**kwargs)

    def _cast(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._float_dtype is None:
            return data
        return Batch(
            {
                key: value.to(self._float_dtype)
                if isinstance(value, torch.Tensor) and value.dtype.is_floating_point
                else value
                for key, value in data.items()
            }
        )


def _passed_arguments(call: UserFunction, *, mainline: bool) -> frozenset[str]:
    usual = ("extern_data",) if mainline else ("data", "run_ctx")
    return frozenset(name for name in ("data", "extern_data", "run_ctx") if call.takes(name, usual=name in usual))
