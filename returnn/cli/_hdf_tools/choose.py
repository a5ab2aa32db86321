"""Which sequences of a corpus are wanted: by tag, index, chance; and what to do about tags that come twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy

from returnn.cli._hdf_tools.corpus import HdfCorpus
from returnn.datasets._hdf.tag_table import TagTable
from returnn.errors import DataFileError, DatasetError, UnknownSeqTagError, describe

__all__ = ["parse_indices", "by_tags", "by_chance", "by_indices", "without_duplicates", "first_of_each_tag"]


def parse_indices(text: str, *, num_seqs: int) -> list[int]:
    """
    :param text: e.g. "0,5,10-19"; ranges are inclusive
    :param num_seqs: there are so many
    :raises DatasetError: of another form, or there is no such sequence
    """
    result: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise DatasetError(
                describe(f"--indices {text} is invalid", expected='numbers and ranges, e.g. "0,5,10-19"', got=part)
            )
        start, end = int(first), int(last or first)
        if start > end:
            raise DatasetError(
                describe(f"--indices {text} is invalid", expected=f"ranges that go up, e.g. {end}-{start}", got=part)
            )
        if end >= num_seqs:
            raise DatasetError(
                describe(
                    f"--indices {text}: an index is too large",
                    expected=f"0 to {num_seqs - 1}: there are {num_seqs} sequences",
                    got=end,
                )
            )
        result += range(start, end + 1)
    return result


def by_indices(corpus: HdfCorpus, idxs: Sequence[int], *, exclude: bool, in_given_order: bool) -> numpy.ndarray:
    """
    :param corpus:
    :param idxs: of sequences, counted from 0 through all files; see :func:`parse_indices`
    :param exclude: all others instead
    :param in_given_order: instead of the order of the files
    :return: int64 corpus indices
    """
    return _finish(corpus, numpy.array(idxs, dtype=numpy.int64), exclude=exclude, in_given_order=in_given_order)


def by_tags(
    corpus: HdfCorpus, tags: Sequence[str], *, exclude: bool, in_given_order: bool, ignore_missing: bool
) -> numpy.ndarray:
    """
    :param corpus:
    :param tags: wanted. If the corpus has one several times: all of them, but the last if in_given_order
    :param exclude: all others instead
    :param in_given_order: instead of the order of the files
    :param ignore_missing: tags that the corpus does not have are no error
    :return: int64 corpus indices
    :raises UnknownSeqTagError: the corpus does not have a tag
    """
    found = corpus.tags.find(tags)
    missing = numpy.flatnonzero(found < 0)
    if len(missing) and not ignore_missing:
        shown = ", ".join(repr(tags[i]) for i in missing[:3].tolist())
        have = ", ".join(map(repr, corpus.tags.select(range(min(3, corpus.num_seqs)))))
        raise UnknownSeqTagError(
            f"{len(missing)} of {len(tags)} tags are not in {corpus.filenames}, first: {shown}. They have {corpus.num_seqs} "
            f"sequences, first: {have}. Give --ignore_missing if that is fine."
        )
    if in_given_order and not exclude:
        return found[found >= 0]
    order = numpy.flatnonzero(corpus.tags.contained_in(tags)).astype(numpy.int64)
    return _finish(corpus, order, exclude=exclude, in_given_order=False)


def by_chance(corpus: HdfCorpus, num: int, *, seed: int, exclude: bool) -> numpy.ndarray:
    """
    :param corpus:
    :param num: how many
    :param seed: equal seeds give equal sequences
    :param exclude: all others instead
    :return: int64 corpus indices, in the order of the files
    :raises DatasetError: there are not so many
    """
    if not 0 <= num <= corpus.num_seqs:
        raise DatasetError(describe("--random is invalid", expected=f"0 to {corpus.num_seqs} sequences", got=num))
    order = numpy.random.default_rng(seed).choice(corpus.num_seqs, num, replace=False, shuffle=False)
    return _finish(corpus, order.astype(numpy.int64), exclude=exclude, in_given_order=False)


def _finish(corpus: HdfCorpus, order: numpy.ndarray, *, exclude: bool, in_given_order: bool) -> numpy.ndarray:
    if exclude:
        keep = numpy.ones(corpus.num_seqs, dtype=bool)
        keep[order] = False
        return numpy.flatnonzero(keep).astype(numpy.int64)
    return order if in_given_order else numpy.unique(order)


def first_of_each_tag(tags: TagTable) -> numpy.ndarray:
    """:return: int64 [N], for each sequence the index of the first one with the same tag"""
    last = tags.find_table(tags)
    _, firsts, inverse = numpy.unique(last, return_index=True, return_inverse=True)
    result: numpy.ndarray = firsts[inverse]
    return result


def without_duplicates(corpus: HdfCorpus, what: Literal["error", "first", "keep"]) -> numpy.ndarray:
    """
    :param corpus:
    :param what: to do about sequences whose tag came before: an error, leave them out, or keep them
    :return: int64 corpus indices, in the order of the files
    :raises DataFileError: there are some, and they are an error
    """
    every = numpy.arange(corpus.num_seqs, dtype=numpy.int64)
    if what == "keep":
        return every
    is_again = first_of_each_tag(corpus.tags) != every
    if what == "error" and is_again.any():
        again = numpy.flatnonzero(is_again)
        shown = ", ".join(map(repr, corpus.tags.select(again[:3])))
        raise DataFileError(
            describe(
                f"{len(again)} sequence tags come more than once, first: {shown}",
                where=", ".join(corpus.filenames[:5]),
                todo="Give --duplicates first to keep only the first of each, or --duplicates keep to keep all",
            )
        )
    return every[~is_again]
