"""ExtractAudioFeatures: golden values of the peers, librosa's formulae on random audio, options, and error texts."""

from __future__ import annotations

import io
import json
import pickle
import re
import shutil
import subprocess
import sys
import types
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.datasets._audio.features import frames as frames_module
from returnn.datasets._audio.features.mel import MelFilters, mel_filter_bank
from returnn.datasets._audio.features.waveform import is_cut_ogg
from returnn.datasets.util.feature_extraction import ExtractAudioFeatures
from returnn.errors import (
    DataFileError,
    DatasetError,
    DatasetOptionError,
    MissingDependencyError,
    MissingRandomStateError,
    OptionError,
)
from tests.helpers import run_rnn, write_config

soundfile = pytest.importorskip("soundfile")

REPO = Path(__file__).resolve().parent.parent.parent.parent
GOLDEN = Path(__file__).resolve().parent.parent.parent / "golden" / "05-audio-text" / "audio"
with open(GOLDEN / "features.json", encoding="utf8") as _file:
    ITEMS: dict[str, dict[str, Any]] = json.load(_file)["items"]  # Any: options

#: Where we differ from the golden values on purpose.
DIFFERENT = {
    "raw_stereo_preemph": "the peers filter from one channel to the other, we over time",
    "raw_stereo_join3": "the peers mix the channels of the joined frames",
}
#: Errors of the peers, which are not all exact in what they are.
ERRORS: dict[str, tuple[type[Exception], type[Exception], str]] = {
    # ours, what the peers raise, words of our text
    "raw_stereo_noch": (DatasetError, AssertionError, r"seq 'dummy'.*expected 1 .*got 2 .*num_channels=2"),
    "raw_badrate": (DatasetError, AssertionError, r"no conversion implemented .*seq 'dummy'.*8000 Hz, got 16000"),
    "linear_spec_toosmall": (DatasetError, AssertionError, r"400 samples of window_len.*even number >= 200, got 40"),
    "stereo_logmel": (DatasetError, AssertionError, r"seq 'dummy'.*expected 1 .*got 2 "),
    "raw_ogg_noopts": (MissingDependencyError, Exception, "ParseOggVorbis"),
    "raw_ogg": (MissingDependencyError, ImportError, "ParseOggVorbis"),
    "f0_default": (DatasetOptionError, TypeError, "needs fmin and fmax"),
    "raw_nan_dim2": (
        OptionError,
        AssertionError,
        '"num_feature_filters" is invalid.*expected 1 for features "raw", got 2',
    ),
    "unknown": (OptionError, Exception, "expected one of .*'raw'.*non-supported feature type 'nope'"),
    "rndperm_typo": (OptionError, AssertionError, r"The keys \{'rnd_foo'\} were not read in the collection \{"),
    "rndperm_nostate": (MissingRandomStateError, AttributeError, "random_permute needs a random_state .*'dummy'"),
}


def read(name: str) -> io.BytesIO:
    """:return: a golden audio file"""
    return io.BytesIO((GOLDEN / name).read_bytes())


def extract_golden(name: str) -> np.ndarray:
    """:return: our features for the options of a golden item"""
    item = ITEMS[name]
    opts = dict(item["opts"])
    for vector, option in (("norm_mean_vec", "norm_mean"), ("norm_std_vec", "norm_std_dev")):
        if vector in opts:
            opts[option] = np.array(opts.pop(vector))
    random_state = None if item["seed"] is None else np.random.RandomState(item["seed"])
    extractor = ExtractAudioFeatures(random_state=random_state, **opts)
    features = extractor.get_audio_features_from_raw_bytes(read(item["file"]), seq_name="dummy")
    assert features.shape[-1] == extractor.get_feature_dimension()
    return features


def golden_array(name: str) -> np.ndarray:
    """:return: the stored rows or columns"""
    with np.load(GOLDEN / "features.npz") as arrays:
        return arrays[name]


def stored_part(name: str, features: np.ndarray) -> np.ndarray:
    """:return: what the golden file has of them"""
    match = re.fullmatch(r"every (\d+)th (row|column)", ITEMS[name].get("stored", "every 1th row"))
    assert match
    step = int(match.group(1))
    return features[::step] if match.group(2) == "row" else features[:, ::step]


def wav(audio: np.ndarray, sample_rate: int = 16000, *, subtype: str = "PCM_16", format: str = "WAV") -> io.BytesIO:
    """:return: an audio file"""
    file = io.BytesIO()
    soundfile.write(file, audio, sample_rate, format=format, subtype=subtype)
    return io.BytesIO(file.getvalue())


def noise(num_samples: int, *, seed: int = 1) -> np.ndarray:
    """:return: audio with loud and quiet parts, float64"""
    rnd = np.random.RandomState(seed)
    return np.asarray(rnd.uniform(-0.5, 0.5, num_samples) * np.exp(-5 * np.linspace(0, 1, num_samples)))


@pytest.mark.parametrize("name", [name for name in ITEMS if "error" not in ITEMS[name] and name not in DIFFERENT])
def test_golden(name: str) -> None:
    item = ITEMS[name]
    if name == "f0":
        pytest.importorskip("pyworld")
    features = extract_golden(name)
    assert features.dtype == np.float32
    assert list(features.shape) == item["shape"]
    np.testing.assert_allclose(
        stored_part(name, features), golden_array(name), rtol=0, atol=1e-3 if item["file"].endswith(".ogg") else 1e-4
    )
    assert abs(features.sum(dtype=np.float64) - item["sum"]) < 1e-6 * max(1e3, item["abs_sum"])


@pytest.mark.parametrize("name", [name for name in ITEMS if "error" in ITEMS[name]])
def test_golden_errors(name: str) -> None:
    ours, peers, text = ERRORS[name]
    with pytest.raises(ours, match=text) as info:
        extract_golden(name)
    assert isinstance(info.value, peers)


def test_several_channels_are_handled_over_time() -> None:
    audio, _ = soundfile.read(GOLDEN / "stereo.wav")
    ours = extract_golden("raw_stereo_preemph")
    expected = np.concatenate([audio[:1], audio[1:] - 0.97 * audio[:-1]])
    np.testing.assert_allclose(ours[..., 0], expected, atol=1e-7)
    assert list(ours.shape) == ITEMS["raw_stereo_preemph"]["shape"]
    joined = extract_golden("raw_stereo_join3")
    assert list(joined.shape) == ITEMS["raw_stereo_join3"]["shape"]
    plain = extract_golden("raw_stereo_2ch")[..., 0]
    np.testing.assert_array_equal(joined[:-1].transpose(0, 2, 1).reshape(-1, 2), plain[: 3 * 533])
    # What the peers have is the same numbers in another order.
    np.testing.assert_array_equal(np.sort(joined.ravel()), np.sort(golden_array("raw_stereo_join3").ravel()))


# The formulae by librosa, as the peers call it


def peers_features(name: str, audio: np.ndarray, *, dim: int, center: bool, rate: int) -> np.ndarray:
    """:return: features by librosa's functions, ``[time, dim]``"""
    librosa = pytest.importorskip("librosa")
    n_fft, hop = int(0.025 * rate), int(0.01 * rate)
    args: dict[str, Any] = {"n_fft": n_fft, "hop_length": hop, "center": center}
    if name == "mfcc":
        mfcc = librosa.feature.mfcc(y=audio, sr=rate, n_mfcc=dim, n_mels=128, **args)
        mfcc[0] = librosa.feature.rms(y=audio, frame_length=n_fft, hop_length=hop, center=center)[0]
        return np.asarray(mfcc.T)
    if name == "linear_spectrogram":
        stft = librosa.stft(audio, n_fft=2 * dim, hop_length=hop, win_length=n_fft, center=center)
        return np.abs(stft[1:]).T
    mels = librosa.feature.melspectrogram(y=audio, sr=rate, n_mels=dim, **args).T
    if name == "db_mel_filterbank":
        return np.asarray(20 * np.log10(np.maximum(1e-10, mels)))
    log_mels = np.log(np.maximum(1e-3, mels))
    if name == "log_log_mel_filterbank":
        return np.asarray(librosa.amplitude_to_db(log_mels.T).T)
    return np.asarray(log_mels)


@pytest.mark.parametrize("rate", [16000, 11025])  # even and odd length of the window
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(
    "name, dim",
    [
        ("mfcc", 40),
        ("log_mel_filterbank", 80),
        ("log_log_mel_filterbank", 23),
        ("db_mel_filterbank", 80),
        ("linear_spectrogram", 256),
    ],
)
def test_formulae_of_librosa(name: str, dim: int, center: bool, rate: int) -> None:
    for num_samples in (600, 1601, 60_000):  # the last one in several blocks
        audio = noise(num_samples)
        extractor = ExtractAudioFeatures(
            features=name,
            num_feature_filters=dim,
            peak_normalization=False,
            feature_options={"center": center},
        )
        ours = extractor.get_audio_features(audio, rate)
        expected = peers_features(name, audio, dim=dim, center=center, rate=rate)
        # The second logarithm has no bound for its relative error near 0.
        atol = 1e-3 if name == "log_log_mel_filterbank" else 1e-4
        np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)


def test_deltas_of_librosa() -> None:
    librosa = pytest.importorskip("librosa")
    features = np.random.RandomState(1).standard_normal((30, 4)).astype("float32")
    extractor = ExtractAudioFeatures(
        features=lambda **_: features, num_feature_filters=4, with_delta=8, peak_normalization=False
    )
    ours = extractor.get_audio_features(noise(10), 16000)
    assert ours.shape == (30, 36)
    for order in range(1, 9):
        # In float64: at the edges, the polynomials of scipy are bad in float32.
        expected = librosa.feature.delta(features.T.astype(np.float64), order=order, width=9).T
        scale = np.abs(expected).max()
        np.testing.assert_allclose(ours[:, 4 * order : 4 * order + 4] / scale, expected / scale, rtol=0, atol=1e-5)


def test_padding_of_the_edges_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = ExtractAudioFeatures(num_feature_filters=13)
    audio = noise(5000)
    expected = extractor.get_audio_features(audio, 16000)
    for block in (400, 1000, 3000):
        monkeypatch.setattr(frames_module, "_BLOCK_SAMPLES", block)
        np.testing.assert_allclose(extractor.get_audio_features(audio, 16000), expected, rtol=0, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    n_fft=st.integers(2, 600),
    num_filters=st.integers(1, 100),
    fmin=st.floats(0, 7000),
    width=st.floats(1, 1000),
    num_frames=st.integers(0, 70),
)
def test_mel_filters(n_fft: int, num_filters: int, fmin: float, width: float, num_frames: int) -> None:
    librosa = pytest.importorskip("librosa")
    opts: dict[str, Any] = {"n_fft": n_fft, "fmin": fmin, "fmax": fmin + width}
    weights = mel_filter_bank(sample_rate=16000, num_filters=num_filters, **opts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of filters without any bin
        expected = librosa.filters.mel(sr=16000, n_mels=num_filters, **opts).T
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-6 * max(1.0, float(expected.max())))
    filters = MelFilters(weights)
    powers = np.random.RandomState(1).uniform(0, 1, (num_frames, len(weights))).astype("float32")
    out = np.full((num_frames, num_filters), np.nan, dtype="float32")
    filters.apply(np.ascontiguousarray(powers[:, filters.bins]), out=out)
    np.testing.assert_allclose(out, powers @ weights, rtol=1e-4, atol=1e-6)


def test_products_are_small_enough_for_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    matmul = np.matmul

    def counting_matmul(left: np.ndarray, right: np.ndarray, *, out: np.ndarray) -> np.ndarray:
        sizes.append(left.shape[0] * right.size)
        return np.asarray(matmul(left, right, out=out))

    monkeypatch.setattr(np, "matmul", counting_matmul)
    for opts in ({}, {"features": "db_mel_filterbank", "num_feature_filters": 80, "window_len": 0.1}):
        ExtractAudioFeatures(**opts).get_audio_features(noise(50_000), 16000)  # type: ignore[arg-type]
    assert len(sizes) > 20 and max(sizes) <= 4 * 65536


# Properties


@settings(max_examples=40, deadline=None)
@given(
    num_samples=st.integers(1, 3000),
    window=st.integers(8, 500),
    step=st.integers(1, 300),
    join=st.integers(1, 5),
    features=st.sampled_from(["mfcc", "log_mel_filterbank", "db_mel_filterbank", "log_log_mel_filterbank"]),
)
def test_number_of_frames(num_samples: int, window: int, step: int, join: int, features: str) -> None:
    extractor = ExtractAudioFeatures(
        window_len=window / 1000,
        step_len=step / 1000,
        features=features,
        num_feature_filters=4,
        join_frames=join,
    )
    window, step = int(window / 1000 * 1000), int(step / 1000 * 1000)
    expected = 1 + (num_samples + 2 * (window // 2) - window) // step
    result = extractor.get_audio_features(noise(num_samples), 1000)
    assert result.shape == (-(-expected // join), 4 * join)
    assert result.dtype == np.float32 and np.isfinite(result).all()


@settings(max_examples=50, deadline=None)
@given(num_frames=st.integers(0, 40), join=st.integers(2, 7), channels=st.integers(0, 3))
def test_join_frames_repeats_the_last_frame(num_frames: int, join: int, channels: int) -> None:
    audio = np.arange(num_frames * max(channels, 1), dtype="float64").reshape((num_frames, channels or 1))
    extractor = ExtractAudioFeatures(
        features="raw", peak_normalization=False, join_frames=join, num_channels=channels or None
    )
    result = extractor.get_audio_features(audio if channels else audio[:, 0], 8000)
    assert result.shape == (-(-num_frames // join), *([channels] if channels else []), join)
    for channel in range(channels or 1):
        flat = (result[:, channel] if channels else result).ravel()
        np.testing.assert_array_equal(flat[:num_frames], audio[:, channel])
        assert (flat[num_frames:] == audio[-1:, channel]).all()


@pytest.mark.parametrize("features", ["raw", "mfcc", "db_mel_filterbank", "linear_spectrogram"])
def test_pickled_copy_gives_identical_features(features: str, tmp_path: Path) -> None:
    dim = 200 if features == "linear_spectrogram" else None
    np.savetxt(tmp_path / "mean.txt", np.zeros(1))
    opts: dict[str, Any] = {"features": features, "num_feature_filters": dim, "preemphasis": 0.9}
    if features == "raw":
        opts["norm_mean"] = str(tmp_path / "mean.txt")
    extractor = ExtractAudioFeatures(random_permute=True, random_state=np.random.RandomState(3), **opts)
    before = pickle.loads(pickle.dumps(extractor))
    expected = [extractor.get_audio_features(noise(4000), 16000) for _ in range(2)]
    after = pickle.loads(pickle.dumps(extractor))
    assert len(pickle.dumps(after)) < 50_000
    for copy in (before, after):
        copy.random_state = np.random.RandomState(3)
        for array in expected:
            np.testing.assert_array_equal(copy.get_audio_features(noise(4000), 16000), array)


def test_one_object_for_several_sample_rates() -> None:
    extractor = ExtractAudioFeatures(features="log_mel_filterbank", num_feature_filters=20)
    for rate in (8000, 16000, 8000):
        expected = ExtractAudioFeatures(features="log_mel_filterbank", num_feature_filters=20)
        np.testing.assert_array_equal(
            extractor.get_audio_features_from_raw_bytes(wav(noise(4000), rate)),
            expected.get_audio_features_from_raw_bytes(wav(noise(4000), rate)),
        )


@pytest.mark.parametrize(
    "format, subtype", [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "PCM_32"), ("WAV", "DOUBLE"), ("OGG", "VORBIS")]
)
def test_decoding_to_float32_equals_float64(format: str, subtype: str) -> None:
    file = wav(noise(4000), format=format, subtype=subtype)
    audio, _ = soundfile.read(file)
    file.seek(0)
    opts: dict[str, Any] = {"features": "raw", "preemphasis": 0.97}
    ours = ExtractAudioFeatures(**opts).get_audio_features_from_raw_bytes(file)
    expected = np.concatenate([audio[:1], audio[1:] - 0.97 * audio[:-1]])
    np.testing.assert_allclose(ours[:, 0], expected / np.abs(expected).max(), rtol=0, atol=1e-6)


def test_audio_of_the_caller_is_not_changed() -> None:
    for dtype in ("float32", "float64"):
        audio = noise(3000).astype(dtype)
        before = audio.copy()
        for features in ("raw", "mfcc"):
            opts: dict[str, Any] = {
                "random_permute": {"rnd_zoom_switch": 0, "rnd_stretch_switch": 0, "rnd_pitch_switch": 0}
            }
            extractor = ExtractAudioFeatures(
                features=features, preemphasis=0.5, random_state=np.random.RandomState(1), **opts
            )
            extractor.get_audio_features(audio, 16000)
        np.testing.assert_array_equal(audio, before)


# Options


def test_order_of_the_steps() -> None:
    calls: list[str] = []

    def pre_process(audio: np.ndarray, sample_rate: int, random_state: np.random.RandomState) -> np.ndarray:
        assert audio.dtype == np.float64 and audio.ndim == 1 and sample_rate == 16000
        assert isinstance(random_state, np.random.RandomState)
        np.testing.assert_allclose(np.abs(audio).max(), 1.0)
        calls.append("pre")
        return audio[::2]

    def features(
        *,
        random_state: np.random.RandomState,
        sample_rate: int,
        window_len: float,
        step_len: float,
        num_feature_filters: int,
        audio: np.ndarray,
        factor: float,
    ) -> np.ndarray:
        assert (sample_rate, window_len, step_len, num_feature_filters) == (16000, 0.025, 0.010, 3)
        assert isinstance(random_state, np.random.RandomState)
        calls.append("features")
        return np.tile(audio[:, None] * factor, (1, 3))

    def post_process(feature_data: np.ndarray, *, seq_name: str) -> np.ndarray:
        assert feature_data.shape[1] == 6 and feature_data.dtype == np.float32
        calls.append(seq_name)
        return feature_data + 1

    extractor = ExtractAudioFeatures(
        features=features,
        feature_options={"factor": 2.0},
        num_feature_filters=3,
        pre_process=pre_process,
        post_process=post_process,
        random_state=np.random.RandomState(1),
        norm_mean=0.5,
        norm_std_dev=np.float32(4.0),
        join_frames=2,
    )
    audio = noise(100)
    result = extractor.get_audio_features_from_raw_bytes(wav(audio), seq_name="my-seq")
    assert calls == ["pre", "features", "my-seq"]
    decoded, _ = soundfile.read(wav(audio))
    expected = (decoded / np.abs(decoded).max())[::2] * 2
    np.testing.assert_allclose(result[:, [0, 3]].ravel(), (expected - 0.5) / 4 + 1, atol=1e-6)


def test_norm_from_files_of_the_statistics_tool(tmp_path: Path) -> None:
    dim = 16
    mean, std_dev = np.linspace(-3, 3, dim), np.linspace(0.5, 2, dim)
    for name, vector in (("mean", mean), ("std_dev", std_dev)):
        np.savetxt(tmp_path / f"{name}.txt", vector)
    opts: dict[str, Any] = {"features": "log_mel_filterbank", "num_feature_filters": 8, "with_delta": True}
    plain = ExtractAudioFeatures(**opts).get_audio_features(noise(4000), 16000)
    for mean_opt, std_opt in [
        (str(tmp_path / "mean.txt"), str(tmp_path / "std_dev.txt")),
        (tmp_path / "mean.txt", tmp_path / "std_dev.txt"),
        (mean, list(std_dev)),
    ]:
        extractor = ExtractAudioFeatures(norm_mean=mean_opt, norm_std_dev=std_opt, **opts)
        np.testing.assert_allclose(
            extractor.get_audio_features(noise(4000), 16000), (plain - mean) / std_dev, rtol=1e-5, atol=1e-5
        )
    bad = ExtractAudioFeatures(norm_mean=str(tmp_path / "missing.txt"), **opts)
    with pytest.raises(DataFileError, match=r"option 'norm_mean'.*missing\.txt"):
        bad.get_audio_features(noise(4000), 16000)
    (tmp_path / "words.txt").write_text("hello\n")
    bad = ExtractAudioFeatures(norm_std_dev=str(tmp_path / "words.txt"), **opts)
    with pytest.raises(DataFileError, match=r"option 'norm_std_dev'.*one number per line"):
        bad.get_audio_features(noise(4000), 16000)
    np.savetxt(tmp_path / "short.txt", mean[:5])
    bad = ExtractAudioFeatures(norm_mean=str(tmp_path / "short.txt"), **opts)
    with pytest.raises(OptionError, match=r"\"norm_mean\".*short\.txt.*shape \(16,\), got \(5,\)"):
        bad.get_audio_features(noise(4000), 16000)


def test_per_seq_norm_has_mean_0_and_std_dev_1() -> None:
    extractor = ExtractAudioFeatures(norm_mean="per_seq", norm_std_dev="per_seq", num_feature_filters=13)
    features = extractor.get_audio_features(noise(16000), 16000)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(features[:, 1:].std(axis=0), 1, atol=1e-4)
    constant = ExtractAudioFeatures(features="raw", norm_mean="per_seq", norm_std_dev="per_seq")
    np.testing.assert_array_equal(constant.get_audio_features(np.ones(10), 16000), np.zeros((10, 1)))


def test_norm_vector_with_joined_frames_is_refused() -> None:
    opts: dict[str, Any] = {"features": "log_mel_filterbank", "num_feature_filters": 4, "join_frames": 2}
    with pytest.raises(OptionError, match="joined after the normalization.*post_process"):
        ExtractAudioFeatures(norm_mean=np.zeros(8), **opts)
    with pytest.raises(OptionError, match=r"shape \(8,\), got \(4,\)"):
        ExtractAudioFeatures(norm_mean=np.zeros(4), **opts)


def test_random_permute_draws_of_several_channels() -> None:
    pytest.importorskip("librosa")
    switches = {"rnd_zoom_switch": 1.0, "rnd_stretch_switch": 1.0, "rnd_pitch_switch": 1.0}
    audio = noise(4000)

    def extract(data: np.ndarray, num_channels: int | None) -> np.ndarray:
        extractor = ExtractAudioFeatures(
            features="raw",
            random_permute=switches,
            random_state=np.random.RandomState(5),
            num_channels=num_channels,
            peak_normalization=False,
        )
        return extractor.get_audio_features(data, 16000)

    mono = extract(audio, None)
    stereo = extract(np.stack([audio, audio / 2], axis=1), 2)
    np.testing.assert_allclose(stereo[:, 0], mono, atol=1e-5)
    np.testing.assert_allclose(stereo[:, 1], mono / 2, atol=1e-5)


def test_keys_of_random_permute() -> None:
    for opts in ({"rnd_zoom_order": 1}, {"rnd_pitch_switch": 0.5, "rnd_pitch_lower": -2}, {"rnd_scale_upper": 1.5}):
        ExtractAudioFeatures(random_permute=opts)
    with pytest.raises(OptionError, match=r"keys \{'rnd_zoom_order'\} were not read.*their switch is 0"):
        ExtractAudioFeatures(random_permute={"rnd_zoom_switch": 0, "rnd_zoom_order": 1})
    with pytest.raises(OptionError, match=r"rnd_scale_lower.*expected number, got 'a'"):
        ExtractAudioFeatures(random_permute={"rnd_scale_lower": "a"})  # type: ignore[dict-item]
    with pytest.raises(OptionError, match="expected None, bool or dict, got 'yes'"):
        ExtractAudioFeatures(random_permute="yes")  # type: ignore[arg-type]


def test_num_channels_1_gives_the_axis() -> None:
    extractor = ExtractAudioFeatures(features="raw", num_channels=1)
    assert extractor.get_audio_features_from_raw_bytes(wav(noise(50))).shape == (50, 1, 1)
    assert extractor.get_audio_features(noise(50), 16000).shape == (50, 1, 1)
    with pytest.raises(DatasetError, match="seq 's1'.*expected 1 .*got 2 "):
        extractor.get_audio_features_from_raw_bytes(wav(noise(50).reshape(25, 2)), seq_name="s1")


def test_options_that_are_none_are_as_if_not_given() -> None:
    names = [
        "feature_options",
        "preemphasis",
        "norm_mean",
        "random_permute",
        "pre_process",
        "join_frames",
        "sample_rate",
    ]
    nothing: dict[str, Any] = dict.fromkeys(names)
    extractor = ExtractAudioFeatures(**nothing)
    np.testing.assert_array_equal(
        extractor.get_audio_features(noise(4000), 16000), ExtractAudioFeatures().get_audio_features(noise(4000), 16000)
    )


def test_f0_calls_pyworld(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("pyworld")

    def dio(x: np.ndarray, fs: int, *, f0_floor: float, f0_ceil: float, frame_period: float) -> Any:
        assert (x.dtype, fs, f0_floor, f0_ceil, frame_period) == (np.float64, 16000, 80, 400, 10.0)
        return np.array([100.0, 0.0, np.nan]), np.arange(3) * 0.01

    def stonemask(x: np.ndarray, f0: np.ndarray, times: np.ndarray, fs: int) -> np.ndarray:
        return f0

    module.dio, module.stonemask = dio, stonemask  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyworld", module)
    opts = {"fmin": 80, "fmax": 400}
    extractor = ExtractAudioFeatures(features="f0", num_feature_filters=1, feature_options=opts)
    features = extractor.get_audio_features(noise(400), 16000)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, [[100], [0], [0]])


# Mistakes


@pytest.mark.parametrize(
    "opts, text",
    [
        ({"window_len": 0}, '"window_len".*number > 0, got 0'),
        ({"step_len": "x"}, "\"step_len\".*got 'x'"),
        ({"num_feature_filters": 0}, "int >= 1, got 0"),
        ({"with_delta": -1}, "int >= 0, got -1"),
        ({"with_delta": 9}, "bool or int < 9, got 9"),
        ({"norm_mean": True}, '"norm_mean".*number, vector of 40 numbers, "per_seq", or name of a text file, got True'),
        ({"norm_std_dev": 0}, '"norm_std_dev".*number > 0'),
        ({"norm_std_dev": np.zeros(40)}, '"norm_std_dev".*> 0'),
        ({"norm_mean": float("nan")}, '"norm_mean".*got'),
        ({"norm_mean": ["a"] * 40}, '"norm_mean"'),
        ({"features": "logmel"}, "got 'logmel'"),
        ({"feature_options": {"fmim": 3}}, r"unknown keys \['fmim'\] for features \"mfcc\".*n_mels"),
        ({"features": "raw", "feature_options": {"fmin": 3}}, "expected none"),
        ({"feature_options": 3}, "dict or None, got 3"),
        ({"feature_options": {"fmin": -3}}, "Hz >= 0, got -3"),
        ({"features": "db_mel_filterbank", "feature_options": {"min_amp": 0}}, "number > 0, got 0"),
        ({"feature_options": {"n_mels": 20}}, "at most n_mels=20"),
        ({"features": "linear_spectrogram", "num_feature_filters": 201}, "even number"),
        ({"features": "f0", "feature_options": {"fmin": 80, "fmax": 400}}, 'expected 1 for features "f0", got 40'),
        ({"num_channels": 2}, 'None with features other than "raw", got 2'),
        ({"features": "raw", "num_channels": 0}, "int >= 1, got 0"),
        ({"pre_process": "f"}, "function or None, got 'f'"),
        ({"post_process": 1}, "function or None, got 1"),
        ({"peak_normalization": "no"}, "bool, got 'no'"),
        ({"preemphasis": "a"}, "number, got 'a'"),
        ({"join_frames": 1.5}, "int >= 1, got 1.5"),
        ({"sample_rate": -1}, "number > 0, got -1"),
    ],
)
def test_invalid_options(opts: dict[str, Any], text: str) -> None:
    with pytest.raises((OptionError, DatasetOptionError), match=text) as info:
        ExtractAudioFeatures(**opts)
    assert 'option "audio"' in str(info.value)


def test_unknown_option() -> None:
    with pytest.raises(TypeError, match="foo"):
        ExtractAudioFeatures(foo=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "opts, num_samples, text",
    [
        ({"peak_normalization": False}, 0, "too short for one frame .*'my-seq'"),
        ({"feature_options": {"center": False}}, 399, "at least 400 samples .*got 399"),
        ({"with_delta": 1}, 1200, "too short for with_delta .*'my-seq'.*at least 9 frames, got 8"),
        ({"feature_options": {"fmin": 9000}}, 400, "fmin must be below fmax at a sample rate of 16000 Hz"),
        ({"step_len": 1e-5}, 400, "step_len is less than one sample"),
        ({"sample_rate": 8000}, 400, "'my-seq'.*8000 Hz, got 16000"),
        ({"pre_process": lambda **_: [1.0]}, 400, r"pre_process .*'my-seq'.*numpy array \[time\], got \[1.0\]"),
        ({"pre_process": lambda **_: np.zeros((3, 2))}, 400, r"pre_process .*got \(3, 2\)"),
        (
            {"post_process": lambda data, **_: data[:, 1:]},
            400,
            r"post_process .*'my-seq'.*last one of 40, got \(\d, 39\)",
        ),
        ({"features": lambda **_: np.zeros((3, 2))}, 400, r"num_feature_filters=40\], got \(3, 2\)"),
    ],
)
def test_audio_that_does_not_fit(opts: dict[str, Any], num_samples: int, text: str) -> None:
    with pytest.raises(DatasetError, match=text):
        ExtractAudioFeatures(**opts).get_audio_features(noise(num_samples), 16000, seq_name="my-seq")


@pytest.mark.parametrize("content", [b"", b"no audio at all", b"OggS" + b"\0" * 100])
def test_undecodable_audio(content: bytes) -> None:
    with pytest.raises(DataFileError, match="cannot be decoded .*seq 'my-seq'.*libsndfile"):
        ExtractAudioFeatures().get_audio_features_from_raw_bytes(io.BytesIO(content), seq_name="my-seq")


def test_error_text_has_no_repr_of_the_buffer() -> None:
    with pytest.raises(DataFileError, match=r"\(LibsndfileError: Format not recognised\.\)"):
        ExtractAudioFeatures().get_audio_features_from_raw_bytes(b"no audio at all")


def test_audio_without_samples() -> None:
    """The peers fail too in the normalization; without it, the sequence is empty."""
    with pytest.raises(DataFileError, match="no samples .*seq 'my-seq'"):
        ExtractAudioFeatures(features="raw").get_audio_features(np.zeros(0), 8000, seq_name="my-seq")
    extractor = ExtractAudioFeatures(features="raw", peak_normalization=False)
    assert extractor.get_audio_features(np.zeros(0), 8000).shape == (0, 1)


def test_cut_ogg_files() -> None:
    file = io.BytesIO()
    soundfile.write(file, noise(60000) * 0.1, 16000, format="OGG", subtype="VORBIS")
    data = file.getvalue()
    pages = [match.start() for match in re.finditer(b"OggS", data)]
    assert len(pages) > 3 and not is_cut_ogg(data)
    for end in (len(data) - 1, pages[-1] + 40, pages[-1] + 27, pages[-1] + 10, pages[2] + 5, 4):
        assert is_cut_ogg(data[:end]), end
    assert not is_cut_ogg(b"") and not is_cut_ogg((GOLDEN / "a.wav").read_bytes())


def test_samples_that_are_no_numbers() -> None:
    file = wav(np.array([0.1, np.nan, 0.2]), subtype="FLOAT")
    with pytest.raises(DataFileError, match="seq 'my-seq'.*finite"):
        ExtractAudioFeatures(features="raw").get_audio_features_from_raw_bytes(file, seq_name="my-seq")


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, opts in (
        ("soundfile", {"features": "raw"}),
        ("scipy.ndimage", {"random_permute": {"rnd_zoom_switch": 1.0}}),
        ("librosa.effects", {"random_permute": {"rnd_zoom_switch": 0, "rnd_stretch_switch": 1.0}}),
        ("pyworld", {"features": "f0", "num_feature_filters": 1, "feature_options": {"fmin": 80, "fmax": 400}}),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            extractor = ExtractAudioFeatures(random_state=np.random.RandomState(1), **opts)  # type: ignore[arg-type]
            if module == "soundfile":
                file = io.BytesIO((GOLDEN / "a.wav").read_bytes())
                with pytest.raises(MissingDependencyError, match='option "audio".*pip install soundfile'):
                    extractor.get_audio_features_from_raw_bytes(file)
            else:
                with pytest.raises(MissingDependencyError, match=f'option "audio".*pip install {module.split(".")[0]}'):
                    extractor.get_audio_features(noise(1000), 16000)


def test_package_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "soundfile.py").write_text("raise OSError('sndfile library not found')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "soundfile")
    with pytest.raises(
        MissingDependencyError, match='option "audio".*sndfile library not found.*pip install soundfile'
    ):
        ExtractAudioFeatures(features="raw").get_audio_features_from_raw_bytes(b"x")


def test_worker_does_not_import_librosa_or_scipy() -> None:
    program = """
import io, sys
from returnn.datasets.util.feature_extraction import ExtractAudioFeatures
assert "soundfile" not in sys.modules
data = open(sys.argv[1], "rb").read()
for opts in (
    {"features": "raw", "preemphasis": 0.97}, {"with_delta": 2}, {"features": "log_mel_filterbank"},
    {"features": "db_mel_filterbank"}, {"features": "linear_spectrogram", "num_feature_filters": 200},
):
    ExtractAudioFeatures(**opts).get_audio_features_from_raw_bytes(io.BytesIO(data))
bad = {"librosa", "scipy", "numba", "torch"} & set(sys.modules)
assert not bad, bad
"""
    out = subprocess.run(
        [sys.executable, "-c", program, str(GOLDEN / "a.wav")], cwd=REPO, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr


# In a training, as clients use it

CONFIG = """#!rnn.py
import torch

task, device, num_epochs, num_workers_per_gpu = "train", "cpu", 2, {num_workers}
batch_size, max_seqs, learning_rates = 16000 * 20, 4, [0.001] * 2
model, log, log_verbosity = "models/epoch", ["./returnn.log"], 4
optimizer = {{"class": "sgd"}}

def speed_perturbation(audio, sample_rate, random_state):
    import numpy
    factor = random_state.choice([0.9, 1.0, 1.1])
    num_samples = int(len(audio) / factor)
    return numpy.interp(numpy.arange(num_samples) * factor, numpy.arange(len(audio)), audio)

def shift(features, seq_name):
    assert seq_name.startswith("corpus/")
    return features + 1

def meta(**options):
    audio = {{"features": "raw", "peak_normalization": True, "preemphasis": 0.97, "feature_options": None,
        "random_permute": {{"rnd_zoom_switch": 0, "rnd_stretch_switch": 0, "rnd_pitch_switch": 0}},
        "pre_process": speed_perturbation, "post_process": shift}}
    zip_dataset = {{"class": "OggZipDataset", "path": "corpus.zip", "use_cache_manager": True, "audio": audio,
        "targets": None, **options}}
    return {{"class": "MetaDataset", "datasets": {{"zip_dataset": zip_dataset}},
        "data_map": {{"raw_audio": ("zip_dataset", "data")}}, "seq_order_control_dataset": "zip_dataset"}}

config = {{
    "train": meta(seq_ordering="laplace:.1000", partition_epoch=2),
    "dev": meta(seq_ordering="sorted_reverse", fixed_random_subset=4),
}}
locals().update(**config)

class Model(torch.nn.Module):
    def __init__(self, **_):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

get_model = Model

def train_step(*, model, data, run_ctx, **_):
    with open("seen.txt", "a") as file:
        for i, (tag, num) in enumerate(zip(data["seq_tag"], data["raw_audio:size1"].tolist())):
            print(run_ctx.stage, run_ctx.epoch, tag, num, data["raw_audio"][i, :num].double().sum().item(), file=file)
    run_ctx.mark_as_loss(name="loss", loss=(data["raw_audio"].mean() * model.weight) ** 2)
"""


@pytest.mark.slow
def test_functions_of_the_config_in_workers(tmp_path: Path) -> None:
    lines = []
    with zipfile.ZipFile(tmp_path / "corpus.zip", "w") as archive:
        for i in range(12):
            audio = noise(3000 + 500 * i, seed=i)
            archive.writestr(f"corpus/{i}.ogg", wav(audio, format="OGG", subtype="VORBIS").getvalue())
            lines.append(
                repr({"text": "a", "duration": len(audio) / 16000, "file": f"{i}.ogg", "seq_name": f"corpus/{i}"}) + ","
            )
        archive.writestr("corpus.txt", "\n".join(["[", *lines, "]"]))
    seen: list[list[str]] = []
    for num_workers in (0, 2):
        cwd = tmp_path / f"workers-{num_workers}"
        cwd.mkdir()
        shutil.copy(tmp_path / "corpus.zip", cwd)
        run_rnn(str(write_config(cwd / "my.config", CONFIG.format(num_workers=num_workers))), cwd=cwd)
        seen.append(sorted((cwd / "seen.txt").read_text().splitlines()))
    assert len(seen[0]) == 12 + 2 * 4
    assert seen[0] == seen[1]
