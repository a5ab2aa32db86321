"""Which checkpoint a run starts from: the rules over options and existing files. Nothing here loads a model."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Mapping

from returnn.engine.inner_files import InnerKey, inner_checkpoints, is_inner_name
from returnn.engine.model_files import (
    HALF_WRITTEN_POSTFIX,
    MODEL_POSTFIX,
    StartPoint,
    epoch_model_filename,
    epoch_of_filename,
    existing_models,
    has_optimizer,
    is_whole_folder,
    model_file,
    optimizer_filename,
    sharded_folder,
    strip_suffix,
)
from returnn.engine.whole_file import is_whole
from returnn.errors import CheckpointError, ConfigError, describe
from returnn.options.checkpoint import CheckpointOptions

__all__ = ["choose_start", "newest_whole"]


def choose_start(
    options: CheckpointOptions,
    *,
    models: dict[int, str] | None = None,
    trained_epochs: frozenset[int] = frozenset(),
    standard_optimizer_files: bool = True,
    inner: Mapping[InnerKey, str] | None = None,
) -> StartPoint:
    """
    Decide which checkpoint the run starts from.

    :param options:
    :param models: epoch -> path without suffix of the existing checkpoints. None: look
    :param trained_epochs: epochs with stored scores, so they were trained here
    :param standard_optimizer_files: False: the engine has own ways to store optimizers, so a checkpoint
        may be complete without an ".opt.pt" file, unless there are such files
    :param inner: (epoch, step) -> path of the checkpoints inside epochs. None: the engine cannot go on from such ones
    :raises CheckpointError: a file that is asked for is missing or broken, or all own checkpoints are unusable
    :raises ConfigError: a task that needs a checkpoint has none
    """
    is_train = options.task in ("train", "nop_init_net_train", "initialize_model")
    if models is None:
        models = existing_models(options.model, options.final_epoch if is_train else None)
    if not is_train:
        return _choose_for_other_task(options, models)
    if options.task == "initialize_model":  # does not go on from anything, writes epoch 0
        options = dataclasses.replace(options, start_epoch=None)
        models = {}
    if not standard_optimizer_files and not _any_optimizer_file(options, models):
        options = dataclasses.replace(options, allow_missing_optimizer=True)
    notes: list[str] = []
    start_epoch = options.start_epoch
    if inner and options.task == "train":
        start = _choose_inner(options, models, inner, notes)
        if start:
            return start
    if not models and start_epoch is None and options.task != "initialize_model":
        _check_no_later_models(options)
    if models and start_epoch == 1:
        notes.append(
            f"warning: start_epoch = 1: the existing checkpoints of the epochs {_epochs_str(models)} are ignored, and will be overwritten."
        )
    elif models and start_epoch is not None:
        start = _choose_before_start_epoch(options, models, start_epoch, notes)
        if start:
            return start
    elif models:
        start = _choose_existing(options, models, trained_epochs, notes)
        if start:
            return start
    if options.import_model_train_epoch1 and start_epoch in (None, 1):
        if options.load:
            notes.append("load is ignored, since import_model_train_epoch1 is given.")
        return StartPoint("import", 0, _usable(options.import_model_train_epoch1, "import_model_train_epoch1"), notes)
    if options.load:
        return _choose_load(options, notes)
    if start_epoch is not None and start_epoch > 1:
        raise CheckpointError(
            describe(
                f"start_epoch = {start_epoch}, but there is no checkpoint of epoch {start_epoch - 1}",
                where=f"model = {options.model!r}",
                todo='Set load to the checkpoint to start from, or start_epoch = "auto"',
            )
        )
    return StartPoint("fresh", None, None, notes)


def _choose_inner(
    options: CheckpointOptions, models: dict[int, str], inner: Mapping[InnerKey, str], notes: list[str]
) -> StartPoint | None:
    """:return: the newest whole one inside an epoch that has no whole checkpoint of its own, nor has a later one"""
    if options.start_epoch is not None:
        notes.append(
            f"warning: start_epoch = {options.start_epoch}: {len(inner)} checkpoint(s) inside an epoch are ignored, e.g. "
            f"{inner[max(inner)]}."
        )
        return None
    if options.mainline_dialect and options.load_epoch and not options.load:  # asks for that epoch
        newest = inner[max(inner)]
        notes.append(f"warning: load_epoch = {options.load_epoch}: the checkpoint inside an epoch {newest} is ignored.")
        return None
    done, problems = newest_whole(models, need_optimizer=not options.allow_missing_optimizer)
    own_notes = [f"warning: {problem}; that checkpoint is not used." for problem in problems]
    for epoch, step in sorted(inner, reverse=True):
        if done is not None and epoch <= done:
            break
        path = inner[epoch, step]
        problem = _problem(path, need_optimizer=True)
        if problem is not None:
            notes.append(f"warning: {problem}; that checkpoint is not used.")
            continue
        for name, value in (("load", options.load), ("import_model_train_epoch1", options.import_model_train_epoch1)):
            if value:
                own_notes.append(f"{name} is ignored, since there are checkpoints of this training.")
        return StartPoint("resume", epoch - 1, path, [*notes, *own_notes], is_own_model=True, step=step)
    return None


def _check_no_later_models(options: CheckpointOptions) -> None:
    """:raises CheckpointError: there are checkpoints, all of later epochs: a new training would mix with them"""
    later = existing_models(options.model)
    if not later:
        return
    raise CheckpointError(
        describe(
            f"num_epochs is {options.final_epoch}, but all existing checkpoints are of later epochs ({_epochs_str(later)})",
            where=f"model = {options.model!r}",
            todo=f"Set num_epochs to more than {max(later)} to go on, start_epoch = 1 to start anew, or another model",
        )
    )


def _any_optimizer_file(options: CheckpointOptions, models: dict[int, str]) -> bool:
    paths = [*models.values(), *([options.load] if options.load else [])]
    return any(has_optimizer(path) for path in paths)


def _choose_existing(
    options: CheckpointOptions, models: dict[int, str], trained_epochs: frozenset[int], notes: list[str]
) -> StartPoint | None:
    """:return: None: only the remains of a first, unfinished checkpoint are there: start anew"""
    if options.mainline_dialect and options.load_epoch and not options.load:
        if options.load_epoch not in models:
            raise _missing_epoch(options, options.load_epoch, "load_epoch", models)
        _check_resumable(options, models[options.load_epoch], f"load_epoch = {options.load_epoch}")
        return StartPoint("resume", options.load_epoch, models[options.load_epoch], notes, is_own_model=True)
    epoch, problems = newest_whole(models, need_optimizer=not options.allow_missing_optimizer)
    notes += [f"warning: {problem}; that checkpoint is not used." for problem in problems]
    if epoch is not None:
        for name, value in (("load", options.load), ("import_model_train_epoch1", options.import_model_train_epoch1)):
            if value:
                notes.append(f"{name} is ignored, since there are checkpoints of this training.")
        return StartPoint("resume", epoch, models[epoch], notes, is_own_model=True)
    newest = max(models)
    if all(not is_whole(_model_file_or_empty(path)) for path in models.values()):
        notes.append("warning: none of the existing checkpoints can be used; they will be overwritten.")
        return None
    first_saved = min(options.save_interval, max(options.final_epoch, 1))
    stored_scores = bool(trained_epochs) and max(trained_epochs) == newest
    if list(models) == [first_saved] and (stored_scores or _was_killed_while_saving_optimizer(models[newest])):
        # Killed between the model file and the optimizer file of the first checkpoint ever: nothing to go back to.
        notes.append("warning: this was the first checkpoint of the training, so it starts anew.")
        return None
    optimizer = optimizer_filename(models[newest])
    what = f"Optimizer file {optimizer} not found and allow_missing_optimizer_checkpoint is False"
    if os.path.exists(optimizer):
        what = f"Optimizer file {optimizer} is broken"
    elif has_optimizer(models[newest]):
        what = f"Optimizer state {sharded_folder(models[newest])} is broken"
    raise CheckpointError(
        describe(
            f"{what}, and there is no older checkpoint that is whole",
            where=f"model = {options.model!r}",
            todo="Set allow_missing_optimizer_checkpoint = True to go on with a fresh optimizer"
            f"{' (and remove the broken file)' if has_optimizer(models[newest]) else ''}, or start_epoch = 1 to start anew",
        )
    )


def _was_killed_while_saving_optimizer(path: str) -> bool:
    """:return: whether the file (or folder) that was being written is still there, so that the checkpoint is our own"""
    names = (optimizer_filename(path), sharded_folder(path))
    return any(os.path.lexists(name + HALF_WRITTEN_POSTFIX) for name in names)


def _choose_before_start_epoch(
    options: CheckpointOptions, models: dict[int, str], start_epoch: int, notes: list[str]
) -> StartPoint | None:
    """:return: None: there is no own checkpoint of the epoch before, but ``load`` is given"""
    epoch = start_epoch - 1
    later = [ep for ep in models if ep >= start_epoch]
    if later:
        notes.append(
            f"warning: start_epoch = {start_epoch}: the existing checkpoints of the epochs {_epochs_str(later)} "
            "are ignored, and will be overwritten."
        )
    if epoch in models:
        _check_resumable(options, models[epoch], f"start_epoch = {start_epoch}")
        if options.load:
            notes.append("load is ignored, since there are checkpoints of this training.")
        return StartPoint("resume", epoch, models[epoch], notes, is_own_model=True)
    if options.load:
        return None
    raise _missing_epoch(options, epoch, "start_epoch", models)


def _choose_load(options: CheckpointOptions, notes: list[str]) -> StartPoint:
    """The option ``load`` in a training."""
    assert options.load
    filename = _usable(options.load, "load")
    if options.start_epoch is not None and options.start_epoch > 1:
        _check_resumable(options, filename, f"load with start_epoch = {options.start_epoch}")
        return StartPoint("load", options.start_epoch - 1, filename, notes)
    if options.mainline_dialect and options.start_epoch is None:
        epoch = options.load_epoch or epoch_of_filename(filename)
        if epoch:
            _check_resumable(options, filename, "load")
        return StartPoint("load", epoch, filename, notes)
    return StartPoint("load", None, filename, notes)


def _choose_for_other_task(options: CheckpointOptions, models: dict[int, str]) -> StartPoint:
    if options.load:
        filename = _usable(options.load, "load")
        if options.mainline_dialect:
            return StartPoint("load", options.load_epoch or epoch_of_filename(filename), filename)
        notes = []
        if options.load_epoch:
            notes.append("warning: load_epoch is ignored, since load is given; the epoch is read from the checkpoint.")
        is_own = os.path.realpath(model_file(filename)) in {
            os.path.realpath(path + MODEL_POSTFIX) for path in models.values()
        }
        return StartPoint("load", None, filename, notes, is_own_model=is_own)
    if options.load_epoch:
        if options.load_epoch not in models:
            raise _missing_epoch(options, options.load_epoch, options.load_epoch_option, models)
        filename = _usable(models[options.load_epoch], options.load_epoch_option)
        return StartPoint("load", options.load_epoch, filename, is_own_model=True)
    if options.allow_random_model_init:
        return StartPoint("fresh", None, None, ["warning: no checkpoint is given; the model is initialised randomly."])
    epoch, problems = newest_whole(models, need_optimizer=False)
    notes = [f"warning: {problem}; that checkpoint is not used." for problem in problems]
    if epoch is not None:
        notes.append(f"no checkpoint is given; using the newest one, of epoch {epoch}.")
        return StartPoint("load", epoch, models[epoch], notes, is_own_model=True)
    raise ConfigError(
        describe(
            "No model given but task is not training!",
            where=f"task = {options.task!r}, and there is no checkpoint of model = {options.model!r}",
            todo='Set e.g. load = "models/epoch.010.pt", or allow_random_model_init = True' + _or_inner(options),
        ).replace("!.", "!")
        if not problems
        else describe(f"No usable checkpoint: {'; '.join(problems)}", todo='Set e.g. load = "models/epoch.010.pt"')
    )


def _usable(path: str, option: str) -> str:
    """
    :return: the path without ".pt" (or, if only that exists, the path itself)
    :raises CheckpointError: missing or broken
    """
    try:
        filename = model_file(path)
    except CheckpointError:
        raise CheckpointError(
            describe(
                f'option "{option}": checkpoint {path!r} does not exist',
                todo=f"Looked for {strip_suffix(path) + MODEL_POSTFIX!r} and the path itself. Check the path",
            )
        ) from None
    if not is_whole(filename):
        raise CheckpointError(
            describe(
                f'option "{option}": checkpoint {filename!r} is broken or only half written ({os.path.getsize(filename)} bytes)',
                todo="Use another one",
            )
        )
    return filename[: -len(MODEL_POSTFIX)] if filename.endswith(MODEL_POSTFIX) else filename


def _check_resumable(options: CheckpointOptions, path: str, where: str) -> None:
    """:raises CheckpointError: the training cannot go on from this checkpoint"""
    problem = _problem(path, need_optimizer=not options.allow_missing_optimizer)
    if problem is None:
        return
    optimizer = optimizer_filename(path)
    if is_whole(_model_file_or_empty(path)) and not has_optimizer(path):
        raise CheckpointError(
            describe(
                f"Optimizer file {optimizer} not found and allow_missing_optimizer_checkpoint is False",
                where=where,
                todo="Set allow_missing_optimizer_checkpoint = True to go on with a fresh optimizer",
            )
        )
    raise CheckpointError(describe(problem, where=where, todo="Use another epoch"))


def _model_file_or_empty(path: str) -> str:
    try:
        return model_file(path)
    except CheckpointError:
        return ""


def _missing_epoch(options: CheckpointOptions, epoch: int, option: str, models: dict[int, str]) -> CheckpointError:
    assert epoch >= 0
    missing = epoch_model_filename(options.model or "", epoch) + MODEL_POSTFIX
    return CheckpointError(
        describe(
            f'option "{option}" needs the checkpoint of epoch {epoch}, but {missing!r} does not exist',
            where=f"existing epochs: {_epochs_str(models) or 'none'}",
            todo="Choose one of the existing epochs" + _or_inner(options),
        )
    )


def _or_inner(options: CheckpointOptions) -> str:
    """:return: end of a sentence on what to do: the newest checkpoint inside an epoch, if there is one"""
    inner = inner_checkpoints(options.model)
    return "" if not inner else f', or set load = "{inner[max(inner)]}{MODEL_POSTFIX}", which is from inside an epoch'


def _epochs_str(epochs: dict[int, str] | list[int]) -> str:
    values = sorted(epochs)
    shown = values if len(values) <= 6 else [*values[:3], "...", *values[-3:]]
    return ", ".join(map(str, shown))


def _problem(path: str, *, need_optimizer: bool) -> str | None:
    """:return: why this checkpoint cannot be used to go on; None: it can"""
    try:
        model = model_file(path)
    except CheckpointError:
        return f"{strip_suffix(path) + MODEL_POSTFIX} does not exist"
    if not is_whole(model):
        return f"{model} is broken or only half written"
    optimizer = optimizer_filename(path)
    if need_optimizer and not has_optimizer(path):
        return f"optimizer file {optimizer} does not exist"
    folder = sharded_folder(path)
    if os.path.isdir(folder) and not is_whole_folder(folder):
        return f"{folder} is broken or only half written"
    # Even if no optimizer file is needed, a broken one shows that this checkpoint was not finished.
    # Custom engines store several, e.g. epoch.001.generator.opt.pt.
    for filename in sorted(glob.glob(glob.escape(strip_suffix(path)) + ".*opt.pt")):
        if not is_whole(filename) and (is_inner_name(path) or not is_inner_name(filename)):
            return f"{filename} is broken or only half written"
    return None


def newest_whole(models: dict[int, str], *, need_optimizer: bool) -> tuple[int | None, list[str]]:
    """
    :param models: epoch -> path without suffix
    :param need_optimizer: the optimizer file must be there too
    :return: epoch of the newest usable checkpoint, None if there is none; the problems of the newer ones
    """
    problems: list[str] = []
    for epoch in sorted(models, reverse=True):
        problem = _problem(models[epoch], need_optimizer=need_optimizer)
        if problem is None:
            return epoch, problems
        problems.append(problem)
    return None, problems
