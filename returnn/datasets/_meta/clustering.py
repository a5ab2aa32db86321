"""ClusteringDataset: adds the index of a cluster (e.g. the speaker's) to each sequence of another dataset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np

from returnn.datasets._hdf.tag_table import TagTable
from returnn.datasets._meta.children import DatasetSpec, make_child, warn_about_unused_options
from returnn.datasets._meta.delegating import DelegatingDataset
from returnn.datasets._meta.options import get_order_options
from returnn.datasets.basic import Dataset
from returnn.datasets.ragged import Ragged
from returnn.errors import ConfigError, DataFileError, UnknownSeqTagError, describe

__all__ = ["ClusteringDataset", "load_cluster_map"]

#: The own stream
_KEY = "cluster_idx"
#: So it is spelled in the files that exist.
_ROOTS = ("<coprus-key-map>", "<corpus-key-map>")


def load_cluster_map(filename: str, n_clusters: int) -> tuple[TagTable, np.ndarray]:
    """
    Read the XML text: in the first 3 lines ``<coprus-key-map>`` (sic), then one line
    ``<map-item key="TAG" value="INT"/>`` per sequence.

    :param filename: path
    :param n_clusters: each value must be smaller
    :return: tags, int32 [number of tags] their clusters
    :raises DataFileError: it is missing or has another form
    """
    tags: list[str] = []
    clusters: list[int] = []
    try:
        with open(filename, encoding="utf8") as file:
            head = ""
            for number, line in enumerate(file, 1):
                if number <= 3:
                    head += line
                if number == 3 and not any(root in head for root in _ROOTS):
                    break
                if line.startswith("<map-item"):
                    tag, cluster = _parse_item(line, filename, number, n_clusters)
                    tags.append(tag)
                    clusters.append(cluster)
    except (OSError, UnicodeDecodeError) as exc:
        raise DataFileError(
            describe(f"cannot read cluster_map_file {filename!r} ({type(exc).__name__}: {exc})")
        ) from exc
    if not any(root in head for root in _ROOTS):
        raise DataFileError(
            describe(
                f"cluster_map_file {filename!r} has a wrong form",
                expected=f"{_ROOTS[0]} in one of the first 3 lines",
                got=head[:100],
            )
        )
    return TagTable.from_tags(tags), np.array(clusters, dtype=np.int32)


def _parse_item(line: str, filename: str, number: int, n_clusters: int) -> tuple[str, int]:
    try:
        item = ElementTree.fromstring(line.strip())  # one element without children: nothing to expand
        tag, cluster = item.attrib["key"], int(item.attrib["value"])
    except (ElementTree.ParseError, LookupError, ValueError) as exc:
        raise DataFileError(
            describe(
                f"cluster_map_file {filename!r}, line {number} has a wrong form",
                expected='<map-item key="TAG" value="INT"/>',
                got=line.strip(),
            )
        ) from exc
    if not 0 <= cluster < n_clusters:
        raise DataFileError(
            describe(
                f"cluster_map_file {filename!r}, line {number}: the cluster of {tag!r} is out of range",
                expected=f"0 <= value < n_clusters = {n_clusters}",
                got=cluster,
            )
        )
    return tag, cluster


class ClusteringDataset(DelegatingDataset):
    """Hands on all streams of the inner dataset, and adds ``cluster_idx``: int32 [1]."""

    def __init__(
        self,
        dataset: DatasetSpec,
        cluster_map_file: str | os.PathLike[str],
        n_clusters: int,
        single_cluster: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        :param dataset: inner one: dict of options, dataset, or function
        :param cluster_map_file: see :func:`load_cluster_map`
        :param n_clusters: number of clusters
        :param single_cluster: no effect
        :param kwargs: see Dataset. Those about the order have no effect. Any: each has its own type
        :raises ConfigError: for a wrong option
        """
        super().__init__(**kwargs)
        if not isinstance(n_clusters, (int, np.integer)) or isinstance(n_clusters, bool) or n_clusters < 1:
            raise ConfigError(
                describe('option "n_clusters" is invalid', where=self._where(), expected="int >= 1", got=n_clusters)
            )
        self._dataset = dataset
        self._cluster_map_file = cluster_map_file
        self.n_clusters = int(n_clusters)
        self.single_cluster = single_cluster
        self._child = make_child(
            dataset,
            name=f"{self.name}_inner",
            owner=self,
            seed_offset=self._given_random_seed_offset,
            shard=True,
        )
        if _KEY in self._child.get_data_keys():
            raise ConfigError(
                describe(f"the inner dataset {self._child.name!r} has a stream {_KEY!r} already", where=self._where())
            )
        self._take_info_of_child()
        self.num_outputs = {**(self.num_outputs or {}), _KEY: (self.n_clusters, 1)}
        self._tags, self._clusters = load_cluster_map(os.fspath(cluster_map_file), self.n_clusters)
        unused = get_order_options(self)
        warn_about_unused_options(self, unused, reason="the order comes from the inner dataset, set them there")
        if single_cluster:
            warn_about_unused_options(self, ["single_cluster"], reason="each sequence has the cluster of the map file")

    @property
    def dataset(self) -> Dataset:
        """:return: the inner one"""
        return self._child

    def _clusters_of(self, tags: Sequence[str]) -> np.ndarray:
        """:return: int32 [len(tags)]"""
        idxs = self._tags.find(tags)
        missing = np.flatnonzero(idxs < 0)
        if len(missing):
            raise UnknownSeqTagError(
                f"{self._where()}: cluster_map_file {os.fspath(self._cluster_map_file)!r} has no cluster for"
                f" {[tags[i] for i in missing[:3].tolist()]}. It has {len(self._tags)} tags, e.g."
                f" {self._tags.select(range(min(3, len(self._tags))))}."
            )
        return self._clusters[idxs]

    def check_corpus(self) -> None:
        """See :func:`Dataset.check_corpus`. Also whether all sequences have a cluster."""
        super().check_corpus()
        if self._child.seq_tags_filter is not None:
            return
        try:
            tags = self._child.get_all_tags()
        except NotImplementedError:
            return
        self._clusters_of(tags)

    def _features_of_child(self, seq_idx: int, tag: str) -> dict[str, np.ndarray]:
        return {**super()._features_of_child(seq_idx, tag), _KEY: self._clusters_of([tag])}

    def get_epoch_seq_lens(self, key: str) -> np.ndarray | None:
        """:return: as the inner dataset says; 1 for the cluster"""
        return np.ones(self.num_seqs, dtype=np.int64) if key == _KEY else super().get_epoch_seq_lens(key)

    def read_seqs(self, seq_idxs: np.ndarray, keys: Sequence[str]) -> dict[str, Ragged] | None:
        """
        :param seq_idxs: [B], positions in the epoch
        :param keys: data keys
        :return: key -> data; None if the inner dataset does not support it
        """
        data = self._child.read_seqs(seq_idxs, [key for key in keys if key != _KEY])
        if data is None or _KEY not in keys:
            return data
        clusters = self._clusters_of(self.get_seq_tags(seq_idxs))
        return {**data, _KEY: Ragged(clusters, np.ones(len(clusters), dtype=np.int64))}

    def get_data_keys(self) -> list[str]:
        """:return: those of the inner dataset, and the cluster"""
        return [*super().get_data_keys(), _KEY]

    def get_target_list(self) -> list[str]:
        """:return: those of the inner dataset, and the cluster"""
        return [*super().get_target_list(), _KEY]

    def get_data_dim(self, key: str) -> int:
        """:return: as the inner dataset says; number of clusters"""
        return self.n_clusters if key == _KEY else super().get_data_dim(key)

    def get_data_dtype(self, key: str) -> str:
        """:return: as the inner dataset says; int32 for the cluster"""
        return "int32" if key == _KEY else super().get_data_dtype(key)

    def get_data_shape(self, key: str) -> list[int | None]:
        """:return: as the inner dataset says"""
        return [] if key == _KEY else super().get_data_shape(key)

    def is_data_sparse(self, key: str) -> bool:
        """:return: as the inner dataset says; True for the cluster"""
        return key == _KEY or super().is_data_sparse(key)

    def can_serialize_data(self, key: str) -> bool:
        """:return: as the inner dataset says"""
        return key != _KEY and super().can_serialize_data(key)
