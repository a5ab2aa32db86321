"""The task forward in several processes, as a user starts it: results, order, errors."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from returnn.config import Config
from returnn.datasets.hdf import HDFDataset
from returnn.errors import NotSupportedError
from returnn.torch.forward_sink import CallbackSink, HdfSink, make_sink
from tests.helpers import run_rnn, write_config
from tests.torch.distributed.sharded_launch import run_rnn_ranks

CONFIG = """
    import os
    import numpy, torch
    import returnn.frontend as rf
    from returnn.forward_iface import ForwardCallbackIface
    from returnn.tensor import Dim, batch_dim

    task = "forward"
    device = "cpu"
    allow_random_model_init = True
    log_verbosity = 5
    time_dim, out_dim = Dim(None, name="time"), Dim(3, name="out")
    extern_data = {"data": {"dims": [batch_dim, time_dim, Dim(2)]}}
    data = [{"data": numpy.full((1 + (i * 7) % 5, 2), i, "float32")} for i in range(23)]
    forward_data = {"class": "StaticDataset", "data": data, "output_dim": {"data": (2, 2)}}
    batch_size = 10
    max_seqs = 3
    torch_dataloader_opts = {"num_workers": 1}

    def get_model(**kwargs):
        return torch.nn.Linear(2, 3)

    def forward_step(*, model, extern_data, **kwargs):
        tags = [str(tag) for tag in extern_data["seq_tag"].raw_tensor]
        if os.environ.get("FAIL_IN_STEP") in tags:
            raise ValueError("no luck")
        x = extern_data["data"].raw_tensor
        rf.get_run_ctx().mark_as_output(model(x), "output", dims=[batch_dim, time_dim, out_dim])
"""
CALLBACK = """
    class Callback(ForwardCallbackIface):
        def init(self, *, model):
            open(f"rank-{os.environ.get('RANK')}", "w").close()
            self.file = open("out.txt.part", "w")

        def process_seq(self, *, seq_tag, outputs):
            output = outputs["output"]
            assert output.dims[1] .size == 3 and output.dims[0].get_dim_value() == len(output.raw_tensor)
            if os.environ.get("FAIL_IN_CALLBACK") == seq_tag:
                raise ValueError("no space")
            print(seq_tag, output.raw_tensor.tolist(), file=self.file)

        def finish(self):
            self.file.close()
            os.rename("out.txt.part", "out.txt")

    forward_callback = Callback
"""


@pytest.mark.slow
def test_a_callback_gets_the_same_as_in_one_process(tmp_path: Path) -> None:
    config = str(write_config(tmp_path / "my.config", CONFIG + CALLBACK))
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    run_rnn(config, cwd=tmp_path / "one")
    run_rnn_ranks(2, config, cwd=tmp_path / "two")
    lines = (tmp_path / "one/out.txt").read_text().splitlines()
    assert (tmp_path / "two/out.txt").read_text().splitlines() == lines and len(lines) == 23
    lens = [line.count("[") for line in lines]
    assert lens == sorted(lens, reverse=True)
    assert sorted(p.name for p in (tmp_path / "two").iterdir() if p.name.startswith("rank-")) == ["rank-0"]


@pytest.mark.slow
def test_the_output_file_is_the_same_as_in_one_process(tmp_path: Path) -> None:
    # 3 processes: more than there are batches at the end
    config = str(write_config(tmp_path / "my.config", CONFIG))
    run_rnn(config, "++output_file", "one.hdf", cwd=tmp_path)
    out = run_rnn_ranks(3, config, "++output_file", "three.hdf", cwd=tmp_path)
    assert "Wrote 23 sequences to three.hdf" in out
    values = []
    for name in ("one.hdf", "three.hdf"):
        dataset = HDFDataset([str(tmp_path / name)])
        dataset.init_seq_order(epoch=1)
        dataset.load_seqs(0, 23)
        values.append([(dataset.get_tag(i), dataset.get_data(i, "data")) for i in range(23)])
    assert [tag for tag, _ in values[0]] == [f"seq-{i}" for i in range(23)]
    for (tag, value), (other_tag, other) in zip(*values, strict=True):
        assert tag == other_tag
        numpy.testing.assert_allclose(value, other, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["FAIL_IN_STEP", "FAIL_IN_CALLBACK"])
def test_an_error_on_one_rank_ends_all_and_names_the_sequence(tmp_path: Path, where: str) -> None:
    config = str(write_config(tmp_path / "my.config", CONFIG + (CALLBACK if where == "FAIL_IN_CALLBACK" else "")))
    out = run_rnn_ranks(2, config, cwd=tmp_path, env={where: "seq-11"}, check=False)
    assert "ValueError: no luck" in out or "ValueError: no space" in out
    assert "in Callback.process_seq, sequence 'seq-11'" in out or "sequences seq-" in out
    assert not (tmp_path / "out.txt").exists() and not list(tmp_path.glob("*hdf*"))


def _forward_config(**opts: object) -> Config:
    return Config(
        {"task": "forward", "forward_step": lambda **_kwargs: None, "get_model": lambda **_kwargs: None, **opts}
    )


@pytest.mark.parametrize("name", ["forward_init_hook", "forward_finish_hook"])
def test_hooks_are_for_one_process(name: str) -> None:
    config = _forward_config(**{name: lambda run_ctx: None})
    make_sink(config)
    with pytest.raises(NotSupportedError, match="hooks .* not supported with 2 processes.*Use forward_callback"):
        make_sink(config, rank=1, num_ranks=2)


def test_only_the_first_rank_has_a_callback_or_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = []

    class Callback:
        def __init__(self) -> None:
            made.append(self)

        def init(self, *, model: object) -> None:
            """As the interface."""

        def process_seq(self, *, seq_tag: str, outputs: object) -> None:
            """As the interface."""

        def finish(self) -> None:
            """As the interface."""

    config = _forward_config(forward_callback=Callback)
    assert isinstance(make_sink(config, rank=0, num_ranks=2), CallbackSink) and len(made) == 1
    assert isinstance(make_sink(config, rank=1, num_ranks=2), HdfSink) and len(made) == 1
    Path("x.hdf").write_bytes(b"")
    sink = make_sink(_forward_config(output_file="x.hdf"), rank=1, num_ranks=2)  # rank 0 says it
    assert isinstance(sink, HdfSink)
