"""
The contract with job systems: each command line they start, each file they expect, each text they parse.

One test per row of the table in the specification of the tools. tests/contract/test_client_job.py compares a whole
training with the log of a peer.
"""

from __future__ import annotations

import ast
import json
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy
import pytest
import torch

from tests.contract import client_code
from tests.helpers import GOLDEN, ROOT, run_program, run_rnn

NET = '''
    """The user's package, as it lies next to the config."""
    import json, os
    import torch

    class Model(torch.nn.Module):
        def __init__(self, model_config_dict, **kwargs):
            super().__init__()
            self.cfg = model_config_dict
            self.lin = torch.nn.Linear(9, self.cfg["dim"])

        def forward(self, x):
            return torch.log_softmax(self.lin(x), -1)

    def train_step(*, model, data, run_ctx, **kwargs):
        if run_ctx.epoch == 2 and run_ctx.stage == "train_step" and not os.path.exists("seen.json"):
            models = sorted(os.listdir(os.environ["MODEL_DIR"]))
            json.dump([models, open("learning_rates").read()], open("seen.json", "w"))
        if run_ctx.epoch == 3 and os.environ.get("CRASH"):
            raise SystemError("node failure")
        lens = data["data:size1"].to("cpu")
        log_probs = model(data["data"])
        mask = torch.arange(log_probs.shape[1])[None] < lens[:, None]
        targets = data["classes"][mask].long()
        ce = torch.nn.functional.nll_loss(log_probs[mask], targets, reduction="sum")
        run_ctx.mark_as_loss(name="ctc", loss=ce, inv_norm_factor=lens.sum())
        errors = (log_probs[mask].argmax(-1) != targets).float().sum()
        run_ctx.mark_as_loss(name="fer", loss=errors, scale=0.0, inv_norm_factor=lens.sum())

    def mainline_step(*, model, extern_data, **kwargs):
        import returnn.frontend as rf
        data, classes = extern_data["data"], extern_data["classes"]
        log_probs = model(data.raw_tensor)
        ce = torch.nn.functional.nll_loss(log_probs.transpose(1, 2), classes.raw_tensor.long(), reduction="none")
        rf.get_run_ctx().mark_as_loss(ce, "ctc", dims=data.dims[:2])
        errors = log_probs.argmax(-1) != classes.raw_tensor
        rf.get_run_ctx().mark_as_loss(errors, "fer", dims=data.dims[:2], as_error=True)

    def search_init_hook(run_ctx, **kwargs):
        run_ctx.recognition_file = open("search_out.py", "wt")
        run_ctx.recognition_file.write("{\\n")
        os.mkdir("audio_files")
        run_ctx.sum_probs = 0

    def search_step(*, model, data, run_ctx, **kwargs):
        log_probs = model(data["data"])
        run_ctx.sum_probs = run_ctx.sum_probs + log_probs.exp().sum((0, 1))
        for tag, labels, size in zip(data["seq_tag"], log_probs.argmax(-1), data["data:size1"]):
            text = " ".join("w@@ x" if v else "y" for v in labels[:size].tolist())
            run_ctx.recognition_file.write("%r: %r,\\n" % (tag, text))

    def search_finish_hook(run_ctx, **kwargs):
        run_ctx.recognition_file.write("}\\n")
        run_ctx.recognition_file.close()
        open("audio_files/a.txt", "w").close()
        with open("prior.txt", "w") as f:
            f.write("%s\\n" % run_ctx.sum_probs.tolist())

    def v1_step(*, model, data, run_ctx, **kwargs):
        log_probs = model(data["data"])
        run_ctx.mark_as_output(log_probs, "output", dims=[log_probs.shape[0], data["data:size1"], log_probs.shape[2]])

    def onnx_step(*, model, extern_data, **kwargs):
        from returnn.torch.context import get_run_ctx
        ctx = get_run_ctx()
        data = extern_data["data"]
        ctx.expected_outputs["log_probs"].dims[1].dyn_size_ext.raw_tensor = data.dims[1].dyn_size_ext.raw_tensor
        ctx.mark_as_output(model(data.raw_tensor), "log_probs")
'''


def _write_config(folder: Path, options: str, epilog: str) -> Path:
    """A config as such jobs generate it: options, then json for what is no literal, then imports of the user's package."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_net.py").write_text(textwrap.dedent(NET))
    partial = "__import__('functools').partial(__import__('my_net', fromlist=['Model']).Model, **{'model_config_dict': {'dim': 2}})"
    parts = [
        "#!rnn.py",
        "import os",
        "import sys",
        "sys.path.insert(0, os.path.dirname(__file__))",
        "target = 'classes'",
        "tf_log_dir = 'returnn-tf-log'",
        "device = 'cpu'",
        "log = ['./returnn.log']",
        "log_verbosity = 5",
        textwrap.dedent(options),
        "import json",
        'config = json.loads("{\\"max_seqs\\": 4}")',
        "locals().update(**config)",
        f"get_model = {partial}",
        textwrap.dedent(epilog),
    ]
    path = folder / "returnn.config"
    path.write_text("\n".join(parts) + "\n")
    return path


@dataclass(frozen=True)
class Training:
    """A finished training job that was restarted once."""

    work_dir: Path
    model_dir: Path
    first_run: subprocess.CompletedProcess[str]
    second_run: subprocess.CompletedProcess[str]

    @property
    def learning_rates(self) -> Path:
        return self.work_dir / "learning_rates"


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """ReturnnTrainingJob: the node fails in epoch 3, the same command is started again."""
    folder = tmp_path_factory.mktemp("training")
    work_dir, out_dir = folder / "work", folder / "output"
    work_dir.mkdir()
    config = _write_config(
        out_dir,
        f"""
        task = "train"
        model = {str(out_dir / "models" / "epoch")!r}
        learning_rate_file = "learning_rates"
        num_epochs = 5
        save_interval = 1
        batch_size = 500
        num_workers_per_gpu = 0
        optimizer = {{"class": "adamw", "epsilon": 1e-16, "weight_decay": 1e-3}}
        learning_rates = [0.01, 0.05, 0.001, 0.1, 0.0005]
        cleanup_old_models = {{"keep_last_n": 1, "keep_best_n": 1, "keep": [1]}}
        train = {{"class": "Task12AXDataset", "num_seqs": 20}}
        dev = {{"class": "Task12AXDataset", "num_seqs": 8, "fixed_random_seed": 1}}
        eval_datasets = {{"devtrain": {{"class": "Task12AXDataset", "num_seqs": 4, "fixed_random_seed": 2}}}}
        use_horovod = False
        backend = "torch"
        """,
        "from my_net import train_step",
    )
    env = {"MODEL_DIR": str(out_dir / "models")}
    first = run_rnn(str(config), cwd=work_dir, env={**env, "CRASH": "1"}, check=False)
    second = run_rnn(str(config), cwd=work_dir, env=env)
    return Training(work_dir, out_dir / "models", first, second)


def _forward(folder: Path, load: Path, epilog: str, options: str = "") -> subprocess.CompletedProcess[str]:
    """A forward job: config in its output folder, run in a temporary folder."""
    config = _write_config(
        folder / "output",
        f"""
        task = "forward"
        load = {str(load)!r}
        batch_size = 500
        num_workers_per_gpu = 0
        forward = {{"class": "Task12AXDataset", "num_seqs": 5, "fixed_random_seed": 1}}
        """
        + options,
        epilog,
    )
    (folder / "tmp").mkdir()
    return run_rnn(str(config), cwd=folder / "tmp")


def _tool(name: str, *args: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run_program([sys.executable, str(ROOT / "tools" / name), *map(str, args)], cwd=cwd, check=check)


# --- training


@pytest.mark.slow
def test_training_job_writes_while_it_runs(training: Training) -> None:
    models, learning_rates = json.loads((training.work_dir / "seen.json").read_text())
    assert models == [".epoch.lock", "epoch.001.opt.pt", "epoch.001.pt"]
    path = training.work_dir / "seen_learning_rates"
    path.write_text(learning_rates)
    data = client_code.read_learning_rates(path)
    assert client_code.finished_epochs(data) == [1]
    assert set(data[1]["error"]) == {f"{s}{k}" for s in ("", "dev_loss_", "devtrain_loss_") for k in ("ctc", "fer")}


@pytest.mark.slow
def test_training_job_resumes_with_the_same_command(training: Training) -> None:
    assert training.first_run.returncode == 1
    assert training.first_run.stderr.splitlines()[-1] == "SystemError: node failure"
    assert "start epoch 3 with" in training.second_run.stdout and "start epoch 2 with" not in training.second_run.stdout
    assert (training.work_dir / "returnn.log").read_text().endswith(training.second_run.stdout)
    data = client_code.read_learning_rates(training.learning_rates)
    assert client_code.finished_epochs(data) == [1, 2, 3, 4, 5]
    assert [values["learningRate"] for values in data.values()] == [0.01, 0.05, 0.001, 0.1, 0.0005]
    assert all(set(values) == {"learningRate", "error"} for values in data.values())
    assert client_code.plot_keys(data) == []  # as with a peer: nothing to draw, but no error


@pytest.mark.slow
def test_training_job_on_several_devices(tmp_path: Path) -> None:
    """ReturnnTrainingJob with several processes per node: the same files, the same restart, reports of rank 0 only."""
    work_dir, out_dir = tmp_path / "work", tmp_path / "output"
    work_dir.mkdir()
    config = _write_config(
        out_dir,
        f"""
        task = "train"
        model = {str(out_dir / "models" / "epoch")!r}
        learning_rate_file = "learning_rates"
        num_epochs = 3
        batch_size = 500
        num_workers_per_gpu = 0
        optimizer = {{"class": "adamw"}}
        learning_rates = [0.01, 0.05, 0.001]
        train = {{"class": "Task12AXDataset", "num_seqs": 20}}
        dev = {{"class": "Task12AXDataset", "num_seqs": 8, "fixed_random_seed": 1}}
        use_horovod = False
        torch_distributed = {{}}
        backend = "torch"
        """,
        "from my_net import train_step",
    )
    options = ["--standalone", "--nnodes=1", "--nproc-per-node=2", "--tee=3"]
    command = [sys.executable, "-mtorch.distributed.run", *options, str(ROOT / "rnn.py"), str(config)]
    env = {"MODEL_DIR": str(out_dir / "models")}
    first = run_program(command, cwd=work_dir, env={**env, "CRASH": "1"}, check=False, timeout=120)
    assert first.returncode == 1
    assert "SystemError: node failure" in first.stderr.split("Root Cause")[1]
    second = run_program(command, cwd=work_dir, env=env, timeout=120)
    assert "[default0]:start epoch 3 with" in second.stdout and "start epoch 2 with" not in second.stdout
    assert "[default1]" not in second.stdout + second.stderr
    models, learning_rates = json.loads((work_dir / "seen.json").read_text())
    assert "epoch.001.pt" in models and "EpochData" in learning_rates
    data = client_code.read_learning_rates(work_dir / "learning_rates")
    assert client_code.finished_epochs(data) == [1, 2, 3]
    checkpoint = client_code.best_checkpoint(
        out_dir / "models", work_dir / "learning_rates", "dev_loss_ctc", 0, tmp_path
    )
    assert torch.load(checkpoint)["epoch"] in data
    logs = [f"returnn.torch-distrib-{rank}-2.log" for rank in range(2)]
    assert sorted(path.name for path in work_dir.glob("*.log")) == logs
    assert (work_dir / logs[1]).read_text().count("train epoch 1, step:0") == 1


@pytest.mark.slow
def test_horovod_is_refused_with_what_to_use(tmp_path: Path) -> None:
    config = _write_config(tmp_path, 'task = "nop"\nuse_horovod = True', "")
    result = run_rnn(str(config), cwd=tmp_path, check=False)
    assert result.returncode == 1
    assert '"use_horovod" is not supported' in result.stderr and "torch.distributed.run" in result.stderr


@pytest.mark.slow
def test_learning_rate_file_has_only_allowed_names(training: Training) -> None:
    names = {node.id for node in ast.walk(ast.parse(training.learning_rates.read_text())) if isinstance(node, ast.Name)}
    assert names <= {"EpochData", "nan", "inf", "np"}


@pytest.mark.slow
def test_best_checkpoint_of_each_key_exists(training: Training, tmp_path: Path) -> None:
    data = client_code.read_learning_rates(training.learning_rates)
    for key in data[5]["error"]:
        if len({values["error"][key] for values in data.values()}) > 1:  # else there is no best
            checkpoint = client_code.best_checkpoint(training.model_dir, training.learning_rates, key, 0, tmp_path)
            assert torch.load(checkpoint)["epoch"] in data
    with pytest.raises(KeyError):
        client_code.best_checkpoint(training.model_dir, training.learning_rates, "dev_loss_ce", 0, tmp_path)
    for epoch in (1, 5):
        assert (training.model_dir / f"epoch.{epoch:03}.pt").exists()


@pytest.mark.slow
def test_log_lines(training: Training) -> None:
    log = training.first_run.stdout + training.second_run.stdout
    model_dir = re.escape(str(training.model_dir))
    for pattern in (
        rf"Load model {model_dir}/epoch\.002",
        rf"Save model under {model_dir}/epoch\.001\.pt",
        rf"Save optimizer under {model_dir}/epoch\.001\.opt\.pt",
        r"start epoch 1 with learning rate 0\.01 \.\.\.",
        r"train epoch 1, step:1, step time: [\d.]+, total time: [\d.]+, total \(grad\) loss: [\d.]+, ctc: [\d.]+, fer: [\d.]+",
        r"Trained \d+ steps, took [\d.]+s",
        r"Evaluating dataset 'dev''",
        r"eval dev epoch 1, step:0, .*ctc: [\d.]+, fer: [\d.]+",
        r"Finished evaluating dev in [\d.e-]+s",
        r"elapsed: \d+:\d\d:\d\d\.\d+",
        r"Quitting",
    ):
        assert re.search(f"^{pattern}$", log, re.MULTILINE), pattern


@pytest.mark.slow
def test_training_job_in_the_mainline_dialect(tmp_path: Path) -> None:
    config = _write_config(
        tmp_path / "output",
        f"""
        task = "train"
        model = {str(tmp_path / "output" / "models" / "epoch")!r}
        learning_rate_file = "learning_rates"
        num_epochs = 2
        batch_size = 500
        torch_dataloader_opts = {{"num_workers": 0}}
        optimizer = {{"class": "adamw", "epsilon": 1e-16, "weight_decay": 1e-3}}
        learning_rates = [0.01, 0.005]
        cleanup_old_models = True
        train = {{"class": "Task12AXDataset", "num_seqs": 20}}
        dev = {{"class": "Task12AXDataset", "num_seqs": 8, "fixed_random_seed": 1}}
        eval_datasets = {{"devtrain": {{"class": "Task12AXDataset", "num_seqs": 4, "fixed_random_seed": 2}}}}
        extern_data = {{"data": {{"dim": 9}}, "classes": {{"dim": 2, "sparse": True}}}}
        behavior_version = 21
        """,
        "from my_net import mainline_step as train_step",
    )
    log = run_rnn(str(config), cwd=tmp_path).stdout
    progress = r"elapsed \d:\d\d:\d\d, exp\. remaining \d:\d\d:\d\d, complete [\d.]+%"
    value = r"\d+\.\d\d\d"
    for pattern in (
        r"net params #: 20",
        r"Starting training at epoch 1, global train step 0",
        r"start epoch 2 global train step \d+ with effective learning rate 0\.005 \.\.\.",
        rf"ep 1 train, step 0, ctc {value}, fer {value}, {value} sec/step, {progress}",
        r"Epoch 1: Trained \d+ steps, \d:\d\d:\d\d elapsed \([\d.]+% computing time, data: [\d.]+%, classes: [\d.]+% padding\)",
        rf"Epoch 2: Total train loss: ctc {value} fer {value}",
        rf"ep 1 dev eval, step 0, ctc {value}, fer {value}, {progress}",
        rf"Epoch 2 evaluation: dev: ctc {value} fer {value} devtrain: ctc {value} fer {value}",
        r"Finished training at epoch 2, global train step \d+",
        r"Save model under .*/epoch\.001\.pt",
        r"Quitting",
    ):
        assert re.search(f"^{pattern}$", log, re.MULTILINE), (pattern, log)
    data = client_code.read_learning_rates(tmp_path / "learning_rates")
    scores = {key for key in data[2]["error"] if not key.startswith(":meta:")}
    assert scores == {f"{s}_loss_{k}" for s in ("train", "dev", "devtrain") for k in ("ctc", "fer")}
    assert client_code.finished_epochs(data) == [1, 2]
    models, rates = tmp_path / "output" / "models", tmp_path / "learning_rates"
    best = client_code.best_checkpoint(models, rates, "dev_loss_ctc", 0, tmp_path)
    assert torch.load(best)["epoch"] in data


# --- checkpoints and forwarding


@pytest.mark.slow
def test_average_job_and_forward_job_with_any_output_files(training: Training, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    inputs = [training.model_dir / f"epoch.{epoch:03}.pt" for epoch in (1, 5)]
    average = tmp_path / "model" / "average.pt"
    _tool("torch_avg_checkpoints.py", "--checkpoints", *inputs, "--output_path", average, cwd=tmp_path)
    models = [torch.load(path)["model"]["lin.bias"] for path in inputs]
    torch.testing.assert_close(torch.load(average)["model"]["lin.bias"], (models[0] + models[1]) / 2)

    epilog = """
        from my_net import search_step as forward_step
        forward_init_hook = __import__("functools").partial(__import__("my_net").search_init_hook, **{"beam": 1})
        from my_net import search_finish_hook as forward_finish_hook
    """
    res = _forward(tmp_path, average, epilog)
    files = tmp_path / "tmp"
    assert {p.name for p in files.iterdir()} >= {"search_out.py", "prior.txt", "audio_files", "returnn.log"}
    for pattern in (
        rf"Load model {re.escape(str(average.with_suffix('')))}",
        r"forward epoch \d+, step:0, step time: [\d.]+",
        r"Finished forwarding in [\d.e-]+s",
    ):
        assert re.search(f"^{pattern}$", res.stdout, re.MULTILINE), pattern
    assert len(json.loads((files / "prior.txt").read_text())) == 2

    # Post-processing of the recognition, then the word error rate.
    texts = client_code.read_search_out(files / "search_out.py")
    assert list(texts) == [f"seq-{i}" for i in range(5)]
    client_code.bpe_to_words(files / "search_out.py", tmp_path / "words.py")
    wer = tmp_path / "wer"
    _wer(tmp_path / "words.py", tmp_path / "words.py", wer, cwd=tmp_path)
    assert float(wer.read_text()) == 0


@pytest.mark.slow
def test_old_forward_job_writes_hdf(training: Training, tmp_path: Path) -> None:
    options = '\noutput_file = "output.hdf"\nforward_override_hdf_output = True\neval_mode = False\n'
    _forward(
        tmp_path,
        training.model_dir / "epoch.005.pt",
        "from my_net import v1_step as forward_step",
        textwrap.indent(options, " " * 8),
    )
    with h5py.File(tmp_path / "tmp" / "output.hdf") as file:
        assert file["inputs"].shape == (sum(file["seqLengths"][:, 0]), 2)
        assert [tag.decode() for tag in file["seqTags"]] == [f"seq-{i}" for i in range(5)]
    assert (tmp_path / "tmp" / "returnn.log").exists()


@pytest.mark.parametrize("task", ["search", "compute_priors"])
def test_tasks_that_became_forward(tmp_path: Path, task: str) -> None:
    (tmp_path / "returnn.config").write_text(f"#!rnn.py\ntask = {task!r}\nload = 'models/epoch.005.pt'\n")
    res = run_rnn("returnn.config", cwd=tmp_path, check=False)
    assert res.returncode == 1
    assert "the task forward" in res.stderr.splitlines()[-1]
    code = (
        f"from returnn.cli.tasks import find_task\ntry: find_task({task!r})\nexcept NotImplementedError: print('right')"
    )
    assert run_program([sys.executable, "-c", code], cwd=ROOT).stdout == "right\n"


@pytest.mark.slow
def test_onnx_export_job(training: Training, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    extern_data = {"data": {"dim": 9}, "classes": {"dim": 2, "sparse": True, "available_for_inference": False}}
    model_outputs = {"log_probs": {"dim": 2}}
    options = f"extern_data = {extern_data!r}\nmodel_outputs = {model_outputs!r}"
    config = _write_config(tmp_path, options, "from my_net import onnx_step as forward_step")
    names = [client_code.onnx_names(entries) for entries in (extern_data, model_outputs)]
    assert names == [["data", "data:size1"], ["log_probs", "log_probs:size1"]]
    args = [
        "--device",
        "cpu",
        "--verbosity",
        "5",
        "--input_names",
        ",".join(names[0]),
        "--output_names",
        ",".join(names[1]),
    ]
    checkpoint = training.model_dir / "epoch.005.pt"
    _tool("torch_export_to_onnx.py", config, checkpoint, tmp_path / "model.onnx", *args, cwd=tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    data = numpy.random.RandomState(1).normal(size=(2, 30, 9)).astype("float32")
    log_probs, lens = session.run(names[1], {"data": data, "data:size1": numpy.array([30, 7], dtype="int32")})
    state = torch.load(checkpoint)["model"]
    expected = torch.log_softmax(torch.from_numpy(data) @ state["lin.weight"].T + state["lin.bias"], -1)
    numpy.testing.assert_allclose(log_probs, expected.numpy(), atol=1e-5)
    assert lens.tolist() == [30, 7]


# --- datasets


@pytest.mark.parametrize("as_text", [False, True])
def test_dump_hdf_job(tmp_path: Path, as_text: bool) -> None:
    dataset = {"class": "Task12AXDataset", "num_seqs": 3}
    value = repr(repr(dataset)) if as_text else repr(dataset)
    (tmp_path / "dataset.config").write_text(f"#!rnn.py\ntrain = {value}")
    sizes = []
    for name in ("a.hdf", "b.hdf"):
        (tmp_path / name).touch()  # the temporary file exists already
        args = ["--start_seq", 0, "--end_seq", 1, "--epoch", 1]
        _tool("hdf_dump.py", "dataset.config", tmp_path / name, *args, cwd=tmp_path)
        sizes.append((tmp_path / name).stat().st_size)
    assert sizes[0] == sizes[1]
    with h5py.File(tmp_path / "a.hdf") as file:
        assert file["seqTags"][...].tolist() == [b"seq-0", b"seq-1"]
        assert file["seqLengths"][...].tolist() == [[84, 84], [15, 15]]
        assert file["inputs"].shape == (99, 9)


def test_mean_and_std_dev_job(tmp_path: Path) -> None:
    (tmp_path / "returnn.config").write_text('#!rnn.py\ntrain = {"class": "Task12AXDataset", "num_seqs": 5}\n')
    args = "--endseq -1 --type null --stats --dump_stats stats --key data".split()
    _tool("dump-dataset.py", "returnn.config", *args, cwd=tmp_path)
    for name in ("mean", "std_dev"):
        values = [float(line) for line in (tmp_path / f"stats.{name}.txt").read_text().splitlines()]
        golden = numpy.loadtxt(GOLDEN / "07-tools-demos" / f"12ax.{name}.txt")
        numpy.testing.assert_allclose(values, golden, rtol=1e-5)


def test_seq_lens_job_uses_the_library(tmp_path: Path) -> None:
    (tmp_path / "returnn.config").write_text('#!rnn.py\ndataset = {"class": "Task12AXDataset", "num_seqs": 4}\n')
    code = f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from returnn.config import Config, set_global_config
        from returnn.datasets import init_dataset
        from returnn.log import log
        config = Config()
        config.load_file("returnn.config")
        set_global_config(config)
        if not config.has("log_verbosity"):
            config.typed_dict["log_verbosity"] = 4
        log.init_by_config(config)
        dataset = init_dataset(config.typed_value("dataset"))
        dataset.init_seq_order(epoch=1)
        with open("seq_lens.py", "w") as out:
            out.write("{{\\n")
            seq_idx = 0
            while dataset.is_less_than_num_seqs(seq_idx):
                dataset.load_seqs(seq_idx, seq_idx + 1)
                lens = dataset.get_seq_length(seq_idx)
                assert sorted(lens.keys()) == ["classes", "data"]
                out.write("%r: %s,\\n" % (dataset.get_tag(seq_idx), lens["data"]))
                seq_idx += 1
            out.write("}}\\n")
    """
    run_program([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path)
    assert ast.literal_eval((tmp_path / "seq_lens.py").read_text()) == {
        "seq-0": 84,
        "seq-1": 15,
        "seq-2": 65,
        "seq-3": 97,
    }


_BLISS = """<?xml version="1.0" encoding="utf-8" ?>
<corpus name="c">
  {recordings}
</corpus>
"""
_RECORDING = """<recording name="r{i}" audio="{audio}">
    <segment name="s1" start="0.0" end="0.504"><orth> hello   world </orth></segment>
    <segment name="s2" start="0.504" end="1.0"><orth>it's "q"</orth></segment>
  </recording>"""


def test_ogg_zip_job_with_merged_parts(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    parts = []
    for i in (1, 2):
        audio = tmp_path / f"r{i}.wav"
        soundfile.write(audio, numpy.sin(numpy.arange(16000) / (5.0 + i)) * 0.5, 16000)
        corpus = tmp_path / f"corpus.{i}.xml"
        corpus.write_text(_BLISS.format(recordings=_RECORDING.format(i=i, audio=audio)))
        parts.append(tmp_path / f"ogg.{i}.zip")
        (tmp_path / "segments").write_text(f"c/r{i}/s2\nc/r{i}/s1\n")
        args = ["--subset_segment_file", "segments", "--raw_sample_rate", 16000, "--feat_sample_rate", 100]
        _tool("bliss-to-ogg-zip.py", corpus, "--output", parts[-1], *args, cwd=tmp_path)
    client_code.merge_ogg_zips(parts, tmp_path / "out.ogg.zip", tmp_path / "merge")
    code = f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from returnn.datasets import init_dataset
        opts = {{"class": "OggZipDataset", "path": "out.ogg.zip", "use_cache_manager": True,
            "audio": {{"features": "raw", "sample_rate": 16000}}, "targets": None, "seq_ordering": "default"}}
        dataset = init_dataset(opts)
        dataset.init_seq_order(epoch=1)
        dataset.load_seqs(0, 4)
        print([(dataset.get_tag(i), dataset.get_data(i, "data").shape[0]) for i in range(4)])
    """
    res = run_program([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path)
    tags_and_lens = ast.literal_eval(res.stdout.splitlines()[-1])
    assert [tag for tag, _ in tags_and_lens] == ["c/r1/s1", "c/r1/s2", "c/r2/s1", "c/r2/s2"]
    assert all(abs(size - expected) < 200 for (_, size), expected in zip(tags_and_lens, [8064, 7936] * 2, strict=True))


def test_hdf_writer_jobs(tmp_path: Path) -> None:
    """Forms of the calls in jobs that write speaker labels, PCM data and alignments."""
    code = f"""
        import sys
        sys.path.append({str(ROOT)!r})
        import numpy
        from returnn.datasets.hdf import SimpleHDFWriter
        from returnn.datasets.util.hdf import SimpleHDFWriter as other
        assert other is SimpleHDFWriter
        labels = SimpleHDFWriter("labels.hdf", dim=10, ndim=1)
        for i, (name, n) in enumerate([("c/r/1", 3), ("c/r/2", 5)]):
            labels.insert_batch(numpy.full((1, n), i, dtype="int32"), [n], [name])
        labels.close()
        pcm = SimpleHDFWriter(filename="pcm.hdf", dim=1)
        pcm.insert_batch(inputs=numpy.ones((1, 7, 1), dtype="float32"), seq_len=[7], seq_tag=["c/r/1"])
        pcm.close()
        print(pcm.filename)
    """
    assert run_program([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path).stdout == "pcm.hdf\n"
    with h5py.File(tmp_path / "labels.hdf") as file:
        assert file["seqLengths"][:, 0].tolist() == [3, 5]
        assert file["inputs"][...].tolist() == [0] * 3 + [1] * 5
        assert [tag.decode() for tag in file["seqTags"]] == ["c/r/1", "c/r/2"]
    with h5py.File(tmp_path / "pcm.hdf") as file:
        assert file["inputs"].shape == (7, 1)


# --- texts


def _wer(hyps: Path, refs: Path, out: Path, *, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    args = ["--expect_full", "--hyps", hyps, "--refs", refs, "--out", out]
    return _tool("calculate-word-error-rate.py", *args, cwd=cwd, check=check)


def test_n_best_lists_and_word_error_rate(tmp_path: Path) -> None:
    n_best = {
        "c/r1/s1": [(-1.5, "x y"), (float("-inf"), ""), (-1.0, "x y z")],
        "c/r1/s2": [(-1.0, "u w"), (-1.0, "u v")],
        "c/r2#x/s1": [(-0.25, "x")],
    }
    client_code.write_n_best(tmp_path / "n_best.py", n_best)
    assert client_code.read_search_out(tmp_path / "n_best.py") == n_best
    client_code.take_best(tmp_path / "n_best.py", tmp_path / "best.py")
    best = client_code.read_search_out(tmp_path / "best.py")
    assert best == {"c/r1/s1": "x y z", "c/r1/s2": "u w", "c/r2#x/s1": "x"}
    (tmp_path / "refs.py").write_text("{\n'c/r1/s1': 'x y',\n'c/r1/s2': 'u w',\n'c/r2#x/s1': 'x x',\n}\n")
    assert client_code.words_to_ctm_recordings(tmp_path / "refs.py") == {"c/r1": ["s1", "s2"], "c/r2": [""]}
    _wer(tmp_path / "best.py", tmp_path / "refs.py", tmp_path / "wer", cwd=tmp_path)
    assert (tmp_path / "wer").read_text() == "33.33\n"
    _wer(tmp_path / "n_best.py", tmp_path / "refs.py", tmp_path / "wer", cwd=tmp_path)  # the first of each list
    assert float((tmp_path / "wer").read_text()) == pytest.approx(100 / 6, abs=0.01)
    (tmp_path / "refs.py").write_text("{'c/r1/s1': 'x y'}")
    assert (
        _wer(tmp_path / "best.py", tmp_path / "refs.py", tmp_path / "wer2", cwd=tmp_path, check=False).returncode == 1
    )


def test_vocabulary_jobs(tmp_path: Path) -> None:
    (tmp_path / "phonemes").write_bytes(pickle.dumps({"[space]": 0, "a": 1, "b": 2}))
    (tmp_path / "bpe.vocab").write_text("{'<s>': 0, '</s>': 0, '<unk>': 1, 'h@@': 2, 'i': 3}\n")
    (tmp_path / "bpe.codes").write_text("#version: 0.2\nh i\n")
    code = f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from returnn.datasets.util.vocabulary import BytePairEncoding, Vocabulary
        print(Vocabulary.create_vocab(vocab_file="phonemes", unknown_label=None).labels)
        bpe = Vocabulary.create_vocab(vocab_file="bpe.vocab", bpe_file="bpe.codes", unknown_label="<unk>")
        assert isinstance(bpe, BytePairEncoding)
        print(bpe.num_labels, bpe.get_seq("h"), bpe.get_seq_labels([2, 3]))
        print(Vocabulary.create_vocab(vocab_file="bpe.vocab", unknown_label=None).labels[1:])
    """
    res = run_program([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path)
    assert res.stdout.splitlines() == ["['[space]', 'a', 'b']", "4 [1] h@@ i", "['<unk>', 'h@@', 'i']"]


# --- command line


def test_options_on_the_command_line(tmp_path: Path) -> None:
    """ReturnnTrainingFromFileJob, ReturnnSearchFromFileJob."""
    (tmp_path / "returnn.config").write_text(
        textwrap.dedent(
            """\
            #!rnn.py
            from returnn.config import get_global_config
            seen_at_load = get_global_config().value("ext_name", None)
            typed_float = 1.0
            typed_list = [0]

            def report():
                config = get_global_config()
                res = {key: config.value(key, None) for key in ("ext_name", "ext_neg", "ext_list", "ext_int")}
                res["seen_at_load"] = seen_at_load
                res["typed"] = [config.float("typed_float", 0), config.typed_value("typed_list")]
                import json
                json.dump(res, open("report.json", "w"))
            """
        )
    )
    args = {
        "ext_name": "abc",
        "ext_neg": -0.5,
        "ext_list": [1, 2],
        "ext_int": 7,
        "typed_float": -0.5,
        "typed_list": [1, 2],
        "task": "config:report",
    }
    command: Sequence[str] = client_code.from_file_args(tmp_path / "returnn.config", args)
    assert command[command.index("++ext_neg") + 1] == "+-0.5" and command[command.index("++ext_list") + 1] == "[1,2]"
    run_rnn(*command, cwd=tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["seen_at_load"] == "abc"
    assert report["typed"] == [-0.5, [1, 2]]
    assert [report[key] for key in ("ext_name", "ext_neg", "ext_list", "ext_int")] == ["abc", "-0.5", "[1,2]", "7"]
