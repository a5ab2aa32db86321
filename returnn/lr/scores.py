"""Which of the scores of an epoch counts, and which epoch is the best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from returnn.lr.epoch_data import OLD_FORMAT_KEY

__all__ = ["choose_error_key", "measure_keys", "last_best_epoch"]


def measure_keys(measures: Iterable[str]) -> list[str]:
    """:return: score keys that these configured measures mean, by priority"""
    return [key for measure in measures for key in (measure, measure + "_output")]


def choose_error_key(error: Mapping[str, float], measures: Iterable[str]) -> str:
    """
    :param error: scores of an epoch, not empty
    :param measures: configured ones, by priority
    :return: key of the score that the strategies look at: the configured one; else a dev score, the alphabetically
        first (upper case before lower case) if there are several; else a train score; else the first of all
    """
    if list(error) == [OLD_FORMAT_KEY]:
        return OLD_FORMAT_KEY
    for key in (*measure_keys(measures), "dev_score", "dev_score_output"):
        if key in error:
            return key
    keys = sorted(error)
    for key in keys:
        if key == "dev_score_output/output" or key.startswith("dev_score_output/output_"):
            return key
    for prefix in ("dev_score_output/", "dev_"):
        for key in keys:
            if key.startswith(prefix):
                return key
    for key in ("train_score", "train_score_output"):
        if key in error:
            return key
    return keys[0]


def last_best_epoch(
    scored: Sequence[tuple[int, str | None, float | None]],
    *,
    filter_score: float = float("inf"),
    only_last_n: int = -1,
    min_score_dist: float = 0.0,
) -> int | None:
    """
    :param scored: (epoch, score key, score), sorted by epoch
    :param filter_score: ignore epochs with a higher score
    :param only_last_n: of the remaining ones, consider only the last n; -1: all
    :param min_score_dist: the best one must be better than the last one by more than this
    :return: the epoch with the lowest score, if it is better than the last one; None if there is none
    """
    values = [(epoch, key, value) for epoch, key, value in scored if value is not None]
    if not values:
        return None
    _, last_key, last_value = values[-1]
    candidates = [(value, epoch) for epoch, key, value in values if key == last_key and value <= filter_score]
    if only_last_n >= 0:
        candidates = candidates[max(len(candidates) - only_last_n, 0) :]
    candidates = [(value, epoch) for value, epoch in candidates if value + min_score_dist < last_value]
    return min(candidates)[1] if candidates else None
