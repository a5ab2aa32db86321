"""
Vocabulary of a SentencePiece model.
"""

from __future__ import annotations

import functools
import os
import random
from typing import Any

from returnn.datasets._vocabulary.base import Vocabulary
from returnn.datasets._vocabulary.label_table import LabelTable
from returnn.datasets._vocabulary.sentencepiece_model import SentencePieceModel
from returnn.datasets._vocabulary.sentencepiece_sampling import SentencePieceSampler
from returnn.errors import DataFileError, DatasetOptionError, OptionError
from returnn.util.optional_import import optional_import

__all__ = ["SentencePieces"]

_PROCESSOR_OPTIONS = (
    "model_file", "model_proto", "out_type", "add_bos", "add_eos", "reverse", "enable_sampling", "nbest_size", "alpha",
)  # fmt: skip
_OWN_OPTIONS = ("control_symbols", "user_defined_symbols", "seq_postfix", "num_labels")

_SAMPLING_DEFAULTS = {"alpha": 0.1, "nbest_size": -1}
_MAX_NBEST = 512


class SentencePieces(Vocabulary):
    """
    Pieces of a SentencePiece model. With ``enable_sampling`` it draws random numbers: see set_random_seed.

    Special labels are those of the model. A worker process loads the model file again.
    """

    # Any: options of different types.
    def __init__(self, **opts: Any) -> None:
        """
        :param opts: to ``sentencepiece.SentencePieceProcessor``: ``model_file`` (path) or ``model_proto`` (bytes),
            ``out_type``, ``add_bos``, ``add_eos``, ``reverse``, ``enable_sampling``, ``nbest_size``, ``alpha``.
            As for Vocabulary: ``control_symbols``, ``user_defined_symbols``, ``seq_postfix``, ``num_labels``
        :raises MissingDependencyError: the package sentencepiece is not installed
        :raises DatasetOptionError: unknown option, or no model
        :raises DataFileError: the model cannot be loaded
        """
        unknown = [name for name in opts if name not in _PROCESSOR_OPTIONS + _OWN_OPTIONS]
        if unknown:
            raise DatasetOptionError(
                f"SentencePieces has no option {unknown[0]!r}, it has {', '.join(_PROCESSOR_OPTIONS + _OWN_OPTIONS)}."
                " Special labels as bos_label are those of the model."
            )
        given = [name for name in ("model_file", "model_proto") if opts.get(name) is not None]
        if len(given) != 1:
            raise DatasetOptionError(
                f"SentencePieces: expected one of the options model_file and model_proto, got {given}."
            )
        if given == ["model_file"]:
            opts["model_file"] = os.fspath(opts["model_file"])
        self._opts = opts
        self.vocab_file = opts.get("model_file")
        self.num_labels = len(self._processor)
        self._init_checks(num_labels=opts.get("num_labels"), seq_postfix=opts.get("seq_postfix"))
        self._init_special_ids()
        self._label_regex = None
        self._rnd = random.Random(0)
        if self.is_random:
            self._check_sampling_options()
            self._sampler  # noqa: B018  # check the model

    @functools.cached_property
    def _processor(self) -> Any:
        """Any: the package has no types."""
        sentencepiece = optional_import("sentencepiece", needed_by="the vocabulary class SentencePieces")
        kwargs = {name: value for name, value in self._opts.items() if name in _PROCESSOR_OPTIONS and value is not None}
        try:
            return sentencepiece.SentencePieceProcessor(**kwargs)
        except (OSError, RuntimeError) as exc:
            source = repr(self.vocab_file) if self.vocab_file is not None else "model_proto"
            raise DataFileError(f"Cannot load the SentencePiece model {source}: {exc}. Check the path.") from exc

    @functools.cached_property
    def _table(self) -> LabelTable:  # type: ignore[override]  # lazy here
        labels = self._processor.id_to_piece(list(range(self.num_labels)))
        return LabelTable.from_list(labels)

    def _init_special_ids(self) -> None:
        processor = self._processor
        ids = [processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id()]
        unknown, bos, eos, pad = (idx if idx >= 0 else None for idx in ids)
        self.unknown_label_id, self.bos_label_id, self.eos_label_id, self.pad_label_id = unknown, bos, eos, pad
        self.unknown_label = None if unknown is None else processor.id_to_piece(unknown)
        for option in ("control_symbols", "user_defined_symbols"):
            symbols = {
                name: self._special_id(f"{option}[{name!r}]", label)
                for name, label in (self._opts.get(option) or {}).items()
            }
            setattr(self, f"{option[:-1]}_ids", symbols)

    def __getstate__(self) -> dict[str, Any]:
        """Without the model; it is loaded at first use. Any: attributes."""
        return {name: value for name, value in vars(self).items() if name not in ("_processor", "_table", "_sampler")}

    def __repr__(self) -> str:
        shown = dict(self._opts)
        if shown.get("model_proto") is not None:
            shown["model_proto"] = f"<{len(shown['model_proto'])} bytes>"
        return f"SentencePieces({shown})"

    def is_id_valid(self, idx: int) -> bool:
        """:return: whether there is a piece with that id which the model uses"""
        return super().is_id_valid(idx) and not self._processor.is_unused(idx)

    @property
    def is_random(self) -> bool:
        """:return: whether it samples"""
        return bool(self._opts.get("enable_sampling"))

    def set_random_seed(self, seed: int) -> None:
        """
        Has an effect with ``enable_sampling``: what is drawn then depends only on the seed and the calls after this.

        :param seed: 0..2**32-1
        """
        if not 0 <= seed < 2**32:
            raise OptionError("seed", expected="int in 0..2**32-1", got=seed)
        self._rnd.seed(int(seed))

    def get_seq(self, sentence: str) -> list[int]:
        """
        :param sentence: any text
        :return: ids of its pieces, with seq_postfix
        """
        if self.is_random:
            return self._sample(sentence) + self.seq_postfix
        return self._processor.encode(sentence, out_type=int) + self.seq_postfix

    @functools.cached_property
    def _sampler(self) -> SentencePieceSampler:
        source = repr(self.vocab_file) if self.vocab_file is not None else "model_proto"
        model = SentencePieceModel.parse(self._processor.serialized_model_proto(), source=source)
        return SentencePieceSampler(model, self._processor.normalize, source=source)

    def _sample(self, sentence: str) -> list[int]:
        ids = self._sampler.sample(
            sentence,
            alpha=self._sampling_option("alpha"),
            nbest_size=self._sampling_option("nbest_size"),
            rnd=self._rnd,
        )
        if self._opts.get("reverse"):
            ids.reverse()
        begin = [self._processor.bos_id()] if self._opts.get("add_bos") else []
        end = [self._processor.eos_id()] if self._opts.get("add_eos") else []
        return begin + ids + end

    def _sampling_option(self, name: str) -> Any:
        """:return: as given, or the default of the package. Any: int or float"""
        value = self._opts.get(name)
        return _SAMPLING_DEFAULTS[name] if value is None else value

    def _check_sampling_options(self) -> None:
        alpha, nbest_size = self._sampling_option("alpha"), self._sampling_option("nbest_size")
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not alpha >= 0:
            raise OptionError("alpha", expected="float >= 0", got=alpha, where=self._source)
        # The package refuses 0 and 1 too, and has this limit.
        is_valid = isinstance(nbest_size, int) and (nbest_size < 0 or 2 <= nbest_size <= _MAX_NBEST)
        if not is_valid:
            expected = f"int from 2 to {_MAX_NBEST}, or -1 for all"
            raise OptionError("nbest_size", expected=expected, got=nbest_size, where=self._source)
