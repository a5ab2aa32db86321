"""The part of the updater that makes the optimizer and the gradient scaler from the options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch

from returnn.errors import OptionError
from returnn.log import log
from returnn.options.optimizer import AmpOptions, read_optimizer
from returnn.torch.optim.factory import (
    GROUP_OPTIONS,
    OptimizerArgs,
    OptimizerClass,
    call_optimizer_factory,
    check_argument_names,
    check_multiplier,
    construct,
    split_optimizer_options,
)
from returnn.torch.optim.implementation import implementation_args, use_foreach
from returnn.torch.optim.learning_rate import set_learning_rate
from returnn.torch.optim.param_groups import ParamGroup, custom_groups, weight_decay_groups

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["OptimizerCreation"]


class OptimizerCreation:
    """Base of the updater; uses attributes that the updater sets."""

    config: Config | Mapping[str, Any]
    learning_rate: float
    network: torch.nn.Module
    optimizer: torch.optim.Optimizer | None
    _device: str | torch.device
    _grad_scaler: torch.amp.GradScaler | None
    _dialect: Literal["mini", "mainline"]
    # Whether our choice is the foreach form: not an option of the user, so it is neither shown in the log nor saved.
    _chose_foreach: bool = False

    def create_optimizer(self) -> None:
        """
        Create :attr:`optimizer` from the option ``optimizer`` and log it.

        :raises MissingOptionError: not set
        :raises ConfigError: see :func:`check_optimizer_options`
        """
        self._chose_foreach = False
        self.optimizer = self._create_optimizer(read_optimizer(self.config))
        print(f"Optimizer: {self.optimizer}", file=log.v1)
        if self._chose_foreach:
            use_foreach(self.optimizer)

    def create_grad_scaler(self) -> None:
        """
        Create the gradient scaler for mixed precision, if it needs one: for float16, or if ``grad_scaler`` asks for it.
        Without mixed precision there is none.
        """
        amp = AmpOptions.from_config(self.config)
        scaler_opts = None if amp is None else amp.grad_scaler
        if amp is None and not hasattr(self.config, "typed_value"):
            # A custom engine with mixed precision and a dict with only the optimizer's options: a scaler, as in Mini-RETURNN.
            scaler_opts = {}
        if scaler_opts is None:
            self._grad_scaler = None
            return
        try:
            self._grad_scaler = torch.amp.GradScaler(self._device_type(), **scaler_opts)
        except (TypeError, AssertionError, ValueError) as exc:
            raise OptionError(
                "grad_scaler",
                expected="arguments of torch.amp.GradScaler",
                got=dict(scaler_opts),
                todo=f"It says: {exc}",
            ) from exc

    def _device_type(self) -> str:
        device = getattr(self, "_device", "cpu")
        return torch.device("cuda" if device == "gpu" else device).type

    def _create_optimizer(self, optimizer_opts: Any) -> torch.optim.Optimizer:
        """
        :param optimizer_opts: value of the option: dict, Optimizer, or function. Not changed. Any: see there
        :return: new optimizer with the current learning rate
        :raises ConfigError: see :func:`check_optimizer_options`
        """
        if isinstance(optimizer_opts, torch.optim.Optimizer):
            return optimizer_opts
        if callable(optimizer_opts) and not isinstance(optimizer_opts, Mapping):
            return call_optimizer_factory(optimizer_opts, list(self.network.parameters()), self.learning_rate)
        optimizer_class, args = split_optimizer_options(optimizer_opts)
        multiplier = args.pop("learning_rate_multiplier", None)
        check_multiplier(multiplier)
        args["lr"] = self.learning_rate
        # A subclass may take entries out of args that are only for its groups.
        groups = list(self._get_optimizer_param_groups(optimizer_class, args))
        for name in GROUP_OPTIONS:
            args.pop(name, None)
        check_argument_names(optimizer_class, {k: v for k, v in args.items() if k != "lr"})
        form = implementation_args(optimizer_class, args, self.network)
        self._chose_foreach = form.pop("foreach", False)
        args.update(form)
        optimizer = construct(optimizer_class, groups, args)
        for group in optimizer.param_groups:
            if multiplier is not None:
                group.setdefault("learning_rate_multiplier", multiplier)
            check_multiplier(group.get("learning_rate_multiplier"))
        set_learning_rate(optimizer, self.learning_rate)
        return optimizer

    def _get_optimizer_param_groups(
        self, optim_class: OptimizerClass, optimizer_opts: OptimizerArgs
    ) -> list[ParamGroup]:
        """
        For subclasses to override.

        :param optim_class:
        :param optimizer_opts: a copy of the optimizer dict, without "class"
        :return: parameter groups. Here: one with all parameters in the order of the network; two by weight decay if the options
            ask for it, or in the mainline dialect
        """
        custom = optimizer_opts.get("param_groups_custom")
        if custom is not None:
            opts = {k: v for k, v in optimizer_opts.items() if k not in GROUP_OPTIONS}
            return custom_groups(custom, self.network, optim_class, opts)
        blacklist = optimizer_opts.get("weight_decay_modules_blacklist")
        include_check = optimizer_opts.get("weight_decay_custom_include_check")
        weight_decay = optimizer_opts.get("weight_decay") or 0.0
        wants_groups = self._dialect == "mainline" or blacklist is not None or include_check is not None
        if wants_groups and weight_decay:
            return weight_decay_groups(self.network, weight_decay, blacklist=blacklist, include_check=include_check)
        return [{"params": list(self.network.parameters())}]
