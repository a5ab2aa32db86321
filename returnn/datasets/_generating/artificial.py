"""
Dummy data: counting numbers, and random data by a template.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy

from returnn.datasets._generating.base import GeneratingDataset
from returnn.datasets.basic import DatasetSeq
from returnn.errors import DatasetError, NotSupportedError

__all__ = [
    "DummyDataset",
    "DummyDatasetMultipleSequenceLength",
    "DummyDatasetMultipleDataKeys",
    "DummyGenericDataset",
]


class _Counter:
    """Consecutive integers as data."""

    def __init__(self, start: int, *, max_value: float, shift: float, scale: float) -> None:
        self.next = start
        self.max_value = max_value
        self.shift = shift
        self.scale = scale

    def _take(self, num: int) -> numpy.ndarray:
        self.next += num
        return numpy.arange(self.next - num, self.next)

    def dense(self, num_frames: int, dim: int) -> numpy.ndarray:
        """:return: [num_frames, dim] float32"""
        values = (self._take(num_frames * dim) % self.max_value + self.shift) * self.scale
        return values.reshape(num_frames, dim).astype("float32")

    def sparse(self, num_frames: int, dim: int) -> numpy.ndarray:
        """:return: [num_frames] int32"""
        return (self._take(num_frames) % dim).astype("int32")


class DummyDataset(GeneratingDataset):
    """Features and targets are counting numbers, from the corpus index on. Nothing is random."""

    def __init__(
        self,
        input_dim: int | None,
        output_dim: Any,
        num_seqs: int,
        seq_len: Any = 2,
        input_max_value: float = 10.0,
        input_shift: float | None = None,
        input_scale: float | None = None,
        **kwargs: Any,
    ) -> None:
        """
        :param input_dim: feature size of "data"
        :param output_dim: number of classes. Any: see :func:`convert_data_dims`
        :param num_seqs: of the corpus
        :param seq_len: number of frames of each sequence. Any: int here, dict in subclasses
        :param input_max_value: features are ``((number mod this) + input_shift) * input_scale``
        :param input_shift: default ``-input_max_value / 2``
        :param input_scale: default ``1 / input_max_value``
        :param kwargs: see :class:`Dataset`. Any: each has its own type
        """
        super().__init__(input_dim=input_dim, output_dim=output_dim, num_seqs=num_seqs, **kwargs)
        self.seq_len = seq_len
        self.input_max_value = input_max_value
        self.input_shift = -input_max_value / 2.0 if input_shift is None else input_shift
        self.input_scale = 1.0 / input_max_value if input_scale is None else input_scale

    def _counter(self, seq_idx: int) -> _Counter:
        return _Counter(seq_idx, max_value=self.input_max_value, shift=self.input_shift, scale=self.input_scale)

    def _num_frames(self, key: str) -> int:
        num_frames: int = self.seq_len
        return num_frames

    def generate_seq(self, seq_idx: int) -> DatasetSeq:
        """See :func:`GeneratingDataset.generate_seq`."""
        counter = self._counter(seq_idx)
        features = counter.dense(self._num_frames("data"), self.get_data_dim("data"))
        targets = counter.sparse(self._num_frames("classes"), self.get_data_dim("classes"))
        return DatasetSeq(seq_idx=seq_idx, features=features, targets=targets)


class DummyDatasetMultipleSequenceLength(DummyDataset):
    """As DummyDataset, where "data" and "classes" differ in length."""

    def __init__(
        self,
        input_dim: int,
        output_dim: Any,
        num_seqs: int,
        seq_len: dict[str, int] | None = None,
        input_max_value: float = 10.0,
        input_shift: float | None = None,
        input_scale: float | None = None,
        **kwargs: Any,
    ) -> None:
        """
        :param input_dim: see :class:`DummyDataset`
        :param output_dim: see there. Any: as there
        :param num_seqs: see there
        :param seq_len: number of frames by key; default {"data": 10, "classes": 20}
        :param input_max_value: see :class:`DummyDataset`
        :param input_shift: see there
        :param input_scale: see there
        :param kwargs: see :class:`Dataset`. Any: each has its own type
        """
        if seq_len is None:
            seq_len = {"data": 10, "classes": 20}
        if not isinstance(seq_len, dict) or not {"data", "classes"} <= set(seq_len):
            raise DatasetError(
                f'{type(self).__name__}: option "seq_len" must be a dict with keys "data" and "classes", got {seq_len!r}.'
            )
        super().__init__(input_dim, output_dim, num_seqs, seq_len, input_max_value, input_shift, input_scale, **kwargs)

    def _num_frames(self, key: str) -> int:
        num_frames: int = self.seq_len[key]
        return num_frames


class DummyDatasetMultipleDataKeys(DummyDataset):
    """As DummyDataset, with any data keys."""

    _getnewargs_exclude_attrs: ClassVar[Iterable[str]] = {"input_dim"}

    def __init__(
        self,
        output_dim: dict[str, Any],
        num_seqs: int,
        seq_len: int | dict[str, int] | None = None,
        input_max_value: float = 10.0,
        input_shift: float | None = None,
        input_scale: float | None = None,
        data_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """
        :param output_dim: key -> dim or (dim, ndim). Any: see :func:`convert_data_dims`
        :param num_seqs: of the corpus
        :param seq_len: number of frames, for all keys or by key; default 20
        :param input_max_value: see :class:`DummyDataset`
        :param input_shift: see there
        :param input_scale: see there
        :param data_keys: default ["data", "classes"]; the numbers run through the keys in this order
        :param kwargs: see :class:`Dataset`. Any: each has its own type
        """
        self.data_keys = ["data", "classes"] if data_keys is None else list(data_keys)
        if seq_len is None:
            seq_len = 20
        if not isinstance(seq_len, dict):
            seq_len = dict.fromkeys(self.data_keys, seq_len)
        for option, keys in (("seq_len", set(seq_len)), ("output_dim", set(output_dim))):
            if keys != set(self.data_keys):
                raise DatasetError(
                    f'{type(self).__name__}: the keys of "{option}" are {sorted(keys)}, '
                    f'but "data_keys" are {sorted(self.data_keys)}. They must be the same.'
                )
        super().__init__(
            None,
            output_dim,
            num_seqs,
            seq_len,
            input_max_value,
            input_shift,
            input_scale,
            **kwargs,
        )

    def get_data_keys(self) -> list[str]:
        """:return: data_keys"""
        return list(self.data_keys)

    def get_target_list(self) -> list[str]:
        """:return: data_keys without "data" """
        return [key for key in self.data_keys if key != "data"]

    def generate_seq(self, seq_idx: int) -> DatasetSeq:
        """See :func:`GeneratingDataset.generate_seq`."""
        counter = self._counter(seq_idx)
        features = {}
        for key in self.data_keys:
            make = counter.sparse if self.is_data_sparse(key) else counter.dense
            features[key] = make(self.seq_len[key], self.get_data_dim(key))
        return DatasetSeq(seq_idx=seq_idx, features=features)


class _Template:
    """Shape and type of one data key of a DummyGenericDataset."""

    def __init__(self, key: str, opts: Mapping[str, Any]) -> None:
        """
        :param key: data key
        :param opts: as in the config option extern_data. Any: each entry has its own type
        """
        self.key = key
        self.available_for_inference = bool(opts.get("available_for_inference", True))
        sparse_dim = opts.get("sparse_dim")
        self.sparse = bool(opts.get("sparse", sparse_dim is not None))
        dim = opts.get("dim", getattr(sparse_dim, "dimension", sparse_dim))
        #: (key of the dim, None) for a dynamic axis, (None, size) for a static one
        self.axes: list[tuple[Hashable, int | None]] = []
        tags = opts.get("dims", opts.get("dim_tags"))
        if tags is not None:
            shape: list[Any] = [tag for tag in tags if not _is_batch_dim(tag)]
        elif "shape" in opts:
            shape = list(opts["shape"])
        else:
            shape = [None] if self.sparse else [None, dim]
        for i, entry in enumerate(shape):
            size = entry if isinstance(entry, int) else getattr(entry, "dimension", None)
            self.axes.append((None, size) if size is not None else ((key, i) if entry is None else entry, None))
        if dim is None and self.axes and self.axes[-1][1] is not None:
            dim = self.axes[-1][1]
        self.dim: int = 0 if dim is None else int(dim)
        if self.sparse and self.dim <= 0:
            raise DatasetError(
                f"DummyGenericDataset: sparse data key {key!r} needs a dim > 0 in data_template: {opts!r}."
            )
        if "shape" not in opts and tags is None and not self.sparse and dim is None:
            raise DatasetError(f"DummyGenericDataset: data key {key!r} needs dim or shape in data_template: {opts!r}.")
        self.dtype: str = opts.get("dtype") or ("int32" if self.sparse else "float32")

    def default_len_range(self) -> tuple[int, int]:
        """:return: shortest and longest sequence; raw audio is longer than the rest"""
        static = tuple(size for _, size in self.axes)
        if self.dtype.startswith("float") and static in ((None,), (None, 1)):
            return 1000, 8000
        return 5, 15


def _is_batch_dim(tag: Any) -> bool:
    check = getattr(tag, "is_batch_dim", None)
    return bool(check()) if callable(check) else False


class DummyGenericDataset(GeneratingDataset):
    """Random data with shapes and types of a template, to try a config without its data."""

    _getnewargs_exclude_attrs: ClassVar[Iterable[str]] = {"input_dim", "output_dim"}

    def __init__(
        self,
        data_template: Mapping[str, Mapping[str, Any]],
        num_seqs: int,
        *,
        seq_lens: Any = None,
        **kwargs: Any,
    ) -> None:
        """
        :param data_template: as the config option extern_data: key -> dict with dim, shape, sparse, dtype, dims,
            available_for_inference. Any: each entry has its own type
        :param num_seqs: of the corpus
        :param seq_lens: int, or (min, max), or those by data key or dim object; key None for all others.
            Any: these forms
        :param kwargs: see :class:`Dataset`. Any: each has its own type
        """
        if not isinstance(data_template, Mapping):
            raise NotSupportedError(
                "DummyGenericDataset: data_template must be a dict of dicts as the config option extern_data, "
                f"got {type(data_template).__name__}."
            )
        self.data_template = data_template
        self.seq_lens = seq_lens
        self._templates = [_Template(key, opts) for key, opts in data_template.items()]
        super().__init__(
            input_dim=None, output_dim={t.key: (t.dim, max(len(t.axes), 1)) for t in self._templates}, num_seqs=num_seqs,
            **kwargs,
        )  # fmt: skip
        assert self.num_outputs is not None
        for template in self._templates:
            self.num_outputs[template.key] = (template.dim, len(template.axes))
        self._template_by_key = {t.key: t for t in self._templates}
        # Dynamic dim -> range of its size, in order of first appearance.
        self._len_ranges: dict[Hashable, tuple[int, int]] = {}
        for template in self._templates:
            for dim, size in template.axes:
                if size is None and dim not in self._len_ranges:
                    self._len_ranges[dim] = self._len_range(template, dim)

    def _len_range(self, template: _Template, dim: Hashable) -> tuple[int, int]:
        value = self.seq_lens
        if isinstance(value, Mapping):
            value = next((value[k] for k in (template.key, dim, None) if k in value), None)
        if value is None:
            return template.default_len_range()
        if isinstance(value, int):
            return value, value
        if isinstance(value, (tuple, list)) and len(value) == 2 and 0 <= value[0] <= value[1]:
            return value[0], value[1]
        raise DatasetError(
            self._describe(
                'option "seq_lens" is invalid', expected="int, (min, max), or a dict of these", got=self.seq_lens
            )
        )

    def get_data_keys(self) -> list[str]:
        """:return: keys of the template"""
        return [t.key for t in self._templates]

    def get_target_list(self) -> list[str]:
        """:return: keys that are not available for inference"""
        return [t.key for t in self._templates if not t.available_for_inference]

    def get_data_dtype(self, key: str) -> str:
        """:return: as the template says"""
        return self._template_by_key[key].dtype

    def is_data_sparse(self, key: str) -> bool:
        """:return: as the template says"""
        return self._template_by_key[key].sparse

    def get_data_shape(self, key: str) -> list[int | None]:
        """:return: shape of the template without its first axis"""
        return [size for _, size in self._template_by_key[key].axes[1:]]

    def generate_seq(self, seq_idx: int) -> DatasetSeq:
        """See :func:`GeneratingDataset.generate_seq`."""
        # All sizes are drawn anew for each key (the numbers depend on it), but the first use of a size holds.
        fixed: dict[Hashable, int] = {}
        features = {}
        for template in self._templates:
            drawn = {
                dim: int(self.random.randint(low, high + 1, size=[1], dtype="int32")[0])
                for dim, (low, high) in self._len_ranges.items()
            }
            shape = [fixed.setdefault(dim, drawn[dim]) if size is None else size for dim, size in template.axes]
            features[template.key] = self._draw(template, shape)
        return DatasetSeq(seq_idx=seq_idx, features=features)

    def _draw(self, template: _Template, shape: Sequence[int]) -> numpy.ndarray:
        dtype = numpy.dtype(template.dtype)
        if template.sparse:
            values = self.random.randint(0, template.dim, size=shape, dtype=dtype)
        elif dtype.kind == "f":
            values = self.random.standard_normal(shape)
        else:
            values = self.random.randint(0, 10, size=shape, dtype=dtype)
        return numpy.asarray(values, dtype=dtype)
