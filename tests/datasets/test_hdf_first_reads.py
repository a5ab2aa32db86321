"""What HDFDataset reads for the first batches of large data, against the whole arrays."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from returnn.datasets.hdf import HDFDataset


def _make_files(folder: Path, sizes: list[int]) -> list[str]:
    """:return: files whose frames and tags are all different"""
    files, first = [], 0
    for i, num in enumerate(sizes):
        lens = np.random.RandomState(i).randint(0, 5, num).astype("int32")
        path = folder / f"{i}.hdf"
        with h5py.File(path, "w") as file:
            file["inputs"] = np.arange(int(lens.sum()), dtype="int64") + 10_000_000 * i
            file["seqLengths"] = np.stack([lens, 0 * lens], axis=1)
            file["seqTags"] = np.array([f"seq-{first + k}" for k in range(num)], dtype="S")
            file.attrs["inputPattSize"] = 1000
        files.append(str(path))
        first += num
    return files


def test_first_reads_give_what_whole_reads_give(tmp_path: Path) -> None:
    """Neighbours, random ones, many: before and after all is in memory."""
    files = _make_files(tmp_path, [20_000, 1, 560_000, 4096])
    with_all = HDFDataset(files)
    tags = with_all.get_all_tags()
    data = np.concatenate([h5py.File(path, "r")["inputs"][...] for path in files])
    lens = with_all.known_corpus_lens()["data"]
    bounds = np.concatenate([[0], np.cumsum(lens, dtype=np.int64)])
    rnd = np.random.RandomState(1)
    num = len(tags)
    for _ in range(5):
        dataset = HDFDataset(files)
        dataset.init_seq_order(epoch=1)
        assert len((dataset.read_seqs(np.zeros(0, dtype=np.int64), ["data"]) or {})["data"]) == 0
        for _ in range(10):
            size = int(rnd.choice([1, 3, 100, 2000]))
            idxs = rnd.randint(0, num, size) if rnd.randint(2) else rnd.randint(num - size) + rnd.permutation(size)
            ragged = (dataset.read_seqs(idxs, ["data"]) or {})["data"]
            expected = [data[bounds[i] : bounds[i + 1]] for i in idxs]
            np.testing.assert_array_equal(ragged.flat, np.concatenate(expected))
            np.testing.assert_array_equal(ragged.lens, lens[idxs])
            assert dataset.get_seq_tags(idxs) == [tags[i] for i in idxs]
        nothing = (dataset.read_seqs(np.zeros(0, dtype=np.int64), ["data"]) or {})["data"]
        assert nothing.flat.shape == (0,) and nothing.flat.dtype == data.dtype and len(nothing) == 0


def test_lengths_in_file_order_and_others(tmp_path: Path) -> None:
    """The short way for the order of the files is left when another order comes."""
    dataset = HDFDataset(_make_files(tmp_path, [50]))
    lens = dataset.known_corpus_lens()["data"]
    dataset.init_seq_order(epoch=1)
    np.testing.assert_array_equal(dataset.get_epoch_seq_lens("data"), lens)
    dataset.init_seq_order(epoch=1, seq_order=range(49, -1, -1))
    np.testing.assert_array_equal(dataset.get_epoch_seq_lens("data"), lens[::-1])
    dataset.init_seq_order(epoch=1, seq_list=["seq-3"])
    np.testing.assert_array_equal(dataset.get_epoch_seq_lens("data"), lens[3:4])
