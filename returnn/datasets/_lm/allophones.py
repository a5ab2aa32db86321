"""
Allophone states: phonemes with context, position in the word and HMM state; and their tying to classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from returnn.errors import DataFileError, DatasetError
from returnn.util.fs import open_text

__all__ = ["AllophoneState", "StateTying"]

# In the classic allophone index, the states are counted above this bit.
_CLASSIC_STATE = 1 << 26


class AllophoneState:
    """
    A phoneme with context, as the states of an HMM: written e.g. ``AH{HH+L}@i.1``, or ``L{a-b+c-d}@i@f.0``
    with longer context; ``#`` stands for no context.
    """

    INITIAL: ClassVar[int] = 1  # bit of boundary: first phoneme of a word
    FINAL: ClassVar[int] = 2  # likewise, last

    def __init__(self, id: str | None = None, state: int | None = None) -> None:
        """
        :param id: phoneme symbol
        :param state: HMM state from 0
        """
        self.id = id
        self.state = state
        # The nearest phoneme is the last one of the history, and the first one of the future.
        self.context_history: tuple[str, ...] = ()
        self.context_future: tuple[str, ...] = ()
        self.boundary = 0

    def format(self) -> str:
        """:return: as in the description of the class"""
        history = "-".join(self.context_history) or "#"
        future = "-".join(self.context_future) or "#"
        text = f"{self.id}{{{history}+{future}}}"
        if self.boundary & self.INITIAL:
            text += "@i"
        if self.boundary & self.FINAL:
            text += "@f"
        if self.state is not None:
            text += f".{self.state}"
        return text

    def __repr__(self) -> str:
        return self.format()

    def copy(self) -> AllophoneState:
        """:return: the same again"""
        other = AllophoneState(id=self.id, state=self.state)
        other.context_history, other.context_future = self.context_history, self.context_future
        other.boundary = self.boundary
        return other

    def _key(self) -> tuple[object, ...]:
        return self.id, self.context_history, self.context_future, self.boundary, self.state

    def __hash__(self) -> int:
        return hash(self._key())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AllophoneState) and self._key() == other._key()

    def index(self, phone_idxs: Mapping[str, int], num_states: int = 3, context_length: int = 1) -> int:
        """
        One number for each possible allophone state. With base ``len(phone_idxs) + 1``, the digits are the phonemes at
        the positions 0, -1, 1, -2, 2, ... (0: none; else index + 1), the first one being the most significant;
        then the state, then the boundary.

        :param phone_idxs: phoneme -> index from 0
        :param num_states: of each phoneme
        :param context_length: number of phonemes in each direction
        """
        base = len(phone_idxs) + 1
        result = 0
        for position in _positions(context_length):
            symbol = self._symbol_at(position)
            if symbol is not None and symbol not in phone_idxs:
                raise DatasetError(f"AllophoneState {self}: phoneme {symbol!r} is not in the phoneme set.")
            result = result * base + (0 if symbol is None else phone_idxs[symbol] + 1)
        if not 0 <= (self.state or 0) < num_states:
            raise DatasetError(f"AllophoneState {self}: expected state < {num_states}, got {self.state}.")
        return (result * num_states + (self.state or 0)) * 4 + self.boundary

    def _symbol_at(self, position: int) -> str | None:
        """:param position: 0: the phoneme itself; < 0: before, from the nearest"""
        if not position:
            return self.id
        context = self.context_future if position > 0 else self.context_history[::-1]
        return context[abs(position) - 1] if abs(position) <= len(context) else None

    @classmethod
    def from_index(
        cls, index: int, phone_ids: Mapping[int, str], num_states: int = 3, context_length: int = 1
    ) -> AllophoneState:
        """
        Inverse of :func:`index`.

        :param index: of that function
        :param phone_ids: index from 0 -> phoneme
        :param num_states: as there
        :param context_length: as there
        """
        base = len(phone_ids) + 1
        rest, boundary = divmod(index, 4)
        rest, state = divmod(rest, num_states)
        symbols: dict[int, str] = {}
        for position in reversed(_positions(context_length)):
            rest, digit = divmod(rest, base)
            if digit:
                symbols[position] = phone_ids[digit - 1]
        if rest or index < 0:
            raise DatasetError(
                f"AllophoneState.from_index: index {index} is out of range for {len(phone_ids)} phonemes, "
                f"{num_states} states and context length {context_length}."
            )
        result = cls(id=symbols.get(0), state=state)
        result.boundary = boundary
        result.context_history = tuple(symbols[-i] for i in range(context_length, 0, -1) if -i in symbols)
        result.context_future = tuple(symbols[i] for i in range(1, context_length + 1) if i in symbols)
        return result

    @classmethod
    def from_classic_index(
        cls, index: int, allophones: Mapping[int, AllophoneState] | Sequence[AllophoneState], max_states: int = 6
    ) -> AllophoneState:
        """
        :param index: allophone + 2 ** 26 * state
        :param allophones: by index
        :param max_states: limit of the state
        :return: copy of that allophone, with the state
        """
        state, allophone = divmod(index, _CLASSIC_STATE)
        if not 0 <= state < max_states:
            raise DatasetError(
                f"AllophoneState.from_classic_index: index {index} has state {state}, limit {max_states}."
            )
        result = allophones[allophone].copy()
        result.state = state
        return result


def _positions(context_length: int) -> list[int]:
    """:return: e.g. 0, -1, 1, -2, 2"""
    return [0, *[sign * i for i in range(1, context_length + 1) for sign in (-1, 1)]]


class StateTying:
    """
    Attributes: ``allo_map`` (allophone state as text -> class), ``class_map`` (class -> set of allophone states)
    and ``num_classes``.
    """

    def __init__(self, state_tying_file: str) -> None:
        """
        :param state_tying_file: lines ``<allophone state> <class>``
        :raises DataFileError: missing, a line of another form, or classes are not 0..n-1
        """
        self.allo_map: dict[str, int] = {}
        self.class_map: dict[int, set[str]] = {}
        with open_text(state_tying_file, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                fields = line.split()
                if not fields:
                    continue
                if len(fields) != 2 or not (fields[1].isascii() and fields[1].isdigit()):
                    raise DataFileError(
                        f"{state_tying_file}, line {number}: expected '<allophone state> <class>', got {line.strip()!r}."
                    )
                allophone, class_idx = fields[0], int(fields[1])
                if self.allo_map.setdefault(allophone, class_idx) != class_idx:
                    raise DataFileError(
                        f"{state_tying_file}, line {number}: {allophone} has class {class_idx}, and "
                        f"{self.allo_map[allophone]} in an earlier line."
                    )
                self.class_map.setdefault(class_idx, set()).add(allophone)
        self.num_classes = len(self.class_map)
        if not self.class_map or max(self.class_map) != self.num_classes - 1:
            raise DataFileError(
                f"{state_tying_file}: expected classes 0..n-1 without gaps, got {self.num_classes} classes, "
                f"the largest is {max(self.class_map, default=None)}."
            )
