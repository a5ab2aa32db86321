"""
Columns of HuggingFace datasets: what type they declare, and their values as numpy arrays, directly from Arrow.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from returnn.datasets.util.vocabulary import Vocabulary
from returnn.errors import DataFileError, DatasetError, DatasetOptionError
from returnn.util.optional_import import optional_import

__all__ = ["Column", "make_column", "arrow_shard_files"]

_LIST_TYPES = ("List", "LargeList", "Sequence")
_FORMAT_OPTIONS = ("dim", "ndim", "shape", "dtype", "sparse", "vocab")


@dataclasses.dataclass(frozen=True)
class Column:
    """
    :param name: of the column
    :param kind: "values" (numbers, in nested lists), "text", "tokens" (text through a vocabulary), "audio", "bytes"
    :param dtype: of the data, or "string"
    :param shape: all axes of one sequence, None where the size differs
    :param dim: number of classes if sparse; else size of the last axis, 1 if there is none
    :param sparse: class indices
    :param labels: of the classes
    :param vocab: for "tokens"
    :param sampling_rate: wanted one, for "audio"
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int | None, ...]
    dim: int
    sparse: bool = False
    labels: Sequence[str] | None = None
    vocab: Vocabulary | None = None
    sampling_rate: int | None = None

    @property
    def has_known_lens(self) -> bool:
        """:return: whether lengths are known without making the data"""
        return self.kind == "values"

    def decode(self, chunked: Any, where: str) -> list[numpy.ndarray]:
        """
        :param chunked: pyarrow.ChunkedArray (Any: optional package), one entry per sequence
        :param where: dataset, for errors
        :return: per sequence an array of the declared dtype
        :raises DatasetError: missing values, or inner axes of different sizes
        """
        array = _plain(chunked.combine_chunks() if hasattr(chunked, "combine_chunks") else chunked)
        if array.null_count:
            raise DatasetError(f"{where}: column {self.name!r} has missing values (null). Filter them with map_func.")
        if self.kind == "values":
            dtype = numpy.dtype(self.dtype)
            if not self.shape:
                return [numpy.asarray(value, dtype=dtype) for value in array.to_numpy(zero_copy_only=False)]
            return [self._nested(array[i].values, len(self.shape) - 1).astype(dtype) for i in range(len(array))]
        values = array.to_pylist()
        if self.kind == "text":
            return [numpy.array(value) for value in values]
        if self.kind == "tokens":
            assert self.vocab is not None
            return [numpy.array(self.vocab.get_seq(value), dtype=self.dtype) for value in values]
        raw = [_audio_bytes(value, f"{where}, column {self.name!r}") for value in values]
        if self.kind == "bytes":
            return [numpy.frombuffer(content, dtype=numpy.uint8) for content in raw]
        return [self._decode_audio(content, where) for content in raw]

    def _nested(self, array: Any, depth: int) -> numpy.ndarray:
        """:return: depth + 1 axes. Any: pyarrow.Array"""
        array = _plain(array)
        if array.null_count:
            raise DatasetError(f"column {self.name!r} has missing values (null) in a list.")
        if not depth:
            result: numpy.ndarray = array.to_numpy(zero_copy_only=False)
            return result
        inner = self._nested(array.flatten(), depth - 1)
        sizes = numpy.array([len(item.values) for item in array]) if len(array) else numpy.zeros(0, dtype=int)
        if len(set(sizes.tolist())) > 1:
            raise DatasetError(
                f"column {self.name!r}: lists inside of a sequence have different sizes ({sizes[:5].tolist()} ..): only "
                "the first axis may differ between sequences."
            )
        size = int(sizes[0]) if len(sizes) else (self.shape[len(self.shape) - depth] or 0)
        return inner.reshape((len(array), size, *inner.shape[1:]))

    def _decode_audio(self, content: bytes, where: str) -> numpy.ndarray:
        soundfile = optional_import("soundfile", needed_by=f"audio column {self.name!r} of {where}")
        try:
            samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
        except Exception as exc:  # soundfile's own types
            raise DataFileError(f"{where}: column {self.name!r}: audio cannot be decoded: {exc}.") from exc
        if self.sampling_rate and rate != self.sampling_rate:
            raise DatasetError(
                f"{where}: column {self.name!r}: audio of {rate} Hz, but the column declares {self.sampling_rate} Hz. "
                "Resample it before, or set cast_columns to an Audio feature without sampling_rate."
            )
        mono: numpy.ndarray = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype="float32")
        return mono


def _plain(array: Any) -> Any:
    """:return: without extension type (ArrayXD)"""
    return array.storage if hasattr(array, "storage") else array


def _audio_bytes(value: Mapping[str, Any], where: str) -> bytes:
    content = value.get("bytes")
    if content is not None:
        return bytes(content)
    try:
        with open(value["path"], "rb") as f:
            return f.read()
    except (OSError, TypeError) as exc:
        raise DataFileError(f"{where}: cannot read the audio file {value.get('path')!r}: {exc}.") from exc


@dataclasses.dataclass
class _Inferred:
    kind: str
    dtype: str
    shape: list[int | None]
    labels: list[str] | None = None
    sampling_rate: int | None = None


def _infer(feature: Any, where: str) -> _Inferred:
    """:return: type of one column. Any: classes of the package `datasets`"""
    name = type(feature).__name__
    if isinstance(feature, list):  # old form of List
        name, inner, length = "List", feature[0], -1
    elif name in _LIST_TYPES:
        inner, length = feature.feature, getattr(feature, "length", -1)
    if name in _LIST_TYPES:
        result = _infer(inner, where)
        if result.kind != "values":
            raise DatasetError(f"{where}: lists of {type(inner).__name__} ({result.dtype}) are not supported.")
        result.shape = [length if length >= 0 else None, *result.shape]
        return result
    if name == "Value":
        if feature.dtype in ("string", "large_string"):
            return _Inferred("text", "string", [])
        try:
            dtype = numpy.dtype(feature.dtype)
        except TypeError as exc:
            raise DatasetError(f"{where}: values of type {feature.dtype} are not supported.") from exc
        return _Inferred("values", str(dtype), [])
    if name == "ClassLabel":
        return _Inferred("values", "int64", [], labels=list(feature.names))
    if re.fullmatch(r"Array\dD", name):
        return _Inferred("values", feature.dtype, list(feature.shape))
    if name == "Audio":
        if not getattr(feature, "decode", True):
            return _Inferred("bytes", "uint8", [None])
        return _Inferred("audio", "float32", [None], sampling_rate=feature.sampling_rate)
    raise DatasetError(f"{where}: columns of type {name} are not supported. Convert it with map_func.")


def make_column(name: str, feature: Any, opts: Mapping[str, Any], *, where: str) -> Column:
    """
    :param name: of the column
    :param feature: its type. Any: classes of the package `datasets`
    :param opts: entry of the option data_format: dim, ndim, shape, dtype, sparse, vocab. Any: these
    :param where: dataset, for errors
    :raises DatasetOptionError: they do not fit
    """
    where = f"{where}, column {name!r}"
    if not isinstance(opts, Mapping):
        raise DatasetOptionError(f"{where}: data_format must be a dict, e.g. {{'dim': 10}}, got {opts!r}.")
    unknown = [key for key in opts if key not in _FORMAT_OPTIONS]
    if unknown:
        raise DatasetOptionError(f"{where}: unknown data_format options {unknown}, known are {_FORMAT_OPTIONS}.")
    inferred = _infer(feature, where)
    vocab_opts = opts.get("vocab")
    vocab = None
    if vocab_opts is not None:
        vocab = Vocabulary.from_option(vocab_opts, option="vocab", where=where)
        if inferred.kind == "text":
            inferred = _Inferred("tokens", opts.get("dtype", "int32"), [None])
        inferred.labels = list(vocab.labels)
    shape = tuple(inferred.shape)
    static_last = shape[-1] if shape else None
    sparse = bool(opts.get("sparse", inferred.labels is not None))
    labels_dim = len(inferred.labels) if inferred.labels is not None else None
    checks: list[tuple[str, Any, bool]] = [
        ("dtype", inferred.dtype, opts.get("dtype", inferred.dtype) == inferred.dtype),
        ("ndim", len(shape), opts.get("ndim", len(shape)) == len(shape)),
    ]
    if opts.get("shape") is not None:
        given = tuple(opts["shape"])
        fits = len(given) == len(shape) and all(
            a == b or a is None or b is None for a, b in zip(given, shape, strict=True)
        )
        checks.append(("shape", shape, fits))
        shape = tuple(a if a is not None else b for a, b in zip(given, shape, strict=True)) if fits else shape
        static_last = shape[-1] if shape else None
    known_dim = labels_dim if sparse else static_last
    if known_dim is not None:
        checks.append(("dim", known_dim, opts.get("dim") in (None, known_dim)))
    for option, expected, is_right in checks:
        if not is_right:
            raise DatasetOptionError(
                f"{where}: data_format option {option!r} = {opts.get(option)!r} does not fit to the data, which has "
                f"{expected!r} (type {feature!r}). Change it, or convert the column with cast_columns."
            )
    dim = opts.get("dim") or known_dim
    if dim is None and sparse:
        raise DatasetOptionError(f"{where}: sparse data needs 'dim', the number of classes, or 'vocab'.")
    if not sparse and len(shape) >= 2 and shape[-1] is None and dim is not None:
        shape = (*shape[:-1], dim)
    return Column(
        name,
        inferred.kind,
        inferred.dtype,
        shape,
        int(dim or 1),
        sparse,
        inferred.labels,
        vocab if inferred.kind == "tokens" else None,
        inferred.sampling_rate,
    )


def arrow_shard_files(hf_data_dir: str | os.PathLike[str]) -> list[str]:
    """
    :param hf_data_dir: folder that ``Dataset.save_to_disk`` wrote
    :return: its Arrow files ``PREFIX-00000-of-000NN.arrow``, by number
    :raises DataFileError: it is no such folder, or files are missing
    """
    folder = os.fspath(hf_data_dir)
    for name in ("state.json", "dataset_info.json"):
        if not os.path.isfile(os.path.join(folder, name)):
            hint = " It holds several splits: choose one of its folders." if os.path.exists(
                os.path.join(folder, "dataset_dict.json")
            ) else " Expected a folder written by Dataset.save_to_disk."  # fmt: skip
            raise DataFileError(f"{folder!r} has no {name}.{hint}")
    found: dict[str, dict[int, str]] = {}
    for name in os.listdir(folder):
        match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.arrow", name)
        if match:
            found.setdefault(f"{match[1]}-*-of-{match[3]}.arrow", {})[int(match[2])] = name
    if len(found) != 1:
        raise DataFileError(
            f"{folder!r}: expected Arrow files PREFIX-00000-of-000NN.arrow of one kind, got {sorted(found) or 'none'}."
        )
    ((pattern, by_number),) = found.items()
    num = int(pattern[-11:-6])
    missing = [i for i in range(num) if i not in by_number]
    if missing or len(by_number) != num:
        raise DataFileError(f"{folder!r}: of the files {pattern}, numbers {missing[:5]} are missing.")
    return [os.path.join(folder, by_number[i]) for i in range(num)]
