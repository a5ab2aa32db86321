"""
PhoneSeqGenerator: from words to random sequences of allophone states, as a stand-in for alignments.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy

from returnn.datasets._lm.allophones import AllophoneState, StateTying
from returnn.datasets._lm.lexicon import Lemma, Lexicon
from returnn.datasets.util.vocabulary import Vocabulary
from returnn.errors import DatasetOptionError, describe

__all__ = ["PhoneSeqGenerator"]

# Of random sequences: probability of a further phoneme in the word, and of a further word before silence.
_MORE_PHONES = 0.8
_MORE_WORDS = 0.8


class PhoneSeqGenerator:
    """
    Pronunciations, silence and repetitions are drawn at random, in a fixed order of draws from one
    :class:`random.Random`: see :func:`generate_seq`.
    """

    def __init__(
        self,
        lexicon_file: str,
        allo_num_states: int = 3,
        allo_context_len: int = 1,
        state_tying_file: str | None = None,
        add_silence_beginning: float = 0.1,
        add_silence_between_words: float = 0.1,
        add_silence_end: float = 0.1,
        repetition: float = 0.9,
        silence_repetition: float = 0.95,
        *,
        phoneme_vocab_file: str | None = None,
        silence_lemma_orth: str = "[SILENCE]",
        extra_begin_lemma: Lemma | None = None,
        add_extra_begin_lemma: float = 1.0,
        extra_end_lemma: Lemma | None = None,
        add_extra_end_lemma: float = 1.0,
        phon_pick_strategy: Literal["random", "first"] = "random",
    ) -> None:
        """
        :param lexicon_file: Bliss lexicon XML, with a lemma for silence
        :param allo_num_states: HMM states of each phoneme but silence
        :param allo_context_len: phonemes of context in each direction
        :param state_tying_file: lines ``<allophone state> <class>``. Without, the classes are the phonemes
        :param add_silence_beginning: probability
        :param add_silence_between_words: probability
        :param add_silence_end: probability
        :param repetition: probability that a state comes once more
        :param silence_repetition: likewise, of silence
        :param phoneme_vocab_file: vocabulary that gives the indices of the phonemes, instead of the lexicon
        :param silence_lemma_orth: orthography of the lemma for silence
        :param extra_begin_lemma: ``{"phons": [{"phon": "P1 P2"}]}``, before all others
        :param add_extra_begin_lemma: its probability
        :param extra_end_lemma: after all others
        :param add_extra_end_lemma: its probability
        :param phon_pick_strategy: which pronunciation of a lemma
        :raises DatasetOptionError: invalid options
        :raises DataFileError: a file is missing or broken
        """
        if phon_pick_strategy not in ("random", "first"):
            raise DatasetOptionError(
                describe(
                    'phone_info: option "phon_pick_strategy" is invalid',
                    expected='"random" or "first"',
                    got=phon_pick_strategy,
                )
            )
        if phoneme_vocab_file and state_tying_file:
            raise DatasetOptionError("phone_info: give only one of phoneme_vocab_file and state_tying_file.")
        self.lexicon = Lexicon(lexicon_file)
        self.phonemes: list[str] = list(self.lexicon.phoneme_list)
        self.rnd = random.Random(0)
        self.allo_num_states = allo_num_states
        self.allo_context_len = allo_context_len
        self.add_silence_beginning = add_silence_beginning
        self.add_silence_between_words = add_silence_between_words
        self.add_silence_end = add_silence_end
        self.repetition = repetition
        self.silence_repetition = silence_repetition
        for name in ("repetition", "silence_repetition"):
            if not 0 <= getattr(self, name) < 1:
                raise DatasetOptionError(
                    describe(f'phone_info: option "{name}" is invalid', expected="0 <= p < 1", got=getattr(self, name))
                )
        self.state_tying = StateTying(state_tying_file) if state_tying_file else None
        self._phon_pick_strategy = phon_pick_strategy
        self.silence_lemma = self._lemma_of_silence(silence_lemma_orth)
        self._silence_phone: str = self.silence_lemma["phons"][0]["phon"]
        self._extra_begin = self._checked_extra("extra_begin_lemma", extra_begin_lemma)
        self._extra_end = self._checked_extra("extra_end_lemma", extra_end_lemma)
        self._add_extra_begin = add_extra_begin_lemma
        self._add_extra_end = add_extra_end_lemma
        self._vocab = Vocabulary(phoneme_vocab_file, unknown_label=None) if phoneme_vocab_file else None
        self._class_of_phone = {phone: self._phone_class(phone) for phone in self.phonemes}

    def _lemma_of_silence(self, orth: str) -> Lemma:
        lemma = self.lexicon.lemmas.get(orth)
        phones = lemma["phons"][0]["phon"].split() if lemma and lemma["phons"] else []
        if lemma is None or len(phones) != 1:
            raise DatasetOptionError(
                f"phone_info: the lexicon {self.lexicon.filename!r} needs a lemma {orth!r} for silence, with one "
                f"phoneme; it has {phones or 'none'}. Set silence_lemma_orth to its orthography."
            )
        return lemma

    def _checked_extra(self, option: str, lemma: Lemma | None) -> Lemma | None:
        if lemma is None:
            return None
        if not isinstance(lemma, Mapping) or not lemma.get("phons"):
            raise DatasetOptionError(
                describe(f'phone_info: option "{option}"', expected='{"phons": [{"phon": "P1 P2"}]}', got=lemma)
            )
        for phon in lemma["phons"]:
            unknown = [phone for phone in phon["phon"].split() if phone not in self.lexicon.phonemes]
            if unknown:
                raise DatasetOptionError(
                    f'phone_info: option "{option}": phonemes {unknown} are not in the lexicon {self.lexicon.filename!r}.'
                )
        return dict(lemma)

    def _phone_class(self, phone: str) -> int:
        if self._vocab is None:
            return int(self.lexicon.phonemes[phone]["index"])
        idx = self._vocab.label_to_id(phone, None)
        if idx is None:
            raise DatasetOptionError(
                f"phone_info: phoneme {phone!r} of the lexicon is not in the phoneme_vocab_file {self._vocab.vocab_file!r}."
            )
        return idx

    # ---- random numbers

    def set_random_seed(self, seed: int) -> None:
        """Restart the random numbers. :param seed: any"""
        self.rnd.seed(int(seed))

    def _hit(self, probability: float) -> bool:
        """:return: one draw"""
        return self.rnd.random() < probability

    # ---- classes

    def get_class_labels(self) -> list[str]:
        """:return: label of each class: phonemes, or the tied allophone states joined by ``|``"""
        if self.state_tying is not None:
            return ["|".join(sorted(self.state_tying.class_map[i])) for i in range(self.state_tying.num_classes)]
        return list(self._vocab.labels) if self._vocab is not None else list(self.phonemes)

    def seq_to_class_idxs(self, phones: Iterable[AllophoneState], dtype: str = "int32") -> numpy.ndarray:
        """
        :param phones: allophone states
        :param dtype: of the result
        :return: [len(phones)]
        :raises DatasetOptionError: the state tying has no class for one of them
        """
        if self.state_tying is None:
            classes = self._class_of_phone
            return numpy.array([classes[phone.id or ""] for phone in phones], dtype=dtype)
        allo_map = self.state_tying.allo_map
        try:
            return numpy.array([allo_map[phone.format()] for phone in phones], dtype=dtype)
        except KeyError as exc:
            raise DatasetOptionError(
                f"phone_info: the state_tying_file has no class for the allophone state {exc.args[0]!r}. "
                f"It was made for other allo_num_states ({self.allo_num_states}), allo_context_len "
                f"({self.allo_context_len}) or another lexicon."
            ) from None

    # ---- from words to allophone states

    def generate_seq(self, orth: str) -> list[AllophoneState]:
        """
        Order of draws: for each lemma whether it comes and then its pronunciation: the extra begin lemma, silence, the
        words with silence between, silence, the extra end lemma. Then for each state whether it comes once more.

        :param orth: words with blanks between
        :return: allophone states, in random numbers of repetitions
        :raises KeyError: a word is not in the lexicon, nor are its parts between ``/`` or ``-``
        """
        allophones = self._with_context(self._phones_of_lemmas(self._iter_lemmas(orth)))
        return list(self._iter_states(allophones))

    def orth_to_phones(self, orth: str) -> str:
        """
        :param orth: words with blanks between
        :return: phonemes with blanks between, drawn as in :func:`generate_seq`
        """
        return " ".join(phone.id or "" for phone in self._phones_of_lemmas(self._iter_lemmas(orth)))

    def _iter_lemmas(self, orth: str) -> Iterator[Lemma]:
        if self._extra_begin is not None and self._hit(self._add_extra_begin):
            yield self._extra_begin
        if self._hit(self.add_silence_beginning):
            yield self.silence_lemma
        words = orth.split()[::-1]
        while words:
            word = words.pop()
            lemma = self.lexicon.lemmas.get(word)
            if lemma is None:
                separator = "/" if "/" in word else "-"
                parts = [part for part in word.split(separator) if part]
                if separator not in word or not parts:
                    raise KeyError(word)
                words.extend(parts[::-1])
                continue
            yield lemma
            if words and self._hit(self.add_silence_between_words):
                yield self.silence_lemma
        if self._hit(self.add_silence_end):
            yield self.silence_lemma
        if self._extra_end is not None and self._hit(self._add_extra_end):
            yield self._extra_end

    def _phones_of_lemmas(self, lemmas: Iterable[Lemma]) -> list[AllophoneState]:
        result: list[AllophoneState] = []
        for lemma in lemmas:
            phons = lemma["phons"]
            if not phons:
                raise KeyError(f"{lemma['orth']} (it has no pronunciation)")
            phon = phons[0] if self._phon_pick_strategy == "first" else self.rnd.choice(phons)
            result += _word_of_phones(phon["phon"].split())
        return result

    def _with_context(self, phones: list[AllophoneState]) -> list[AllophoneState]:
        """Set the context of each. :return: the same"""
        for order, is_history in ((phones, True), (phones[::-1], False)):
            context: tuple[str, ...] = ()  # the nearest one last
            for phone in order:
                assert phone.id is not None
                if self._variation(phone.id) == "none":
                    context = ()
                    continue
                if is_history:
                    phone.context_history = context
                else:
                    phone.context_future = context[::-1]
                if self.allo_context_len:
                    context = (*context, phone.id)[-self.allo_context_len :]
        return phones

    def _variation(self, phone: str) -> Any:
        if phone not in self.lexicon.phonemes:
            raise DatasetOptionError(
                f"phone_info: lexicon {self.lexicon.filename!r}: phoneme {phone!r} of a pronunciation is not in the "
                "phoneme inventory."
            )
        return self.lexicon.phonemes[phone]["variation"]

    def _iter_states(self, phones: Iterable[AllophoneState]) -> Iterator[AllophoneState]:
        for phone in phones:
            if phone.id == self._silence_phone:
                yield from self._silence_states()
                continue
            for state in range(self.allo_num_states):
                allophone = phone.copy()
                allophone.state = state
                yield allophone
                while self._hit(self.repetition):
                    yield allophone

    def _silence_states(self) -> Iterator[AllophoneState]:
        silence = AllophoneState(id=self._silence_phone, state=0)
        silence.boundary = AllophoneState.INITIAL | AllophoneState.FINAL
        yield silence
        while self._hit(self.silence_repetition):
            yield silence

    def generate_garbage_seq(self, target_len: int) -> list[AllophoneState]:
        """
        :param target_len: number of allophone states
        :return: words of random phonemes
        """
        result: list[AllophoneState] = []
        while len(result) < target_len:
            result += self._iter_states(self._with_context(self._random_words()))
            result += self._silence_states()
        return result[:target_len]

    def _random_words(self) -> list[AllophoneState]:
        result: list[AllophoneState] = []
        while True:
            phones = [self.rnd.choice(self.phonemes)]
            while self._hit(_MORE_PHONES):
                phones.append(self.rnd.choice(self.phonemes))
            result += _word_of_phones(phones)
            if not self._hit(_MORE_WORDS):
                return result


def _word_of_phones(phones: Sequence[str]) -> list[AllophoneState]:
    """:return: with boundaries"""
    result = [AllophoneState(id=phone) for phone in phones]
    if result:
        result[0].boundary |= AllophoneState.INITIAL
        result[-1].boundary |= AllophoneState.FINAL
    return result
