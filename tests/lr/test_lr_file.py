"""The learning-rate file: exact bytes, old forms, nothing is executed, never half-written."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.errors import DataFileError
from returnn.lr import lr_file
from returnn.lr.epoch_data import EpochData

GOLDEN = Path(__file__).parent.parent / "golden" / "06-engine"


@pytest.mark.parametrize(
    "path",
    [GOLDEN / "lr_file_written_by_mini.txt", *sorted((GOLDEN / "traj").glob("*.learning_rates.txt"))],
    ids=lambda p: p.name,
)
def test_golden_files_round_trip_byte_exact(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "learning_rates"
    lr_file.save(str(copy), lr_file.load(str(path)))
    assert copy.read_bytes() == path.read_bytes()
    assert os.listdir(tmp_path) == ["learning_rates"]


def test_golden_file_from_values() -> None:
    data = {
        10: EpochData(0.001, {}),
        1: EpochData(numpy.float64(0.1), {"CE": 1.0}),
        2: EpochData(1e-5, {"dev_loss_ctc/x": -1.5e-8, "a": math.inf, "b": math.nan}),
        3: EpochData(0.1, {"dev_loss_fer": 0.5, "dev_loss_CE": 1.23456789012345}),
    }
    assert lr_file.dumps(data) == (GOLDEN / "lr_file_written_by_mini.txt").read_text()


def test_meta_of_mainline_file() -> None:
    data = lr_file.load(str(GOLDEN / "traj" / "d_mainline_raw_torch.learning_rates.txt"))
    assert data[2].meta["global_train_step"] == 5
    assert data[2].meta["distributed"] is None
    assert all(isinstance(v, float) for v in data[2].error.values())
    assert not any(key.startswith(":") for key in data[2].error)


@pytest.mark.parametrize(
    ("text", "rate", "error"),
    [
        ("{1: EpochData(0.1, {'a': 1})}", 0.1, {"a": 1.0}),
        ("{1: EpochData(0.1)}", 0.1, {}),
        ("{1: EpochData(learningRate=None, error=None)}", None, {}),
        ("{1: EpochData(learning_rate=1, error={}, meta={})}", 1.0, {}),
        ("{1: EpochData(learningRate=0.1, error=2.5)}", 0.1, {"old_format_score": 2.5}),
        ("{1: EpochData(learningRate=np.float64(0.1), error={'a': np.float32(0.5)})}", 0.1, {"a": 0.5}),
        ("{1: EpochData(learningRate=numpy.float64(1e-3), error={'a': -inf})}", 0.001, {"a": -math.inf}),
        (
            "{1: EpochData(learningRate=0.1, error={'a': float('-inf'), 'b': np.inf})}",
            0.1,
            {"a": -math.inf, "b": math.inf},
        ),
        ("  \n {\n1 : EpochData( learningRate = 0.1 ,\n error={\n'a':\n1.0,\n}\n) ,}  \n\n", 0.1, {"a": 1.0}),
    ],
)
def test_forms_that_can_be_read(text: str, rate: float | None, error: dict[str, float]) -> None:
    assert lr_file.loads(text) == {1: EpochData(rate, error)}


def test_bare_nan() -> None:
    assert math.isnan(lr_file.loads("{1: EpochData(nan, {'a': nan})}")[1].error["a"])


@pytest.mark.parametrize(
    "text",
    [
        "{1: EpochData(__import__('os').system('touch HACKED'))}",
        "{1: EpochData(0.1, error={'a': open('HACKED', 'w').write('x')})}",
        "__import__('os').mkdir('HACKED')",
        "{1: EpochData(0.1, error={'a': (lambda: open('HACKED', 'w'))()})}",
        "{1: EpochData(*[0.1])}",
        "{1: EpochData(**{'learningRate': 0.1})}",
        "{**{1: EpochData(0.1)}}",
        "{1: EpochData(0.1, {**{}})}",
        "{x: EpochData(0.1) for x in [1]}",
        "{1: EpochData(0.1 + 1)}",
        "{1: EpochData(os.path)}",
        "{1: EpochData(np.load('x'))}",
        "{1: EpochData(np.float64.__class__)}",
        "{1: EpochData(float('0.1', 1))}",
        "{1: EpochData(float('abc'))}",
        "{1: EpochData(1" + "0" * 400 + ")}",
        "{1: EpochData('0.1')}",
        "{1: EpochData()}",
        "{1: EpochData(0.1, {}, 3)}",
        "{1: EpochData(0.1, learningRate=0.2)}",
        "{1: EpochData(0.1, lr=0.2)}",
        "{1: EpochData(0.1, {'a': 'b'})}",
        "{1: EpochData(0.1, {'a': None})}",
        "{1: EpochData(0.1, {1: 1.0})}",
        "{1: EpochData(0.1, [1.0])}",
        "{1: EpochData(0.1), 1: EpochData(0.2)}",
        "{1: 0.1}",
        "{'1': EpochData(0.1)}",
        "{True: EpochData(0.1)}",
        "[EpochData(0.1)]",
        "{1: EpochData(0.1)",
        "{1: EpochData(0.1)}\x00",
        "import os",
        "{1: EpochData(" + "-" * 100_000 + "1)}",
        "{1: EpochData(" + "(" * 1000 + "1" + ")" * 1000 + ")}",
        "",
        " \n",
    ],
)
def test_anything_else_is_an_error_and_not_executed(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rates").write_text(text)
    with pytest.raises(DataFileError, match="learning-rate file 'rates'"):
        lr_file.load("rates")
    assert os.listdir(".") == ["rates"]


def test_error_names_position() -> None:
    with pytest.raises(DataFileError, match=r"'f'.* line 2, column 4: expected EpochData.*near '5}'"):
        lr_file.loads("{\n1: 5}", filename="f")
    with pytest.raises(DataFileError, match=r"line 3"):
        lr_file.loads("\n\n{1: EpochData(0.1", filename="f")


def test_missing_and_binary_file(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="nothere"):
        lr_file.load(str(tmp_path / "nothere"))
    (tmp_path / "bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataFileError, match="not a text file"):
        lr_file.load(str(tmp_path / "bin"))


_keys = st.text(max_size=30).filter(lambda key: not key.startswith(":meta:"))
_meta_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_epoch_data = st.builds(
    lambda rate, error, meta: EpochData(rate, error, meta=meta),
    st.none() | st.floats(),
    st.dictionaries(_keys, st.floats()),
    st.dictionaries(st.text(max_size=10), _meta_values, max_size=3),
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.integers(1, 10_000), _epoch_data, max_size=5))
def test_round_trip_of_anything(data: dict[int, EpochData]) -> None:
    text = lr_file.dumps(data)
    again = lr_file.loads(text)
    # nan is not equal to itself, its text is.
    assert lr_file.dumps(again) == text
    assert {epoch: repr(d) for epoch, d in again.items()} == {
        epoch: repr(EpochData(d.learning_rate, dict(sorted(d.error.items())), meta=_sorted(d.meta)))
        for epoch, d in data.items()
    }


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return value


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_random_text_gives_data_or_the_error(text: str) -> None:
    try:
        lr_file.loads(text)
    except DataFileError:
        pass


def test_external_tools_can_evaluate_the_file() -> None:
    def epoch_data(learningRate: float, error: dict[str, float]) -> tuple[float, dict[str, float]]:
        return learningRate, error

    data = {1: EpochData(0.1, {"a": math.inf}), 2: EpochData(numpy.float32(0.5))}
    data[2].error["x"] = numpy.float64(0.25)  # user code may do this
    text = lr_file.dumps(data)
    names = {"EpochData": epoch_data, "nan": math.nan, "inf": math.inf, "np": numpy}
    assert eval(text, names) == {1: (0.1, {"a": math.inf}), 2: (0.5, {"x": 0.25})}
    assert "np." not in text


def test_failed_write_leaves_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sub" / "rates"
    lr_file.save(str(path), {1: EpochData(0.1)})
    before = path.read_bytes()

    def fail(fd: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        lr_file.save(str(path), {1: EpochData(0.2)})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["rates"]


def test_file_without_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lr_file.save("rates", {1: EpochData(0.1)})
    assert lr_file.load("rates") == {1: EpochData(0.1)}


def test_killed_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "rates"
    code = (
        "import sys, itertools\n"
        "from returnn.lr import lr_file\n"
        "from returnn.lr.epoch_data import EpochData\n"
        "for i in itertools.count():\n"
        "    lr_file.save(sys.argv[1], {ep: EpochData(0.1, {'score': float(i)}) for ep in range(1, 300)})\n"
        "    if i == 3: print('ready', flush=True)\n"
    )
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as proc:
            assert proc.stdout is not None
            assert proc.stdout.readline() == "ready\n"
            proc.send_signal(signal.SIGKILL)
        data = lr_file.load(str(path))
        assert len(data) == 299
        assert len({d.error["score"] for d in data.values()}) == 1


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    os.symlink("real/rates", tmp_path / "rates")
    lr_file.save(str(tmp_path / "rates"), {1: EpochData(0.1)})
    assert (tmp_path / "rates").is_symlink()
    assert lr_file.load(str(tmp_path / "real" / "rates")) == {1: EpochData(0.1)}


def test_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(DataFileError, match='Cannot write the learning-rate file .*taken/rates.*"learning_rate_file"'):
        lr_file.save(str(tmp_path / "taken" / "rates"), {})
