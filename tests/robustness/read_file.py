"""
Reads files as a run or a tool would, in a process of its own, and says how each ended.

Protocol: one line ``reader<TAB>file`` on stdin, one JSON line on stdout: {"end": "ok" | "worded" | "crash", "text": ..., "peak_mb": ...}.
"""

from __future__ import annotations

import json
import resource
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy
import torch

import returnn
from returnn.datasets import init_dataset
from returnn.datasets.basic import Dataset
from returnn.datasets.util.bliss import iter_segments
from returnn.datasets.util.vocabulary import BytePairEncoding, Vocabulary
from returnn.errors import UserError
from returnn.log import log
from returnn.lr import lr_file
from returnn.torch.checkpoint import get_model_state, load_file, load_model_state
from returnn.torch.optim.state import load_into, unpack_state
from returnn.util.py_text_dict import load_text_dict

__all__ = ["READERS", "main"]

#: Memory that reading one small file may take at most.
MAX_MEMORY_BYTES = 1 << 30


def _read_all(opts: dict[str, Any]) -> None:  # Any: options of a dataset
    dataset: Dataset = init_dataset({"name": "broken", **opts})
    dataset.init_seq_order(epoch=1)
    keys = dataset.get_data_keys()
    seq_idx = 0
    while dataset.is_less_than_num_seqs(seq_idx):
        dataset.load_seqs(seq_idx, seq_idx + 1)
        dataset.get_tag(seq_idx)
        dataset.get_seq_length(seq_idx)
        for key in keys:
            dataset.get_data(seq_idx, key)
        seq_idx += 1
    dataset.finish_epoch()


def _hdf(path: str) -> None:
    _read_all({"class": "HDFDataset", "files": [path]})


def _stream_hdf(path: str) -> None:
    _read_all(
        {"class": "NextGenHDFDataset", "files": [path], "input_stream_name": "data"},
    )


def _zip(path: str) -> None:
    targets = {"class": "Utf8ByteTargets"}
    _read_all({"class": "OggZipDataset", "path": path, "audio": {"features": "raw"}, "targets": targets})


def _text(path: str) -> None:
    _read_all({"class": "LmDataset", "corpus_file": path, "orth_vocab": {"class": "Utf8ByteTargets"}})


def _bliss(path: str) -> None:
    for segment in iter_segments(path):
        assert segment.name


def _text_dict(path: str) -> None:
    load_text_dict(path)
    _read_all(
        {"class": "TextDictDataset", "filename": path, "item_format": "single", "vocab": {"class": "Utf8ByteTargets"}}
    )


def _vocab(path: str) -> None:
    Vocabulary(path, unknown_label=None).get_seq("label1 label2")


def _bpe_codes(path: str) -> None:
    # The vocabulary has the letters; merges come from the file.
    vocab = path + ".vocab"
    with open(vocab, "w") as file:
        file.write(repr({c: i for i, c in enumerate(["<unk>", *"helowrd", *[c + "@@" for c in "helowrd"]])}))
    BytePairEncoding(vocab_file=vocab, bpe_file=path, unknown_label="<unk>").get_seq("hello world")


def _seq_list(path: str) -> None:
    _read_all(
        {
            "class": "StaticDataset",
            "data": _static_data(),
            "output_dim": {"data": (1, 2)},
            "seq_list_filter_file": path,
        }
    )


def _static_data() -> list[dict[str, Any]]:  # Any: arrays
    return [{"data": numpy.zeros((i + 3, 1), "float32")} for i in range(6)]


def _seq_lens(path: str) -> None:
    _read_all(
        {
            "class": "MetaDataset",
            "datasets": {
                "a": {
                    "class": "StaticDataset",
                    "data": _static_data(),
                    "output_dim": {"data": (1, 2)},
                }
            },
            "data_map": {"data": ("a", "data")},
            "seq_lens_file": path,
            "seq_ordering": "sorted",
        }
    )


def _checkpoint(path: str) -> None:
    model = torch.nn.Linear(3, 2)
    load_model_state(model, get_model_state(load_file(path), filename=path), filename=path)


def _optimizer(path: str) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    load_into(optimizer, unpack_state(load_file(path), path), ["weight", "bias"])


READERS: dict[str, Callable[[str], None]] = {
    "hdf": _hdf,
    "stream_hdf": _stream_hdf,
    "zip_ogg": _zip,
    "zip_wav": _zip,
    "zip_flac": _zip,
    "text": _text,
    "text_gz": _text,
    "bliss": _bliss,
    "bliss_gz": _bliss,
    "text_dict": _text_dict,
    "text_dict_gz": _text_dict,
    "vocab_text": _vocab,
    "vocab_dict": _vocab,
    "vocab_json": _vocab,
    "vocab_pickle": _vocab,
    "bpe_codes": _bpe_codes,
    "learning_rates": lambda path: _ignore(lr_file.load(path)),
    "seq_list": _seq_list,
    "seq_list_gz": _seq_list,
    "seq_list_pickle": _seq_list,
    "seq_lens": _seq_lens,
    "checkpoint": _checkpoint,
    "optimizer": _optimizer,
}


def _ignore(value: object) -> None:
    del value


def _read(reader: str, path: str) -> dict[str, Any]:  # Any: JSON
    try:
        READERS[reader](path)
    except UserError as exc:
        text = str(exc)
        return {"end": "worded" if len(text) > 10 else "crash", "text": text or repr(exc)}
    except MemoryError:
        return {"end": "crash", "text": "MemoryError\n" + traceback.format_exc()}
    except BaseException:
        return {"end": "crash", "text": traceback.format_exc()}
    return {"end": "ok", "text": ""}


def main() -> None:
    """Until stdin ends."""
    log.initialize(verbosity=[0])
    out, sys.stdout = sys.stdout, sys.stderr
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_MEMORY_BYTES, used + MAX_MEMORY_BYTES))
    for line in sys.stdin:
        reader, path = line.rstrip("\n").split("\t")
        result = _read(reader, path)
        print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    assert returnn.__version__
    main()
