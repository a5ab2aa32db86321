"""
Feeds random texts to a parser until the time is over or it ends in anything else than a result or a worded error.

usage: python -m tests.robustness.fuzz TARGET [--seconds N] [--without-atheris] [--seed N] [--keep FOLDER]

With atheris (an optional package) the search is guided by which code runs; without it, whole texts are changed at random.
Exit code: 0 nothing found, 1 something found, or no atheris; 2 wrong arguments. TARGET "all": each for that time, without atheris.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from tests.robustness.fuzz_targets import TARGETS, fuzz_folder, run_target
from tests.robustness.mutations import mutate

__all__ = ["main", "random_text", "fuzz_plain"]

#: A text that takes longer counts as a hang.
_MAX_SECS = 20
_MAX_BYTES = 1 << 16


class _Hang(BaseException):
    """Not an Exception, so that no parser takes it for its own."""


def random_text(name: str, rng: np.random.Generator) -> bytes:
    """
    :param name: of TARGETS
    :param rng: decides
    :return: a seed text of the target that was changed a few times, or a row of its tokens
    """
    target = TARGETS[name]
    if rng.integers(3) == 0:
        parts = rng.choice(np.array(target.tokens, dtype=object), int(rng.integers(1, 30)))
        return "".join(parts).encode("utf8", errors="surrogatepass")[:_MAX_BYTES]
    data = str(rng.choice(np.array(target.seeds, dtype=object))).encode()
    for _ in range(int(rng.integers(1, 5))):
        if rng.integers(2):
            pos = int(rng.integers(len(data) + 1))
            token = str(rng.choice(np.array(target.tokens, dtype=object)))
            data = data[:pos] + token.encode("utf8", errors="surrogatepass") + data[pos + int(rng.integers(3)) :]
        else:
            _, data = mutate(data, rng)
    return data[:_MAX_BYTES]


def _alarm(_signum: int, _frame: FrameType | None) -> None:
    raise _Hang(f"longer than {_MAX_SECS} s")


def fuzz_plain(
    name: str, *, seconds: float, seed: int, max_num: int | None = None
) -> tuple[Counter[str], bytes | None, str]:
    """
    :param name: of TARGETS
    :param seconds: until no new text is tried
    :param seed: decides all texts
    :param max_num: of texts
    :return: how often each end was seen, the text that ended badly if there was one, and how
    """
    ends: Counter[str] = Counter()
    end_time = time.monotonic() + seconds
    number = 0
    saved = signal.signal(signal.SIGALRM, _alarm)
    try:
        with fuzz_folder() as folder:
            while time.monotonic() < end_time and (max_num is None or number < max_num):
                data = random_text(name, np.random.default_rng([seed, number]))
                number += 1
                signal.setitimer(signal.ITIMER_REAL, _MAX_SECS)
                try:
                    ends[run_target(name, data, folder)] += 1
                except (Exception, _Hang):
                    return ends, data, traceback.format_exc()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, saved)
    return ends, None, ""


def _fuzz_atheris(name: str, seconds: int, seed: int) -> None:
    """Does not return: libFuzzer ends the process."""
    # Any: an optional package without types here.
    atheris: Any = importlib.import_module("atheris")
    atheris.instrument_all()
    with fuzz_folder() as folder:
        args = [
            sys.argv[0],
            f"-max_total_time={seconds}",
            f"-timeout={_MAX_SECS}",
            f"-seed={seed or 1}",
            f"-max_len={_MAX_BYTES}",
        ]
        corpus = folder / "corpus"
        corpus.mkdir()
        for i, text in enumerate(TARGETS[name].seeds):
            (corpus / f"seed-{i}").write_text(text)
        atheris.Setup([*args, str(corpus)], lambda data: run_target(name, data, folder))
        atheris.Fuzz()


def main(argv: list[str] | None = None) -> int:
    """As the docstring of the module says. :return: exit code"""
    parser = argparse.ArgumentParser(prog="python -m tests.robustness.fuzz", description="Random texts for a parser.")
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without-atheris", action="store_true", help="change texts at random")
    parser.add_argument("--keep", type=Path, help="folder for a text that ended badly")
    args = parser.parse_args(argv)
    if not args.without_atheris and args.target != "all":
        if importlib.util.find_spec("atheris") is None:
            print(
                "The package atheris is not installed: pip install atheris, or use --without-atheris for random changes only.",
                file=sys.stderr,
            )
            return 1
        _fuzz_atheris(args.target, args.seconds, args.seed)
    warnings.simplefilter("ignore", SyntaxWarning)  # what Python itself says about strange literals
    num_bad = 0
    for name in TARGETS if args.target == "all" else [args.target]:
        ends, bad, text = fuzz_plain(name, seconds=args.seconds, seed=args.seed)
        counts = ", ".join(f"{end} {count}" for end, count in sorted(ends.items()))
        print(
            f"{name}: {sum(ends.values())} texts: {counts or 'none'}{'' if bad is None else '; then one ended badly'}",
            flush=True,
        )
        if bad is not None:
            num_bad += 1
            print(f"{bad[:1000]!r}\n{text}")
            if args.keep:
                args.keep.mkdir(parents=True, exist_ok=True)
                (args.keep / name).write_bytes(bad)
    return int(num_bad > 0)


if __name__ == "__main__":
    sys.exit(main())
