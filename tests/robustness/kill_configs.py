"""
The trainings of the kill matrix: small data, some seconds, and together most of what has a state in a training.

Each step draws from all random generators of the process, and takes some milliseconds, so that a signal finds it at work.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from returnn.datasets.util.hdf import SimpleHDFWriter

__all__ = ["CASES", "Case", "make_data"]


class Case(NamedTuple):
    """A config, and what is run with it, one command after the other."""

    name: str
    config: str
    #: Arguments of rnn.py.
    commands: tuple[tuple[str, ...], ...] = (("my.config",),)


_BEGIN = """#!rnn.py
import os
import random
import time

import numpy
import torch

# In a new training they would differ each time; when it goes on, they are restored.
random.seed(1)
numpy.random.seed(1)
device = "cpu"
log_verbosity = 5
folder = os.environ["KILL_MATRIX_DATA"]
model = "models/epoch"
learning_rate_file = "learning_rates"
learning_rate = 0.01
num_epochs = 4
save_every_steps = 7
optimizer = {"class": "adam"}
step_secs = 0.006


def get_model(**_):
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 4))


def frame_loss(model, inputs, targets, lens):
    time.sleep(step_secs)
    mask = torch.arange(inputs.shape[1])[None] < lens[:, None]
    frames = inputs.float()[mask]
    if model.training:
        frames = frames + 0.1 * random.random() + torch.tensor(numpy.random.normal(scale=0.1, size=3).astype("float32"))
    return torch.nn.functional.cross_entropy(model(frames), targets.long()[mask], reduction="none")
"""

_MINI_STEP = """
def train_step(*, model, data, run_ctx, **_):
    lens = data["data:size1"]
    losses = frame_loss(model, data["data"], data["classes"], lens)
    run_ctx.mark_as_loss(losses.sum(), "ce", inv_norm_factor=lens.sum())
"""

_MAINLINE_STEP = """
extern_data = {"data": {"dim": 3}, "classes": {"dim": 4, "sparse": True}}


def train_step(*, model, extern_data, **_):
    import returnn.frontend as rf

    data, classes = extern_data["data"], extern_data["classes"]
    losses = frame_loss(model, data.raw_tensor, classes.raw_tensor, classes.dims[1].dyn_size_ext.raw_tensor)
    rf.get_run_ctx().mark_as_loss(losses.mean(), "ce")
"""

_HDF = """
def hdf(*numbers, **opts):
    return {"class": "HDFDataset", "files": [f"{folder}/{i}.hdf" for i in numbers], **opts}
"""

_FORWARD = """
output_file = "out.hdf"
forward_override_hdf_output = True


def forward_step(*, model, data, run_ctx, **_):
    time.sleep(2 * step_secs)
    inputs, lens = data["data"], data["data:size1"]
    outputs = model(inputs.flatten(0, 1)).reshape(*inputs.shape[:2], 4)
    run_ctx.mark_as_output(outputs, "output", dims=[len(lens), lens, 4])
"""

_FORWARD_COMMAND = ("my.config", "++task", "forward", "++load", "models/epoch.004")

CASES = (
    Case(
        "hdf, accumulation",
        _BEGIN
        + _MINI_STEP
        + _HDF
        + _FORWARD
        + """
train = hdf(0, 1, seq_ordering="random")
dev = hdf(2)
forward_data = hdf(0, 2)
batch_size = 60
accum_grad_multiple_step = 3
num_workers_per_gpu = 0
cleanup_old_models = {"keep_last_n": 1, "keep_best_n": 1}
""",
        (("my.config",), _FORWARD_COMMAND),
    ),
    Case(
        "hdf, chunks, 2 workers, average",
        _BEGIN
        + _MINI_STEP
        + _HDF
        + """
train = hdf(0, 1, seq_ordering="laplace:.5", partition_epoch=2)
dev = hdf(2)
num_epochs = 6
batch_size = 30
chunking_options = {
    "chunk_streams": {
        "data": {"size": 7, "step": 5, "min_chunk_size": 2},
        "classes": {"size": 7, "step": 5, "min_chunk_size": 2},
    },
    "random_chunk_start": True,
}
ema = {"decay": 0.9}
num_workers_per_gpu = 2
""",
    ),
    Case(
        "meta, mainline, 1 worker, save_interval",
        _BEGIN
        + _MAINLINE_STEP
        + _HDF
        + """
train = {
    "class": "MetaDataset",
    "datasets": {"x": hdf(0, 1), "y": hdf(0, 1)},
    "data_map": {"data": ("x", "data"), "classes": ("y", "classes")},
    "seq_order_control_dataset": "y",
    "seq_ordering": "random",
}
dev = hdf(2)
batch_size = 60
torch_dataloader_opts = {"num_workers": 1}
learning_rate_control = "newbob"
learning_rate_control_error_measure = "dev_loss_ce"
save_interval = 2
optimizer = {"class": "adamw", "weight_decay": 1e-3}
""",
    ),
    Case(
        "audio with augmentation, 2 workers, accumulation",
        _BEGIN
        + _MINI_STEP
        + """
def augment(audio, sample_rate, random_state):
    return audio * random_state.uniform(0.5, 1.5)


def oggzip(name, **opts):
    return {
        "class": "OggZipDataset",
        "path": f"{folder}/{name}.zip",
        "audio": {"features": "mfcc", "num_feature_filters": 3, "sample_rate": 8000, **opts},
        "targets": {"class": "Utf8ByteTargets"},
        "seq_ordering": "random",
    }


train = oggzip("train", pre_process=augment)
dev = oggzip("dev")
max_seqs = 3
batch_size = None
accum_grad_multiple_step = 2
num_workers_per_gpu = 2


def train_step(*, model, data, run_ctx, **_):
    lens = data["data:size1"]
    targets = (data["data"].sum(-1) > 0).long() + 2 * (data["classes"][:, :1] % 2)
    losses = frame_loss(model, data["data"], targets, lens)
    run_ctx.mark_as_loss(losses.sum(), "ce", inv_norm_factor=lens.sum())
""",
    ),
    Case(
        "text, 1 worker, shuffled batches, average",
        _BEGIN
        + """
def lm(name):
    return {
        "class": "LmDataset",
        "corpus_file": f"{folder}/{name}.txt",
        "orth_vocab": {"class": "Utf8ByteTargets"},
        "seq_ordering": "random",
    }


train = lm("train")
dev = lm("dev")
max_seqs = 3
batch_size = 200
online_shuffle_batches = {"buffer_size": 4}
num_workers_per_gpu = 1
ema = {"decay": 0.95, "every_n_steps": 2}
optimizer = {"class": "sgd", "momentum": 0.9}


def train_step(*, model, data, run_ctx, **_):
    labels, lens = data["data"].long(), data["data:size1"]
    inputs = torch.stack([labels.sin(), (3 * labels).cos(), labels / 128.0], dim=-1)
    losses = frame_loss(model, inputs, labels % 4, lens)
    run_ctx.mark_as_loss(losses.sum(), "ce", inv_norm_factor=lens.sum())
""",
    ),
    Case(
        "generated, stopped by time",
        _BEGIN
        + """
train = {"class": "Task12AXDataset", "num_seqs": 60}
dev = {"class": "Task12AXDataset", "num_seqs": 6, "fixed_random_seed": 1}
batch_size = 200
accum_grad_multiple_step = 2
num_workers_per_gpu = 0
if "KILL_MATRIX_STOP_SECS" in os.environ:
    stop_after_minutes = float(os.environ["KILL_MATRIX_STOP_SECS"]) / 60


def train_step(*, model, data, run_ctx, **_):
    lens = data["data:size1"]
    losses = frame_loss(model, data["data"][..., :3], data["classes"], lens)
    run_ctx.mark_as_loss(losses.sum(), "ce", inv_norm_factor=lens.sum())
""",
    ),
    Case(
        "own dataset with a random stream, mainline, 1 worker",
        _BEGIN
        + _MAINLINE_STEP
        + """
from returnn.datasets.generating import GeneratingDataset
from returnn.datasets.basic import DatasetSeq


class Stream(GeneratingDataset):
    \"\"\"What it gives depends on all that it has given before.\"\"\"

    def __init__(self, **kwargs):
        super().__init__(input_dim=3, output_dim=4, **kwargs)

    def generate_seq(self, seq_idx):
        n = self.random.randint(3, 12)
        features = self.random.normal(size=(n, 3)).astype("float32") + numpy.random.normal()
        return DatasetSeq(seq_idx, features, {"classes": self.random.randint(0, 4, size=n).astype("int32")})


train = {"class": Stream, "num_seqs": 60}
dev = {"class": Stream, "num_seqs": 6, "fixed_random_seed": 1}
max_seqs = 4
batch_size = None
torch_dataloader_opts = {"num_workers": 1}
""",
    ),
    Case(
        "buckets, 2 workers, bfloat16",
        _BEGIN
        + _MINI_STEP
        + _HDF
        + """
train = hdf(0, 1, seq_ordering="random")
dev = hdf(2)
torch_batching = {
    "class": "BucketOrderingIterDataPipe",
    "buckets": [(8, 5), (14, 4), (100, 3)],
    "length_key": "data",
}
torch_amp = "bfloat16"
accum_grad_multiple_step = 2
num_workers_per_gpu = 2
""",
    ),
)


def make_data(folder: Path) -> None:
    """:param folder: gets the data files of all cases"""
    rnd = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for number, num_seqs in enumerate((30, 30, 8)):
        writer = SimpleHDFWriter(str(folder / f"{number}.hdf"), dim=3, ndim=2, extra_type={"classes": (4, 1, "int32")})
        for i in range(num_seqs):
            n = int(rnd.integers(3, 20))
            data = rnd.normal(size=(n, 3)).astype("float32")
            labels = ((data[:, 0] > 0) + 2 * (data[:, 1] > 0)).astype("int32")
            writer.insert_batch(data[None], [n], [f"seq-{number}-{i}"], extra={"classes": labels[None]})
        writer.close()
    for name, num_seqs in (("train", 40), ("dev", 6)):
        lines = [" ".join("word" * int(k) for k in rnd.integers(1, 4, size=3)) for _ in range(num_seqs)]
        (folder / f"{name}.txt").write_text("".join(line + "\n" for line in lines))
        _write_zip(folder / f"{name}.zip", lines, rnd)


def _write_zip(path: Path, texts: list[str], rnd: np.random.Generator) -> None:
    entries = []
    with zipfile.ZipFile(path, "w") as archive:
        for i, text in enumerate(texts):
            num_samples = int(rnd.integers(1000, 3000))
            audio = io.BytesIO()
            soundfile.write(audio, rnd.uniform(-0.5, 0.5, size=num_samples), 8000, format="WAV")
            archive.writestr(f"{path.stem}/{i}.wav", audio.getvalue())
            entries.append({"text": text, "file": f"{i}.wav", "seq_name": f"s{i}", "duration": num_samples / 8000})
        archive.writestr(f"{path.stem}.txt", repr(entries))
