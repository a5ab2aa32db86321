"""Broken and hostile files which no random mutation makes: links in circles, absurd sizes, wrong types, bombs, missing members."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch

from tests.robustness.seed_files import make_seed_files

__all__ = ["Crafted", "craft"]

_HUGE = 2**40


class Crafted(NamedTuple):
    """A file for a reader of read_file.READERS."""

    reader: str
    name: str
    path: Path
    #: texts that may not be part of what is read, e.g. of a file outside of the folder
    must_end: str = ""  # "worded": a result is wrong


def _change_hdf(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return write


def _replace(name: str, data: Any) -> Callable[[h5py.File], None]:  # Any: what numpy takes
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = data

    return change


def _sparse(name: str, shape: tuple[int, ...], dtype: str) -> Callable[[h5py.File], None]:
    """Claims a size without having the data."""

    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        chunks = tuple(min(s, 64) for s in shape)
        file.create_dataset(name, shape=shape, dtype=dtype, chunks=chunks, fillvalue=1)

    return change


def _consistent(num_frames: int) -> Callable[[h5py.File], None]:
    """Lengths and arrays fit together, but each sequence has that many frames."""

    def change(file: h5py.File) -> None:
        lens = file["seqLengths"][...]
        _replace("seqLengths", np.full(lens.shape, num_frames, "int32"))(file)
        for name in ("inputs", "targets/data/classes"):
            old = file[name]
            _sparse(name, (len(lens) * num_frames, *old.shape[1:]), old.dtype.name)(file)

    return change


def _delete(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]

    return change


def _delete_attr(name: str, attr: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del (file[name] if name else file).attrs[attr]

    return change


def _set_attr(name: str, attr: str, value: Any) -> Callable[[h5py.File], None]:  # Any: what h5py takes
    def change(file: h5py.File) -> None:
        (file[name] if name else file).attrs[attr] = value

    return change


def _link(name: str, link: Any) -> Callable[[h5py.File], None]:  # Any: h5py's types of links
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = link

    return change


def _cycle(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = h5py.SoftLink("/a")
        file["a"] = h5py.SoftLink("/b")
        file["b"] = h5py.SoftLink("/" + name)

    return change


def _group_in_itself(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name + "/again"] = file[name]

    return change


def _raw_storage(name: str, outside: Path) -> Callable[[h5py.File], None]:
    """The bytes of any file as array."""

    def change(file: h5py.File) -> None:
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        size = int(np.prod(shape)) * dtype.itemsize
        file.create_dataset(name, shape, dtype=dtype, external=[(str(outside), 0, size)])

    return change


def _virtual(name: str, outside: Path) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        layout = h5py.VirtualLayout(shape=shape, dtype=dtype)
        layout[...] = h5py.VirtualSource(str(outside), name, shape=shape)
        file.create_virtual_dataset(name, layout)

    return change


def _hdf_changes(
    members: list[str], attrs: list[tuple[str, str]], outside: Path, raw: Path
) -> Iterator[tuple[Any, ...]]:
    """:return: name, change, how it must end. Any: as of :class:`Crafted`"""
    for name in members:
        yield f"without {name}", _delete(name), ""
        yield f"{name} a circle of links", _cycle(name), "worded"
        yield f"{name} an external link", _link(name, h5py.ExternalLink(str(outside), "/" + name)), "worded"
        yield f"{name} an external link to nothing", _link(name, h5py.ExternalLink("/nowhere.hdf", "/x")), "worded"
        yield f"{name} a link to nothing", _link(name, h5py.SoftLink("/nowhere")), ""
        yield f"{name} text", _replace(name, "text"), ""
        yield f"{name} empty", _replace(name, h5py.Empty("float32")), ""
        yield f"{name} a number", _replace(name, 3), ""
        yield f"{name} complex", _replace(name, np.ones((3, 2), "complex64")), ""
        yield f"{name} records", _replace(name, np.zeros(5, [("a", "i4"), ("b", "f4", (3,))])), ""
        yield f"{name} of eight axes", _replace(name, np.zeros((2,) * 8, "float32")), ""
        yield f"{name} of strings", _replace(name, np.array([b"a", b"bc"] * 8)), ""
        yield f"{name} absurdly long", _sparse(name, (_HUGE,), "int32"), ""
        yield f"{name} absurdly big", _sparse(name, (2**21, 2**21), "int32"), ""
        yield f"{name} absurdly wide", _sparse(name, (4, _HUGE), "float32"), ""
    for name, attr in attrs:
        where = f"attribute {attr} of {name or 'the file'}"
        yield f"without {where}", _delete_attr(name, attr), ""
        value: Any  # of all types
        for value in (-1, 2**62, float("nan"), "text", [], np.arange(5.0)):
            yield f"{where} {value!r}", _set_attr(name, attr, value), ""


def _craft_hdf(seed: Path, outside: Path, raw: Path) -> Iterator[tuple[Any, ...]]:
    with h5py.File(seed) as file:
        members: list[str] = []
        file.visit(members.append)
        attrs = [("", attr) for attr in file.attrs] + [(name, attr) for name in members for attr in file[name].attrs]
        groups = [name for name in members if isinstance(file[name], h5py.Group)]
        arrays = [name for name in members if isinstance(file[name], h5py.Dataset) and file[name].dtype.kind in "if"]
        lens = "seqLengths" if "seqLengths" in file else None
        shape = file[lens].shape if lens else ()
    yield from _hdf_changes(members, attrs, outside, raw)
    for name in groups:
        yield f"{name} in itself", _group_in_itself(name), ""
    for name in arrays:
        yield f"{name} raw bytes of another file", _raw_storage(name, raw), "worded"
        yield f"{name} a view of another file", _virtual(name, outside), "worded"
    if lens:
        for value in (-1, 2**31 - 1, 0):
            yield f"all lengths {value}", _replace(lens, np.full(shape, value, "int32")), ""
        for dtype, number in (("uint64", 2**63), ("int64", 2**61), ("float64", float("nan")), ("float64", 1e300)):
            yield f"all lengths {number!r}", _replace(lens, np.full(shape, number, dtype)), ""
            yield f"sequences of {value} frames", _consistent(abs(value)), ""
        yield "sequences of 2 GB", _consistent(2**28), "worded"
        yield "lengths without axes", _replace(lens, np.int32(3)), ""
        yield "lengths of strings", _replace(lens, np.full(shape, b"3")), ""


class _Deflated(NamedTuple):
    """A compressed member of a zip."""

    data: bytes
    crc: int
    size: int


@functools.cache
def _bomb(begin: bytes, fill: bytes, end: bytes) -> _Deflated:
    """
    1 GB, made of the compressed form of 1 MB: that is all that has to be compressed.

    :param begin: before it
    :param fill: repeated
    :param end: after it
    """
    block, num = fill * (2**20 // len(fill)), 2**10
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    data = compressor.compress(begin) + compressor.flush(zlib.Z_FULL_FLUSH)
    data += (compressor.compress(block) + compressor.flush(zlib.Z_FULL_FLUSH)) * num
    data += compressor.compress(end) + compressor.flush()
    crc = zlib.crc32(begin)
    for _ in range(num):
        crc = zlib.crc32(block, crc)
    return _Deflated(data, zlib.crc32(end, crc), len(begin) + len(block) * num + len(end))


def _zip_with_bomb(name: str, bomb: _Deflated, whole: bytes = b"") -> bytes:
    """
    :param name: of the new member
    :param bomb: its content
    :param whole: zip with the other members
    """
    buffer = io.BytesIO(whole)
    with zipfile.ZipFile(buffer, "a") as archive:
        info = zipfile.ZipInfo(name)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.CRC, info.compress_size, info.file_size = bomb.crc, len(bomb.data), bomb.size
        info.header_offset = archive.start_dir
        buffer.seek(archive.start_dir)
        buffer.write(info.FileHeader(zip64=False) + bomb.data)
        archive.filelist.append(info)
        archive.NameToInfo[name] = info
        archive.start_dir = buffer.tell()
        archive._didModify = True  # type: ignore[attr-defined]  # else close() writes no list of members
    return buffer.getvalue()


def _zip_of(entries: Any, files: dict[str, bytes], *, stem: str) -> bytes:
    """:param entries: content of the text. Any: literals, or the text itself"""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        if entries is not None:
            archive.writestr(f"{stem}.txt", entries if isinstance(entries, (str, bytes)) else repr(entries))
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _wav(num_bytes: int, *, channels: int = 1, rate: int = 16000, bits: int = 16, data: bytes = b"\0" * 64) -> bytes:
    fmt = struct.pack("<HHIIHH", 1, channels, rate, rate * 2 & 0xFFFFFFFF, 2, bits)
    return b"RIFF" + struct.pack("<I", 0xFFFFFFFF) + b"WAVEfmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack(
        "<I", num_bytes
    ) + data  # fmt: skip


def _flac(whole: bytes, num_samples: int) -> bytes:
    """The header claims another number of samples."""
    array = bytearray(whole)
    field = int.from_bytes(array[18:26], "big")
    array[18:26] = ((field & ~(2**36 - 1)) | num_samples).to_bytes(8, "big")
    return bytes(array)


def _craft_zip(stem: str, seed: Path) -> Iterator[tuple[str, bytes, str]]:
    with zipfile.ZipFile(seed) as archive:
        audio = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".txt")}
    first = next(iter(audio))
    name = first.split("/")[-1]
    ext = name.rpartition(".")[2]

    what: Any  # values of all types

    def entry(**changes: Any) -> dict[str, Any]:  # Any: values of all types
        return {"text": "a", "file": name, "seq_name": "s", "duration": 3000 / 16000, **changes}

    for what in ("../../outside.wav", "/etc/passwd", "..", "", "a\0b", "x" * 70000, 5, None, ["a"], "\ud800"):
        yield f"file {str(what)[:20]!r}", _zip_of([entry(file=what)], audio, stem=stem), "worded"
    for what in (-1.0, float("nan"), float("inf"), 1e300, "a", None, [1], 10**400):
        yield f"duration {str(what)[:20]!r}", _zip_of([entry(duration=what)], audio, stem=stem), ""
    for what in (5, None, b"a", ["a"], "\0", "a" * 10**6, {"a": 1}):
        yield f"text {str(what)[:20]!r}", _zip_of([entry(text=what)], audio, stem=stem), ""
        yield f"seq_name {str(what)[:20]!r}", _zip_of([entry(seq_name=what)], audio, stem=stem), ""
    yield "the same name twice", _zip_of([entry(), entry()], audio, stem=stem), ""
    for what in ({}, 5, None, [5], [[]], [{}], "text", [entry(), 5], "[" * 10**5, "", "\xff"):
        yield f"entries {str(what)[:20]!r}", _zip_of(what if isinstance(what, str) else [what], audio, stem=stem), ""
    yield "no text", _zip_of(None, audio, stem=stem), "worded"
    yield "no audio", _zip_of([entry()], {}, stem=stem), "worded"
    yield "text in utf-16", _zip_of(repr([entry()]).encode("utf-16"), audio, stem=stem), "worded"
    yield "text a bomb", _zip_with_bomb(f"{stem}.txt", _bomb(b"[", b" ", b"]")), "worded"
    yield "audio a bomb", _zip_with_bomb(first, _bomb(b"", b"\0", b""), _zip_of([entry()], {}, stem=stem)), "worded"
    yield "audio no audio", _zip_of([entry()], {first: b"text"}, stem=stem), "worded"
    encrypted = bytearray(_zip_of([entry()], audio, stem=stem))
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := encrypted.find(magic, start + 1)) >= 0:
            encrypted[start + offset] |= 1
    yield "encrypted", bytes(encrypted), "worded"
    if ext == "wav":
        for num_bytes in (0xFFFFFFF0, 0, 2**31):
            yield f"header of {num_bytes} bytes", _zip_of([entry()], {first: _wav(num_bytes)}, stem=stem), ""
        args: Any
        for args in ({"channels": 0}, {"channels": 65535}, {"rate": 0}, {"rate": 2**32 - 1}, {"bits": 0}, {"bits": 7}):
            yield f"header with {args}", _zip_of([entry()], {first: _wav(64, **args)}, stem=stem), ""
    if ext == "flac":
        for num in (0, 2**36 - 1, 2**30):
            content = _flac(audio[first], num)
            yield f"header of {num} samples", _zip_of([entry()], {**audio, first: content}, stem=stem), ""


def _craft_text() -> Iterator[tuple[str, str, bytes, str]]:
    """:return: reader, name, content, how it must end"""
    text = b"hello world\n" * 10
    gz_readers = ("text_gz", "bliss_gz", "text_dict_gz", "seq_list_gz")
    bomb = gzip.compress(b"\0" * 2**30)
    for reader in gz_readers:
        yield reader, "bz2 with the wrong name", bz2.compress(text), "worded"
        yield reader, "xz with the wrong name", lzma.compress(text), "worded"
        yield reader, "zip with the wrong name", _zip_of("[]", {}, stem="a"), "worded"
        # The LM goes by the content, not by the name.
        yield reader, "not compressed", text, "ok" if reader == "text_gz" else "worded"
        yield reader, "bomb", bomb, "worded"
        yield reader, "bomb in a bomb", gzip.compress(bomb), "worded"
    for reader in ("text", "bliss", "text_dict", "vocab_text", "vocab_dict", "vocab_json", "bpe_codes", "learning_rates", "seq_list", "seq_lens"):  # fmt: skip
        # The LM reads gzip by any name.
        yield reader, "gz with the wrong name", gzip.compress(text), "ok" if reader == "text" else "worded"
        for name, content in (("bz2", bz2.compress(text)), ("xz", lzma.compress(text))):
            yield reader, f"{name} with the wrong name", content, "worded"
        yield reader, "one long line", b"a" * 10**5, ""
        yield reader, "many lines", b"a\n" * 10**4, ""
        yield reader, "many different lines", b"".join(b"%d\n" % i for i in range(10**4)), ""
        yield reader, "deep brackets", b"[" * 10**6, ""
        yield reader, "deep dicts", b'{"a":' * 10**5, ""
        yield reader, "long number", b"{'a': " + b"9" * 10**5 + b"}", ""
        yield reader, "many minus signs", b"{'a': " + b"-" * 10**5 + b"1}", ""
        yield reader, "many operators", b"{'a': " + b"1+" * 10**5 + b"1}", ""
        yield reader, "power", b"{'a': 9**9**9}", ""
        yield reader, "surrogates", b"\xed\xa0\x80", ""
        yield reader, "latin-1", "ä\n".encode("latin-1"), ""
        yield reader, "utf-32", "{'a': 1}".encode("utf-32"), ""
        yield reader, "absurd values", b'{"seq-0": 1e999, "seq-1": {"data": -5}, "seq-2": {"data": 1e18}}', ""
        yield reader, "wrong types", b'{"seq-0": "a", "1": [], "2": null, "3": {"data": [[]]}}', ""
    deep = b"<corpus name='c'>" + b"<subcorpus name='a'>" * 10**5
    for name, content in (
        ("deep elements", deep),
        ("long attribute", b"<corpus name='" + b"a" * 10**7 + b"'/>"),
        ("other root", b"<lexicon/>"),
        ("times", b"<corpus name='c'><recording name='r' audio='x'><segment name='s' start='inf' end='-1e999'/></recording></corpus>"),
        ("include", b"<corpus name='c'><include file='../../../../etc/passwd'/></corpus>"),
        ("quadratic entities", b"<!DOCTYPE c [<!ENTITY a '" + b"a" * 10**5 + b"'>]><corpus name='c'>" + b"&a;" * 10**4 + b"</corpus>"),
    ):  # fmt: skip
        yield "bliss", name, content, ""


def _craft_pickles() -> Iterator[tuple[str, str, bytes, str]]:
    """:return: reader, name, content, how it must end"""
    proto = b"\x80\x04"
    for reader in ("vocab_pickle", "seq_list_pickle"):
        for name, content in (
            ("absurd bytes", proto + b"\x8e" + struct.pack("<Q", 2**62) + b"."),
            ("absurd bytearray", b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"."),
            ("absurd number", proto + b"\x8b" + struct.pack("<i", 2**31 - 1) + b"."),
            ("absurd text", proto + b"X" + struct.pack("<I", 2**32 - 1) + b"."),
            ("absurd memo", proto + b"]r" + struct.pack("<I", 2**32 - 1) + b"."),
            ("deep lists", proto + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."),
            ("deep tuples", proto + b")" + b"\x85" * 10**6 + b"."),
            ("list in itself", proto + b"]\x94h\x00a."),
            ("absurd range", pickle.dumps({"a": range(2**62)})),
            ("set of lists", pickle.dumps([1]).replace(b"K\x01", b"K\x02")),
            ("absurd array", b"\x80\x04cnumpy\nndarray\n(J\xff\xff\xff\x7ftR."),
            ("bytes of an absurd size", b"\x80\x04cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R."),
            ("bytearray of an absurd size", b"\x80\x04cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x10\x85R."),
            ("numbers", pickle.dumps([1, 2.5, None])),
            ("objects in an array", pickle.dumps(np.array([{"a": 1}, None], dtype=object))),
            ("persistent id", proto + b"Pabc\n."),
            ("extension", proto + b"\x82\x05."),
            ("nothing", proto + b"."),
        ):
            yield reader, name, content, ""


def _torch_file(obj: Any) -> bytes:
    """:param obj: Any: anything"""
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    return buffer.getvalue()


def _craft_checkpoints() -> Iterator[tuple[str, str, bytes, str]]:
    """:return: reader, name, content, how it must end"""
    expanded = torch.zeros(1).expand(2**40)
    for reader in ("checkpoint", "optimizer"):
        for name, obj in (
            ("absurd tensors", {"model": {"weight": expanded, "bias": expanded}, "param_groups": [], "state": {0: {"exp_avg": expanded}}}),
            ("a list", [1, 2]),
            ("a tensor", torch.zeros(3)),
            ("numbers for tensors", {"model": {"weight": 1, "bias": "a"}, "state": {0: 1}, "param_groups": 5}),
            ("other keys", {"model": {5: torch.zeros(2)}, "state": [], "param_groups": [{"params": [99]}]}),
            ("complex", {"model": {"weight": torch.zeros(2, 3, dtype=torch.complex64), "bias": torch.zeros(2)}}),
            ("sparse", {"model": {"weight": torch.zeros(2, 3).to_sparse(), "bias": torch.zeros(2)}}),
            ("epoch", {"model": {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, "epoch": "x", "step": -(10**30)}),
            ("nothing", {}),
        ):  # fmt: skip
            yield reader, name, _torch_file(obj), ""
        content = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(_torch_file({"model": {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}}))) as old, zipfile.ZipFile(content, "w") as new:  # fmt: skip
            for member in old.namelist():
                new.writestr(member, old.read(member)[:5] if "/data/" in member else old.read(member))
        yield reader, "storages too short", content.getvalue(), "worded"


def craft(folder: Path) -> Iterator[Crafted]:
    """
    :param folder: for the files; one is there at a time
    :return: all of them; each is removed when the next one is asked for
    """
    data, outside = folder / "data", folder / "outside"
    data.mkdir()
    outside.mkdir()
    seeds = make_seed_files(data)
    raw = outside / "raw"
    raw.write_bytes(b"do not tell" * 1000)

    def put(reader: str, name: str, content: bytes, must_end: str) -> Iterator[Crafted]:
        # A name of its own, since readers may keep what they read by name; but a zip has its name inside.
        path = (
            seeds[reader] if reader.startswith("zip_") else data / f"{abs(hash((reader, name)))}-{seeds[reader].name}"
        )
        path.write_bytes(content)
        yield Crafted(reader, name, path, must_end)
        path.unlink()

    for reader in ("hdf", "stream_hdf"):
        other = outside / "other.hdf"
        other.write_bytes(seeds[reader].read_bytes())
        whole = seeds[reader].read_bytes()
        for number, (name, change, must_end) in enumerate(_craft_hdf(seeds[reader], other, raw)):
            path = data / f"{number}-{reader}.hdf"
            path.write_bytes(whole)
            try:
                _change_hdf(change)(path)
            except (OSError, ValueError, TypeError, RuntimeError):  # HDF5 itself refuses to write that
                path.unlink()
                continue
            yield Crafted(reader, name, path, must_end)
            path.unlink()
    for reader in ("zip_ogg", "zip_wav", "zip_flac"):
        whole = seeds[reader].read_bytes()
        seed = outside / "seed.zip"
        seed.write_bytes(whole)
        for name, content, must_end in _craft_zip(reader, seed):
            yield from put(reader, name, content, must_end)
    for source in (_craft_text(), _craft_pickles(), _craft_checkpoints()):
        for reader, name, content, must_end in source:
            yield from put(reader, name, content, must_end)
