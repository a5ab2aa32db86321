"""
The part of the engine that saves, stops and goes on inside an epoch.

A checkpoint inside an epoch is taken between two training steps: after all that belongs to a step, before the next batch is
fetched. Its files (:mod:`returnn.engine.inner_files`) are written beside training. In an evaluation that no checkpoint of the epoch
precedes (``save_interval``), it is the state from before the evaluation that is saved.

Engines of users that train or save in their own ways are left alone: they stop and go on between epochs, as ever.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from returnn._state import state
from returnn.engine.inner_files import delete_inner, inner_checkpoints, inner_filename
from returnn.engine.model_files import StartPoint, existing_models, optimizer_filename
from returnn.engine.pauses import PausePlan
from returnn.engine.report import PassReport
from returnn.engine.start_point import newest_whole
from returnn.errors import CheckpointError, UserError
from returnn.learning_rate_control import EpochData
from returnn.log import log
from returnn.options.checkpoint import CheckpointOptions
from returnn.options.inner_checkpoints import InnerCheckpointOptions
from returnn.options.loading import LoadingOptions
from returnn.options.task import TaskOptions
from returnn.torch.checkpoint import find_checkpoint_file, load_file, save_file_atomic
from returnn.torch.checkpoint_writer import CheckpointWriter, to_host
from returnn.torch.data.loader import Loader
from returnn.torch.distributed.start import first_rank_decides, gather_rng_states
from returnn.torch.distributed.stopping import agreed_stop_reason
from returnn.torch.epoch_position import EpochPosition, TrainPass
from returnn.torch.eval_passes import EvalPasses
from returnn.torch.model_state import model_file_content
from returnn.torch.restart import RestartState, was_used
from returnn.torch.rng_state import RngState, get_rng_state
from returnn.torch.updater import Updater
from returnn.util.stop_request import StopRequested, TrainingStopped, accept_stops

__all__ = ["InnerCheckpoints"]

#: Of the engine. Who overrides one of them may keep state of its own, or save it in own ways.
_OWN_METHODS = (
    *("train", "train_epoch", "run_train_step", "save_model"),
    *("_load_model", "_save_optimizer", "_load_optimizer", "get_epoch_model", "get_start_point"),
)
_OWN_UPDATER_METHODS = ("step", "save_optimizer", "load_optimizer", "finish_epoch", "optimizer_state_dict")


@dataclasses.dataclass(frozen=True)
class _BeforeEval:
    """What the evaluation of an epoch changes."""

    rng: RngState
    used_eval_loaders: Mapping[str, bool]


class InnerCheckpoints(EvalPasses):
    """Base of the engine; uses attributes that the engine sets."""

    _writer: CheckpointWriter | None = None
    #: whether the training starts inside an epoch
    _starts_inside = False
    #: whether the epoch that is trained has a checkpoint of its own already
    _epoch_is_saved = False

    _final_epoch: int | None

    def save_model(self) -> None:
        """Write the checkpoint of the current epoch."""
        raise NotImplementedError  # by Engine

    def _get_start_point(self) -> StartPoint:
        raise NotImplementedError  # by Engine

    # ---- what is possible

    def _why_no_inner_checkpoints(self) -> str | None:
        """:return: why this training cannot save inside an epoch, the same on all ranks; None: it can"""
        options = CheckpointOptions.from_config(self.config)
        if options.task != "train":
            return f"task = {options.task!r}"
        if TaskOptions.from_config(self.config).dry_run:
            return "it is a dry run"
        if not (self.model_filename or options.model):
            return "the option model is not set"
        for name in _OWN_METHODS:
            method: Any = getattr(type(self), name)  # Any: functions and bound class methods
            if not getattr(method, "__module__", "").startswith("returnn."):
                return f"the engine {type(self).__name__} has its own {name}"
        ctx = self._distributed
        if ctx is not None and ctx.options.is_fsdp:
            return 'the model is in shards (class "fsdp" in torch_distributed)'
        if ctx is not None and ctx.options.reduce_type == "param":
            return 'each rank has its own weights (reduce_type "param" in torch_distributed)'
        return None

    def _plan_pauses(self) -> None:
        """At the start of the set-up of a training: the limits of time count from here."""
        options = InnerCheckpointOptions.from_config(self.config)
        if self._why_no_inner_checkpoints() is None:
            self._pauses = PausePlan(**dataclasses.asdict(options))

    @contextlib.contextmanager
    def _saving_inside_epochs(self) -> Iterator[None]:
        """Around the training: within it, whoever asks it to stop gets a checkpoint, if that is possible."""
        reason = self._why_no_inner_checkpoints() or self._why_not_now()
        if reason is not None:
            self._pauses = None
            self._say_why_not(reason)
            yield
            return
        with accept_stops():
            self._writer = CheckpointWriter()
            try:
                self._delete_obsolete()
                yield
                self._writer.wait()
            except StopRequested as exc:  # nothing has changed since what is saved
                self._stop(exc.reason)
            finally:
                error = self._writer.close()
                if error:
                    print(error, file=log.v1)

    def _why_not_now(self) -> str | None:
        if self._pauses is None:
            return f"the engine {type(self).__name__} has its own init_train"
        if any(observer.keeps_from_writing for observer in self._observers):
            return "nothing is written while the run is profiled"
        if not isinstance(self._train_dataloader, Loader):
            return f"the engine {type(self).__name__} has its own loader of the training data"
        if not isinstance(self._updater, Updater):
            return f"the engine {type(self).__name__} has its own updater"
        for name in _OWN_UPDATER_METHODS:
            if not getattr(type(self._updater), name).__module__.startswith("returnn."):
                return f"the updater {type(self._updater).__name__} has its own {name}"
        return None

    def _say_why_not(self, reason: str) -> None:
        given = InnerCheckpointOptions.from_config(self.config).given
        if given:
            print(
                f"Warning: no checkpoints inside epochs, since {reason}: {', '.join(given)} has no effect.",
                file=log.v1,
            )
        elif type(self).__module__.startswith("returnn."):
            print(f"No checkpoints inside epochs: {reason}.", file=log.v5)
        else:
            print(
                f"Note: no checkpoints inside epochs, since {reason}; stopped inside an epoch, the training goes on at its start.",
                file=log.v3,
            )

    # ---- going on

    def _choose_train_start(self) -> StartPoint:
        """:return: the checkpoint to go on from, of an epoch or inside one, the same on all ranks"""
        if self._pauses is None:
            return self._get_start_point()
        return first_rank_decides(self._newest_usable)

    def _newest_usable(self) -> StartPoint:
        options = CheckpointOptions.from_config(self.config)
        inner = inner_checkpoints(options.model, options.final_epoch)
        notes: list[str] = []
        while True:
            start = self.get_start_point(self.config, inner=inner)
            if start.step is None:
                break
            assert start.filename is not None
            problem = self._why_unusable(start.filename)
            if problem is None:
                break
            notes.append(f"warning: {start.filename} cannot be used to go on: {problem}")
            inner = {key: path for key, path in inner.items() if path != start.filename}
        return dataclasses.replace(start, notes=[*notes, *start.notes])

    def _why_unusable(self, filename: str) -> str | None:
        """:return: why the training cannot go on inside the epoch with this checkpoint; None: it can, the loader is told"""
        try:
            weights_only = not LoadingOptions.from_config(self.config).allow_unsafe
            checkpoint = load_file(find_checkpoint_file(filename), weights_only=weights_only, mmap=True)
            entries = checkpoint.get("position") if isinstance(checkpoint, dict) else None
            if not isinstance(entries, dict):
                return "it does not say where it is in the epoch."
            position = EpochPosition.from_entries(entries, filename=filename)
            if position.num_ranks != state.world_size:
                return (
                    f"it was written by {position.num_ranks} processes, now there are {state.world_size}. "
                    "Inside an epoch their number cannot change."
                )
            if position.phase == "train":
                self._train_loader.load_state_dict(position.ranks[0]["loader"])
        except UserError as exc:
            return str(exc)
        return None

    @property
    def _train_loader(self) -> Loader:
        assert isinstance(self._train_dataloader, Loader), "checked in _why_not_now"
        return self._train_dataloader

    def _go_on_inside(self, start: StartPoint) -> None:
        """:param start: whose model was just loaded: its position becomes that of the training, if it has one"""
        if start.step is None:
            return
        if self._restart.position is None:
            raise CheckpointError(f"Checkpoint {start.filename} does not say where it is in its epoch. Remove it.")
        assert start.filename is not None
        position = EpochPosition.from_entries(self._restart.position, filename=start.filename)
        if position.phase == "train":
            self._train_loader.load_state_dict(position.ranks[state.rank]["loader"])
        self._position, self._epochs_done = position, position.epochs_done
        assert self.learning_rate_control is not None
        epoch_data = self.learning_rate_control.epoch_data
        data = epoch_data.get(start.start_epoch)
        if data is None:
            epoch_data[start.start_epoch] = EpochData(position.learning_rate)
        elif data.learning_rate is None:
            data.learning_rate = position.learning_rate

    def _secs_of_earlier_runs(self) -> float:
        """:return: seconds that they spent in the epoch that begins"""
        return 0.0 if self._position is None else self._position.secs

    @contextlib.contextmanager
    def _keeping_weights(self, needed: bool) -> Iterator[None]:
        """
        Around functions of the user at the start of a pass, which were called before the pass was interrupted as well: what they
        set in the model they set again, but not its weights and buffers.

        :param needed: False: nothing happens
        """
        if not needed or not self._pass_frame.has_start:
            yield
            return
        assert self._model is not None
        entries = {name: x for name, x in self._model.state_dict().items() if isinstance(x, torch.Tensor)}
        saved = {name: x.detach().clone() for name, x in entries.items()}
        yield
        with torch.no_grad():
            for name, x in entries.items():
                x.copy_(saved[name])

    def _going_on_train_pass(self, position: EpochPosition, report: PassReport) -> TrainPass:
        """
        When the iterator over the training data is there and nothing else is left to be set up: all random generators, and what
        is special to this rank, as they were.

        :param position: to go on at
        :param report: of the pass
        :return: the pass as it was
        """
        part = position.ranks[state.rank]
        assert self._model is not None
        if self._ranks is not None:
            self._ranks.load_own_state(part, self._model)
        self._restart.restore_rng()
        report.goes_on_after(position.secs)
        print(f"Going on with step {position.num_steps} of {self.get_epoch_str()}.", file=log.v3)
        return position.train_pass(state.rank)

    # ---- saving

    @property
    def _may_pause_without_request(self) -> bool:
        return self._writer is not None and self._pauses is not None and self._pauses.without_request

    def _pause(self, train_pass: TrainPass) -> None:
        """
        After a training step, if something asks for a pause: save, and stop if that is asked for.

        :param train_pass: with the step
        :raises TrainingStopped: all is saved
        """
        if self._pauses is None or self._writer is None:  # nobody can save, so it is not for us
            return
        self._writer.check()
        pause = self._pauses.after_step(self._train_step)
        if pause is None:
            return
        self._save_inside_epoch(train_pass)
        if pause == "stop":
            self._stop(agreed_stop_reason() or "another rank")

    def _save_inside_epoch(self, train_pass: TrainPass) -> None:
        """
        All ranks must call it, after the same step. Returns when the state is copied; it is written later.

        :param train_pass: the running one
        """
        train_pass.losses.fetch()
        self._check_accumulated(train_pass.losses)
        part: dict[str, Any] = {
            "loader": self._train_loader.state_dict(),
            "losses": EpochPosition.entries_of_losses(train_pass.losses),
        }
        ctx = self._distributed
        if self._ranks is not None:
            assert self._model is not None
            part.update(self._ranks.own_state(self._model, with_gradients=self._updater.num_accumulated_steps > 0))
        self._submit_checkpoint(
            EpochPosition(
                phase="train",
                learning_rate=float(self.learning_rate),
                used_eval_loaders=self._used_eval_loaders(),
                meta=train_pass.meta.as_entries(),
                step_secs=train_pass.step_secs,
                epochs_done=self._epochs_done,
                ranks=[part] if ctx is None else ctx.gather_objects(part) or (),
                num_ranks=state.world_size,
            ),
            rng=get_rng_state(),
        )

    def _save_before_eval(self, before: _BeforeEval) -> None:
        """:param before: the state that the evaluation began with; all else it does not change"""
        position = EpochPosition(
            phase="eval",
            learning_rate=float(self.learning_rate),
            used_eval_loaders=before.used_eval_loaders,
            num_ranks=state.world_size,
        )
        self._submit_checkpoint(position, rng=before.rng)

    def _submit_checkpoint(self, position: EpochPosition, *, rng: RngState) -> None:
        assert self._writer is not None and self._model is not None
        rng_of_others = gather_rng_states(rng)
        if not self._should_write_to_disk():
            return
        prefix = self.model_filename or CheckpointOptions.from_config(self.config).model
        assert prefix
        filename = inner_filename(prefix, self.epoch, self._train_step)
        print(f"Save checkpoint inside the epoch under {filename}{self.FILE_POSTFIX}", file=log.v4)
        model_state = self._model.state_dict()
        model = model_file_content(
            model_state,
            epoch=self.epoch,
            step=self._train_step,
            learning_rate=self._effective_learning_rate,
            more=self._averages_for_checkpoint(model_state),
            restart=RestartState.capture(
                self.learning_rate_control,
                first_epoch=self._restart.first_epoch or self._start_epoch,
                rng=rng,
                rng_of_others=rng_of_others,
                position=position.as_entries(),
            ),
        )
        optimizer = self._updater.optimizer_file_content(epoch=self.epoch, step=self._train_step, inside_epoch=True)
        model, optimizer = to_host((model, optimizer))
        job = functools.partial(_write, model, optimizer, filename=filename, prefix=prefix, epoch=self.epoch)
        self._writer.submit(job, what=filename + str(self.FILE_POSTFIX))

    def _used_eval_loaders(self) -> dict[str, bool]:
        return {name: was_used(loader) for name, loader in self._eval_dataloaders.items()}

    @contextlib.contextmanager
    def _stopping_between_steps(self, train_pass: TrainPass) -> Iterator[None]:
        """
        Around the training steps: a stop was requested while the next batch was waited for.

        :param train_pass: the running one
        :raises TrainingStopped: all is saved
        """
        try:
            yield
        except StopRequested as exc:
            if self._writer is None:
                raise
            self._save_inside_epoch(train_pass)
            self._stop(exc.reason)

    # ---- the end of an epoch

    def _note_epoch_is_saved(self) -> None:
        """The checkpoint of the epoch is whole: those inside it are not needed any more."""
        self._epoch_is_saved = True
        if self._writer is None or self._pauses is None:
            return
        self._writer.wait()
        self._pauses.saved()
        self._delete_inner(last_epoch=self.epoch)

    def _delete_obsolete(self) -> None:
        """Those which a killed process had no time to delete."""
        options = CheckpointOptions.from_config(self.config)
        done, _ = newest_whole(existing_models(options.model, options.final_epoch), need_optimizer=True)
        if done is not None and self._start_epoch is not None and done < self._start_epoch:
            self._delete_inner(last_epoch=done)

    def _delete_inner(self, *, last_epoch: int) -> None:
        prefix = self.model_filename or CheckpointOptions.from_config(self.config).model
        if prefix and self._should_write_to_disk():
            delete_inner(prefix, last_epoch=last_epoch)

    @contextlib.contextmanager
    def _stopping_after_train_pass(self) -> Iterator[None]:
        """
        Around the evaluation of an epoch, and what else follows its training pass.

        :raises TrainingStopped: a stop was requested, and all is saved
        """
        if self._writer is None:
            yield
            return
        before = None if self._epoch_is_saved else _BeforeEval(get_rng_state(), self._used_eval_loaders())
        reason: str | None = None
        try:
            yield
        except StopRequested as exc:
            reason = exc.reason
        if reason is None and self.epoch != self._final_epoch:
            reason = agreed_stop_reason()
        if reason is not None:
            if before is not None:
                self._save_before_eval(before)
            self._stop(reason)

    def _stop_between_epochs(self) -> None:
        """:raises TrainingStopped: a stop was requested, and there is nothing to save"""
        if self._writer is not None and self._epoch_is_saved and state.stop_reason and state.world_size == 1:
            self._stop(state.stop_reason)

    def _stop(self, reason: str) -> None:
        """:raises TrainingStopped: all is written"""
        assert self._writer is not None
        self._writer.wait()
        print(
            f"Stopping ({reason}) in {self.get_epoch_str()}, after training step {self._train_step}. All is saved, the next start "
            "goes on here.",
            file=log.v1,
        )
        raise TrainingStopped(reason)


def _write(model: object, optimizer: object, *, filename: str, prefix: str, epoch: int) -> None:
    """In the thread of the writer. The model file comes last: where it is, the other is whole."""
    save_file_atomic(optimizer, optimizer_filename(filename))
    save_file_atomic(model, filename + ".pt")
    delete_inner(prefix, last_epoch=epoch, keep=filename)
