"""What every dataset class must stand: two epochs, a second dataset, a copy by pickle, and the real loader with 0, 1 and 2 workers."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy

from returnn.datasets.basic import Dataset, init_dataset
from returnn.options.batching import BatchingOptions
from returnn.options.loader import LoaderOptions
from returnn.torch.data.loader import EpochSource, Loader, create_loader

#: One sequence: tag, and data per key.
Seq = tuple[str, dict[str, numpy.ndarray]]


def read_epoch(dataset: Dataset, epoch: int) -> list[Seq]:
    """:return: all sequences, read as a script would: one after the other"""
    dataset.init_seq_order(epoch=epoch)
    result: list[Seq] = []
    idx = 0
    while dataset.is_less_than_num_seqs(idx):
        dataset.load_seqs(idx, idx + 1)
        keys = dataset.get_data_keys()
        result.append((dataset.get_tag(idx), {key: numpy.array(dataset.get_data(idx, key)) for key in keys}))
        idx += 1
    return result


def _make_loader(opts: Any, epoch: int, num_workers: int) -> Loader:
    return create_loader(
        init_dataset(opts),
        batching=BatchingOptions(batch_size=None, max_seqs=1),
        loader=LoaderOptions(num_workers=num_workers),
        epoch_source=EpochSource(epoch),
        name="train",
    )


def read_epoch_of_loader(opts: Any, epoch: int, num_workers: int) -> list[Seq]:
    """:return: all sequences, as the engine reads them: batches of one sequence, here"""
    loader = _make_loader(opts, epoch, num_workers)
    try:
        return [_seq_of_batch(batch) for batch in loader]
    finally:
        loader.close()


def read_rest_of_loader(opts: Any, epoch: int, num_before: int, num_workers: int) -> list[Seq]:
    """:return: as :func:`read_epoch_of_loader`, but behind some batches with a new loader of a new dataset"""
    loader = _make_loader(opts, epoch, num_workers)
    try:
        batches = iter(loader)
        before = [_seq_of_batch(next(batches)) for _ in range(num_before)]
        state = loader.state_dict()
    finally:
        loader.close()
    loader = _make_loader(opts, epoch, num_workers)
    try:
        loader.load_state_dict(state)
        return before + [_seq_of_batch(batch) for batch in loader]
    finally:
        loader.close()


def _seq_of_batch(batch: dict[str, Any]) -> Seq:
    (tag,) = batch["seq_tag"]
    keys = [key for key in batch if ":" not in key and key not in ("seq_tag", "seq_idx", "epoch", "complete_frac")]
    return str(tag), {key: numpy.asarray(batch[key])[0] for key in keys if not key.startswith(("num_seqs", "_"))}


def assert_same_seqs(
    seqs: Sequence[Seq], expected: Sequence[Seq], *, same_order: bool = True, data: bool = True
) -> None:
    """:param same_order: else only the same sequences. :param data: compare the data too, not only the tags"""
    if same_order:
        assert [tag for tag, _ in seqs] == [tag for tag, _ in expected]
    else:
        assert sorted(tag for tag, _ in seqs) == sorted(tag for tag, _ in expected)
        seqs, expected = _sorted(seqs), _sorted(expected)
    if not data:
        return
    for (tag, values), (_, expected_values) in zip(seqs, expected, strict=True):
        assert set(values) == set(expected_values), tag
        for key, value in values.items():
            assert value.dtype.kind == expected_values[key].dtype.kind, (tag, key)
            numpy.testing.assert_array_equal(value, expected_values[key], err_msg=f"{tag} {key}")


def _sorted(seqs: Sequence[Seq]) -> list[Seq]:
    return sorted(seqs, key=lambda seq: (seq[0], sorted((k, v.shape, v.tobytes()) for k, v in seq[1].items())))


def _assert_corpus_seqs(dataset: Dataset, opts: Any, expected: Sequence[Seq]) -> None:
    """Random access to the corpus gives the same data. :param expected: an epoch of the dataset, read just before"""
    corpus = init_dataset(opts)  # without any order
    for i, (tag, data) in enumerate(expected):
        seq = corpus.get_corpus_seq(dataset.get_corpus_seq_idx(i))
        assert (seq.seq_idx, seq.seq_tag) == (dataset.get_corpus_seq_idx(i), tag)
        assert_same_seqs([(tag, {key: numpy.asarray(seq.get_data(key)) for key in data})], [(tag, data)])


def _read_from(dataset: Dataset, epoch: int, start: int, *, num: int = 1) -> list[Any]:
    """
    :param start: first sequence, -1: all, one after the other
    :param num: load that many at once
    :return: sequences, each with what belongs to it. Any: tag, data, lengths, parts of the epoch
    """
    dataset.set_random_per_seq(True)  # as the loader
    dataset.init_seq_order(epoch=epoch)
    result: list[Any] = []
    idx = max(start, 0)
    while dataset.is_less_than_num_seqs(idx):
        if (idx - start) % num == 0 or start < 0:
            dataset.load_seqs(idx, idx + (num if start >= 0 else 1))
        keys = dataset.get_data_keys()
        data = {key: numpy.array(dataset.get_data(idx, key)) for key in keys}
        fracs = [dataset.get_complete_frac(idx, allow_only_lr_suitable=only) for only in (False, True)]
        result.append((dataset.get_tag(idx), data, dict(dataset.get_seq_length(idx).items()), fracs))
        idx += 1
        if len(result) > _MAX_SEQS:
            break  # without end
    return result


_MAX_SEQS = 50


def check_jump(opts: Any, *, epochs: Sequence[int] = (1, 2), positions: int = 6) -> None:
    """
    Reading from any position on gives what reading all from the start gives: data, random draws, lengths, parts of the
    epoch, and the end; with a new dataset, one in use, and with several sequences loaded at once.

    :param opts: of a dataset that supports_jump
    :param epochs: to try
    :param positions: how many to try in each
    """
    used = init_dataset(opts)
    rnd = numpy.random.RandomState(len(repr(opts)))
    for epoch in epochs:
        expected = _read_from(init_dataset(opts), epoch, -1)
        assert expected, "no sequences"
        starts = {1, len(expected) - 1, *rnd.randint(0, len(expected), positions).tolist()} - {len(expected)}
        # Each new dataset may be many processes: these two are enough.
        fresh = set(list(starts)[:2])
        for start in sorted(starts):
            dataset = init_dataset(opts) if start in fresh else used
            got = _read_from(dataset, epoch, start, num=int(rnd.randint(1, 4)))
            assert dataset.supports_jump()
            rest = expected[start:]
            if len(expected) > _MAX_SEQS:
                got, rest = got[: len(rest)], rest[: len(got)]
            assert len(got) == len(rest) > 0, start
            for (tag, data, lens, fracs), (expected_tag, expected_data, expected_lens, expected_fracs) in zip(
                got, rest, strict=True
            ):
                assert (tag, lens, fracs) == (expected_tag, expected_lens, expected_fracs)
                assert_same_seqs([(tag, data)], [(expected_tag, expected_data)])


def check_everyday_use(opts: Any, *, random_draws: bool = False, workers: Sequence[int] = (0, 1, 2)) -> list[list[Seq]]:
    """
    :param opts: dataset dict; everything in it can be pickled
    :param random_draws: the data has random draws per sequence: a script and the loader draw differently, but the loader
        with any number of workers the same
    :param workers: numbers of workers to try
    :return: the sequences of epochs 1 and 2, as a script reads them
    """
    dataset = init_dataset(opts)
    epochs = [read_epoch(dataset, epoch) for epoch in (1, 2)]
    assert all(epochs), "no sequences"
    assert_same_seqs(read_epoch(dataset, 1), epochs[0])  # back again
    draws_by_position = isinstance(opts, dict) and opts.get("random_state_per_seq")
    if dataset.have_get_corpus_seq() and not random_draws and not draws_by_position:
        _assert_corpus_seqs(dataset, opts, epochs[0])
    assert_same_seqs(read_epoch(init_dataset(opts), 2), epochs[1])  # needs no epoch 1 before
    copy = pickle.loads(pickle.dumps(init_dataset(opts)))
    for epoch, expected in enumerate(epochs, 1):
        assert_same_seqs(read_epoch(copy, epoch), expected)
        by_workers: list[list[Seq]] = []
        for num_workers in workers:
            seqs = read_epoch_of_loader(opts, epoch, num_workers)
            assert_same_seqs(seqs, expected, same_order=num_workers <= 1, data=not random_draws)
            by_workers.append(seqs)
            if not num_workers:
                assert_same_seqs(read_rest_of_loader(opts, epoch, len(seqs) // 2, 0), seqs)
        for num_workers, seqs in zip(workers, by_workers, strict=True):
            assert_same_seqs(seqs, by_workers[0], same_order=num_workers <= 1)
    return epochs
