"""Options of OggZipDataset that make the corpus smaller."""

from __future__ import annotations

import numpy

from returnn._state import state
from returnn.datasets._audio.corpus import OggZipCorpus
from returnn.datasets.seq_lists import load_seq_list_file
from returnn.errors import DatasetError, describe
from returnn.log import log

__all__ = ["check_subset_option", "filter_by_segment_file", "random_subset"]


def check_subset_option(value: object, *, where: str) -> float | int | None:
    """
    :param value: option fixed_random_subset
    :param where: dataset
    :return: the value
    :raises DatasetError: neither None, a fraction below 1, nor a number >= 1
    """
    if value is None:
        return None
    if isinstance(value, (int, numpy.integer)) and not isinstance(value, bool) and value >= 1:
        return int(value)
    if isinstance(value, (float, numpy.floating)) and 0 < value < 1:
        return float(value)
    raise DatasetError(
        describe(
            'option "fixed_random_subset" is invalid',
            where=where,
            expected="a fraction > 0 and < 1, or a number of sequences as int",
            got=value,
        )
    )


def filter_by_segment_file(corpus: OggZipCorpus, filename: str, *, where: str) -> OggZipCorpus:
    """
    :param corpus: all
    :param filename: text with one tag per line
    :param where: dataset
    :return: sequences with these tags, in the order of the corpus
    :raises DatasetError: nothing is left
    """
    wanted = list(dict.fromkeys(load_seq_list_file(filename)))
    keep = corpus.tags.contained_in(wanted)
    unknown = [tag for tag, idx in zip(wanted, corpus.tags.find(wanted).tolist(), strict=True) if idx < 0]
    tags = corpus.tags.select(range(min(3, len(corpus))))
    if not keep.any():
        raise DatasetError(
            f"{where}: the corpus is empty after applying segment_file {filename!r}, which has {len(wanted)} tags, "
            f"e.g. {wanted[:3]}. The data has {len(corpus)} sequences, e.g. {tags}. Use the tags of the data."
        )
    if unknown and not state.worker_id:  # once, not from each worker
        print(
            f"Warning: {where}: {len(unknown)} of {len(wanted)} tags in segment_file {filename!r} are not in the data, "
            f"e.g. {unknown[:3]}.",
            file=log.v2,
        )
    if keep.all():
        return corpus
    return corpus.take(numpy.flatnonzero(keep))


def random_subset(corpus: OggZipCorpus, subset: float | int, *, seed: int, where: str) -> OggZipCorpus:
    """
    :param corpus: all
    :param subset: fraction below 1, or number of sequences
    :param seed: of the draw
    :param where: dataset
    :return: that many sequences, in random order
    :raises DatasetError: nothing is left
    """
    num = int(len(corpus) * subset) if subset < 1 else int(subset)
    if num <= 0:
        raise DatasetError(
            f"{where}: option fixed_random_subset = {subset!r} of {len(corpus)} sequences is less than one sequence. "
            "Set a larger fraction, or a number of sequences."
        )
    if num > len(corpus):
        print(
            f"Warning: {where}: fixed_random_subset = {subset} is more than the {len(corpus)} sequences of the corpus.",
            file=log.v2,
        )
    idxs = numpy.arange(len(corpus))
    numpy.random.RandomState(seed).shuffle(idxs)
    return corpus.take(idxs[:num])
