"""SimpleHDFWriter: sequences that come one by one are stored as batches are, and mistakes are said as there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.datasets._hdf import growing, simple_writer, single_seqs
from returnn.datasets.util.hdf import SimpleHDFWriter
from returnn.errors import DataFileError, DatasetError

# Any in this file: arguments of insert_batch, of each form that users give, and of wrong ones.
Call = dict[str, Any]


def _content(path: Path) -> dict[str, Any]:
    """:return: all arrays and attributes of the file. Any: nested lists of values, dtypes"""
    content: dict[str, Any] = {}

    def _add(name: str, obj: Any) -> None:
        content[f"{name} attrs"] = {key: np.asarray(value).tolist() for key, value in obj.attrs.items()}
        if isinstance(obj, h5py.Dataset):
            content[name] = (obj.dtype, obj[...].tolist())

    with h5py.File(path, "r") as file:
        file.visititems(_add)
        content["attrs"] = {key: int(value) for key, value in file.attrs.items()}
    return content


def _write(path: Path, calls: list[Call], *, spoil: bool = False, **options: Any) -> list[str]:
    """
    :param path: target
    :param calls: of insert_batch
    :param spoil: overwrite the arrays after each call
    :return: texts of the errors
    """
    errors = []
    with SimpleHDFWriter(path, **options) as writer:
        for call in calls:
            args = {key: _copy(value) for key, value in call.items()}
            try:
                writer.insert_batch(**args)
            except DatasetError as exc:
                errors.append(str(exc).replace(str(path), ""))
            if spoil:
                _spoil(list(args.values()))
    return errors


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value.copy() if isinstance(value, np.ndarray) else value


def _spoil(values: list[Any]) -> None:
    for value in values:
        if isinstance(value, dict):
            _spoil(list(value.values()))
        elif isinstance(value, list):
            _spoil(value)
        elif isinstance(value, np.ndarray) and value.dtype.kind in "if":
            value[...] = 77


@pytest.fixture
def only_long_way(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """:return: to be called before the writer is made"""
    return lambda: monkeypatch.setattr(single_seqs.SingleSeqs, "add", lambda *_args: False)


def _call(num_seqs: int = 1, *, length: int = 3, dim: int | None = None, first: int = 0, **extra: Any) -> Call:
    shape = (num_seqs, length) if dim is None else (num_seqs, length, dim)
    data = np.arange(first, first + int(np.prod(shape)), dtype="float32").reshape(shape)
    res: Call = {"inputs": data, "seq_len": [length] * num_seqs, "seq_tag": [f"t{first}-{i}" for i in range(num_seqs)]}
    return {**res, "extra": extra} if extra else res


_LEN_FORMS: list[Callable[[list[int]], Any]] = [
    list,
    tuple,
    np.array,
    lambda lens: np.array(lens, dtype="int32"),
    lambda lens: [np.int64(n) for n in lens],
    lambda lens: [np.array(n) for n in lens],
    lambda lens: {0: lens},
    lambda lens: {0: np.array(lens)},
    lambda lens: np.array(lens, dtype="float64"),
]
_TAG_FORMS: list[Callable[[list[str]], Any]] = [
    list,
    tuple,
    np.array,
    lambda tags: [tag.encode("utf8") for tag in tags],
]
# Forms of [B, T] of an extra stream
_EXTRA_FORMS: list[Callable[[np.ndarray], Any]] = [
    lambda data: data,
    list,
    tuple,
    lambda data: [row.tolist() for row in data],
    lambda data: data[..., None],
    lambda data: data.astype("int64"),
    np.asfortranarray,
]
_BAD: list[Call] = [
    {"seq_len": [9]},
    {"seq_len": [-1]},
    {"seq_len": [1.5]},
    {"seq_len": [True]},
    {"seq_len": [1, 1]},
    {"seq_len": np.array([[1]])},
    {"seq_len": {1: [1]}},
    {"seq_len": "1"},
    {"seq_tag": ["a\0b"]},
    {"seq_tag": ["\ud800"]},
    {"seq_tag": "a"},
    {"seq_tag": [3]},
    {"seq_tag": ["a", "b"]},
    {"seq_tag": None},
    {"inputs": np.zeros((1, 3, 1), "float32")},
    {"inputs": np.zeros((3,), "float32")},
    {"inputs": np.zeros((2, 3), "float32")},
    {"inputs": [["a", "b", "c"]]},
    {"extra": {"no": np.zeros((1, 2))}},
    {"extra": {"c": np.zeros((1, 2), "int32"), "no": np.zeros((1, 2))}},
    {"extra": {"c": np.full((1, 2), 0.5)}},
    {"extra": {"c": np.zeros((1, 2, 2), "int32")}},
    {"extra": {"c": np.zeros((2, 2), "int32")}},
    {"extra": {"c": np.int32(3)}},
    {"extra": {"c": None}},
    {"extra": {"c": np.zeros((1, 2, 0), "int32")}},
    {"extra": {"c": [np.zeros((2, 0), "int32")]}},
    {"extra": {"c": [["a"]]}},
    {"extra": {"c": np.array([["a"]], dtype=object)}},
    {"extra": {"c": np.zeros((1, 2), "int32")}, "extra_seq_len": {"c": [3]}},
    {"extra": {"c": np.zeros((1, 2), "int32")}, "extra_seq_len": {"c": {0: [1]}}},
    {"extra": {"c": np.zeros((1, 2), "int32")}, "extra_seq_len": {"c": [1.0]}},
    {"extra": {"c": np.zeros((1, 2), "int32")}, "extra_seq_len": {"no": [1]}},
    {"extra": None, "extra_seq_len": {"c": [1]}},
]


@pytest.mark.parametrize("bad", _BAD, ids=lambda bad: str(bad).replace("\0", "NUL").encode("ascii", "replace").decode())
def test_mistakes_are_said_as_on_the_long_way(tmp_path: Path, bad: Call, only_long_way: Callable[[], None]) -> None:
    """And they change nothing: before and after come good sequences."""
    good = [_call(first=i, c=np.array([[i, 1]], dtype="int32")) for i in (0, 10, 20)]
    calls = [*good[:2], {**good[0], **bad}, good[2]]
    errors = _write(tmp_path / "short.hdf", calls, dim=None)
    assert len(errors) == 1
    _write(tmp_path / "good.hdf", good, dim=None)
    only_long_way()
    assert _write(tmp_path / "long.hdf", calls, dim=None) == errors
    assert _content(tmp_path / "short.hdf") == _content(tmp_path / "long.hdf") == _content(tmp_path / "good.hdf")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_mix_is_stored_as_one_batch(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever way each call goes, with any flushes, and whatever the caller does with his arrays afterwards."""
    directory = tmp_path_factory.mktemp("mix")
    dim = data.draw(st.sampled_from([None, 1, 2]))
    keys = data.draw(st.sampled_from([[], ["c"], ["c", "b"]]))
    # Per sequence: length; per key length and cut length, None: this call has not the key
    seqs = data.draw(
        st.lists(
            st.tuples(st.integers(0, 4), *[st.none() | st.tuples(st.integers(0, 3), st.integers(0, 3)) for _ in keys]),
            min_size=1,
            max_size=8,
        )
    )
    calls: list[Call] = []
    whole: dict[str, list[np.ndarray]] = {key: [] for key in ["", *keys]}
    for i, (length, *extra_lens) in enumerate(seqs):
        full = length + data.draw(st.integers(0, 2))
        call = _call(length=full, dim=dim, first=10 * i)
        whole[""].append(call["inputs"][0, :length])
        call["seq_len"] = data.draw(st.sampled_from(_LEN_FORMS))([length])
        call["seq_tag"] = data.draw(st.sampled_from(_TAG_FORMS))([f"ä-{i}"])
        for key, lens in zip(keys, extra_lens, strict=True):
            if lens is None:
                whole[key].append(np.zeros(0, dtype="int32"))
                continue
            values = np.arange(i, i + lens[0], dtype="int32")[None]
            cut = min(lens)
            call.setdefault("extra", {})[key] = data.draw(st.sampled_from(_EXTRA_FORMS))(values)
            if cut < lens[0]:
                call.setdefault("extra_seq_len", {})[key] = data.draw(st.sampled_from(_LEN_FORMS[:5]))([cut])
            whole[key].append(values[0, :cut])
        calls.append(call)
    options: dict[str, Any] = {"dim": dim, "extra_type": dict.fromkeys(keys, (9, 1, "int32"))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simple_writer, "_MAX_PENDING_BYTES", data.draw(st.sampled_from([1, 600, 1 << 20])))
        direct = data.draw(st.sampled_from([1, 12, 1 << 20]))
        patch.setattr(growing, "DIRECT_BYTES", direct)
        patch.setattr(single_seqs, "DIRECT_BYTES", direct)
        patch.setattr(growing, "_JOIN_BYTES", data.draw(st.sampled_from([1, 20, 1 << 20])))
        assert not _write(directory / "short.hdf", calls, spoil=True, **options)
        patch.setattr(
            single_seqs.SingleSeqs,
            "add",
            lambda *_args, _add=single_seqs.SingleSeqs.add: data.draw(st.booleans()) and _add(*_args),
        )
        assert not _write(directory / "mixed.hdf", calls, spoil=True, **options)
        patch.setattr(single_seqs.SingleSeqs, "add", lambda *_args: False)
        assert not _write(directory / "long.hdf", calls, **options)
    lens = [len(frames) for frames in whole[""]]
    padded = np.zeros((len(lens), max(lens), *whole[""][0].shape[1:]), dtype="float32")
    for row, frames in zip(padded, whole[""], strict=True):
        row[: len(frames)] = frames
    batch: Call = {"inputs": padded, "seq_len": lens, "seq_tag": [f"ä-{i}" for i in range(len(lens))]}
    _write(directory / "batch.hdf", [{**batch, "extra": {key: whole[key] for key in keys}}], **options)
    expected = _content(directory / "batch.hdf")
    for name in ("short", "mixed", "long"):
        assert _content(directory / f"{name}.hdf") == expected, name


def _torch(data: Any) -> Any:
    return pytest.importorskip("torch").as_tensor(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda call: call,
        lambda call: {**call, "seq_len": (3,)},
        lambda call: {**call, "seq_len": np.array([3], dtype="int32")},
        lambda call: {**call, "seq_len": [np.int32(3)]},
        lambda call: {**call, "seq_len": {0: [3]}},
        lambda call: {**call, "seq_len": _torch([3])},
        lambda call: {**call, "seq_len": [_torch(3)]},
        lambda call: {**call, "seq_len": [2]},
        lambda call: {**call, "seq_tag": ("a",)},
        lambda call: {**call, "inputs": _torch(call["inputs"])},
        lambda call: {**call, "inputs": call["inputs"].astype("float64")},
        lambda call: {**call, "inputs": call["inputs"][:, ::-1]},
        lambda call: {**call, "extra": {"c": list(call["extra"]["c"])}},
        lambda call: {**call, "extra": {"c": _torch(call["extra"]["c"])}},
        lambda call: {**call, "extra": {"c": call["extra"]["c"].astype("int64")}},
        lambda call: {**call, "extra": {"c": call["extra"]["c"][:, 0]}},
        lambda call: {**call, "extra": {}},
        lambda call: {**call, "extra": None},
        lambda call: {**call, "extra_seq_len": {"c": [1]}},
        lambda call: {**call, "extra_seq_len": {"c": np.array([1])}},
    ],
)
@pytest.mark.parametrize("dim", [None, 2])
def test_usual_forms_go_the_short_way(tmp_path: Path, change: Callable[[Call], Call], dim: int | None) -> None:
    call = _call(dim=dim, c=np.array([[4, 5]], dtype="int32"))
    with SimpleHDFWriter(tmp_path / "a.hdf", dim=dim) as writer:
        writer.insert_batch(**call)
        assert writer._singles.num_collected == 0
        writer.insert_batch(**change(call))
        assert writer._singles.num_collected == 1


def test_texts_go_the_long_way(tmp_path: Path) -> None:
    texts = [np.array([["ä", "b"]], dtype=object), np.array([["c"]], dtype=object), [["d"]]]
    calls = [_call(dim=2, first=i, t=text) for i, text in enumerate(texts)]
    _write(tmp_path / "a.hdf", calls, spoil=True, dim=2)
    with h5py.File(tmp_path / "a.hdf") as file:
        assert [text.decode() for text in file["targets/data/t"]] == ["ä", "b", "c", "d"]
        assert file["seqLengths"][...].tolist() == [[3, 2], [3, 1], [3, 1]]


def test_texts_are_copied(tmp_path: Path) -> None:
    texts = np.array([["a"], ["b"]], dtype=object)
    with SimpleHDFWriter(tmp_path / "a.hdf", dim=None) as writer:
        writer.insert_batch(**_call(2, t=texts))
        texts[:] = "changed"
    with h5py.File(tmp_path / "a.hdf") as file:
        assert list(file["targets/data/t"]) == [b"a", b"b"]


@pytest.mark.parametrize("num_seqs", [1, 3])
def test_large_arrays_are_written_at_once(tmp_path: Path, num_seqs: int) -> None:
    """Nothing of them is kept, and small ones before and after keep their place."""
    length = growing.DIRECT_BYTES // 8 + 3
    calls = [_call(first=i, dim=2, length=n) for i, n in enumerate([2, length, length, 3, length])]
    calls = [{**call, "inputs": np.repeat(call["inputs"], num_seqs, axis=0)} for call in calls]
    calls = [{**call, "seq_len": call["seq_len"] * num_seqs, "seq_tag": ["a"] * num_seqs} for call in calls]
    _write(tmp_path / "a.hdf", calls, spoil=True, dim=2)
    with h5py.File(tmp_path / "a.hdf") as file:
        expected = np.concatenate([call["inputs"].reshape(-1, 2) for call in calls])
        np.testing.assert_array_equal(file["inputs"][...], expected)


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simple_writer, "_MAX_PENDING_BYTES", 10_000)
    most = 0
    with SimpleHDFWriter(tmp_path / "a.hdf", dim=None) as writer:
        for i in range(200):
            writer.insert_batch(**_call(first=i, length=20, c=np.zeros((1, 30), "int32")))
            most = max(most, writer._singles.num_collected)
    # Each is 20 * 4 + 30 * 4 bytes, and what a sequence needs without data.
    assert most == 10_000 // (200 + single_seqs.SEQ_BYTES)


def test_extending_takes_the_short_way_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf"
    calls = [_call(first=i, c=np.array([[i]], dtype="int32")) for i in range(4)]
    _write(path, calls[:2], dim=None)
    with SimpleHDFWriter(path, dim=None, extend_existing_file=True) as writer:
        for call in calls[2:]:
            writer.insert_batch(**call)
    _write(tmp_path / "b.hdf", calls, dim=None)
    assert _content(path) == _content(tmp_path / "b.hdf")


def test_existing_file_of_another_form(tmp_path: Path) -> None:
    """The short way must not take what does not fit to the options of this writer."""
    path = tmp_path / "a.hdf"
    _write(path, [_call(dim=3)], dim=3)
    with SimpleHDFWriter(path, dim=2, extend_existing_file=True) as writer:
        for call in (_call(dim=3), _call(dim=2), _call(dim=3)):
            with pytest.raises(DatasetError):
                writer.insert_batch(**call)


def test_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Close, discard, or neither, after sequences that went the short way."""
    for name in ("closed", "discarded"):
        writer = SimpleHDFWriter(tmp_path / name, dim=None)
        for i in range(3):
            writer.insert_batch(**_call(first=i))
        writer.close() if name == "closed" else writer.discard()
        with pytest.raises(DatasetError, match="closed writer"):
            writer.insert_batch(**_call(first=4))
        writer.close()
    assert os.listdir(tmp_path) == ["closed"]
    assert not capsys.readouterr().err
    writer = SimpleHDFWriter(tmp_path / "lost", dim=None)
    for i in range(3):
        writer.insert_batch(**_call(first=i))
    del writer
    assert "its 3 sequences are lost" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["closed"]


@pytest.mark.parametrize(
    "owner, name", [(growing.GrowingDataset, "append_raw"), (single_seqs.SingleSeqs, "clear")], ids=["before", "after"]
)
def test_interrupt_while_collecting_is_noticed(tmp_path: Path, owner: type, name: str) -> None:
    """Ctrl-C right after one of the steps: no sequence may be in the file twice, or be missing."""
    step = getattr(owner, name)

    def _interrupt(*args: Any) -> None:
        step(*args)
        raise KeyboardInterrupt

    with pytest.raises(DataFileError, match=r"a.hdf.*inconsistent"):
        with SimpleHDFWriter(tmp_path / "a.hdf", dim=None) as writer:
            for i in range(3):
                writer.insert_batch(**_call(first=i))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(owner, name, _interrupt)
                with pytest.raises(KeyboardInterrupt):
                    writer.insert_batch(**_call(2, first=9))
            writer.insert_batch(**_call(2, first=9))
    assert not os.listdir(tmp_path)


def test_interrupt_within_a_call_leaves_nothing_of_it(tmp_path: Path) -> None:
    def _interrupt(_value: object) -> None:
        raise KeyboardInterrupt

    calls = [_call(first=i, a=np.array([[i, 1]]), b=[np.array([i, 2, 3])]) for i in range(4)]
    with SimpleHDFWriter(tmp_path / "a.hdf", dim=None) as writer:
        for call in calls[:3]:
            writer.insert_batch(**call)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(single_seqs, "_single_entry", _interrupt)  # of b; a is taken already
            with pytest.raises(KeyboardInterrupt):
                writer.insert_batch(**calls[3])
        writer.insert_batch(**calls[3])
        assert writer._singles.num_collected == 3
    _write(tmp_path / "b.hdf", calls, dim=None)
    assert _content(tmp_path / "a.hdf") == _content(tmp_path / "b.hdf")


@pytest.mark.parametrize("dim", [None, 2])
def test_interrupt_at_any_place_of_the_streams(tmp_path: Path, dim: int | None) -> None:
    """Ctrl-C between two instructions: either everything is as in the calls that returned, or the file is refused."""
    num_done, place = 0, 0
    while not num_done:
        place += 1
        path = tmp_path / f"{place}.hdf"
        try:
            with SimpleHDFWriter(path, dim=dim) as writer:
                for i in range(3):
                    writer.insert_batch(**_call(first=i, dim=dim))
                num_done = _insert_interrupted(writer, _call(2, first=9, dim=dim), place=place)
                writer.insert_batch(**_call(first=20, dim=dim))
        except DataFileError as exc:
            assert "inconsistent" in str(exc)
        else:
            calls = [*[_call(first=i, dim=dim) for i in range(3)], *[_call(2, first=9, dim=dim)] * num_done]
            _write(tmp_path / "expected.hdf", [*calls, _call(first=20, dim=dim)], dim=dim)
            assert _content(path) == _content(tmp_path / "expected.hdf")
            os.remove(tmp_path / "expected.hdf")
    assert place > 10


def _insert_interrupted(writer: SimpleHDFWriter, call: Call, *, place: int) -> int:
    """:return: number of calls that came to their end: 1 if there are fewer instructions"""
    num = 0

    # Any: argument of a trace function
    def _trace(frame: FrameType, event: str, _arg: Any) -> Any:
        nonlocal num
        if frame.f_code.co_filename != growing.__file__:
            return None
        frame.f_trace_opcodes = True
        num += event == "opcode"
        if num == place:
            sys.settrace(None)
            raise KeyboardInterrupt
        return _trace

    # Collected, but not yet with the streams: outside of what gives the file up at once.
    old = sys.gettrace()
    sys.settrace(_trace)
    try:
        writer._collect_singles()
        sys.settrace(old)
        writer.insert_batch(**call)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        sys.settrace(old)
