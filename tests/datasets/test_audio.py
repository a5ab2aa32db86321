"""returnn.datasets.audio."""

from __future__ import annotations

import ast
import functools
import gc
import gzip
import io
import json
import multiprocessing
import pickle
import re
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from returnn.datasets.audio import OggZipDataset
from returnn.datasets.basic import Dataset, init_dataset
from returnn.datasets.hdf import SimpleHDFWriter
from returnn.errors import DataFileError, DatasetError, UserError
from tests.datasets.audio_functions import flip_sign
from tests.datasets.everyday_use import (
    assert_same_seqs,
    check_everyday_use,
    check_jump,
    read_epoch,
    read_epoch_of_loader,
)
from tests.helpers import GOLDEN

FOLDER = GOLDEN / "05-audio-text" / "oggzip"
CASES: dict[str, dict[str, Any]] = {
    peer: json.loads((FOLDER / f"expected.{peer}.json").read_text(encoding="utf8")) for peer in ("mini", "main")
}
#: Peer errors where we deliver, and why.
NO_ERROR = {
    "intdur": "a duration that is an int is accepted",
    "wrongname": "a renamed zip file with only one text is accepted",
}
#: Sound that libsndfile decodes to float32 here, and to float64 there.
RTOL = 1e-4
ATOL = 1e-6


@pytest.fixture(autouse=True)
def _in_golden_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)  # file names in the cases are relative


def _opts_of(case: dict[str, Any]) -> dict[str, Any]:
    opts = dict(case["opts"])
    if isinstance(opts.get("epoch_wise_filter"), str):
        opts["epoch_wise_filter"] = ast.literal_eval(opts["epoch_wise_filter"])
    return opts


def _check_seq(dataset: Dataset, idx: int, expected: dict[str, Any]) -> None:
    assert dataset.get_corpus_seq_idx(idx) == expected["corpus_seq_idx"]
    for key, value in expected.items():
        if key == "corpus_seq_idx" or (key not in dataset.get_data_keys() and key in ("data", "classes")):
            continue  # mini has dummy values where a key is not configured
        data = dataset.get_data(idx, key)
        assert list(data.shape) == value["shape"], key
        assert str(data.dtype) == value["dtype"]
        if "value" in value:
            assert data.tolist() == value["value"]
        if "sum" in value:
            np.testing.assert_allclose(np.abs(data).sum(dtype="float64"), value["abs_sum"], rtol=RTOL, atol=ATOL)
            np.testing.assert_allclose(data.ravel()[: len(value["head"])], value["head"], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(("peer", "name"), [(peer, name) for peer, cases in CASES.items() for name in sorted(cases)])
def test_golden(peer: str, name: str, pickled: bool) -> None:
    case = CASES[peer][name]
    expected = case["res"]
    opts = _opts_of(case)
    orders = {key: case[key] for key in ("seq_list", "seq_order") if case[key] is not None}
    if isinstance(expected, str):
        if name in NO_ERROR:
            init_dataset(opts).init_seq_order(epoch=1)
            return
        error = {"AssertionError": AssertionError, "KeyError": KeyError}[expected.split()[1].rstrip(":")]
        with pytest.raises(error) as info:
            init_dataset(opts).init_seq_order(epoch=1, **orders)
        assert isinstance(info.value, UserError)
        assert len(str(info.value)) > 40
        return
    dataset = init_dataset(opts)
    assert isinstance(dataset, OggZipDataset)
    assert dataset.name == expected["name"]
    for epoch, expected_epoch in expected["eps"].items():
        if pickled:
            dataset = pickle.loads(pickle.dumps(dataset))
        dataset.init_seq_order(epoch=int(epoch), **orders)
        assert dataset.num_seqs == expected_epoch["num_seqs"]
        assert list(dataset.get_current_seq_order()) == expected_epoch["order"]
        assert [dataset.get_tag(i) for i in range(dataset.num_seqs)] == expected_epoch["tags"]
        assert dataset.get_seq_tags(range(dataset.num_seqs)) == expected_epoch["tags"]
        for i, expected_seq in enumerate(expected_epoch.get("seqs", [])):
            dataset.load_seqs(i, i + 1)
            _check_seq(dataset, i, expected_seq)
    assert dataset.get_total_num_seqs() == expected["total"]
    assert dataset.get_all_tags() == expected["all_tags"]
    if peer == "main":
        assert {**(dataset.num_outputs or {})} == ast.literal_eval(expected["num_outputs"])


def _write_zip(path: Path, entries: list[dict[str, Any]], audio: dict[str, bytes] | None = None) -> Path:
    """:param audio: member below the content name -> data"""
    with zipfile.ZipFile(path, "w") as archive:
        lines = "".join(f"{entry!r},\n" for entry in entries)
        archive.writestr(path.stem + ".txt", f"[\n{lines}]\n", compress_type=zipfile.ZIP_DEFLATED)
        for i, (name, data) in enumerate((audio or {}).items()):
            archive.writestr(
                f"{path.stem}/{name}", data, compress_type=(zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[i % 2]
            )
    return path


def _wav_of(num: int, value: float = 0.5, sample_rate: int = 8000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.linspace(-value, value, num), sample_rate, format="WAV")
    return file.getvalue()


def _audio_zip(tmp_path: Path, num: int = 7) -> Path:
    entries = [
        {"text": f"text {i}", "file": f"{i}.wav", "seq_name": f"s/{i}", "duration": 0.01 * (i * 5 % num + 1)}
        for i in range(num)
    ]
    return _write_zip(tmp_path / "data.zip", entries, {f"{i}.wav": _wav_of(80 * (i * 5 % num + 1)) for i in range(num)})


def test_everyday_use(tmp_path: Path) -> None:
    opts = {
        "class": "OggZipDataset",
        "path": str(_audio_zip(tmp_path)),
        "audio": {"features": "raw", "sample_rate": 8000},
        "targets": {"class": "Utf8ByteTargets"},
        "seq_ordering": "laplace:.3",
        "epoch_wise_filter": {(2, None): {"max_mean_len": 3}},
    }
    epochs = check_everyday_use(opts)
    assert len(epochs[0]) == 7
    assert len(epochs[1]) == 5  # lengths 1..5: mean 3


def test_everyday_use_with_random_draws(tmp_path: Path) -> None:
    opts = {
        "class": "OggZipDataset",
        "path": str(_audio_zip(tmp_path)),
        "audio": {"features": "raw", "pre_process": flip_sign},
        "targets": None,
        "seq_ordering": "random",
    }
    epochs = check_everyday_use(opts, random_draws=True)
    always = {**opts, "random_state_per_seq": True}
    always_epochs = check_everyday_use(always)  # a script draws the same as the workers
    assert [tag for tag, _ in epochs[0]] == [tag for tag, _ in always_epochs[0]]
    assert not np.array_equal(epochs[0][0][1]["data"], always_epochs[0][0][1]["data"])


def test_jump(tmp_path: Path) -> None:
    opts = {
        "class": "OggZipDataset",
        "path": str(_audio_zip(tmp_path)),
        "audio": {"features": "raw", "pre_process": flip_sign},
        "targets": {"class": "Utf8ByteTargets"},
        "targets_post_process": str.upper,
        "seq_ordering": "random",
    }
    audio: dict[str, Any] = {"features": "raw", "pre_process": functools.partial(flip_sign)}
    for other in ({}, {"audio": audio}, {"audio": {"features": "raw"}, "random_state_per_seq": False}):
        check_jump({**opts, "targets_post_process": "lowercase", **other}, positions=2)

    class WithState:
        def __call__(self, **kwargs: Any) -> Any:
            return kwargs["audio"]

    stateful = {"features": "raw", "pre_process": WithState()}
    for changed in ({**opts, "random_state_per_seq": False}, {**opts, "audio": stateful}):
        dataset = init_dataset(changed)
        dataset.set_random_per_seq(True)
        dataset.init_seq_order(epoch=1)
        assert not dataset.supports_jump()


def test_one_stream_on_request(tmp_path: Path) -> None:
    opts = {
        "class": "OggZipDataset",
        "path": str(_audio_zip(tmp_path)),
        "audio": {"features": "raw", "pre_process": flip_sign},
        "targets": None,
        "random_state_per_seq": False,
    }
    epoch = read_epoch(init_dataset(opts), 1)
    assert_same_seqs(read_epoch_of_loader(opts, 1, 0), epoch)
    state = np.random.RandomState(1)
    dataset = init_dataset({**opts, "audio": {"features": "raw"}})
    for (_, data), (_, plain) in zip(epoch, read_epoch(dataset, 1), strict=True):
        np.testing.assert_allclose(
            data["data"][:, 0], flip_sign(plain["data"][:, 0], 8000, state), rtol=1e-6, atol=1e-6
        )


def test_sampling_vocabulary_per_sequence(tmp_path: Path) -> None:
    vocab = GOLDEN / "05-audio-text" / "vocab"
    text = "the cat that sat there the theatre thesis"
    entries = [{"text": text, "seq_name": f"s{i}", "duration": 1.0} for i in range(6)]
    opts = {
        "class": "OggZipDataset",
        "path": str(_write_zip(tmp_path / "t.zip", entries)),
        "audio": None,
        "targets": {
            "class": "SamplingBytePairEncoding",
            "vocab_file": str(vocab / "demo.vocab"),
            "breadth_prob": 0.5,
            "unknown_label": "<unk>",
        },
    }
    epochs = check_everyday_use(opts, random_draws=True)
    assert len({tuple(data["classes"]) for _, data in epochs[0]}) > 1


def test_keys_as_configured(tmp_path: Path) -> None:
    path = str(_audio_zip(tmp_path))
    dataset = OggZipDataset(path, None, None)
    assert dataset.get_data_keys() == ["orth", "raw"]
    assert dataset.get_target_list() == ["orth", "raw"]
    dataset = OggZipDataset(path, {"features": "raw", "num_channels": 1}, {"class": "Utf8ByteTargets"})
    assert dataset.get_data_keys() == ["data", "classes", "orth", "raw"]
    assert dataset.get_target_list() == ["classes", "orth", "raw"]
    assert [dataset.get_data_dtype(key) for key in dataset.get_data_keys()] == ["float32", "int32", "uint8", "string"]
    assert [dataset.get_data_dim(key) for key in dataset.get_data_keys()] == [1, 256, 256, 0]
    assert [dataset.get_data_shape(key) for key in dataset.get_data_keys()] == [[1, 1], [], [], []]
    assert [dataset.is_data_sparse(key) for key in dataset.get_data_keys()] == [False, True, True, False]
    assert dataset.labels["orth"] == [chr(i) for i in range(256)]
    assert dataset.labels["classes"] == dataset.targets.labels  # type: ignore[union-attr]
    dataset.init_seq_order(epoch=1)
    dataset.load_seqs(0, 1)
    assert dataset.get_data(0, "data").shape[1:] == (1, 1)
    assert dataset.serialize_data("orth", dataset.get_data(0, "orth")) == "text 0"
    with pytest.raises(ValueError, match="no data key 'foo'"):
        dataset.get_data_shape("foo")
    with pytest.raises(ValueError, match="Set the option audio"):
        OggZipDataset(path, None, None).get_data_dim("data")


def test_loads_when_needed(tmp_path: Path) -> None:
    path = _audio_zip(tmp_path)
    dataset = OggZipDataset(str(path), {"features": "raw"}, None)
    dataset.init_seq_order()
    assert dataset.num_seqs == 0
    missing = OggZipDataset(str(tmp_path / "missing.zip"), None, None)
    with pytest.raises(DataFileError, match=r"missing\.zip.*does not exist"):
        missing.check_corpus()
    with pytest.raises(DataFileError, match=r"missing\.zip"):
        missing.init_seq_order(epoch=1)
    dataset.init_seq_order(epoch=1)
    dataset.finish_epoch(free_resources=True)
    path.unlink()
    with pytest.raises(DataFileError):
        dataset.init_seq_order(epoch=1)
    _audio_zip(tmp_path)
    dataset.init_seq_order(epoch=1)
    assert dataset.get_corpus_seq(3).seq_tag == "s/3"
    assert dataset.get_estimated_seq_length(0) == 1
    assert dataset.get_epoch_seq_lens("orth").tolist() == [6] * 7  # type: ignore[union-attr]
    assert dataset.get_epoch_seq_lens("data") is None


def test_main_form_and_mini_form_of_arguments(tmp_path: Path) -> None:
    path = _audio_zip(tmp_path)
    segments = tmp_path / "segs.txt"
    segments.write_text("s/5\ns/2\n")
    dataset = OggZipDataset(path, None, None, None, False, str(segments), True, 1, 3, None)  # type: ignore[arg-type]
    assert dataset.get_all_tags() == [dataset.get_corpus_seq(0).seq_tag]
    assert dataset.paths == [str(path)]
    assert dataset.name == "data"


def test_directory_without_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.wav").write_bytes(_wav_of(100))
    (tmp_path / "d.txt").write_text(
        "[{'text': 'a', 'file': 'x.wav', 'duration': 1.0}, {'text': 'a', 'file': 'y.wav', 'duration': 1.0}, "
        "{'text': 'b', 'seq_name': 'n', 'duration': 2.0}]"
    )
    for path in ("d", "d/", "./d", str(tmp_path / "d")):
        dataset = OggZipDataset(path, {"features": "raw"}, None)
        dataset.init_seq_order(epoch=1)
        assert dataset.get_all_tags() == ["x.wav", "y.wav", "n"]
        assert len(dataset.get_corpus_seq(0).get_data("data")) == 100
    with pytest.raises(KeyError, match="audio file 'd/y.wav' of sequence 'y.wav'"):
        OggZipDataset("d", {"features": "raw"}, None).get_corpus_seq(1)
    with pytest.raises(KeyError, match="'n' .* has no 'file'"):
        OggZipDataset("d", {"features": "raw"}, None).get_corpus_seq(2)
    with pytest.raises(DatasetError, match="use_cache_manager"):
        OggZipDataset("d", None, None, use_cache_manager=True)
    (tmp_path / "e").mkdir()
    with pytest.raises(DatasetError, match=r"e\.txt"):
        OggZipDataset("e", None, None)


@pytest.mark.parametrize("path", ["a.tar", [], 3, ["a.zip", 3], "dir_that_is_not_there"])
def test_wrong_paths(path: Any) -> None:
    with pytest.raises(DatasetError, match='"path" is invalid'):
        OggZipDataset(path, None, None)


def test_names_of_links_and_renamed_files(tmp_path: Path) -> None:
    path = _audio_zip(tmp_path)
    link = tmp_path / "link.zip"
    link.symlink_to(path)
    dataset = OggZipDataset(str(link), {"features": "raw"}, None, resolve_symlink_for_name=True)
    assert dataset.name == "data"
    assert len(dataset.get_corpus_seq(0).get_data("data")) == 80
    renamed = OggZipDataset(str(link), {"features": "raw"}, None)
    assert len(renamed.get_corpus_seq(0).get_data("data")) == 80
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(KeyError, match=r"no item named 'link\.txt'.*content_name"):
        OggZipDataset(str(link), None, None).get_all_tags()
    assert len(OggZipDataset([str(link)], None, None, content_name=["data"]).get_all_tags()) == 7
    with pytest.raises(DatasetError, match="content_name"):
        OggZipDataset([str(link)], None, None, content_name=["data", "b"])


def test_text_file_without_its_zip(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"[{'text': 'x', 'seq_name': 's', 'file': 'f', 'duration': 1.5}]"))
    assert OggZipDataset(str(path), None, None).get_all_tags() == ["s"]
    with pytest.raises(DataFileError, match=r"give 'a\.zip' too"):
        OggZipDataset(str(path), {}, None).get_all_tags()
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataFileError, match=r"a\.txt\.gz"):
        OggZipDataset(str(path), None, None).get_all_tags()


def test_broken_and_missing_members_are_named(tmp_path: Path) -> None:
    entries = [{"text": "x", "file": f"{i}.wav", "seq_name": f"s/{i}", "duration": 1.0} for i in range(4)]
    broken = bytearray(_wav_of(1000))
    path = _write_zip(
        tmp_path / "b.zip", entries, {"0.wav": bytes(broken), "1.wav": _wav_of(500), "2.wav": b"no audio"}
    )
    data = bytearray(path.read_bytes())
    data[data.index(bytes(broken)) + 500] ^= 1
    path.write_bytes(bytes(data))
    dataset = OggZipDataset(str(path), {"features": "raw"}, None)
    dataset.init_seq_order(epoch=1)
    for idx, problem in [(0, "checksum"), (2, "decode"), (3, "no member")]:
        with pytest.raises(DataFileError) as info:
            dataset.load_seqs(idx, idx + 1)
        for word in (str(path), f"b/{idx}.wav", f"s/{idx}", problem):
            assert word in str(info.value)
    assert dataset.get_corpus_seq(1).get_data("data").shape == (500, 1)
    path.write_bytes(bytes(data[:300]))
    with pytest.raises(DataFileError, match=r"s/1"):
        dataset.get_corpus_seq(1)
    with pytest.raises(DataFileError, match=r"b\.zip"):
        OggZipDataset(str(path), {"features": "raw"}, None).get_all_tags()
    wrong_prefix = _write_zip(tmp_path / "c.zip", entries)
    with pytest.raises(DataFileError, match="none of the 4 audio files.*zip_audio_files_have_name_as_prefix"):
        OggZipDataset(str(wrong_prefix), {"features": "raw"}, None).get_all_tags()


def test_cut_audio_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """libsndfile reads the first part of such a file, or nothing, without an error."""
    file = io.BytesIO()
    soundfile.write(file, np.random.RandomState(1).standard_normal(60000) * 0.1, 16000, format="OGG", subtype="VORBIS")
    data = file.getvalue()
    contents = {f"{i}.ogg": data if i == 0 else data[: -100 * i] for i in range(8)}
    entries = [{"text": "x", "file": name, "seq_name": f"s/{name}", "duration": 3.75} for name in contents]
    dataset = OggZipDataset(str(_write_zip(tmp_path / "b.zip", entries, contents)), {"features": "raw"}, None)
    dataset.init_seq_order(epoch=1)
    dataset.load_seqs(0, 8)
    assert len(dataset.get_data(0, "data")) == 60000 > len(dataset.get_data(1, "data"))
    lines = [line for line in "".join(capsys.readouterr()).splitlines() if "is cut off" in line]
    assert len(lines) == 5 and "'s/1.ogg'" in lines[0] and lines[-1].endswith("No more such warnings.")


def test_error_in_labels_names_the_sequence(tmp_path: Path) -> None:
    path = _audio_zip(tmp_path)
    words = tmp_path / "words.txt"
    words.write_text("text\n0\n")
    dataset = OggZipDataset(str(path), None, {"vocab_file": str(words), "unknown_label": None})
    assert dataset.get_corpus_seq(0).get_data("classes").tolist() == [0, 1]
    with pytest.raises(DatasetError, match="s/1"):
        dataset.get_corpus_seq(1)


def test_segment_file_warns_and_must_leave_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _audio_zip(tmp_path)
    segments = tmp_path / "segs.txt"
    segments.write_text("s/2\nnope\n")
    assert OggZipDataset(str(path), None, None, segment_file=str(segments)).get_all_tags() == ["s/2"]
    assert re.search(r"1 of 2 tags .* e\.g\. \['nope'\]", "".join(capsys.readouterr()))
    segments.write_text("nope\n")
    with pytest.raises(DatasetError, match=r"empty after applying segment_file"):
        OggZipDataset(str(path), None, None, segment_file=str(segments)).get_all_tags()
    with pytest.raises(DatasetError, match="less than one sequence"):
        OggZipDataset(str(path), None, None, fixed_random_subset=0.01).get_all_tags()
    for value in (0, -1, True, "3", 1.5):
        with pytest.raises(DatasetError, match="fixed_random_subset"):
            OggZipDataset(str(path), None, None, fixed_random_subset=value)  # type: ignore[arg-type]


def test_wrong_options(tmp_path: Path) -> None:
    path = str(_audio_zip(tmp_path))
    with pytest.raises(TypeError, match="audio"):
        OggZipDataset(path, {"feature_typo": 3}, None)
    with pytest.raises(TypeError, match="audio"):
        OggZipDataset(path, "mfcc", None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="random_state"):
        OggZipDataset(path, {"random_state": None}, None)
    with pytest.raises(TypeError, match="targets"):
        OggZipDataset(path, None, "vocab.txt")  # type: ignore[arg-type]
    dataset = OggZipDataset(path, None, None)
    with pytest.raises(DatasetError, match="seq_order"):
        dataset.init_seq_order(epoch=1, seq_order=[0, 7])
    with pytest.raises(DatasetError, match="corpus sequence 7"):
        dataset.get_corpus_seq(7)


def test_reads_after_fork(tmp_path: Path) -> None:
    dataset = OggZipDataset(str(_audio_zip(tmp_path)), {"features": "raw"}, None)
    dataset.init_seq_order(epoch=1)
    dataset.load_seqs(0, 1)
    with multiprocessing.get_context("fork").Pool(2, initializer=_set_dataset, initargs=(dataset,)) as pool:
        in_children = pool.map(_read_in_child, range(7))
    assert in_children == [len(dataset.get_corpus_seq(i).get_data("data")) for i in range(7)]


_STATE: dict[str, OggZipDataset] = {}


def _set_dataset(dataset: OggZipDataset) -> None:
    _STATE["dataset"] = dataset


def _read_in_child(idx: int) -> int:
    return len(_STATE["dataset"].get_corpus_seq(idx).get_data("data"))


def test_in_meta_dataset(tmp_path: Path) -> None:
    path = str(_audio_zip(tmp_path))
    hdf = str(tmp_path / "labels.hdf")
    with SimpleHDFWriter(hdf, dim=10, ndim=1) as writer:
        for i in (3, 1, 0, 2, 6, 5, 4):
            writer.insert_batch(np.full((1, i + 1), i, dtype="int32"), [i + 1], [f"s/{i}"])
    opts = {
        "class": "MetaDataset",
        "datasets": {
            "zip": {
                "class": "OggZipDataset",
                "path": path,
                "audio": {"features": "raw"},
                "targets": {"class": "Utf8ByteTargets"},
                "seq_ordering": "sorted_reverse",
                "partition_epoch": 2,
            },
            "hdf": {"class": "HDFDataset", "files": [hdf]},
        },
        "data_map": {
            "data": ("zip", "data"),
            "text": ("zip", "classes"),
            "raw": ("zip", "raw"),
            "orth": ("zip", "orth"),
            "classes": ("hdf", "data"),
        },
        "seq_order_control_dataset": "zip",
    }
    epochs = check_everyday_use(opts)
    for tag, data in epochs[0] + epochs[1]:
        assert data["raw"] == f"text {tag[2:]}"
        assert data["classes"].tolist() == [int(tag[2:])] * (int(tag[2:]) + 1)


def test_memory_per_sequence(tmp_path: Path) -> None:
    entries = [
        {"text": "x" * 80, "file": f"rec{i:05d}/0.00_10.25.wav", "seq_name": f"corpus/rec{i:05d}/seg", "duration": 1.0}
        for i in range(5000)
    ]
    path = _write_zip(tmp_path / "m.zip", entries, {str(entry["file"]): b"" for entry in entries})
    dataset = OggZipDataset(str(path), {}, None)
    tracemalloc.start()
    try:
        dataset.init_seq_order(epoch=1)
        gc.collect()
        num_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert num_bytes / len(entries) < 250


def test_cache_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _audio_zip(tmp_path)
    text = tmp_path / "data.txt.gz"
    text.write_bytes(gzip.compress(b"[{'text': 'x', 'seq_name': 's', 'file': '3.wav', 'duration': 1.5}]"))
    asked: list[str] = []

    def copy_of(filename: str) -> str:
        asked.append(filename)
        copy = tmp_path / f"copy{len(asked)}"
        copy.write_bytes(Path(filename).read_bytes())
        return str(copy)

    monkeypatch.setattr("returnn.datasets.audio.cf", copy_of)
    dataset = OggZipDataset([str(path), str(text)], {"features": "raw"}, None, use_cache_manager=True)
    assert asked == []
    dataset.init_seq_order(epoch=1)
    assert sorted(asked) == sorted([str(path), str(text)])
    path.unlink()
    assert len(dataset.get_corpus_seq(0).get_data("data")) == 80 * (3 * 5 % 7 + 1)
