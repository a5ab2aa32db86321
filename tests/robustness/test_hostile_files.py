"""Data files are data: what tries to run code, to grow without limit, or to leave its folder, ends in a worded error."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.datasets import init_dataset
from returnn.datasets.lm import Lexicon
from returnn.datasets.seq_lists import load_seq_list_file
from returnn.datasets.util.bliss import iter_segments
from returnn.datasets.util.vocabulary import Vocabulary
from returnn.errors import UserError
from returnn.lr import lr_file
from returnn.options.check import report_options
from returnn.options.loading import LoadingOptions
from returnn.torch.checkpoint import load_file
from returnn.util.py_text_dict import load_text_dict

_LAUGHS = (
    "<?xml version='1.0'?>\n<!DOCTYPE corpus [<!ENTITY a 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'>"
    + "".join(f"<!ENTITY {chr(98 + i)} '{f'&{chr(97 + i)};' * 10}'>" for i in range(9))
    + "]>\n"
)


class _Runs:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_entities_do_not_grow_without_limit(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.xml"
    corpus.write_text(
        _LAUGHS + "<corpus name='c'><recording name='r' audio='x'><segment name='s' start='0' end='1'>"
        "<orth>&j;</orth></segment></recording></corpus>"
    )
    with pytest.raises(UserError, match=r"corpus\.xml"):
        list(iter_segments(str(corpus)))
    lexicon = tmp_path / "lexicon.xml"
    lexicon.write_text(
        _LAUGHS.replace("DOCTYPE corpus", "DOCTYPE lexicon")
        + "<lexicon><phoneme-inventory><phoneme><symbol>&j;</symbol></phoneme></phoneme-inventory></lexicon>"
    )
    with pytest.raises(UserError, match=r"lexicon\.xml"):
        Lexicon(str(lexicon))


def test_external_entities_are_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("do not tell")
    corpus = tmp_path / "corpus.xml"
    corpus.write_text(
        f"<!DOCTYPE corpus [<!ENTITY x SYSTEM 'file://{secret}'>]>\n"
        "<corpus name='c'><recording name='r' audio='x'><segment name='s' start='0' end='1'>"
        "<orth>&x;</orth></segment></recording></corpus>"
    )
    try:
        texts = [segment.orth for segment in iter_segments(str(corpus))]
    except UserError:
        return
    assert not any("tell" in text for text in texts)


@pytest.mark.parametrize("kind", ["vocabulary", "checkpoint", "checkpoint of torch"])
def test_pickles_run_nothing(tmp_path: Path, kind: str) -> None:
    ran = tmp_path / "ran"
    path = tmp_path / ("v.pkl" if kind == "vocabulary" else "a.pt")
    if kind == "checkpoint of torch":
        torch.save({"model": {}, "epoch": _Runs(ran)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": _Runs(ran)}))
    with pytest.raises(UserError, match=path.name):
        if kind == "vocabulary":
            Vocabulary(str(path), unknown_label=None)
        else:
            load_file(str(path))
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["vocabulary", "sequence list", "checkpoint"])
def test_unsafe_load_is_the_only_way(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also under its old name, and it is printed."""
    plain: Any = {"vocabulary": {"a": 0}, "sequence list": ["a"], "checkpoint": {"model": {}}}[kind]
    path = str(tmp_path / "a.pkl")
    for num, name in enumerate(("unsafe_load", "load_unsafe_checkpoints", None)):
        ran = tmp_path / f"ran{num}"
        content = {**plain, "x": _Runs(ran)} if isinstance(plain, dict) else [*plain, _Runs(ran)]
        if kind == "checkpoint":
            torch.save(content, path)
        else:
            (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
        os.utime(path, (num, num))  # files of the same size and time are not read again
        config = Config({name: True} if name else {})
        options = LoadingOptions.from_config(config)
        with process_state_ctx(global_config=config, shown_warnings=set()):
            report_options(config, "train")
            assert ("WARNING: unsafe_load is set" in capsys.readouterr().out) == bool(name)
            try:
                if kind == "vocabulary":
                    Vocabulary(path, unknown_label=None)
                elif kind == "sequence list":
                    load_seq_list_file(path)
                else:
                    load_file(path, weights_only=not options.allow_unsafe)
            except UserError as exc:
                # A directory is no label; but it was made.
                assert name or "unsafe_load = True" in str(exc), exc
        assert ran.exists() == bool(name)


@pytest.mark.parametrize(
    "text",
    [
        "{'a': __import__('os').mkdir('ran')}",
        "{'a': (lambda: 1)()}",
        "{1: EpochData(learningRate=__import__('os').mkdir('ran'), error={})}",
        "{'a': 10 ** 10 ** 10}",
        "{'a': 'x' * 10 ** 12}",
    ],
)
def test_literals_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.py"
    path.write_text(text)
    for read in (load_text_dict, lr_file.load, lambda name: Vocabulary(name, unknown_label=None)):
        with pytest.raises(UserError, match=r"file\.py"):
            read(str(path))
    assert os.listdir(tmp_path) == ["file.py"]


def test_zip_members_stay_in_the_zip(tmp_path: Path) -> None:
    """Members are read, never extracted; a name with .. is a name like any other."""
    outside = tmp_path / "outside.wav"
    outside.write_bytes(b"secret")
    folder = tmp_path / "data"
    folder.mkdir()
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("a.txt", repr([{"text": "x", "file": "../../outside.wav", "seq_name": "s", "duration": 1.0}]))
    dataset = init_dataset(
        {"class": "OggZipDataset", "path": str(folder / "a.zip"), "audio": {"features": "raw"}, "targets": None}
    )
    with pytest.raises(UserError, match=r"outside\.wav"):
        dataset.init_seq_order(epoch=1)
        dataset.load_seqs(0, 1)
    assert sorted(os.listdir(tmp_path)) == ["data", "outside.wav"]
    assert os.listdir(folder) == ["a.zip"]
