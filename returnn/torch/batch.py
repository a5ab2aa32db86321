"""The batch as step functions get it."""

from __future__ import annotations

from typing import Any, NoReturn

from returnn.errors import BatchKeyError
from returnn.options.registry import closest_names

__all__ = ["Batch"]


class Batch(dict[str, Any]):
    """A dict key -> tensor or list; asking for a key that is not there tells which there are."""

    def __missing__(self, key: str) -> NoReturn:
        """:raises BatchKeyError: always"""
        streams = [k for k in self if ":size" not in k]
        similar = closest_names(str(key), list(self))
        hint = f" Did you mean {similar[0]!r}?" if similar else ""
        raise BatchKeyError(
            f"the batch has no key {key!r}.{hint} It has {', '.join(map(repr, streams))}, and for each stream its "
            'lengths, e.g. "data:size1". The keys are those of the dataset (in a MetaDataset, of its data_map).'
        )
