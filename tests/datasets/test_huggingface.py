"""HuggingFaceDataset, on datasets made here. No hub."""

from __future__ import annotations

import gc
import io
import itertools
import os
from pathlib import Path
from typing import Any

import numpy
import pytest

from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.datasets.basic import init_dataset
from returnn.datasets.huggingface import HuggingFaceDataset, get_arrow_shard_files_from_hf_dataset_dir
from returnn.errors import DataFileError, DatasetError, DatasetOptionError, UnknownSeqTagError
from returnn.util.file_cache import get_instance
from tests.datasets.everyday_use import check_everyday_use, check_jump, read_epoch

datasets = pytest.importorskip("datasets")

_NUM = 11


def make_rows() -> Any:
    """:return: datasets.Dataset with columns of several types"""
    rng = numpy.random.RandomState(1)
    lens = [(7 * i) % 5 + 1 for i in range(_NUM)]
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "num": datasets.Value("int64"),
            "data": datasets.List(datasets.List(datasets.Value("float64"), length=2)),
            "classes": datasets.List(datasets.Value("int32")),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "text": datasets.Value("string"),
            "image": datasets.Array2D((2, 3), "float32"),
        }
    )
    return datasets.Dataset.from_dict(
        {
            "id": [f"tag-{i}" for i in range(_NUM)],
            "num": list(range(100, 100 + _NUM)),
            "data": [rng.normal(size=(n, 2)).tolist() for n in lens],
            "classes": [[i % 4] * n for i, n in enumerate(lens)],
            "label": [i % 2 for i in range(_NUM)],
            "text": ["ab" * (i % 3) + "a" for i in range(_NUM)],
            "image": [numpy.full((2, 3), i).tolist() for i in range(_NUM)],
        },
        features=features,
    )


@pytest.fixture
def folder(tmp_path: Path) -> str:
    make_rows().save_to_disk(str(tmp_path / "hf"), num_shards=3)
    return str(tmp_path / "hf")


_FORMAT: dict[str, Any] = {
    "data": {"dim": 2, "dtype": "float64"},
    "classes": {"dim": 4, "sparse": True},
    "label": {},
    "image": {"shape": (2, 3)},
}


def hugging_face(dataset_opts: Any, **opts: Any) -> dict[str, Any]:
    """:return: dataset dict"""
    return {"class": "HuggingFaceDataset", "dataset_opts": dataset_opts, "data_format": _FORMAT, **opts}


def test_values_and_types(folder: str) -> None:
    dataset = init_dataset(hugging_face(folder))
    rows = make_rows()
    assert dataset.get_data_keys() == list(_FORMAT) and dataset.labels == {"label": ["no", "yes"]}
    assert [dataset.get_data_dim(key) for key in _FORMAT] == [2, 4, 2, 3]
    assert [dataset.is_data_sparse(key) for key in _FORMAT] == [False, True, True, False]
    assert [dataset.get_data_dtype(key) for key in _FORMAT] == ["float64", "int32", "int64", "float32"]
    seqs = read_epoch(dataset, 1)
    assert [tag for tag, _ in seqs] == rows["id"]
    for i, (_, values) in enumerate(seqs):
        for key, value in values.items():
            assert str(value.dtype) == dataset.get_data_dtype(key)
            numpy.testing.assert_array_equal(value, numpy.array(rows[i][key]))
    assert dataset.get_total_num_seqs() == _NUM and dataset.get_all_tags() == rows["id"]


def test_bulk_is_the_same(folder: str) -> None:
    dataset = init_dataset(hugging_face(folder, seq_ordering="random"))
    dataset.init_seq_order(epoch=2)
    assert dataset.supports_bulk()
    idxs = numpy.array([3, 0, 7])
    data = dataset.read_seqs(idxs, list(_FORMAT))
    assert data is not None
    for pos, i in sorted(enumerate(idxs.tolist()), key=lambda item: item[1]):
        dataset.load_seqs(i, i + 1)
        for key in _FORMAT:
            numpy.testing.assert_array_equal(data[key][pos], dataset.get_data(i, key))
            lens = dataset.get_epoch_seq_lens(key)
            assert lens is None if key == "label" else lens is not None and lens[i] == len(dataset.get_data(i, key))


def test_everyday_use(folder: str) -> None:
    check_everyday_use(hugging_face(folder, seq_ordering="laplace:.3", sorting_seq_len_column_data="data"))


def test_jump(folder: str) -> None:
    check_jump(hugging_face(folder, seq_ordering="random"))


def test_text_and_vocabulary(folder: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("{'a': 0, 'b': 1}")
    vocab = {"class": "CharacterTargets", "vocab_file": str(tmp_path / "vocab.txt"), "unknown_label": None}
    dataset = init_dataset(hugging_face(folder, data_format={"text": {"vocab": vocab}}))
    assert dataset.get_data_dim("text") == 2 and dataset.labels["text"] == ["a", "b"]
    seqs = read_epoch(dataset, 1)
    assert [values["text"].tolist() for _, values in seqs][:3] == [[0], [0, 1, 0], [0, 1, 0, 1, 0]]
    assert seqs[0][1]["text"].dtype == "int32" and not dataset.supports_bulk()
    dataset = init_dataset(hugging_face(folder, data_format={"text": {"dtype": "string"}}))
    assert [str(values["text"]) for _, values in read_epoch(dataset, 1)][:3] == ["a", "aba", "ababa"]


@pytest.mark.parametrize("tag_column", ["num", None])
def test_tags(folder: str, tag_column: str | None) -> None:
    dataset = init_dataset(hugging_face(folder, seq_tag_column=tag_column))
    tags = dataset.get_all_tags()
    assert tags == [f"seq-{i}" if tag_column is None else str(100 + i) for i in range(_NUM)]
    dataset.init_seq_order(epoch=1, seq_list=[tags[7], tags[2]])
    assert list(dataset.get_current_seq_order()) == [7, 2] and dataset.get_tag(0) == tags[7]
    with pytest.raises(UnknownSeqTagError, match="'xyz'"):
        dataset.init_seq_order(epoch=1, seq_list=["xyz"])


def test_orders(folder: str) -> None:
    lens = [(7 * i) % 5 + 1 for i in range(_NUM)]
    for opts in ({"sorting_seq_len_column_data": "data"}, {"sorting_seq_len_column": "num"}):
        dataset = init_dataset(hugging_face(folder, seq_ordering="sorted_reverse", **opts))
        dataset.init_seq_order(epoch=1)
        keys = lens if "sorting_seq_len_column_data" in opts else range(_NUM)
        expected = sorted(range(_NUM), key=lambda i: -keys[i])  # noqa: B023
        assert list(dataset.get_current_seq_order()) == expected
    dataset = init_dataset(hugging_face(folder, seq_ordering="sorted"))
    with pytest.raises(DatasetError, match="needs lengths: set sorting_seq_len_column"):
        dataset.init_seq_order(epoch=1)
    dataset.init_seq_order()
    assert dataset.num_seqs == 0


def _rename_id(rows: Any) -> Any:
    return rows.filter(lambda row: row["num"] < 105)


def test_sources_and_changes(folder: str) -> None:
    files = get_arrow_shard_files_from_hf_dataset_dir(folder)
    assert [os.path.basename(f) for f in files] == [f"data-{i:05d}-of-00003.arrow" for i in range(3)]
    expected = [tag for tag, _ in read_epoch(init_dataset(hugging_face(folder)), 1)]
    for source in (files, make_rows, make_rows(), lambda: folder):
        assert [tag for tag, _ in read_epoch(init_dataset(hugging_face(source)), 1)] == expected
    arrow = {"path": "arrow", "data_files": files, "split": "train", "cache_dir": os.path.join(folder, "..", "cache")}
    assert [tag for tag, _ in read_epoch(init_dataset(hugging_face(arrow)), 1)] == expected
    dataset = init_dataset(
        hugging_face(
            folder,
            map_func=_rename_id,
            rename_columns={"id": "tag", "classes": "other"},
            cast_columns={"num": {"_type": "Value", "dtype": "int16"}},
            seq_tag_column="tag",
            data_format={"num": {"dtype": "int16"}, "other": {"dim": 4, "sparse": True}},
        )
    )
    seqs = read_epoch(dataset, 1)
    assert [tag for tag, _ in seqs] == expected[:5] and seqs[0][1]["num"].dtype == "int16"


def test_audio(tmp_path: Path) -> None:
    soundfile, pyarrow = pytest.importorskip("soundfile"), pytest.importorskip("pyarrow")
    samples = [numpy.linspace(-0.5, 0.5, n).astype("float32") for n in (100, 50)]
    content: list[dict[str, Any]] = []
    for values in samples:
        buffer = io.BytesIO()
        soundfile.write(buffer, values, 8000, format="WAV", subtype="FLOAT")
        content.append({"bytes": buffer.getvalue(), "path": None})
    for decode, rate in ((True, 8000), (False, None), (True, 16000)):
        features = datasets.Features({"audio": datasets.Audio(sampling_rate=rate, decode=decode)})
        # Directly, since the package needs another one to encode audio.
        array = pyarrow.array(content, type=pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))
        rows = datasets.Dataset(
            datasets.table.InMemoryTable(pyarrow.table({"audio": array})), info=datasets.DatasetInfo(features=features)
        )
        dataset = init_dataset(hugging_face(rows, data_format={"audio": {}}, seq_tag_column=None))
        dataset.init_seq_order(epoch=1)
        if rate == 16000:
            with pytest.raises(DatasetError, match="8000 Hz, but the column declares 16000 Hz"):
                dataset.load_seqs(0, 1)
            continue
        for i in range(2):
            dataset.load_seqs(i, i + 1)
            data = dataset.get_data(i, "audio")
            expected = samples[i] if decode else numpy.frombuffer(content[i]["bytes"], dtype="uint8")
            assert data.dtype == expected.dtype
            numpy.testing.assert_allclose(data, expected)


def test_file_cache(folder: str, tmp_path: Path) -> None:
    config = Config({"file_cache_opts": {"cache_directory": str(tmp_path / "cache")}})
    with process_state_ctx(global_config=config, file_caches={}):
        dataset: Any = init_dataset(hugging_face(folder, use_file_cache=True))
        assert len(read_epoch(dataset, 1)) == _NUM
        assert len(list((tmp_path / "cache").rglob("*.arrow"))) == 3
        counts = get_instance()._toucher._counts
        assert len(counts) == 3
        del dataset
        gc.collect()
        assert not counts


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        ({"data_format": {}}, "data_format"),
        ({"data_format": {"xyz": {}}}, r"no columns \['xyz'\]"),
        ({"data_format": {"data": {"dim": 3}}}, "'dim' = 3 does not fit to the data, which has 2"),
        ({"data_format": {"data": {"dtype": "float32"}}}, "'dtype' = 'float32' does not fit .* 'float64'"),
        ({"data_format": {"data": {"ndim": 1}}}, "'ndim' = 1 does not fit .* 2"),
        ({"data_format": {"label": {"dim": 3}}}, "'dim' = 3 does not fit"),
        ({"data_format": {"data": {"size": 1}}}, "unknown data_format options"),
        ({"data_format": {"classes": {"sparse": True}}}, "needs 'dim'"),
        ({"seq_tag_column": "xyz"}, r"no columns \['xyz'\]"),
        ({"dataset_opts": {"path": "x"}, "use_file_cache": True}, "use_file_cache is only possible"),
        ({"dataset_opts": 3}, "expected a datasets.Dataset"),
    ],
)
def test_wrong_options(opts: dict[str, Any], text: str, folder: str) -> None:
    with pytest.raises(DatasetError, match=text):
        read_epoch(init_dataset({**hugging_face(folder), **opts}), 1)


def test_splits_are_refused(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": make_rows()}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(DatasetError, match=r"splits \['train'\]: specify split"):
        read_epoch(init_dataset(hugging_face(str(tmp_path / "splits"))), 1)
    with pytest.raises(DataFileError, match="several splits"):
        get_arrow_shard_files_from_hf_dataset_dir(str(tmp_path / "splits"))


def test_missing_shard(folder: str) -> None:
    os.remove(os.path.join(folder, "data-00001-of-00003.arrow"))
    with pytest.raises(DataFileError, match=r"numbers \[1\] are missing"):
        get_arrow_shard_files_from_hf_dataset_dir(folder)


def test_nulls_and_ragged_inner_lists() -> None:
    rows = datasets.Dataset.from_dict({"data": [[[1.0], [2.0, 3.0]], None]})
    dataset = init_dataset(hugging_face(rows, data_format={"data": {}}, seq_tag_column=None))
    dataset.init_seq_order(epoch=1)
    for i, text in enumerate(("different sizes", "missing values")):
        with pytest.raises(DatasetError, match=text):
            dataset.load_seqs(i, i + 1)


def test_is_loaded_late() -> None:
    def fail() -> Any:
        raise AssertionError("loaded")

    dataset = HuggingFaceDataset(fail, data_format=_FORMAT)
    assert dataset.get_data_keys() == list(_FORMAT)
    with pytest.raises(DatasetOptionError):
        HuggingFaceDataset(fail, data_format=3)  # type: ignore[arg-type]
    assert list(itertools.islice(dataset.get_target_list(), 1)) == ["classes"]
