"""
The files of LibriSpeech as downloaded, unpacked or as zip files: transcriptions as columns, audio one by one.

Layout (https://www.openslr.org/12): ``SUBDIR/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt`` has lines
``SPEAKER-CHAPTER-SEQ text``, beside it is ``SPEAKER-CHAPTER-SEQ.flac``. In ``SUBDIR.zip`` it is below ``LibriSpeech/``.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy

from returnn.datasets._audio.string_column import StringColumn
from returnn.datasets._audio.zip_archive import ZipArchive, ZipDirectory
from returnn.errors import DataFileError

__all__ = ["LibriSpeechFiles", "read_corpus"]

_TRANS_SUFFIX = ".trans.txt"
# Of the columns of places.
_MISSING = -1


@dataclasses.dataclass
class LibriSpeechFiles:
    """
    N sequences.

    :param path: directory of the corpus
    :param audio_suffix: ".flac" or ".flac.ogg"
    :param subdirs: names
    :param subdir_idx: int64 [N]
    :param seq_name: int64 [N, 3]: speaker, chapter, seq
    :param text: [N]
    :param num_chars: int64 [N], of the text
    :param archives: per subdir, or empty if they are unpacked
    :param places: int64 [N, 4]: offset, size, checksum and compression of the audio files in their archive
    """

    path: str
    audio_suffix: str
    subdirs: list[str]
    subdir_idx: numpy.ndarray
    seq_name: numpy.ndarray
    text: StringColumn
    num_chars: numpy.ndarray
    archives: list[ZipArchive]
    places: numpy.ndarray | None
    cached: Callable[[str], str] | None = None

    def __len__(self) -> int:
        return len(self.text)

    def take(self, idxs: numpy.ndarray) -> LibriSpeechFiles:
        """
        :param idxs: int64 [M]
        :return: only these, in this order
        """
        return dataclasses.replace(
            self,
            subdir_idx=self.subdir_idx[idxs],
            seq_name=self.seq_name[idxs],
            text=self.text.take(idxs.tolist()),
            num_chars=self.num_chars[idxs],
            places=None if self.places is None else self.places[idxs],
        )

    def audio_name(self, idx: int) -> str:
        """:return: name of the audio file, below the directory or the zip file's ``LibriSpeech``"""
        speaker, chapter, seq = self.seq_name[idx].tolist()
        subdir = self.subdirs[self.subdir_idx[idx]]
        return f"{subdir}/{speaker}/{chapter}/{speaker}-{chapter}-{seq:04}{self.audio_suffix}"

    def read_audio(self, idx: int) -> bytes:
        """
        :return: content of the audio file
        :raises DataFileError: missing or broken
        """
        name = self.audio_name(idx)
        if self.places is None:
            filename = os.path.join(self.path, name)
            try:
                with open(self.cached(filename) if self.cached else filename, "rb") as file:
                    return file.read()
            except OSError as exc:
                raise DataFileError(
                    f"Cannot read the audio file {filename!r}: {exc.strerror or exc}."
                    " Check that the corpus was unpacked completely, and the option use_ogg."
                ) from exc
        archive = self.archives[self.subdir_idx[idx]]
        offset, size, crc, method = self.places[idx].tolist()
        if offset == _MISSING:
            raise DataFileError(
                f"The zip file {archive.filename!r} has no member 'LibriSpeech/{name}'. Check the option use_ogg."
            )
        try:
            return archive.read(offset, size, crc, method)
        except ValueError as exc:
            raise DataFileError(
                f"Cannot read member 'LibriSpeech/{name}' of the zip file {archive.filename!r}: {exc}."
                " Check that the file was copied completely."
            ) from exc

    def close(self) -> None:
        """Close the zip files. They are opened again when needed."""
        for archive in self.archives:
            archive.close()


def read_corpus(
    path: str, prefix: str, *, use_zip: bool, use_ogg: bool, cached: Callable[[str], str] | None = None
) -> LibriSpeechFiles:
    """
    :param path: directory of the corpus
    :param prefix: of the names of sub directories or zip files
    :param use_zip: read zip files
    :param use_ogg: audio files end with ``.flac.ogg``
    :param cached: gives the name of a local copy of a zip or audio file
    :return: sorted by sub directory, speaker, chapter, and number
    :raises DataFileError: nothing found, or broken
    """
    suffix = ".flac" + (".ogg" if use_ogg else "")
    pattern = os.path.join(glob.escape(path), glob.escape(prefix) + "*") + (".zip" if use_zip else "")
    found = sorted(name for name in glob.glob(pattern) if use_zip or os.path.isdir(name))
    subdirs = [os.path.basename(name).removesuffix(".zip" if use_zip else "") for name in found]
    archives = [ZipArchive(cached(name) if cached else name) for name in found] if use_zip else []
    names: list[numpy.ndarray] = []
    texts: list[bytes] = []
    num_chars: list[int] = []
    places: list[numpy.ndarray] = []
    subdir_lens: list[int] = []
    for i, subdir in enumerate(subdirs):
        directory = archives[i].read_directory() if archives else None
        files = _iter_files(found[i]) if directory is None else _iter_members(archives[i], directory, subdir)
        seq_names: list[tuple[int, int, int]] = []
        for filename, content in files:
            for seq_name, text in _iter_lines(content, filename):
                seq_names.append(seq_name)
                texts.append(text.encode("utf8"))
                num_chars.append(len(text))
        names.append(numpy.array(seq_names, dtype=numpy.int64).reshape(-1, 3))
        subdir_lens.append(len(seq_names))
        if directory is not None:
            members = (f"LibriSpeech/{subdir}/{a}/{b}/{a}-{b}-{c:04}{suffix}" for a, b, c in seq_names)
            places.append(_places(directory, members, len(seq_names)))
        if archives:
            archives[i].close()
    if not texts:
        raise DataFileError(f"no transcription below {path!r} for prefix {prefix!r}.")
    corpus = LibriSpeechFiles(
        path=path,
        audio_suffix=suffix,
        subdirs=subdirs,
        subdir_idx=numpy.repeat(numpy.arange(len(subdirs)), subdir_lens),
        seq_name=numpy.concatenate(names),
        text=StringColumn.from_bytes(texts),
        num_chars=numpy.array(num_chars, dtype=numpy.int64),
        archives=archives,
        places=numpy.concatenate(places) if places else None,
        cached=cached,
    )
    # Subdirs are sorted already.
    order = numpy.lexsort((*corpus.seq_name.T[::-1], corpus.subdir_idx))
    return corpus.take(order)


def _iter_files(folder: str) -> Iterator[tuple[str, bytes]]:
    """:return: name and content of the transcription files"""
    for filename in sorted(glob.glob(os.path.join(glob.escape(folder), "*", "*", f"*{_TRANS_SUFFIX}"))):
        with open(filename, "rb") as file:
            yield filename, file.read()


def _iter_members(archive: ZipArchive, directory: ZipDirectory, subdir: str) -> Iterator[tuple[str, bytes]]:
    """:return: name and content of the transcription files"""
    start, end = f"LibriSpeech/{subdir}/".encode(), _TRANS_SUFFIX.encode()
    for name in directory.index:
        if name.startswith(start) and name.endswith(end):
            yield f"{archive.filename}/{name.decode()}", archive.read_member(directory, name.decode())


def _iter_lines(content: bytes, filename: str) -> Iterator[tuple[tuple[int, int, int], str]]:
    """:return: (speaker, chapter, seq), text"""
    try:
        lines = content.decode("utf8").splitlines()
    except UnicodeDecodeError as exc:
        raise DataFileError(f"{filename!r} is not UTF-8: {exc}.") from exc
    for lineno, line in enumerate(lines, 1):
        seq_name, _, text = line.partition(" ")
        try:
            speaker, chapter, seq = map(int, seq_name.split("-"))
        except ValueError as exc:
            raise DataFileError(
                f"{filename!r}, line {lineno}: expected 'SPEAKER-CHAPTER-SEQ text', got {line!r}."
            ) from exc
        yield (speaker, chapter, seq), text


def _places(directory: ZipDirectory, members: Iterable[str], num: int) -> numpy.ndarray:
    """:return: see :class:`LibriSpeechFiles`"""
    idxs = numpy.fromiter((directory.index.get(name.encode(), _MISSING) for name in members), numpy.int64, num)
    columns: Sequence[numpy.ndarray] = (directory.offset, directory.size, directory.crc, directory.method)
    result = numpy.stack([numpy.asarray(column)[idxs].astype(numpy.int64) for column in columns], axis=1)
    result[idxs == _MISSING] = _MISSING
    return result
