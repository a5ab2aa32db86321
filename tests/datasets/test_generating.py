"""Generating datasets: golden data, sharding, dtype, bad options."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy
import pytest

import returnn.datasets.generating as generating
from returnn._state import process_state_ctx
from returnn.datasets import Dataset, init_dataset
from returnn.datasets.generating import (
    CopyTaskDataset,
    DummyDataset,
    DummyDatasetMultipleDataKeys,
    DummyDatasetMultipleSequenceLength,
    DummyGenericDataset,
    GeneratingDataset,
    StaticDataset,
    Task12AXDataset,
    TaskNumberBaseConvertDataset,
    TaskVariableAssignmentDataset,
    TimitDataset,
)
from returnn.errors import DatasetError, NotSupportedError
from tests.datasets.everyday_use import check_everyday_use, check_jump

GOLDEN = Path(__file__).parent.parent / "golden" / "02-datasets-base"


def load_json(name: str) -> Any:
    with open(GOLDEN / name, encoding="utf8") as file:
        return json.load(file)


GENERATING = load_json("generating.json")


def read_all(dataset: Dataset, epoch: int, max_seqs: int | None = None) -> list[tuple[str, dict[str, numpy.ndarray]]]:
    """:return: tag and data of each sequence"""
    dataset.init_seq_order(epoch=epoch)
    result = []
    idx = 0
    while dataset.is_less_than_num_seqs(idx) and (max_seqs is None or idx < max_seqs):
        dataset.load_seqs(idx, idx + 1)
        result.append((dataset.get_tag(idx), {key: dataset.get_data(idx, key) for key in dataset.get_data_keys()}))
        idx += 1
    return result


def check_array(value: numpy.ndarray, expected: dict[str, Any], dtype: str) -> None:
    """:param dtype: that of the declaration, which the peer did not deliver everywhere"""
    assert str(value.dtype) == dtype
    assert list(value.shape) == expected["shape"]
    if "one_hot_idx" in expected:
        assert value.argmax(axis=1).tolist() == expected["one_hot_idx"]
        assert (value.sum(axis=1) == 1).all() and (value.max(axis=1) == 1).all()
    else:
        assert numpy.array_equal(value, numpy.array(expected["values"]).astype(dtype).reshape(value.shape))


@pytest.mark.parametrize("name", list(GENERATING))
def test_golden_generating(name: str) -> None:
    entry = GENERATING[name]
    args = dict(entry["args"])
    dataset = init_dataset({"class": entry["class"], **args})
    assert dataset.num_inputs == entry["num_inputs"]
    assert {k: list(v) for k, v in (dataset.num_outputs or {}).items()} == entry["num_outputs"]
    assert dataset.labels == entry["labels"]
    if entry["class"] != "DummyDatasetMultipleDataKeys":  # there the peer says ["data", "classes"] always
        assert dataset.get_data_keys() == entry["keys"]
        assert dataset.get_target_list() == entry["target_list"]
    for key, (dim, dtype, sparse, shape) in entry["decl"].items():
        assert key in dataset.get_data_keys()
        decl = dataset.get_data_dim(key), dataset.get_data_dtype(key), dataset.is_data_sparse(key)
        assert decl == (dim, dtype, sparse)
        assert dataset.get_data_shape(key) == shape
    for epoch, expected in entry["epochs"].items():
        dataset.init_seq_order(epoch=int(epoch))
        assert dataset.num_seqs == expected["num_seqs"]
        for (tag, data), seq in zip(read_all(dataset, int(epoch)), expected["seqs"], strict=False):
            assert tag == seq["tag"]
            assert set(data) == set(seq["data"])
            for key, value in data.items():
                check_array(value, seq["data"][key], entry["decl"][key][1])
        dataset.init_seq_order(epoch=int(epoch))
        for i, seq in enumerate(expected["seqs"]):
            assert dict(dataset.get_seq_length(i).items()) == seq["seq_len"]


def test_golden_variable_assignment() -> None:
    for epoch, seqs in load_json("variable_assignment.json").items():
        dataset = TaskVariableAssignmentDataset(num_seqs=5)
        for (_, data), seq in zip(read_all(dataset, int(epoch)), seqs, strict=False):
            assert data["data"].argmax(axis=1).tolist() == seq["one_hot_idx"]
            assert data["classes"].tolist() == seq["classes"]
            assert data["classes"].dtype == "int32"


def test_golden_worker_sharding() -> None:
    golden = load_json("worker_sharding.json")
    datasets: dict[str, dict[str, Any]] = {
        "Task12AXDataset num_seqs=10, epoch 2": {"num_seqs": 10},
        "Task12AXDataset num_seqs=23 seq_ordering=random partition_epoch=2, epoch 2": {
            "num_seqs": 23, "seq_ordering": "random", "partition_epoch": 2,
        },
    }  # fmt: skip
    assert set(golden) == set(datasets)
    for name, by_num_workers in golden.items():
        dataset = Task12AXDataset(**datasets[name])
        dataset.init_seq_order(epoch=2)
        for num_workers, orders in by_num_workers.items():
            for worker_id, expected in enumerate(orders):
                with process_state_ctx(num_workers=int(num_workers), worker_id=worker_id):
                    order = dataset.apply_sharding(dataset.get_current_seq_order())  # type: ignore[arg-type]
                    assert list(order) == expected
                    assert dataset.is_sharding_enabled() == (int(num_workers) > 1)
    dataset._is_top_level = False
    with process_state_ctx(num_workers=2, worker_id=1):
        assert list(dataset.apply_sharding([0, 1, 2])) == [0, 1, 2]


def test_golden_dummy_generic() -> None:
    templates: dict[str, tuple[dict[str, Any], Any]] = {
        "A": ({"data": {"dim": 3}, "classes": {"dim": 7, "sparse": True, "available_for_inference": False}}, None),
        "B": (
            {
                "data": {"shape": (None, 1), "dtype": "float32"},
                "classes": {"dim": 7, "sparse": True, "available_for_inference": False},
            },
            (2, 4),
        ),
        "D": (
            {"data": {"dim": 2}, "classes": {"dim": 7, "sparse": True, "available_for_inference": False}},
            {"data": 6, "classes": (1, 3)},
        ),
    }
    for name, entry in load_json("dummy_generic.json").items():
        template, seq_lens = templates[name.split()[1]]
        dataset = DummyGenericDataset(template, 4, seq_lens=seq_lens)
        assert dataset.num_inputs == entry["num_inputs"]
        assert {k: list(v) for k, v in (dataset.num_outputs or {}).items()} == entry["num_outputs"]
        assert dataset.get_target_list() == entry["target_list"]
        assert dataset.get_data_keys() == entry["keys"]
        for key, (dim, dtype, sparse, shape) in entry["decl"].items():
            decl = dataset.get_data_dim(key), dataset.get_data_dtype(key), dataset.is_data_sparse(key)
            assert decl == (dim, dtype, sparse)
            assert dataset.get_data_shape(key) == shape
        for epoch in (1, 2):
            for (_, data), seq in zip(read_all(dataset, epoch), entry[f"ep{epoch}"], strict=False):
                for key, expected in seq.items():
                    assert str(data[key].dtype) == expected["dtype"]
                    assert list(data[key].shape) == expected["shape"], (name, key)
                    assert data[key].reshape(-1)[:8].tolist() == expected["first8"], (name, key)


def test_dummy_generic_shared_dim_has_one_length() -> None:
    time = object()
    template: dict[str, Any] = {
        "data": {"dims": (time, 3), "dtype": "float32"},
        "classes": {"dims": (time,), "dim": 5, "sparse": True},
    }
    for _, data in read_all(DummyGenericDataset(template, 10, seq_lens=(2, 30)), epoch=1):
        assert len(data["data"]) == len(data["classes"])


def test_dummy_generic_bad_options() -> None:
    with pytest.raises(DatasetError, match="seq_lens"):
        DummyGenericDataset({"data": {"dim": 3}}, 2, seq_lens="x")
    with pytest.raises(DatasetError, match="classes"):
        DummyGenericDataset({"classes": {"sparse": True}}, 2)
    with pytest.raises(NotSupportedError, match="extern_data"):
        DummyGenericDataset([1], 2)  # type: ignore[arg-type]


def _write_librispeech(path: Path, lens: dict[str, int], *, as_zip: bool = False) -> None:
    files: dict[str, list[str]] = {}
    for key, length in lens.items():
        subdir, name = key.split()
        speaker, chapter, _ = name.split("-")
        trans = f"{subdir}/{speaker}/{chapter}/{speaker}-{chapter}.trans.txt"
        files.setdefault(trans, []).append(f"{name} {'W' * length}\n")
    if as_zip:
        for subdir in {name.split("/")[0] for name in files}:
            with zipfile.ZipFile(path / f"{subdir}.zip", "w") as zip_file:
                for name, lines in files.items():
                    if name.startswith(subdir + "/"):
                        zip_file.writestr(f"LibriSpeech/{name}", "".join(lines))
        return
    for name, lines in files.items():
        os.makedirs((path / name).parent, exist_ok=True)
        (path / name).write_text("".join(lines))


LIBRI_CASES: dict[str, tuple[dict[str, Any], int]] = {
    "default": ({}, 1),
    "random ep2": ({"seq_ordering": "random"}, 2),
    "sorted": ({"seq_ordering": "sorted"}, 1),
    "fixed_random_subset=5": ({"fixed_random_subset": 5}, 1),
    "fixed_random_subset=0.5,laplace:2": ({"fixed_random_subset": 0.5, "seq_ordering": "laplace:2"}, 1),
    "epoch_wise_filter {(1,2):{max_mean_len:4}}": (
        {"epoch_wise_filter": {(1, 2): {"max_mean_len": 4}}, "seq_ordering": "random"}, 1,
    ),
    "epoch_wise_filter {(1,2):{max_mean_len:4,use_new_filter:True}}": (
        {"epoch_wise_filter": {(1, 2): {"max_mean_len": 4, "use_new_filter": True}}, "seq_ordering": "random"}, 1,
    ),
    "epoch_wise_filter {(1,2):{subdirs:[train-clean-100]}}": (
        {"epoch_wise_filter": {(1, 2): {"subdirs": ["train-clean-100"]}}, "seq_ordering": "random"}, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("as_zip", [False, True])
def test_golden_librispeech(tmp_path: Path, as_zip: bool) -> None:
    golden = load_json("librispeech_corpus.json")
    _write_librispeech(tmp_path, golden["transcription_lens"], as_zip=as_zip)
    for name, entry in golden.items():
        if name in ("transcription_lens", "seq0"):
            continue
        opts, epoch = LIBRI_CASES[name]
        dataset = init_dataset(
            {
                "class": "LibriSpeechCorpus",
                "path": str(tmp_path),
                "prefix": "train",
                "audio": None,
                "use_zip": as_zip,
                **opts,
            }
        )
        assert dataset.name == "prefix:train"
        assert dataset.num_inputs == entry["num_inputs"]
        assert {k: str(v) for k, v in (dataset.num_outputs or {}).items()} == entry["num_outputs"]
        assert dataset.get_all_tags() == entry["all_tags"]
        dataset.init_seq_order(epoch=epoch)
        assert [dataset.get_tag(i) for i in range(dataset.num_seqs)] == entry["tags"], name
        dataset.load_seqs(0, 1)
        if name == "default":
            for key, (dtype, shape, text) in golden["seq0"].items():
                value = dataset.get_data(0, key)
                assert (str(value.dtype), list(value.shape), str(value)) == (dtype, shape, text)
            assert dataset.get_data_dtype("raw") in ("object", "string")


def test_librispeech_bad_options(tmp_path: Path) -> None:
    opts: dict[str, Any] = {"class": "LibriSpeechCorpus", "path": str(tmp_path), "prefix": "train", "audio": None}
    with pytest.raises(DatasetError, match="train-clean-100"):
        init_dataset(opts)
    with pytest.raises(DatasetError, match="prefix"):
        init_dataset({**opts, "prefix": "foo"})
    _write_librispeech(tmp_path, {"train-clean-100 1-2-0000": 5})
    dataset = init_dataset({**opts, "epoch_wise_filter": {(1, None): {"max_mean_len": 2}}})
    with pytest.raises(DatasetError, match="no sequences left after epoch_wise_filter"):
        dataset.init_seq_order(epoch=1)
    with pytest.raises(ValueError, match=r"first epoch, last epoch"):
        init_dataset({**opts, "epoch_wise_filter": {3: {}}})
    with pytest.raises(
        ValueError, match=r"unknown options \['foo'\]. Known: 'max_mean_len', 'subdirs', 'use_new_filter'"
    ):
        init_dataset({**opts, "epoch_wise_filter": {(1, 2): {"foo": 1}}})


ENWIK8_CASES: dict[str, tuple[dict[str, Any], int]] = {
    "default": ({}, 1),
    "random": ({"seq_ordering": "random"}, 1),
    "batch_num_seqs=3": ({"batch_num_seqs": 3}, 1),
    "batch_num_seqs=3,partition_epoch=2,ep1": ({"batch_num_seqs": 3, "partition_epoch": 2}, 1),
    "batch_num_seqs=3,partition_epoch=2,ep2": ({"batch_num_seqs": 3, "partition_epoch": 2}, 2),
    "subsubset=(5,50)": ({"subsubset": (5, 50)}, 1),
}


def test_golden_enwik8(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "enwik8.hdf5", "w") as file:
        file.attrs["unique"] = numpy.arange(65, 75)
        file.create_dataset("split/training/default", data=(numpy.arange(103) * 7 % 10).astype("uint8"))
    (golden,) = load_json("enwik8_corpus.json").values()
    for name, entry in golden.items():
        opts, epoch = ENWIK8_CASES[name]
        dataset = init_dataset(
            {"class": "Enwik8Corpus", "path": str(tmp_path), "subset": "training", "seq_len": 10, **opts}
        )
        dataset.init_seq_order(epoch=epoch)
        assert [dataset.get_tag(i) for i in range(dataset.num_seqs)] == entry["tags"]
        by_tag = {}
        for tag, data in read_all(dataset, epoch):
            assert (
                str(data["data"].dtype)
                == str(data["classes"].dtype)
                == entry["dtype"]
                == dataset.get_data_dtype("data")
            )
            by_tag[tag] = data
        if opts.get("seq_ordering") is None and epoch == 1:
            first = by_tag[entry["tags"][0]]
            assert {key: value.tolist() for key, value in first.items()} == entry["first"]
        assert [len(by_tag[entry["tags"][-1]]["data"])] == entry["last_lens"]


def test_enwik8_everyday_use(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "enwik8.hdf5", "w") as file:
        file.attrs["unique"] = numpy.arange(97, 107)
        file["split/training/default"] = numpy.arange(60, dtype="uint8") % 10
    opts = {
        "class": "Enwik8Corpus",
        "path": str(tmp_path),
        "subset": "training",
        "seq_len": 7,
        "seq_ordering": "random",
    }
    (tag, data), *_ = sorted(check_everyday_use(opts)[0], key=lambda seq: seq[0])
    assert tag == "offset_0_7" and data["classes"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    check_jump(opts)


def test_enwik8_errors(tmp_path: Path) -> None:
    opts: dict[str, Any] = {"class": "Enwik8Corpus", "path": str(tmp_path), "subset": "training", "seq_len": 10}
    with pytest.raises(OSError, match=r"enwik8\.hdf5.*not downloaded"):
        init_dataset(opts)
    with pytest.raises(DatasetError, match="subset"):
        init_dataset({**opts, "subset": "train"})
    (tmp_path / "enwik8.hdf5").write_text("no hdf")
    with pytest.raises(OSError, match="cannot read"):
        init_dataset(opts)


def test_golden_timit() -> None:
    golden = load_json("timit_phones.json")
    for num, labels in golden["labels"].items():
        assert TimitDataset.get_labels(int(num)) == labels
    assert TimitDataset.PhoneMapTo48 == golden["map48"]
    assert TimitDataset.PhoneMapTo39 == golden["map39"]
    for key, mapping in golden.items():
        if key.startswith("label_map"):
            source, target = map(int, key.split()[1].split("->"))
            expected = {int(k): v for k, v in mapping.items()}
            assert TimitDataset.get_label_map(source, target) == expected
    with pytest.raises(DatasetError, match="61, 48 or 39"):
        TimitDataset.get_labels(40)


def test_spec_examples() -> None:
    seqs = read_all(DummyDataset(2, 3, 4), 1)
    assert numpy.allclose(seqs[0][1]["data"], [[-0.5, -0.4], [-0.3, -0.2]])
    assert seqs[0][1]["classes"].tolist() == [1, 2]
    seqs = read_all(CopyTaskDataset(nsymbols=10, minlen=2, maxlen=6, num_seqs=3), 1)
    assert [data["data"].tolist() for _, data in seqs] == [[0, 4, 1, 9], [9, 3, 4, 9, 6, 3], [3, 0]]


def test_copy_task_with_many_symbols() -> None:
    seqs = read_all(CopyTaskDataset(nsymbols=256, minlen=50, maxlen=60, num_seqs=3), 1)
    assert max(data["data"].max() for _, data in seqs) > 127
    assert min(data["data"].min() for _, data in seqs) >= 0


def test_12ax_methods() -> None:
    dataset = Task12AXDataset(num_seqs=3)
    dataset.init_seq_order(epoch=1)
    inputs = dataset.generate_input_seq(dataset.get_random_seq_len())
    assert 10 <= len(inputs) < 100
    assert len(Task12AXDataset.make_output_seq(inputs)) == len(inputs)
    text = "1AX2BYAX2CBY"
    outputs = Task12AXDataset.make_output_seq(["123ABCXYZ".index(c) for c in text])
    assert "".join("LR"[i] for i in outputs) == "LLRLLRLLLLLR"
    priors = dataset.estimate_output_class_priors(num_trials=50)
    assert sum(priors) == pytest.approx(1) and priors[0] > priors[1] > 0


def test_infinite() -> None:
    dataset = Task12AXDataset()
    assert not dataset.supports_sharding()
    assert len(read_all(dataset, 1, max_seqs=5)) == 5
    assert dataset.is_less_than_num_seqs(10**9)
    with pytest.raises(NotImplementedError):
        dataset.get_total_num_seqs()
    with pytest.raises(DatasetError, match="infinitely many"):
        Task12AXDataset(seq_ordering="random")


def test_data_depend_on_corpus_index_and_seed_only() -> None:
    plain = dict(read_all(Task12AXDataset(num_seqs=6), 1))
    for opts in ({"seq_ordering": "random"}, {"seq_ordering": "reverse"}):
        for tag, data in read_all(Task12AXDataset(num_seqs=6, **opts), 1):
            assert numpy.array_equal(data["data"], plain[tag]["data"])
    dataset = Task12AXDataset(num_seqs=6)
    dataset.init_seq_order(epoch=1)
    assert numpy.array_equal(dataset.get_corpus_seq(3).get_data("data"), plain["seq-3"]["data"])
    dataset.init_seq_order(epoch=1, seq_list=["seq-3", "seq-1"])
    assert dataset.num_seqs == 2 and [dataset.get_tag(i) for i in range(2)] == ["seq-3", "seq-1"]
    dataset.init_seq_order(epoch=1, seq_order=[5, 5])
    assert [dataset.get_tag(i) for i in range(2)] == ["seq-5", "seq-5"]
    with pytest.raises(KeyError, match="seq-77"):
        dataset.init_seq_order(epoch=1, seq_list=["seq-77"])


def test_bad_options() -> None:
    with pytest.raises(DatasetError, match="num_seqs"):
        Task12AXDataset(num_seqs=-1)
    with pytest.raises(DatasetError, match="needs sequence lengths"):
        Task12AXDataset(num_seqs=3, seq_ordering="laplace:.10")
    assert Task12AXDataset(num_seqs=3, seq_ordering="sorted_reverse").seq_ordering == "default"
    with pytest.raises(DatasetError, match="input_base"):
        TaskNumberBaseConvertDataset(input_base=40, num_seqs=3)
    with pytest.raises(DatasetError, match="nsymbols"):
        CopyTaskDataset(nsymbols=300, num_seqs=3)
    with pytest.raises(DatasetError, match="0 < min <= max"):
        read_all(CopyTaskDataset(nsymbols=3, num_seqs=3), 1)
    with pytest.raises(DatasetError, match="seq_len"):
        DummyDatasetMultipleSequenceLength(1, 2, 3, seq_len=4)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match=r"\['a'\].*\['classes', 'data'\]"):
        DummyDatasetMultipleDataKeys(output_dim={"a": (1, 1)}, num_seqs=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'foo'"):
        Task12AXDataset(num_seqs=3, foo=1)


def test_static_dataset() -> None:
    data = [{"data": numpy.ones((n, 3), "float32") * n, "classes": numpy.arange(n)} for n in (4, 2, 3)]
    dataset = StaticDataset(data, seq_ordering="sorted")
    assert dataset.get_data_keys() == ["data", "classes"] and dataset.get_target_list() == ["classes"]
    assert dataset.num_outputs == {"data": (3, 2), "classes": (0, 1)} and dataset.num_inputs == 3
    assert [dataset.get_tag(i) for i in range(3)] == ["seq-1", "seq-2", "seq-0"]
    assert str(dataset.get_data_dtype("data")) == "float32"
    assert [len(d["data"]) for _, d in read_all(dataset, 1)] == [2, 3, 4]
    dataset.load_seqs(3, 10)  # past the end
    dataset.init_seq_order(epoch=1, seq_list=["seq-2"])
    assert dataset.num_seqs == 1 and dataset.get_total_num_seqs() == 3
    source = Task12AXDataset(num_seqs=4)
    source.init_seq_order(epoch=1)
    copied = StaticDataset.copy_from_dataset(source, max_seqs=2)
    assert copied.get_total_num_seqs() == 2


def test_static_dataset_errors() -> None:
    array = numpy.zeros((2, 3))
    for data in ([], None, [1]):
        with pytest.raises(DatasetError, match='"data"'):
            StaticDataset(data)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="output_dim does not match the given data"):
        StaticDataset([{"data": array}], output_dim={"x": (3, 2)})
    with pytest.raises(AssertionError, match="output_dim does not match the given data"):
        StaticDataset([{"data": array}], output_dim={"data": (4, 2)})
    with pytest.raises(AssertionError, match="target_list"):
        StaticDataset([{"data": array}], target_list=["foo"])
    with pytest.raises(DatasetError, match="sequence 1 has the keys"):
        StaticDataset([{"data": array}, {"x": array}])


def test_star_import_gives_all_classes() -> None:
    namespace: dict[str, Any] = {}
    exec("from returnn.datasets.generating import *", namespace)  # what client code does
    for name in ("numpy", "StaticDataset", "Task12AXDataset", "DummyDataset", "GeneratingDataset", "Vocabulary"):
        assert name in namespace
    assert set(generating.__all__) <= set(namespace)


def test_user_defined_generating_dataset() -> None:
    class Mine(GeneratingDataset):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(input_dim=2, output_dim=3, **kwargs)

        def generate_seq(self, seq_idx: int) -> generating.DatasetSeq:
            return generating.DatasetSeq(seq_idx, self.random.rand(3, 2), targets=numpy.zeros(3, "int32"))

    seqs = read_all(init_dataset({"class": Mine, "num_seqs": 3}), 1)
    assert [tag for tag, _ in seqs] == ["seq-0", "seq-1", "seq-2"]
