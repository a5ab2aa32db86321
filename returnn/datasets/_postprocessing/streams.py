"""
What the functions of the user get and give: sequences as TensorDict, checked against what was declared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from returnn.datasets._basic.data_dims import dim_and_ndim
from returnn.datasets._procs.dataset_server import DatasetInfo
from returnn.datasets.util.vocabulary import Vocabulary
from returnn.errors import DatasetError, DatasetOptionError
from returnn.tensor import Dim, Tensor, TensorDict

__all__ = ["StreamSpec", "Seq", "SeqConverter", "specs_of_info", "specs_of_options"]

_META_KEYS = ("complete_frac", "seq_idx", "seq_tag")


@dataclasses.dataclass(frozen=True)
class StreamSpec:
    """
    :param dtype: of numpy, or "string"
    :param shape: all axes of one sequence, None where the size differs
    :param num_classes: if the values are class indices
    :param labels: of these
    """

    dtype: str
    shape: tuple[int | None, ...]
    num_classes: int | None = None
    labels: Sequence[str] | None = None

    @property
    def dim(self) -> int:
        """:return: number of classes, or size of the last axis; 1 if there is no such axis"""
        if self.num_classes is not None:
            return self.num_classes
        return (self.shape[-1] if self.shape else None) or 1

    def template(self, name: str) -> Tensor:
        """:return: new Tensor without value"""
        dims = [
            Dim(size, name=f"{name}:axis{i}", kind=Dim.Types.Spatial if size is None else Dim.Types.Feature)
            for i, size in enumerate(self.shape)
        ]
        sparse_dim = None
        if self.num_classes is not None:
            sparse_dim = Dim(self.num_classes, name=f"{name}:classes", kind=Dim.Types.Feature)
        is_dense = sparse_dim is None and len(dims) >= 2 and dims[-1].is_static()
        return Tensor(name, dims, self.dtype, sparse_dim=sparse_dim, feature_dim=dims[-1] if is_dense else None)


def specs_of_info(info: DatasetInfo) -> dict[str, StreamSpec]:
    """:return: of all data keys of a dataset"""
    specs = {}
    for key, key_info in info.keys.items():
        entry = info.num_outputs.get(key)
        ndim = dim_and_ndim(entry)[1] if entry is not None else 1 + len(key_info.shape)
        shape = (None, *key_info.shape)[:ndim]
        num_classes = key_info.dim if key_info.sparse else None
        specs[key] = StreamSpec(key_info.dtype, shape, num_classes, info.labels.get(key))
    return specs


def specs_of_options(map_outputs: Mapping[str, Any], *, where: str) -> dict[str, StreamSpec]:
    """
    :param map_outputs: option: data key -> options of Tensor: dims, or dim/shape/sparse; dtype; sparse_dim; vocab.
        Any: these
    :param where: dataset, for errors
    :raises DatasetOptionError: wrong options
    """
    specs = {}
    if not isinstance(map_outputs, Mapping) or not map_outputs:
        raise DatasetOptionError(
            f"{where}: option 'map_outputs': expected a dict data key -> dict, e.g. {{'data': {{'dim': 80}}}}, "
            f"got {map_outputs!r}."
        )
    for key, opts in map_outputs.items():
        if not isinstance(opts, Mapping):
            raise DatasetOptionError(f"{where}: option 'map_outputs': entry {key!r}: expected a dict, got {opts!r}.")
        tensor_opts = dict(opts)
        vocab_opts = tensor_opts.pop("vocab", None)
        labels: Sequence[str] | None = None
        if vocab_opts is not None:
            vocab = Vocabulary.from_option(vocab_opts, option="vocab", where=f"{where}, map_outputs[{key!r}]")
            labels = vocab.labels
            tensor_opts.setdefault("sparse_dim", Dim(vocab.num_labels, name=f"{key}:vocab"))
        try:
            tensor = Tensor(key, **tensor_opts)
        except (ValueError, TypeError) as exc:
            raise DatasetOptionError(f"{where}: option 'map_outputs': entry {key!r}: {exc}") from exc
        dims = [dim for dim in tensor.dims if not dim.is_batch_dim()]
        num_classes = tensor.sparse_dim.dimension if tensor.sparse_dim is not None else None
        if labels is None and num_classes is not None:
            labels = [str(i) for i in range(num_classes)]
        specs[key] = StreamSpec(tensor.dtype, tuple(dim.dimension for dim in dims), num_classes, labels)
    return specs


@dataclasses.dataclass
class Seq:
    """
    :param idx: in the epoch of the wrapped dataset
    :param tag: of it
    :param frac: how much of the epoch is done after it; None: not known
    :param features: data
    """

    idx: int
    tag: str
    frac: float | None
    features: Mapping[str, numpy.ndarray]


class SeqConverter:
    """From a sequence of the dataset to a TensorDict and back. For one epoch."""

    def __init__(
        self, inputs: Mapping[str, StreamSpec], outputs: Mapping[str, StreamSpec] | None, *, where: str, func_name: str
    ):
        """
        :param inputs: of the wrapped dataset, as declared; the first sequence shows what they really are
        :param outputs: None: the same
        :param where: dataset, for errors
        :param func_name: function of the user, for errors
        """
        self._where = where
        self._func_name = func_name
        self._declared = dict(inputs)
        self._inputs: dict[str, Tensor] | None = None
        self._outputs = dict(outputs) if outputs is not None else None
        self._is_same = outputs is None
        self._last_frac = 0.0

    def _adapt(self, features: Mapping[str, numpy.ndarray]) -> dict[str, Tensor]:
        specs = {}
        for key, value in features.items():
            spec = self._declared.get(key, StreamSpec(str(value.dtype), (None,) * value.ndim))
            if not _is_text(value.dtype) and str(value.dtype) != spec.dtype:
                spec = dataclasses.replace(spec, dtype=str(value.dtype))
            if value.ndim != len(spec.shape):
                spec = dataclasses.replace(spec, shape=(None,) * value.ndim)
            specs[key] = spec
        if self._is_same:
            self._outputs = specs
        return {key: spec.template(key) for key, spec in specs.items()}

    def to_tensor_dict(self, seq: Seq) -> TensorDict:
        """:return: streams, and entries complete_frac (if known), seq_idx, seq_tag"""
        if self._inputs is None:
            self._inputs = self._adapt(seq.features)
        res = TensorDict()
        for key, value in seq.features.items():
            template = self._inputs.get(key)
            tensor = template.copy_template() if template is not None else _tensor(key, value)
            if value.ndim != len(tensor.dims):
                tensor = _tensor(key, value)
            tensor.raw_tensor = value
            res.data[key] = tensor
        if seq.frac is not None:
            res.data["complete_frac"] = _tensor("complete_frac", numpy.array(seq.frac, dtype=numpy.float32))
        res.data["seq_idx"] = _tensor("seq_idx", numpy.array(seq.idx, dtype=numpy.int32))
        res.data["seq_tag"] = _tensor("seq_tag", numpy.array(seq.tag))
        return res

    def from_tensor_dict(self, tensors: TensorDict, *, idx: int, source: Seq | None) -> Seq:
        """
        :param tensors: from the function
        :param idx: number of the result
        :param source: sequence it was made of, if that is known: has what the function dropped
        :raises DatasetError: it is not what was declared
        """
        if not isinstance(tensors, TensorDict):
            raise DatasetError(
                f"{self._where}: {self._func_name} must give a TensorDict, got {type(tensors).__name__}. "
                "Return the one that it got, changed, or a new one."
            )
        tag = tensors.data.get("seq_tag")
        seq_tag = str(_raw(tag)) if tag is not None else (source.tag if source is not None else f"seq-{idx}")
        frac_tensor = tensors.data.get("complete_frac")
        frac = float(_raw(frac_tensor)) if frac_tensor is not None else (source.frac if source is not None else None)
        if frac is not None:
            self._check_frac(frac, seq_tag)
        if self._outputs is None:  # outputs as inputs, and there was no input
            self._outputs = dict(self._declared)
        features = {key: self._get(tensors, key, spec, seq_tag) for key, spec in self._outputs.items()}
        return Seq(idx, seq_tag, frac, features)

    def _check_frac(self, frac: float, tag: str) -> None:
        if not 0.0 <= frac <= 1.0 or frac < self._last_frac:
            raise DatasetError(
                f"{self._where}: {self._func_name} gives complete_frac {frac} for sequence {tag!r} after "
                f"{self._last_frac}: expected between 0 and 1, and never less than before."
            )
        self._last_frac = frac

    def _get(self, tensors: TensorDict, key: str, spec: StreamSpec, tag: str) -> numpy.ndarray:
        what = f"{self._where}: {self._func_name} gives for sequence {tag!r}"
        if key not in tensors.data:
            raise DatasetError(
                f"{what} no stream {key!r}, only {[k for k in tensors.data if k not in _META_KEYS]}. "
                "Declare the streams of the result in map_outputs."
            )
        raw = _raw(tensors.data[key])
        if not isinstance(raw, numpy.ndarray):
            if raw is None or not isinstance(raw, (numpy.generic, int, float, str)):
                raise DatasetError(
                    f"{what} the stream {key!r} with a raw_tensor of type {type(raw).__name__}: expected a numpy array."
                )
            raw = numpy.asarray(raw)
        value: numpy.ndarray = raw
        right_dtype = _is_text(value.dtype) if spec.dtype == "string" else str(value.dtype) == spec.dtype
        right_shape = value.ndim == len(spec.shape) and all(
            size is None or size == got for size, got in zip(spec.shape, value.shape, strict=True)
        )
        if not right_dtype or not (right_shape or _is_text(value.dtype)):
            raise DatasetError(
                f"{what} the stream {key!r} with shape {value.shape} and dtype {value.dtype}: expected shape "
                f"{spec.shape} (None: any size) and dtype {spec.dtype}. Declare the streams of the result in map_outputs."
            )
        return value


def _is_text(dtype: numpy.dtype) -> bool:
    return dtype.kind in "USO"


def _tensor(name: str, value: numpy.ndarray) -> Tensor:
    dtype = "string" if _is_text(value.dtype) else str(value.dtype)
    return Tensor(name, [Dim(None, name=f"{name}:axis{i}") for i in range(value.ndim)], dtype, raw_tensor=value)


def _raw(tensor: Any) -> Any:
    """:return: its value. Any: of the user"""
    return getattr(tensor, "raw_tensor", tensor)
