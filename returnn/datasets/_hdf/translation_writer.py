"""A parallel text corpus as word indices in one HDF file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TextIO

import h5py
import numpy as np

from returnn.datasets._hdf.atomic_file import AtomicHdfFile
from returnn.datasets._hdf.format import (
    HDF_INPUT_PATT_SIZE_KEY,
    HDF_SEQ_LENGTHS_KEY,
    INPUTS_KEY,
    SEQ_TAGS_KEY,
    TARGETS_KEY,
    encode_fixed_strings,
)
from returnn.errors import ConfigError, DataFileError, DatasetError, describe
from returnn.util import restricted_pickle
from returnn.util.fs import open_text

__all__ = ["UNKNOWN_LABEL", "POSTFIX", "TranslationCorpusWriter", "load_vocabulary"]

UNKNOWN_LABEL = "<UNK>"
POSTFIX = "</S>"
_TAG_PREFIX = "line-"
_INPUT_KEY = "data"
_TARGET_KEY = "classes"
_BLOCK_TAGS = 1 << 16


def load_vocabulary(filename: str) -> dict[str, int]:
    """
    :param filename: pickled dict word -> index; only plain data is accepted
    :return: the dict
    :raises DataFileError: if it is something else
    """
    try:
        with open(filename, "rb") as file:
            # Pickles of Python 2 have 8-bit strings.
            vocabulary = restricted_pickle.load(file, filename=filename, encoding="utf8")
    except FileNotFoundError as exc:
        raise DataFileError(describe(f"Vocabulary {filename!r} does not exist")) from exc
    if not isinstance(vocabulary, dict) or not all(
        isinstance(word, str) and isinstance(idx, (int, np.integer)) for word, idx in vocabulary.items()
    ):
        raise DataFileError(
            describe(f"Vocabulary {filename!r} is invalid", expected="pickled dict word -> index", got=vocabulary)
        )
    if POSTFIX not in vocabulary:
        raise DataFileError(describe(f"Vocabulary {filename!r} has no word {POSTFIX!r}", todo="Add it"))
    if not 0 <= min(vocabulary.values()) <= max(vocabulary.values()) < len(vocabulary):
        raise DataFileError(
            describe(
                f"Vocabulary {filename!r} has indices outside of its size",
                expected=f"0 <= index < {len(vocabulary)}",
                got=[min(vocabulary.values()), max(vocabulary.values())],
                todo="Number the words 0, 1, 2, ...",
            )
        )
    return vocabulary


class TranslationCorpusWriter:
    """Source and target text, one sentence per line, words with optional factors, to one HDF file."""

    def __init__(
        self,
        hdf_file: str | os.PathLike[str],
        source_file: str,
        target_file: str,
        source_vocabularies: Sequence[str],
        target_vocabularies: Sequence[str],
        source_factors: Sequence[str] | None,
        target_factors: Sequence[str] | None,
        number_of_lines: int,
        factor_separator: str = "|",
        compression_method: str | None = None,
        line_buffer_size: int = 100000,
        data_buffer_size: int = 5000000,
    ):
        """
        :param hdf_file: to write; an existing file is replaced
        :param source_file: text, plain or .gz
        :param target_file: text, plain or .gz
        :param source_vocabularies: pickled dicts, for the words and for each factor
        :param target_vocabularies: likewise
        :param source_factors: data keys of the factors; they become targets
        :param target_factors: likewise
        :param number_of_lines: of both files
        :param factor_separator: between word and factors
        :param compression_method: "gzip" or "lzf"
        :param line_buffer_size: number of lines converted at once
        :param data_buffer_size: chunk size of the HDF arrays in words is at most this
        :raises ConfigError: if the numbers of factors and vocabularies do not fit
        """
        self.hdf_file = os.fspath(hdf_file)
        self._files = (source_file, target_file)
        self._keys = ([_INPUT_KEY, *(source_factors or ())], [_TARGET_KEY, *(target_factors or ())])
        all_keys = [*self._keys[0], *self._keys[1]]
        if len(set(all_keys)) != len(all_keys):
            raise ConfigError(describe("Data keys must be different", expected="different factors", got=all_keys))
        self._vocabularies: dict[str, dict[str, int]] = {}
        for keys, filenames, side in zip(
            self._keys, (source_vocabularies, target_vocabularies), ("source", "target"), strict=True
        ):
            if len(keys) != len(filenames):
                raise ConfigError(
                    describe(
                        f"The number of {side} vocabularies does not fit to the factors",
                        expected=f"{len(keys)} vocabularies, for {keys}",
                        got=list(filenames),
                    )
                )
            self._vocabularies.update({key: load_vocabulary(name) for key, name in zip(keys, filenames, strict=True)})
        self.number_of_lines = number_of_lines
        if number_of_lines < 1:
            raise ConfigError(describe("number_of_lines is invalid", expected="int >= 1", got=number_of_lines))
        self.factor_separator = factor_separator
        self.compression_method = compression_method
        self.line_buffer_size = max(1, line_buffer_size)
        self.data_buffer_size = max(1, data_buffer_size)

    def create(self) -> None:
        """
        Write the file.

        :raises DatasetError: if the texts have other numbers of lines, or words with a wrong number of factors
        """
        atomic = AtomicHdfFile(self.hdf_file)
        try:
            self._write(atomic.file, check=atomic.check)
        except BaseException:
            atomic.discard()
            raise
        atomic.publish()

    def _write(self, h5_file: h5py.File, *, check: Callable[[], None]) -> None:
        arrays = self._create_arrays(h5_file)
        columns = [_INPUT_KEY, *sorted(key for key in self._vocabularies if key != _INPUT_KEY)]
        lens = np.zeros((self.number_of_lines, len(columns)), dtype=np.int32)
        num_done = 0
        for lines in self._read_blocks():
            for lines_of_side, keys, filename in zip(lines, self._keys, self._files, strict=True):
                for key, (data, data_lens) in self._convert(lines_of_side, keys, filename, num_done).items():
                    lens[num_done : num_done + len(data_lens), columns.index(key)] = data_lens
                    start = arrays[key].shape[0]
                    arrays[key].resize(start + len(data), axis=0)
                    arrays[key][start:] = data
            num_done += len(lines[0])
            check()
        h5_file.create_dataset(HDF_SEQ_LENGTHS_KEY, data=lens)
        width = len(_TAG_PREFIX) + len(str(self.number_of_lines))
        tags = h5_file.create_dataset(SEQ_TAGS_KEY, shape=(self.number_of_lines,), dtype=f"S{width}")
        for start in range(0, self.number_of_lines, _BLOCK_TAGS):
            end = min(start + _BLOCK_TAGS, self.number_of_lines)
            tags[start:end] = np.array([f"{_TAG_PREFIX}{i}".encode() for i in range(start, end)], dtype=f"S{width}")

    def _create_arrays(self, h5_file: h5py.File) -> dict[str, h5py.Dataset]:
        h5_file.attrs[HDF_INPUT_PATT_SIZE_KEY] = np.int64(len(self._vocabularies[_INPUT_KEY]))
        h5_file.attrs["numLabels"] = np.int64(len(self._vocabularies[_TARGET_KEY]))
        targets = h5_file.create_group(TARGETS_KEY)
        data, labels, size = (targets.create_group(name) for name in ("data", "labels", "size"))
        arrays = {}
        chunk = min(self.data_buffer_size, 1 << 15)
        for key, vocabulary in self._vocabularies.items():
            parent, name = (h5_file, INPUTS_KEY) if key == _INPUT_KEY else (data, key)
            arrays[key] = parent.create_dataset(
                name, shape=(0,), maxshape=(None,), dtype="int32", chunks=(chunk,), compression=self.compression_method
            )
            if key == _INPUT_KEY:
                continue
            size.attrs[key] = np.array([len(vocabulary), 1], dtype=np.int64)
            words = sorted(vocabulary, key=lambda word, ids=vocabulary: ids[word])  # type: ignore[misc]
            labels.create_dataset(key, data=encode_fixed_strings(words, extra_length=1))
        return arrays

    def _read_blocks(self) -> Iterator[tuple[list[str], list[str]]]:
        with contextlib.ExitStack() as stack:
            source, target = (stack.enter_context(open_text(filename)) for filename in self._files)
            num_done = 0
            while num_done < self.number_of_lines:
                wanted = min(self.line_buffer_size, self.number_of_lines - num_done)
                lines = _read_lines(source, wanted), _read_lines(target, wanted)
                if len(lines[0]) != len(lines[1]):
                    raise DatasetError(self._describe("Number of source and target lines differ."))
                num_done += len(lines[0])
                if len(lines[0]) < wanted:
                    raise DatasetError(
                        self._describe(
                            f"Fewer lines ({num_done}) in the corpus files than specified ({self.number_of_lines})."
                        )
                    )
                yield lines
            rest = bool(source.readline()), bool(target.readline())
            if rest[0] != rest[1]:
                raise DatasetError(self._describe("Number of source and target lines differ."))
            if any(rest):
                raise DatasetError(self._describe("More lines in the corpus files than specified."))

    def _describe(self, text: str) -> str:
        return f"{text} (source {self._files[0]!r}, target {self._files[1]!r}, number_of_lines {self.number_of_lines})"

    def _convert(
        self, lines: list[str], keys: list[str], filename: str, num_done: int
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """
        :return: key -> (word indices of all lines, lengths of the lines)
        """
        ids: dict[str, list[int]] = {key: [] for key in keys}
        lens = np.zeros(len(lines), dtype=np.int32)
        tables: list[tuple[list[int], Mapping[str, int], int, int]] = [
            # Without an entry for unknown words, they become -1, which is refused below.
            (
                ids[key],
                self._vocabularies[key],
                self._vocabularies[key].get(UNKNOWN_LABEL, -1),
                self._vocabularies[key][POSTFIX],
            )
            for key in keys
        ]
        for i, line in enumerate(lines):
            words = line.split()
            lens[i] = len(words) + 1
            if len(keys) == 1:
                columns: list[tuple[str, ...]] = [tuple(words)]
            else:
                columns = self._split_factors(words, len(keys), f"{filename}, line {num_done + i + 1}")
            for (out, vocabulary, unknown, postfix), column in zip(tables, columns, strict=True):
                out.extend([vocabulary.get(word, unknown) for word in column])
                out.append(postfix)
        for key, values in ids.items():
            if UNKNOWN_LABEL not in self._vocabularies[key] and -1 in values:
                raise DatasetError(
                    describe(
                        f"A word is not in the vocabulary of {key!r}, and that has no {UNKNOWN_LABEL!r}",
                        where=f"{filename}, lines {num_done + 1} to {num_done + len(lines)}",
                        todo=f"Add {UNKNOWN_LABEL!r} to the vocabulary",
                    )
                )
        return {key: (np.array(values, dtype=np.int32), lens) for key, values in ids.items()}

    def _split_factors(self, words: list[str], num_factors: int, where: str) -> list[tuple[str, ...]]:
        rows = [word.split(self.factor_separator) for word in words]
        for word, row in zip(words, rows, strict=True):
            if len(row) != num_factors:
                raise DatasetError(
                    describe(
                        f"Word {word!r} has the wrong number of factors",
                        where=where,
                        expected=f"{num_factors} parts, separated by {self.factor_separator!r}",
                        got=len(row),
                    )
                )
        return list(zip(*rows, strict=True)) if rows else [()] * num_factors


def _read_lines(file: TextIO, count: int) -> list[str]:
    lines = []
    for _ in range(count):
        line = file.readline()
        if not line:
            break
        lines.append(line)
    return lines
