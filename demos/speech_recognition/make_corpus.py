#!/usr/bin/env python3
"""
Synthesise spoken digit strings with espeak-ng and sox: WAV recordings of several strings, and a Bliss corpus for each of
train, dev and test. The voices of test are not in train.

usage: python demos/speech_recognition/make_corpus.py FOLDER [--small]
Writes FOLDER/{train,dev,test}.xml and FOLDER/audio/.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import wave
from concurrent.futures import ThreadPoolExecutor
from xml.sax.saxutils import quoteattr

DIGITS = "zero one two three four five six seven eight nine".split()
SAMPLE_RATE = 8000
STRINGS_PER_RECORDING = 6
ACCENTS = ["en-us", "en-gb", "en-gb-x-rp", "en-029", "en-gb-x-gbclan"]
TRAIN_VARIANTS = ["", "+m1", "+m2", "+m3", "+m4", "+m6", "+f1", "+f2", "+f4", "+klatt", "+grandpa", "+steph"]
TEST_VARIANTS = ["+m5", "+m7", "+f3", "+f5"]
NUM_RECORDINGS = {"train": 150, "dev": 12, "test": 24}
NUM_RECORDINGS_SMALL = {"train": 80, "dev": 6, "test": 12}


def make_recording(folder: str, name: str, variants: list[str]) -> str:
    """
    :param folder: where "audio/NAME.wav" is written
    :param name: of the recording; also the seed of everything random in it
    :param variants: of voices
    :return: the ``<recording>`` element for the corpus
    """
    rng = random.Random(name)
    voice = rng.choice(ACCENTS) + rng.choice(variants)
    speed, pitch = rng.randint(120, 200), rng.randint(20, 80)  # words per minute; 0-99
    part_files, segments = [], []
    start = 0.0
    for i in range(STRINGS_PER_RECORDING):
        text = " ".join(rng.choice(DIGITS) for _ in range(rng.randint(3, 7)))
        part = os.path.join(folder, "audio", f"{name}.{i}.wav")
        subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", part, text], check=True)
        with wave.open(part) as file:
            end = start + file.getnframes() / file.getframerate()
        segments.append(
            f'    <segment name="{i}" start="{start:.3f}" end="{end:.3f}"><orth> {text} </orth></segment>\n'
        )
        part_files.append(part)
        start = end
    audio = os.path.join(folder, "audio", f"{name}.wav")
    gain = rng.randint(-12, -1)  # dB
    # -R: the same dither every time
    sox = ["sox", "-R", *part_files, "-r", str(SAMPLE_RATE), "-c", "1", "-b", "16", audio, "gain", "-n", str(gain)]
    subprocess.run(sox, check=True)
    for part in part_files:
        os.remove(part)
    speaker = f'    <speaker name="{voice}"/>\n'
    return f'  <recording name="{name}" audio={quoteattr(audio)}>\n{speaker}{"".join(segments)}  </recording>\n'


def make_corpus(folder: str, *, small: bool) -> None:
    """
    :param folder: to write into
    :param small: fewer recordings
    """
    os.makedirs(os.path.join(folder, "audio"), exist_ok=True)
    for part, num in (NUM_RECORDINGS_SMALL if small else NUM_RECORDINGS).items():
        variants = TEST_VARIANTS if part == "test" else TRAIN_VARIANTS
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            names = [f"{part}-{i:03}" for i in range(num)]
            recordings = list(pool.map(lambda name, v=variants: make_recording(folder, name, v), names))
        with open(os.path.join(folder, f"{part}.xml"), "w", encoding="utf8") as file:
            file.write(
                f'<?xml version="1.0" encoding="utf8"?>\n<corpus name="digits">\n{"".join(recordings)}</corpus>\n'
            )
        print(f"{part}: {num} recordings, {num * STRINGS_PER_RECORDING} strings of digits")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    make_corpus(args.folder, small=args.small)
