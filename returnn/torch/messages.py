"""Texts of the errors that end a pass over data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["no_data_text", "nonfinite_text"]


def nonfinite_text(epoch: int, step: int, losses: Mapping[str, float], data: Mapping[str, Any] | None = None) -> str:
    """
    :param epoch: current one
    :param step: global step
    :param losses: the inf/nan ones, if known
    :param data: raw batch, if known. Any: tensors and lists
    :return: for NonFiniteLossError
    """
    text = f"Inf/nan loss in epoch {epoch}, step {step}."
    if losses:
        text += " Losses: " + ", ".join(f"{k} {v}" for k, v in losses.items()) + "."
    if data is not None and "seq_tag" in data:
        tags = list(data["seq_tag"])
        more = f" and {len(tags) - 10} more" if len(tags) > 10 else ""
        text += f" Sequences: {', '.join(map(str, tags[:10]))}{more}."
    return text + (
        " The weights were not changed by this step. Look at these sequences, lower the learning rate or clip "
        "gradients; stop_on_nonfinite_train_score = False skips such steps."
    )


def no_data_text(name: str, loader: object, *, epoch: int) -> str:
    """
    :param name: "train", "forward", or that of an eval dataset
    :param loader: has ``stats`` of the pass, unless it is a foreign one
    :param epoch: current one
    :return: for DatasetError
    """
    stats = getattr(loader, "stats", None)
    dropped = stats.dropped_text() if stats is not None else None
    text = "No data in forward dataset. " if name == "forward" else f"No data in dataset {name!r}. "
    if dropped and "batch_drop_last" in dropped and name != "train":
        return text + (
            f'All sequences were dropped ({dropped}). Set batch_drop_last = "incomplete" to drop batches only in training.'
        )
    if dropped:
        return text + (
            f"All sequences were dropped ({dropped}). "
            "Check min_seq_length, max_seq_length, chunking_options and batch_drop_last."
        )
    return text + f"It has no sequences in epoch {epoch}. Check its files, seq_list_filter_file and partition_epoch."
