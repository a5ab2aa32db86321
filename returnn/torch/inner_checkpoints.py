"""
The part of the engine that saves and stops inside an epoch. That which goes on there is :mod:`returnn.torch.inner_start`.

A checkpoint inside an epoch is taken between two training steps: after all that belongs to a step, before the next batch is
fetched. Its files (:mod:`returnn.engine.inner_files`) are written beside training. In an evaluation that no checkpoint of the epoch
precedes (``save_interval``), it is the state from before the evaluation that is saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from returnn._state import state
from returnn.engine.inner_files import delete_inner, inner_filename
from returnn.engine.model_files import existing_models, optimizer_filename
from returnn.engine.start_point import newest_whole
from returnn.log import log
from returnn.options.checkpoint import CheckpointOptions
from returnn.torch.checkpoint import save_file_atomic
from returnn.torch.checkpoint_writer import CheckpointWriter, to_host
from returnn.torch.distributed.start import gather_rng_states
from returnn.torch.distributed.stopping import agreed_stop_reason
from returnn.torch.epoch_position import EpochPosition, TrainPass
from returnn.torch.inner_start import InnerStart
from returnn.torch.model_state import model_file_content
from returnn.torch.restart import RestartState, was_used
from returnn.torch.rng_state import RngState, get_rng_state
from returnn.util.stop_request import StopRequested, TrainingStopped, accept_stops

__all__ = ["InnerCheckpoints"]


@dataclasses.dataclass(frozen=True)
class _BeforeEval:
    """What the evaluation of an epoch changes."""

    rng: RngState
    used_eval_loaders: Mapping[str, bool]


class InnerCheckpoints(InnerStart):
    """Base of the engine; uses attributes that the engine sets."""

    _writer: CheckpointWriter | None = None
    #: whether the epoch that is trained has a checkpoint of its own already
    _epoch_is_saved = False

    _final_epoch: int | None

    def save_model(self) -> None:
        """Write the checkpoint of the current epoch."""
        raise NotImplementedError  # by Engine

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
        model = self._model_file_content(
            self._model.state_dict(), rng=rng, rng_of_others=rng_of_others, position=position.as_entries()
        )
        optimizer = self._updater.optimizer_file_content(epoch=self.epoch, step=self._train_step, inside_epoch=True)
        model, optimizer = to_host((model, optimizer))
        job = functools.partial(_write, model, optimizer, filename=filename, prefix=prefix, epoch=self.epoch)
        self._writer.submit(job, what=filename + str(self.FILE_POSTFIX))

    def _model_file_content(
        self,
        model_state: Mapping[str, Any],
        *,
        rng: RngState | None = None,
        rng_of_others: Sequence[RngState] = (),
        position: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """
        :param model_state: state dict of the model. Any: modules can have extra state of any type
        :param rng: states of the random generators to go on with; None: as they are
        :param rng_of_others: of rank 1, 2, ...
        :param position: inside the epoch; None: it is done. Any: plain values and tensors
        :return: of a model file of this training, not copied
        """
        return model_file_content(
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
                position=position,
                data=self._fingerprints,
            ),
        )

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
        print(f"Stopping ({reason}) in {self.get_epoch_str()}, after training step {self._train_step}.", file=log.v1)
        start_epoch = CheckpointOptions.from_config(self.config).start_epoch
        if start_epoch is not None:
            print(
                f"Warning: start_epoch = {start_epoch}: the next start begins with epoch {start_epoch} again. "
                "Remove the option to go on here.",
                file=log.v1,
            )
        raise TrainingStopped(reason)


def _write(model: object, optimizer: object, *, filename: str, prefix: str, epoch: int) -> None:
    """In the thread of the writer. The model file comes last: where it is, the other is whole."""
    save_file_atomic(optimizer, optimizer_filename(filename))
    save_file_atomic(model, filename + ".pt")
    delete_inner(prefix, last_epoch=epoch, keep=filename)
