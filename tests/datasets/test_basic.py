"""Dataset base: registry, life cycle, pickling, data keys, sharding, user-defined datasets."""

from __future__ import annotations

import copy
import importlib
import pickle
import subprocess
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy
import pytest

import returnn.datasets.registry as registry
from returnn._state import process_state_ctx
from returnn.config import Config, global_config_ctx
from returnn.datasets import Dataset, init_dataset
from returnn.datasets.basic import (
    DatasetSeq,
    convert_data_dims,
    extend_dataset_dict_from_parent_dataset,
    get_dataset_class,
    init_dataset_via_str,
)
from returnn.datasets.cached import CachedDataset
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.generating import (
    CopyTaskDataset,
    DummyDataset,
    DummyDatasetMultipleDataKeys,
    DummyDatasetMultipleSequenceLength,
    DummyGenericDataset,
    StaticDataset,
    Task12AXDataset,
    TaskEpisodicCopyDataset,
    TaskNumberBaseConvertDataset,
    TaskVariableAssignmentDataset,
    TaskXmlModelingDataset,
)
from returnn.datasets.map import FromListDataset, MapDatasetBase, MapDatasetWrapper
from returnn.errors import ConfigError, DatasetError, NotSupportedError
from returnn.log import log
from returnn.util.basic import NumbersDict, OptionalNotImplementedError


class OwnDataset(CachedDataset2):
    """As users write them: arguments are stored, the number of sequences is known or not."""

    def __init__(self, num: int, *, known: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._num = num
        self.known = known
        self.num_inputs = 2
        self.num_outputs = {"data": (2, 2), "classes": (5, 1)}
        self.collected: list[int] = []
        self._order: Any = ()

    def init_seq_order(
        self, epoch: int | None = None, seq_list: Sequence[str] | None = None, seq_order: Any = None
    ) -> bool:
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self.collected = []
        self._order = range(0)
        if self._num:
            self._order = self.get_seq_order_for_epoch(epoch, self._num, lambda i: i + 1)
        if self.known:
            self._num_seqs = len(self._order)
        return True

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        return self._num

    def get_all_tags(self) -> list[str]:
        return [f"tag-{i}" for i in range(self._num)]

    def get_current_seq_order(self) -> Sequence[int]:
        order: Sequence[int] = self._order
        return order

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        self.collected.append(seq_idx)
        if seq_idx >= len(self._order):
            return None
        i = int(self._order[seq_idx])
        features = numpy.full((i + 1, 2), i, dtype="float32")
        return DatasetSeq(seq_idx, features, targets=numpy.arange(i + 1, dtype="int32"), seq_tag=f"tag-{i}")


class OldStyleDataset(Dataset):
    """Overrides the old hooks."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_outputs = {"data": (3, 2), "classes": (4, 1)}

    @property
    def num_seqs(self) -> int:
        return 2

    def _load_seqs(self, start: int, end: int) -> None:
        pass

    def get_input_data(self, sorted_seq_idx: int) -> numpy.ndarray:
        return numpy.zeros((sorted_seq_idx + 1, 3))

    def get_targets(self, target: str, sorted_seq_idx: int) -> numpy.ndarray:
        return numpy.zeros(sorted_seq_idx + 1)


class RemapDataset(Dataset):
    """Arguments under other names, keyword-only, and left out."""

    _getnewargs_exclude_attrs: ClassVar[Iterable[str]] = {"scratch"}
    _getnewargs_remap: ClassVar[Mapping[str, str]] = {"source": "hidden"}

    def __init__(self, source: str, *, flag: bool = False, scratch: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden = source
        self._flag = flag
        self.flag = "the underscored one comes first"
        self.used_scratch = scratch


class FixedDataset(OwnDataset):
    """Takes no further arguments, but fixes those of its base."""

    def __init__(self, size: int = 3) -> None:
        super().__init__(num=size, seq_ordering="reverse", name="fixed")
        self.size = size


class RandomAccess(CachedDataset):
    """A corpus in memory on the base of HDFDataset."""

    def __init__(self, num: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num = self._num_seqs = num
        self.num_inputs = 1
        self.num_outputs = {"data": (1, 2), "classes": (9, 1)}
        self.target_keys = ["classes"]
        self.reads: list[int] = []

    def _get_seq_length_by_real_idx(self, real_seq_idx: int) -> numpy.ndarray:
        return numpy.array([real_seq_idx % 4 + 1, 2])

    def _get_tag_by_real_idx(self, real_seq_idx: int) -> str:
        return f"t{real_seq_idx}"

    def _read_real_seqs(self, real_seq_idxs: Sequence[int]) -> list[dict[str, numpy.ndarray]]:
        self.reads += real_seq_idxs
        return [
            {"data": numpy.full((i % 4 + 1, 1), i, "float32"), "classes": numpy.full(2, i, "int32")}
            for i in real_seq_idxs
        ]


def static_data(num: int = 10) -> list[dict[str, numpy.ndarray]]:
    """:return: sequences of different length"""
    return [{"data": numpy.full((i * 3 % 7 + 1, 2), i, "float32"), "classes": numpy.arange(i + 1)} for i in range(num)]


ALL: dict[str, Callable[..., Dataset]] = {
    "12ax": lambda **kw: Task12AXDataset(num_seqs=10, **kw),
    "episodic": lambda **kw: TaskEpisodicCopyDataset(num_seqs=10, **kw),
    "xml": lambda **kw: TaskXmlModelingDataset(num_seqs=10, limit_stack_depth=3, **kw),
    "variable": lambda **kw: TaskVariableAssignmentDataset(num_seqs=10, **kw),
    "number": lambda **kw: TaskNumberBaseConvertDataset(num_seqs=10, input_base=3, **kw),
    "copy": lambda **kw: CopyTaskDataset(nsymbols=4, minlen=1, maxlen=5, num_seqs=10, **kw),
    "dummy": lambda **kw: DummyDataset(2, 3, 10, seq_len=4, **kw),
    "dummy lens": lambda **kw: DummyDatasetMultipleSequenceLength(2, 3, 10, **kw),
    "dummy keys": lambda **kw: DummyDatasetMultipleDataKeys({"data": (2, 2), "x": (3, 1)}, 10, data_keys=["x", "data"], **kw),
    "generic": lambda **kw: DummyGenericDataset({"data": {"dim": 3}, "y": {"dim": 3, "sparse": True}}, 10, seq_lens=4, **kw),
    "static": lambda **kw: StaticDataset(static_data(), **kw),
    "map": lambda **kw: MapDatasetWrapper(
        FromListDataset(static_data(), data_types={"data": {"dim": 2}, "classes": {"dim": 10, "sparse": True}}), **kw
    ),
    "own": lambda **kw: OwnDataset(10, known=False, **kw),
    "cached": lambda **kw: RandomAccess(10, cache_byte_size=100, **kw),
}  # fmt: skip


def contents(dataset: Dataset, epoch: int) -> list[tuple[str, dict[str, list[Any]]]]:
    """:return: tag and data of each sequence of the epoch, by the life cycle of the contract"""
    dataset.init_seq_order(epoch=epoch)
    result = []
    idx = 0
    while dataset.is_less_than_num_seqs(idx):
        dataset.load_seqs(idx, idx + 1)
        data = {key: numpy.asarray(dataset.get_data(idx, key)).tolist() for key in dataset.get_data_keys()}
        result.append((dataset.get_tag(idx), data))
        idx += 1
    return result


# ---- pickling


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize("copy_func", [lambda d: pickle.loads(pickle.dumps(d)), copy.deepcopy])
def test_pickle_after_epoch_start(name: str, copy_func: Callable[[Dataset], Dataset]) -> None:
    dataset = ALL[name](name="train", seq_ordering="random", partition_epoch=2, random_seed_offset=3)
    expected = contents(dataset, 1), contents(dataset, 2), contents(dataset, 3)
    dataset.init_seq_order(epoch=4)
    dataset.load_seqs(0, 2)
    copied = copy_func(dataset)
    assert type(copied) is type(dataset)
    assert copied.epoch == 4
    assert copied.get_total_num_seqs() == dataset.get_total_num_seqs() == 10
    for attr in ("name", "seq_ordering", "partition_epoch", "random_seed_offset", "num_inputs"):
        assert getattr(copied, attr) == getattr(dataset, attr)
    assert str(copied.num_outputs) == str(dataset.num_outputs)
    assert (contents(copied, 1), contents(copied, 2), contents(copied, 3)) == expected
    assert sorted(tag for tag, _ in contents(copied, 1) + contents(copied, 2)) == sorted(copied.get_all_tags())


@pytest.mark.parametrize("name", list(ALL))
def test_common_contract(name: str) -> None:
    dataset = ALL[name](seq_ordering="random", fixed_random_seed=5)
    seqs = contents(dataset, 1)
    assert seqs == contents(dataset, 1)
    assert len({tag for tag, _ in seqs}) == 10
    dataset.init_seq_order(epoch=2)
    for i, (tag, data) in enumerate(seqs):
        lens = dataset.get_seq_length(i)
        assert dataset.get_tag(i) == tag
        assert dataset.get_complete_frac(i) == pytest.approx((i + 1) / 10) or name == "own"
        for key, value in data.items():
            assert lens[key] == len(value)
            dataset.load_seqs(i, i + 1)
            array = dataset.get_data(i, key)
            assert dataset.is_data_sparse(key) == (array.ndim == 1)
            assert dataset.get_data_shape(key) == ([] if array.ndim == 1 else [array.shape[-1]])
            if i == 0:
                assert str(dataset.get_data_dtype(key)) == str(array.dtype) or name == "map"
    dataset.finish_epoch()
    assert dataset.epoch is None


def test_pickle_by_arguments() -> None:
    dataset = RemapDataset("abc", flag=True, scratch=7, name="n", window=1, chunking="0")
    copied = pickle.loads(pickle.dumps(dataset))
    assert (copied.hidden, copied._flag, copied.used_scratch, copied.name) == ("abc", True, 3, "n")
    func, (cls, kwargs, state) = dataset.__reduce__()  # type: ignore[misc]
    assert func is Dataset._create_from_reduce and cls is RemapDataset and state == {"epoch": None}
    assert kwargs["source"] == "abc" and "scratch" not in kwargs and "window" not in kwargs


def test_pickle_of_a_class_that_fixes_arguments() -> None:
    copied = pickle.loads(pickle.dumps(FixedDataset(4)))
    assert (copied.size, copied.seq_ordering, copied.name) == (4, "reverse", "fixed")
    assert [tag for tag, _ in contents(copied, 1)] == ["tag-3", "tag-2", "tag-1", "tag-0"]


def test_pickle_into_a_fresh_process(tmp_path: Path) -> None:
    dataset = ALL["static"](seq_ordering="random")
    (tmp_path / "d.pkl").write_bytes(pickle.dumps(dataset))
    code = (
        "import pickle, sys\n"
        "d = pickle.load(open(sys.argv[1], 'rb'))\n"
        "d.init_seq_order(epoch=3)\n"
        "print([d.get_tag(i) for i in range(d.num_seqs)])\n"
        "assert 'torch' not in sys.modules\n"
    )
    root = Path(__file__).parent.parent.parent
    args = [sys.executable, "-c", code, str(tmp_path / "d.pkl")]
    out = subprocess.run(args, check=True, cwd=root, stdout=subprocess.PIPE, text=True).stdout
    assert out.strip() == str([tag for tag, _ in contents(dataset, 3)])


def test_pickle_of_forgotten_argument() -> None:
    class Forgets(Dataset):
        def __init__(self, foo: int) -> None:
            super().__init__()

    with pytest.raises(DatasetError, match=r"'foo' of .*Forgets.*Set self\.foo"):
        pickle.dumps(Forgets(3))


# ---- registry


def test_every_available_class_resolves() -> None:
    for name in registry.DATASET_CLASS_MODULES:
        cls = get_dataset_class(name)
        assert cls is not None and issubclass(cls, Dataset), name
    assert get_dataset_class("NoSuchDataset") is None
    assert get_dataset_class(OwnDataset) is OwnDataset
    assert get_dataset_class("returnn.datasets.generating.DummyDataset") is DummyDataset
    assert get_dataset_class("no.such.module.Class") is None
    with pytest.raises(AssertionError, match="not a subclass"):
        get_dataset_class(int)  # type: ignore[arg-type]


def test_table_is_complete() -> None:
    """Of the public classes; a module imports its base classes too."""
    for module_name in set(registry.DATASET_CLASS_MODULES.values()):
        module = importlib.import_module(module_name)
        for name in module.__all__:
            obj = getattr(module, name)
            if isinstance(obj, type) and issubclass(obj, Dataset):
                # A pipe needs its producer in the same process: not for dataset dicts.
                known = name in registry.DATASET_CLASS_MODULES or name == "SingleStreamPipeDataset"
                assert known or obj.__name__ != name, f"{module_name}.{name}"


@pytest.mark.parametrize("name", ["ExternSprintDataset", "SprintCacheDataset"])
def test_sprint_classes_are_refused_with_reason(name: str) -> None:
    with pytest.raises(NotSupportedError, match="RASR/Sprint.*HDFDataset"):
        init_dataset({"class": name})


def test_unknown_class() -> None:
    with pytest.raises(DatasetError, match="Dataset class 'DumyDataset' not found.*Did you mean 'DummyDataset'"):
        init_dataset({"class": "DumyDataset", "name": "train"})
    with pytest.raises(DatasetError, match="train"):
        init_dataset({"class": "xyz", "name": "train"})


def test_init_dataset_forms() -> None:
    opts = {"class": "DummyDataset", "input_dim": 2, "output_dim": 3, "num_seqs": 4}
    before = dict(opts)
    dataset = init_dataset(opts, extra_kwargs={"num_seqs": 5}, default_kwargs={"name": "train", "input_dim": 9})
    assert opts == before
    assert (dataset.name, dataset.get_total_num_seqs(), dataset.num_inputs) == ("train", 5, 2)
    assert init_dataset(dataset) is dataset
    assert init_dataset(lambda: opts, default_kwargs={"name": "x"}).name == "x"
    assert init_dataset(lambda: dataset) is dataset
    with pytest.raises(DatasetError, match=r"called without arguments.*missing a required .*argument: 'num'"):
        init_dataset(lambda num: {**opts, "num_seqs": num})  # type: ignore[arg-type,misc]
    assert init_dataset(str(opts)).get_total_num_seqs() == 4
    with global_config_ctx(Config({"my_data": opts})):
        assert init_dataset("config:my_data").get_total_num_seqs() == 4
        with pytest.raises(ConfigError, match="no global 'other'"):
            init_dataset("config:other")
        with pytest.raises(ConfigError, match="not evaluated"):
            init_dataset("config:f(3)")
    assert init_dataset_via_str("DummyDataset:input_dim=2,output_dim=3,num_seqs=4").num_inputs == 2


@pytest.mark.parametrize("bad", [None, {}, {"name": "x"}, 3, "foo.hdf", "{'class': __import__('os')}", [1]])
def test_init_dataset_bad_forms(bad: Any) -> None:
    with pytest.raises((AssertionError, ValueError)):
        init_dataset(bad)
    if bad == "foo.hdf":
        with pytest.raises(ValueError, match="Defining datasets via string is no longer allowed"):
            init_dataset(bad)


def test_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'num_foo'"):
        DummyDataset(input_dim=1, output_dim=1, num_seqs=1, num_foo=3)
    opts = {"class": "Task12AXDataset", "num_seqs": 3}
    text = r"^dataset train: Task12AXDataset has no option 'partition_epochs'. Did you mean 'partition_epoch'\?$"
    with pytest.raises(TypeError, match=text) as exc_info:
        init_dataset({**opts, "partition_epochs": 3}, default_kwargs={"name": "train"})
    assert isinstance(exc_info.value, DatasetError)
    with pytest.raises(DatasetError, match=r"no option 'xyzzy'. Its options are .*num_seqs, .*partition_epoch, [^_]"):
        init_dataset({**opts, "xyzzy": 3})
    with pytest.raises(DatasetError, match=r"DummyDataset needs the option 'input_dim', 'output_dim'.$"):
        init_dataset({"class": "DummyDataset", "num_seqs": 3})


def test_type_error_inside_of_a_dataset_stays_as_it_is() -> None:
    class Broken(DummyDataset):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(input_dim=1, output_dim=1, num_seqs=1, **kwargs)
            len(None)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="has no len") as exc_info:
        init_dataset({"class": Broken})
    assert not isinstance(exc_info.value, DatasetError)


def test_parent_dataset() -> None:
    parent = Dataset(random_seed_offset=7, _num_shards=3, _shard_index=1)
    opts = extend_dataset_dict_from_parent_dataset({"class": "X", "_shard_index": 2}, parent)
    assert opts == {"class": "X", "random_seed_offset": 7, "_num_shards": 3, "_shard_index": 2}
    child = init_dataset({"class": "Task12AXDataset", "num_seqs": 9}, parent_dataset=parent)
    child.init_seq_order(epoch=1)
    assert (child.random_seed_offset, child.num_seqs, child.get_tag(0)) == (7, 3, "seq-3")


# ---- options


@pytest.mark.parametrize(
    "opts", [{"window": None}, {"window": 0}, {"window": 1}, {"chunking": "0"}, {"chunking": 0}, {"min_chunk_size": 0}]
)
def test_neutral_legacy_options(opts: dict[str, Any]) -> None:
    Dataset(**opts)


@pytest.mark.parametrize(
    "opts", [{"window": 3}, {"chunking": "10:5"}, {"min_chunk_size": 3}, {"context_window": 2}, {"chunking_variance": 0.5},
             {"shuffle_frames_of_nseqs": 2}]
)  # fmt: skip
def test_legacy_options_are_refused_with_words(opts: dict[str, Any]) -> None:
    with pytest.raises(NotSupportedError, match=f"{next(iter(opts))}.*Instead: "):
        Dataset(**opts)


def test_attributes_after_construction() -> None:
    dataset = Dataset()
    assert dataset.name == f"dataset_id{id(dataset)}"
    assert (dataset.lock, dataset.rnd_seq_drop, dataset.num_inputs, dataset.num_outputs) == (None, None, 0, None)
    assert (dataset.labels, dataset.weights, dataset.epoch, dataset._num_timesteps, dataset._num_seqs) == (
        {},
        {},
        None,
        0,
        0,
    )
    assert repr(Dataset(name="train")) == "<Dataset 'train' epoch=None>"
    assert Dataset.from_config(None, name="x").name == "x"


def test_seed_offset_of_ranks() -> None:
    with process_state_ctx(rank=2):
        assert Dataset().random_seed_offset == 0
        with global_config_ctx(Config({"torch_distributed": {}})):
            assert Dataset().random_seed_offset == 0  # the ranks read parts of the same order
        with global_config_ctx(Config({"torch_distributed": {"data": "peers"}})):
            assert Dataset().random_seed_offset == 2 * 16127
    with global_config_ctx(Config({"use_horovod": True})), pytest.raises(NotImplementedError, match="torchrun"):
        _ = Dataset().random_seed_offset


# ---- methods


def test_convert_data_dims() -> None:
    assert convert_data_dims(5) == {"classes": (5, 1)}
    assert convert_data_dims({"data": 5, "classes": 7}) == {"data": (5, 2), "classes": (7, 1)}
    assert convert_data_dims({"data": [5, 1], "x": (3, 2)}) == {"data": (5, 1), "x": (3, 2)}
    assert convert_data_dims({"x": {"dim": 3}}, leave_dict_as_is=True) == {"x": {"dim": 3}}
    for bad in ("x", None, {"x": (1, 2, 3)}, {"x": ("a", 1)}, {"x": (3, 0)}, {"x": {"dim": 3}}, {"x": None}):
        with pytest.raises(AssertionError, match="ndim"):
            convert_data_dims(bad)  # type: ignore[arg-type]


def test_data_key_methods() -> None:
    dataset = Dataset()
    dataset.num_outputs = {
        "data": (5, 2),
        "x": [7, 1],
        "i": (3, 0),
        "img": (4, 3),
        "raw": {"dtype": "string", "shape": ()},
    }
    assert dataset.get_data_keys() == ["data", "classes"]
    expected = {
        "data": (5, False, "float32", [5]), "x": (7, True, "int32", []), "i": (3, True, "int32", []),
        "img": (4, False, "float32", [None, 4]), "raw": (1, False, "string", []),
        "foo": (1, True, "int32", []),
    }  # fmt: skip
    for key, values in expected.items():
        dim, dtype = dataset.get_data_dim(key), dataset.get_data_dtype(key)
        assert (dim, dataset.is_data_sparse(key), dtype, dataset.get_data_shape(key)) == values, key
    dataset.num_outputs = None
    assert (dataset.is_data_sparse("data"), dataset.is_data_sparse("x"), dataset.get_data_shape("data")) == (
        False,
        True,
        [1],
    )


def test_serialize() -> None:
    dataset = Dataset()
    dataset.labels = {"classes": ["ab", "c"], "chars": ["a", "b"]}
    assert dataset.can_serialize_data("classes") and not dataset.can_serialize_data("data")
    assert dataset.serialize_data("classes", numpy.array([0, 1])) == "ab c"
    assert dataset.serialize_data("classes", numpy.array(1)) == "c"
    assert dataset.serialize_data("chars", numpy.array([0, 1, 0])) == "aba"
    dataset.labels["classes"] = ["x", "yy"]
    assert dataset.serialize_data("classes", numpy.array([0, 1])) == "x yy"
    with pytest.raises(DatasetError, match="no labels for key 'data'"):
        dataset.serialize_data("data", numpy.array([0]))


def test_complete_frac() -> None:
    frac = Dataset.generic_complete_frac
    assert [frac(0, 10), frac(9, 10), frac(12, 10), frac(0, None), frac(1, None)] == [0.1, 1.0, 1.0, 1e-10, 1.0]


def test_not_implemented_parts() -> None:
    dataset = Dataset()
    with pytest.raises(NotImplementedError):
        _ = dataset.num_seqs
    for method in ("get_current_seq_order", "get_all_tags"):
        with pytest.raises(OptionalNotImplementedError):
            getattr(dataset, method)()
    for call in (
        lambda: dataset.get_data(0, "data"),
        lambda: dataset.get_data(0, "x"),
        lambda: dataset.get_seq_length(0),
    ):
        with pytest.raises(NotImplementedError):
            call()
    with pytest.raises(AssertionError, match="num_outputs"):
        dataset.initialize()
    assert dataset.estimated_num_seqs is None
    assert Dataset(estimated_num_seqs=7).estimated_num_seqs == 7
    assert dataset.len_info() == "Dataset, sequences: unknown, frames: unknown"
    with pytest.raises(AssertionError, match=r"load_seqs\(3, 1\)"):
        dataset.load_seqs(3, 1)
    dataset.load_seqs(2, 2)


def test_old_style_hooks() -> None:
    dataset = OldStyleDataset()
    dataset.initialize()
    assert dataset.init_seq_order(epoch=1) is False
    assert [len(data["classes"]) for _, data in contents(dataset, 1)] == [1, 2]
    assert dataset.get_total_num_seqs() == 2 and dataset.get_all_tags() == ["seq-0", "seq-1"]
    assert dataset.get_corpus_seq_idx(1) == 1
    assert dataset.have_seqs()
    dataset.partition_epoch = 2
    with pytest.raises(NotImplementedError, match="partition epoch 2"):
        dataset.get_total_num_seqs()
    with pytest.raises(NotImplementedError):
        dataset.get_corpus_seq_idx(1)


def test_corpus_seq_idx_with_partition() -> None:
    dataset = OwnDataset(10, partition_epoch=2)
    dataset.init_seq_order(epoch=2)
    assert dataset.get_corpus_seq_idx(0) == 5


def test_errors_of_num_seqs_are_not_hidden() -> None:
    class Broken(CachedDataset2):
        @property
        def num_seqs(self) -> int:
            raise ZeroDivisionError("real error")

    dataset = Broken()
    dataset.init_seq_order(epoch=1)
    for call in (lambda: dataset.is_less_than_num_seqs(0), lambda: dataset.estimated_num_seqs, lambda: dataset.get_complete_frac(0)):  # fmt: skip
        with pytest.raises(ZeroDivisionError):
            call()


def test_dataset_seq() -> None:
    features, classes = numpy.zeros((3, 2)), numpy.arange(4)
    seq = DatasetSeq(numpy.int64(2), features, targets=classes)  # type: ignore[arg-type]
    assert type(seq.seq_idx) is int and seq.seq_tag == "seq-2" and repr(seq) == "<DatasetSeq seq_idx=2>"
    assert seq.num_frames == NumbersDict({"data": 3, "classes": 4})
    assert list(seq.get_data_keys()) == ["data", "classes"] and seq.get_data("classes") is classes
    seq.seq_idx = 5
    assert seq.seq_tag == "seq-2"
    assert DatasetSeq(0, {"x": numpy.array(3)}).num_frames["x"] == 1
    assert list(DatasetSeq(0, features, targets={"y": classes}).features) == ["data", "y"]
    for args in ((0, {"x": [1]}), (0, {"x": classes}, classes), ("a", features), (0, [1, 2])):
        with pytest.raises(AssertionError):
            DatasetSeq(*args)  # type: ignore[arg-type]


# ---- bulk protocol


def test_bulk_protocol_of_static_dataset() -> None:
    dataset = StaticDataset(static_data(), seq_ordering="random")
    seqs = contents(dataset, 2)
    assert dataset.supports_bulk()
    lens = dataset.get_epoch_seq_lens("data")
    assert lens is not None and lens.tolist() == [len(data["data"]) for _, data in seqs]
    assert dataset.get_epoch_seq_lens("foo") is None
    idxs = numpy.array([4, 0, 9, 4])
    bulk = dataset.read_seqs(idxs, ["data", "classes"])
    assert bulk is not None
    for key, ragged in bulk.items():
        assert [ragged[i].tolist() for i in range(4)] == [seqs[i][1][key] for i in idxs]
    assert dataset.get_seq_tags(idxs) == [seqs[i][0] for i in idxs]
    empty = dataset.read_seqs(numpy.array([], dtype=int), ["data"])
    assert empty is not None and len(empty["data"]) == 0


def test_bulk_protocol_is_off_if_a_subclass_overrides_single_reads() -> None:
    class Louder(StaticDataset):
        def get_data(self, seq_idx: int, key: str) -> numpy.ndarray:
            return super().get_data(seq_idx, key) * 2

    class Renamed(StaticDataset):
        pass

    assert not Louder(static_data()).supports_bulk()
    mixed = [{"data": numpy.zeros((2, 3), dtype)} for dtype in ("float32", "float64")]
    assert not StaticDataset(mixed).supports_bulk()
    assert Renamed(static_data()).supports_bulk()
    assert not OwnDataset(3).supports_bulk()
    assert OwnDataset(3).read_seqs(numpy.array([0]), ["data"]) is None
    assert OwnDataset(3).get_epoch_seq_lens("data") is None


# ---- sharding


def test_apply_sharding_is_for_the_top_level_only() -> None:
    dataset = Dataset()
    assert not dataset.is_sharding_enabled() and dataset.apply_sharding([1, 2]) == [1, 2]
    with process_state_ctx(num_workers=2, worker_id=1):
        assert dataset.is_sharding_enabled()
        assert dataset.apply_sharding([1, 2, 3]) == [2] and dataset._sharding_applied
        child = Dataset()
        child._is_top_level = False
        assert child.apply_sharding([1, 2, 3]) == [1, 2, 3] and not child._sharding_applied


def test_worker_of_a_plain_torch_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    info = types.SimpleNamespace(id=1, num_workers=3)
    monkeypatch.setitem(sys.modules, "torch.utils.data", types.SimpleNamespace(get_worker_info=lambda: info))  # type: ignore[arg-type]
    assert Dataset().is_sharding_enabled()
    assert Dataset().apply_sharding(range(7)) == range(1, 7, 3)
    monkeypatch.setitem(sys.modules, "torch.utils.data", types.SimpleNamespace(get_worker_info=lambda: None))  # type: ignore[arg-type]
    assert not Dataset().is_sharding_enabled()


def test_shards_of_a_dataset_without_support() -> None:
    dataset = Task12AXDataset(_num_shards=2)
    with pytest.raises(AssertionError, match="does not support sharding, but got num_shards == 2"):
        dataset.init_seq_order(epoch=1)


# ---- imports and log


def test_import_without_torch() -> None:
    code = (
        "import sys, returnn.datasets, returnn.datasets.generating, returnn.datasets.map, returnn.datasets.numpy_dump;"
        "assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parent.parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_lines_go_to_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    monkeypatch.setattr("builtins.print", lambda *args, **kwargs: files.append((args[0], kwargs["file"])))
    init_dataset({"class": "Task12AXDataset", "num_seqs": 3, "name": "train"}).init_seq_order(epoch=1)
    assert files == [
        ("Created Dataset train", log.v2),
        ("  input:", log.v2),
        ("  output:", log.v2),
        ("  Task12AXDataset, sequences: 3, frames: unknown", log.v2),
    ]


def test_map_style_class_given_as_dataset_says_how_to_wrap_it() -> None:
    class Mine(MapDatasetBase):
        pass

    with pytest.raises(AssertionError, match=r'"MapDatasetWrapper", "map_dataset": Mine'):
        init_dataset({"class": Mine})
