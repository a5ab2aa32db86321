"""tools/torch_scale_tuning.py: golden vectors of the spec, ties, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest

from returnn.cli._dataset_tools.scale_tuning import NBestLists, ScaleOptions, load_n_best, make_evaluator
from returnn.errors import ConfigError, DataFileError
from returnn.util.py_text_dict import save_text_dict
from tests.tools.tool_program import imports_torch, last_error_line, run_tool

_TOOL = "torch_scale_tuning"
_HYPS = {"a": ["x y z", "x y", "q"], "b": ["u v", "u w"], "c": ["x x", "x"]}
_SCORES: dict[str, dict[str, list[float]]] = {
    "am": {"a": [-1, -1.5, -3], "b": [-2, -2.2], "c": [-0.5, -0.7]},
    "lm": {"a": [-4, -2, -0.5], "b": [-3, -1], "c": [-2, -1]},
    "pr": {"a": [-0.1, -0.3, -0.2], "b": [-0.4, -0.2], "c": [-0.2, -0.1]},
}
_REFS = {"a": "x y", "b": "u w", "c": "x x"}


def _n_best(name: str) -> dict[str, Any]:
    return {tag: list(zip(scores, _HYPS[tag], strict=True)) for tag, scores in _SCORES[name].items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in _SCORES:
        save_text_dict(str(tmp_path / f"{name}.py.gz"), _n_best(name))
    save_text_dict(str(tmp_path / "refs.py"), _REFS)
    return tmp_path


def test_golden_one_free_scale(folder: Path) -> None:
    args = [
        "--names",
        "am",
        "lm",
        "--scores",
        "am.py.gz",
        "lm.py.gz",
        "--ref",
        "refs.py",
        "--fixed-scales",
        "am",
        "1.0",
    ]
    args += ["--max-scale", "1.0", "--num-steps", "11", "--output-scales", "scales.json"]
    out = run_tool(_TOOL, *args, cwd=folder).stdout
    assert json.loads((folder / "scales.json").read_text()) == {"am": 1.0, "lm": pytest.approx(0.6)}
    assert "WER: 16.67%" in out and "Oracle WER: 0.00%" in out
    assert not imports_torch(_TOOL, *args, cwd=folder)


def test_golden_grid_with_relative_and_negative_scale(folder: Path) -> None:
    args = ["--names", "pr", "lm", "am", "--scores", "pr.py.gz", "lm.py.gz", "am.py.gz", "--ref", "refs.py"]
    args += ["--fixed-scales", "am", "1.0", "--max-scale", "1.0", "--num-steps", "5", "--search-mode", "grid"]
    args += ["--negative-scales", "pr", "--scale-relative-to", "pr", "lm"]
    args += ["--output-scales", "scales.json", "--output-real-scales", "real.json"]
    run_tool(_TOOL, *args, cwd=folder)
    assert (folder / "scales.json").read_text() == '{"am": 1.0, "lm": 0.25, "pr": 0.25}\n'
    assert json.loads((folder / "real.json").read_text())["pr"] == -0.0625


def test_plot(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    args = ["--names", "am", "lm", "--scores", "am.py.gz", "lm.py.gz", "--ref", "refs.py", "--num-steps", "3"]
    run_tool(_TOOL, *args, "--output-grid-plot", "grid.png", cwd=folder)
    assert (folder / "grid.png").read_bytes().startswith(b"\x89PNG")


def _lists() -> NBestLists:
    return load_n_best([(name, _n_best(name)) for name in _SCORES], _REFS, refs_name="refs")


def test_evaluators_agree() -> None:
    pytest.importorskip("torch")
    scales = numpy.random.RandomState(1).uniform(-2, 2, (50, 3)).round(1)
    want = make_evaluator(_lists())(scales)
    numpy.testing.assert_allclose(make_evaluator(_lists(), batch_size=7)(scales), want)
    numpy.testing.assert_allclose(make_evaluator(_lists(), device="torch-cpu", batch_size=7)(scales), want)
    for i, (am, lm, pr) in enumerate(scales.tolist()):
        errors = 0.0
        for tag, hyps in _HYPS.items():
            sums = [am * a + lm * b + pr * c for a, b, c in zip(*(_SCORES[n][tag] for n in _SCORES), strict=True)]
            best = max(range(len(hyps)), key=lambda k: numpy.float32(sums[k]))  # noqa: B023  # called at once
            errors += _lists().distances[list(_HYPS).index(tag), best]
        assert want[i] == pytest.approx(errors / 6)


def test_first_of_ties_and_infinite_scores() -> None:
    content = {"a": [(0.0, "wrong"), (0.0, "x")], "b": [(float("-inf"), "wrong"), (float("nan"), "bad"), (-5.0, "x")]}
    lists = load_n_best([("s", content)], {"a": "x", "b": "x"}, refs_name="refs")
    for device in ("cpu", "torch-cpu"):
        assert make_evaluator(lists, device=device)(numpy.array([[1.0], [0.0]])).tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"fixed": {"x": 1.0}}, "--fixed-scales"),
        ({"negative": ["x"]}, "--negative-scales"),
        ({"relative_to": {"a": "b", "b": "a"}}, "circle"),
        ({"min_scales": {"a": 3.0}}, "empty"),
        ({"names": ["a", "a"]}, "twice"),
    ],
)
def test_wrong_options(kwargs: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        ScaleOptions(**{"names": ["a", "b"], **kwargs})


def test_wrong_files(folder: Path) -> None:
    am, lm = _n_best("am"), _n_best("lm")
    with pytest.raises(DataFileError, match=r"lm.* and am.*different tags: 1 .*'c'"):
        load_n_best([("am", am), ("lm", {tag: lm[tag] for tag in "ab"})], _REFS, refs_name="refs")
    with pytest.raises(DataFileError, match="different hypotheses"):
        load_n_best([("am", am), ("lm", {**lm, "a": lm["b"]})], _REFS, refs_name="refs")
    with pytest.raises(DataFileError, match="no n-best list"):
        load_n_best([("am", {**am, "a": []})], _REFS, refs_name="refs")
    args = ["--names", "am", "--scores", "am.py.gz", "--ref", "refs.py"]
    line = last_error_line(run_tool(_TOOL, *args, "--fixed-scales", "am", cwd=folder, check=False))
    assert "--fixed-scales needs pairs" in line
    assert run_tool(_TOOL, *args, "--names", "am", "lm", cwd=folder, check=False).returncode == 2
    assert "example" in run_tool(_TOOL, "--help", cwd=folder).stdout
