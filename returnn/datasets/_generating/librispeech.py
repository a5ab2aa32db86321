"""
LibriSpeech in the layout as downloaded.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy

from returnn.datasets._basic.corpus_facts import files_of_folder
from returnn.datasets._basic.epoch_wise_filter import EpochRanges, EpochWiseFilter, check_ranges, options_of_epoch
from returnn.datasets._basic.jump import are_plain_functions
from returnn.datasets._generating.librispeech_files import read_corpus
from returnn.datasets.basic import DatasetSeq
from returnn.datasets.indexed import IndexedDataset
from returnn.datasets.seq_order import SeqOrder, fixed_random_subset
from returnn.datasets.util.feature_extraction import ExtractAudioFeatures
from returnn.datasets.util.post_processing import get_post_processor_function
from returnn.datasets.util.vocabulary import Vocabulary
from returnn.errors import DataFileError, DatasetError, DatasetOptionError, UserError
from returnn.util.cache_manager import cf

__all__ = ["LibriSpeechCorpus"]

# Classes of the vocabulary by option.
_TARGETS_CLASSES = {"targets": None, "chars": "CharacterTargets", "bpe": "BytePairEncoding"}


class LibriSpeechCorpus(IndexedDataset):
    """
    LibriSpeech in the directory layout (or zips) as downloaded.

    Data keys: "raw" (the text, 0-d object array), "data" (features, float32 [time, dim]; a 0-d zero without the option
    audio), and "classes" (labels, int32 [labels]) with targets, chars or bpe.
    """

    def __init__(
        self,
        path: str,
        prefix: str,
        audio: Mapping[str, Any] | None,
        orth_post_process: Any = None,
        targets: Mapping[str, Any] | Vocabulary | None = None,
        chars: Mapping[str, Any] | None = None,
        bpe: Mapping[str, Any] | None = None,
        use_zip: bool = False,
        use_ogg: bool = False,
        use_cache_manager: bool = False,
        fixed_random_subset: int | float | None = None,
        epoch_wise_filter: EpochRanges | None = None,
        name: str | None = None,
        seq_tag_format: str = "%(subdir)s-%(speaker)i-%(chapter)i-%(seq)04i",
        *,
        random_state_per_seq: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Any: options of other classes.

        :param path: directory with ``train-clean-100`` and so on, or ``train-clean-100.zip``
        :param prefix: "train", "dev", "test", "train-clean", "dev-other", ...
        :param audio: options of :class:`ExtractAudioFeatures`; {}: the defaults. None: no audio
        :param orth_post_process: function str -> str, name of a cleaner or list of these, see
            :func:`get_post_processor_function`; applied to the text. The orderings by length take the original text
        :param targets: options of :func:`Vocabulary.create_vocab`, or a vocabulary. None: no labels
        :param chars: instead of targets: options of CharacterTargets
        :param bpe: instead of targets: options of BytePairEncoding
        :param use_zip: read PREFIX*.zip
        :param use_ogg: audio files end with .flac.ogg
        :param use_cache_manager: read local copies of the zip (or audio) files, made by :func:`returnn.util.basic.cf`
        :param fixed_random_subset: number or fraction of the sequences
        :param epoch_wise_filter: (first, last epoch) -> {"subdirs", "max_mean_len", "use_new_filter"}
        :param name: default "prefix:PREFIX"
        :param seq_tag_format: of the sequence tags
        :param random_state_per_seq: as for :class:`returnn.datasets.audio.OggZipDataset`
        :param kwargs: see :class:`Dataset`
        """
        super().__init__(name=name or f"prefix:{prefix}", **kwargs)
        self.path, self.prefix, self.seq_tag_format = path, prefix, seq_tag_format
        # What was given, also for copies in other processes; self.targets is the vocabulary.
        self.audio, self._targets, self.chars, self.bpe = audio, targets, chars, bpe
        self._fixed_random_subset = fixed_random_subset
        self.orth_post_process = orth_post_process
        self.use_zip, self.use_ogg, self.use_cache_manager = use_zip, use_ogg, use_cache_manager
        self.epoch_wise_filter = epoch_wise_filter
        self.random_state_per_seq = random_state_per_seq
        if epoch_wise_filter:
            check_ranges(epoch_wise_filter, further_options=("subdirs", "use_new_filter"))
        self.targets = self._make_targets({"targets": targets, "chars": chars, "bpe": bpe})
        self.feature_extractor = self._make_feature_extractor()
        self._post_process = get_post_processor_function(orth_post_process) if orth_post_process else None
        self._check_location()
        try:
            self._corpus = read_corpus(
                path, prefix, use_zip=use_zip, use_ogg=use_ogg, cached=cf if use_cache_manager else None
            )
        except DataFileError as exc:
            raise DataFileError(f"{self._where()}: {exc}") from exc
        if fixed_random_subset:
            self._set_fixed_random_subset(fixed_random_subset)
        self.num_inputs = 0
        self.num_outputs = {"raw": {"dtype": "string", "shape": ()}}
        if self.feature_extractor is not None:
            self.num_inputs = self.feature_extractor.get_feature_dimension()
            self.num_outputs["data"] = [self.num_inputs, 3 if self.feature_extractor.num_channels else 2]
        if self.targets is not None:
            self.num_outputs["classes"] = [self.targets.num_labels, 1]
            self.labels["classes"] = self.targets.labels

    def _make_targets(self, options: Mapping[str, Mapping[str, Any] | Vocabulary | None]) -> Vocabulary | None:
        given = [key for key, value in options.items() if value is not None]
        if not given:
            return None
        if len(given) > 1:
            raise DatasetOptionError(
                self._describe(f"only one of the options {given} is possible", todo="Remove the others")
            )
        opts = options[given[0]]
        class_name = _TARGETS_CLASSES[given[0]]
        if class_name is not None and isinstance(opts, Mapping):
            opts = {"class": class_name, **opts}
        return Vocabulary.from_option(opts, option=given[0], where=self._where())

    def _make_feature_extractor(self) -> ExtractAudioFeatures | None:
        if self.audio is None:
            return None
        if not isinstance(self.audio, Mapping) or "random_state" in self.audio:
            expected = "dict of options without random_state, or None"
            raise DatasetOptionError(self._describe("option 'audio' is invalid", expected=expected, got=self.audio))
        try:
            return ExtractAudioFeatures(random_state=numpy.random.RandomState(1), **self.audio)
        except TypeError as exc:
            if isinstance(exc, UserError) or "keyword" not in str(exc):
                raise
            raise DatasetOptionError(self._describe(f"option 'audio' is invalid: {exc}")) from exc

    def _set_fixed_random_subset(self, subset: int | float) -> None:
        idxs = fixed_random_subset(range(len(self._corpus)), subset, where=self._where())
        self._corpus = self._corpus.take(numpy.array(idxs, dtype=numpy.int64))

    def _check_location(self) -> None:
        if self.prefix.split("-")[0] not in ("train", "dev", "test"):
            raise DatasetError(
                self._describe('option "prefix" is invalid', expected="train..., dev... or test...", got=self.prefix)
            )
        wanted = os.path.join(self.path, "train-clean-100" + (".zip" if self.use_zip else ""))
        if not os.path.exists(wanted):
            raise DataFileError(f"{self._where()}: {wanted!r} does not exist. Check the option path.")

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """See :func:`Dataset.init_seq_order`."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        seed = self._get_random_seed_for_epoch(epoch=epoch)
        if self.feature_extractor is not None:
            self.feature_extractor.random_state = numpy.random.RandomState(seed)
        if self.targets is not None:
            self.targets.set_random_seed(seed)
        return True

    def _lens_for_order(self) -> numpy.ndarray:
        """:return: number of characters of the original texts"""
        return self._corpus.num_chars

    def _order_of_epoch(self, epoch: int | None) -> SeqOrder:
        order = super()._order_of_epoch(epoch)
        for opts in options_of_epoch(self.epoch_wise_filter or {}, epoch):
            order = self._filter_order_by(opts, numpy.asarray(order, dtype=numpy.int64))
            if not len(order):
                raise DatasetError(f"{self!r}: no sequences left after epoch_wise_filter {opts!r}.")
        return order

    def _filter_order_by(self, opts: Any, order: numpy.ndarray) -> SeqOrder:
        """:param opts: of an epoch range. Any: each option has its own type"""
        if opts.get("subdirs") is not None:
            wanted = numpy.array([subdir in set(opts["subdirs"]) for subdir in self._corpus.subdirs])
            order = order[wanted[self._corpus.subdir_idx[order]]]
        max_mean_len = opts.get("max_mean_len")
        if not max_mean_len or not len(order):
            return order
        if opts.get("use_new_filter"):
            return EpochWiseFilter.filter_epoch(
                {"max_mean_len": max_mean_len}, order, self._corpus.num_chars, self.name
            )
        lens = self._corpus.num_chars[order]
        order = order[numpy.lexsort((order, lens))]
        means = numpy.cumsum(self._corpus.num_chars[order]) / numpy.arange(1, len(order) + 1)
        low, high = 1, len(order) + 1
        while True:
            mid = (low + high) // 2
            if means[mid - 1] <= max_mean_len:
                return order[:mid]
            if mid <= 1:
                return order[:0]
            high = mid

    def _corpus_tags(self, corpus_idxs: numpy.ndarray) -> list[str]:
        return [self._corpus_tag(idx) for idx in corpus_idxs.tolist()]

    def _corpus_tag(self, corpus_idx: int) -> str:
        speaker, chapter, seq = self._corpus.seq_name[corpus_idx].tolist()
        subdir = self._corpus.subdirs[self._corpus.subdir_idx[corpus_idx]]
        return self.seq_tag_format % {"subdir": subdir, "speaker": speaker, "chapter": chapter, "seq": seq}

    def corpus_files(self) -> Iterable[str]:
        """See :func:`Dataset.corpus_files`."""
        return [name for name in files_of_folder(self.path) if name.endswith(".zip")] if self.use_zip else []

    def known_corpus_lens(self) -> Mapping[str, numpy.ndarray]:
        """See :func:`Dataset.known_corpus_lens`."""
        return {"characters": self._corpus.num_chars}

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """See :func:`Dataset.get_total_num_seqs`."""
        return len(self._corpus)

    def finish_epoch(self, *, free_resources: bool = False) -> None:
        """
        :param free_resources: also close the zip files
        """
        super().finish_epoch(free_resources=free_resources)
        if free_resources:
            self._corpus.close()

    def _is_same_for_any_start(self) -> bool:
        per_seq = bool(self._random_per_seq if self.random_state_per_seq is None else self.random_state_per_seq)
        if self.feature_extractor is not None and not self.feature_extractor.can_jump(per_seq=per_seq):
            return False
        if self.targets is not None and self.targets.is_random and not per_seq:
            return False
        return are_plain_functions(self.orth_post_process)

    def _load_seq(self, seq_idx: int, corpus_idx: int) -> DatasetSeq:
        tag = self._corpus_tag(corpus_idx)
        if self._random_per_seq if self.random_state_per_seq is None else self.random_state_per_seq:
            self._seed_of_seq(seq_idx, tag)
        text = self._corpus.text[corpus_idx]
        if self._post_process is not None:
            text = self._post_process(text)
        raw = numpy.empty((), dtype=object)
        raw[()] = text
        features: dict[str, numpy.ndarray] = {"raw": raw, "data": numpy.array(0.0)}
        if self.feature_extractor is not None:
            content = io.BytesIO(self._corpus.read_audio(corpus_idx))
            features["data"] = self.feature_extractor.get_audio_features_from_raw_bytes(content, seq_name=tag)
        if self.targets is not None:
            features["classes"] = self._get_labels(text, tag)
        return DatasetSeq(seq_idx=seq_idx, features=features, seq_tag=tag)

    def _seed_of_seq(self, seq_idx: int, tag: str) -> None:
        if self.feature_extractor is not None:
            self.feature_extractor.random_state = self.get_seq_random_state(seq_idx, tag)
        if self.targets is not None:
            state = self.get_seq_random_state(seq_idx, tag + "\0targets")
            self.targets.set_random_seed(int(state.randint(1 << 31)))

    def _get_labels(self, text: str, tag: str) -> numpy.ndarray:
        assert self.targets is not None
        try:
            return numpy.array(self.targets.get_seq(text), dtype=numpy.int32)
        except DatasetError as exc:
            exc.args = (f"{exc.args[0]} (In the text of sequence {tag!r} of {self._where()}.)", *exc.args[1:])
            raise
