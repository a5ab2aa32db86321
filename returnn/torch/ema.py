"""Exponential moving average of the weights: updated with them, saved with them, used in their place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from returnn.config import Config
from returnn.errors import CheckpointError, NotSupportedError
from returnn.log import log
from returnn.options.checkpoint import CheckpointOptions
from returnn.options.ema import EmaOptions
from returnn.torch.distributed.tensors import is_sharded
from returnn.torch.updater import Updater

__all__ = ["AveragedWeights", "WeightAverage", "averages_to_go_on_with", "key_of_weights", "EMA_KEY"]

#: Entry of the checkpoint: a state dict of the whole model with the averages in it. The peers ignore it.
EMA_KEY = "ema"
#: Entry with what else a restart needs.
_STATE_KEY = "ema_state"


class WeightAverage:
    """
    The average of the weights of one model. Parameters that are frozen when it is made are not averaged.

    Averages of 16-bit parameters are kept in float32: their steps would be rounded away.
    """

    def __init__(self, model: torch.nn.Module, options: EmaOptions):
        """
        :param model: on its device
        :param options: of the average
        """
        self._options = options
        self._num_updates = 0
        self._weights = _averaged_entries(model, buffers=options.buffers)
        # Of the same names. Empty: it has not begun, it is the weights themselves.
        self._averages: dict[str, torch.Tensor] = {}
        self._average_fn = get_ema_multi_avg_fn(options.decay)

    @property
    def has_begun(self) -> bool:
        """Whether it differs from the weights."""
        return bool(self._averages)

    @property
    def averages(self) -> Mapping[str, torch.Tensor]:
        """By name in the state dict of the model; empty before the first update that counts."""
        return self._averages

    @torch.no_grad()
    def after_update(self, skipped: bool | torch.Tensor) -> None:
        """
        For :meth:`returnn.torch.updater.Updater.add_update_hook`.

        :param skipped: whether the weights were not changed: then the average is not either. A tensor: float32 scalar on the
            device, 1.0 or 0.0
        """
        self._num_updates += 1
        num = self._num_updates - self._options.start_step
        if skipped is True or num <= 0 or num % self._options.every_n_steps:
            return
        if not self._averages:
            self._averages = {name: _average_of(weight) for name, weight in self._weights.items()}
            return
        averages = list(self._averages.values())
        weights = [weight.to(avg.dtype) for weight, avg in zip(self._weights.values(), averages, strict=True)]
        if isinstance(skipped, torch.Tensor):  # without waiting for the device
            steps = torch._foreach_sub(weights, averages)
            torch._foreach_mul_(steps, (1.0 - self._options.decay) * (1.0 - skipped))
            torch._foreach_add_(averages, steps)
        else:
            self._average_fn(averages, weights, self._num_updates)

    @contextlib.contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """The model has the averages as weights; at exit it has its own again, bit by bit, whatever happens. Needs their memory once more."""
        if not self._averages:
            yield
            return
        weights = [weight.detach() for weight in self._weights.values()]
        saved = [weight.clone() for weight in weights]
        try:
            _copy(weights, list(self._averages.values()))
            yield
        finally:
            _copy(weights, saved)

    def as_entries(self, model_state: Mapping[str, Any]) -> dict[str, Any]:
        """
        :param model_state: state dict of the model. Any: modules can have extra state of any type
        :return: for the checkpoint. Tensors that are not averaged are those of the model, they are in the file only once
        """
        return {
            EMA_KEY: {**model_state, **self._averages},
            _STATE_KEY: {"num_updates": self._num_updates, "names": list(self._averages)},
        }

    def restore(self, entries: Mapping[str, Any]) -> None:
        """
        Go on as the training that made the checkpoint.

        :param entries: see :func:`averages_to_go_on_with`. Any: as there
        """
        state, tensors = entries[_STATE_KEY], entries[EMA_KEY]
        self._num_updates = int(state["num_updates"])
        known = {name: tensors[name] for name in state["names"] if name in tensors}
        if not known:
            return
        self._averages = {name: _average_of(weight) for name, weight in self._weights.items()}
        fitting = [name for name, avg in self._averages.items() if name in known and known[name].shape == avg.shape]
        for name in fitting:
            self._averages[name].copy_(known[name])
        if len(fitting) < len(self._averages):
            missing = [name for name in self._averages if name not in fitting]
            print(
                f"Note: the averages (ema) of {len(missing)} parameters are not in the checkpoint, they start with their weights: "
                f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}.",
                file=log.v2,
            )


def _averaged_entries(model: torch.nn.Module, *, buffers: bool) -> dict[str, torch.Tensor]:
    """:return: those of the state dict that are averaged, by their names there; shared ones under each of their names"""
    wanted = {id(param) for param in model.parameters() if param.requires_grad}
    if buffers:
        wanted.update(id(buffer) for buffer in model.buffers() if buffer.is_floating_point())
    entries = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) in wanted:
            entries[name] = value
    return entries


def _average_of(weight: torch.Tensor) -> torch.Tensor:
    """:return: where an average starts"""
    is_16_bit = weight.dtype in (torch.float16, torch.bfloat16)
    return weight.detach().to(torch.float32 if is_16_bit else weight.dtype, copy=True)


@torch.no_grad()
def _copy(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def averages_to_go_on_with(config: Config, checkpoint: object) -> dict[str, Any] | None:
    """
    :param config:
    :param checkpoint: loaded file
    :return: what :meth:`WeightAverage.restore` needs; None: it has no averages, or there is no option ``ema``
    """
    if EmaOptions.from_config(config) is None or not isinstance(checkpoint, dict):
        return None
    if EMA_KEY not in checkpoint or _STATE_KEY not in checkpoint:
        return None
    return {key: checkpoint[key] for key in (EMA_KEY, _STATE_KEY)}


def key_of_weights(config: Config, checkpoint: object, *, filename: str) -> str:
    """
    :param config:
    :param checkpoint: loaded file, not for a training
    :param filename: for messages
    :return: its entry with the weights that the option ``ema`` asks for
    :raises CheckpointError: it asks for the averages, but there are none
    """
    options = EmaOptions.from_config(config)
    task = CheckpointOptions.from_config(config).task
    wanted = "eval" if task == "eval" else "forward"
    if options is None or CheckpointOptions.from_config(config).is_training_task or not getattr(options, wanted):
        return "model"
    if not isinstance(checkpoint, dict) or EMA_KEY not in checkpoint:
        raise CheckpointError(
            f'Checkpoint {filename} has no averaged weights (entry "{EMA_KEY}"), but the option ema asks for them: "{wanted}": True. '
            f'Train with the option ema, or set "{wanted}": False in it to use the weights as they are.'
        )
    print(f"Using the averaged weights of {filename} (ema).", file=log.v3)
    return EMA_KEY


class AveragedWeights:
    """The part of the engine that knows the average; uses attributes that the engine sets."""

    config: Config
    _model: torch.nn.Module | None
    _updater: Any  # Updater; custom engines put what they like here
    _start_epoch: int | None
    #: None: off, or the model was loaded with the averages as weights
    _ema: WeightAverage | None = None
    #: of the loaded checkpoint, until _start_averages takes them. Any: see averages_to_go_on_with
    _saved_averages: Mapping[str, Any] | None = None

    def _start_averages(self) -> None:
        """
        For a training, when model and optimizer are there: begin, or go on as the checkpoint says.

        :raises NotSupportedError: the model is in shards
        """
        saved, self._saved_averages = self._saved_averages, None
        options = EmaOptions.from_config(self.config)
        if options is None:
            return
        assert self._model is not None
        if any(is_sharded(param) for param in self._model.parameters()):
            raise NotSupportedError(
                'option "ema" is not supported for models in shards (class "fsdp" in torch_distributed). Remove one of the two, or '
                "average the last checkpoints with tools/torch_avg_checkpoints.py."
            )
        self._ema = WeightAverage(self._model, options)
        if saved is not None:
            self._ema.restore(saved)
        elif self._start_epoch is not None and self._start_epoch > 1:
            print("Note: the checkpoint has no averages (ema), they start with its weights.", file=log.v2)
        assert isinstance(self._updater, Updater)
        self._updater.add_update_hook(self._ema.after_update)

    def _averages_for_checkpoint(self, model_state: Mapping[str, Any]) -> dict[str, Any]:
        """
        :param model_state: state dict of the model. Any: modules can have extra state of any type
        :return: further entries of the checkpoint
        """
        return {} if self._ema is None else self._ema.as_entries(model_state)

    def _averaged_weights(self, purpose: Literal["eval", "forward"]) -> contextlib.AbstractContextManager[None]:
        """
        :param purpose: of a pass over a dataset
        :return: in its context the model has the averages as weights, if the options ask for that
        """
        options = EmaOptions.from_config(self.config) if self._ema is not None else None
        if self._ema is None or options is None or not (options.eval if purpose == "eval" else options.forward):
            return contextlib.nullcontext()
        return self._ema.in_place_of_weights()
