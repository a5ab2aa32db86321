"""
The training of the demo "speech recognition", stopped and killed many times, against the same training left alone: the same
parameters to the last bit, the same learning-rate file, the same recognised words.

    python -m tests.robustness.killed_demo [--kills 10] [--seed 1] [--folder DIR]

Signals in turn: SIGKILL, SIGTERM, SIGINT, SIGUSR1, each at a random moment after the training has done some steps. Takes about
5 minutes on two cores. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demos" / "speech_recognition"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
#: How often the log is looked at.
_POLL_SECS = 0.02
_STEP_LINE = re.compile(rb"^train epoch \d+, step:", re.MULTILINE)


def _train_command(out: Path, *options: str) -> tuple[list[str], dict[str, str]]:
    command = [sys.executable, str(ROOT / "rnn.py"), str(DEMO / "train.config"), *options]
    return command, {**os.environ, "DEMO_OUT": str(out), "OMP_NUM_THREADS": "1"}


def train(out: Path) -> None:
    """Without interruption."""
    command, env = _train_command(out)
    with open(out / "stdout", "wb") as file:
        subprocess.run(command, env=env, stdout=file, stderr=subprocess.STDOUT, check=True)


def _num_steps(out: Path) -> int:
    try:
        return len(_STEP_LINE.findall((out / "returnn.log").read_bytes()))
    except FileNotFoundError:
        return 0


def train_with_kills(out: Path, *, num_kills: int, rnd: random.Random) -> dict[str, int]:
    """
    Start the training until it is done; the first so many starts are ended by signals.

    :return: number of ends by signal name and exit code
    """
    ends: dict[str, int] = {}
    command, env = _train_command(out, "++save_every_steps", "7")
    for attempt in range(num_kills + 1):
        before = _num_steps(out)
        with open(out / f"stdout.{attempt}", "wb") as file:
            process = subprocess.Popen(
                command,
                env=env,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
            if attempt == num_kills:
                break
            num_steps = rnd.randrange(1, 40)
            while process.poll() is None and _num_steps(out) < before + num_steps:
                time.sleep(_POLL_SECS)
            time.sleep(rnd.random() * 0.5)
            signum = SIGNALS[attempt % len(SIGNALS)]
            process.send_signal(signum)
            process.wait()
        name = f"{signum.name} -> {process.returncode}"
        ends[name] = ends.get(name, 0) + 1
    if process.wait() != 0:
        raise SystemExit(f"The last start ended with exit code {process.returncode}, see {out}")
    return ends


def recognise(out: Path) -> str:
    """:return: what the model of the last epoch recognises in the test data"""
    model = sorted((out / "models").glob("epoch.[0-9]*[0-9].pt"))[-1]
    command, env = _train_command(out, str(DEMO / "recognise.config"), "++load", str(model))
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
    return (out / "search_out.py").read_text()


def differences(whole: Path, killed: Path) -> list[str]:
    """:return: what differs between two trainings"""
    found = []
    names = [
        sorted(p.name for p in (out / "models").iterdir() if not p.name.startswith(".")) for out in (whole, killed)
    ]
    if names[0] != names[1]:
        found.append(f"files: {names[0]} != {names[1]}")
    for name in names[0]:
        if name.endswith(".opt.pt") or name not in names[1]:
            continue
        a, b = (torch.load(out / "models" / name)["model"] for out in (whole, killed))
        found += [f"{name}: {key}" for key in a if not torch.equal(a[key], b[key])]
    if (whole / "learning_rates").read_text() != (killed / "learning_rates").read_text():
        found.append("learning_rates")
    if recognise(whole) != recognise(killed):
        found.append("recognised words")
    return found


def word_error_rate(out: Path) -> str:
    """:return: of the recognised words, as the tool prints it"""
    data = f"{{'class': 'OggZipDataset', 'path': '{out}/test.ogg.zip', 'audio': None, 'targets': None}}"
    for tool, *args in (
        ("dump-dataset-raw-strings.py", "--dataset", data, "--out", f"{out}/refs.py"),
        (
            "calculate-word-error-rate.py",
            "--refs",
            f"{out}/refs.py",
            "--hyps",
            f"{out}/search_out.py",
            "--out",
            f"{out}/wer",
        ),
    ):
        subprocess.run([sys.executable, str(ROOT / "tools" / tool), *args], check=True, stdout=subprocess.DEVNULL)
    return (out / "wer").read_text().strip()


def main() -> int:
    """:return: exit code"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="is kept; else a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        folder = args.folder or Path(tmp)
        whole, killed = folder / "whole", folder / "killed"
        if not whole.exists():
            whole.mkdir(parents=True)
            sys.path.insert(0, str(DEMO))
            prepare = "import sys; sys.path.insert(0, sys.argv[1]); import run; run.prepare(sys.argv[2], small=True)"
            subprocess.run(
                [sys.executable, "-c", prepare, str(DEMO), str(whole)], check=True, stdout=subprocess.DEVNULL
            )
        shutil.rmtree(killed, ignore_errors=True)
        shutil.copytree(whole, killed, ignore=shutil.ignore_patterns("models", "learning_rates", "*.log", "stdout*"))
        if not (whole / "learning_rates").exists():
            train(whole)
        ends = train_with_kills(killed, num_kills=args.kills, rnd=random.Random(args.seed))
        print(
            f"{args.kills} interruptions, signal -> exit code: "
            + ", ".join(f"{k} ({v} times)" for k, v in ends.items())
        )
        found = differences(whole, killed)
        print(f"word error rate: left alone {word_error_rate(whole)}, interrupted {word_error_rate(killed)}")
        print(
            "\n".join(["different:", *found]) if found else "parameters, learning rates, kept files, words: identical"
        )
        return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
