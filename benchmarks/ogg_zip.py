#!/usr/bin/env python3
"""
Speed and memory of OggZipDataset: reading the list of sequences, and decoding.

    python benchmarks/ogg_zip.py [--num_seqs 300000] [--num_audio 200] [--rounds 5]

Index: init_seq_order(epoch=1) of a fresh dataset in a fresh process, with the directory of the zip file and without.
Memory is what is allocated after that (numpy and Python), and the growth of the process (resident, with what the
allocator keeps). Compared with ast.literal_eval of a tenth of the text, scaled.
Decoding: features "raw" of Ogg Vorbis files, compared with a bare soundfile loop over the same zip file, in turns.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zipfile

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
sys.path.insert(0, ROOT)

from returnn.datasets.audio import OggZipDataset  # noqa: E402

SAMPLE_RATE = 16000
WORDS = "the quick brown fox jumps over a lazy dog while it's raining in käsedorf".split()


def write_large_zip(path: str, num_seqs: int) -> None:
    """As bliss-to-ogg-zip writes it, with tiny files instead of audio."""
    rnd = np.random.RandomState(1)
    name = os.path.splitext(os.path.basename(path))[0]
    lines = ["[\n"]
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(num_seqs):
            start = i % 100 * 3.5
            file = f"rec{i // 100:05d}/{start:.2f}_{start + 3:.2f}.ogg"
            text = " ".join(WORDS[j] for j in rnd.randint(0, len(WORDS), rnd.randint(5, 20)))
            archive.writestr(f"{name}/{file}", b"x" * 10)
            lines.append(
                f"{{'text': {text!r}, 'speaker_name': None, 'file': {file!r}, "
                f"'seq_name': 'corpus/rec{i // 100:05d}/seg{i % 100}', 'duration': {rnd.uniform(1, 15):.3f}}},\n"
            )
        archive.writestr(f"{name}.txt", "".join([*lines, "]\n"]), zipfile.ZIP_DEFLATED)


def resident_bytes() -> int:
    """:return: of this process"""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_index(path: str, with_audio: bool, with_tracemalloc: bool) -> None:
    """In a process of its own. Prints secs, or bytes allocated."""
    dataset = OggZipDataset(path, {} if with_audio else None, None, seq_ordering="laplace:.1000")
    dataset.init_seq_order()
    if with_tracemalloc:
        tracemalloc.start()
        dataset.init_seq_order(epoch=1)
        print(tracemalloc.get_traced_memory()[0])
        return
    before = resident_bytes()
    start, start_cpu = time.perf_counter(), time.process_time()
    dataset.init_seq_order(epoch=1)
    print(time.perf_counter() - start, time.process_time() - start_cpu, resident_bytes() - before)


def run_index(path: str, num_seqs: int) -> None:
    """Compares with and without audio."""
    with zipfile.ZipFile(path) as archive:
        text = archive.read("large.txt").decode("utf8")
    part = text[: text.index("\n", len(text) // 10)] + "\n]\n"
    start = time.perf_counter()
    num = len(ast.literal_eval(part))
    print(f"ast.literal_eval of the text: {(time.perf_counter() - start) / num * num_seqs:.2f} s")
    for with_audio in (False, True):
        args = [sys.executable, __file__, "--measure", path, "--with_audio", str(int(with_audio))]
        secs, cpu_secs, resident = map(float, subprocess.check_output([*args, "--tracemalloc", "0"], text=True).split())
        allocated = float(subprocess.check_output([*args, "--tracemalloc", "1"], text=True))
        print(
            f"index of {num_seqs} entries, {'with' if with_audio else 'without'} audio: {secs:.2f} s (CPU {cpu_secs:.2f} s), "
            f"{allocated / num_seqs:.0f} bytes allocated per entry (process grew by {resident / num_seqs:.0f})"
        )
    mean = np.mean([len(entry["text"].encode()) for entry in ast.literal_eval(part)])
    print(f"of these bytes, the text itself: {mean:.0f}")


def write_audio_zip(path: str, num_seqs: int) -> None:
    """Ogg Vorbis, 2 to 12 seconds each."""
    import soundfile

    rnd = np.random.RandomState(1)
    lines = ["[\n"]
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(num_seqs):
            num_samples = int(SAMPLE_RATE * rnd.uniform(2, 12))
            audio = np.convolve(rnd.standard_normal(num_samples), 0.8 ** np.arange(30), "same")
            audio *= np.abs(np.sin(np.arange(num_samples) * 2e-4)) / np.abs(audio).max()
            file = io.BytesIO()
            soundfile.write(file, audio, SAMPLE_RATE, format="OGG", subtype="VORBIS")
            archive.writestr(f"audio/{i}.ogg", file.getvalue())
            lines.append(f"{{'text': 'x', 'file': '{i}.ogg', 'duration': {num_samples / SAMPLE_RATE}}},\n")
        archive.writestr("audio.txt", "".join([*lines, "]\n"]))


def bare_loop(path: str, num_seqs: int) -> float:
    """:return: CPU seconds"""
    import soundfile

    start = time.process_time()
    with zipfile.ZipFile(path) as archive:
        for i in range(num_seqs):
            soundfile.read(io.BytesIO(archive.read(f"audio/{i}.ogg")))
    return time.process_time() - start


def dataset_loop(path: str, num_seqs: int, **audio: object) -> float:
    """:return: CPU seconds"""
    dataset = OggZipDataset(path, {"features": "raw", **audio}, None)
    dataset.init_seq_order(epoch=1)
    start = time.process_time()
    for i in range(num_seqs):
        dataset.load_seqs(i, i + 1)
        dataset.get_data(i, "data")
    return time.process_time() - start


def run_decoding(path: str, num_seqs: int, rounds: int) -> None:
    """Medians over the rounds."""
    bare, plain, peak = [], [], []
    for _ in range(rounds):
        bare.append(bare_loop(path, num_seqs))
        plain.append(dataset_loop(path, num_seqs, peak_normalization=False))
        peak.append(dataset_loop(path, num_seqs))
    base = float(np.median(bare))
    print(f"bare soundfile loop over {num_seqs} files: {base:.3f} s")
    for name, times in (("raw, no peak_normalization", plain), ("raw", peak)):
        print(f"OggZipDataset {name}: {np.median(times):.3f} s, {np.median(times) / base:.2f} times that")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_seqs", type=int, default=300_000)
    parser.add_argument("--num_audio", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--with_audio", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tracemalloc", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure_index(args.measure, bool(args.with_audio), bool(args.tracemalloc))
        return
    with tempfile.TemporaryDirectory() as folder:
        large, audio = os.path.join(folder, "large.zip"), os.path.join(folder, "audio.zip")
        write_large_zip(large, args.num_seqs)
        run_index(large, args.num_seqs)
        write_audio_zip(audio, args.num_audio)
        run_decoding(audio, args.num_audio, args.rounds)


if __name__ == "__main__":
    main()
