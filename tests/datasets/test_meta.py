"""returnn.datasets.meta."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from returnn.datasets.basic import Dataset, DatasetSeq, init_dataset
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.hdf import HDFDataset, HDFDatasetWriter, SimpleHDFWriter
from returnn.datasets.meta import MetaDataset
from returnn.errors import ConfigError, DatasetError, UnknownSeqTagError

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "04-datasets-meta"
CASES: dict[str, Any] = json.loads((GOLDEN / "orders_meta.json").read_text(encoding="utf8"))
WRAPPER_CASES: dict[str, Any] = json.loads((GOLDEN / "main_wrappers.json").read_text(encoding="utf8"))
FEAT = str(GOLDEN / "feat.hdf")
LAB_PERM = str(GOLDEN / "lab_perm.hdf")
LAB_LINE = str(GOLDEN / "lab_line.hdf")
MAP = {"data": ("feat", "data"), "classes": ("lab", "data")}


@pytest.fixture(autouse=True)
def _in_golden_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)  # file names in the cases are relative


def _iterate(dataset: Dataset) -> list[dict[str, Any]]:
    seqs = []
    i = 0
    while dataset.is_less_than_num_seqs(i):
        dataset.load_seqs(i, i + 1)
        data = {key: dataset.get_data(i, key) for key in dataset.get_data_keys()}
        seqs.append({"tag": dataset.get_tag(i), "lens": dict(dataset.get_seq_length(i).items()), "data": data})
        i += 1
    return seqs


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("pickled", [False, True])
def test_golden_orders(case: str, pickled: bool) -> None:
    opts = CASES[case]["opts"]
    dataset = None
    for epoch, expected in CASES[case]["epochs"].items():
        if epoch == "error":
            with pytest.raises(AssertionError) as info:
                init_dataset(opts)
            assert CASES[case]["epochs"]["msg"] in str(info.value)
            return
        if dataset is None or pickled:
            dataset = init_dataset(opts) if dataset is None else pickle.loads(pickle.dumps(dataset))
        dataset.init_seq_order(
            epoch=int(epoch), seq_list=CASES[case].get("seq_list"), seq_order=CASES[case].get("seq_order")
        )
        seqs = _iterate(dataset)
        assert dataset.num_seqs == len(seqs) == len(expected)
        for i, (seq, expected_seq) in enumerate(zip(seqs, expected, strict=True)):
            if isinstance(expected_seq, str):
                assert seq["tag"] == expected_seq, (epoch, i)
                continue
            assert seq["tag"] == expected_seq["tag"]
            assert {key: list(data.shape) for key, data in seq["data"].items()} == expected_seq["shapes"]
            assert {key: float(data.sum()) for key, data in seq["data"].items()} == expected_seq["sums"]
        _check_bulk(dataset, seqs)


def _check_bulk(dataset: Dataset, seqs: list[dict[str, Any]]) -> None:
    assert dataset.supports_bulk()
    idxs = np.random.RandomState(1).permutation(len(seqs))
    keys = dataset.get_data_keys()
    bulk = dataset.read_seqs(idxs, keys)
    assert bulk is not None
    assert dataset.get_seq_tags(idxs) == [seqs[i]["tag"] for i in idxs]
    for key in keys:
        lens = dataset.get_epoch_seq_lens(key)
        assert lens is not None
        assert lens.tolist() == [len(seq["data"][key]) for seq in seqs]
        for pos, i in enumerate(idxs.tolist()):
            np.testing.assert_array_equal(bulk[key][pos], seqs[i]["data"][key])


def _opts(**kwargs: Any) -> dict[str, Any]:
    return {
        "class": "MetaDataset",
        "datasets": {
            "feat": {"class": "HDFDataset", "files": [FEAT]},
            "lab": {"class": "HDFDataset", "files": [LAB_PERM]},
        },
        "data_map": MAP,
        **kwargs,
    }


def test_attributes() -> None:
    dataset = init_dataset(_opts(seq_order_control_dataset="lab", name="train"))
    assert isinstance(dataset, MetaDataset)
    assert (dataset.data_keys, dataset.dataset_keys) == ({"data", "classes"}, {"feat", "lab"})
    assert (dataset.default_dataset_key, dataset.target_list, dataset.get_data_keys()) == (
        "lab",
        ["classes"],
        ["classes", "data"],
    )
    assert dataset.get_total_num_seqs() == 17
    assert dataset.datasets["lab"].name == "train_lab"
    assert not dataset.datasets["lab"]._is_top_level
    assert dataset.num_outputs == {"data": [3, 2], "classes": [11, 1]}
    assert (dataset.get_data_dim("classes"), dataset.get_data_dtype("classes")) == (11, "int32")
    assert (dataset.is_data_sparse("classes"), dataset.get_data_shape("data")) == (True, [3])
    tags = dataset.get_all_tags()
    assert dataset.tag_idx == {tag: i for i, tag in enumerate(tags)}
    assert dataset.seq_list_original == {"feat": tags, "lab": tags}
    assert dataset.have_corpus_seq_idx()
    dataset.init_seq_order(epoch=1, seq_order=[3, 2])
    assert dataset.seq_list_ordered == {"feat": [tags[3], tags[2]], "lab": [tags[3], tags[2]]}
    assert list(dataset.get_current_seq_order()) == [3, 2]


def test_same_epoch_again_keeps_order_unless_consumed() -> None:
    dataset = init_dataset(_opts(seq_ordering="random"))
    assert dataset.init_seq_order(epoch=1)
    assert not dataset.init_seq_order(epoch=1)
    assert dataset.num_seqs == 17
    _iterate(dataset)
    assert dataset.init_seq_order(epoch=1)
    assert dataset.init_seq_order(epoch=1, seq_order=[0])
    assert dataset.init_seq_order(epoch=1)
    assert dataset.num_seqs == 17
    # A copy has the epoch, but no order.
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.epoch == 1
    assert copy.init_seq_order(epoch=1)
    assert [seq["tag"] for seq in _iterate(copy)] == [seq["tag"] for seq in _iterate(dataset)]


def test_unused_children_are_not_constructed() -> None:
    opts = _opts()
    opts["datasets"] = {**opts["datasets"], "bad": {"class": "NoSuchClass"}}
    assert set(init_dataset(opts).datasets) == {"feat", "lab"}  # type: ignore[attr-defined]


def test_children_given_as_dataset_and_function() -> None:
    opts = _opts()
    opts["datasets"] = {"feat": HDFDataset([FEAT]), "lab": lambda: {"class": "HDFDataset", "files": [LAB_PERM]}}
    dataset = init_dataset(opts)
    dataset.init_seq_order(epoch=1)
    assert len(_iterate(dataset)) == 17


def test_one_dataset_object_as_two_children(tmp_path: Path) -> None:
    """It gets the same order twice. Not so if a list has other sequences for each, or if another child contains it."""
    feat = HDFDataset([FEAT], seq_ordering="random")
    opts = _opts(datasets={"feat": feat, "lab": feat}, data_map={"data": ("feat", "data"), "y": ("lab", "data")})
    dataset = init_dataset(opts)
    dataset.init_seq_order(epoch=1)
    for seq in _iterate(dataset):
        np.testing.assert_array_equal(seq["data"]["data"], seq["data"]["y"])
    tags = feat.get_all_tags()
    (tmp_path / "list.pkl").write_bytes(pickle.dumps({"feat": tags, "lab": tags[::-1]}))
    with pytest.raises(ConfigError, match="'feat' and 'lab' are the same dataset object, but seq_list_file"):
        init_dataset({**opts, "seq_list_file": str(tmp_path / "list.pkl")})
    opts["datasets"]["lab"] = {"class": "ConcatDataset", "datasets": [feat]}
    with pytest.raises(ConfigError, match="feat and lab are, or contain, the same dataset object"):
        init_dataset(opts)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seq_order_control_dataset": "nope"}, ["seq_order_control_dataset", "['feat', 'lab']", "'nope'"]),
        ({"data_map": {"data": ("nope", "data")}}, ["data_map['data']", "['feat', 'lab']"]),
        ({"data_map": {"data": "feat"}}, ["data_map['data']"]),
        ({"data_map": {}}, ["data_map"]),
        ({"data_map": {"data": ("feat", "nokey")}}, ["'feat'", "'nokey'", "['data']"]),
        ({"data_dims": {"data": 3}}, ["data_dims", "classes"]),
        ({"seq_list_file": "missing.txt"}, ["missing.txt"]),
        ({"seq_list_file": {"feat": "tags_feat.txt"}}, ["seq_list_file does not contain all datasets, missing lab"]),
        ({"seq_lens_file": "missing.json"}, ["missing.json"]),
        ({"seq_lens_file": "tags_feat.txt"}, ["tags_feat.txt", "JSON"]),
        ({"window": 3}, ["window"]),
        ({"seq_list_file": "tags_feat.txt", "seq_order_control_dataset": "lab"}, ["row 0", "'lab'", "order"]),
    ],
)
def test_option_errors(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises((DatasetError, ValueError, NotImplementedError)) as info:
        init_dataset(_opts(**changes))
    for word in words:
        assert word in str(info.value)


def test_missing_tags_are_found_at_the_start() -> None:
    opts = _opts()
    opts["datasets"]["lab"] = {"class": "HDFDataset", "files": [LAB_LINE]}
    with pytest.raises(DatasetError) as info:
        init_dataset(opts)
    text = str(info.value)
    for word in ["Dataset 'lab' is missing seqs.", "17 of 17 tags of 'feat'", "'corp/r0/s0'", "'line-0'", "position 0"]:
        assert word in text


def test_smaller_child_is_an_error_larger_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "few.hdf"
    with SimpleHDFWriter(path, dim=None, ndim=1) as writer:
        writer.insert_batch(np.ones((2, 3)), [3, 2], ["corp/r0/s0", "corp/r2/s12"])
    few = {"class": "HDFDataset", "files": [str(path)]}
    opts = _opts()
    opts["datasets"]["lab"] = few
    with pytest.raises(DatasetError, match=r"less sequences \(2\) than in sequence list \(17\) read from 'feat'"):
        init_dataset(opts)
    dataset = init_dataset({**opts, "seq_order_control_dataset": "lab"})
    dataset.init_seq_order(epoch=1)
    assert [seq["tag"] for seq in _iterate(dataset)] == ["corp/r0/s0", "corp/r2/s12"]


def test_options_without_effect_are_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    opts = _opts(seq_order_control_dataset="feat", seq_ordering="random", partition_epoch=2, data_dtypes={"data": "x"})
    opts["datasets"]["lab"]["seq_ordering"] = "sorted"
    init_dataset(opts).init_seq_order(epoch=1)
    warnings = [line for line in capsys.readouterr().out.splitlines() if "no effect" in line]
    assert len(warnings) == 1
    for word in ["data_dtypes", "seq_ordering", "partition_epoch", "datasets['lab']['seq_ordering']", "'feat'"]:
        assert word in warnings[0]
    init_dataset(_opts(seq_ordering="random", random_seed_offset=3))
    assert "no effect" not in capsys.readouterr().out
    init_dataset(_opts(seq_order_control_dataset="feat", random_seed_offset=3))
    assert "no effect of random_seed_offset (for the order)" in capsys.readouterr().out


def test_filter_file_without_control(tmp_path: Path) -> None:
    filter_file = tmp_path / "filter.txt"
    filter_file.write_text("corp/r1/s7\ncorp/r0/s1\n")
    dataset = init_dataset(_opts(seq_list_filter_file=str(filter_file)))
    dataset.init_seq_order(epoch=1)
    assert [seq["tag"] for seq in _iterate(dataset)] == ["corp/r0/s1", "corp/r1/s7"]


def test_shards_of_control_dataset() -> None:
    opts = _opts(seq_order_control_dataset="feat", _num_shards=2, _shard_index=1)
    opts["datasets"]["feat"]["seq_ordering"] = "random"
    dataset = init_dataset(opts)
    dataset.init_seq_order(epoch=1)
    assert list(dataset.get_current_seq_order()) == [0, 16, 15, 9, 8, 12, 11, 5]


@pytest.mark.parametrize("case", [name for name in WRAPPER_CASES if name.startswith("meta_sharded/")])
def test_golden_shards(case: str) -> None:
    ordering, parts, shard = case.split("/")[1:]
    index, count = (int(text) for text in shard.removeprefix("shard").split("of"))
    opts = _opts(seq_order_control_dataset="feat", _num_shards=count, _shard_index=index)
    opts["datasets"]["feat"].update(seq_ordering=ordering, partition_epoch=int(parts[1:]))
    dataset = init_dataset(opts)
    for epoch, expected in WRAPPER_CASES[case].items():
        dataset.init_seq_order(epoch=int(epoch))
        assert [seq["tag"] for seq in _iterate(dataset)] == expected


class TagListDataset(CachedDataset2):
    """A user class that knows only seq_list."""

    def __init__(self, broken: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_outputs = {"data": (1, 1)}
        self.broken = broken
        self._tags: list[str] = []

    def init_seq_order(self, epoch: Any = None, seq_list: Any = None, seq_order: Any = None) -> bool:
        super().init_seq_order(epoch=epoch)
        assert seq_list is not None and seq_order is None
        self._tags = seq_list[::-1] if self.broken else seq_list
        self._num_seqs = len(seq_list)
        return True

    def get_all_tags(self) -> list[str]:
        raise NotImplementedError

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        raise NotImplementedError

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        if seq_idx >= len(self._tags):
            return None
        return DatasetSeq(
            seq_idx, np.array([int(self._tags[seq_idx].rpartition("s")[-1])]), seq_tag=self._tags[seq_idx]
        )


@pytest.mark.parametrize("broken", [False, True])
def test_user_child_gets_tags_and_is_checked(broken: bool) -> None:
    opts = _opts(seq_ordering="random")
    opts["datasets"]["lab"] = {"class": TagListDataset, "broken": broken}
    dataset = init_dataset(opts)
    dataset.init_seq_order(epoch=1)
    assert not dataset.supports_bulk()
    if broken:
        with pytest.raises(
            DatasetError, match=r"'lab' gives another sequence .*position 0.*'corp/r0/s3'.*'corp/r1/s5'"
        ):
            _iterate(dataset)
        return
    seqs = _iterate(dataset)
    assert [int(seq["tag"].rpartition("s")[-1]) for seq in seqs] == [int(seq["data"]["classes"][0]) for seq in seqs]


def test_nested_meta_dataset_as_any_child() -> None:
    inner = _opts(seq_ordering="random")
    outer = {
        "class": "MetaDataset",
        "datasets": {"inner": inner, "feat2": {"class": "HDFDataset", "files": [FEAT]}},
        "data_map": {"data": ("inner", "data"), "classes": ("inner", "classes"), "again": ("feat2", "data")},
    }
    for control in ("inner", "feat2"):
        dataset = init_dataset({**outer, "seq_order_control_dataset": control})
        dataset.init_seq_order(epoch=1)
        seqs = _iterate(dataset)
        for seq in seqs:
            np.testing.assert_array_equal(seq["data"]["data"], seq["data"]["again"])
        _check_bulk(dataset, seqs)


def test_access_before_order_is_a_clear_error() -> None:
    dataset = init_dataset(_opts())
    with pytest.raises(DatasetError, match="init_seq_order"):
        dataset.get_current_seq_order()
    dataset.init_seq_order(epoch=1)
    with pytest.raises(DatasetError, match="No such data key.*'x'"):
        dataset.get_data_dtype("x")


def test_seq_list_file_forms(tmp_path: Path) -> None:
    lists = pickle.loads((GOLDEN / "seq_list.pkl").read_bytes())
    opts = _opts(seq_ordering="random")
    opts["datasets"]["lab"] = {"class": "HDFDataset", "files": [LAB_LINE]}
    expected = None
    path = tmp_path / "list.pkl.gz"
    path.write_bytes(gzip.compress(pickle.dumps(lists)))
    (tmp_path / "feat.txt").write_text("\n".join(lists["feat"]))
    (tmp_path / "lab.pkl").write_bytes(pickle.dumps(lists["lab"]))
    for form in [str(GOLDEN / "seq_list.pkl"), path, {"feat": tmp_path / "feat.txt", "lab": str(tmp_path / "lab.pkl")}]:
        dataset = init_dataset({**opts, "seq_list_file": form})
        dataset.init_seq_order(epoch=1)
        seqs = [(seq["tag"], seq["data"]["classes"].tolist()) for seq in _iterate(dataset)]
        assert expected is None or seqs == expected
        expected = seqs
    # A list may select sequences.
    (tmp_path / "some.pkl").write_bytes(pickle.dumps({key: tags[3:5] for key, tags in lists.items()}))
    dataset = init_dataset({**opts, "seq_ordering": "default", "seq_list_file": str(tmp_path / "some.pkl")})
    dataset.init_seq_order(epoch=1)
    assert [seq["tag"] for seq in _iterate(dataset)] == lists["feat"][3:5]
    for content, words in [
        ({"feat": ["a"], "lab": ["b", "c"]}, "different lengths"),
        ({"feat": ["a"]}, "missing lab"),
        (7, "wrong form"),
        ([b"a"], "wrong form"),
        ({"feat": [1], "lab": [2]}, "wrong form"),
        ([print], "print"),
    ]:
        (tmp_path / "bad.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(DatasetError, match=words):
            init_dataset({**opts, "seq_list_file": str(tmp_path / "bad.pkl")})


def test_seq_lens_file_gives_lengths_and_misses_are_named(tmp_path: Path) -> None:
    lens = json.loads((GOLDEN / "seq_lens.json").read_text())
    dataset = init_dataset(_opts(seq_lens_file="seq_lens.json", seq_ordering="sorted"))
    dataset.init_seq_order(epoch=1)
    got = [dataset.get_seq_length(i)["data"] for i in range(dataset.num_seqs)]
    assert got == sorted(got) == [lens[dataset.get_tag(i)]["data"] for i in range(dataset.num_seqs)]
    del lens["corp/r0/s3"]
    (tmp_path / "lens.json").write_text(json.dumps(lens))
    dataset = init_dataset(_opts(seq_lens_file=str(tmp_path / "lens.json"), seq_ordering="sorted"))
    with pytest.raises(DatasetError, match=r"lens.json.*'corp/r0/s3'"):
        dataset.init_seq_order(epoch=1)


def test_dump_to_hdf(tmp_path: Path) -> None:
    """num_inputs of a MetaDataset is 0, the file has the dim of the stream."""
    dataset = init_dataset({**_opts(), "data_map": {"data": ("lab", "data"), "dense": ("feat", "data")}})
    with HDFDatasetWriter(tmp_path / "a.hdf") as writer:
        writer.dump_from_dataset(dataset, use_progress_bar=False)
    copy = HDFDataset([str(tmp_path / "a.hdf")])
    assert (copy.get_data_dim("data"), copy.is_data_sparse("data"), copy.get_data_dim("dense")) == (11, True, 3)
    copy.init_seq_order(epoch=1)
    dataset.init_seq_order(epoch=1)
    for a, b in zip(_iterate(copy), _iterate(dataset), strict=True):
        assert (a["tag"], a["lens"]) == (b["tag"], b["lens"])
        for key in ("data", "dense"):
            np.testing.assert_array_equal(a["data"][key], b["data"][key])


@pytest.mark.parametrize("with_control", [True, False])
def test_filter_decides_which_sequences_the_children_must_have(tmp_path: Path, with_control: bool) -> None:
    """E.g. an alignment failed for some sequences, which the filter leaves out; the other file has more from elsewhere."""
    tags = [f"s{i}" for i in range(6)]
    names = {"all": tags, "some": ["x", *tags[2:5], "y", "z"], "few": tags[2:5]}
    for name, its_tags in names.items():
        with SimpleHDFWriter(tmp_path / f"{name}.hdf", dim=None) as writer:
            for tag in its_tags:
                writer.insert_batch(np.array([[ord(tag[-1])]]), [1], [tag])
    filter_file = tmp_path / "filter.txt"
    filter_file.write_text("s2\ns4\n")
    filtered = {"seq_list_filter_file": str(filter_file), "seq_ordering": "sorted"}
    for other in ("some", "few"):
        control = {"class": "HDFDataset", "files": [str(tmp_path / "all.hdf")], **(filtered if with_control else {})}
        opts: dict[str, Any] = {
            "datasets": {"a": control, "b": {"class": "HDFDataset", "files": [str(tmp_path / f"{other}.hdf")]}},
            "data_map": {"data": ("a", "data"), "c": ("b", "data")},
            **({"seq_order_control_dataset": "a"} if with_control else filtered),
        }
        dataset = MetaDataset(**opts)
        dataset.init_seq_order(epoch=1)
        assert [dataset.get_tag(i) for i in range(dataset.num_seqs)] == ["s2", "s4"]
        dataset.load_seqs(0, 2)
        assert [dataset.get_data(i, "c").tolist() for i in range(2)] == [[ord("2")], [ord("4")]]
        with pytest.raises(UnknownSeqTagError, match=r"'b' is missing seqs.*1 of the 2 .*'s0'"):
            dataset.init_seq_order(epoch=1, seq_list=["s0", "s3"])
    filter_file.write_text("s2\ns5\n")
    with pytest.raises(DatasetError, match=r"'b' is missing seqs.*1 of 6 tags of 'a' are not in 'b', first: \['s5'\]"):
        MetaDataset(**opts)


class WritesToOrder(HDFDataset):
    """A class of the user that takes the order that it gets for its own."""

    def init_seq_order(self, epoch: int | None = None, seq_list: Any = None, seq_order: Any = None) -> bool:
        """As the base."""
        if seq_order is not None:
            assert seq_order.dtype == np.int64
            seq_order += 0
        return super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)


def test_class_of_the_user_below_a_wrapper_writes_to_the_order() -> None:
    lab: dict[str, Any] = {"class": "MultiEpochDataset", "multi_epoch": 1}
    orders = []
    for cls in ("HDFDataset", WritesToOrder):
        lab["dataset"] = {"class": cls, "files": [LAB_PERM]}
        feat = {"class": "HDFDataset", "files": [FEAT]}
        dataset = MetaDataset(datasets={"feat": feat, "lab": lab}, data_map=MAP, seq_order_control_dataset="feat")
        dataset.init_seq_order(epoch=1)
        orders.append([(seq["tag"], seq["data"]["classes"].tolist()) for seq in _iterate(dataset)])
    assert orders[0] == orders[1]


def test_class_of_the_user_below_a_wrapper_gets_int64(tmp_path: Path) -> None:
    """Also where lengths are asked for, and from other datasets that look up tags."""
    user = {"class": "MultiEpochDataset", "multi_epoch": 1, "dataset": {"class": WritesToOrder, "files": [FEAT]}}
    tags = sorted(HDFDataset(files=[FEAT]).get_all_tags())
    rows = tmp_path / "rows"
    rows.write_text("\n".join(reversed(tags)))
    dataset = init_dataset(
        {
            "class": "MetaDataset",
            "datasets": {"feat": user},
            "data_map": {"data": ("feat", "data")},
            "seq_list_file": str(rows),
            "seq_ordering": "sorted",
        }
    )
    dataset.init_seq_order(epoch=1)
    lens = [int(seq["lens"]["data"]) for seq in _iterate(dataset)]
    assert lens == sorted(lens)
    rows.write_text("\n".join([f"{tags[0]};{tags[1]}", f"{tags[3]};{tags[2]}"]))
    (tmp_path / "lens").write_text(repr(dict.fromkeys(tags, 1)))
    dataset = init_dataset(
        {
            "class": "ConcatSeqsDataset",
            "dataset": user,
            "seq_list_file": str(rows),
            "seq_len_file": str(tmp_path / "lens"),
        }
    )
    dataset.init_seq_order(epoch=1)
    assert [seq["tag"] for seq in _iterate(dataset)] == [f"{tags[0]};{tags[1]}", f"{tags[3]};{tags[2]}"]
