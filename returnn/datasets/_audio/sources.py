"""
Where the sequences of an OggZipDataset are: from the options ``path`` and ``content_name`` to zip files, directories, meta texts.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from returnn.errors import DataFileError, DatasetError, DatasetOptionError, describe

__all__ = ["Source", "check_sources", "get_sources"]

_META_EXT = ".txt.gz"


@dataclasses.dataclass(frozen=True)
class Source:
    """
    One zip file, or one directory, with the text that lists its sequences.

    :param content_name: names the meta text and the folder of the audio files
    :param zip_path: None: a directory, or only a meta text
    :param directory: that has the meta text ``<content_name>.txt``, and the folder
    :param meta_path: separate meta text (.txt.gz), instead of the one in the zip file
    """

    content_name: str
    zip_path: str | None = None
    directory: str | None = None
    meta_path: str | None = None


def get_sources(
    path: object,
    *,
    content_name: object = None,
    resolve_symlink_for_name: bool = False,
    use_cache_manager: bool = False,
    where: str,
) -> tuple[list[str], list[Source]]:
    """
    :param path: one name or several: ``*.zip``, ``*.txt.gz``; or one directory D with ``D.txt`` beside it
    :param content_name: instead of the names of the files; one per path, or one for all
    :param resolve_symlink_for_name: take the names of the files behind symbolic links
    :param use_cache_manager: not possible with a directory
    :param where: dataset, for errors
    :return: the paths; the sources in order of the paths
    :raises DatasetError: for anything else
    """
    paths = _paths(path, where)
    names = _given_names(content_name, len(paths), where)
    if len(paths) == 1 and not paths[0].endswith((".zip", _META_EXT)):
        source = _directory_source(paths[0], names[0], resolve_symlink_for_name, where)
        if use_cache_manager:
            raise DatasetError(
                describe(
                    f"use_cache_manager is not possible with the directory {paths[0]!r}",
                    where=where,
                    todo="Set use_cache_manager=False, or put the directory into a zip file",
                )
            )
        return paths, [source]
    zips: list[tuple[str, str]] = []  # name, path
    metas: dict[str, str] = {}  # name -> path
    for one_path, given in zip(paths, names, strict=True):
        name, ext = _split_name(os.path.realpath(one_path) if resolve_symlink_for_name else one_path, where, one_path)
        name = given or name
        if ext == ".zip":
            zips.append((name, one_path))
        elif name in metas:
            raise DatasetError(
                describe(f"path has two meta texts for {name!r}: {metas[name]!r} and {one_path!r}", where=where)
            )
        else:
            metas[name] = one_path
    sources = [Source(name, zip_path=one_path, meta_path=metas.pop(name, None)) for name, one_path in zips]
    sources += [Source(name, meta_path=meta_path) for name, meta_path in metas.items()]
    return paths, sources


def check_sources(sources: Sequence[Source], *, where: str) -> None:
    """
    :param sources: of the dataset
    :param where: dataset
    :raises DataFileError: a file is not there
    """
    for source in sources:
        for path in (source.zip_path, source.meta_path, source.directory or None):
            if path is not None and not os.path.exists(path):
                raise DataFileError(
                    describe(f"The file {path!r} of option path does not exist", where=where, todo="Check the path")
                )


def _paths(path: object, where: str) -> list[str]:
    items = list(path) if isinstance(path, (list, tuple)) else [path]
    if not items or not all(isinstance(item, (str, os.PathLike)) for item in items):
        raise DatasetOptionError(
            describe('option "path" is invalid', where=where, expected='"NAME.zip", or a list of such names', got=path)
        )
    return [str(os.fspath(item)) for item in items]  # type: ignore[arg-type]  # checked above


def _given_names(content_name: object, num: int, where: str) -> Sequence[str | None]:
    if content_name is None or isinstance(content_name, str):
        return [content_name] * num
    if (
        not isinstance(content_name, (list, tuple))
        or len(content_name) != num
        or not all(isinstance(name, str) for name in content_name)
    ):
        raise DatasetOptionError(
            describe(
                'option "content_name" is invalid',
                where=where,
                expected=f"a name, or a list of {num} names, one per path",
                got=content_name,
            )
        )
    return content_name


def _split_name(path: str, where: str, shown_path: str) -> tuple[str, str]:
    """:return: content name; ".zip" or ".txt.gz" """
    base = os.path.basename(path)
    if base.endswith(_META_EXT):
        return base[: -len(_META_EXT)], _META_EXT
    name, ext = os.path.splitext(base)
    if ext != ".zip":
        raise DatasetError(
            describe(
                'option "path" is invalid',
                where=where,
                expected="files .zip or .txt.gz, or one directory DIR with DIR.txt beside it",
                got=shown_path,
            )
        )
    return name, ext


def _directory_source(path: str, given_name: str | None, resolve_symlink_for_name: bool, where: str) -> Source:
    path = path.rstrip("/") or path
    directory, name = os.path.split(os.path.realpath(path) if resolve_symlink_for_name else path)
    name = given_name or name
    if not os.path.isdir(path) or not os.path.exists(os.path.join(directory, name + ".txt")):
        if os.path.isdir(path):
            raise DatasetError(
                describe(f"For the directory {path!r}, the text {name + '.txt'!r} beside it is missing", where=where)
            )
        _split_name(path, where, path)  # raises
    return Source(name, directory=directory)
