"""Which classes can start reading at any sequence of an epoch. Those that need files of their own: in their test files."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy
import pytest

from returnn.datasets.basic import Dataset, DatasetSeq, init_dataset
from returnn.datasets.generating import GeneratingDataset
from returnn.datasets.hdf import HDFDataset
from returnn.datasets.map import FromListDataset, MapDatasetBase
from tests.datasets.combining_data import StreamDataset, a_or_b, hdf
from tests.datasets.everyday_use import check_jump
from tests.datasets.proc_functions import add_random, drop_every_second

GOLDEN = Path(__file__).parents[1] / "golden"
LM = GOLDEN / "05-audio-text" / "lm"
FEAT = {"class": "HDFDataset", "files": [str(GOLDEN / "04-datasets-meta" / "feat.hdf")]}
LAB = {"class": "HDFDataset", "files": [str(GOLDEN / "04-datasets-meta" / "lab_perm.hdf")]}
SAMPLING = {
    "class": "SamplingBytePairEncoding",
    "vocab_file": str(GOLDEN / "05-audio-text" / "vocab" / "demo.vocab"),
    "breadth_prob": 0.5,
    "unknown_label": "<unk>",
}
OGG_TEXTS = {
    "class": "OggZipDataset",
    "path": str(GOLDEN / "05-audio-text" / "oggzip" / "demo_noaudio.zip"),
    "audio": None,
    "targets": SAMPLING,
    "seq_ordering": "random",
}
LM_SAMPLING = {
    "class": "LmDataset",
    "corpus_file": [str(LM / "phon.txt"), str(LM / "corpus.xml")],
    "orth_vocab": SAMPLING,
    "seq_ordering": "random",
}
LM_PHONES = {
    "class": "LmDataset",
    "corpus_file": str(LM / "phon.txt"),
    "phone_info": {"lexicon_file": str(LM / "lexicon.xml"), "repetition": 0.5},
    "add_random_phone_seqs": 1,
}
STATIC: dict[str, Any] = {
    "class": "StaticDataset",
    "data": [{"data": numpy.full((i % 4 + 1, 2), i, "f"), "classes": numpy.arange(i % 3)} for i in range(13)],
    "seq_ordering": "laplace:.2",
}
ANYTHING = {"class": "AnythingDataset", "data_keys": {"data": {"dim": 2, "shape": (None, 2)}}}
TWO = {"datasets": {"a": hdf("c_a"), "b": hdf("c_b")}, "data_map": {("a", "data"): "data", ("b", "data"): "data"}}


def _meta(**children: Any) -> dict[str, Any]:
    """:param children: of the same sequences as "feat". Any: options of datasets"""
    datasets = {"feat": {**FEAT, "seq_ordering": "random", "partition_epoch": 2}, **children}
    data_map = {"data" if key == "feat" else key: (key, "data") for key in datasets}
    return {
        "class": "MetaDataset",
        "datasets": datasets,
        "data_map": data_map,
        "seq_order_control_dataset": "feat",
    }


def _dummy(num_seqs: float = 20, **opts: Any) -> dict[str, Any]:
    return {"class": "CopyTaskDataset", "nsymbols": 10, "minlen": 1, "maxlen": 9, "num_seqs": num_seqs, **opts}


def _postproc(dataset: Any, **opts: Any) -> dict[str, Any]:
    return {"class": "PostprocessingDataset", "dataset": dataset, **opts}


MULTI_OF_OGG = {"class": "MultiEpochDataset", "dataset": OGG_TEXTS, "multi_epoch": 2}
JUMPING: dict[str, dict[str, Any]] = {
    "hdf": {**FEAT, "seq_ordering": "laplace:.4", "partition_epoch": 2},
    "hdf_cached": {**FEAT, "seq_ordering": "random", "cache_byte_size": 1000},
    "static": STATIC,
    "meta": _meta(lab=LAB, filler=ANYTHING),
    "ogg": OGG_TEXTS,
    "lm_sampling": LM_SAMPLING,
    "lm_phones": LM_PHONES,
    "text_dict": {
        "class": "TextDictDataset",
        "filename": str(LM / "dict_nbest.txt"),
        "vocab": SAMPLING,
        "seq_ordering": "random",
    },
    "copy_task": _dummy(seq_ordering="random"),
    "copy_task_without_end": _dummy(float("inf")),
    "12ax": {"class": "Task12AXDataset", "num_seqs": 10, "seq_ordering": "random"},
    "dummy": {"class": "DummyDataset", "input_dim": 3, "output_dim": 4, "num_seqs": 20},
    "generic": {"class": "DummyGenericDataset", "data_template": {"data": {"dim": 3}}, "num_seqs": 10},
    "anything": ANYTHING,
    "combined": {"class": "CombinedDataset", **TWO, "seq_ordering": "laplace:.3", "partition_epoch": 2},
    "interleave": {"class": "CombinedDataset", **TWO, "seq_ordering": "interleave", "interleave_gumbel_scale": 1.0},
    "concat": {"class": "ConcatDataset", "datasets": [hdf("c_a", seq_ordering="random"), hdf("c_b")]},
    "variable": {"class": "VariableDataset", "get_dataset": a_or_b},
    "multi_epoch": {"class": "MultiEpochDataset", "dataset": hdf("c_a", seq_ordering="random"), "multi_epoch": 3},
    "multi_epoch_not_bulk": MULTI_OF_OGG,
    "map": {
        "class": "MapDatasetWrapper",
        "map_dataset": lambda **_: FromListDataset(STATIC["data"], "data"),
        "seq_ordering": "random",
    },
    "postprocessing": _postproc({**FEAT, "seq_ordering": "random"}, map_seq=add_random),
    "postprocessing_partial": _postproc(FEAT, map_seq=functools.partial(add_random)),
    "postprocessing_of_postprocessing": _postproc(_postproc(FEAT, map_seq=add_random), map_seq=add_random),
}


@pytest.mark.parametrize("name", JUMPING)
def test_jump(name: str) -> None:
    check_jump(JUMPING[name])


class UserHdf(HDFDataset):
    """Has its own stream of random numbers."""

    def get_data(self, seq_idx: int, key: str) -> numpy.ndarray:
        return super().get_data(seq_idx, key)


class UserHdfWithName(HDFDataset):
    """Changes nothing about reading."""

    def get_tag(self, sorted_seq_idx: int) -> str:
        return "x" + super().get_tag(sorted_seq_idx)


class UserHdfThatKnows(UserHdf):
    """Says it."""

    def supports_jump(self) -> bool:
        return True


class UserGenerating(GeneratingDataset):
    """May keep anything."""

    def generate_seq(self, seq_idx: int) -> DatasetSeq:
        return DatasetSeq(seq_idx, numpy.zeros((1, 1), "f"))


class UserMap(FromListDataset):
    """May keep anything."""

    def __getitem__(self, seq_idx: int) -> dict[str, numpy.ndarray]:
        return super().__getitem__(seq_idx)


class Counting:
    """Function with a state."""

    def __call__(self, tensor_dict: Any, **_kwargs: Any) -> Any:
        return tensor_dict


class CountingText:
    """Likewise."""

    def __call__(self, text: str) -> str:
        return text


def _user(cls: type[Dataset], **opts: Any) -> dict[str, Any]:
    return {**FEAT, "class": cls, **opts}


NOT_JUMPING: dict[str, dict[str, Any]] = {
    "one_stream_of_draws_ogg": {**OGG_TEXTS, "random_state_per_seq": False},
    "one_stream_of_draws_lm": {**LM_PHONES, "random_state_per_seq": False},
    "one_stream_of_draws_text_dict": {**JUMPING["text_dict"], "random_state_per_seq": False},
    "one_stream_of_draws_map_seq": _postproc(FEAT, map_seq=add_random, random_state_per_seq=False),
    "skips": {
        "class": "LmDataset",
        "corpus_file": str(LM / "corpus.txt"),
        "orth_vocab": {"class": "Utf8ByteTargets"},
        "error_on_invalid_seq": False,
    },
    "user_hdf": _user(UserHdf),
    "meta_of_user_hdf": _meta(user=_user(UserHdf)),
    "combined_of_user_hdf": {
        "class": "CombinedDataset",
        "datasets": {"a": _user(UserHdf), "b": FEAT},
        "data_map": {("a", "data"): "data", ("b", "data"): "data"},
        "seq_ordering": "random",
    },
    "concat_of_user_hdf": {"class": "ConcatDataset", "datasets": [FEAT, _user(UserHdf)]},
    "multi_epoch_of_user_hdf": {"class": "MultiEpochDataset", "dataset": _user(UserHdf), "multi_epoch": 2},
    "multi_epoch_without_number": {
        "class": "MultiEpochDataset",
        "dataset": {"class": StreamDataset, "num": 5},
        "multi_epoch": 2,
    },
    "postprocessing_of_user_hdf": _postproc(_user(UserHdf), map_seq=add_random),
    "map_seq_with_state": _postproc(FEAT, map_seq=Counting()),
    "map_seq_stream": _postproc(FEAT, map_seq_stream=drop_every_second),
    "text_function_with_state": {
        **LM_SAMPLING,
        "orth_post_process": CountingText(),
    },
    "text_function_with_state_in_list": {**OGG_TEXTS, "targets_post_process": ["lowercase", CountingText()]},
    "on_demand": {
        "class": "CombinedDataset",
        "datasets": {"a": FEAT, "b": {"class": StreamDataset, "num": 5}},
        "data_map": {("a", "data"): "data", ("b", "data"): "other"},
    },
    "user_generating": {"class": UserGenerating, "input_dim": 1, "output_dim": 2, "num_seqs": 3},
    "user_stream": {"class": StreamDataset, "num": 5},
    "user_map": {"class": "MapDatasetWrapper", "map_dataset": lambda **_: UserMap(STATIC["data"])},
}


@pytest.mark.parametrize("name", NOT_JUMPING)
def test_does_not_say_that_it_can(name: str) -> None:
    dataset = init_dataset(NOT_JUMPING[name])
    dataset.set_random_per_seq(True)
    dataset.init_seq_order(epoch=1)
    assert dataset.supports_jump() is False


@pytest.mark.parametrize("cls", [UserHdfWithName, UserHdfThatKnows])
def test_classes_of_users_that_can(cls: type[Dataset]) -> None:
    check_jump(_user(cls))


def test_draws_outside_of_the_loader_are_one_stream() -> None:
    """As the peers draw them; without draws it makes no difference."""
    dataset = init_dataset(OGG_TEXTS)
    dataset.init_seq_order(epoch=1)
    assert not dataset.supports_jump()
    dataset = init_dataset({**OGG_TEXTS, "targets": {"class": "Utf8ByteTargets"}})
    dataset.init_seq_order(epoch=1)
    assert dataset.supports_jump()


def test_map_datasets_say_it_themselves() -> None:
    class OnlyByIndex(MapDatasetBase):
        """As a user writes it."""

        def __len__(self) -> int:
            return 9

        def __getitem__(self, seq_idx: int) -> dict[str, numpy.ndarray]:
            return {"data": numpy.full((seq_idx + 1, 1), seq_idx, "f")}

        def supports_jump(self) -> bool:
            return True

    check_jump({"class": "MapDatasetWrapper", "map_dataset": OnlyByIndex, "seq_ordering": "random"})


def test_multi_epoch_of_not_bulk_knows_its_end() -> None:
    """is_less_than_num_seqs loads nothing; the number of sequences is known behind the end, as before."""
    dataset = init_dataset(MULTI_OF_OGG)
    dataset.set_random_per_seq(True)
    dataset.init_seq_order(epoch=1)
    total = 2 * dataset.child_datasets()[0].num_seqs  # type: ignore[index]
    assert dataset.is_less_than_num_seqs(total - 1) and not dataset.added_data  # type: ignore[attr-defined]
    assert not dataset.is_less_than_num_seqs(total)
    assert dataset.num_seqs == total
    dataset.load_seqs(0, 1)
    assert dataset.get_tag(0)
