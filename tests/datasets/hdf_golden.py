"""Compares HDF files and datasets with the golden descriptions of tests/golden/03-hdf."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from returnn.datasets.basic import Dataset

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "03-hdf"


def load_golden(name: str) -> dict[str, Any]:
    """:return: content of the json file. Any: json"""
    with open(GOLDEN / f"{name}.json", encoding="utf8") as file:
        content: dict[str, Any] = json.load(file)
    return content


def sha(data: np.ndarray) -> str:
    """:return: digest as in the golden files"""
    if data.dtype.kind == "O":
        raw = b"\0".join(
            item if isinstance(item, bytes) else str(item).encode("utf8") for item in data.reshape(-1).tolist()
        )
    else:
        raw = np.ascontiguousarray(data).tobytes()
    return hashlib.sha256(raw).hexdigest()[:16]


def iterate(dataset: Dataset) -> list[dict[str, Any]]:
    """:return: all sequences of the epoch by the per-sequence protocol"""
    seqs = []
    i = 0
    while dataset.is_less_than_num_seqs(i):
        dataset.load_seqs(i, i + 1)
        seqs.append(
            {
                "tag": dataset.get_tag(i),
                "len": dict(dataset.get_seq_length(i).items()),
                "data": {key: dataset.get_data(i, key) for key in dataset.get_data_keys()},
            }
        )
        i += 1
    return seqs


def check_readback(dataset: Dataset, expected: dict[str, Any]) -> None:
    """
    :param dataset: with an order
    :param expected: entry "readback" of a golden file
    """
    targets = expected["target_list"]
    # The peers give files without inputs a key "data" (maybe twice): one of the listed weaknesses.
    keys = (["data"] if expected["num_inputs"] else []) + targets
    assert dataset.get_data_keys() == keys
    assert dataset.get_target_list() == targets
    assert (dataset.num_inputs or 0) == expected["num_inputs"]
    assert {key: list(dims) for key, dims in (dataset.num_outputs or {}).items()} == expected["num_outputs"]
    labels = {key: list(values) for key, values in dataset.labels.items()}
    if "data" not in expected["labels"]:
        labels.pop("data", None)  # in addition to "classes", where the peers have only one
    assert labels == expected["labels"]
    for key in keys:
        info = expected["keys"][key]
        assert dataset.get_data_dim(key) == info["dim"], key
        assert dataset.get_data_dtype(key) == info["dtype"], key
        assert dataset.is_data_sparse(key) == info["sparse"], key
        assert dataset.get_data_shape(key) == info["shape"], key
    seqs = iterate(dataset)
    assert len(seqs) == expected["num_seqs"] == dataset.num_seqs
    for seq, expected_seq in zip(seqs, expected["seqs"], strict=True):
        assert seq["tag"] == expected_seq["tag"]
        assert seq["len"] == expected_seq["len"]
        for key in keys:
            data, info = seq["data"][key], expected_seq["data"][key]
            assert list(data.shape) == info["shape"]
            assert data.dtype.name == info["dtype"]
            assert sha(data) == info["sha"]
    assert dataset.get_total_num_seqs() == expected["total_num_seqs"]


def _dtype_text(dataset: h5py.Dataset) -> str:
    info = h5py.check_string_dtype(dataset.dtype)
    if info is None:
        return str(dataset.dtype.name)
    if info.length is None:
        return f"vlen-{info.encoding}"
    return f"fixed{info.length}-{info.encoding}"


def get_structure(path: Path) -> dict[str, Any]:
    """:return: as "structure" in the golden files, without chunk shapes"""
    objects: list[dict[str, Any]] = []

    def _attrs(obj: h5py.HLObject) -> dict[str, Any]:
        res = {}
        for name, value in obj.attrs.items():
            entry = {"value": np.asarray(value).tolist(), "dtype": np.asarray(value).dtype.name}
            if np.ndim(value):
                entry["shape"] = list(np.shape(value))
            res[name] = entry
        return res

    def _visit(name: str, obj: h5py.HLObject) -> None:
        entry: dict[str, Any] = {"name": name}
        if isinstance(obj, h5py.Dataset):
            entry.update(shape=list(obj.shape), maxshape=list(obj.maxshape), dtype=_dtype_text(obj))
        if len(obj.attrs):
            entry["attrs"] = _attrs(obj)
        objects.append(entry)

    with h5py.File(path, "r") as h5_file:
        h5_file.visititems(_visit)
        return {"root_attrs": _attrs(h5_file), "objects": sorted(objects, key=lambda entry: str(entry["name"]))}


def check_structure(path: Path, name: str) -> None:
    """
    :param path: written by us
    :param name: of the golden file
    """
    (expected,) = load_golden(name)["structure"].values()
    for entry in expected["objects"]:
        entry.pop("chunks", None)
    got = get_structure(path)
    got["root_attrs"] = {
        k: {kk: vv for kk, vv in v.items() if kk in expected["root_attrs"][k]} for k, v in got["root_attrs"].items()
    }
    assert got["root_attrs"] == expected["root_attrs"]
    assert got["objects"] == sorted(expected["objects"], key=lambda entry: str(entry["name"]))
