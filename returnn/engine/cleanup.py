"""Which checkpoints to keep and which to delete: rules of both dialects, without touching files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from returnn.options.checkpoint import CleanupOptions

__all__ = ["CleanupPlan", "plan_cleanup", "default_keep_pattern"]


@dataclasses.dataclass(frozen=True)
class CleanupPlan:
    """What to do."""

    keep: list[int]
    delete: list[int]
    #: (log level, line) to log before anything is deleted
    messages: list[tuple[int, str]]


def plan_cleanup(
    epochs: Iterable[int],
    scores: Mapping[int, Mapping[str, float]],
    options: CleanupOptions,
    *,
    mainline_dialect: bool = False,
    current_epoch: int | None = None,
) -> CleanupPlan:
    """
    Keep the last epochs, some fixed ones, and the best ones of each score.

    :param epochs: stored ones
    :param scores: epoch -> score key -> value, lower is better. Also of epochs that are not stored
    :param options:
    :param mainline_dialect: a pattern of epochs is kept if ``keep`` is not given
    :param current_epoch: always kept. It is not the last one if later checkpoints of an earlier training are there
    """
    stored = sorted(epochs)
    messages: list[tuple[int, str]] = []
    last_n, best_n = options.keep_last_n, options.keep_best_n
    if not stored:
        messages.append((2, "Cannot find any stored models to clean up."))
        return CleanupPlan([], [], messages)
    if max(last_n, best_n) >= len(stored):
        messages.append(
            (
                2,
                f"Only {len(stored)} epochs stored so far and keeping last {last_n} epochs and best {best_n} epochs, "
                "thus not cleaning up any epochs yet.",
            )
        )
        return CleanupPlan(stored, [], messages)
    keep = set(stored[-last_n:])
    if current_epoch is not None:
        keep.add(current_epoch)
    if options.keep is not None:
        keep |= options.keep
    elif mainline_dialect:
        keep |= default_keep_pattern(stored[-1])
    for key in _score_keys(scores, options):
        values = {epoch: _orderable(scores[epoch][key]) for epoch in stored if key in scores.get(epoch, {})}
        if not values:
            continue
        if len(set(values.values())) == 1:
            first = scores[next(iter(values))][key]
            messages.append((3, f"Ignoring score key {key!r} because all epochs have the same value {first!r}."))
            continue
        worst = max(values.values())
        keep.update(sorted(stored, key=lambda epoch: (values.get(epoch, worst), epoch))[:best_n])
    delete = [epoch for epoch in stored if epoch not in keep]
    kept = [epoch for epoch in stored if epoch in keep]
    if delete:
        messages.append((3, f"We have stored models for epochs {_short(stored)} and keep epochs {_short(kept)}."))
        messages.append((3, f"We will delete the models of epochs {_short(delete)}."))
    else:
        messages.append((2, f"{len(stored)} epochs stored so far and keeping all."))
    return CleanupPlan(kept, delete, messages)


def default_keep_pattern(last_epoch: int) -> set[int]:
    """
    :param last_epoch: newest stored epoch
    :return: epochs that the mainline dialect keeps by default: each n-th, and doubles of some first one
    """
    if last_epoch <= 10:
        every, doubles_of = 4, 5
    elif last_epoch <= 50:
        every, doubles_of = 20, 5
    elif last_epoch <= 100:
        every, doubles_of = 40, 10
    else:
        every, doubles_of = 80 * _next_power_of_two(1 + last_epoch // 240), 20
    keep = set(range(every, last_epoch + 1, every))
    epoch = doubles_of
    while epoch <= last_epoch:
        keep.add(epoch)
        epoch *= 2
    return keep


def _next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _score_keys(scores: Mapping[int, Mapping[str, float]], options: CleanupOptions) -> list[str]:
    keys = sorted({key for values in scores.values() for key in values})
    if options.score_keys is None:
        return keys
    return [key for key in keys if key in options.score_keys]


def _orderable(value: float) -> float:
    """:return: nan, which has no order, counts as worst"""
    return math.inf if math.isnan(value) else value


def _short(epochs: Sequence[int]) -> str:
    if len(epochs) <= 6:
        return str(list(epochs))
    return "[" + ", ".join([*map(str, epochs[:3]), "...", *map(str, epochs[-3:])]) + "]"
