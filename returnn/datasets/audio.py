"""OggZipDataset: audio files and their transcriptions in zip files."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy

from returnn.datasets._audio.corpus import OggZipCorpus, load_corpus
from returnn.datasets._audio.features.waveform import is_cut_ogg
from returnn.datasets._audio.sources import check_sources, get_sources
from returnn.datasets._audio.subset import check_subset_option, filter_by_segment_file, random_subset
from returnn.datasets._basic.epoch_wise_filter import EpochRanges, EpochWiseFilter
from returnn.datasets._basic.jump import are_plain_functions, reads_as_its_class
from returnn.datasets._basic.predefined_order import predefined_order
from returnn.datasets._hdf.tag_table import TagTable
from returnn.datasets.basic import DatasetSeq
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.util.feature_extraction import ExtractAudioFeatures
from returnn.datasets.util.post_processing import get_post_processor_function
from returnn.datasets.util.vocabulary import Vocabulary
from returnn.errors import DatasetError, DatasetOptionError, UnknownDataKeyError, UserError, describe
from returnn.log import log
from returnn.util.cache_manager import cf
from returnn.util.markers import OptionalNotImplementedError

__all__ = ["OggZipDataset"]

_RAW = "raw"
_ORTH = "orth"
# Of one kind, by one process.
_MAX_WARNINGS = 5


class OggZipDataset(CachedDataset2):
    """
    Sequences of one or more zip files, as ``tools/bliss-to-ogg-zip.py`` writes them. ``NAME.zip`` has the member
    ``NAME.txt``: a Python literal, a list of dicts with text (str), duration (float, seconds), file (audio, below
    ``NAME/``; any format of libsndfile) and seq_name (str, the tag).

    Data keys: "data" (features, float32 [time, dim]) if there is the option audio, "classes" (labels, int32 [labels])
    if there is the option targets, "orth" (UTF-8 bytes of the text, uint8 [bytes]), "raw" (the text, 0-d string array).

    The texts are read at the first use, and audio files one by one. The orderings by length take the duration in
    hundredths of a second.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        audio: Mapping[str, Any] | None,
        targets: Mapping[str, Any] | Vocabulary | None,
        targets_post_process: Any = None,
        use_cache_manager: bool = False,
        segment_file: str | None = None,
        zip_audio_files_have_name_as_prefix: bool = True,
        fixed_random_subset: float | int | None = None,
        fixed_random_subset_seed: int = 42,
        epoch_wise_filter: EpochRanges | EpochWiseFilter | None = None,
        *,
        content_name: str | Sequence[str] | None = None,
        resolve_symlink_for_name: bool = False,
        random_state_per_seq: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Any: options of other classes.

        :param path: zip file, or several; ``NAME.txt.gz`` is the list of sequences for ``NAME.zip`` instead of the one in
            it. Or one directory DIR with audio files, and the list DIR.txt beside it
        :param audio: options of :class:`ExtractAudioFeatures`; {}: the defaults. None: no audio
        :param targets: options of :func:`Vocabulary.create_vocab`, or a vocabulary. None: no labels
        :param targets_post_process: function str -> str, name of a cleaner or list of these, see
            :func:`get_post_processor_function`; applied to the text before it is turned into labels
        :param use_cache_manager: read local copies, made by :func:`returnn.util.basic.cf`
        :param segment_file: text (or .gz) with one tag per line: only these sequences, which are then the whole corpus
        :param zip_audio_files_have_name_as_prefix: the audio files are below ``NAME/`` in the zip file
        :param fixed_random_subset: > 0 and < 1: fraction, or int: number of sequences, drawn once; these are the corpus
        :param fixed_random_subset_seed: of that
        :param epoch_wise_filter: ``{(first epoch, last epoch or None): {"max_mean_len": hundredths of a second}}``
        :param content_name: NAME, if it is not the name of the file; one for all paths, or one per path
        :param resolve_symlink_for_name: NAME is the name of the file behind a symbolic link
        :param random_state_per_seq: random draws (of audio, or of the vocabulary) depend on epoch, position and tag of
            the sequence only, thus not on the number of workers. False: one stream per epoch, in the order of loading,
            as in RETURNN. None: True in the data pipeline, False elsewhere
        :param kwargs: see :class:`Dataset`
        :raises DatasetError: for an invalid value
        """
        self.paths, self._sources = get_sources(
            path,
            content_name=content_name,
            resolve_symlink_for_name=resolve_symlink_for_name,
            use_cache_manager=use_cache_manager,
            where=f"OggZipDataset {kwargs['name']!r}" if kwargs.get("name") else "OggZipDataset",
        )
        kwargs["name"] = kwargs.get("name") or self._sources[0].content_name
        super().__init__(**kwargs)
        self._path = path
        self._audio = audio
        self._targets = targets
        self._targets_post_process = targets_post_process
        self._use_cache_manager = use_cache_manager
        self._segment_file = segment_file
        self._zip_audio_files_have_name_as_prefix = zip_audio_files_have_name_as_prefix
        self._fixed_random_subset = check_subset_option(fixed_random_subset, where=self._where())
        self._fixed_random_subset_seed = fixed_random_subset_seed
        self._epoch_wise_filter = epoch_wise_filter
        self._content_name = content_name
        self._resolve_symlink_for_name = resolve_symlink_for_name
        self._random_state_per_seq = random_state_per_seq
        self._filter: EpochWiseFilter | None = None
        if epoch_wise_filter is not None:
            self._filter = (
                epoch_wise_filter
                if isinstance(epoch_wise_filter, EpochWiseFilter)
                else EpochWiseFilter(
                    epoch_wise_filter, debug_msg_prefix=f"OggZipDataset {self.name!r}, epoch_wise_filter"
                )
            )
        self.feature_extractor = self._make_feature_extractor()
        self.targets = (
            None if targets is None else Vocabulary.from_option(targets, option="targets", where=self._where())
        )
        self._post_process = get_post_processor_function(targets_post_process) if targets_post_process else None
        self.num_outputs = {}
        self.labels = {}
        if self.feature_extractor is not None:
            num_axes = 3 if self.feature_extractor.num_channels else 2
            self.num_outputs["data"] = [self.feature_extractor.get_feature_dimension(), num_axes]
        if self.targets is not None:
            self.num_outputs["classes"] = [self.targets.num_labels, 1]
            self.labels["classes"] = self.targets.labels
        self.num_inputs = self.num_outputs["data"][0] if "data" in self.num_outputs else 0
        self._keys = [key for key in ("data", "classes") if key in self.num_outputs] + [_ORTH, _RAW]
        self.num_outputs[_ORTH] = [256, 1]
        self.num_outputs[_RAW] = {"dtype": "string", "shape": ()}
        self.labels[_ORTH] = [chr(i) for i in range(256)]
        self._corpus: OggZipCorpus | None = None
        self._num_cut_audio = 0
        self._order: numpy.ndarray | range | Sequence[int] | None = None

    def _make_feature_extractor(self) -> ExtractAudioFeatures | None:
        if self._audio is None:
            return None
        if not isinstance(self._audio, Mapping):
            raise DatasetOptionError(
                self._describe('option "audio" is invalid', expected="dict of options, or None", got=self._audio)
            )
        if "random_state" in self._audio:
            raise DatasetOptionError(
                self._describe(
                    'option "audio": random_state is set by the dataset', todo="Remove it, see random_state_per_seq"
                )
            )
        try:
            return ExtractAudioFeatures(random_state=numpy.random.RandomState(1), **self._audio)
        except TypeError as exc:
            if isinstance(exc, UserError) or "keyword" not in str(exc):
                raise
            raise DatasetOptionError(self._describe(f'option "audio" is invalid: {exc}')) from exc

    # Corpus

    def check_corpus(self) -> None:
        """See :func:`Dataset.check_corpus`. Also that the files are there. Does not read them."""
        check_sources(self._sources, where=self._where())
        super().check_corpus()

    def _require_corpus(self) -> OggZipCorpus:
        """:return: the corpus, after the options that select sequences; read at the first call"""
        if self._corpus is None:
            corpus = load_corpus(
                self._sources,
                with_audio=self.feature_extractor is not None,
                name_is_prefix=self._zip_audio_files_have_name_as_prefix,
                cached=cf if self._use_cache_manager else None,
            )
            if self._segment_file is not None:
                corpus = filter_by_segment_file(corpus, self._segment_file, where=self._where())
            if self._fixed_random_subset is not None:
                corpus = random_subset(
                    corpus, self._fixed_random_subset, seed=self._fixed_random_subset_seed, where=self._where()
                )
            self._corpus = corpus
        return self._corpus

    def corpus_files(self) -> Iterable[str]:
        """See :func:`Dataset.corpus_files`."""
        return [path for source in self._sources for path in (source.zip_path, source.meta_path) if path]

    def known_corpus_lens(self) -> Mapping[str, numpy.ndarray]:
        """See :func:`Dataset.known_corpus_lens`."""
        return {} if self._corpus is None else {"hundredths of a second": self._corpus.seq_lens()}

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """
        :param fast: raise instead of reading files
        :return: number of sequences after segment_file and fixed_random_subset
        """
        if fast and self._corpus is None:
            raise OptionalNotImplementedError(
                f"{self!r}: the number of sequences is not known before the texts are read"
            )
        return len(self._require_corpus())

    def get_all_tags(self) -> list[str]:
        """:return: after segment_file and fixed_random_subset"""
        return self._require_corpus().tags.to_list()

    @property
    def tag_table(self) -> TagTable:
        """:return: tags after segment_file and fixed_random_subset"""
        return self._require_corpus().tags

    def have_get_corpus_seq(self) -> bool:
        """:return: True"""
        return True

    def get_corpus_seq(self, corpus_seq_idx: int) -> DatasetSeq:
        """
        :param corpus_seq_idx: position in the corpus, after segment_file and fixed_random_subset
        :return: with seq_idx = corpus_seq_idx
        """
        num = len(self._require_corpus())
        if not 0 <= corpus_seq_idx < num:
            raise DatasetError(f"{self!r}: corpus sequence {corpus_seq_idx} does not exist, there are {num}.")
        return self._load_seq(int(corpus_seq_idx), int(corpus_seq_idx))

    # Order

    def supports_seq_order_sorting(self) -> bool:
        """:return: True"""
        return True

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """
        See :func:`Dataset.init_seq_order`. Without any argument, nothing is read, and there are no sequences.

        :param epoch: from 1
        :param seq_list: tags, instead of the ordering of the options; may repeat
        :param seq_order: corpus indices, likewise
        """
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        seed = self._get_random_seed_for_epoch(epoch=epoch)
        if self.feature_extractor is not None:
            self.feature_extractor.random_state = numpy.random.RandomState(seed)
        if self.targets is not None:
            self.targets.set_random_seed(seed)
        if epoch is None and seq_list is None and seq_order is None:
            self._order = []
        else:
            order = predefined_order(seq_list, seq_order, order_of_tags=self._find_tags)
            self._order = self._own_order(epoch) if order is None else self._checked_order(order)
        self._num_seqs = len(self._order)
        return True

    def _find_tags(self, tags: Sequence[str]) -> numpy.ndarray:
        return self._require_corpus().tags.lookup(tags, dataset_name=self.name)

    def _checked_order(self, order: numpy.ndarray) -> numpy.ndarray:
        num = len(self._require_corpus())
        if len(order) and (order.min() < 0 or order.max() >= num):
            bad = order[(order < 0) | (order >= num)]
            raise DatasetError(
                self._describe(
                    "seq_order has corpus indices that do not exist", expected=f"0 <= idx < {num}", got=bad[:5].tolist()
                )
            )
        return order

    def _own_order(self, epoch: int | None) -> numpy.ndarray | range | Sequence[int]:
        corpus = self._require_corpus()
        seq_lens = corpus.seq_lens()
        lens = self._lens_for_order_of_epoch(seq_lens)
        order = self.get_seq_order_for_epoch(epoch=epoch, num_seqs=len(corpus), get_seq_len=lens)
        if self._filter is not None:
            order = self._filter.filter(epoch=epoch, seq_order=order, get_seq_len=seq_lens)
        return order

    def _require_order(self) -> numpy.ndarray | range | Sequence[int]:
        if self._order is None:
            raise DatasetError(f"{self!r}: no order yet. Call init_seq_order(epoch=...) first.")
        return self._order

    def get_current_seq_order(self) -> numpy.ndarray | range | Sequence[int]:
        """:return: corpus indices of the current epoch"""
        return self._require_order()

    def have_corpus_seq_idx(self) -> bool:
        """:return: True"""
        return True

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """:return: corpus index of a sequence of the current epoch"""
        return int(self._require_order()[sorted_seq_idx])

    def get_tag(self, sorted_seq_idx: int) -> str:
        """:return: tag of a sequence of the current epoch, without loading it"""
        return self._require_corpus().tags[int(self._require_order()[sorted_seq_idx])]

    def get_seq_tags(self, seq_idxs: numpy.ndarray | Sequence[int]) -> list[str]:
        """:return: tags of many sequences of the current epoch"""
        order = numpy.asarray(self._require_order(), dtype=numpy.int64)
        return self._require_corpus().tags.select(order[numpy.asarray(seq_idxs, dtype=numpy.int64)])

    def get_estimated_seq_length(self, seq_idx: int) -> int:
        """:return: hundredths of a second, without loading"""
        duration = self._require_corpus().duration[[int(self._require_order()[seq_idx])]]
        return int(OggZipCorpus.lens_of_durations(duration)[0])

    def get_estimated_seq_lengths(self) -> numpy.ndarray:
        """:return: int64 [num_seqs], hundredths of a second, without loading"""
        return self._require_corpus().seq_lens()[numpy.asarray(self._require_order(), dtype=numpy.int64)]

    def get_epoch_seq_lens(self, key: str) -> numpy.ndarray | None:
        """:return: bytes of each text for "orth"; those of the other keys are not known before loading"""
        if key != _ORTH:
            return None
        order = numpy.asarray(self._require_order(), dtype=numpy.int64)
        lens: numpy.ndarray = self._require_corpus().text.lens[order]
        return lens

    # Data

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        order = self._require_order()
        if seq_idx >= len(order):
            return None
        return self._load_seq(seq_idx, int(order[seq_idx]))

    def _load_seq(self, seq_idx: int, corpus_idx: int) -> DatasetSeq:
        corpus = self._require_corpus()
        tag = corpus.tags[corpus_idx]
        per_seq = self._random_per_seq if self._random_state_per_seq is None else self._random_state_per_seq
        text_bytes = corpus.text.get_bytes(corpus_idx)
        text = text_bytes.decode("utf8")
        features: dict[str, numpy.ndarray] = {}
        if self.feature_extractor is not None:
            if per_seq:
                self.feature_extractor.random_state = self.get_seq_random_state(seq_idx, tag)
            features["data"] = self._load_audio(corpus, corpus_idx, tag)
        if self.targets is not None:
            if per_seq:
                state = self.get_seq_random_state(seq_idx, tag + "\0targets")
                self.targets.set_random_seed(int(state.randint(1 << 31)))
            features["classes"] = self._get_labels(text, tag)
        features[_ORTH] = numpy.frombuffer(bytearray(text_bytes), dtype=numpy.uint8)
        features[_RAW] = numpy.array(text)
        return DatasetSeq(seq_idx=seq_idx, features=features, seq_tag=tag)

    def supports_jump(self) -> bool:
        """See :func:`Dataset.supports_jump`. Not if random draws are one stream per epoch: see random_state_per_seq."""
        per_seq = bool(self._random_per_seq if self._random_state_per_seq is None else self._random_state_per_seq)
        if self.feature_extractor is not None and not self.feature_extractor.can_jump(per_seq=per_seq):
            return False
        if self.targets is not None and self.targets.is_random and not per_seq:
            return False
        return reads_as_its_class(self) and are_plain_functions(self._targets_post_process)

    def _load_audio(self, corpus: OggZipCorpus, corpus_idx: int, tag: str) -> numpy.ndarray:
        assert self.feature_extractor is not None
        data = corpus.read_audio(corpus_idx)
        if is_cut_ogg(data):
            self._warn_about_cut_audio(tag)
        try:
            return self.feature_extractor.get_audio_features_from_raw_bytes(io.BytesIO(data), seq_name=tag)
        except DatasetError as exc:
            exc.args = (f"{exc.args[0]} (In {corpus.describe_audio(corpus_idx)}.)", *exc.args[1:])
            raise

    def _warn_about_cut_audio(self, tag: str) -> None:
        self._num_cut_audio += 1
        if self._num_cut_audio <= _MAX_WARNINGS:
            print(
                f"Warning: {self._where()}: the audio file of sequence {tag!r} is cut off, and only a part of it can be read. "
                "Write the data again." + (" No more such warnings." if self._num_cut_audio == _MAX_WARNINGS else ""),
                file=log.v2,
            )

    def _get_labels(self, text: str, tag: str) -> numpy.ndarray:
        assert self.targets is not None
        if self._post_process is not None:
            text = self._post_process(text)
        try:
            return numpy.array(self.targets.get_seq(text), dtype=numpy.int32)
        except DatasetError as exc:
            exc.args = (f"{exc.args[0]} (In the text of sequence {tag!r} of {self._where()}.)", *exc.args[1:])
            raise

    # What data there is

    def get_data_keys(self) -> list[str]:
        """:return: "data" and "classes" as configured, "orth", "raw" """
        return list(self._keys)

    def get_target_list(self) -> list[str]:
        """:return: all keys but "data" """
        return [key for key in self._keys if key != "data"]

    def _check_key(self, key: str) -> None:
        if key in self._keys:
            return
        option = {"data": "audio", "classes": "targets"}.get(key)
        raise UnknownDataKeyError(
            describe(
                f"There is no data key {key!r}, only {self._keys}",
                where=self._where(),
                todo=f"Set the option {option} for it" if option else None,
            )
        )

    def get_data_dim(self, key: str) -> int:
        """:return: feature dimension, or number of classes; 0 for "raw" """
        self._check_key(key)
        return 0 if key == _RAW else int((self.num_outputs or {})[key][0])

    def get_data_dtype(self, key: str) -> str:
        """:return: "float32" for "data", "int32" for "classes", "uint8" for "orth", "string" for "raw" """
        self._check_key(key)
        return {"data": "float32", "classes": "int32", _ORTH: "uint8", _RAW: "string"}[key]

    def is_data_sparse(self, key: str) -> bool:
        """:return: True for "classes" and "orth" """
        self._check_key(key)
        return key in ("classes", _ORTH)

    def get_data_shape(self, key: str) -> list[int | None]:
        """:return: shape without time"""
        self._check_key(key)
        if key != "data":
            return []
        assert self.feature_extractor is not None
        dim = self.feature_extractor.get_feature_dimension()
        channels = self.feature_extractor.num_channels
        return [channels, dim] if channels else [dim]

    def get_data(self, seq_idx: int, key: str) -> numpy.ndarray:
        """See :func:`Dataset.get_data`."""
        self._check_key(key)
        return super().get_data(seq_idx, key)

    # Life

    def finish_epoch(self, *, free_resources: bool = False) -> None:
        """
        :param free_resources: also close the files and forget the corpus
        """
        super().finish_epoch(free_resources=free_resources)
        if free_resources:
            self._order = None
            self._num_seqs = 0
            if self._corpus is not None:
                self._corpus.close()
                self._corpus = None
