"""How ``tools/bliss-to-ogg-zip.py`` gets the audio file of one segment: by ffmpeg, as a copy, or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Sequence
from decimal import Decimal

from returnn.datasets.util.bliss import BlissSegment
from returnn.errors import DataFileError, DatasetError, MissingDependencyError
from returnn.util.optional_import import optional_import

__all__ = ["AudioFile", "CopyAudio", "FfmpegAudio", "NoAudio", "SegmentAudio", "audio_file_secs"]

# A copied recording may be that much longer than its only segment.
_COPY_TOLERANCE_SECS = 1.0
_MAX_ERROR_CHARS = 1000


@dataclasses.dataclass(frozen=True)
class AudioFile:
    """
    Result for one segment.

    :param filename: to put into the zip file; None: nothing
    :param secs: real duration; None: not known
    :param log: line for the user
    """

    filename: str | None
    secs: float | None
    log: str


class SegmentAudio:
    """Base. Used by several threads at once."""

    def make(self, segment: BlissSegment, dest: str, shown_dest: str) -> AudioFile:
        """
        :param segment: with a recording
        :param dest: file to write, if one is written
        :param shown_dest: its name in the zip file
        :raises DatasetError: the segment is not possible with these options, or its audio is broken
        """
        raise NotImplementedError

    def stop(self) -> None:
        """End what runs in other threads."""


class NoAudio(SegmentAudio):
    """Option --no_ogg."""

    def make(self, segment: BlissSegment, dest: str, shown_dest: str) -> AudioFile:
        """See :func:`SegmentAudio.make`. The recording need not exist, unless the duration is not in the corpus."""
        assert segment.audio is not None
        secs = None
        if not segment.end.is_finite() and os.path.exists(segment.audio):
            total = audio_file_secs(segment.audio)
            secs = None if total is None else total - float(segment.start)
        return AudioFile(None, secs, f"no Ogg ({os.path.basename(segment.audio)} -> {shown_dest})")


class CopyAudio(SegmentAudio):
    """Option --no_conversion: the whole recording."""

    def make(self, segment: BlissSegment, dest: str, shown_dest: str) -> AudioFile:
        """See :func:`SegmentAudio.make`."""
        assert segment.audio is not None
        what = f"segment {segment.name!r} of recording {segment.audio!r}"
        if not segment.audio.endswith(".ogg"):
            raise DatasetError(f"--no_conversion is only possible with .ogg files, got {what}. Remove --no_conversion.")
        if segment.start != 0:
            raise DatasetError(
                f"--no_conversion copies whole recordings, but {what} starts at {segment.start_text} seconds. "
                "Remove --no_conversion."
            )
        secs = audio_file_secs(segment.audio)
        if secs is not None and segment.end.is_finite() and secs > float(segment.end) + _COPY_TOLERANCE_SECS:
            raise DatasetError(
                f"--no_conversion copies whole recordings, but {what} ends at {segment.end_text} of {secs:.3f} seconds. "
                "Remove --no_conversion."
            )
        return AudioFile(
            segment.audio, secs, f"skip ffmpeg, copy instead ({os.path.basename(segment.audio)} -> {shown_dest})"
        )


class FfmpegAudio(SegmentAudio):
    """The segment, cut and converted to Ogg Vorbis by ffmpeg."""

    def __init__(
        self,
        *,
        acodec: str | None = None,
        number_of_channels: int = 0,
        resample: int = 0,
        loglevel: str = "info",
    ) -> None:
        """
        :param acodec: of the recordings, if ffmpeg does not find out
        :param number_of_channels: of the result; 0: as the recording
        :param resample: sample rate of the result in Hz; 0: as the recording
        :param loglevel: of ffmpeg
        :raises MissingDependencyError: no ffmpeg
        """
        if shutil.which("ffmpeg") is None:
            raise MissingDependencyError(
                "The program ffmpeg is not installed, but needed by bliss-to-ogg-zip to convert audio. Install it with: "
                "apt install ffmpeg (or conda install -c conda-forge ffmpeg), or use --no_conversion or --no_ogg."
            )
        self._before_input = ["-acodec", acodec] if acodec else []
        self._after_input = ["-ac", str(number_of_channels)] if number_of_channels > 0 else []
        self._after_input += ["-ar", str(resample)] if resample > 0 else []
        self._loglevel = loglevel
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def command(self, segment: BlissSegment, dest: str) -> list[str]:
        """:return: the ffmpeg command line"""
        assert segment.audio is not None
        args = ["ffmpeg", *self._before_input, "-i", segment.audio, *self._after_input]
        if segment.start:
            args += ["-ss", segment.start_text]
        if segment.end.is_finite():
            args += ["-t", f"{segment.end - segment.start:f}"]
        return [*args, dest, "-loglevel", self._loglevel]

    def make(self, segment: BlissSegment, dest: str, shown_dest: str) -> AudioFile:
        """See :func:`SegmentAudio.make`."""
        args = self.command(segment, dest)
        shown = "$ " + shlex.join(args)
        code, output = self._run(args)
        problem = f"exit code {code}"
        if code == 0 and not (os.path.exists(dest) and os.path.getsize(dest)):
            code, problem = 1, "no output"
        secs = audio_file_secs(dest) if code == 0 else None
        if secs == 0:
            code, problem = 1, "no audio in that part of the recording"
        if code:
            if self._stopped:
                raise DataFileError(f"ffmpeg for segment {segment.name!r} was stopped.")
            raise DataFileError(
                f"ffmpeg failed ({problem}) for segment {segment.name!r} of recording {segment.audio!r}: "
                f"{shlex.join(args)}: {output.strip()[-_MAX_ERROR_CHARS:] or 'no message'}"
            )
        return AudioFile(dest, secs, "\n".join([shown, output.strip()]).strip())

    def _run(self, args: Sequence[str]) -> tuple[int, str]:
        """:return: exit code, output"""
        with self._lock:
            if self._stopped:
                return 1, ""
            process = subprocess.Popen(
                args,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            self._running.add(process)
        try:
            output, _ = process.communicate()
        finally:
            with self._lock:
                self._running.discard(process)
        return process.returncode, output

    def stop(self) -> None:
        """Kill all running ffmpeg. No further ones start."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                with contextlib.suppress(OSError):
                    process.kill()


def audio_file_secs(filename: str) -> float | None:
    """
    :param filename: of a whole audio file
    :return: duration by its header; None: not known, as without the package soundfile
    """
    if importlib.util.find_spec("soundfile") is None:
        return None
    soundfile = optional_import("soundfile", needed_by="bliss-to-ogg-zip to find out durations")
    try:
        info = soundfile.info(filename)
    except (soundfile.SoundFileError, OSError):
        return None
    return float(Decimal(info.frames) / Decimal(info.samplerate))
