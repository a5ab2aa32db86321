"""Building the model, filling it from a checkpoint, and writing its checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

import returnn
from returnn.config import Config
from returnn.engine.model_files import epoch_of_filename
from returnn.errors import CheckpointError, ModelError
from returnn.log import log
from returnn.options.checkpoint import CheckpointOptions
from returnn.options.dialect import is_mainline
from returnn.options.loading import LoadingOptions
from returnn.options.model import LoadedModelOptions, ModelOptions, describe_function
from returnn.options.training import EngineOptions
from returnn.torch.checkpoint import (
    find_checkpoint_file,
    get_model_state,
    load_file,
    load_model_state,
)
from returnn.torch.context import init_load_run_ctx
from returnn.torch.ema import averages_to_go_on_with, key_of_weights
from returnn.torch.float_dtype import default_float_dtype, float_dtype_of_name
from returnn.torch.preload import Preloads
from returnn.torch.restart import RestartState
from returnn.torch.user_functions import UserFunction, random_arg_format
from returnn.util.seeds import model_creation_seed

if TYPE_CHECKING:
    from returnn.engine.base import EngineBase

__all__ = ["LoadedModel", "build_model", "model_file_content"]


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model on its device, and what its checkpoint said."""

    model: torch.nn.Module
    model_epoch: int  # that get_model was called with; 1 if no epoch is known
    step: int  # number of training steps that the checkpoint has seen
    restart: RestartState
    #: of the weights, see returnn.torch.ema; None: none, or they are not needed. Any: as there
    averages: Mapping[str, Any] | None = None


def build_model(
    *,
    config: Config,
    engine: EngineBase | None,
    device: str,
    epoch: int | None,
    filename: str | None,
    options: EngineOptions,
    get_model_kwargs: Mapping[str, Any] | None = None,
    stay_on_host: bool = False,
    inside_epoch: bool = False,
) -> LoadedModel:
    """
    Seed, call get_model, load the checkpoint and the files of preload_from_files, move to the device.

    :param config: the user's
    :param engine: for the run context
    :param device: of the model
    :param epoch: training: the first epoch to train; else None: get_model gets epoch and step of the checkpoint
    :param filename: checkpoint, with or without suffix; None: random parameters
    :param options: of the engine
    :param get_model_kwargs: further arguments for get_model, e.g. of the export. Any: as there
    :param stay_on_host: do not move the model to the device, which may be too small for all of it
    :param inside_epoch: the checkpoint is one inside ``epoch``, of the same training
    :raises CheckpointError: the checkpoint is missing, broken, or does not fit
    :raises ModelError: get_model returned something else
    """
    allow_unsafe = LoadingOptions.from_config(config).allow_unsafe
    checkpoint: Any = None
    checkpoint_epoch: int | None = None
    checkpoint_step = 0
    if filename:
        path = find_checkpoint_file(filename)
        print(f"Load model {filename}", file=log.v4)
        checkpoint = load_file(path, weights_only=not allow_unsafe)
        if isinstance(checkpoint, dict):
            checkpoint_epoch = _as_int(checkpoint.get("epoch"), "epoch", path)
            checkpoint_step = _as_int(checkpoint.get("step"), "step", path) or 0
        if checkpoint_epoch is None:  # e.g. an averaged or exported state dict
            checkpoint_epoch = epoch_of_filename(filename)
    mainline = is_mainline(config)
    starts_anew = epoch == 1 and not inside_epoch
    model_epoch = epoch if epoch is not None else (checkpoint_epoch or 1)
    model_step = 0 if epoch is not None else checkpoint_step
    if mainline and checkpoint is not None and not starts_anew:  # those of the last step that the checkpoint has seen
        model_epoch = checkpoint_epoch or model_epoch
        model_step = max(checkpoint_step - 1, 0)
    hooks = LoadedModelOptions.from_config(config)
    float_dtype = float_dtype_of_name(hooks.float_dtype)

    torch.manual_seed(model_creation_seed(epoch=model_epoch, step=model_step, random_seed=options.random_seed))
    init_load_run_ctx(device=device, engine=engine, epoch=model_epoch)
    get_model = ModelOptions.from_config(config, needed=("get_model",), used=()).get_model
    assert get_model is not None
    kwargs = {"epoch": model_epoch, "step": model_step, **(get_model_kwargs or {})}
    # In the Mini dialect, functions that hand their **kwargs on do not expect device.
    more: dict[str, Any] = {"device": device} if mainline else {"only_if_declared": {"device": device}}
    with default_float_dtype(float_dtype):
        model = UserFunction(get_model, random_arg=random_arg_format(mainline=mainline))(**kwargs, **more)
    if not isinstance(model, torch.nn.Module):
        raise ModelError(
            f"get_model ({describe_function(get_model)}) must return a torch.nn.Module, got {type(model).__name__}."
        )
    print(f"Model: {model}", file=log.v4)
    num_params = sum(p.numel() for p in model.parameters())
    if mainline:
        print(f"net params #: {num_params}", file=log.v2)
    else:
        print(f"Total number of parameters: {num_params}", file=log.v4)
    if float_dtype is not None:
        model.to(float_dtype)

    checkpoint_options = CheckpointOptions.from_config(config)
    preloads = Preloads.from_config(config, is_training=epoch is not None, is_first_train_epoch=starts_anew)
    if checkpoint is not None:
        assert filename is not None
        key = "model" if epoch is not None else key_of_weights(config, checkpoint, filename=filename)
        report = load_model_state(
            model,
            get_model_state(checkpoint, filename=filename, key=key),
            allow_missing=checkpoint_options.load_ignore_missing_vars,
            filename=filename,
            provided_elsewhere=preloads.provided_names(model),
        )
        print(report.summary(), file=log.v2 if report.missing or report.unexpected else log.v3)
    preloads.apply(model)
    if not stay_on_host:
        model.to(device)
    for hook in hooks.post_hooks:
        UserFunction(hook, random_arg=random_arg_format(mainline=mainline))(model=model)
    return LoadedModel(
        model=model,
        model_epoch=model_epoch,
        step=checkpoint_step,
        restart=RestartState.from_checkpoint(checkpoint),
        averages=None if epoch is None or starts_anew else averages_to_go_on_with(config, checkpoint),
    )


def _as_int(value: object, what: str, path: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise CheckpointError(f"Checkpoint {path}: entry {what!r} is {value!r}, expected an int.")
    return value


def model_file_content(
    model_state: Mapping[str, Any],
    *,
    epoch: int,
    step: int,
    learning_rate: float,
    restart: RestartState,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """
    :param model_state: state dict of the model. Any: modules can have extra state of any type
    :param epoch: finished one; in a checkpoint inside an epoch, the running one
    :param step: number of training steps done
    :param learning_rate: of the epoch
    :param restart: random generators, scores
    :param more: further entries, which the peers ignore. Any: tensors and plain values
    :return: ``model``, ``epoch`` and ``step`` as the peers have them, and beside them what a restart needs; not copied. Any: as above
    """
    return {
        "model": model_state,
        "epoch": epoch,
        "step": step,
        "effective_learning_rate": float(learning_rate),
        "returnn_version": returnn.__version__,
        **restart.as_entries(),
        **(more or {}),
    }
