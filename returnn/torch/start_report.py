"""Lines that say at the start what will happen, and after an evaluation where the scores are."""

from __future__ import annotations

from returnn.engine.model_files import StartPoint
from returnn.learning_rate_control import LearningRateControl
from returnn.log import log

__all__ = ["preview_learning_rate", "print_scores_stored", "print_start"]

_KINDS = {
    "fresh": "Start: fresh, with random parameters",
    "resume": "Start: resume after epoch {epoch} from {filename}",
    "import": "Start: epoch 1 with the parameters of {filename}",
    "inside": "Start: resume inside epoch {start_epoch}, after training step {step} (over all epochs), from {filename}",
    "load": "Start: with the parameters of {filename}",
}


def print_start(start: StartPoint, *, final_epoch: int | None, lr_control: LearningRateControl | None) -> None:
    """
    :param start: what was decided
    :param final_epoch: last epoch to train; None: no training
    :param lr_control: says whether scores are kept
    """
    text = _KINDS[start.kind if start.step is None else "inside"].format(
        epoch=start.epoch, start_epoch=start.start_epoch, step=start.step, filename=start.filename
    )
    if final_epoch is not None:
        if start.start_epoch > final_epoch:
            text += f". Nothing to train: all {final_epoch} epochs are done (num_epochs); raise num_epochs to go on"
        else:
            text += f"; train epochs {start.start_epoch} to {final_epoch}"
    print(start.log_line, file=log.v4)
    print(text, file=log.v2)
    for note in start.notes:
        print(f"  {note}", file=log.v2)
    if final_epoch is not None and lr_control is not None:
        print(f"  Learning rates: {lr_control.describe()}", file=log.v3)


def print_scores_stored(own_model: bool, lr_control: LearningRateControl | None) -> None:
    """
    :param own_model: whether the evaluated checkpoint is one of this training, and scores may be written
    :param lr_control: keeps the scores
    """
    if own_model and lr_control is not None and lr_control.filename:
        print(f"Scores stored in {lr_control.filename}", file=log.v2)
    else:
        print(
            "Scores not stored: the checkpoint is not one of option model, or there is no learning_rate_file.",
            file=log.v3,
        )


def preview_learning_rate(lr_control: LearningRateControl, epoch: int) -> float:
    """
    :param lr_control: nothing is stored in it: scores that decide may still come in
    :param epoch: first epoch to train
    :return: its learning rate as far as known now, for the log to show of the optimizer
    """
    data = lr_control.epoch_data.get(epoch)
    if data is not None and data.learning_rate is not None:
        return data.learning_rate
    return lr_control.calc_new_learning_rate_for_epoch(epoch)
