"""tools/bliss-to-ogg-zip.py."""

from __future__ import annotations

import ast
import os
import select
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from returnn.datasets._audio.bliss_to_zip import BlissToZip, RecordingNames
from returnn.datasets._audio.segment_audio import NoAudio
from returnn.datasets.audio import OggZipDataset
from returnn.errors import DataFileError, DatasetError
from tests.helpers import GOLDEN, ROOT, program_env
from tests.tools.tool_program import imports_torch, last_error_line, run_tool

FOLDER = GOLDEN / "05-audio-text" / "oggzip"
TOOL = "bliss-to-ogg-zip"
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def _names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return archive.namelist()


def _meta(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return archive.read(path.stem + ".txt").decode("utf8")


def _write_corpus(folder: Path, segments: str, name: str = "c") -> None:
    (folder / "c.xml").write_text(f'<corpus name="{name}">{segments}</corpus>', encoding="utf8")


def _write_wav(path: Path, secs: float, rate: int = 8000, **kwargs: str) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    soundfile.write(path, np.sin(np.arange(round(secs * rate)) * 0.1) * 0.5, rate, **kwargs)


def _tmp_files(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name not in ("c.xml", "tmp") and not name.endswith((".wav", ".ogg"))]


@needs_ffmpeg
def test_golden(tmp_path: Path) -> None:
    output = tmp_path / "demo.ogg.zip"
    res = run_tool(
        TOOL, "corpus.xml.gz", "--output", str(output), "--ffmpeg_loglevel", "error", "--jobs", "2", cwd=FOLDER
    )
    assert _meta(output) == (FOLDER / "demo.ogg.meta.txt").read_text(encoding="utf8")
    assert _names(output) == _names(FOLDER / "demo.ogg.zip")
    for line in (
        "Num seqs: 3",
        "Num recordings: 2",
        "Recordings common dir prefix: rec/",
        "Recordings common postfix: .wav",
        "Dataset name: demo.ogg",
        "Total duration: 0.900 secs (0:00:00)",
        "Total num chars: 31",
        f"Dataset zip filename: {output}",
        "Zipping...",
        " Adding: demo.ogg/sub/r2/0.00_0.300.ogg",
        "Cleaning up...",
        "Finished.",
    ):
        assert line in res.stdout.splitlines()
    commands = [line for line in res.stdout.splitlines() if line.startswith("$ ffmpeg")]
    assert [c.split("/demo.ogg/")[0].rpartition(" ")[0] for c in commands] == [
        "$ ffmpeg -i rec/r1.wav -t 0.25",
        "$ ffmpeg -i rec/r1.wav -ss 0.25 -t 0.35",
        "$ ffmpeg -i rec/sub/r2.wav -t 0.300",
    ]
    temp_dir = next(line.split(": ")[1] for line in res.stdout.splitlines() if line.startswith("Temp dir for data: "))
    assert not os.path.exists(temp_dir)
    datasets = [OggZipDataset(str(path), {"features": "raw"}, None) for path in (output, FOLDER / "demo.ogg.zip")]
    for i in range(3):
        ours, golden = (dataset.get_corpus_seq(i).get_data("data") for dataset in datasets)
        assert ours.shape == golden.shape
        assert np.corrcoef(ours[:, 0], golden[:, 0])[0, 1] > 0.99  # another version of the encoder
    with zipfile.ZipFile(output) as archive:
        for info in archive.infolist():
            is_text = info.filename.endswith(".txt")
            assert info.compress_type == (zipfile.ZIP_DEFLATED if is_text else zipfile.ZIP_STORED)
            assert info.external_attr >> 16 == (0o40755 if info.is_dir() else 0o100644)


def test_no_ogg(tmp_path: Path) -> None:
    (tmp_path / "c.xml").write_text(
        '<corpus name="c"><recording name="r1" audio="/x/a/r1.wav">'
        '<segment name="s1" start="0.0" end="1.504"><orth> hello\n world</orth><speaker name="spk"/></segment>'
        '<segment start="1.504" end="2.0"><orth>it\'s "q"</orth></segment></recording>'
        '<recording name="r2" audio="/x/a/r2.wav"><segment name="s1" start="0" end="0.995"/></recording></corpus>'
    )
    res = run_tool(TOOL, "c.xml", "--no_ogg", "--output", "o.ogg.zip", cwd=tmp_path)
    assert _names(tmp_path / "o.ogg.zip") == ["o.ogg/", "o.ogg.txt", "o.ogg/r1/", "o.ogg/r2/"]
    assert _meta(tmp_path / "o.ogg.zip") == (
        "[\n"
        "{'text': 'hello world', 'speaker_name': 'spk', 'file': 'r1/0.0_1.504.ogg', 'seq_name': 'c/r1/s1', 'duration': 1.504},\n"
        "{'text': 'it\\'s \"q\"', 'speaker_name': None, 'file': 'r1/1.504_2.0.ogg', 'seq_name': 'c/r1/2', 'duration': 0.496},\n"
        "{'text': '', 'speaker_name': None, 'file': 'r2/0_0.995.ogg', 'seq_name': 'c/r2/s1', 'duration': 0.995},\n"
        "]\n"
    )
    assert "Total duration: 2.995 secs (0:00:02)" in res.stdout
    assert "Total num chars: 19" in res.stdout
    assert "no Ogg (r2.wav -> r2/0_0.995.ogg)" in res.stdout
    assert not imports_torch(TOOL, "--no_ogg", "--output", "p.zip", "c.xml", cwd=tmp_path)
    # The job of i6_core.
    (tmp_path / "segs").write_text("c/r2/s1\n")
    run_tool(
        TOOL,
        "c.xml",
        "--output",
        "s.zip",
        "--subset_segment_file",
        "segs",
        "--no_ogg",
        "--raw_sample_rate",
        "16000",
        cwd=tmp_path,
    )
    assert _meta(tmp_path / "s.zip").count("\n") == 3


def test_dry_run(tmp_path: Path) -> None:
    _write_corpus(tmp_path, '<recording audio="a.wav"><segment end="2"/><segment start="2"/></recording>')
    _write_wav(tmp_path / "a.wav", 3)
    res = run_tool(TOOL, "c.xml", "--output", "", cwd=tmp_path)
    assert "Total duration: Infinity secs (infinite)" in res.stdout
    assert "dry run (a.wav -> a/0_2.ogg)" in res.stdout
    assert _tmp_files(tmp_path) == []


@needs_ffmpeg
def test_durations_are_floats_and_finite(tmp_path: Path) -> None:
    _write_wav(tmp_path / "e" / "d.x" / "only.wav", 3)
    _write_corpus(
        tmp_path,
        '<recording audio="e/d.x/only.wav"><segment end="1"/><segment start="1" end="inf"/><segment end="1"/></recording>',
    )
    res = run_tool(TOOL, "c.xml", "--output", "o.zip", "--ffmpeg_loglevel", "error", cwd=tmp_path)
    assert "Recordings common dir prefix: e/d.x/\nRecordings common postfix: .wav\n" in res.stdout
    entries = ast.literal_eval(_meta(tmp_path / "o.zip"))
    assert [(entry["file"], entry["duration"]) for entry in entries] == [
        ("only/0_1.ogg", 1.0),
        ("only/1_inf.ogg", 2.0),
        ("only/0_1.ogg", 1.0),
    ]
    assert all(isinstance(entry["duration"], float) for entry in entries)
    assert _names(tmp_path / "o.zip") == ["o/", "o.txt", "o/only/", "o/only/0_1.ogg", "o/only/1_inf.ogg"]
    dataset = OggZipDataset(str(tmp_path / "o.zip"), {"features": "raw"}, None)
    assert [len(dataset.get_corpus_seq(i).get_data("data")) for i in range(3)] == [8000, 16000, 8000]


def test_unknown_duration(tmp_path: Path) -> None:
    _write_corpus(tmp_path, '<recording audio="a.wav"><segment/></recording>')
    res = run_tool(TOOL, "c.xml", "--output", "o.zip", "--no_ogg", cwd=tmp_path)
    assert "durations of 1 segments are not known" in res.stdout
    assert ast.literal_eval(_meta(tmp_path / "o.zip"))[0]["duration"] == float("inf")
    _write_wav(tmp_path / "a.wav", 1.25)
    run_tool(TOOL, "c.xml", "--output", "o.zip", "--overwrite", "--no_ogg", cwd=tmp_path)
    assert ast.literal_eval(_meta(tmp_path / "o.zip"))[0]["duration"] == 1.25


def test_no_conversion(tmp_path: Path) -> None:
    _write_wav(tmp_path / "a.ogg", 2, format="OGG", subtype="VORBIS")
    _write_corpus(tmp_path, '<recording audio="a.ogg"><segment end="2.0"><orth>x</orth></segment></recording>')
    args = [TOOL, "c.xml", "--no_conversion", "--output"]
    res = run_tool(*args, "o.zip", cwd=tmp_path)
    assert "skip ffmpeg, copy instead (a.ogg -> a/0_2.0.ogg)" in res.stdout
    with zipfile.ZipFile(tmp_path / "o.zip") as archive:
        assert archive.read("o/a/0_2.0.ogg") == (tmp_path / "a.ogg").read_bytes()
    assert (tmp_path / "a.ogg").exists()
    for segment, message in [
        ('start="1" end="2"', "starts at 1 seconds"),
        ('end="0.5"', "ends at 0.5 of 2.000 seconds"),
    ]:
        _write_corpus(tmp_path, f'<recording audio="a.ogg"><segment {segment}/></recording>')
        assert message in last_error_line(run_tool(*args, "p.zip", cwd=tmp_path, check=False))
    _write_wav(tmp_path / "a.wav", 1)
    _write_corpus(tmp_path, '<recording audio="a.wav"><segment end="1"/></recording>')
    assert "only possible with .ogg" in last_error_line(run_tool(*args, "p.zip", cwd=tmp_path, check=False))
    assert _tmp_files(tmp_path) == ["o.zip"]


@needs_ffmpeg
def test_channels_rate_and_kept_directory(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((8000, 2)), 16000)
    (tmp_path / "tmp").mkdir()
    _write_corpus(tmp_path, '<recording audio="a.wav"><segment end="0.5"/></recording>')
    args = ["--number_of_channels", "1", "--ffmpeg_resample", "8000", "--ffmpeg_acodec", "pcm_s16le", "--no_cleanup"]
    res = run_tool(TOOL, "c.xml", "--output", "o.zip", *args, cwd=tmp_path, env={"TMPDIR": str(tmp_path / "tmp")})
    assert "$ ffmpeg -acodec pcm_s16le -i a.wav -ac 1 -ar 8000 -t 0.5 " in res.stdout
    (kept,) = (tmp_path / "tmp").iterdir()
    info = soundfile.info(kept / "o" / "a" / "0_0.5.ogg")
    assert (info.channels, info.samplerate) == (1, 8000)
    assert (kept / "o.txt").read_text() == _meta(tmp_path / "o.zip")


@needs_ffmpeg
def test_wrong_times_are_said(tmp_path: Path) -> None:
    _write_wav(tmp_path / "a.wav", 1)
    _write_corpus(tmp_path, '<recording audio="a.wav"><segment name="x" end="3"/></recording>')
    res = run_tool(TOOL, "c.xml", "--output", "o.zip", cwd=tmp_path)
    assert "segment 'c/1/x' should have 3 seconds, but its audio has 1.000 seconds" in res.stdout
    _write_corpus(tmp_path, '<recording audio="a.wav"><segment name="x" start="2" end="3"/></recording>')
    line = last_error_line(
        run_tool(TOOL, "c.xml", "--output", "p.zip", "--ffmpeg_loglevel", "error", cwd=tmp_path, check=False)
    )
    assert "'c/1/x'" in line
    (tmp_path / "a.wav").write_bytes(b"no audio")
    line = last_error_line(
        run_tool(TOOL, "c.xml", "--output", "p.zip", "--ffmpeg_loglevel", "error", cwd=tmp_path, check=False)
    )
    assert "ffmpeg failed" in line
    assert _tmp_files(tmp_path) == ["o.zip"]


def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    segment = '<recording audio="a.wav"><segment name="x" start="0" end="1"/></recording>'
    _write_corpus(tmp_path, segment)
    (tmp_path / "old.zip").write_bytes(b"old")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "segs").write_text("c/1/x\nc/nope\n")

    def check(message: str, output: str = "o.zip", subset: str | None = None, must_exist: bool = False) -> None:
        with pytest.raises(DatasetError, match=message):
            BlissToZip("c.xml", output, NoAudio(), subset_segment_file=subset, recordings_must_exist=must_exist).run()

    check("'a.wav' .* does not exist", must_exist=True)
    check("'old.zip' exists already", "old.zip")
    check("must end in .zip", "o.tar")
    check("directory 'no' does not exist", "no/o.zip")
    (tmp_path / "dir.zip").mkdir()
    check("'dir.zip' is a directory", "dir.zip")
    (tmp_path / "dir.zip").rmdir()
    check("'empty' is empty", subset="empty")
    check(r"1 of 2 segments .* \['c/nope'\]", subset="segs")
    _write_corpus(tmp_path, segment.replace('start="0"', 'start="1"'))
    check("'c/1/x': expected 0 <= start < end")
    _write_corpus(tmp_path, segment.replace('audio="a.wav"', ""))
    check("has no attribute audio")
    _write_corpus(tmp_path, "")
    check("no segments")
    assert (tmp_path / "old.zip").read_bytes() == b"old"
    assert sorted(_tmp_files(tmp_path)) == ["empty", "old.zip", "segs"]


def test_full_disk_and_missing_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _write_corpus(tmp_path, '<recording audio="a.wav"><segment end="1"/></recording>')

    def mkstemp(**kwargs: str) -> None:
        raise PermissionError(13, "Permission denied", kwargs["dir"])

    monkeypatch.setattr("returnn.util.fs.tempfile.mkstemp", mkstemp)
    with pytest.raises(DataFileError, match="Cannot write '.*o.zip': Permission denied. Check the permissions"):
        BlissToZip("c.xml", "o.zip", NoAudio(), recordings_must_exist=False).run()
    assert _tmp_files(tmp_path) == []


def test_closed_pipe_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    _write_wav(tmp_path / "a.ogg", 1, format="OGG", subtype="VORBIS")
    segments = "".join(f'<segment name="{i}" end="1"/>' for i in range(50))
    _write_corpus(tmp_path, f'<recording audio="a.ogg">{segments}</recording>')
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tools" / f"{TOOL}.py"), "c.xml", "--output", "o.zip", "--no_conversion"],
        cwd=tmp_path,
        env=program_env({"TMPDIR": str(tmp_path / "tmp"), "PYTHONUNBUFFERED": "1"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    with process:
        assert process.stderr.read() == "BrokenPipeError\n"
    assert process.returncode == 1
    assert os.listdir(tmp_path / "tmp") == []
    assert _tmp_files(tmp_path) == []


def test_refused_command_lines(tmp_path: Path) -> None:
    _write_corpus(tmp_path, '<recording audio="a.wav"><segment end="1"/></recording>')
    res = run_tool(TOOL, "c.xml", "--output", "o.zip", "--sprint_cache", "x", cwd=tmp_path, check=False)
    assert "--sprint_cache is not supported" in last_error_line(res)
    assert run_tool(TOOL, "c.xml", cwd=tmp_path, check=False).returncode == 2
    res = run_tool(TOOL, "c.xml", "--output", "o.zip", "--jobs", "0", cwd=tmp_path, check=False)
    assert res.returncode == 2
    assert res.stderr.endswith("error: argument --jobs: expected a number from 1 on, got '0'\n")
    assert _tmp_files(tmp_path) == []


@pytest.mark.parametrize(
    ("names", "prefix", "postfix", "short"),
    [
        (["rec/r1.wav", "rec/sub/r2.wav"], "rec/", ".wav", ["r1", "sub/r2"]),
        (["e/d.x/only.wav"], "e/d.x/", ".wav", ["only"]),
        (["only"], "", "", ["only"]),
        (["a.flac", "b.wav"], "", "", ["a.flac", "b.wav"]),
        (["/x/a.1.wav", "/x/b.1.wav"], "/x/", ".1.wav", ["a", "b"]),
        (["x/.wav", "x/a.wav"], "x/", "", [".wav", "a.wav"]),
        (["ab.wav", "ac.wav"], "", ".wav", ["ab", "ac"]),
    ],
)
def test_names_of_recordings(names: list[str], prefix: str, postfix: str, short: list[str]) -> None:
    result = RecordingNames(names)
    assert (result.prefix, result.postfix) == (prefix, postfix)
    assert [result.short(name) for name in names] == short


def test_without_ffmpeg(tmp_path: Path) -> None:
    _write_corpus(tmp_path, '<recording audio="a.wav"><segment end="1"/></recording>')
    res = run_tool(TOOL, "c.xml", "--output", "o.zip", cwd=tmp_path, check=False, env={"PATH": str(tmp_path)})
    assert "ffmpeg is not installed" in last_error_line(res)
    assert "apt install ffmpeg" in last_error_line(res)


def test_interrupt_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "bin").mkdir()
    # Never ends by itself.
    fake = tmp_path / "bin" / "ffmpeg"
    fake.write_text(
        f"#!{sys.executable}\nimport time\nprint('x', flush=True)\nopen({str(tmp_path / 'tmp' / 'started')!r}, 'a').close()\ntime.sleep(600)\n"
    )
    fake.chmod(0o755)
    _write_wav(tmp_path / "a.wav", 1)
    _write_corpus(
        tmp_path, '<recording audio="a.wav">' + "".join(f'<segment end="0.{i}"/>' for i in range(1, 9)) + "</recording>"
    )
    env = program_env({"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(tmp_path / "tmp")})
    for signum, code in [(signal.SIGINT, 1), (signal.SIGTERM, 143)]:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "tools" / f"{TOOL}.py"), "c.xml", "--output", "o.zip", "--jobs", "2"],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        started = tmp_path / "tmp" / "started"
        while not started.exists() and process.poll() is None:
            select.select([], [], [], 0.02)
        process.send_signal(signum)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == code, output
        started.unlink()
        assert os.listdir(tmp_path / "tmp") == []
        assert _tmp_files(tmp_path) == ["bin"]


def test_merged_parts_as_the_client_does_it(tmp_path: Path) -> None:
    _write_corpus(
        tmp_path,
        '<recording name="a" audio="d/a.wav"><segment name="1" end="1.5"/></recording>'
        '<recording name="b" audio="d/b.wav"><segment name="1" end="2.5"/></recording>',
    )
    lines = []
    for i, name in enumerate(["c/a/1", "c/b/1"]):
        (tmp_path / "segs").write_text(name + "\n")
        run_tool(TOOL, "c.xml", "--output", f"ogg.{i}.zip", "--subset_segment_file", "segs", "--no_ogg", cwd=tmp_path)
        lines += [line for line in _meta(tmp_path / f"ogg.{i}.zip").splitlines() if not line.startswith(("[", "]"))]
    with zipfile.ZipFile(tmp_path / "out.ogg.zip", "w") as archive:
        archive.writestr("out.ogg.txt", "[\n" + "\n".join(lines) + "\n]\n")
    assert OggZipDataset(str(tmp_path / "out.ogg.zip"), None, None).get_all_tags() == ["c/a/1", "c/b/1"]
