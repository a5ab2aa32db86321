"""From a Bliss corpus to a zip file for OggZipDataset: what ``tools/bliss-to-ogg-zip.py`` does."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal

from returnn.datasets._audio.segment_audio import AudioFile, SegmentAudio
from returnn.datasets.seq_lists import load_seq_list_file
from returnn.datasets.util.bliss import BlissSegment, iter_segments
from returnn.errors import DataFileError, DatasetError
from returnn.util.fs import atomic_write
from returnn.util.time_format import hms

__all__ = ["BlissToZip", "RecordingNames", "meta_line"]

_MAX_SHOWN = 5
# The real audio may differ from the times in the corpus by that much, before we say it.
_DURATION_TOLERANCE_SECS = 0.1


class RecordingNames:
    """Short names of recordings: without the directory and the ending which all have."""

    def __init__(self, filenames: Sequence[str]) -> None:
        """
        :param filenames: of all recordings, nonempty, distinct
        """
        prefix = os.path.commonprefix(list(filenames))
        self.prefix = prefix[: prefix.rfind("/") + 1]
        # A single recording has everything in common with itself, also its directory.
        names = [name[len(self.prefix) :] if len(filenames) == 1 else name for name in filenames]
        postfix = os.path.commonprefix([name[::-1] for name in names])[::-1]
        self.postfix = postfix[postfix.index(".") :] if "." in postfix else ""
        if any(len(name) <= len(self.prefix) + len(self.postfix) for name in filenames):
            self.postfix = ""

    def short(self, filename: str) -> str:
        """:return: what is between"""
        return filename[len(self.prefix) : len(filename) - len(self.postfix)]


@dataclasses.dataclass
class _Totals:
    num_seqs: int = 0
    num_chars: int = 0
    secs: Decimal = Decimal(0)
    num_wrong_durations: int = 0
    num_unknown_durations: int = 0


def meta_line(segment: BlissSegment, file: str, duration: str) -> str:
    """
    :param segment: of the corpus
    :param file: name of the audio file
    :param duration: in seconds, literal of a float
    :return: one entry of the meta text, a line
    """
    return (
        f"{{'text': {segment.orth!r}, 'speaker_name': {segment.speaker_name!r}, 'file': {file!r}, "
        f"'seq_name': {segment.name!r}, 'duration': {duration}}},\n"
    )


def duration_literal(duration: Decimal) -> str:
    """:return: literal of a float, with the decimals as given"""
    if not duration.is_finite():
        return "1e999"  # the only literal for infinity
    text = f"{duration:f}"
    return text if "." in text else text + ".0"


class BlissToZip:
    """Converts one corpus. Nothing is there until all is done."""

    def __init__(
        self,
        corpus: str,
        output: str,
        audio: SegmentAudio,
        *,
        subset_segment_file: str | None = None,
        overwrite: bool = False,
        recordings_must_exist: bool = True,
        cleanup: bool = True,
        num_jobs: int = 1,
    ) -> None:
        """
        :param corpus: Bliss XML, or .gz
        :param output: NAME.zip, not there yet. "": nothing is written or converted
        :param audio: how to get the audio of a segment
        :param subset_segment_file: one full segment name per line: only these
        :param overwrite: replace an existing output
        :param recordings_must_exist: check that at the start
        :param cleanup: False: keep the temporary directory, with all files
        :param num_jobs: segments that are converted at the same time
        :raises DatasetError: for an invalid value
        """
        self._corpus = corpus
        self._output = output
        self._audio = audio
        self._cleanup = cleanup
        self._num_jobs = num_jobs
        self._recordings_must_exist = recordings_must_exist
        self._subset: set[str] | None = None
        if output:
            _check_output(output, overwrite)
        if subset_segment_file is not None:
            self._subset = {name for name in load_seq_list_file(subset_segment_file) if name.strip()}
            if not self._subset:
                raise DatasetError(
                    f"--subset_segment_file {subset_segment_file!r} is empty. Give one segment per line."
                )
        self._name = os.path.splitext(os.path.basename(output))[0] or "dry-run"
        self._totals = _Totals()

    def run(self) -> None:
        """
        Convert all, with log lines on stdout.

        :raises DatasetError: mistakes in the corpus
        :raises DataFileError: files that are missing or broken
        """
        names = self._collect()
        print("Dataset name:", self._name)
        if not self._output:
            for segment, file in self._segments_with_files(names):
                print(f"dry run ({os.path.basename(segment.audio or '')} -> {file})")
                self._add_to_totals(segment, segment.end - segment.start)
            self._print_totals()
            print("Finished.")
            return
        try:
            with (
                self._temp_dir() as temp_dir,
                atomic_write(self._output, "wb") as zip_file,
                zipfile.ZipFile(zip_file, "w") as archive,
            ):
                self._fill(archive, names, temp_dir)
        except OSError as exc:
            if isinstance(exc, (DatasetError, BrokenPipeError)):
                raise
            raise DataFileError(f"Cannot make {self._output!r}: {exc}. Check the permissions and the space.") from exc
        print("Finished.")

    @contextlib.contextmanager
    def _temp_dir(self) -> Iterator[str]:
        """:return: directory for converted files"""
        temp_dir = tempfile.mkdtemp(prefix=f"bliss-to-ogg-zip-{self._name}-")
        try:
            print("Temp dir for data:", temp_dir)
            yield temp_dir
        finally:
            if self._cleanup:
                shutil.rmtree(temp_dir, ignore_errors=True)
                print("Cleaning up...")  # last, since nobody may read it any more

    def _segments(self) -> Iterator[BlissSegment]:
        for segment in iter_segments(self._corpus):
            if self._subset is None or segment.name in self._subset:
                yield segment

    def _collect(self) -> RecordingNames:
        """First pass: check the corpus."""
        recordings: dict[str, None] = {}
        seen: set[str] = set()
        num_duplicates = 0
        num_seqs = 0
        for segment in self._segments():
            num_seqs += 1
            if not segment.audio:
                raise DatasetError(
                    f"{self._corpus!r}: the recording {segment.recording_name!r} has no attribute audio."
                )
            if not segment.start < segment.end or segment.start < 0:
                raise DatasetError(
                    f"{self._corpus!r}: segment {segment.name!r}: expected 0 <= start < end, "
                    f"got start {segment.start_text}, end {segment.end_text}."
                )
            if segment.audio not in recordings and self._recordings_must_exist and not os.path.exists(segment.audio):
                raise DataFileError(
                    f"{self._corpus!r}: the audio file {segment.audio!r} of recording {segment.recording_name!r} does not "
                    f"exist (working directory: {os.getcwd()!r})."
                )
            recordings[segment.audio] = None
            num_duplicates += segment.name in seen
            seen.add(segment.name)
        if self._subset is not None:
            missing = sorted(self._subset - seen)
            if missing:
                raise DatasetError(
                    f"{len(missing)} of {len(self._subset)} segments in --subset_segment_file are not in {self._corpus!r}, "
                    f"e.g. {missing[:_MAX_SHOWN]}."
                )
        if not recordings:
            raise DatasetError(f"The corpus {self._corpus!r} has no segments.")
        if num_duplicates:
            print(f"Warning: {num_duplicates} segments have the same name as an earlier one.")
        names = RecordingNames(list(recordings))
        print("Num seqs:", num_seqs)
        print("Num recordings:", len(recordings))
        print("Recordings common dir prefix:", names.prefix)
        print("Recordings common postfix:", names.postfix)
        return names

    def _segments_with_files(self, names: RecordingNames) -> Iterator[tuple[BlissSegment, str]]:
        """:return: segments, and names of their audio files below the content name"""
        for segment in self._segments():
            assert segment.audio is not None
            yield segment, f"{names.short(segment.audio)}/{segment.start_text}_{segment.end_text}.ogg"

    def _fill(self, archive: zipfile.ZipFile, names: RecordingNames, temp_dir: str) -> None:
        lines = ["[\n"]
        files = _ZipFiles(archive, self._name)
        with contextlib.closing(self._converted(names, temp_dir, files)) as converted:
            for segment, file, result in converted:
                duration = self._duration(segment, result)
                lines.append(meta_line(segment, file, duration_literal(duration)))
                self._add_to_totals(segment, duration)
        lines.append("]\n")
        self._print_totals()
        text = "".join(lines)
        if not self._cleanup:
            with open(os.path.join(temp_dir, self._name + ".txt"), "w", encoding="utf8") as file_:
                file_.write(text)
        print("Dataset zip filename:", self._output)
        print("Zipping...")
        files.add_text(text)
        files.sort()
        for name in archive.namelist():
            print(f" Adding: {name}")

    def _converted(
        self, names: RecordingNames, temp_dir: str, files: _ZipFiles
    ) -> Generator[tuple[BlissSegment, str, AudioFile], None, None]:
        """
        Second pass: some segments at a time, in the order of the corpus.

        :param names: of recordings
        :param temp_dir: for converted files
        :param files: they are put there
        """
        # The same part of a recording can be in several segments.
        secs_by_file: dict[str, float | None] = {}
        waiting: collections.deque[tuple[BlissSegment, str, Future[AudioFile] | None]] = collections.deque()
        executor = ThreadPoolExecutor(self._num_jobs)
        segments = self._segments_with_files(names)
        try:
            while True:
                while len(waiting) < 2 * self._num_jobs and (item := next(segments, None)) is not None:
                    segment, file = item
                    if file in secs_by_file:
                        waiting.append((segment, file, None))
                        continue
                    secs_by_file[file] = None
                    dest = os.path.join(temp_dir, self._name, file)
                    os.makedirs(os.path.dirname(dest), exist_ok=True)
                    waiting.append((segment, file, executor.submit(self._audio.make, segment, dest, file)))
                if not waiting:
                    return
                segment, file, future = waiting.popleft()
                if future is None:
                    yield segment, file, AudioFile(None, secs_by_file[file], "")
                    continue
                result = future.result()
                print(result.log, flush=True)
                secs_by_file[file] = result.secs
                files.add_audio(file, result.filename)
                if self._cleanup and result.filename is not None and result.filename.startswith(temp_dir):
                    os.unlink(result.filename)
                yield segment, file, result
        finally:
            self._audio.stop()
            executor.shutdown(wait=True, cancel_futures=True)

    def _duration(self, segment: BlissSegment, result: AudioFile) -> Decimal:
        """:return: as in the corpus; of the audio if the corpus does not say it"""
        if not segment.end.is_finite():
            if result.secs is not None:
                return Decimal(repr(round(result.secs, 6)))
            self._totals.num_unknown_durations += 1
            return Decimal("Infinity")
        duration = segment.end - segment.start
        if result.filename is not None and result.secs is not None:
            difference = abs(result.secs - float(duration))
            if difference > _DURATION_TOLERANCE_SECS:
                self._totals.num_wrong_durations += 1
                if self._totals.num_wrong_durations <= _MAX_SHOWN:
                    print(
                        f"Warning: segment {segment.name!r} should have {duration} seconds, "
                        f"but its audio has {result.secs:.3f} seconds."
                    )
        return duration

    def _add_to_totals(self, segment: BlissSegment, duration: Decimal) -> None:
        self._totals.num_seqs += 1
        self._totals.num_chars += len(segment.orth)
        self._totals.secs += duration

    def _print_totals(self) -> None:
        totals = self._totals
        if totals.num_wrong_durations:
            print(f"Warning: {totals.num_wrong_durations} segments have other durations than the corpus says.")
        if totals.num_unknown_durations:
            print(
                f"Warning: the durations of {totals.num_unknown_durations} segments are not known, written as infinite. "
                "Add the end times to the corpus, or install the Python package soundfile."
            )
        shown = hms(float(totals.secs)) if math.isfinite(totals.secs) else "infinite"
        print(f"Total duration: {totals.secs} secs ({shown})")
        print("Total num chars:", totals.num_chars)


class _ZipFiles:
    """The members of the zip file, with their directories."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        """
        :param archive: to write
        :param name: content name
        """
        self._archive = archive
        self._name = name
        self._dirs: set[str] = set()
        self._add_dir(name)

    def _add_dir(self, name: str) -> None:
        """:param name: without "/" at the end. Its parents are added too"""
        if not name or name in self._dirs:
            return
        self._add_dir(os.path.dirname(name))
        self._dirs.add(name)
        info = zipfile.ZipInfo(name + "/", date_time=_DATE)
        info.external_attr = (0o40755 << 16) | 0x10
        self._archive.writestr(info, b"")

    def add_audio(self, file: str, filename: str | None) -> None:
        """
        :param file: name below the content name
        :param filename: content; None: only the directory
        """
        member = f"{self._name}/{file}"
        self._add_dir(os.path.dirname(member))
        if filename is not None:
            info = _file_info(member)
            info.file_size = os.path.getsize(filename)
            with open(filename, "rb") as src, self._archive.open(info, "w") as dest:
                shutil.copyfileobj(src, dest, 1 << 20)

    def add_text(self, text: str) -> None:
        """:param text: meta text"""
        self._archive.writestr(_file_info(self._name + ".txt"), text.encode("utf8"), zipfile.ZIP_DEFLATED)

    def sort(self) -> None:
        """Order of the directory of the zip file: as from a walk through the folders, sorted in each."""

        def key(info: zipfile.ZipInfo) -> tuple[list[str], str]:
            *parents, name = info.filename.rstrip("/").split("/")
            return parents, name

        self._archive.filelist.sort(key=key)


# Of all members, so that the same input gives the same file.
_DATE = (2020, 1, 1, 0, 0, 0)


def _file_info(name: str) -> zipfile.ZipInfo:
    """Not compressed: audio files are already."""
    info = zipfile.ZipInfo(name, date_time=_DATE)
    info.external_attr = 0o100644 << 16
    return info


def _check_output(output: str, overwrite: bool) -> None:
    if not output.endswith(".zip"):
        raise DatasetError(f"--output must end in .zip, got {output!r}. Write e.g. --output {output}.zip.")
    folder = os.path.dirname(output) or "."
    if not os.path.isdir(folder):
        raise DataFileError(f"--output {output!r}: the directory {folder!r} does not exist. Create it first.")
    if os.path.isdir(output):
        raise DataFileError(f"--output {output!r} is a directory. Give the name of a file.")
    if os.path.lexists(output) and not overwrite:
        raise DataFileError(f"--output {output!r} exists already. Remove it, or use --overwrite.")
