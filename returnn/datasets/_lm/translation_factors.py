"""
TranslationFactorsDataset: translation with several labels per word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from returnn.datasets._lm.translation import TranslationDataset

__all__ = ["TranslationFactorsDataset"]


class TranslationFactorsDataset(TranslationDataset):
    """
    TranslationDataset with words made of several factors, e.g. ``this|u is|l``: one data key for each factor.
    All have the same length.
    """

    def __init__(
        self,
        source_factors: str | Sequence[str] | None = None,
        target_factors: str | Sequence[str] | None = None,
        factor_separator: str = "|",
        **kwargs: Any,
    ) -> None:
        """
        :param source_factors: data keys of the further factors of the source words; the first one is "data".
            Vocabulary ``KEY.vocab.pkl``
        :param target_factors: likewise; the first one is "classes"
        :param factor_separator: between the factors of a word
        :param kwargs: see TranslationDataset. The postfixes are appended to each factor. Any: each has its own type
        """
        self._source_factors = _as_list(source_factors)
        self._target_factors = _as_list(target_factors)
        self._factor_separator = factor_separator
        super().__init__(**kwargs)

    @property
    def _separator(self) -> str:
        return self._factor_separator

    def _add_sources(self) -> None:
        self._add_file(self.source_file_prefix, [self.main_source_data_key, *self._source_factors])

    def _add_targets(self) -> None:
        keys = [self.main_target_data_key, *self._target_factors]
        self._add_file(self.target_file_prefix, keys, read=not self.search_without_reference)


def _as_list(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())
