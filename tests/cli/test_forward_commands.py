"""The task forward with whole command lines: a callback in each dialect, mistakes, Ctrl-C."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import run_rnn, write_config

COMMON = """
    import json, os, signal
    import numpy, torch
    from returnn.forward_iface import ForwardCallbackIface

    task = "forward"
    device = "cpu"
    allow_random_model_init = True
    max_seqs = 2
    batch_size = 100
    data = [{"data": numpy.full((1 + i, 2), i, "float32")} for i in range(6)]
    forward_data = {"class": "StaticDataset", "data": data, "output_dim": {"data": (2, 2)}}

    class Model(torch.nn.Module):
        def forward(self, x):
            return x.sum(2)

    def get_model(**kwargs):
        print("model is built")
        return Model()

    class Callback(ForwardCallbackIface):
        def init(self, *, model):
            assert isinstance(model, Model) and not model.training
            self.res = {}

        def process_seq(self, *, seq_tag, outputs):
            if os.environ.get("STOP_AT") == seq_tag:
                os.kill(os.getpid(), signal.SIGINT)
            if os.environ.get("FAIL_AT") == seq_tag:
                raise KeyError("no such word")
            self.res[seq_tag] = outputs["sums"].raw_tensor.tolist()

        def finish(self):
            with open("out.json", "w") as f:
                json.dump(self.res, f)

    forward_callback = Callback
"""
MINI = (
    COMMON
    + """
    def forward_step(*, model, data, run_ctx, **kwargs):
        if os.environ.get("STOP_AT") in data["seq_tag"] and forward_callback is None:
            os.kill(os.getpid(), signal.SIGINT)
        run_ctx.mark_as_output(model(data["data"]), "sums", dims=[len(data["seq_tag"]), data["data:size1"]])
"""
)
MAINLINE = (
    COMMON
    + """
    import returnn.frontend as rf
    from returnn.tensor import Dim, batch_dim
    time_dim = Dim(None, name="time")
    extern_data = {"data": {"dims": [batch_dim, time_dim, Dim(2)]}}
    model_outputs = {"sums": {"dims": [batch_dim, time_dim]}}

    def forward_step(*, model, extern_data, **kwargs):
        rf.get_run_ctx().mark_as_output(model(extern_data["data"].raw_tensor), "sums")
"""
)


@pytest.mark.parametrize("text", [MINI, MAINLINE], ids=["mini", "mainline"])
def test_a_callback_gets_all_sequences(tmp_path: Path, text: str) -> None:
    write_config(tmp_path / "my.config", text)
    res = run_rnn("my.config", cwd=tmp_path)
    outputs = json.loads((tmp_path / "out.json").read_text())
    assert list(outputs) == [f"seq-{i}" for i in reversed(range(6))]
    assert outputs == {f"seq-{i}": [2.0 * i] * (i + 1) for i in range(6)}
    assert "sorted by length, longest first" in res.stdout and res.stderr == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my.config", "out.json"]


def test_options_of_step_lines_act(tmp_path: Path) -> None:
    write_config(tmp_path / "my.config", MAINLINE + "    log_batch_size = True\n    log_verbosity = 5\n")
    res = run_rnn("my.config", cwd=tmp_path)
    assert "num_seqs 2, max_size:time 6, sum_size:time 11" in res.stdout
    assert "nothing reads" not in res.stdout


def test_error_in_the_callback(tmp_path: Path) -> None:
    write_config(tmp_path / "my.config", MINI)
    res = run_rnn("my.config", cwd=tmp_path, env={"FAIL_AT": "seq-3"}, check=False)
    assert res.returncode == 1 and "KeyError: 'no such word'" in res.stderr
    text = res.stdout + res.stderr  # the log has it on Python 3.10
    assert "in Callback.process_seq, sequence 'seq-3'" in text
    assert 'my.config", line ' in res.stderr and not (tmp_path / "out.json").exists()


def test_a_file_that_exists_is_found_before_the_model_is_built(tmp_path: Path) -> None:
    write_config(tmp_path / "my.config", MAINLINE + "    forward_callback = None\n")
    (tmp_path / "output.hdf").write_bytes(b"old")
    res = run_rnn("my.config", cwd=tmp_path, check=False)
    assert res.returncode == 1 and "model is built" not in res.stdout
    (line,) = res.stderr.splitlines()
    assert "'output.hdf' (option \"output_file\") exists already" in line and "forward_override_hdf_output" in line
    assert (tmp_path / "output.hdf").read_bytes() == b"old"


@pytest.mark.parametrize("with_callback", [True, False])
def test_ctrl_c(tmp_path: Path, with_callback: bool) -> None:
    write_config(tmp_path / "my.config", MINI + ("" if with_callback else "    forward_callback = None\n"))
    res = run_rnn("my.config", cwd=tmp_path, env={"STOP_AT": "seq-2"}, check=False)
    assert res.returncode == 1 and res.stdout.endswith("KeyboardInterrupt\n") and res.stderr == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my.config"]
