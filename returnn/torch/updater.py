"""
From a loss to changed weights: gradients, accumulation, clipping, optimizer, and its state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from returnn.errors import ModelError, OptionError
from returnn.frontend.run_ctx import Loss
from returnn.log import log
from returnn.options.optimizer import OptimizerOptions
from returnn.torch.compiled_step import compile_error
from returnn.torch.optim.application import GradientApplication, UpdateHook
from returnn.torch.optim.creation import OptimizerCreation
from returnn.torch.optim.factory import check_optimizer_options, get_optimizer_class
from returnn.torch.optim.gradients import gradient_noise_, nan_unless_finite
from returnn.torch.optim.learning_rate import dynamic_learning_rate, set_learning_rate
from returnn.torch.optim.param_groups import wrap_user_blacklist_wd_modules
from returnn.torch.optim.skipped_updates import SkippedUpdates, StepBatch
from returnn.torch.optim.state_file import OptimizerStateFile
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


@dataclasses.dataclass(frozen=True)
class EpochUpdates:
    """What :meth:`Updater.finish_epoch` reports."""

    num_updates: int  # applied or skipped
    num_skipped: int  # because of inf or nan in the gradients
    num_leftover_steps: int  # steps of the incomplete last accumulation group
    leftover_mode: str  # what was done with them: "carry", "drop", "flush"
    skipped_batches: tuple[StepBatch, ...] = ()  # of the skipped updates, the first ones, if the engine has told them


class Updater(OptimizerCreation, GradientApplication, OptimizerStateFile):
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
    _dynamic_learning_rate: Callable[..., float] | None = None
    _log_grad_norm: float | None = None
    #: called after each update, see add_update_hook
    _update_hooks: tuple[UpdateHook, ...] = ()

    # Since the start of the epoch, applied or skipped.
    _num_updates: int = 0
    # None: not used yet, see _skipped_updates.
    _skipped: SkippedUpdates | None = None
    # Steps whose gradients are not yet applied, those carried over from earlier epochs included.
    _num_accumulated: int = 0
    _num_without_data: int = 0  # of these, steps in which only other ranks had data
    # The same within this epoch.
    _group_size: int = 0
    _leftover_logged: bool = False
    # For callable options. Any: int and float by name. Empty: not known yet.
    _train_position: Mapping[str, Any] = {}
    # None: that of the epoch.
    _dynamic_value: float | None = None
    # For take_losses.
    _reported: dict[str, Loss] | None = None
    # See connect_ranks.
    _reduce_gradients: Callable[[Iterable[torch.nn.Parameter]], None] | None = None
    _noise_generator: torch.Generator | None = None

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
        self._dynamic_learning_rate = options.dynamic_learning_rate
        self._log_grad_norm = options.log_grad_norm
        self._accum_grad_leftover = options.accum_grad_leftover or ("drop" if dialect == "mainline" else "carry")
        self._skipped = SkippedUpdates(
            options.invalid_gradient_threshold, per_epoch=options.invalid_gradients_per_epoch
        )

    @property
    def _skipped_updates(self) -> SkippedUpdates:
        if self._skipped is None:
            self._skipped = SkippedUpdates()
        return self._skipped

    # --- learning rate

    def set_learning_rate(self, value: float) -> None:
        """
        :param value: for all parameter groups; each multiplies it by its ``learning_rate_multiplier``. With
            ``dynamic_learning_rate``, it is what that function gets, and :meth:`set_train_position` calls it
        """
        self.learning_rate = float(value)
        self._dynamic_value = None
        if self.optimizer is not None:
            set_learning_rate(self.optimizer, self.learning_rate)

    @property
    def effective_learning_rate(self) -> float:
        """Of the next step, without the multipliers of the parameter groups."""
        return self.learning_rate if self._dynamic_value is None else self._dynamic_value

    def get_optimizer(self) -> torch.optim.Optimizer | None:
        """:return: the optimizer, None before :meth:`create_optimizer`"""
        return self.optimizer

    def set_train_position(self, *, epoch: int, epoch_continuous: float | None, global_train_step: int) -> None:
        """
        Only needed if ``accum_grad_multiple_step`` or ``dynamic_learning_rate`` is a function, see :attr:`needs_train_position`.
        Call it at the start of each epoch after :meth:`set_learning_rate`, and before each step.

        :param epoch: from 1
        :param epoch_continuous: number of epochs that are done before the next step: epoch - 1 at the start of an epoch, later
            with a fraction. None: unknown
        :param global_train_step: number of steps done, over all epochs
        :raises OptionError: ``dynamic_learning_rate`` returns no number
        """
        self._train_position = {
            "epoch": epoch,
            "epoch_continuous": epoch_continuous,
            "global_train_step": global_train_step,
        }
        if self._dynamic_learning_rate is not None:
            self._dynamic_value = dynamic_learning_rate(
                self._dynamic_learning_rate, learning_rate=self.learning_rate, position=self._train_position
            )
            if self.optimizer is not None:
                set_learning_rate(self.optimizer, self._dynamic_value)

    @property
    def needs_train_position(self) -> bool:
        """Whether :meth:`set_train_position` has an effect."""
        return callable(self._accum_grad_multiple_step) or self._dynamic_learning_rate is not None

    # --- steps

    def add_update_hook(self, hook: UpdateHook, *, first: bool = False) -> None:
        """
        :param hook: called after each update (not after each step that only accumulates gradients) with whether it was skipped
            because of inf or nan: True, False, or, if only the device knows, a float32 scalar there: 1.0 or 0.0
        :param first: before all others so far
        """
        self._update_hooks = (hook, *self._update_hooks) if first else (*self._update_hooks, hook)

    def connect_ranks(
        self,
        reduce_gradients: Callable[[Iterable[torch.nn.Parameter]], None],
        *,
        noise_generator: torch.Generator | None = None,
    ) -> None:
        """
        For a training of several ranks, which all update in the same way.

        :param reduce_gradients: called right before an update, with the parameters: brings the gradients of all ranks together
        :param noise_generator: for gradient_noise, in the same state on all ranks
        """
        self._reduce_gradients = reduce_gradients
        self._noise_generator = noise_generator

    def completes_group(self, step_idx: int | None) -> bool:
        """
        :param step_idx: of the step that begins, as for :meth:`step`
        :return: whether the weights are updated after it; before, its gradients are only added to those of others
        """
        self._group_size += 1
        try:
            return self._accum_grad_multiple_step == 1 or self._is_update_due(step_idx)
        finally:
            self._group_size -= 1

    def take_losses(self) -> dict[str, Loss]:
        """
        :return: numbers to report with the losses of the step that was just done, each only once: the norm of the gradients (with
            ``log_grad_norm``), if there was an update. They stay on their device
        """
        reported, self._reported = self._reported, None
        return reported or {}

    def step(self, loss: torch.Tensor, step_idx: int | None = None) -> None:
        """
        Add the gradients of the loss, and update the weights if an accumulation group is complete.

        :param loss: scalar
        :param step_idx: step within the epoch, from 0; None: counted here
        :raises NonFiniteGradientError: too many updates in succession had inf or nan gradients
        :raises ModelError: the loss depends on no parameter, a function needs :meth:`set_train_position`, or
            the backward pass cannot be compiled
        """
        if not loss.requires_grad:
            raise ModelError(
                "The total loss depends on no trainable parameter, so there is nothing to update. "
                "Check that train_step marks a loss computed from the model's parameters, not detached, and not only as error."
            )
        if not self._train_position and self.needs_train_position:
            raise ModelError(
                "The options dynamic_learning_rate and accum_grad_multiple_step can be functions only if the engine calls "
                "Updater.set_train_position(epoch=, epoch_continuous=, global_train_step=) before each step. Yours does not."
            )
        scaler = self._grad_scaler
        if loss.device.type != "cpu":
            loss = nan_unless_finite(loss)
        try:
            (loss if scaler is None else scaler.scale(loss)).backward()
        except RuntimeError as exc:
            error = compile_error(exc)
            if error is None:
                raise
            raise error from exc
        self._num_accumulated += 1
        self._group_size += 1
        if self._accum_grad_multiple_step == 1 or self._is_update_due(step_idx):
            self._update()

    def note_batch(self, step: int, seq_tags: Sequence[object]) -> None:
        """
        For what is said about skipped updates. To be called before :meth:`step` or :meth:`skip_step`.

        :param step: number of the training step, over all epochs
        :param seq_tags: of its sequences
        """
        self._skipped_updates.group.append((step, seq_tags))

    def skip_step(self, step_idx: int | None = None) -> None:
        """
        Count a step whose loss is inf or nan and must not be used: in place of :meth:`step`. Gradients of other steps of the
        same accumulation group are applied as usual.

        :param step_idx: as in :meth:`step`
        :raises NonFiniteGradientError: too many in succession
        """
        self._group_size += 1
        self._skipped_updates.count_skipped("the loss is inf or nan, step skipped", only_last_step=True)
        due = self._accum_grad_multiple_step == 1 or self._is_update_due(step_idx)
        if due and self._num_accumulated:
            self._update()
            return
        if due:
            self._group_size = 0
        self._skipped_updates.check()

    def step_without_data(self, step_idx: int | None = None) -> None:
        """
        In place of :meth:`step` on a rank that has no data in a step, while others have.

        :param step_idx: as in :meth:`step`
        :raises NonFiniteGradientError: as there
        """
        # All ranks count the same, since they bring their gradients together at the same time.
        self._num_accumulated += 1
        self._num_without_data += 1
        self._group_size += 1
        if self._accum_grad_multiple_step == 1 or self._is_update_due(step_idx):
            self._update()

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
        elif pending and self._reduce_gradients is not None:
            self._reduce_gradients(tuple(self.network.parameters()))  # the checkpoint is for all ranks
        self._group_size = 0
        self._reported = None
        report = EpochUpdates(
            num_updates=self._num_updates,
            num_skipped=self._skipped_updates.finish_epoch(),
            num_leftover_steps=leftover,
            leftover_mode=mode,
            skipped_batches=self._skipped_updates.take_batches(),
        )
        self._num_updates = 0
        return report

    def _drop_gradients(self) -> None:
        assert self.optimizer is not None, "create_optimizer was not called"
        self.optimizer.zero_grad()
        self._num_accumulated = self._num_without_data = self._group_size = 0


def all_updaters(obj: object) -> list[Updater]:
    """
    :param obj: what an engine has as updater: one, a dict or list of several, or something else
    :return: all that are instances of Updater
    """
    if isinstance(obj, Mapping):
        obj = list(obj.values())
    items = obj if isinstance(obj, (list, tuple)) else [obj]
    return [item for item in items if isinstance(item, Updater)]
