"""Large arrays that several processes share: the first one that needs one makes it."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.datasets._basic import shared_corpus, shared_rooms
from returnn.datasets._basic.shared_rooms import Rooms, array_from_room, create_rooms, from_room
from returnn.datasets._hdf.reader import CorpusReader
from returnn.datasets._hdf.shared_files import tags_in_room, tags_room_size
from returnn.datasets._hdf.tag_table import TagTable
from returnn.datasets._loading.pool import WorkerPool
from returnn.datasets._loading.source import SourceOptions
from returnn.datasets.basic import Dataset, init_dataset
from returnn.errors import DataFileError
from returnn.options.batching import BatchingOptions
from returnn.options.loader import LoaderOptions

pytestmark = pytest.mark.skipif(not shared_rooms.CAN_SHARE, reason="no memory that can be passed on")

NUM_SEQS = 300_000


def _fail(_room: np.ndarray) -> None:
    raise AssertionError("it was made already")


def _ones(room: np.ndarray) -> None:
    room[:] = 1


def test_room_is_furnished_once() -> None:
    rooms = Rooms.create({"a": 5000, "b": 3})
    other = Rooms(os.dup(rooms.fd), rooms.places)
    first = rooms.get("a", 5000, _ones)
    second = other.get("a", 5000, _fail)
    assert first is not None and second is not None
    assert first.tolist() == second.tolist() == [1] * 5000
    with pytest.raises(ValueError, match="read-only"):
        second[0] = 0
    b = other.get("b", 3, lambda room: room.__setitem__(slice(None), [1, 2, 3]))
    assert b is not None
    assert b.tolist() == [1, 2, 3]
    assert rooms.get("c", 3, _fail) is None
    assert rooms.get("a", 4999, _fail) is None  # of another size: something else


def test_error_while_it_is_made() -> None:
    rooms = Rooms.create({"a": 10})

    def broken(room: np.ndarray) -> None:
        room[:] = 7
        raise DataFileError("broken")

    with pytest.raises(DataFileError, match="broken"):
        rooms.get("a", 10, broken)
    again = rooms.get("a", 10, _ones)
    assert again is not None
    assert again.tolist() == [1] * 10


def test_process_is_killed_while_it_makes_one() -> None:
    rooms = Rooms.create({"a": 10})
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        try:

            def make(room: np.ndarray) -> None:
                room[:] = 7
                os.write(write_end, b"x")
                signal.pause()

            rooms.get("a", 10, make)
        finally:
            os._exit(1)
    assert os.read(read_end, 1) == b"x"
    os.kill(pid, signal.SIGKILL)
    array = rooms.get("a", 10, _ones)  # waits for the lock of the other process
    assert array is not None
    assert array.tolist() == [1] * 10
    os.waitpid(pid, 0)
    os.close(read_end)
    os.close(write_end)


def test_small_arrays_and_processes_without_rooms() -> None:
    assert from_room(lambda: "a", 2**21, _fail) is None
    with process_state_ctx(shared_rooms=Rooms.create({"a": 100, "b": 2**20})):
        assert from_room(lambda: "a", 100, _fail) is None
        assert from_room(lambda: "b", 2**20, _ones) is not None


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """:return: name of an HDF file of 3.6 MB of labels"""
    path: Path = tmp_path_factory.mktemp("rooms") / "x.hdf"
    lens = np.random.RandomState(1).randint(1, 6, NUM_SEQS).astype("int32")
    with h5py.File(path, "w") as f:
        f["inputs"] = np.arange(lens.sum(), dtype="int32")
        f["seqLengths"] = np.stack([lens, 0 * lens], axis=1)
        f["seqTags"] = np.char.mod("seq-%06d", np.arange(NUM_SEQS)).astype("S")
        f.attrs["inputPattSize"] = 1
        f.attrs["numLabels"] = 1
    return str(path)


def _sums(dataset: Dataset) -> list[int]:
    """:return: of the data of some thousand sequences in random order"""
    dataset.init_seq_order(epoch=1)
    data = dataset.read_seqs(np.arange(5000), ["data"])
    assert data is not None
    ragged = data["data"]
    assert ragged.offsets.dtype == np.int64
    sums: list[int] = np.add.reduceat(ragged.flat, ragged.offsets[:-1], dtype=np.int64).tolist()
    return sums


def test_streams_and_offsets_of_hdf(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opts = {"class": "HDFDataset", "files": [file], "seq_ordering": "random"}
    dataset = init_dataset(opts)
    expected = _sums(dataset)
    rooms = create_rooms([dataset])
    assert rooms is not None
    assert len(rooms.places) == 3  # tags, too
    with process_state_ctx(shared_rooms=rooms):
        first = init_dataset(opts)
        assert _sums(first) == expected
        tags = first.get_all_tags()
        assert tags == dataset.get_all_tags()
        with monkeypatch.context() as patch:
            patch.setattr(CorpusReader, "_read_stream", None)
            patch.setattr(CorpusReader, "_add_up", None)
            patch.setattr(CorpusReader, "_read_all_tags", None)
            second: Any = init_dataset(opts)
            assert _sums(second) == expected
            assert second.get_all_tags() == tags
    assert not second._reader.offsets("data").flags.writeable
    assert second._reader.offsets("data").dtype == np.uint32
    assert init_dataset(opts).shared_rooms() == dataset.shared_rooms()
    assert create_rooms([init_dataset({**opts, "files": []})]) is None


def test_workers_share_them(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Rooms] = []

    def create(datasets: list[Dataset]) -> Rooms | None:
        rooms = create_rooms(datasets)
        assert rooms is not None
        seen.append(Rooms(os.dup(rooms.fd), rooms.places))
        return rooms

    monkeypatch.setattr(shared_corpus, "create_rooms", create)
    dataset = init_dataset({"class": "HDFDataset", "files": [file], "seq_ordering": "random"})
    batching = BatchingOptions.from_config(Config({"batch_size": 10_000, "max_seqs": 500}))
    options = SourceOptions.create(batching, name="train", role="train")
    pool = WorkerPool(dataset, options, LoaderOptions(num_workers=2))
    sums: list[int] = []
    try:
        for block in pool.start_pass(1):
            for batch in block.batches:
                sums += batch["data"].sum(axis=1, dtype=np.int64).tolist()
    finally:
        pool.close()
    order = np.asarray(dataset.get_seq_order_for_epoch(1, NUM_SEQS))
    with h5py.File(file) as f:
        lens = f["seqLengths"][:, 0]
        starts = np.cumsum(lens) - lens
        by_seq = np.add.reduceat(f["inputs"][...], starts, dtype=np.int64)
    assert sorted(sums) == sorted(by_seq.tolist())
    assert sums[:500] == by_seq[order[0:1000:2]].tolist()
    for key, size in dataset.shared_rooms().items():  # also the tags: each batch has some
        assert seen[0].get(key, size, _fail) is not None
    assert pickle.loads(pickle.dumps(dataset)).shared_rooms() == dataset.shared_rooms()


@pytest.mark.parametrize("tags", [["abc"] * 3, ["a", "", "ü"], [""] * 3])
def test_tags_in_a_room(tags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_rooms, "_MIN_BYTES", 0)
    size = tags_room_size(len(tags), 1000)

    def broken() -> TagTable:
        raise AssertionError("they were read already")

    with process_state_ctx(shared_rooms=Rooms.create({"x": size, "small": 40})):
        first = tags_in_room("x", size, len(tags), lambda: TagTable.from_tags(tags))
        second = tags_in_room("x", size, len(tags), broken)
        assert first.to_list() == second.to_list() == tags
        assert np.shares_memory(first.columns.buf, second.columns.buf) == any(tags)
        assert second.find(tags).tolist() == TagTable.from_tags(tags).find(tags).tolist()
        # Longer than expected: each process reads them for itself.
        for _ in range(2):
            table = tags_in_room("small", 40, 3, lambda: TagTable.from_tags(["x" * 100] * 3))
            assert table.to_list() == ["x" * 100] * 3


def test_an_array_with_and_without_a_room() -> None:
    """Of the wanted form; who comes second gets what the first one made, who has no room makes it."""

    def _fill(out: np.ndarray) -> None:
        out[...] = np.arange(out.size).reshape(out.shape)

    shape, dtype = (2**18, 2), np.dtype("int32")
    own = array_from_room(lambda: "a", shape, dtype, _fill)
    assert own.flags.writeable and own.dtype == dtype and own.shape == shape
    with process_state_ctx(shared_rooms=Rooms.create({"a": own.nbytes})):
        first = array_from_room(lambda: "a", shape, dtype, _fill)
        second = array_from_room(lambda: "a", shape, dtype, _fail)
        assert not first.flags.writeable and second.dtype == dtype
        for array in (first, second, array_from_room(lambda: "b", shape, dtype, _fill)):
            np.testing.assert_array_equal(array, own)
