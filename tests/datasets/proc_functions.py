"""Functions for tests of PostprocessingDataset, importable in processes, without torch."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy

from returnn.tensor import Dim, Tensor, TensorDict
from returnn.util.file_cache import CachedFile


def add_random(tensor_dict: TensorDict, *, rng: numpy.random.RandomState, **_kwargs: Any) -> TensorDict:
    """:return: with a random number added"""
    data = tensor_dict.data["data"]
    data.raw_tensor = data.raw_tensor + numpy.float32(rng.randint(1000))
    return tensor_dict


def replace_by_random(
    iterator: Iterator[TensorDict], *, rng: numpy.random.RandomState, **_kwargs: Any
) -> Iterator[TensorDict]:
    """:return: with random numbers as data"""
    for tensor_dict in iterator:
        data = tensor_dict.data["data"]
        data.raw_tensor = numpy.full_like(data.raw_tensor, rng.randint(1000))
        yield tensor_dict


def drop_every_second(iterator: Iterator[TensorDict], **_kwargs: Any) -> Iterator[TensorDict]:
    """:return: the first, third, .."""
    return itertools.islice(iterator, 0, None, 2)


def duplicate(iterator: Iterator[TensorDict], **_kwargs: Any) -> Iterator[TensorDict]:
    """:return: each twice, without meta entries"""
    for tensor_dict in iterator:
        for _ in range(2):
            yield TensorDict({"data": tensor_dict.data["data"]})


def to_labels(tensor_dict: TensorDict, **_kwargs: Any) -> TensorDict:
    """:return: new streams, from scratch"""
    data = tensor_dict.data["data"].raw_tensor
    time = Dim(None, name="time")
    classes = Dim(5, name="classes")
    labels = Tensor("labels", [time], "int32", sparse_dim=classes, raw_tensor=(data[:, 0] % 5).astype("int32"))
    mean = Tensor("mean", [], "float32", raw_tensor=data.mean(dtype="float32"))
    return TensorDict({"labels": labels, "mean": mean})


def check_input(tensor_dict: TensorDict, *, epoch: int, seq_idx: int, **kwargs: Any) -> TensorDict:
    """Checks what it gets."""
    assert any("fwd_compat" in key for key in kwargs)
    data = tensor_dict.data["data"]
    assert isinstance(data.raw_tensor, numpy.ndarray) and data.dtype == "float32"
    assert [d.dimension for d in data.dims] == [None, 3] and data.feature_dim is data.dims[1]
    assert tensor_dict.data["seq_idx"].raw_tensor == seq_idx and tensor_dict.data["seq_idx"].dtype == "int32"
    assert str(tensor_dict.data["seq_tag"].raw_tensor).startswith("corp/")
    frac = tensor_dict.data["complete_frac"].raw_tensor
    assert frac.dtype == "float32" and abs(frac - (seq_idx + 1) / 17) < 1e-6 and epoch == 2
    assert data.copy_template().raw_tensor is None
    return tensor_dict


def fail_at_third(tensor_dict: TensorDict, *, seq_idx: int, **_kwargs: Any) -> TensorDict:
    """Fails, or dies if the tag says so."""
    if seq_idx == 2:
        raise KeyError("a bug")
    return tensor_dict


def raise_stop_iteration(tensor_dict: TensorDict, **_kwargs: Any) -> TensorDict:
    """:return: nothing, by a frequent mistake"""
    return next(iter([]))


def die_at_third(tensor_dict: TensorDict, *, seq_idx: int, **_kwargs: Any) -> TensorDict:
    """Kills its process."""
    if seq_idx == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return tensor_dict


def swallow_everything(iterator: Iterator[TensorDict], **_kwargs: Any) -> Iterator[TensorDict]:
    """Catches all exceptions of its input."""
    try:
        yield from iterator
    except Exception:
        yield from ()


def wrong_frac(iterator: Iterator[TensorDict], **_kwargs: Any) -> Iterator[TensorDict]:
    """:return: with a complete_frac that decreases"""
    for tensor_dict, frac in zip(iterator, (0.5, 0.25), strict=False):
        tensor_dict.data["complete_frac"].raw_tensor = numpy.float32(frac)
        yield tensor_dict


def no_tensor_dict(tensor_dict: TensorDict, **_kwargs: Any) -> Any:
    """:return: a dict"""
    return tensor_dict.data


def hdf_of_files(files: list[Any], **opts: Any) -> dict[str, Any]:
    """:return: dataset dict"""
    return {"class": "HDFDataset", "files": files, **opts}


def cached_hdf_of_files(files: list[Any]) -> dict[str, Any]:
    """:return: dataset dict, with local copies"""
    return {"class": "HDFDataset", "files": [CachedFile(f) for f in files], "seq_ordering": "default"}
