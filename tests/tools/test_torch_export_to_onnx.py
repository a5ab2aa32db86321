"""tools/torch_export_to_onnx.py: names of the graph, both dialects, and that the file computes what PyTorch computes."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch

import returnn.__main__ as rnn
from returnn._state import state
from returnn.errors import ConfigError, MissingOptionError, ModelError, OptionError
from tests.helpers import ROOT, write_config
from tests.tools.tool_program import run_tool

onnxruntime = pytest.importorskip("onnxruntime")

TOOL = str(ROOT / "tools" / "torch_export_to_onnx.py")

MODEL = dedent(
    """
    import torch

    class Model(torch.nn.Module):
        def __init__(self, **kwargs):
            super().__init__()
            self.conv = torch.nn.Conv1d(9, 8, 3, padding=1, stride=2)
            self.lstm = torch.nn.LSTM(8, 8, bidirectional=True, batch_first=True)
            self.drop = torch.nn.Dropout(0.5)
            self.out = torch.nn.Linear(16, 2)

        def forward(self, x, lens):
            x = self.conv(x.transpose(1, 2)).transpose(1, 2)
            lens = (lens + 1) // 2
            mask = torch.arange(x.shape[1], device=x.device)[None] < lens[:, None]
            x, _ = self.lstm(x * mask[..., None])
            return torch.nn.functional.log_softmax(self.out(self.drop(x)), -1) * mask[..., None], lens

    def get_model(**kwargs):
        return Model()
    """
)
DATA = dedent(
    """
    forward = {"class": "Task12AXDataset", "num_seqs": 5}
    """
)
MINI_STEP = dedent(
    """
    def forward_step(*, model, data, run_ctx, **kwargs):
        out, lens = model(data["data"], data["data:size1"])
        run_ctx.mark_as_output(out, "log_probs", dims=[out.shape[0], lens, out.shape[2]])
    """
)
MAIN_STEP = dedent(
    """
    import returnn.frontend as rf

    extern_data = {"data": {"dim": 9}, "classes": {"dim": 2, "sparse": True, "available_for_inference": False}}
    model_outputs = {"output": {"dim": 2}}

    def forward_step(*, model, extern_data, **kwargs):
        data = extern_data["data"]
        out, lens = model(data.raw_tensor, data.dims[1].dyn_size_ext.raw_tensor)
        ctx = rf.get_run_ctx()
        ctx.expected_outputs["output"].dims[1].dyn_size_ext.raw_tensor = lens
        ctx.mark_as_default_output(out)
    """
)


def _checkpoint(config: Path) -> Path:
    namespace: dict[str, Any] = {"__file__": str(config)}  # Any: a config
    exec(config.read_text(), namespace)
    torch.manual_seed(1)
    path = config.with_suffix(".pt")
    torch.save({"model": namespace["get_model"]().state_dict(), "epoch": 3, "step": 20}, path)
    return path


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(rnn, "config", None)
    monkeypatch.setattr(state, "global_config", None)
    monkeypatch.setattr(state, "run_ctx", None)
    monkeypatch.setattr(state, "quitting", False)
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("torch_export_to_onnx")


def _export(tool: ModuleType, folder: Path, config_text: str, *args: str) -> Path:
    config = write_config(folder / "my.config", config_text)
    out = folder / "model.onnx"
    tool.main([TOOL, str(config), str(_checkpoint(config)), str(out), "--verbosity", "1", *args])
    return out


def _run_onnx(filename: Path, inputs: dict[str, numpy.ndarray]) -> dict[str, numpy.ndarray]:
    session = onnxruntime.InferenceSession(str(filename), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == list(inputs)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def _run_torch(config: Path, data: numpy.ndarray, lens: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    namespace: dict[str, Any] = {"__file__": str(config)}  # Any: a config
    exec(config.read_text(), namespace)
    model = namespace["get_model"]().eval()
    model.load_state_dict(torch.load(config.with_suffix(".pt"))["model"])
    with torch.no_grad():
        out, out_lens = model(torch.from_numpy(data), torch.from_numpy(lens))
    return out.numpy(), out_lens.numpy()


def _check_other_sizes(folder: Path, output: str, *, dtype: str) -> None:
    """With batch sizes and lengths that the exporter never saw; dropout must be off."""
    rng = numpy.random.RandomState(1)
    for lens in ([31], [4, 40, 17, 1]):
        data = rng.normal(size=(len(lens), max(lens), 9)).astype("float32")
        inputs = {"data": data, "data:size1": numpy.array(lens, dtype=dtype)}
        got = _run_onnx(folder / "model.onnx", inputs)
        expected, expected_lens = _run_torch(folder / "my.config", data, inputs["data:size1"])
        assert list(got) == [output, f"{output}:size1"]
        numpy.testing.assert_allclose(got[output], expected, atol=1e-5)
        numpy.testing.assert_array_equal(got[f"{output}:size1"], expected_lens)


def _run(*args: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run_tool("torch_export_to_onnx", *args, cwd=cwd, check=check)


def test_mainline_config_as_job_systems_call_it(tmp_path: Path) -> None:
    """Golden names of mainline's demo-torch, the order of the client's --input_names, and numbers of other sizes."""
    config = write_config(tmp_path / "my.config", MODEL + MAIN_STEP)
    checkpoint = _checkpoint(config)
    names = ["--input_names", "data,data:size1", "--output_names", "output,output:size1"]
    res = _run("my.config", checkpoint.name, "model.onnx", "--device", "cpu", "--verbosity", "5", *names, cwd=tmp_path)
    assert res.stderr == ""
    assert "*** Input names: ['data', 'data:size1']\n*** Output names: ['output', 'output:size1']\n" in res.stdout
    axes = {
        "data": {0: "global batch", 1: "time:var-unk:data"},
        "data:size1": {0: "global batch"},
        "output": {0: "global batch", 1: "time:var-unk:output"},
        "output:size1": {0: "global batch"},
    }
    assert f"*** Dynamic axes: {axes}\n" in res.stdout
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [(v.name, v.shape, v.type) for v in session.get_inputs()] == [
        ("data", ["global batch", "time:var-unk:data", 9], "tensor(float)"),
        ("data:size1", ["global batch"], "tensor(int32)"),
    ]
    _check_other_sizes(tmp_path, "output", dtype="int32")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "my.config", "my.pt"]


def test_mini_config_with_names_from_the_dataset(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _export(tool, tmp_path, MODEL + DATA + MINI_STEP)
    stdout = capsys.readouterr().out
    assert "*** Input names: ['data', 'data:size1']\n" in stdout
    assert "*** Output names: ['log_probs', 'log_probs:size1']\n" in stdout
    _check_other_sizes(tmp_path, "log_probs", dtype="int64")


@pytest.mark.slow
def test_the_other_exporter_is_tried(tool: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Raw audio with torch.stft and attention, in the data dict of most Mini configs; tracing does not know stft."""
    text = dedent(
        """
        train = {
            "class": "MetaDataset",
            "datasets": {"zip_dataset": {"class": "DummyDatasetMultipleSequenceLength", "input_dim": 1, "output_dim": 3,
                "num_seqs": 6, "seq_len": {"data": 800, "classes": 12}}},
            "data_map": {"raw_audio": ("zip_dataset", "data"), "labels": ("zip_dataset", "classes")},
            "seq_order_control_dataset": "zip_dataset",
        }

        class Model(torch.nn.Module):
            def __init__(self, **kwargs):
                super().__init__()
                self.register_buffer("window", torch.hann_window(40))
                self.att = torch.nn.MultiheadAttention(21, 3, batch_first=True, dropout=0.1)

            def forward(self, raw_audio, raw_audio_len):
                x = torch.stft(raw_audio.squeeze(-1), 40, 16, 40, self.window, center=False, return_complex=True)
                x = x.abs().transpose(1, 2)
                lens = (raw_audio_len - 40) // 16 + 1
                mask = torch.arange(x.shape[1])[None] < lens[:, None]
                return self.att(x, x, x, key_padding_mask=~mask, need_weights=False)[0], lens

        def forward_step(*, model, data, run_ctx, **kwargs):
            out, lens = model(raw_audio=data["raw_audio"], raw_audio_len=data["raw_audio:size1"])
            run_ctx.mark_as_output(out, "att", dims=[out.shape[0], lens, out.shape[2]])
        """
    )
    _export(tool, tmp_path, MODEL + text, "--verbosity", "3")
    stdout = capfd.readouterr().out
    assert "Exporter torchscript: SymbolicValueError" in stdout and "Exported with dynamo" in stdout
    assert "aten::" not in stdout  # torch's dump of the graph
    lens = [300, 120, 41]
    data = numpy.random.RandomState(1).normal(size=(3, 300, 1)).astype("float32")
    got = _run_onnx(tmp_path / "model.onnx", {"raw_audio": data, "raw_audio:size1": numpy.array(lens, dtype="int64")})
    expected, expected_lens = _run_torch(tmp_path / "my.config", data, numpy.array(lens, dtype="int64"))
    numpy.testing.assert_allclose(got["att"], expected, atol=1e-4)
    assert got["att:size1"].tolist() == expected_lens.tolist() == [17, 6, 1]


def test_user_dims_and_order_of_names(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Axes have the names of the user's Dims (golden of mainline's demo-rf); a Dim of two streams has one length tensor."""
    text = dedent(
        """
        from returnn.tensor import Dim, batch_dim
        time_dim = Dim(None, name="time")
        extern_data = {
            "data": {"dims": [batch_dim, time_dim, Dim(9, name="in")]},
            "align": {"dims": [batch_dim, time_dim], "dtype": "int32", "sparse_dim": Dim(4, name="c")},
        }
        model_outputs = {"output": {"dims": [batch_dim, time_dim, Dim(9, name="out")], "dtype": "float32"}}
        def forward_step(*, model, extern_data, **kwargs):
            x = extern_data["data"].raw_tensor * extern_data["align"].raw_tensor[:, :, None]
            from returnn.frontend import get_run_ctx
            get_run_ctx().mark_as_output(x, "output")
        """
    )
    _export(
        tool, tmp_path, MODEL + text, "--input_names", "align,data:size1,data", "--output_names", "output:size1,output"
    )
    stdout = capsys.readouterr().out
    axes = {
        "align": {0: "global batch", 1: "time"},
        "data:size1": {0: "global batch"},
        "data": {0: "global batch", 1: "time"},
        "output:size1": {0: "global batch"},
        "output": {0: "global batch", 1: "time"},
    }
    assert f"*** Dynamic axes: {axes}\n" in stdout
    inputs = {
        "align": numpy.array([[3, 2]], dtype="int32"),
        "data:size1": numpy.array([2], dtype="int32"),
        "data": numpy.ones([1, 2, 9], dtype="float32"),
    }
    got = _run_onnx(tmp_path / "model.onnx", inputs)
    assert got["output"][0, :, 0].tolist() == [3, 2] and got["output:size1"].tolist() == [2]


def test_returned_tensors_get_the_given_names(tool: ModuleType, tmp_path: Path) -> None:
    step = dedent(
        """
        def forward_step(*, model, data, **kwargs):
            return model.conv(data["data"].transpose(1, 2)), data["data"].sum(-1)
        """
    )
    _export(tool, tmp_path, MODEL + DATA + step, "--output_names", "a,b", "--input_names", "data")
    got = _run_onnx(tmp_path / "model.onnx", {"data": numpy.ones([2, 7, 9], dtype="float32")})
    assert {name: value.shape for name, value in got.items()} == {"a": (2, 8, 4), "b": (2, 7)}


def test_export_function_of_a_mini_config(tool: ModuleType, tmp_path: Path) -> None:
    text = dedent(
        """
        import json
        from returnn.torch.context import get_run_ctx
        class Small(torch.nn.Linear):
            def __init__(self, onnx_export=False, epoch=None, step=None, **kwargs):
                super().__init__(2, 2)
                self.args = [onnx_export, epoch, step, get_run_ctx().stage if onnx_export else None]
        get_model = Small
        def export(*, model, args, f):
            json.dump([model.args, args, model.training], open(f, "w"))
        """
    )
    out = _export(tool, tmp_path, MODEL + text)
    assert out.read_text() == '[[true, 3, 20, "load"], null, false]'


def test_export_function_of_a_mainline_config(tool: ModuleType, tmp_path: Path) -> None:
    """It has the arguments of torch.onnx.export."""
    text = dedent(
        """
        def export(*args, verbose, **kwargs):
            assert verbose and len(args) == 2 and list(args[1][0]) == kwargs["input_names"] and args[1][1] == {}
            torch.onnx.export(*args, dynamo=False, **kwargs)
        """
    )
    _export(tool, tmp_path, MODEL + MAIN_STEP + text)
    _check_other_sizes(tmp_path, "output", dtype="int32")


def test_a_size_that_became_a_number_is_noticed(tool: ModuleType, tmp_path: Path) -> None:
    """Tracing would write a file that only works for the length of the example."""
    step = dedent(
        """
        def forward_step(*, model, data, run_ctx, **kwargs):
            x = data["data"]
            run_ctx.mark_as_output(torch.cat([x[:, :int(n)] for n in [x.shape[1] // 2]], 1), "half")
        """
    )
    with pytest.raises(ModelError, match="exporter torchscript: onnxruntime gives another output 'half'"):
        _export(tool, tmp_path, MODEL + DATA + step, "--exporter", "torchscript")
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("text", "args", "error", "words"),
    [
        (MAIN_STEP, ["--input_names", "data"], ConfigError, "missmatch.*'data:size1'"),
        (MAIN_STEP, ["--output_names", "out,output:size1"], ConfigError, "--output_names.*'output:size1'"),
        (DATA + MINI_STEP, ["--input_names", "data"], ConfigError, "'data:size1'"),
        (DATA + MINI_STEP, ["--input_names", "data,data:size1,x"], ConfigError, "'x'"),
        (MINI_STEP, [], ConfigError, "extern_data = "),
        (DATA, [], MissingOptionError, "forward_step"),
        (DATA + "def forward_step(**kwargs): pass\n", [], ModelError, "gave no output"),
        (MAIN_STEP + "model_outputs = {'x': {'dim': 2}}\n", [], (ModelError, KeyError), "output"),
        (MAIN_STEP + "model_outputs = {'output': {'dim': 3}}\n", [], ModelError, "axis 2 has size 2"),
        (DATA + "def forward_step(run_ctx, **kwargs): run_ctx.file\n", [], AttributeError, "forward_init_hook"),
        (MAIN_STEP + "extern_data = {'data': {'dimm': 3}}\n", [], OptionError, "dimm"),
        (DATA + "def export(**kwargs): pass\n", [], ModelError, "did not write"),
    ],
)
def test_errors(
    tool: ModuleType, tmp_path: Path, text: str, args: list[str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        _export(tool, tmp_path, MODEL + text, *args)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my.config", "my.pt"]


def test_missing_lengths_of_an_output(tool: ModuleType, tmp_path: Path) -> None:
    step = MAIN_STEP.replace("dyn_size_ext.raw_tensor = lens", "name")
    with pytest.raises(ModelError, match="lengths of axis 1 are not known"):
        _export(tool, tmp_path, MODEL + step)


@pytest.mark.slow
def test_program_errors(tmp_path: Path) -> None:
    write_config(tmp_path / "my.config", MODEL + DATA + MINI_STEP)
    res = _run("my.config", "missing.pt", "o.onnx", cwd=tmp_path, check=False)
    assert res.returncode == 1
    assert res.stderr.splitlines()[-1].startswith("CheckpointError: Checkpoint not found")
    assert _run("my.config", cwd=tmp_path, check=False).returncode == 2
    if not torch.cuda.is_available():
        res = _run("my.config", "missing.pt", "o.onnx", "--device", "gpu", cwd=tmp_path, check=False)
        assert "No GPU device found" in res.stderr.splitlines()[-1]
