#!/usr/bin/env python3
"""
Speed of ExtractAudioFeatures per feature type: ours, the peers' way through librosa, and the limit, in the same run.

    python benchmarks/audio_features.py [--num_seqs 20] [--secs 12] [--formats ogg,wav] [--hours 0.5]

The limit of raw features is a bare soundfile loop over the same files (float64, its default). That of the others is
this loop plus one batched Fourier transform (window, power) and the matrix product with the filters, all in float64.
The last lines tell what a worker process imports, and the memory for a long file.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

import soundfile  # noqa: E402

from returnn.datasets.util.feature_extraction import ExtractAudioFeatures  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
SAMPLE_RATE = 16000
FRAME_LEN, HOP = 400, 160

#: case -> options, size of the matrix of the limit (None: no such product, 0: no Fourier transform)
CASES: dict[str, tuple[dict[str, Any], int | None]] = {  # Any: options
    "raw": ({"features": "raw", "peak_normalization": False}, 0),
    "raw, peak_normalization, preemphasis": ({"features": "raw", "preemphasis": 0.97}, 0),
    "log_mel_filterbank 80": ({"features": "log_mel_filterbank", "num_feature_filters": 80}, 80),
    "log_log_mel_filterbank 80": ({"features": "log_log_mel_filterbank", "num_feature_filters": 80}, 80),
    "db_mel_filterbank 80": ({"features": "db_mel_filterbank", "num_feature_filters": 80}, 80),
    "mfcc 40": ({"features": "mfcc"}, 128),
    "mfcc 40, with_delta 2, norm per_seq": (
        {"features": "mfcc", "with_delta": 2, "norm_mean": "per_seq", "norm_std_dev": "per_seq"},
        128,
    ),
    "linear_spectrogram 200": ({"features": "linear_spectrogram", "num_feature_filters": 200}, None),
}


def make_files(num_seqs: int, secs: float, file_format: str) -> list[bytes]:
    """:return: speech-like noise: bursts, more power at low frequencies"""
    rnd = np.random.RandomState(1)
    files = []
    for _ in range(num_seqs):
        num_samples = int(secs * SAMPLE_RATE * rnd.uniform(0.5, 1.5))
        noise = rnd.standard_normal(num_samples)
        audio = np.convolve(noise, 0.8 ** np.arange(30), "same")
        audio *= 0.55 + 0.45 * np.sin(np.arange(num_samples) * 2 * np.pi * 4 / SAMPLE_RATE)
        file = io.BytesIO()
        soundfile.write(file, 0.5 * audio / np.abs(audio).max(), SAMPLE_RATE, format=file_format)
        files.append(file.getvalue())
    return files


def best_in_turn(*funcs: Callable[[], object], repeats: int = 5) -> list[float]:
    """:return: seconds of the fastest run of each. They take turns, so that a busy machine slows all of them"""
    best = [float("inf")] * len(funcs)
    for _ in range(repeats):
        for i, func in enumerate(funcs):
            start = time.perf_counter()
            func()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def run_limit(files: Sequence[bytes], size: int | None) -> None:
    """
    :param files: audio
    :param size: see :data:`CASES`
    """
    window = np.hanning(FRAME_LEN)
    filters = np.ones((FRAME_LEN // 2 + 1, size or 1))
    for file in files:
        audio, _ = soundfile.read(io.BytesIO(file))
        if size == 0:
            continue
        frames = np.lib.stride_tricks.sliding_window_view(audio, FRAME_LEN)[::HOP] * window
        spectrum = np.abs(np.fft.rfft(frames))
        if size is not None:
            np.matmul(np.square(spectrum), filters)


def run_peers(files: Sequence[bytes], opts: dict[str, Any]) -> None:
    """
    The calls of librosa and scipy that the peers do.

    :param files: audio
    :param opts: of ExtractAudioFeatures
    """
    import librosa
    import scipy.signal

    for file in files:
        audio, rate = soundfile.read(io.BytesIO(file))
        if opts.get("preemphasis"):
            audio = scipy.signal.lfilter([1, -opts["preemphasis"]], [1], audio)
        if opts.get("peak_normalization", True):
            audio = audio / np.max(np.abs(audio))
        dim = opts.get("num_feature_filters", 40)
        args = {"y": audio, "sr": rate, "n_fft": FRAME_LEN, "hop_length": HOP}
        name = opts["features"]
        if name == "raw":
            features = audio.astype("float32")[:, None]
        elif name == "mfcc":
            mfcc = librosa.feature.mfcc(n_mfcc=dim, n_mels=128, **args)
            mfcc[0] = librosa.feature.rms(y=audio, frame_length=FRAME_LEN, hop_length=HOP)
            features = mfcc.T.astype("float32")
        elif name == "linear_spectrogram":
            features = np.abs(librosa.stft(audio, n_fft=2 * dim, hop_length=HOP, win_length=FRAME_LEN))[1:].T
        else:
            mels = librosa.feature.melspectrogram(n_mels=dim, **args)
            if name == "db_mel_filterbank":
                mels = 20 * np.log10(np.maximum(1e-10, mels))
            else:
                mels = np.log(np.maximum(1e-3, mels))
                if name == "log_log_mel_filterbank":
                    mels = librosa.amplitude_to_db(mels)
            features = mels.astype("float32").T
        if opts.get("with_delta"):
            deltas = [librosa.feature.delta(features.T, order=i, width=9).T for i in range(1, opts["with_delta"] + 1)]
            features = np.concatenate([features, *deltas], axis=1)
        if "norm_mean" in opts:
            features = features - features.mean(axis=0)
            features = features / np.maximum(features.std(axis=0), 0.01)


def run_ours(files: Sequence[bytes], extractor: ExtractAudioFeatures) -> None:
    """:param files: audio"""
    for file in files:
        extractor.get_audio_features_from_raw_bytes(io.BytesIO(file))


def run_measured(code: str) -> tuple[float, float]:
    """:return: seconds of this code in a new process (fastest of three), and MiB at its peak, both after importing numpy"""
    program = f"""
import time
import numpy
def _peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM:"))
memory, start = _peak(), time.perf_counter()
{code}
print(time.perf_counter() - start, _peak() - memory)
"""
    results = []
    for _ in range(3):
        out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
        secs, memory = map(float, out.stdout.split())
        results.append((secs, memory))
    return min(results)


def report_imports() -> None:
    """One line per way."""
    ours = "import soundfile, returnn.datasets.util.feature_extraction"
    peers = "import soundfile, scipy.signal, librosa; librosa.feature.mfcc(y=numpy.ones(4000), sr=16000)"
    for name, code in (("ours", ours), ("peers (librosa and scipy)", peers)):
        secs, memory = run_measured(code)
        print(f"imports of a worker, {name}: {secs:.2f} s, {memory:.0f} MiB", flush=True)


def report_memory(hours: float) -> None:
    """Log-mel features of one long file."""
    num_samples = int(hours * 3600 * SAMPLE_RATE)
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        with soundfile.SoundFile(file.name, "w", SAMPLE_RATE, 1) as sound:
            for start in range(0, num_samples, SAMPLE_RATE):
                sound.write(np.random.RandomState(start).uniform(-0.5, 0.5, min(SAMPLE_RATE, num_samples - start)))
        secs, memory = run_measured(
            f"""
import io
from returnn.datasets.util.feature_extraction import ExtractAudioFeatures
extractor = ExtractAudioFeatures(features="log_mel_filterbank", num_feature_filters=80)
with open({file.name!r}, "rb") as file:
    features = extractor.get_audio_features_from_raw_bytes(file)
"""
        )
    samples, result = num_samples * 8 / 2**20, num_samples / HOP * 80 * 4 / 2**20
    print(
        f"{hours:g} h in one wav file, log_mel_filterbank 80: {secs:.1f} s, {memory:.0f} MiB at the peak"
        f" (samples in float64: {samples:.0f} MiB, result: {result:.0f} MiB)"
    )


def report_format(name: str, files: Sequence[bytes]) -> None:
    """
    :param name: of the format
    :param files: audio
    """
    secs = sum(len(soundfile.read(io.BytesIO(file))[0]) for file in files) / SAMPLE_RATE
    for case, (opts, size) in CASES.items():
        ours, limit, peers = best_in_turn(
            functools.partial(run_ours, files, ExtractAudioFeatures(**opts)),
            functools.partial(run_limit, files, size),
            functools.partial(run_peers, files, opts),
        )
        print(
            f"{name}, {case}: ours {ours:.3f} s = {secs / ours:,.0f} x real time, peers {peers:.3f} s,"
            f" limit {limit:.3f} s, ratio {ours / limit:.2f}",
            flush=True,
        )


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1] if __doc__ else None)
    parser.add_argument("--num_seqs", type=int, default=20)
    parser.add_argument("--secs", type=float, default=12.0, help="mean length")
    parser.add_argument("--formats", default="ogg,wav", help="of libsndfile, separated by commas")
    parser.add_argument("--hours", type=float, default=0.5, help="length of the long file; 0: leave it out")
    args = parser.parse_args()
    for file_format in args.formats.split(","):
        report_format(file_format, make_files(args.num_seqs, args.secs, file_format.upper()))
    report_imports()
    if args.hours:
        report_memory(args.hours)


if __name__ == "__main__":
    main()
