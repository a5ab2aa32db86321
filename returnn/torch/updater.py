"""
From a loss to changed weights: gradients, accumulation, clipping, optimizer, and its state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch

from returnn.errors import ModelError, NonFiniteGradientError, OptionError
from returnn.log import log
from returnn.options.loading import LoadingOptions
from returnn.options.optimizer import AmpOptions, OptimizerOptions, read_optimizer
from returnn.torch.checkpoint import load_file, save_file_atomic
from returnn.torch.optim.factory import (
    GROUP_OPTIONS,
    OptimizerArgs,
    OptimizerClass,
    call_optimizer_factory,
    check_argument_names,
    check_multiplier,
    check_optimizer_options,
    construct,
    get_optimizer_class,
    prefers_fused,
    split_optimizer_options,
)
from returnn.torch.optim.gradients import found_nonfinite, gradient_noise_
from returnn.torch.optim.param_groups import (
    ParamGroup,
    custom_groups,
    weight_decay_groups,
    wrap_user_blacklist_wd_modules,
)
from returnn.torch.optim.skipped_updates import SkippedUpdates
from returnn.torch.optim.state import load_into, pack_state, param_names, unpack_state
from returnn.util.fwd_compat import get_fwd_compat_kwargs

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = [
    "Updater",
    "EpochUpdates",
    "all_updaters",
    "check_optimizer_options",
    "get_optimizer_class",
    "gradient_noise_",
    "wrap_user_blacklist_wd_modules",
]

#: Look at the scale on a device each so many updates.
_SCALE_CHECK_INTERVAL = 50
#: A GradScaler halves its scale at each invalid update. Below this, the model itself gives inf or nan.
_MIN_GRAD_SCALE = 1e-10


@dataclasses.dataclass(frozen=True)
class EpochUpdates:
    """What :meth:`Updater.finish_epoch` reports."""

    num_updates: int  # applied or skipped
    num_skipped: int  # because of inf or nan in the gradients
    num_leftover_steps: int  # steps of the incomplete last accumulation group
    leftover_mode: str  # what was done with them: "carry", "drop", "flush"


class Updater:
    """
    Owns the optimizer of a network.

    Subclasses of users set the attributes of the constructor themselves, with a plain dict as config, and do not call it:
    so all newer attributes have a default at the class.
    """

    _grad_scaler: torch.amp.GradScaler | None = None
    _grad_clip: float | None = None
    _grad_clip_norm: float | None = None
    _grad_noise: float = 0.0
    _accum_grad_multiple_step: int | Callable[..., int] = 1
    _accum_grad_leftover: Literal["carry", "drop", "flush"] = "carry"
    _dialect: Literal["mini", "mainline"] = "mini"

    # Since the start of the epoch, applied or skipped.
    _num_updates: int = 0
    # None: not used yet, see _skipped_updates.
    _skipped: SkippedUpdates | None = None
    # Steps whose gradients are not yet applied, those carried over from earlier epochs included.
    _num_accumulated: int = 0
    # The same within this epoch.
    _group_size: int = 0
    _leftover_logged: bool = False
    # Parameters of the network whose gradients are handled, and the network they are of.
    _grad_params: tuple[torch.nn.Parameter, ...] = ()
    _grad_params_of: torch.nn.Module | None = None
    # For a callable accum_grad_multiple_step. Any: int and float by name.
    _train_position: Mapping[str, Any] = {}

    def __init__(
        self,
        *,
        config: Config | Mapping[str, Any],
        network: torch.nn.Module,
        device: str | torch.device,
        initial_learning_rate: float = 1.0,
        dialect: Literal["mini", "mainline"] = "mini",
    ):
        """
        :param config: Config, or a dict with the same options
        :param network: already on its device
        :param device: e.g. "cuda"
        :param initial_learning_rate: until :meth:`set_learning_rate` is called
        :param dialect: "mainline": no weight decay on biases, LayerNorm, Embedding, and an incomplete accumulation group is
            dropped at the end of an epoch, unless the options say otherwise
        :raises ConfigError: invalid or contradicting options
        """
        self.config = config
        self.learning_rate = float(initial_learning_rate)
        self.network = network
        self.optimizer: torch.optim.Optimizer | None = None
        self._device = device
        self._dialect = dialect
        options = OptimizerOptions.from_config(config)
        self._grad_clip = options.gradient_clip
        self._grad_clip_norm = options.gradient_clip_norm
        self._grad_noise = options.gradient_noise
        self._accum_grad_multiple_step = options.accum_grad_multiple_step
        self._accum_grad_leftover = options.accum_grad_leftover or ("drop" if dialect == "mainline" else "carry")
        self._skipped = SkippedUpdates(
            options.invalid_gradient_threshold, per_epoch=options.invalid_gradients_per_epoch
        )

    @property
    def _skipped_updates(self) -> SkippedUpdates:
        if self._skipped is None:
            self._skipped = SkippedUpdates()
        return self._skipped

    # --- creation

    def create_optimizer(self) -> None:
        """
        Create :attr:`optimizer` from the option ``optimizer`` and log it.

        :raises MissingOptionError: not set
        :raises ConfigError: see :func:`check_optimizer_options`
        """
        self.optimizer = self._create_optimizer(read_optimizer(self.config))
        print(f"Optimizer: {self.optimizer}", file=log.v1)

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
        if prefers_fused(optimizer_class, args, self.network):
            args["fused"] = True
        optimizer = construct(optimizer_class, groups, args)
        for group in optimizer.param_groups:
            if multiplier is not None:
                group.setdefault("learning_rate_multiplier", multiplier)
            check_multiplier(group.get("learning_rate_multiplier"))
        _set_learning_rate(optimizer, self.learning_rate)
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

    # --- learning rate

    def set_learning_rate(self, value: float) -> None:
        """
        :param value: for all parameter groups; each multiplies it by its ``learning_rate_multiplier``
        """
        self.learning_rate = float(value)
        if self.optimizer is not None:
            _set_learning_rate(self.optimizer, self.learning_rate)

    def get_optimizer(self) -> torch.optim.Optimizer | None:
        """:return: the optimizer, None before :meth:`create_optimizer`"""
        return self.optimizer

    # --- steps

    def set_train_position(self, *, epoch: int, epoch_continuous: float | None, global_train_step: int) -> None:
        """
        Only needed if ``accum_grad_multiple_step`` is a function, see :attr:`needs_train_position`; call it before each step.

        :param epoch: from 1
        :param epoch_continuous: part of the epochs that is done, None if unknown
        :param global_train_step: from 0
        """
        self._train_position = {
            "epoch": epoch,
            "epoch_continuous": epoch_continuous,
            "global_train_step": global_train_step,
        }

    @property
    def needs_train_position(self) -> bool:
        """Whether :meth:`set_train_position` has an effect."""
        return callable(self._accum_grad_multiple_step)

    def step(self, loss: torch.Tensor, step_idx: int | None = None) -> None:
        """
        Add the gradients of the loss, and update the weights if an accumulation group is complete.

        :param loss: scalar
        :param step_idx: step within the epoch, from 0; None: counted here
        :raises NonFiniteGradientError: too many updates in succession had inf or nan gradients
        :raises ModelError: the loss depends on no parameter
        """
        if not loss.requires_grad:
            raise ModelError(
                "The total loss depends on no trainable parameter, so there is nothing to update. "
                "Check that train_step marks a loss computed from the model's parameters, not detached, and not only as error."
            )
        scaler = self._grad_scaler
        (loss if scaler is None else scaler.scale(loss)).backward()
        self._num_accumulated += 1
        self._group_size += 1
        if self._accum_grad_multiple_step == 1 or self._is_update_due(step_idx):
            self._update()

    def skip_step(self, step_idx: int | None = None) -> None:
        """
        Count a step whose loss is inf or nan and must not be used: in place of :meth:`step`. Gradients of other steps of the
        same accumulation group are applied as usual.

        :param step_idx: as in :meth:`step`
        :raises NonFiniteGradientError: too many in succession
        """
        self._group_size += 1
        self._skipped_updates.count_skipped("the loss is inf or nan, step skipped")
        due = self._accum_grad_multiple_step == 1 or self._is_update_due(step_idx)
        if due and self._num_accumulated:
            self._update()
            return
        if due:
            self._group_size = 0
        self._skipped_updates.check()

    def _is_update_due(self, step_idx: int | None) -> bool:
        size = self._accum_grad_multiple_step
        if callable(size):
            size = size(**self._train_position, **get_fwd_compat_kwargs())
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise OptionError("accum_grad_multiple_step", expected="the function to return an int >= 1", got=size)
            return self._group_size >= size
        if step_idx is None:
            return self._group_size >= size
        return (step_idx + 1) % size == 0

    def _update(self) -> None:
        """One update with the gradients as they are; then they are cleared."""
        optimizer, scaler = self.optimizer, self._grad_scaler
        assert optimizer is not None, "create_optimizer was not called"
        if self._grad_params_of is not self.network:
            self._grad_params = tuple(self.network.parameters())
            self._grad_params_of = self.network
        grads = [param.grad for param in self._grad_params if param.grad is not None]
        if scaler is not None:
            if self._grad_noise or self._grad_clip or self._grad_clip_norm:
                scaler.unscale_(optimizer)  # also checks the gradients; else its step does
                self._change_gradients()
            self._scaler_step(optimizer, scaler)
        elif not grads:
            optimizer.step()
            self._skipped_updates.count_valid()
        elif self._can_skip_on_device(optimizer, grads[0]):
            self._step_unless_found_on_device(optimizer, self._check_and_change_gradients(grads))
        elif not self._check_and_change_gradients(grads).item():
            optimizer.step()
            self._skipped_updates.count_valid()
        else:
            self._skipped_updates.count_skipped("inf or nan in the gradients, update skipped")
        self._num_updates += 1
        _clear_gradients(optimizer)
        self._num_accumulated = self._group_size = 0
        self._skipped_updates.check()

    def _check_and_change_gradients(self, grads: list[torch.Tensor]) -> torch.Tensor:
        """
        :param grads: those that there are
        :return: float32 scalar on their device: 1.0 if there is an inf or nan, or if their norm is
        """
        # Before clipping by value, which would make a large number of an inf.
        found = None if self._grad_clip_norm and not self._grad_clip else found_nonfinite(grads)
        norm = self._change_gradients()
        if norm is None:
            assert found is not None
            return found
        bad_norm = _found_in(norm)
        return bad_norm if found is None else torch.maximum(found, bad_norm)

    def _change_gradients(self) -> torch.Tensor | None:
        """:return: total norm before it was clipped, None if it was not needed"""
        if self._grad_noise:
            gradient_noise_(self._grad_params, self._grad_noise)
        if self._grad_clip:
            torch.nn.utils.clip_grad_value_(self._grad_params, self._grad_clip)
        if self._grad_clip_norm:
            return torch.nn.utils.clip_grad_norm_(self._grad_params, self._grad_clip_norm)
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

    def _scaler_step(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        """Updates with too large a scale have inf gradients and are skipped by the scaler: normal, but not for ever."""
        on_cpu = self._device_type() == "cpu"
        scale_before = scaler.get_scale() if on_cpu else 0.0
        scaler.step(optimizer)
        if not on_cpu:
            # Private, but the only way to count without waiting for the device; update() clears it.
            states = getattr(scaler, "_per_optimizer_states", None) or {}
            for found in states.get(id(optimizer), {}).get("found_inf_per_device", {}).values():
                self._skipped_updates.count_normal_on_device(found.reshape(()))
                break
        scaler.update()
        if on_cpu and scaler.get_scale() < scale_before:
            self._skipped_updates.count_normal()
        if on_cpu or (self._num_updates + 1) % _SCALE_CHECK_INTERVAL == 0:
            scale = scaler.get_scale()
            if scale < _MIN_GRAD_SCALE:
                raise NonFiniteGradientError(
                    f"All gradients have inf or nan values: the loss scale went down to {scale}, abort training. "
                    "The weights were not changed by them. Try bfloat16, a lower learning rate, or gradient_clip_norm."
                )

    # --- end of an epoch

    @property
    def num_skipped_updates(self) -> int:
        """Updates (or steps, see :meth:`skip_step`) of this epoch skipped because of inf or nan. Waits for the device."""
        return self._skipped_updates.num_skipped

    @property
    def num_accumulated_steps(self) -> int:
        """Steps whose gradients are not yet applied."""
        return self._num_accumulated

    def finish_epoch(self) -> EpochUpdates:
        """
        To be called after the last step of each epoch: treats an incomplete accumulation group as ``accum_grad_leftover`` says.

        :return: counts of this epoch
        :raises NonFiniteGradientError: as :meth:`step`
        """
        mode, leftover = self._accum_grad_leftover, self._group_size
        pending = self._num_accumulated
        if leftover and not self._leftover_logged:
            what = {
                "carry": "are added to the first group of the next epoch",
                "drop": "are dropped",
                "flush": "are applied now",
            }[mode]
            print(
                f"Gradient accumulation: the last {leftover} steps of the epoch are no complete group; their gradients {what} "
                f'(accum_grad_leftover = "{mode}").',
                file=log.v3,
            )
            self._leftover_logged = True
        if pending and mode == "flush":
            self._update()
        elif pending and mode == "drop":
            self._drop_gradients()
        self._group_size = 0
        report = EpochUpdates(
            num_updates=self._num_updates,
            num_skipped=self._skipped_updates.finish_epoch(),
            num_leftover_steps=leftover,
            leftover_mode=mode,
        )
        self._num_updates = 0
        return report

    def _drop_gradients(self) -> None:
        assert self.optimizer is not None, "create_optimizer was not called"
        self.optimizer.zero_grad()
        self._num_accumulated = self._group_size = 0

    # --- state

    def save_optimizer(self, filename: str) -> None:
        """
        Write the optimizer state, and what else a restart needs: scaler, gradients that are not yet applied, counters.

        :param filename: e.g. "models/epoch.010.opt.pt"
        :raises CheckpointError: cannot be written
        """
        assert self.optimizer is not None, "create_optimizer was not called"
        print(f"Save optimizer under {filename}", file=log.v4)
        save_file_atomic(self.optimizer_state_dict(), filename)

    def optimizer_state_dict(self) -> dict[str, Any]:
        """
        :return: content of the optimizer file: the optimizer's state_dict, plus our entry "returnn". Any: see there
        """
        assert self.optimizer is not None, "create_optimizer was not called"
        extra: dict[str, Any] = {
            "param_names": param_names(self.network, self.optimizer),
            "learning_rate": self.learning_rate,
            "num_invalid_in_succession": self._skipped_updates.num_in_succession,
        }
        if self._grad_scaler is not None:
            extra["grad_scaler"] = self._grad_scaler.state_dict()
        if self._num_accumulated:
            extra["accumulated"] = {
                "num_steps": self._num_accumulated,
                "grads": {name: p.grad.detach() for name, p in self.network.named_parameters() if p.grad is not None},
            }
        return pack_state(self.optimizer, extra)

    def load_optimizer(self, filename: str) -> None:
        """
        Continue with the state of a file of :meth:`save_optimizer`, of Mini-RETURNN (bare), or of RETURNN (wrapped).

        :param filename:
        :raises CheckpointError: missing, broken, or of another optimizer or model (then also a ValueError)
        """
        assert self.optimizer is not None, "create_optimizer was not called"
        print(f"Load optimizer {filename}", file=log.v4)
        allow_unsafe = LoadingOptions.from_config(self.config).allow_unsafe
        obj = load_file(filename, map_location=self._load_device(), weights_only=not allow_unsafe)
        loaded = unpack_state(obj, filename)
        for note in load_into(self.optimizer, loaded, param_names(self.network, self.optimizer)):
            print(f"Note: {note}", file=log.v3)
        extra = loaded.extra
        self._skipped_updates.num_in_succession = int(extra.get("num_invalid_in_succession", 0))
        if self._grad_scaler is not None and extra.get("grad_scaler"):
            self._grad_scaler.load_state_dict(dict(extra["grad_scaler"]))
        self._restore_accumulated(extra.get("accumulated"), filename)

    def _load_device(self) -> torch.device:
        for param in self.network.parameters():
            return param.device
        return torch.device("cpu")

    def _restore_accumulated(self, accumulated: Mapping[str, Any] | None, filename: str) -> None:
        """
        :param accumulated: entry of the file. Any: number of steps, gradients by name
        :param filename: for the log
        """
        if not accumulated:
            return
        if self._accum_grad_leftover != "carry":
            print(
                f"Note: gradients of {accumulated['num_steps']} steps in {filename} are dropped (accum_grad_leftover).",
                file=log.v3,
            )
            return
        params = dict(self.network.named_parameters())
        for name, grad in accumulated["grads"].items():
            param = params.get(name)
            if param is not None and param.shape == grad.shape:
                param.grad = grad.to(device=param.device, dtype=param.dtype)
        self._num_accumulated = int(accumulated["num_steps"])


def all_updaters(obj: object) -> list[Updater]:
    """
    :param obj: what an engine has as updater: one, a dict or list of several, or something else
    :return: all that are instances of Updater
    """
    if isinstance(obj, Mapping):
        obj = list(obj.values())
    items = obj if isinstance(obj, (list, tuple)) else [obj]
    return [item for item in items if isinstance(item, Updater)]


def _clear_gradients(optimizer: torch.optim.Optimizer) -> None:
    if type(optimizer).zero_grad is not torch.optim.Optimizer.zero_grad:
        optimizer.zero_grad()
        return
    # What zero_grad() does, without its records for the profiler, which take 20 us.
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = None


def _set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("learning_rate_multiplier", 1.0)


def _found_in(norm: torch.Tensor) -> torch.Tensor:
    """:return: float32 scalar on the same device: 1.0 if inf or nan, else 0.0"""
    return 1.0 - torch.isfinite(norm).to(torch.float32)
