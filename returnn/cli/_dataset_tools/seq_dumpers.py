"""The ways in which dump-dataset shows or stores one sequence."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import tempfile
from collections.abc import Iterator
from typing import IO, Any, ClassVar, cast

import numpy

from returnn.cli._dataset_tools.reading import Seq
from returnn.datasets.basic import Dataset
from returnn.errors import ConfigError, DataFileError, describe
from returnn.util.debug import debug_shell
from returnn.util.fs import atomic_write, maybe_make_dirs, why_not_writable
from returnn.util.optional_import import optional_import
from returnn.util.pprint import pretty_print

__all__ = [
    "SeqDumper",
    "JsonLines",
    "DUMPERS",
    "create_dumper",
    "private_prefix",
    "prepare_folder",
    "print_json",
    "to_json",
]


def private_prefix() -> str:
    """:return: prefix of files in a new folder that nobody else uses, below the folder for temporary files"""
    return tempfile.mkdtemp(prefix="returnn.dump-dataset.") + os.sep


class SeqDumper:
    """Base of all: shows nothing."""

    #: Whether it needs the data of the sequences, or only tags and lengths.
    needs_data: bool = False

    def __init__(self, dataset: Dataset, *, key: str, prefix: str | None, postfix: str, brief: bool):
        """
        :param dataset: whose sequences come
        :param key: data key that comes first
        :param prefix: of files; None: a private folder
        :param postfix: of files with arrays
        :param brief: shorter lines
        """
        self.dataset = dataset
        self.key = key
        self.target_keys = [k for k in dataset.get_target_list() if k != key]
        self._prefix = prefix
        self.postfix = postfix
        self.brief = brief
        self.exit_stack = contextlib.ExitStack()

    @property
    def prefix(self) -> str:
        """:return: prefix of files"""
        if self._prefix is None:
            self._prefix = private_prefix()
        return self._prefix

    def title(self, *, has_stats: bool) -> str:
        """:return: line that says what is done"""
        return "No dump (except stats)." if has_stats else "No dump."

    def open(self) -> None:
        """Start. Files appear at :meth:`close`."""

    def show(self, seq: Seq, progress: str) -> None:
        """
        Print.

        :param seq: the next sequence
        :param progress: text for the line
        """

    def store(self, seq: Seq) -> None:
        """
        Write into files.

        :param seq: the next sequence
        """

    def close(self) -> str | None:
        """:return: name of the file that was written"""
        return None

    def label_text(self, key: str, data: numpy.ndarray) -> str:
        """:return: the labels as text, in brackets; "" if the data are no class indices"""
        dataset = self.dataset
        if len(dataset.labels.get(key) or ()) <= 1 or data.dtype.kind not in "iu" or data.ndim > 1:
            return ""
        return f" ({dataset.serialize_data(key, data)!r})"


class Stdout(SeqDumper):
    """The data as text."""

    needs_data = True

    def title(self, *, has_stats: bool) -> str:
        """See base."""
        return "Dump to stdout"

    def show(self, seq: Seq, progress: str) -> None:
        """See base."""
        print(f"seq {progress} tag: {seq.tag}")
        data = seq.data[self.key]
        print(f"seq {progress} data: {pretty_print(data)}{self.label_text(self.key, data)}")
        for key in self.target_keys:
            data = seq.data[key]
            print(f"seq {seq.position} target {key!r}: {pretty_print(data)}{self.label_text(key, data)}")


class PrintTag(SeqDumper):
    """The tags on stdout."""

    def title(self, *, has_stats: bool) -> str:
        """See base."""
        return "Dump seq tag to stdout"

    def show(self, seq: Seq, progress: str) -> None:
        """See base."""
        print(f"seq {progress.split(' ')[0] if self.brief else progress} tag: {seq.tag}")


class _ToOneFile(SeqDumper):
    """One text file with a line per sequence."""

    #: after the prefix
    filename: ClassVar[str]

    def open(self) -> None:
        """See base."""
        self.path = self.prefix + self.filename
        self.file: IO[Any] = self.exit_stack.enter_context(open_for_dump(self.path))

    def close(self) -> str | None:
        """See base."""
        return self.path


class DumpTag(_ToOneFile):
    """The tags in a file."""

    filename = "seq-tags.txt"

    def title(self, *, has_stats: bool) -> str:
        """See base."""
        return f"Dump seq tag to file: {self.path}"

    def show(self, seq: Seq, progress: str) -> None:
        """See base."""
        print(f"seq {progress} tag: {seq.tag}")

    def store(self, seq: Seq) -> None:
        """See base."""
        self.file.write(f"{seq.tag}\n")


class DumpSeqLen(_ToOneFile):
    """The lengths in a file, as Python dict."""

    filename = "seq-lens.txt"

    def title(self, *, has_stats: bool) -> str:
        """See base."""
        return f"Dump seq lens to file: {self.path}"

    def open(self) -> None:
        """See base."""
        super().open()
        self.file.write("{\n")

    def show(self, seq: Seq, progress: str) -> None:
        """See base."""
        print(f"seq {progress} tag: {seq.tag} {self.key!r} len: {seq.lens[self.key]}")

    def store(self, seq: Seq) -> None:
        """See base."""
        self.file.write(f"{seq.tag!r}: {seq.lens[self.key]},\n")

    def close(self) -> str | None:
        """See base."""
        self.file.write("}\n")
        return super().close()


class PrintShape(SeqDumper):
    """Shapes on stdout."""

    needs_data = True

    def title(self, *, has_stats: bool) -> str:
        """See base."""
        return "Dump shape to stdout"

    def show(self, seq: Seq, progress: str) -> None:
        """See base."""
        print(f"seq {progress} data shape: {seq.data[self.key].shape}")
        for key in self.target_keys:
            print(f"seq {seq.position} target {key!r} shape: {seq.data[key].shape}")


class NumpyFiles(SeqDumper):
    """A text file per sequence and data key, by numpy.savetxt."""

    needs_data = True

    def title(self, *, has_stats: bool) -> str:
        """See base."""
        return f"Dump files: {self.prefix!r}*{self.postfix!r}"

    def store(self, seq: Seq) -> None:
        """See base."""
        self._save(f"{seq.position}.data", seq.data[self.key], int_format="%.18e")
        for key in self.target_keys:
            self._save(f"{seq.position}.targets.{key}", seq.data[key], int_format="%i")

    def _save(self, name: str, data: numpy.ndarray, *, int_format: str) -> None:
        data = numpy.atleast_1d(data)
        if data.ndim > 2:
            data = data.reshape(len(data), -1)
        if data.dtype.kind in "biu":
            fmt = int_format
        elif data.dtype.kind == "f":
            fmt = "%.18e"  # "%i" would cut the values
        else:
            fmt, data = "%s", _decoded(data)
        with open_for_dump(f"{self.prefix}{name}{self.postfix}") as file:
            numpy.savetxt(file, data, fmt=fmt)


class Plot(SeqDumper):
    """A plot per sequence: in a window, or without a display in PNG files."""

    needs_data = True

    def open(self) -> None:
        """See base."""
        self._pyplot = optional_import("matplotlib.pyplot", needed_by="--type plot")

    def title(self, *, has_stats: bool) -> str:
        """See base."""
        return "Plot."

    def show(self, seq: Seq, progress: str) -> None:
        """See base."""
        plt = self._pyplot
        data = numpy.atleast_1d(seq.data[self.key])
        if data.dtype.kind not in "biuf":
            raise ConfigError(describe(f"The data of {self.key!r} are no numbers", todo="Give another --key"))
        figure = plt.figure()
        if data.ndim == 1:
            plt.plot(data)
        else:
            plt.imshow(data.reshape(len(data), -1).T, aspect="auto", origin="lower", interpolation="nearest")
        plt.title(seq.tag)
        plt.xlabel("frame")
        if plt.get_backend().lower() in ("agg", "pdf", "ps", "svg", "cairo"):
            path = f"{self.prefix}{seq.position}.{self.key}.png"
            with open_for_dump(path, binary=True) as file:
                figure.savefig(file, format="png")
            print(f"seq {progress} plot: {path}")
        else:
            plt.show()
        plt.close(figure)


class Interactive(SeqDumper):
    """A shell per sequence."""

    needs_data = True

    def title(self, *, has_stats: bool) -> str:
        """See base."""
        return "Interactive debug shell."

    def show(self, seq: Seq, progress: str) -> None:
        """See base."""
        print(f"seq {progress} tag: {seq.tag}; names: seq, data, dataset")
        debug_shell(
            user_ns={"seq": seq, "data": seq.data[self.key], "dataset": self.dataset},
            user_global_ns={"numpy": numpy},
            exit_afterwards=False,
        )


#: Value of --type -> class.
DUMPERS: dict[str, type[SeqDumper]] = {
    "stdout": Stdout,
    "numpy": NumpyFiles,
    "print_tag": PrintTag,
    "dump_tag": DumpTag,
    "dump_seq_len": DumpSeqLen,
    "print_shape": PrintShape,
    "plot": Plot,
    "interactive": Interactive,
    "null": SeqDumper,
}


def create_dumper(
    kind: str, dataset: Dataset, *, key: str, prefix: str | None, postfix: str, brief: bool = False
) -> SeqDumper:
    """
    :param kind: value of --type
    :param dataset: whose sequences come
    :param key: see :class:`SeqDumper`, as all after it
    :raises ConfigError: unknown kind
    """
    if kind not in DUMPERS:
        raise ConfigError(
            describe(f"unknown dump option type {kind!r}", expected=f"--type, one of {[*DUMPERS]}", got=kind)
        )
    return DUMPERS[kind](dataset, key=key, prefix=prefix, postfix=postfix, brief=brief)


class JsonLines(SeqDumper):
    """Each sequence as one line of JSON, with what the wrapped way of dumping shows; that one writes its files."""

    def __init__(self, inner: SeqDumper, kind: str):
        """
        :param inner: of this kind
        :param kind: value of --type
        :raises ConfigError: it has no form in JSON
        """
        if kind in ("plot", "interactive"):
            raise ConfigError(f"--json does not go together with --type {kind}.")
        self._inner = inner
        self._kind = kind
        self.exit_stack = inner.exit_stack
        self.needs_data = inner.needs_data

    def title(self, *, has_stats: bool) -> str:
        """See base."""
        return self._inner.title(has_stats=has_stats)

    def open(self) -> None:
        """See base."""
        self._inner.open()

    def show(self, seq: Seq, progress: str) -> None:
        """See base."""
        if self._kind == "null":
            return
        entry: dict[str, Any] = {"seq_idx": seq.position, "tag": seq.tag, "lens": seq.lens}
        if self._kind == "print_shape":
            entry["shapes"] = {key: list(value.shape) for key, value in seq.data.items()}
        if self._kind == "stdout":
            entry["data"] = {key: to_json(value) for key, value in seq.data.items()}
        print_json({"seq": entry})

    def store(self, seq: Seq) -> None:
        """See base."""
        self._inner.store(seq)

    def close(self) -> str | None:
        """See base."""
        return self._inner.close()


def print_json(entry: dict[str, Any]) -> None:
    """:param entry: printed as one line; floats that JSON has not are texts"""
    print(json.dumps(entry, ensure_ascii=False, allow_nan=False))


def to_json(value: Any) -> Any:
    """:return: the same of builtin types; nan and inf, which JSON has not, as texts; bytes as text"""
    if isinstance(value, (numpy.ndarray, numpy.generic)):
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf8", errors="backslashreplace")
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    return value


def _decoded(data: numpy.ndarray) -> numpy.ndarray:
    """:return: [..] of str"""
    texts = [v.decode("utf8", errors="backslashreplace") if isinstance(v, bytes) else str(v) for v in data.flat]
    return numpy.array(texts, dtype=object).reshape(data.shape)


def prepare_folder(path: str) -> None:
    """
    :param path: of a file that will be written: its folder is made, if need be
    :raises DataFileError: it cannot be written there
    """
    problem = why_not_writable(path)
    if not problem:
        try:
            maybe_make_dirs(os.path.dirname(path))
        except OSError as exc:
            problem = exc.strerror or str(exc)
    if problem:
        raise DataFileError(describe(f"Cannot write {path!r}: {problem}", todo="Choose another place"))


@contextlib.contextmanager
def open_for_dump(path: str, *, binary: bool = False) -> Iterator[IO[Any]]:
    """
    :param path: appears when the block ends; compressed if it ends with ".gz"
    :param binary: for bytes
    :raises DataFileError: it cannot be written
    """
    prepare_folder(path)
    if path.endswith(".gz"):
        with atomic_write(path, "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
            yield cast(IO[Any], file)
    else:
        with atomic_write(path, "wb" if binary else "w") as file:
            yield file
