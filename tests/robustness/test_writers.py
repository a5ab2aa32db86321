"""
Every program that writes files, as whole command lines: on a full disk, without permission, into a folder that vanishes.
Each ends with exit code 1 and one sentence that names the file; files from before are as they were, nothing half is left.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

import numpy
import pytest
import soundfile
import torch

from returnn.util.py_text_dict import save_text_dict
from tests.forked import run_forked
from tests.helpers import ROOT, write_config
from tests.tools.hdf_files import write_hdf

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and permissions of Linux")

FAULTS = ["full:0", "full:700", "readonly", "gone:open", "gone:rename"]
_FAULTY_RUN = str(ROOT / "tests" / "robustness" / "faulty_run.py")


@dataclasses.dataclass(frozen=True)
class Writer:
    """A command line that writes ``out/<target>``; ``{in}`` is the folder of the inputs."""

    program: str
    args: str
    target: str
    replaces: bool = True  # an existing target
    min_size: int = 10  # of the target: limits above it are no fault
    with_torch: bool = False


WRITERS = {
    "hdf_dump": Writer("hdf_dump", "{in}/a.hdf out/t.hdf", "t.hdf", min_size=2000),
    "hdf_merge": Writer("hdf_merge", "{in}/a.hdf {in}/b.hdf -o out/t.hdf --overwrite", "t.hdf", min_size=2000),
    "hdf_subset": Writer("hdf_subset", "{in}/a.hdf --random 2 -o out/t.hdf --overwrite", "t.hdf", min_size=2000),
    "wer": Writer(
        "calculate-word-error-rate", "--refs {in}/refs.py --hyps {in}/refs.py --out out/wer", "wer", min_size=3
    ),
    "wer_per_seq": Writer(
        "calculate-word-error-rate", "--refs {in}/refs.py --hyps {in}/refs.py --per_seq out/per_seq", "per_seq"
    ),
    "collect-words": Writer("collect-words", "{in}/text --output out/words", "words", min_size=1000),
    "collect-orth-symbols": Writer("collect-orth-symbols", "{in}/text --output out/symbols", "symbols", replaces=False),
    "bliss-collect-seq-lens": Writer("bliss-collect-seq-lens", "{in}/c.xml --output out/lens.gz", "lens.gz"),
    "bliss-to-ogg-zip": Writer(
        "bliss-to-ogg-zip", "{in}/c.xml --no_ogg --overwrite --output out/c.zip", "c.zip", min_size=100
    ),
    "dump_stats": Writer("dump-dataset", "{in}/a.hdf --type null --dump_stats out/s", "s.mean.txt"),
    "dump_numpy": Writer("dump-dataset", "{in}/a.hdf --type numpy --dump_prefix out/d.", "d.0.data.txt.gz"),
    "torch_avg_checkpoints": Writer(
        "torch_avg_checkpoints",
        "--checkpoints {in}/m.pt {in}/m.pt --output_path out/avg.pt",
        "avg.pt",
        min_size=1000,
        with_torch=True,
    ),
    "torch_scale_tuning": Writer(
        "torch_scale_tuning",
        "--names am --scores {in}/am.py --ref {in}/refs.py --fixed-scales am 1.0 --output-real-scales out/s.json",
        "s.json",
    ),
    "forward": Writer("rnn.py", "{in}/forward.config", "o.hdf", min_size=2000, with_torch=True),
    "train": Writer("rnn.py", "{in}/train.config", "m.002.pt", replaces=False, min_size=1000, with_torch=True),
}

_CONFIG = """
    import torch
    task = "{task}"
    model = "out/m"
    num_epochs = 2
    batch_size = 100
    log_verbosity = 3
    learning_rate = 0.01
    optimizer = {{"class": "adam"}}
    num_workers_per_gpu = 0
    train = dev = {{"class": "Task12AXDataset", "num_seqs": 5}}
    forward_data = train
    load = None if task == "train" else {model!r}
    output_file = "out/o.hdf"
    forward_override_hdf_output = True

    def get_model(**kwargs):
        return torch.nn.Linear(9, 2)

    def train_step(*, model, data, run_ctx, **kwargs):
        run_ctx.mark_as_loss(model(data["data"]).square().mean(), "l")

    def forward_step(*, model, data, run_ctx, **kwargs):
        run_ctx.mark_as_output(model(data["data"]), "out", dims=[len(data["seq_tag"]), data["data:size1"], 2])
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_hdf(folder / "a.hdf", [3, 5, 2])
    write_hdf(folder / "b.hdf", [4, 1], prefix="b")
    save_text_dict(str(folder / "refs.py"), {"a": "x y", "b": "u w"})
    save_text_dict(str(folder / "am.py"), {"a": [(-1.0, "x y"), (-2.0, "x")], "b": [(-1.0, "u v"), (-2.0, "u w")]})
    (folder / "text").write_text("".join(f"word{i} the\n" for i in range(200)))
    soundfile.write(folder / "a.wav", numpy.zeros(8000), 8000)
    (folder / "c.xml").write_text(
        f"<corpus name='c'><recording name='r' audio='{folder}/a.wav'><segment name='s' start='0' end='1'>"
        "<orth>hi</orth></segment></recording></corpus>"
    )
    model = torch.nn.Linear(9, 2)
    torch.save({"model": model.state_dict(), "epoch": 1, "step": 5}, folder / "m.pt")
    for task in ("train", "forward"):
        write_config(folder / f"{task}.config", _CONFIG.format(task=task, model=str(folder / "m.pt")))
    return folder


def run(
    writer: Writer, fault: str, *, inputs: pathlib.Path, cwd: pathlib.Path, more: str = ""
) -> subprocess.CompletedProcess[str]:
    program = ROOT / writer.program if writer.program == "rnn.py" else ROOT / "tools" / f"{writer.program}.py"
    args = writer.args.replace("{in}", str(inputs)).split(" ") + more.split()
    return run_forked(
        [_FAULTY_RUN, fault, str(cwd / "out"), str(program), *args],
        cwd=cwd,
        check=False,
        with_torch=writer.with_torch,
    )


def snapshot(folder: pathlib.Path) -> dict[str, str]:
    """:return: files by name, with their checksums"""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.fixture
def cwd(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "out").mkdir()
    return tmp_path


def _prepare(name: str, *, inputs: pathlib.Path, cwd: pathlib.Path) -> None:
    """The files from before."""
    writer, out = WRITERS[name], cwd / "out"
    if name == "train":  # an epoch is done
        res = run(writer, "none", inputs=inputs, cwd=cwd, more="++num_epochs 1")
        assert not res.returncode, res.stderr
    elif writer.replaces:
        (out / writer.target).write_text("from before")


def _check_failed(res: subprocess.CompletedProcess[str], *, fault: str) -> None:
    text = f"{fault}: exit code {res.returncode}\n{res.stdout[-1000:]}\n{res.stderr[-3000:]}"
    assert res.returncode == 1, text
    last = res.stderr.strip().splitlines()[-1]
    assert "out" in last and ("annot write" in last or "annot save" in last or "annot make" in last), text
    assert "Traceback" not in res.stderr and "Exception ignored" not in res.stderr, text


@pytest.mark.parametrize("name", list(WRITERS))
def test_writer(name: str, inputs: pathlib.Path, cwd: pathlib.Path) -> None:
    writer, out = WRITERS[name], cwd / "out"
    _prepare(name, inputs=inputs, cwd=cwd)
    before = snapshot(out)
    for fault in FAULTS:
        if fault.startswith("full:") and int(fault.removeprefix("full:")) >= writer.min_size:
            continue
        res = run(writer, fault, inputs=inputs, cwd=cwd)
        os.chmod(out, 0o755) if out.exists() else None
        _check_failed(res, fault=fault)
        if fault.startswith("gone"):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            _prepare(name, inputs=inputs, cwd=cwd)
            before = snapshot(out)
        else:
            assert snapshot(out) == before, fault
    res = run(writer, "none", inputs=inputs, cwd=cwd)  # after the disk was cleaned up, all is well
    assert not res.returncode, res.stderr
    after = snapshot(out)
    assert writer.target in after and after[writer.target] != before.get(writer.target)
