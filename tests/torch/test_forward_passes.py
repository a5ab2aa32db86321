"""The task forward: callbacks, output file, order, memory; in-process, on tiny data, in the Mini dialect."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import returnn.forward_iface
import returnn.torch.engine
from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.datasets import init_dataset
from returnn.errors import ConfigError, DatasetError, DeviceMemoryError, ModelError, NotSupportedError
from returnn.forward_iface import ForwardCallbackIface
from returnn.frontend.run_ctx import RunCtx
from returnn.log import log
from returnn.tensor import TensorDict
from returnn.torch.context import get_run_ctx
from returnn.torch.engine import Engine

LENS = [3, 5, 1, 4, 2]


@pytest.fixture(autouse=True)
def _in_tmp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PT_DEVICE", raising=False)
    log.initialize(verbosity=[5])
    with process_state_ctx(global_config=None, run_ctx=None):
        yield


def _dataset(lens: list[int] = LENS, **opts: Any) -> dict[str, Any]:
    data = [{"data": numpy.arange(n * 2, dtype="float32").reshape(n, 2) + i} for i, n in enumerate(lens)]
    return {"class": "StaticDataset", "data": data, "output_dim": {"data": (2, 2)}, **opts}


class Callback(ForwardCallbackIface):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.values: dict[str, dict[str, numpy.ndarray]] = {}
        self.model: torch.nn.Module | None = None

    def init(self, *, model: torch.nn.Module) -> None:
        """Keep the model."""
        self.model = model
        self.calls.append("init")

    def process_seq(self, *, seq_tag: str, outputs: TensorDict) -> None:
        """Keep the values."""
        self.calls.append(seq_tag)
        self.values[seq_tag] = {name: tensor.raw_tensor for name, tensor in outputs.data.items()}

    def finish(self) -> None:
        """Note the call."""
        self.calls.append("finish")


def _forward_step(*, model: torch.nn.Module, data: dict[str, Any], run_ctx: RunCtx, **_kwargs: object) -> None:
    out = model(data["data"])
    run_ctx.mark_as_output(out, "output", dims=[len(out), data["data:size1"], 3])
    run_ctx.mark_as_output(out.sum(dim=2), "sums", dims=[len(out), data["data:size1"]])


def _config(**opts: Any) -> Config:
    return Config(
        {
            "task": "forward",
            "device": "cpu",
            "forward": _dataset(),
            "get_model": lambda **_kwargs: torch.nn.Linear(2, 3),
            "forward_step": _forward_step,
            "allow_random_model_init": True,
            "batch_size": None,
            "max_seqs": 2,
            "num_workers_per_gpu": 0,
            **opts,
        }
    )


def _forward(**opts: Any) -> Engine:
    engine = Engine(config=_config(**opts))
    engine.init_forward()
    engine.forward()
    return engine


def _expected(engine: Engine, lens: list[int] = LENS) -> dict[str, numpy.ndarray]:
    assert engine._model is not None
    with torch.no_grad():
        return {
            f"seq-{i}": engine._model(torch.tensor(seq["data"])).numpy() for i, seq in enumerate(_dataset(lens)["data"])
        }


def _check(callback: Callback, engine: Engine) -> None:
    expected = _expected(engine)
    assert callback.values.keys() == expected.keys()
    for tag, value in expected.items():
        numpy.testing.assert_allclose(callback.values[tag]["output"], value, rtol=1e-5)
        numpy.testing.assert_allclose(callback.values[tag]["sums"], value.sum(1), rtol=1e-4, atol=1e-5)


def test_the_interface_can_be_imported_from_both_places() -> None:
    assert returnn.torch.engine.ForwardCallbackIface is returnn.forward_iface.ForwardCallbackIface


@pytest.mark.parametrize("form", ["instance", "class", "function"])
def test_a_callback_gets_each_sequence_longest_first(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[Callback] = []

    class Noting(Callback):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    value = Noting if form == "class" else (lambda: Noting()) if form == "function" else Noting()
    engine = _forward(forward_callback=value)
    (callback,) = made
    assert callback.calls == ["init", "seq-1", "seq-3", "seq-0", "seq-4", "seq-2", "finish"]
    assert callback.model is engine._model and not engine._model.training  # type: ignore[union-attr]
    _check(callback, engine)
    out = capsys.readouterr().out
    assert (
        "Dataset 'forward': sorted by length, longest first (seq_ordering was 'default'). sort_dataset = False" in out
    )
    assert (
        "Start Forwarding\n" in out
        and "forward epoch 1, step:2, step time: " in out
        and "Finished forwarding in " in out
    )
    assert not os.path.exists("output.hdf")


def test_sort_dataset_false_keeps_the_order() -> None:
    callback = Callback()
    _check(callback, _forward(forward_callback=callback, sort_dataset=False))
    assert callback.calls == ["init", *(f"seq-{i}" for i in range(5)), "finish"]


def test_without_callback_the_order_stays() -> None:
    engine = _forward()
    dataset = init_dataset({"class": "HDFDataset", "files": ["output.hdf"]})
    dataset.init_seq_order(epoch=1)
    assert dataset.get_all_tags() == [f"seq-{i}" for i in range(5)]
    for i, value in enumerate(_expected(engine).values()):
        dataset.load_seqs(i, i + 1)
        numpy.testing.assert_allclose(dataset.get_data(i, "data"), value, rtol=1e-5)


def test_forward_with_callback_on_a_dataset_of_the_caller(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine(config=_config(forward=_dataset([1])))
    engine.init_forward()
    dataset = init_dataset(_dataset())
    dataset.init_seq_order(epoch=1, seq_order=[4, 2, 0])
    callback = Callback()
    engine.forward_with_callback(dataset=dataset, callback=callback, dataset_init_epoch=False)
    assert callback.calls == ["init", "seq-4", "seq-2", "seq-0", "finish"]
    callback = Callback()
    engine.forward_with_callback(dataset=dataset, callback=callback)
    assert callback.calls[1:-1] == ["seq-1", "seq-3", "seq-0", "seq-4", "seq-2"]
    _check(callback, engine)


def test_a_model_that_is_sharded_for_its_training_is_refused() -> None:
    engine = Engine(config=_config())
    engine.init_forward()
    engine._sharded = object()  # type: ignore[assignment]
    with pytest.raises(NotSupportedError, match="sharded over the ranks.*Use the task forward with its checkpoint"):
        engine.forward_with_callback(dataset=init_dataset(_dataset()), callback=Callback())


def test_forward_with_callback_after_training() -> None:
    def train_step(*, model: torch.nn.Module, data: dict[str, Any], run_ctx: RunCtx, **_kwargs: object) -> None:
        run_ctx.mark_as_loss(model(data["data"]).square().mean(), "l2")

    contexts = []

    def forward_step(*, run_ctx: RunCtx, **kwargs: Any) -> None:
        contexts.append((run_ctx.stage, run_ctx.epoch, run_ctx.global_step, get_run_ctx() is run_ctx))
        _forward_step(run_ctx=run_ctx, **kwargs)

    dev = _dataset([2, 1])
    config = _config(
        task="train",
        train=_dataset(),
        dev=dev,
        train_step=train_step,
        num_epochs=2,
        forward_step=forward_step,
        optimizer={"class": "sgd"},
        learning_rate=0.1,
    )
    engine = Engine(config=config)
    engine.init_train()
    engine.train()
    callback = Callback()
    engine.forward_with_callback(dataset=init_dataset(_dataset()), callback=callback)
    _check(callback, engine)
    assert set(contexts) == {("forward_step", 3, 6, True)}


def test_one_sequence_and_none(capsys: pytest.CaptureFixture[str]) -> None:
    callback = Callback()
    _forward(forward_callback=callback, forward=_dataset([2]))
    assert callback.calls == ["init", "seq-0", "finish"]
    callback = Callback()
    none: dict[str, Any] = {"min_seq_length": 100, "allow_skipping_seqs_in_forward": True}
    _forward(forward_callback=callback, **none)
    assert callback.calls == ["init", "finish"]
    out = capsys.readouterr().out
    assert "Warning: No data in forward dataset. All sequences were dropped" in out
    with pytest.raises(DatasetError, match="No data in forward dataset"):
        _forward(**none)
    assert not os.path.exists("output.hdf")


def test_error_of_the_callback_names_the_sequence() -> None:
    class Failing(Callback):
        def process_seq(self, *, seq_tag: str, outputs: TensorDict) -> None:
            super().process_seq(seq_tag=seq_tag, outputs=outputs)
            if seq_tag == "seq-0":
                raise ValueError("no such word")

    callback = Failing()
    with pytest.raises(ValueError, match="no such word") as info:
        _forward(forward_callback=callback)
    assert "in Failing.process_seq, sequence 'seq-0'" in getattr(
        info.value, "__notes__", ["in Failing.process_seq, sequence 'seq-0'"]
    )
    assert callback.calls[-1] == "seq-0"  # finish is not called


def test_limits_that_would_drop_sequences() -> None:
    callback = Callback()
    with pytest.raises(
        ConfigError, match="max_seq_length = 4 may drop sequences.*allow_skipping_seqs_in_forward = True"
    ):
        _forward(forward_callback=callback, max_seq_length=4)
    _forward(forward_callback=callback, max_seq_length=4, allow_skipping_seqs_in_forward=True)
    assert callback.calls == ["init", "seq-3", "seq-0", "seq-4", "seq-2", "finish"]
    engine = Engine(config=_config(min_seq_length=2))
    engine.init_forward()
    with pytest.raises(ConfigError, match="min_seq_length = 2 may drop"):
        engine.forward_with_callback(dataset=init_dataset(_dataset()), callback=Callback())
    callback = Callback()
    engine.forward_with_callback(dataset=init_dataset(_dataset()), callback=callback, allow_skipping_seqs=True)
    assert "seq-2" not in callback.calls and "seq-1" in callback.calls


def test_what_would_fail_later_is_found_before_data_and_model() -> None:
    def get_model(**_kwargs: object) -> torch.nn.Module:
        raise AssertionError("the model was built in vain")

    Path("there.hdf").write_bytes(b"")
    unreadable = {"class": "HDFDataset", "files": ["missing.hdf"]}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"output_file": "there.hdf"}, "'there.hdf' .* exists already"),
        ({"output_file": "no/x.hdf"}, "the folder 'no' does not exist"),
        ({"forward_callback": Callback, "forward_init_hook": print}, "are both set"),
    ]
    for opts, text in cases:
        with pytest.raises(ConfigError, match=text):
            _forward(get_model=get_model, forward=unreadable, **opts)
    Path("output.hdf").write_bytes(b"")  # by another program; this forward_step needs no such file
    _forward(forward_step=lambda **_kwargs: None)
    with pytest.raises(ConfigError, match="'output.hdf' .* exists already"):
        _forward()


class OutOfMemory:
    """A forward_step for which batches of more than ``max_seqs`` sequences, or ``max_frames``, do not fit."""

    def __init__(self, max_seqs: int, max_frames: int = 1000):
        self.max_seqs = max_seqs
        self.max_frames = max_frames
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, *, data: dict[str, Any], run_ctx: RunCtx, **kwargs: Any) -> None:
        """Run the usual step, or fail."""
        x = data["data"]
        self.shapes.append(tuple(x.shape[:2]))
        assert int(data["data:size0"]) == len(x) == len(data["seq_tag"]) and x.shape[1] == int(data["data:size1"].max())
        if len(x) > self.max_seqs or x.shape[1] > self.max_frames:
            # As a step that fails on its way.
            run_ctx.mark_as_output(x, "output", dims=[len(x), data["data:size1"], 2])
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        _forward_step(data=data, run_ctx=run_ctx, **kwargs)


def test_batches_that_do_not_fit_are_split(capsys: pytest.CaptureFixture[str]) -> None:
    callback = Callback()
    step = OutOfMemory(max_seqs=2)
    engine = _forward(forward_callback=callback, forward_step=step, forward_auto_split_batch_on_oom=True, max_seqs=5)
    _check(callback, engine)
    assert callback.calls[1:-1] == ["seq-1", "seq-3", "seq-0", "seq-4", "seq-2"]
    assert step.shapes == [(5, 5), (3, 5), (2, 5), (1, 3), (2, 2)]  # the first half is the greater one; less padding
    out = capsys.readouterr().out
    assert (
        "Out of memory with a batch of 5 sequences (data [5, 5, 2]): forward_step is called again for the first 3 and"
        in out
    )


def test_split_batches_in_the_output_file() -> None:
    engine = _forward(forward_step=OutOfMemory(max_seqs=1), forward_auto_split_batch_on_oom=True, max_seqs=4)
    dataset = init_dataset({"class": "HDFDataset", "files": ["output.hdf"]})
    dataset.init_seq_order(epoch=1)
    for i, value in enumerate(_expected(engine).values()):
        dataset.load_seqs(i, i + 1)
        assert dataset.get_tag(i) == f"seq-{i}"
        numpy.testing.assert_allclose(dataset.get_data(i, "data"), value, rtol=1e-5)


def test_one_sequence_that_does_not_fit() -> None:
    with pytest.raises(
        DeviceMemoryError, match=r"for the sequence 'seq-1' alone \(data \[1, 5, 2\]\).*Tried to allocate"
    ):
        _forward(forward_step=OutOfMemory(5, max_frames=4), forward_auto_split_batch_on_oom=True)
    assert [name for name in os.listdir(".") if "hdf" in name] == []


def test_without_the_option_the_error_tells_about_it() -> None:
    with pytest.raises(torch.OutOfMemoryError) as info:
        _forward(forward_step=OutOfMemory(max_seqs=1))
    notes = getattr(info.value, "__notes__", None)
    assert notes is None or "forward_auto_split_batch_on_oom = True splits such batches" in notes[-1]


def test_missing_and_further_outputs() -> None:
    outputs = {"output": {"dim": 3}, "other": {"dim": 3}}
    with pytest.raises(ModelError, match=r"marked the outputs \['output'\].*\['other', 'output'\]"):
        _forward(
            model_outputs=outputs,
            forward_step=lambda *, model, data, run_ctx, **_kwargs: run_ctx.mark_as_output(
                model(data["data"]), "output", dims=[len(data["seq_tag"]), data["data:size1"], 3]
            ),
        )


def test_expected_outputs_have_no_lengths_of_the_last_step() -> None:
    seen = []

    def step(*, model: torch.nn.Module, data: dict[str, Any], run_ctx: RunCtx, **_kwargs: object) -> None:
        assert run_ctx.expected_outputs is not None
        sizes = run_ctx.expected_outputs["output"].dims[1].dyn_size_ext
        assert sizes is not None
        seen.append(sizes.raw_tensor)
        sizes.raw_tensor = data["data:size1"].int()
        run_ctx.mark_as_output(model(data["data"]), name="output")

    callback = Callback()
    engine = _forward(forward_step=step, model_outputs={"output": {"dim": 3}}, forward_callback=callback)
    assert seen == [None, None, None]
    for tag, value in _expected(engine).items():
        numpy.testing.assert_allclose(callback.values[tag]["output"], value, rtol=1e-5)


def test_interrupted_forward_leaves_no_file_and_no_workers() -> None:
    def step(*, data: dict[str, Any], run_ctx: RunCtx, **kwargs: Any) -> None:
        _forward_step(data=data, run_ctx=run_ctx, **kwargs)
        if "seq-2" in data["seq_tag"]:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        _forward(forward_step=step, num_workers_per_gpu=1)
    assert [name for name in os.listdir(".") if "hdf" in name] == []


def test_a_custom_engine_with_its_own_init_forward() -> None:
    class Custom(Engine):
        def init_forward(self, forward_data: Any = None) -> None:
            super(Engine, self).init_forward(forward_data)
            assert self.forward_dataset is not None
            self._forward_dataloader = self._create_data_loader(self.forward_dataset)
            self._load_model(epoch=None, filename=None)
            self._forward_step_func = _forward_step  # type: ignore[assignment]

    callback = Callback()
    engine = Custom(config=_config(forward_callback=callback, sort_dataset=False))
    engine.init_forward()
    engine.forward()
    _check(callback, engine)
