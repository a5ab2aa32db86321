"""tools/dump-dataset-raw-strings.py as a program."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy
import pytest

from returnn.cli._dataset_tools.texts import text_of_data
from returnn.errors import DatasetError
from tests.tools.tool_program import imports_torch, last_error_line, run_tool

_TOOL = "dump-dataset-raw-strings"
_CONFIG = """#!rnn.py
import numpy
from returnn.datasets.map import FromListDataset
texts = ["a", "it's \\"q\\"", "\\u00e4\\u00f6"]
data = [
    {
        "raw": numpy.array(text),
        "bytes": numpy.array(text.encode("utf8"), dtype=object),
        "utf8": numpy.frombuffer(text.encode("utf8"), dtype="uint8"),
    }
    for text in texts
]
string = {"dtype": "string", "shape": (), "dim": 1}
types = {"raw": string, "bytes": string, "utf8": {"dim": 256, "shape": (None,), "sparse": True, "dtype": "uint8"}}
eval = {"class": "MapDatasetWrapper", "map_dataset": FromListDataset(data, data_types=types)}
same_tags = {"class": "DummyDataset", "input_dim": 1, "output_dim": 2, "num_seqs": 2}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my.config").write_text(_CONFIG)
    return tmp_path


@pytest.mark.parametrize("key", ["raw", "bytes", "utf8"])
def test_plain_strings_in_the_file(folder: Path, key: str) -> None:
    run_tool(_TOOL, "--config", "my.config", "--key", key, "--out", "out.py", cwd=folder)
    text = (folder / "out.py").read_text(encoding="utf8")
    assert text.splitlines() == ["{", "'seq-0': 'a',", "'seq-1': 'it\\'s \"q\"',", "'seq-2': 'äö',", "}"]
    assert ast.literal_eval(text)["seq-2"] == "äö"
    run_tool(_TOOL, "--config", "my.config", "--startseq", "1", "--endseq", "1", "--out", "part.py.gz", cwd=folder)
    out = run_tool("calculate-word-error-rate", "--refs", "part.py.gz", "--hyps", "out.py", cwd=folder).stdout
    assert "Final WER: 0.00%" in out and "Remaining num hyp seqs 2." in out


def test_mistakes_help_and_imports(folder: Path) -> None:
    args = ["--config", "my.config", "--dataset", "same_tags", "--key", "classes", "--out", "x.py"]
    line = last_error_line(run_tool(_TOOL, *args, cwd=folder, check=False))
    assert "no text" in line and "seq-0" in line
    line = last_error_line(run_tool(_TOOL, *args[:4], "--out", "x.py", cwd=folder, check=False))
    assert "'raw'" in line and "classes" in line
    assert not (folder / "x.py").exists()
    assert run_tool(_TOOL, "--out", "x.py", cwd=folder, check=False).returncode == 2
    assert "examples" in run_tool(_TOOL, "--help", cwd=folder).stdout
    assert not imports_torch(_TOOL, "--config", "my.config", "--out", "y.py", cwd=folder)


def test_text_of_data() -> None:
    assert text_of_data(numpy.array(["x"]), where="here") == "x"
    assert type(text_of_data(numpy.array("x"), where="here")) is str
    for bad in (numpy.array([1, 2]), numpy.array(["a", "b"]), numpy.array([255], dtype="uint8")):
        with pytest.raises(DatasetError, match="here"):
            text_of_data(bad, where="here")
