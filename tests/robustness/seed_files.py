"""Small whole files of every format that is read, as a start for broken ones."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import soundfile
import torch

from returnn.datasets.util.hdf import SimpleHDFWriter

__all__ = ["make_seed_files"]

_TEXT = "".join(f"hello world number{i} next line\n" for i in range(40))
_BLISS = (
    "<?xml version='1.0' encoding='utf-8'?>\n<corpus name='c'>\n"
    + "".join(
        f"<recording name='r{i}' audio='r{i}.wav'><segment name='s{j}' start='{j}.0' end='{j + 1}.5'>"
        f"<speaker name='spk{i}'/><orth> word{i} word{j} </orth></segment></recording>\n"
        for i in range(5)
        for j in range(2)
    )
    + "</corpus>\n"
)
_LR_FILE = (
    "{\n1: EpochData(learningRate=0.1, error={'ce': 1.0}),\n2: EpochData(learningRate=1e-05, error={\n"
    "'a': float('inf'),\n'b': float('nan'),\n'dev_loss_ctc': -1.5e-08,\n':meta:device': 'cpu',\n}),\n}\n"
)


def _audio(fmt: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(3000) / 9).astype("float32") * 0.3, 16000, format=fmt, subtype=subtype)
    return file.getvalue()


def _write_hdf(path: Path) -> None:
    with SimpleHDFWriter(str(path), dim=3, ndim=2, extra_type={"classes": (7, 1, "int32")}) as writer:
        for i in range(6):
            n = 3 + i
            writer.insert_batch(
                np.arange(n * 3, dtype="float32").reshape(1, n, 3),
                seq_len={0: [n]},
                seq_tag=[f"seq-{i}"],
                extra={"classes": np.arange(n, dtype="int32")[None] % 7},
            )


def _write_stream_hdf(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["version"] = "1.0"
        names = np.array([f"seq-{i}".encode() for i in range(5)])
        file.create_dataset("seq_names", data=names)
        streams = file.create_group("streams")
        stream = streams.create_group("data")
        stream.attrs["parser"] = "feature_sequence"
        data = stream.create_group("data")
        for i, name in enumerate(names):
            data.create_dataset(name.decode(), data=np.full((4 + i, 2), i, "float32"))


def _write_zip(path: Path, fmt: str, subtype: str) -> None:
    ext = fmt.lower()
    entries = [
        {"text": f"hello {i}", "file": f"{i}.{ext}", "seq_name": f"s/{i}", "duration": 3000 / 16000} for i in range(4)
    ]
    stem = path.stem
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{stem}.txt", "[\n" + ",\n".join(map(repr, entries)) + "]\n")
        for i in range(4):
            archive.writestr(f"{stem}/{i}.{ext}", _audio(fmt, subtype))


def make_seed_files(folder: Path) -> dict[str, Path]:
    """
    :param folder: where they are written
    :return: name of the reader (see read_file.READERS) -> file
    """
    res: dict[str, Path] = {}

    def put(reader: str, name: str, content: bytes) -> None:
        res[reader] = folder / name
        res[reader].write_bytes(content)

    res["hdf"] = folder / "a.hdf"
    _write_hdf(res["hdf"])
    res["stream_hdf"] = folder / "stream.hdf"
    _write_stream_hdf(res["stream_hdf"])
    for fmt, subtype in (("OGG", "VORBIS"), ("WAV", "PCM_16"), ("FLAC", "PCM_16")):
        reader = f"zip_{fmt.lower()}"
        res[reader] = folder / f"{reader}.zip"
        _write_zip(res[reader], fmt, subtype)
    put("text", "a.txt", _TEXT.encode())
    put("text_gz", "a.txt.gz", gzip.compress(_TEXT.encode(), mtime=0))
    put("bliss", "a.xml", _BLISS.encode())
    put("bliss_gz", "a.xml.gz", gzip.compress(_BLISS.encode(), mtime=0))
    put("text_dict", "a.py", ("{\n" + "".join(f"'seq-{i}': 'hello {i}',\n" for i in range(20)) + "}\n").encode())
    put("text_dict_gz", "a.py.gz", gzip.compress(repr({f"seq-{i}": "x y" for i in range(20)}).encode(), mtime=0))
    labels = [f"label{i}" for i in range(20)]
    put("vocab_text", "vocab.txt", "\n".join(labels).encode())
    put("vocab_dict", "vocab.py", repr({label: i for i, label in enumerate(labels)}).encode())
    put("vocab_json", "vocab.json", json.dumps(labels).encode())
    put("vocab_pickle", "vocab.pkl", pickle.dumps({label: i for i, label in enumerate(labels)}))
    put("bpe_codes", "codes", b"#version: 0.2\nh e\nl l\nhe ll\nhell o</w>\nw o\nr l\n")
    put("learning_rates", "learning_rates", _LR_FILE.encode())
    put("seq_list", "seqs.txt", "".join(f"seq-{i}\n" for i in range(6)).encode())
    put("seq_list_gz", "seqs.txt.gz", gzip.compress(b"seq-0\nseq-3\n", mtime=0))
    put("seq_list_pickle", "seqs.pkl", pickle.dumps([f"seq-{i}" for i in range(6)]))
    put("seq_lens", "lens.json", json.dumps({f"seq-{i}": {"data": 3 + i} for i in range(6)}).encode())
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    res["checkpoint"], res["optimizer"] = folder / "epoch.001.pt", folder / "epoch.001.opt.pt"
    torch.save({"model": model.state_dict(), "epoch": 1, "step": 10}, res["checkpoint"])
    torch.save(optimizer.state_dict(), res["optimizer"])
    return res
