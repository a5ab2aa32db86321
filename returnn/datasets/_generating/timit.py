"""
TIMIT: audio and phones.
"""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy

from returnn.datasets._generating.timit_phones import PHONES_61, TimitPhones
from returnn.datasets.basic import DatasetSeq
from returnn.datasets.indexed import IndexedDataset
from returnn.datasets.util.feature_extraction import ExtractAudioFeatures
from returnn.errors import DataFileError, DatasetOptionError, NotSupportedError
from returnn.util.fs import open_text

__all__ = ["TimitDataset", "NltkTimitDataset"]

_NLTK_TRAIN_FRACTION = 0.9


class TimitDataset(TimitPhones, IndexedDataset):
    """
    TIMIT, as one gets it from LDC with lower-case names, and lists of its files.

    Data keys: "data" (features, float32 [time, dim]), "classes" (phones, int32 [phones]).
    The orderings by length take the number of audio samples.
    """

    def __init__(
        self,
        timit_dir: str,
        train: bool = True,
        preload: bool = False,
        features: str = "mfcc",
        num_feature_filters: int = 40,
        feature_window_len: float = 0.025,
        feature_step_len: float = 0.010,
        with_delta: bool | int = False,
        norm_mean: Any = None,
        norm_std_dev: Any = None,
        random_permute_audio: Any = None,
        num_phones: int = 61,
        demo_play_audio: bool = False,
        *,
        random_state_per_seq: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """
        :param timit_dir: has ``TIMIT/train/filelist.phn`` and ``TIMIT/test/filelist.core.phn``: one name per line, with or
            without ``.phn``, relative to timit_dir or to the list. Beside NAME.phn is NAME.wav
        :param train: which of the two
        :param preload: keep all audio files in memory
        :param features: as for :class:`ExtractAudioFeatures`
        :param num_feature_filters: likewise
        :param feature_window_len: in seconds
        :param feature_step_len: in seconds
        :param with_delta: as for :class:`ExtractAudioFeatures`
        :param norm_mean: likewise. Any: see there
        :param norm_std_dev: likewise. Any: see there
        :param random_permute_audio: option random_permute of :class:`ExtractAudioFeatures`; None: on for train. Any: see there
        :param num_phones: 61, 48 or 39
        :param demo_play_audio: not available
        :param random_state_per_seq: as for :class:`returnn.datasets.audio.OggZipDataset`
        :param kwargs: see :class:`Dataset`. Any: each has its own type
        :raises DataFileError: a file is missing or broken
        """
        super().__init__(**kwargs)
        if demo_play_audio:
            raise NotSupportedError(f"{self._where()}: the option demo_play_audio is not available. Remove it.")
        self.timit_dir, self.train, self.preload = timit_dir, train, preload
        self.features, self.num_feature_filters = features, num_feature_filters
        self.feature_window_len, self.feature_step_len, self.with_delta = (
            feature_window_len,
            feature_step_len,
            with_delta,
        )
        self.norm_mean, self.norm_std_dev = norm_mean, norm_std_dev
        self.random_permute_audio, self.num_phones = random_permute_audio, num_phones
        self.demo_play_audio, self.random_state_per_seq = demo_play_audio, random_state_per_seq
        self.labels = {"classes": self.get_labels(num_phones)}
        self.feature_extractor = ExtractAudioFeatures(
            window_len=feature_window_len,
            step_len=feature_step_len,
            num_feature_filters=num_feature_filters,
            with_delta=with_delta,
            norm_mean=norm_mean,
            norm_std_dev=norm_std_dev,
            features=features,
            random_permute=train if random_permute_audio is None else random_permute_audio,
            random_state=numpy.random.RandomState(1),
        )
        self.num_inputs = self.feature_extractor.get_feature_dimension()
        self.num_outputs = {"data": [self.num_inputs, 2], "classes": [len(self.labels["classes"]), 1]}
        self._tags: list[str] = []
        # Without ".phn" and ".wav".
        self._paths: list[str] = []
        self._find_files()
        self._read_phones()
        self._audio_files: list[bytes] | None = None

    def _find_files(self) -> None:
        """Fill the tags and paths."""
        parts = ("train", "filelist.phn") if self.train else ("test", "filelist.core.phn")
        list_file = os.path.join(self.timit_dir, "TIMIT", *parts)
        folders = (self.timit_dir, os.path.dirname(list_file))
        with open_text(list_file) as file:
            for lineno, line in enumerate(file, 1):
                tag = line.strip().removesuffix(".phn")
                if not tag:
                    continue
                paths = [os.path.join(folder, tag) for folder in folders]
                path = next((path for path in paths if os.path.exists(path + ".phn")), None)
                if path is None:
                    raise DataFileError(
                        f"{self._where()}: {list_file!r}, line {lineno}: neither {paths[0] + '.phn'!r}"
                        f" nor {paths[1] + '.phn'!r} exists."
                    )
                self._tags.append(tag)
                self._paths.append(path)
        if not self._tags:
            raise DataFileError(f"{self._where()}: {list_file!r} has no names.")

    def _read_phones(self) -> None:
        """As columns: all phones, where each sequence begins, and its number of samples."""
        source_idxs = {phone: idx for idx, phone in enumerate(self.get_labels(61))}
        target_idxs = self.get_label_map(61, self.num_phones)
        idx_of_phone = {phone: target_idxs[source_idxs[phone]] for phone in PHONES_61}
        phones: list[int] = []
        offsets = [0]
        num_samples: list[int] = []
        for path in self._paths:
            end = 0
            with open_text(path + ".phn") as file:
                for lineno, line in enumerate(file, 1):
                    fields = line.split()
                    if len(fields) != 3 or not fields[1].isdigit() or fields[2] not in idx_of_phone:
                        raise DataFileError(
                            f"{self._where()}: {path + '.phn'!r}, line {lineno}: expected 'start end phone', got {line!r}."
                        )
                    end = int(fields[1])
                    idx = idx_of_phone[fields[2]]
                    if idx is not None:
                        phones.append(idx)
            offsets.append(len(phones))
            num_samples.append(end)
        self._phones = numpy.array(phones, dtype=numpy.int32)
        self._offsets = numpy.array(offsets, dtype=numpy.int64)
        self._num_samples = numpy.array(num_samples, dtype=numpy.int64)

    def _read_audio(self, corpus_idx: int) -> bytes:
        filename = self._paths[corpus_idx] + ".wav"
        try:
            with open(filename, "rb") as file:
                return file.read()
        except OSError as exc:
            raise DataFileError(
                f"{self._where()}: cannot read the audio file {filename!r}: {exc.strerror or exc}. Check the corpus."
            ) from exc

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """See :func:`Dataset.init_seq_order`. With preload, the first call reads all audio files."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self.feature_extractor.random_state = numpy.random.RandomState(self._get_random_seed_for_epoch(epoch=epoch))
        if self.preload and self._audio_files is None:
            self._audio_files = [self._read_audio(i) for i in range(len(self._paths))]
        return True

    def _lens_for_order(self) -> numpy.ndarray:
        """:return: number of samples"""
        return self._num_samples

    def corpus_files(self) -> Iterable[str]:
        """See :func:`Dataset.corpus_files`."""
        return [path + suffix for path in self._paths for suffix in (".phn", ".wav")]

    def known_corpus_lens(self) -> Mapping[str, numpy.ndarray]:
        """See :func:`Dataset.known_corpus_lens`."""
        return {"samples": self._num_samples, "classes": numpy.diff(self._offsets)}

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """See :func:`Dataset.get_total_num_seqs`."""
        return len(self._tags)

    def _corpus_tags(self, corpus_idxs: numpy.ndarray) -> list[str]:
        return [self._tags[idx] for idx in corpus_idxs.tolist()]

    def get_data_keys(self) -> list[str]:
        """:return: data and classes"""
        return ["data", "classes"]

    def get_data_dtype(self, key: str) -> str:
        """:return: float32 for data, int32 for classes"""
        return {"data": "float32", "classes": "int32"}.get(key) or super().get_data_dtype(key)

    def _is_same_for_any_start(self) -> bool:
        return self.feature_extractor.can_jump(
            per_seq=bool(self._random_per_seq if self.random_state_per_seq is None else self.random_state_per_seq)
        )

    def _load_seq(self, seq_idx: int, corpus_idx: int) -> DatasetSeq:
        tag = self._tags[corpus_idx]
        if self._random_per_seq if self.random_state_per_seq is None else self.random_state_per_seq:
            self.feature_extractor.random_state = self.get_seq_random_state(seq_idx, tag)
        content = self._audio_files[corpus_idx] if self._audio_files is not None else self._read_audio(corpus_idx)
        return DatasetSeq(
            seq_idx=seq_idx,
            features=self.feature_extractor.get_audio_features_from_raw_bytes(io.BytesIO(content), seq_name=tag),
            targets=self._phones[self._offsets[corpus_idx] : self._offsets[corpus_idx + 1]],
            seq_tag=tag,
        )


class NltkTimitDataset(TimitDataset):
    """
    The sample of TIMIT that NLTK gives: the first 90 % (sorted by name) for train, the rest for test.
    It is not downloaded here.
    """

    _getnewargs_exclude_attrs: ClassVar[frozenset[str]] = frozenset(["timit_dir"])

    def __init__(self, nltk_download_dir: str | None = None, **kwargs: Any) -> None:
        """
        :param nltk_download_dir: has ``corpora/timit``. Default: the environment variable NLTK_DATA, else ~/nltk_data
        :param kwargs: see :class:`TimitDataset`, without timit_dir. Any: each has its own type
        :raises DataFileError: no such folder, or broken
        """
        if "timit_dir" in kwargs:
            raise DatasetOptionError("NltkTimitDataset has no option timit_dir. Set nltk_download_dir.")
        self.nltk_download_dir = nltk_download_dir
        folder = nltk_download_dir or os.environ.get("NLTK_DATA") or os.path.expanduser("~/nltk_data")
        super().__init__(timit_dir=os.path.join(folder, "corpora", "timit"), **kwargs)

    def _find_files(self) -> None:
        paths = sorted(glob.glob(os.path.join(glob.escape(self.timit_dir), "*", "*.phn")))
        if not paths:
            raise DataFileError(
                f"{self._where()}: no files */*.phn in {self.timit_dir!r}. Download them once with"
                " python -c \"import nltk; nltk.download('timit', download_dir='DIR')\", and set nltk_download_dir to DIR."
            )
        num_train = int(len(paths) * _NLTK_TRAIN_FRACTION)
        self._paths = [path.removesuffix(".phn") for path in (paths[:num_train] if self.train else paths[num_train:])]
        self._tags = [os.path.relpath(path, self.timit_dir) for path in self._paths]
