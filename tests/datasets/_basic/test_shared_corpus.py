"""What is known of a corpus is read once, and shared by the worker processes of a loader."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from copy import copy as shallow_copy
from copy import deepcopy
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn._state import process_state_ctx, state
from returnn.config import Config
from returnn.datasets._basic import shared_corpus
from returnn.datasets._basic.shared_corpus import (
    Segment,
    SharedCorpus,
    SharedPart,
    find_part,
    part_key,
    receive_shared_corpus,
    share_corpus,
)
from returnn.datasets._hdf import handles, reader
from returnn.datasets._hdf.shared_files import join_columns
from returnn.datasets._loading.pool import WorkerPool
from returnn.datasets._loading.source import SourceOptions
from returnn.datasets._meta import seq_rows
from returnn.datasets._meta.multi_epoch import MultiEpochDataset
from returnn.datasets.basic import Dataset, init_dataset
from returnn.datasets.hdf import HDFDataset
from returnn.errors import DataFileError, DatasetError
from returnn.options.batching import BatchingOptions
from returnn.options.loader import LoaderOptions

pytestmark = pytest.mark.skipif(not shared_corpus.CAN_SHARE, reason="no memory that can be passed on")


def _write_hdf(path: Path, tags: Sequence[str], *, fixed: bool = True, dim: int = 10) -> str:
    """Labels: each sequence has the index of its tag, as often as the index modulo 3, plus one."""
    lens = np.array([i % 3 + 1 for i in range(len(tags))], dtype="int32")
    new = path.with_suffix(".new")
    with h5py.File(new, "w") as f:
        f["inputs"] = np.repeat(np.arange(len(tags), dtype="int32") % dim, lens)
        f["seqLengths"] = np.stack([lens, 0 * lens], axis=1)
        encoded = [tag.encode() for tag in tags]
        f["seqTags"] = np.array(encoded, dtype="S") if fixed else np.array(encoded, dtype=h5py.string_dtype())
        f.attrs["inputPattSize"] = dim
        f.attrs["numLabels"] = dim
    os.replace(new, path)
    return str(path)


def _meta(a: Sequence[str], b: Sequence[str], **kwargs: Any) -> dict[str, Any]:
    return {
        "class": "MetaDataset",
        "datasets": {"a": {"class": "HDFDataset", "files": list(a)}, "b": {"class": "HDFDataset", "files": list(b)}},
        "data_map": {"data": ("a", "data"), "classes": ("b", "data")},
        "seq_order_control_dataset": "a",
        **kwargs,
    }


def _content(dataset: Dataset, epoch: int = 1) -> list[Any]:
    dataset.init_seq_order(epoch=epoch)
    idxs = np.arange(dataset.num_seqs)
    keys = dataset.get_data_keys()
    data = dataset.read_seqs(idxs, keys)
    assert data is not None
    lens = [lens.tolist() for key in keys if (lens := dataset.get_epoch_seq_lens(key)) is not None]
    return [dataset.get_seq_tags(idxs), *[data[key].flat.tolist() for key in keys], lens]


@contextlib.contextmanager
def _as_worker(dataset: Dataset) -> Iterator[SharedCorpus]:
    """What the parent sends is known in this context, as in a worker."""
    shared = SharedCorpus(dataset, num_workers=2)
    with process_state_ctx(shared_corpus=[], in_worker=True):
        parent, child = Pipe()
        with parent, child:
            shared.send(parent)
            receive_shared_corpus(child)
        yield shared
    shared.close()


@contextlib.contextmanager
def _no_file_is_opened() -> Iterator[None]:
    def fail(filename: str, *_: object) -> None:
        raise AssertionError(f"{filename} is opened")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handles, "open_for_reading", fail)
        patch.setattr(reader.CorpusReader, "_read_index", fail)
        yield


def _num_memories() -> int:
    folder = "/proc/self/fd"
    names = []
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            names.append(os.readlink(f"{folder}/{name}"))
    return sum("returnn-corpus" in name for name in names)


ARRAYS = st.lists(
    st.tuples(st.sampled_from(["u1", "<i4", "<u4", "<i8", ">i2"]), st.lists(st.integers(0, 3), min_size=1, max_size=3)),
    max_size=4,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(ARRAYS, max_size=3))
def test_parts_come_out_as_they_were(specs: list[list[tuple[str, list[int]]]]) -> None:
    rng = np.random.RandomState(1)
    parts = [
        SharedPart(
            part_key("test", i),
            {"i": i},
            {str(k): rng.randint(0, 100, shape).astype(dtype) for k, (dtype, shape) in enumerate(arrays)},
            lambda _: None,
        )
        for i, arrays in enumerate(specs)
    ]
    with process_state_ctx(shared_corpus=[Segment.create(parts)]):
        for i, part in enumerate(parts):
            found = find_part(part.key)
            assert found is not None
            assert found[0] == {"i": i}
            assert list(found[1]) == list(part.arrays)
            for name, array in part.arrays.items():
                assert found[1][name].dtype == array.dtype
                np.testing.assert_array_equal(found[1][name], array)
                if array.size:
                    with pytest.raises(ValueError, match="read-only"):
                        found[1][name][...] = 0
        assert find_part(part_key("test", len(parts))) is None
    assert state.shared_corpus == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.booleans(), st.integers(0, 1))
def test_columns_one_behind_the_other_are_one(sizes: list[int], shared: bool, gap: int) -> None:
    lens = [np.arange(2 * n, dtype=np.int32).reshape(n, 2) + 100 * i for i, n in enumerate(sizes)]
    if shared:
        parts = [SharedPart(part_key("x", i), None, {"lens": a}, lambda _: None) for i, a in enumerate(lens)]
        if gap:
            parts.insert(1, SharedPart("gap", None, {"x": np.zeros(3, np.int32)}, lambda _: None))
        segment = Segment.create(parts)
        lens = [(segment.get(part_key("x", i)) or (None, {}))[1]["lens"] for i in range(len(sizes))]
        del segment
    for column in range(2):
        columns = [a[:, column] for a in lens]
        joined = join_columns(columns)
        np.testing.assert_array_equal(joined, np.concatenate(columns))
        if shared and min(sizes) > 0 and len(sizes) > 1:
            assert np.shares_memory(joined, columns[0]) == (not gap)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_meta_dataset_of_worker(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """The same content with and without sharing, for any order, duplicates, several files; no file is opened at the start."""
    folder = tmp_path_factory.mktemp("meta")
    tags = data.draw(st.lists(st.text(alphabet="abä", max_size=4), min_size=1, max_size=12))
    other = data.draw(st.permutations(tags)) + data.draw(st.lists(st.text(alphabet="abc", max_size=3), max_size=3))
    fixed = data.draw(st.booleans())
    cut = data.draw(st.integers(1, len(other)))
    a = [_write_hdf(folder / "a.hdf", tags, fixed=fixed)]
    b = [
        _write_hdf(folder / f"b{i}.hdf", part, fixed=fixed) for i, part in enumerate([other[:cut], other[cut:]]) if part
    ]
    opts = _meta(a, b)
    if data.draw(st.booleans()):
        opts["datasets"]["a"]["seq_ordering"] = "random"
    if data.draw(st.booleans()):
        with open(folder / "rows", "wb") as file:
            pickle.dump({"a": tags, "b": tags} if data.draw(st.booleans()) else tags, file)
        opts["seq_list_file"] = str(folder / "rows")
    try:
        dataset = init_dataset(opts)
    except DatasetError:  # duplicates in a list for the control dataset
        assert "seq_list_file" in opts
        return
    payload = pickle.dumps(dataset)
    expected = _content(init_dataset(opts))
    with _as_worker(dataset):
        assert state.shared_corpus
        assert _content(dataset) == expected
        with _no_file_is_opened():
            copy = pickle.loads(payload)
            copy.init_seq_order(epoch=1)
            assert copy.get_all_tags() == dataset.get_all_tags()
        assert _content(copy) == expected
        assert _content(copy, 2) == _content(dataset, 2)
    assert _content(pickle.loads(payload)) == expected
    assert share_corpus(dataset) == share_corpus(dataset) != []  # for the next pool


def test_many_files_have_one_column_of_lengths(tmp_path: Path) -> None:
    files = [_write_hdf(tmp_path / f"{i}.hdf", [f"{i}-{k}" for k in range(i + 1)]) for i in range(5)]
    dataset = init_dataset({"class": "HDFDataset", "files": files, "seq_ordering": "laplace:.2"})
    expected = _content(dataset)
    with _as_worker(dataset), _no_file_is_opened():
        copy = pickle.loads(pickle.dumps(dataset))
        copy.init_seq_order(epoch=1)
    assert isinstance(dataset, HDFDataset)
    for one in (dataset, copy):
        assert np.shares_memory(one._reader.lens("data"), one._reader.files[0].lens)
        assert _content(one) == expected


def test_changed_and_missing_files_are_read_as_ever(tmp_path: Path) -> None:
    a, b = (_write_hdf(tmp_path / name, ["x", "y"]) for name in "ab")
    dataset = init_dataset(_meta([a], [b]))
    payload = pickle.dumps(dataset)
    with _as_worker(dataset):
        _write_hdf(tmp_path / "a", ["z", "y", "x"])
        _write_hdf(tmp_path / "b", ["z", "x", "y"])
        assert pickle.loads(payload).get_all_tags() == ["z", "y", "x"]
        _write_hdf(tmp_path / "b", ["x", "y"])
        with pytest.raises(DatasetError, match="Dataset 'b' is missing seqs"):
            pickle.loads(payload)
        os.remove(b)
        with pytest.raises(DataFileError, match="does not exist"):
            pickle.loads(payload)


class OtherTags(HDFDataset):
    """A class of the user."""

    def get_all_tags(self) -> list[str]:
        """:return: others than those of the files"""
        return [f"other-{tag}" for tag in super().get_all_tags()]


def test_class_of_the_user_with_other_tags(tmp_path: Path) -> None:
    a, b = (_write_hdf(tmp_path / name, tags) for name, tags in {"a": ["other-y", "other-x"], "b": ["x", "y"]}.items())
    opts = _meta([a], [b])
    opts["datasets"]["b"]["class"] = OtherTags
    dataset = init_dataset(opts)
    with _as_worker(dataset):
        copy = pickle.loads(pickle.dumps(dataset))
    copy.init_seq_order(epoch=1)
    dataset.init_seq_order(epoch=1)
    child = copy.datasets["b"]
    assert child.get_current_seq_order().tolist() == [1, 0]
    assert dataset.datasets["b"].get_current_seq_order().tolist() == [1, 0]  # type: ignore[attr-defined]


def test_filter_and_rows_that_are_missing(tmp_path: Path) -> None:
    """A child without some sequences is fine as long as the filter leaves them out; each process checks that."""
    a, b = _write_hdf(tmp_path / "a", ["x", "y", "z"]), _write_hdf(tmp_path / "b", ["z", "x"])
    filter_file = tmp_path / "filter"
    filter_file.write_text("x\nz\n")
    opts = _meta([a], [b])
    opts["datasets"]["a"]["seq_list_filter_file"] = str(filter_file)
    dataset = init_dataset(opts)
    payload = pickle.dumps(dataset)
    with _as_worker(dataset):
        assert _content(pickle.loads(payload)) == _content(dataset)
        filter_file.write_text("x\ny\n")
        with pytest.raises(DatasetError, match="Dataset 'b' is missing seqs"):
            pickle.loads(payload)


def test_files_that_are_replaced_while_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker must not take what was read of the old file for what is in the new one."""
    a = _write_hdf(tmp_path / "a", ["x", "y"])
    rows = tmp_path / "rows"
    rows.write_text("y\nx\n")
    read_index, read_list = reader.read_file_index, seq_rows.load_seq_list_file

    def replacing_index(h5_file: h5py.File, filename: str) -> Any:
        index = read_index(h5_file, filename)
        _write_hdf(Path(filename), ["z", "y", "x"])
        return index

    def replacing_list(filename: str, expect_list: bool = True) -> Any:
        lists = read_list(filename, expect_list)
        rows.write_text("z\ny\nx\n")
        return lists

    with monkeypatch.context() as patch:
        patch.setattr(reader, "read_file_index", replacing_index)
        dataset = init_dataset({"class": "HDFDataset", "files": [a]})
    with _as_worker(dataset):
        copy: Any = pickle.loads(pickle.dumps(dataset))
        assert _content(copy)[0] == ["z", "y", "x"]
        assert copy.get_all_tags() == ["z", "y", "x"]
    with monkeypatch.context() as patch:
        patch.setattr(seq_rows, "load_seq_list_file", replacing_list)
        opts = _meta([a], [a], seq_list_file=str(rows))
        del opts["seq_order_control_dataset"]
        dataset = init_dataset(opts)
    with _as_worker(dataset):
        assert pickle.loads(pickle.dumps(dataset)).get_all_tags() == ["z", "y", "x"]


class PicklesAttributes(HDFDataset):
    """A class of the user, whose copies have all attributes but the open files."""

    def __reduce__(self) -> tuple[Any, ...]:
        attrs = {key: value for key, value in vars(self).items() if key not in ("_reader", "_block")}
        return _with_attributes, (self.files, attrs)


def _with_attributes(files: list[str], attrs: dict[str, Any]) -> PicklesAttributes:
    dataset = PicklesAttributes(files=files)
    vars(dataset).update(attrs)
    return dataset


@pytest.mark.parametrize("copy_of", [lambda x: pickle.loads(pickle.dumps(x)), shallow_copy, deepcopy])
def test_copies_of_all_attributes_do_not_close_the_memory(
    copy_of: Callable[[HDFDataset], HDFDataset], tmp_path: Path
) -> None:
    dataset = PicklesAttributes(files=[_write_hdf(tmp_path / "a", ["x", "y", "z"])])
    expected = _content(dataset)
    (segment,) = share_corpus(dataset)
    num_bytes = len(pickle.dumps(dataset))
    clone = copy_of(dataset)
    assert _content(clone) == expected
    share_corpus(clone)
    assert len(pickle.dumps(clone)) <= num_bytes
    del clone
    gc.collect()
    os.fstat(segment.fd)
    assert share_corpus(dataset) == [segment]
    assert not pickle.loads(pickle.dumps(segment))


def test_what_is_read_again_is_in_memory_once(tmp_path: Path) -> None:
    opts = {"class": "HDFDataset", "files": [_write_hdf(tmp_path / "a", ["x" * 2**20, "y"], fixed=False)]}
    dataset = init_dataset({"class": "MultiEpochDataset", "dataset": opts, "multi_epoch": 1})
    assert isinstance(dataset, MultiEpochDataset)
    for is_new in (True, True, False):
        if is_new:
            dataset._child = init_dataset(opts)  # as in a dataset with another child in each epoch
        child: Any = dataset._child
        child.forget_tag_table()
        child.get_all_tags()
        (segment,) = share_corpus(dataset)
        found = segment.get(child.tag_table_key)
        assert found is not None
        assert np.shares_memory(child.tag_table.columns.buf, found[1]["buf"])
        assert not child._reader.lens("data").flags.writeable
        assert share_corpus(dataset) == [segment]


def test_programs_that_a_worker_starts_do_not_keep_the_memory(tmp_path: Path) -> None:
    with _as_worker(init_dataset({"class": "HDFDataset", "files": [_write_hdf(tmp_path / "a", ["x"])]})):
        assert [os.get_inheritable(segment.fd) for segment in state.shared_corpus] == [False]


def test_worker_without_room_for_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **_kwargs: object) -> None:
        raise OSError("no address space")

    dataset = init_dataset({"class": "HDFDataset", "files": [_write_hdf(tmp_path / "a", ["x"])]})
    share_corpus(dataset)
    before = _num_memories()
    monkeypatch.setattr(mmap, "mmap", fail)
    with _as_worker(dataset):
        assert state.shared_corpus == []
        assert _num_memories() == before
        assert _content(pickle.loads(pickle.dumps(dataset)))[0] == ["x"]


def test_memory_is_given_back(tmp_path: Path) -> None:
    gc.collect()
    before = _num_memories()
    a, b = _write_hdf(tmp_path / "a", ["x", "y", "z"]), _write_hdf(tmp_path / "b", ["z", "y", "x"])
    dataset: Any = init_dataset(_meta([a], [b]))
    with _as_worker(dataset):
        assert _num_memories() > before
        copy: Any = pickle.loads(pickle.dumps(dataset))
    del dataset, copy
    gc.collect()
    assert _num_memories() == before


def test_no_memory_to_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError("no memory")

    dataset = init_dataset(_meta([_write_hdf(tmp_path / "a", ["x"])], [_write_hdf(tmp_path / "b", ["x"])]))
    monkeypatch.setattr(os, "pwrite", fail)
    before = _num_memories()
    assert share_corpus(dataset) == []
    assert _num_memories() == before
    assert _content(dataset)[0] == ["x"]


class TellsOpenFiles(HDFDataset):
    """A class of the user, whose tags tell how many files its constructor opened."""

    def __init__(self, **kwargs: Any):
        """:param kwargs: see the base"""
        super().__init__(**kwargs)
        self.num_open = len(self._reader.handles._handles)

    def get_seq_tags(self, seq_idxs: Any) -> list[str]:
        """:return: tags, and that number"""
        return [f"{tag}|{self.num_open}" for tag in super().get_seq_tags(seq_idxs)]


def test_worker_processes(tmp_path: Path) -> None:
    files = [_write_hdf(tmp_path / f"{i}.hdf", [f"{i}-{k}" for k in range(3)]) for i in range(4)]
    dataset = init_dataset({"class": TellsOpenFiles, "files": files})
    assert dataset.num_open >= 1  # type: ignore[attr-defined]
    batching = BatchingOptions.from_config(Config({"batch_size": 4, "max_seqs": 1}))
    options = SourceOptions.create(batching, name="train", role="train")
    for _ in range(2):
        pool = WorkerPool(dataset, options, LoaderOptions(num_workers=2))
        try:
            tags = [batch["seq_tag"][0] for block in pool.start_pass(1) for batch in block.batches]
        finally:
            pool.close()
        assert tags == [f"{i}-{k}|0" for i in range(4) for k in range(3)]


def test_file_that_has_grown_is_another_one(tmp_path: Path) -> None:
    """The main process goes on with the sequences that it knows, a worker sees all of them, as without sharing."""
    tags = [f"s{i}" for i in range(6)]
    path = _write_hdf(tmp_path / "a", tags[:3])
    dataset = init_dataset({"class": "HDFDataset", "files": [path]})
    dataset.finish_epoch(free_resources=True)
    _write_hdf(tmp_path / "a", tags)
    assert dataset.get_all_tags() == tags[:3]  # opens it again
    with _as_worker(dataset):
        copy = pickle.loads(pickle.dumps(dataset))
        assert copy.get_all_tags() == tags
        assert copy.get_total_num_seqs() == 6
    assert _content(dataset)[0] == tags[:3]
