"""tools/dump-dataset.py as a program."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from returnn.datasets.hdf import SimpleHDFWriter
from tests.helpers import ROOT, run_program
from tests.tools.tool_program import TOOLS_GOLDEN, golden_lines, imports_torch, last_error_line, run_tool

TASK_12AX = '{"class":"Task12AXDataset","num_seqs":5}'
DUMMY = '{"class":"DummyDataset","input_dim":3,"output_dim":5,"num_seqs":3,"seq_len":4}'


def _dump(*args: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run_tool("dump-dataset", *args, cwd=cwd, check=check)


def _without_intended_differences(lines: list[str]) -> list[str]:
    """
    :return: without the lines in which we differ from the peer on purpose: the stray "f" and the missing name;
        information about the dataset that is printed twice; the line about sharding; the name in the greeting
    """
    start = lines.index("Dataset:") if "Dataset:" in lines else None
    if start is not None:
        lines = lines[:start] + lines[start + 4 :]
    result = []
    for line in lines:
        if line.startswith("Applied sharding"):
            continue
        line = re.sub(r"^Created Dataset .*", "Created Dataset <NAME>", line)
        result.append(re.sub(r"^(Mini-)?RETURNN starting up, version [^,]+", "RETURNN starting up", line))
    return result


def _floats(line: str) -> list[float]:
    return [float(text) for text in re.findall(r"-?\d+\.\d*(?:e-?\d+)?", line)]


def _check_golden(stdout: str, name: str) -> None:
    got = _without_intended_differences(golden_lines(stdout))
    want = _without_intended_differences((TOOLS_GOLDEN / name).read_text().splitlines())
    if name.startswith("dump_dummy"):  # the dataset gives the dtypes that it declares, which the peer's does not
        got = [line.replace(", dtype=float32)", ")").replace(", dtype=int32)", ")") for line in got]
    assert len(got) == len(want), got
    for got_line, want_line in zip(got, want, strict=True):
        if got_line != want_line:  # statistics are in float64 here
            strip = re.compile(r" *-?\d+\.\d*")
            assert strip.sub("X", got_line) == strip.sub("X", want_line)
            numpy.testing.assert_allclose(_floats(got_line), _floats(want_line), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "dataset", "args"),
    [
        ("dump_dummy_stdout.txt", DUMMY, ["--endseq", "1"]),
        ("dump_12ax_stdout.txt", TASK_12AX, ["--endseq", "1"]),
        ("dump_12ax_print_tag.txt", TASK_12AX, ["--endseq", "2", "--type", "print_tag"]),
        ("dump_12ax_print_shape.txt", TASK_12AX, ["--endseq", "2", "--type", "print_shape"]),
        ("dump_12ax_dump_tag.txt", TASK_12AX, ["--endseq", "2", "--type", "dump_tag", "--dump_prefix", "./12ax."]),
        (
            "dump_12ax_dump_seq_len.txt",
            TASK_12AX,
            ["--endseq", "2", "--type", "dump_seq_len", "--dump_prefix", "./12ax."],
        ),
        ("dump_dummy_numpy.txt", DUMMY, ["--endseq", "1", "--type", "numpy", "--dump_prefix", "./dummy."]),
        (
            "dump_12ax_null_stats.txt",
            TASK_12AX,
            ["--endseq", "-1", "--type", "null", "--stats", "--dump_stats", "12ax"],
        ),
    ],
)
def test_golden_output_and_files(tmp_path: Path, name: str, dataset: str, args: list[str]) -> None:
    _check_golden(_dump(dataset, *args, cwd=tmp_path).stdout, name)
    for path in tmp_path.iterdir():
        golden = TOOLS_GOLDEN / path.name
        if path.name.endswith((".gz", "mean.txt", "std_dev.txt")):
            tolerance = 1e-7 if path.name.startswith("dummy") else 1e-5  # float32 data; the peer's float32 sums
            numpy.testing.assert_allclose(numpy.loadtxt(path), numpy.loadtxt(golden), atol=tolerance)
        else:
            assert path.read_bytes() == golden.read_bytes()
    if name == "dump_dummy_numpy.txt":
        for i in (0, 1):
            file = f"dummy.{i}.targets.classes.txt.gz"
            assert gzip.decompress((tmp_path / file).read_bytes()) == gzip.decompress(
                (TOOLS_GOLDEN / file).read_bytes()
            )
    if "--dump_stats" in args:
        assert {path.name for path in tmp_path.iterdir()} == {"12ax.mean.txt", "12ax.std_dev.txt"}
        assert all(re.fullmatch(r"\d\.\d{18}e[+-]\d\d", x) for x in (tmp_path / "12ax.mean.txt").read_text().split())


@pytest.fixture
def hdf_file(tmp_path: Path) -> Path:
    path = tmp_path / "labels.hdf"
    with SimpleHDFWriter(path, dim=3, ndim=1, labels=["aa", "bb", "cc"]) as writer:
        writer.insert_batch(numpy.array([[0, 1, 2, 2], [2, 1, 0, 0]]), [4, 2], ["c/x", "c/y"])
        writer.insert_batch(numpy.array([[1]]), [1], ["c/z"])
    return path


def test_hdf_file_labels_and_tags(tmp_path: Path, hdf_file: Path) -> None:
    out = _dump(hdf_file.name, cwd=tmp_path).stdout
    assert f"Using dataset {{'class': 'HDFDataset', 'files': ['{hdf_file.name}']}}." in out
    assert "Dataset labels: 'data': ['aa', 'bb', 'cc'] len 3" in out
    assert "data: array([0, 1, 2, 2]), shape=(4,) ('aa bb cc cc')\n" in out
    out = _dump(str(hdf_file), "--seqtags", "c/z,c/x", "--type", "print_tag", "--verbosity", "1", cwd=Path("/")).stdout
    assert out.splitlines() == ["seq 0/2 tag: c/z", "seq 1/2 tag: c/x"]
    out = _dump(hdf_file.name, "--stdout_as_bytes", "--endseq", "0", cwd=tmp_path).stdout
    assert "numpy.frombuffer(gzip.decompress(base64.decodebytes(b'" in out
    assert (
        "'" not in _dump(hdf_file.name, "--seqtags", "c/z", "--type", "null", "--verbosity", "2", cwd=tmp_path).stderr
    )


def test_length_filter_histogram_and_sample(tmp_path: Path, hdf_file: Path) -> None:
    args = ["--type", "print_tag", "--endseq", "-1", "--max_seq_length", "3", "--min_seq_length", "{'data': 2}"]
    out = _dump("labels.hdf", *args, cwd=tmp_path).stdout
    assert re.search(r"^seq 0/3 \(33.33%\) \(0:00:00\) tag 'c/x' filtered out: len\(data\) = 4 > 3$", out, re.M)
    assert re.search(r"^seq 2/3 \(100.00%\) \(0:00:00\) tag 'c/z' filtered out: len\(data\) = 1 < 2$", out, re.M)
    assert len(re.findall(r" tag: ", out)) == 1
    assert "Seq-length 'data' Stats:\n  3 seqs" in out and "Seq-length-filtered 'data' Stats:\n  1 seqs" in out
    assert "Filtered out 2 of 3 seqs (66.67%)." in out
    out = _dump("labels.hdf", "--type", "null", "--histogram", "4", cwd=tmp_path).stdout
    assert "Histogram:\n  1 1 " in out and "5%: 1, 50%: 2, 95%: 4, 99%: 4" in out
    config = tmp_path / "my.config"
    config.write_text(
        '#!rnn.py\nmax_seq_length = {"data": 1}\neval_datasets = {"devtrain": {"class": "HDFDataset", "files": ["labels.hdf"]}}\n'
    )
    args = ["--dataset", "devtrain", "--max_seq_length", "config", "--type", "print_tag", "--verbosity", "1"]
    out = _dump("my.config", *args, cwd=tmp_path).stdout
    assert [line for line in out.splitlines() if "filtered" not in line] == ["seq 2/3 tag: c/z"]
    tags = [
        _dump(
            TASK_12AX, "--sample", "2", "--seed", seed, "--type", "print_tag", "--verbosity", "1", cwd=tmp_path
        ).stdout
        for seed in "112"
    ]
    assert tags[0] == tags[1] != tags[2] and len(tags[0].splitlines()) == 2


def test_json(tmp_path: Path, hdf_file: Path) -> None:
    res = _dump("labels.hdf", "--json", "--histogram", "--stats", "--max_seq_length", "3", cwd=tmp_path)
    entries = [json.loads(line) for line in res.stdout.splitlines()]
    assert [next(iter(entry)) for entry in entries] == ["dataset", "filtered", "seq", "seq", "summary"]
    assert entries[0]["dataset"]["keys"]["data"]["num_labels"] == 3
    assert entries[2]["seq"] == {"seq_idx": 1, "tag": "c/y", "lens": {"data": 2}, "data": {"data": [2, 1]}}
    summary = entries[-1]["summary"]
    assert summary["num_seqs"] == 3 and summary["num_filtered"] == 1
    assert summary["stats"]["mean"] == pytest.approx(4 / 3)
    assert sum(summary["seq_lengths"]["data"]["histogram"]["counts"]) == 3
    assert "Quitting" in res.stderr  # the log


def test_get_num_seqs(tmp_path: Path) -> None:
    out = _dump(TASK_12AX, "--get_num_seqs", cwd=tmp_path).stdout
    assert "Get num seqs.\nestimated_num_seqs: 5\nnum_seqs: 5\nDone.\n" in out
    (tmp_path / "stream.py").write_text(
        "from returnn.datasets.cached2 import CachedDataset2\n"
        "from returnn.datasets.basic import DatasetSeq\nimport numpy\n"
        "class Stream(CachedDataset2):\n"
        "    def __init__(self, **kw):\n"
        "        super().__init__(**kw)\n"
        "        self.num_inputs, self.num_outputs = 1, {'data': (1, 2)}\n"
        "    def init_seq_order(self, epoch=None, seq_list=None, seq_order=None):\n"
        "        super().init_seq_order(epoch, seq_list, seq_order)\n"
        "        self._num_seqs = None\n"
        "        return True\n"
        "    def _collect_single_seq(self, seq_idx):\n"
        "        return DatasetSeq(seq_idx, numpy.zeros((3, 1), 'float32')) if seq_idx < 7 else None\n"
        "train = {'class': Stream, 'estimated_num_seqs': 100}\n"
    )
    out = _dump("stream.py", "--get_num_seqs", cwd=tmp_path).stdout
    assert "estimated_num_seqs: 100\n" in out and "accumulated num seqs: 7\n" in out
    out = _dump("stream.py", "--type", "print_tag", "--endseq", "-1", cwd=tmp_path).stdout
    assert "seq 0/~100 (1.00%)" in out and "seq 6/~100" in out
    assert "More seqs which we did not dumped: False" in out
    out = _dump("stream.py", "--sample", "3", "--type", "print_tag", "--verbosity", "1", cwd=tmp_path).stdout
    assert len(out.splitlines()) == 3


def test_without_prefix_each_run_has_its_own_folder(tmp_path: Path) -> None:
    env = {"TMPDIR": str(tmp_path)}
    for _ in range(2):
        run_tool("dump-dataset", TASK_12AX, "--type", "dump_tag", cwd=tmp_path, env=env)
    files = list(tmp_path.glob("returnn.dump-dataset.*/seq-tags.txt"))
    assert len(files) == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["missing.config"], ["missing.config"]),
        (["missing.hdf"], ["missing.hdf", "does not exist"]),
        (["{broken"], ["no Python literal"]),
        ([TASK_12AX, "--dataset", "dev"], ["--dataset dev"]),
        (["my.config", "--dataset", "nothing"], ['"nothing"', "train"]),
        ([TASK_12AX, "--key", "orth"], ["'orth'", "classes"]),
        ([TASK_12AX, "--type", "nothing"], ["unknown dump option type 'nothing'", "print_tag"]),
        ([TASK_12AX, "--max_seq_length", "[1]"], ["max_seq_length"]),
        ([TASK_12AX, "--startseq", "9", "--stats"], ["No statistics"]),
        ([TASK_12AX, "--type", "dump_tag", "--dump_prefix", "/proc/x/y."], ["/proc/x/y.seq-tags.txt"]),
    ],
)
def test_mistakes_end_with_a_sentence(tmp_path: Path, args: list[str], words: list[str]) -> None:
    (tmp_path / "my.config").write_text(f"#!rnn.py\ntrain = {TASK_12AX}\n")
    line = last_error_line(_dump(*args, cwd=tmp_path, check=False))
    for word in words:
        assert word in line


def test_wrong_arguments_help_and_imports(tmp_path: Path) -> None:
    assert _dump(cwd=tmp_path, check=False).returncode == 2
    assert _dump(TASK_12AX, "--get_num_seqs", "--max_seq_length", "3", cwd=tmp_path, check=False).returncode == 2
    assert "examples:" in _dump("--help", cwd=tmp_path).stdout
    assert not imports_torch("dump-dataset", TASK_12AX, cwd=tmp_path)


def test_closed_pipe(tmp_path: Path) -> None:
    tool = str(ROOT / "tools" / "dump-dataset.py")
    dataset = '{"class":"Task12AXDataset","num_seqs":3000}'
    command = f"{sys.executable} {tool} '{dataset}' --endseq -1 --dump_prefix x. --type dump_tag | head -n 1"
    res = run_program(["bash", "-c", f"{command}; echo codes ${{PIPESTATUS[0]}}"], cwd=tmp_path)
    assert res.stdout.splitlines() == [f"Using dataset {dataset}.", "codes 1"]
    assert res.stderr.strip() == "BrokenPipeError"
    assert not list(tmp_path.iterdir())


def test_json_stays_json_if_the_config_prints(tmp_path: Path) -> None:
    (tmp_path / "a.config").write_text(f"#!rnn.py\nprint('hello')\ntrain = {TASK_12AX}\n")
    res = _dump("a.config", "--json", "--endseq", "0", cwd=tmp_path)
    assert [list(json.loads(line)) for line in res.stdout.splitlines()] == [["dataset"], ["seq"], ["summary"]]
    assert "hello" in res.stderr


def test_limit_for_an_unknown_key(tmp_path: Path) -> None:
    args = [TASK_12AX, "--max_seq_length", "{'daata': 5}", "--type", "null"]
    line = last_error_line(_dump(*args, cwd=tmp_path, check=False))
    assert "no data key 'daata'" in line and "['data', 'classes']" in line
    args = [TASK_12AX, "--max_seq_length", "config", "++max_seq_length", "{'daata':5}", "--type", "null"]
    res = _dump(*args, cwd=tmp_path)
    assert "Warning: max_seq_length of the config has the key 'daata', so it drops nothing" in res.stdout
    assert "No dump." in res.stdout  # arguments behind an option of the config are for the tool


def test_get_num_seqs_ends_as_the_rest(tmp_path: Path) -> None:
    res = _dump(TASK_12AX, "--get_num_seqs", cwd=tmp_path)
    lines = ["Get num seqs.", "estimated_num_seqs: 5", "num_seqs: 5", "Done.", "Quitting"]
    assert res.stdout.splitlines()[-5:] == lines


def test_nobody_reads_what_the_config_prints(tmp_path: Path) -> None:
    (tmp_path / "a.config").write_text(f"#!rnn.py\nprint('hello ' * 100000)\ntrain = {TASK_12AX}\n")
    tool = ROOT / "tools" / "dump-dataset.py"
    command = f"{sys.executable} {tool} a.config | head -c 5; exit ${{PIPESTATUS[0]}}"
    res = run_program(["bash", "-c", command], cwd=tmp_path, check=False)
    assert (res.returncode, res.stderr) == (1, "BrokenPipeError\n")
