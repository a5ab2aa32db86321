"""The sequences of an OggZipDataset as columns, loaded from their meta texts; and the bytes of their audio files."""

from __future__ import annotations

import dataclasses
import gzip
import os
import zlib
from collections.abc import Callable, Sequence

import numpy

from returnn.datasets._audio.meta_text import MetaColumns, parse_meta_text
from returnn.datasets._audio.sources import Source
from returnn.datasets._audio.string_column import StringColumn
from returnn.datasets._audio.zip_archive import ZipArchive, ZipDirectory
from returnn.datasets._hdf.tag_table import TagTable
from returnn.errors import DataFileError, MissingPartError, describe
from returnn.util.bounded_read import read_all

__all__ = ["OggZipCorpus", "load_corpus"]

#: Of a member that the zip file does not have.
_NO_MEMBER = -1
_MAX_SOURCES = 1 << 16
# Length of a sequence without end, in the order. Far from overflow when many are summed up.
_MAX_LEN = 1 << 40


@dataclasses.dataclass(frozen=True)
class _Container:
    """
    What the audio files are in.

    :param archive: zip file; None: a directory
    :param prefix: of the names of the files; with the directory, if it is one
    """

    archive: ZipArchive | None
    prefix: str

    def describe(self) -> str:
        return f"zip file {self.archive.filename!r}" if self.archive else f"directory {self.prefix!r}"


@dataclasses.dataclass
class _AudioColumns:
    """
    Where the audio files are; N sequences.

    :param source: uint16 [N], index of the container
    :param offset: int64 [N], in the zip file; _NO_MEMBER: not there
    :param size: int64 [N], bytes in the zip file
    :param crc: uint32 [N]
    :param method: uint8 [N], see ZipDirectory
    :param file: names; None where all are in zip files: they stand there once more
    """

    source: numpy.ndarray
    offset: numpy.ndarray
    size: numpy.ndarray
    crc: numpy.ndarray
    method: numpy.ndarray
    file: StringColumn | None

    def take(self, idxs: numpy.ndarray) -> _AudioColumns:
        """:return: of some sequences"""
        return _AudioColumns(
            self.source[idxs],
            self.offset[idxs],
            self.size[idxs],
            self.crc[idxs],
            self.method[idxs],
            None if self.file is None else self.file.take(idxs.tolist()),
        )

    @property
    def nbytes(self) -> int:
        arrays = (self.source, self.offset, self.size, self.crc, self.method)
        return sum(a.nbytes for a in arrays) + (self.file.nbytes if self.file else 0)


class OggZipCorpus:
    """N sequences: tags, texts, durations, audio files."""

    def __init__(
        self,
        text: StringColumn,
        tag: StringColumn,
        duration: numpy.ndarray,
        containers: Sequence[_Container],
        audio: _AudioColumns | None,
    ) -> None:
        """
        :param text: transcriptions
        :param tag: of the sequences
        :param duration: float64 [N], seconds
        :param containers: zip files and directories
        :param audio: None: the audio is not wanted
        """
        self.text = text
        self._tag = tag
        self.tags = TagTable(tag.buf, tag.offsets)  # the same memory
        self.duration = duration
        self._containers = containers
        self._audio = audio

    def __len__(self) -> int:
        return len(self.duration)

    @property
    def nbytes(self) -> int:
        """:return: memory, without the index for lookups by tag"""
        return self.text.nbytes + self._tag.nbytes + self.duration.nbytes + (self._audio.nbytes if self._audio else 0)

    def take(self, idxs: numpy.ndarray) -> OggZipCorpus:
        """
        :param idxs: int64 [M]
        :return: corpus of these sequences
        """
        return OggZipCorpus(
            self.text.take(idxs.tolist()),
            self._tag.take(idxs.tolist()),
            self.duration[idxs],
            self._containers,
            None if self._audio is None else self._audio.take(idxs),
        )

    def seq_lens(self) -> numpy.ndarray:
        """:return: int64 [N], hundredths of a second, cut. Unknown: 0"""
        return self.lens_of_durations(self.duration)

    @staticmethod
    def lens_of_durations(durations: numpy.ndarray) -> numpy.ndarray:
        """
        :param durations: float64 [M], seconds
        :return: int64 [M], hundredths of a second, cut. Unknown: 0
        """
        hundredths = numpy.nan_to_num(durations * 100, nan=0.0, posinf=_MAX_LEN, neginf=-_MAX_LEN)
        lens: numpy.ndarray = numpy.clip(hundredths, -_MAX_LEN, _MAX_LEN).astype(numpy.int64)
        return lens

    def read_audio(self, idx: int) -> bytes:
        """
        :param idx: corpus index
        :return: content of the audio file
        :raises MissingPartError: no such file
        :raises DataFileError: broken
        """
        assert self._audio is not None
        audio = self._audio
        container = self._containers[audio.source[idx]]
        if container.archive is None:
            return self._read_file(idx, container)
        offset = int(audio.offset[idx])
        if offset == _NO_MEMBER:
            raise self._missing(idx)
        try:
            return container.archive.read(
                offset,
                int(audio.size[idx]),
                int(audio.crc[idx]),
                int(audio.method[idx]),
                name_size=len(container.prefix) + 64,
            )
        except ValueError as exc:
            raise DataFileError(
                describe(
                    f"Cannot read {self.describe_audio(idx)}: {exc}",
                    todo="Check that the file was written or copied completely",
                )
            ) from exc

    def _read_file(self, idx: int, container: _Container) -> bytes:
        assert self._audio is not None and self._audio.file is not None
        if not self._audio.file.get_bytes(idx):
            raise self._missing(idx)
        filename = container.prefix + self._audio.file[idx]
        try:
            with open(filename, "rb") as file:
                return file.read()
        except OSError as exc:
            raise MissingPartError(
                f"Cannot read the audio file {filename!r} of sequence {self.tags[idx]!r}: {exc.strerror or exc}."
            ) from exc

    def _missing(self, idx: int) -> MissingPartError:
        assert self._audio is not None and self._audio.file is not None
        container = self._containers[self._audio.source[idx]]
        name = self._audio.file[idx]
        if not name:
            return MissingPartError(
                f"Sequence {self.tags[idx]!r} (corpus index {idx}) has no 'file' in the meta text of {container.describe()}."
            )
        return MissingPartError(
            f"The {container.describe()} has no member {container.prefix + name!r}, the audio of sequence {self.tags[idx]!r}."
            " See also the option zip_audio_files_have_name_as_prefix."
        )

    def describe_audio(self, idx: int) -> str:
        """:return: file, member and tag, for messages"""
        assert self._audio is not None
        container = self._containers[self._audio.source[idx]]
        file = self._audio.file[idx] if self._audio.file is not None else ""
        if file or container.archive is None:
            name = container.prefix + file
        else:
            name = container.archive.read_directory().name_at(int(self._audio.offset[idx]))
        what = f"member {name!r} of the {container.describe()}" if container.archive else f"the file {name!r}"
        return f"{what}, the audio of sequence {self.tags[idx]!r}"

    def close(self) -> None:
        """Close all files. They are opened again when needed."""
        for container in self._containers:
            if container.archive is not None:
                container.archive.close()


def load_corpus(
    sources: Sequence[Source],
    *,
    with_audio: bool,
    name_is_prefix: bool,
    cached: Callable[[str], str] | None,
) -> OggZipCorpus:
    """
    :param sources: where
    :param with_audio: else the audio files are not looked for
    :param name_is_prefix: the names of the audio files are below the content name
    :param cached: gives the name of a local copy
    :return: sequences of all sources, in order
    :raises DataFileError: a file is missing or broken, or no audio file at all is where it should be
    """
    if len(sources) > _MAX_SOURCES:
        raise DataFileError(f"{len(sources)} files are too many for one dataset, at most {_MAX_SOURCES} are possible.")
    metas: list[MetaColumns] = []
    containers: list[_Container] = []
    audios: list[_AudioColumns] = []
    for i, source in enumerate(sources):
        meta, container, directory = _load_source(source, with_audio, name_is_prefix, cached)
        if with_audio:
            if container is None:
                raise DataFileError(
                    f"The audio for the meta text {source.meta_path!r} is missing: "
                    f"give {source.content_name + '.zip'!r} too in the option path."
                )
            containers.append(container)
            audios.append(_locate_audio(meta.file, i, container, directory))
        metas.append(dataclasses.replace(meta, file=StringColumn.from_bytes([])))
    return OggZipCorpus(
        StringColumn.concat([meta.text for meta in metas]),
        StringColumn.concat([meta.tag for meta in metas]),
        numpy.concatenate([meta.duration for meta in metas]),
        containers,
        _concat(audios) if with_audio else None,
    )


def _load_source(
    source: Source, with_audio: bool, name_is_prefix: bool, cached: Callable[[str], str] | None
) -> tuple[MetaColumns, _Container | None, ZipDirectory | None]:
    prefix = source.content_name + "/" if name_is_prefix else ""
    if source.directory is not None:
        filename = os.path.join(source.directory, source.content_name + ".txt")
        meta = parse_meta_text(_read_file(filename), where=repr(filename), need_file=with_audio)
        return meta, _Container(None, os.path.join(source.directory, prefix)), None
    meta_path = cached(source.meta_path) if cached and source.meta_path else source.meta_path
    data = _read_file(meta_path, unzip=True) if meta_path else None
    where = repr(meta_path)
    container = directory = None
    if source.zip_path is not None and (with_audio or data is None):
        archive = ZipArchive(cached(source.zip_path) if cached else source.zip_path)
        directory = archive.read_directory(texts_only=not with_audio)
        if data is None:
            member = _meta_member(directory, source.content_name, archive.filename)
            # As in the file name, so in the names of the files.
            if name_is_prefix:
                prefix = member[: -len(".txt")] + "/"
            data = archive.read_member(directory, member)
            where = f"{member!r} in {archive.filename!r}"
        container = _Container(archive, prefix)
        archive.close()
    assert data is not None
    return parse_meta_text(data, where=where, need_file=with_audio), container, directory


def _meta_member(directory: ZipDirectory, content_name: str, filename: str) -> str:
    """
    :return: ``<content_name>.txt``; if there is none, the only text at top level: the file was renamed
    """
    name = content_name + ".txt"
    if name.encode("utf8") in directory.index:
        return name
    texts = [key.decode("utf8", "replace") for key in directory.index if key.endswith(b".txt") and b"/" not in key]
    if len(texts) == 1:
        return texts[0]
    raise MissingPartError(
        f"There is no item named {name!r} in the archive {filename!r}, the meta text. "
        f"It has {len(directory.index)} members, texts at top level: {sorted(texts)[:5]}. "
        "If the file was renamed, give the old name without .zip as option content_name."
    )


def _read_file(filename: str, *, unzip: bool = False) -> bytes:
    try:
        if unzip:
            with gzip.open(filename, "rb") as zipped:
                return read_all(zipped, packed_bytes=os.path.getsize(filename), filename=filename)
        with open(filename, "rb") as file:
            return file.read()
    except DataFileError:
        raise
    except (OSError, EOFError, zlib.error) as exc:
        raise DataFileError(f"Cannot read the meta text {filename!r}: {exc}.") from exc


def _locate_audio(
    files: StringColumn, source: int, container: _Container, directory: ZipDirectory | None
) -> _AudioColumns:
    """
    :param files: names
    :param source: index of the container
    :param container: of the files
    :param directory: of the zip file; None: a directory
    """
    num = len(files)
    sources = numpy.full(num, source, dtype=numpy.uint16)
    if directory is None:
        zeros = numpy.zeros(num, dtype=numpy.int64)
        return _AudioColumns(sources, zeros, zeros, zeros.astype(numpy.uint32), zeros.astype(numpy.uint8), files)
    prefix = container.prefix.encode("utf8")
    get = directory.index.get
    buf, bounds = files.buf, files.offsets.tolist()
    members = numpy.fromiter(
        (get(prefix + buf[start:end], -1) for start, end in zip(bounds[:-1], bounds[1:], strict=True)),
        dtype=numpy.int64,
        count=num,
    )
    found = members >= 0
    if not found.any():
        first = next((files[i] for i in range(num) if files.get_bytes(i)), "")
        members_shown = [key.decode("utf8", "replace") for key in list(directory.index)[:5]]
        raise MissingPartError(
            f"The {container.describe()} has none of the {num} audio files of its meta text, first: "
            f"{container.prefix + first!r}. Its first members are {members_shown}. "
            "See the options zip_audio_files_have_name_as_prefix and content_name; for a zip without audio set audio=None."
        )
    offset = directory.offset[members]
    offset[~found] = _NO_MEMBER
    return _AudioColumns(
        sources,
        offset,
        directory.size[members],
        directory.crc[members],
        directory.method[members],
        None if found.all() else files,
    )


def _concat(parts: Sequence[_AudioColumns]) -> _AudioColumns:
    if len(parts) == 1:
        return parts[0]
    cat = numpy.concatenate
    file = None
    if any(part.file is not None for part in parts):
        file = StringColumn.concat([part.file or _no_names(len(part.offset)) for part in parts])
    return _AudioColumns(
        cat([part.source for part in parts]),
        cat([part.offset for part in parts]),
        cat([part.size for part in parts]),
        cat([part.crc for part in parts]),
        cat([part.method for part in parts]),
        file,
    )


def _no_names(num: int) -> StringColumn:
    return StringColumn(b"", numpy.zeros(num + 1, dtype=numpy.int64))
