"""NumpyDumpDataset."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy
import pytest

from returnn.datasets import init_dataset
from tests.datasets.everyday_use import check_jump
from tests.datasets.test_basic import contents


def write(path: Path, num: int, postfix: str = ".txt.gz") -> dict[str, Any]:
    """:return: dataset dict"""
    for i in range(num):
        numpy.savetxt(f"{path}/s.{i}.data{postfix}", numpy.full((i + 1, 2), i + 0.5))
        numpy.savetxt(f"{path}/s.{i}.targets{postfix}", numpy.full(i + 1, i))
    return {"class": "NumpyDumpDataset", "prefix": f"{path}/s.", "postfix": postfix, "num_inputs": 2, "num_outputs": 9}


@pytest.mark.parametrize("postfix", [".txt.gz", ".txt"])
def test_reads_all_files(tmp_path: Path, postfix: str) -> None:
    dataset = init_dataset(write(tmp_path, 4, postfix))
    seqs = contents(dataset, 1)
    assert [tag for tag, _ in seqs] == ["seq-0", "seq-1", "seq-2", "seq-3"]
    assert seqs[0][1] == {"classes": [0.0], "data": [[0.5, 0.5]]}
    assert seqs[3][1]["classes"] == [3.0] * 4
    assert dataset.get_data_dim("classes") == 9 and dataset.get_data_dim("data") == 2
    assert contents(pickle.loads(pickle.dumps(dataset)), 1) == seqs


def test_options(tmp_path: Path) -> None:
    opts = write(tmp_path, 4)
    dataset = init_dataset({**opts, "start_seq": 1, "end_seq": 3, "seq_ordering": "reverse"})
    assert [data["data"][0][0] for _, data in contents(dataset, 1)] == [2.5, 1.5]
    assert dataset.get_corpus_seq_idx(0) == 1
    assert init_dataset({**opts, "seq_ordering": "sorted"}).seq_ordering == "default"
    dataset.init_seq_order(epoch=1, seq_list=["seq-1"])
    assert dataset.num_seqs == 1
    with pytest.raises(KeyError, match="foo"):
        dataset.init_seq_order(epoch=1, seq_list=["foo"])


def test_jump(tmp_path: Path) -> None:
    check_jump({**write(tmp_path, 6), "seq_ordering": "random"})


def test_errors(tmp_path: Path) -> None:
    opts = write(tmp_path, 2)
    with pytest.raises(AssertionError, match=r"Check '.*s\.2\.data\.txt\.gz'"):
        init_dataset({**opts, "end_seq": 3})
    with pytest.raises(AssertionError, match="no sequences"):
        init_dataset({**opts, "prefix": f"{tmp_path}/other."})
    with pytest.raises(AssertionError, match="num_inputs and num_outputs are required"):
        init_dataset({**opts, "num_inputs": None})
    with pytest.raises(ValueError, match="needs sequence lengths"):
        init_dataset({**opts, "seq_ordering": "laplace:.10"})
    dataset = init_dataset({**opts, "num_inputs": 3})
    dataset.init_seq_order(epoch=1)
    with pytest.raises(OSError, match="expected 3 columns"):
        dataset.load_seqs(0, 1)
    (tmp_path / "s.0.data.txt.gz").write_bytes(b"no gzip")
    dataset.init_seq_order(epoch=1)
    with pytest.raises(OSError, match=r"cannot read .*s\.0\.data"):
        dataset.load_seqs(0, 1)
