"""ClusteringDataset."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from returnn.datasets.basic import init_dataset
from returnn.datasets.meta import ClusteringDataset
from returnn.errors import ConfigError, DatasetError
from tests.datasets.combining import check_bulk, check_same_batches, tags_of
from tests.datasets.combining_data import hdf
from tests.datasets.everyday_use import check_everyday_use, check_jump, read_epoch

CLUSTERS = {f"a-{i}": (3 * i) % 4 for i in range(7)}


@pytest.fixture
def map_file(tmp_path: Path) -> Path:
    """:return: file with all tags"""
    return _write(tmp_path / "map.xml", CLUSTERS)


def _write(path: Path, clusters: dict[str, int], root: str = "coprus-key-map") -> Path:
    items = "".join(f'<map-item key="{tag}" value="{cluster}"/>\n' for tag, cluster in clusters.items())
    path.write_text(f'<?xml version="1.0" encoding="utf8"?>\n<{root}>\n{items}</{root}>\n')
    return path


def clustering(map_file: Path, **opts: Any) -> dict[str, Any]:
    """:return: options"""
    return {
        "class": "ClusteringDataset",
        "dataset": hdf("c_a", seq_ordering="random"),
        "cluster_map_file": str(map_file),
        "n_clusters": 4,
        **opts,
    }


def test_adds_the_cluster(map_file: Path) -> None:
    dataset = init_dataset(clustering(map_file))
    assert isinstance(dataset, ClusteringDataset)
    inner = read_epoch(init_dataset(hdf("c_a", seq_ordering="random")), 2)
    seqs = read_epoch(dataset, 2)
    assert [tag for tag, _ in seqs] == [tag for tag, _ in inner]
    for (tag, data), (_, inner_data) in zip(seqs, inner, strict=True):
        assert data["cluster_idx"].tolist() == [CLUSTERS[tag]] and data["cluster_idx"].dtype == np.int32
        np.testing.assert_array_equal(data["data"], inner_data["data"])
    check_bulk(dataset, seqs)
    assert dataset.num_outputs is not None and dataset.num_outputs["cluster_idx"] == (4, 1)
    assert dataset.get_data_keys() == ["data", "cluster_idx"] and dataset.get_target_list() == ["cluster_idx"]
    assert (dataset.get_data_dim("cluster_idx"), dataset.is_data_sparse("cluster_idx")) == (4, True)
    assert (dataset.get_data_dtype("cluster_idx"), dataset.get_data_shape("cluster_idx")) == ("int32", [])
    dataset.check_corpus()
    copy = pickle.loads(pickle.dumps(dataset))
    assert [tag for tag, _ in read_epoch(copy, 2)] == [tag for tag, _ in seqs]


def test_shards_and_order_are_the_inner_ones(map_file: Path) -> None:
    parts = [tags_of(clustering(map_file, _num_shards=2, _shard_index=i)) for i in range(2)]
    assert parts[0] + parts[1] == tags_of(hdf("c_a", seq_ordering="random"))


def test_missing_tag(tmp_path: Path) -> None:
    path = _write(tmp_path / "map.xml", {"a-0": 1})
    dataset = init_dataset(clustering(path))
    with pytest.raises(KeyError, match=r"map.xml' has no cluster for \['a-1', 'a-2', 'a-3'\]"):
        dataset.check_corpus()
    with pytest.raises(KeyError, match="has no cluster for"):
        read_epoch(dataset, 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("<other>\n\n\n\n", ["wrong form", "<coprus-key-map>"]),
        ("", ["wrong form", "<coprus-key-map>"]),
        ('<coprus-key-map>\n<map-item key="a" value="4"/>\n', ["line 2", "'a'", "n_clusters = 4", "got 4"]),
        ('<coprus-key-map>\n<map-item key="a" value="x"/>\n', ["line 2", "map-item"]),
        ('<coprus-key-map>\n<map-item key="a"\n', ["line 2", "map-item"]),
    ],
)
def test_broken_file(tmp_path: Path, content: str, words: list[str]) -> None:
    (tmp_path / "map.xml").write_text(content)
    with pytest.raises(DatasetError) as info:
        init_dataset(clustering(tmp_path / "map.xml"))
    for word in [*words, "map.xml"]:
        assert word in str(info.value)


def test_option_mistakes(map_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="n_clusters.*int >= 1"):
        init_dataset(clustering(map_file, n_clusters=0))
    with pytest.raises(OSError, match="nope.xml"):
        init_dataset(clustering(Path("nope.xml")))
    with pytest.raises(ConfigError, match="has a stream 'cluster_idx' already"):
        init_dataset(clustering(map_file, dataset=clustering(map_file)))
    capsys.readouterr()
    init_dataset(clustering(map_file, single_cluster=True, seq_ordering="random"))
    out = capsys.readouterr().out
    assert "no effect of single_cluster" in out and "no effect of seq_ordering" in out


def test_batches_do_not_depend_on_how_data_is_read(map_file: Path) -> None:
    check_same_batches(clustering(map_file))


def test_jump(map_file: Path) -> None:
    check_jump(clustering(map_file))


@pytest.mark.slow
def test_everyday_use(map_file: Path) -> None:
    check_everyday_use(clustering(map_file))
