"""Which child of a CombinedDataset comes next: orders of the epoch by child, in advance or on demand."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence

import numpy as np

from returnn.datasets._meta.children import known_num_seqs
from returnn.datasets.basic import Dataset

__all__ = [
    "GumbelScale",
    "ON_DEMAND_ORDERINGS",
    "OnDemandOrder",
    "default_order",
    "interleaved_order",
    "gumbel_order",
    "shuffled_order",
]

#: Factor of the noise; "remaining": the part of the epoch that is still to come
GumbelScale = float | str
ON_DEMAND_ORDERINGS = ("default", "reversed", "random_dataset", "interleave")


def default_order(counts: Sequence[int], *, reverse: bool = False) -> np.ndarray:
    """
    :param counts: number of sequences per child
    :param reverse: the last child first
    :return: [sum of counts] child after child
    """
    children = np.arange(len(counts))
    return np.repeat(children[::-1], counts[::-1]) if reverse else np.repeat(children, counts)


def shuffled_order(counts: Sequence[int], seed: int) -> np.ndarray:
    """
    :param counts: number of sequences per child
    :param seed: of the epoch
    :return: [sum of counts] child of each, by Python's shuffle
    """
    children = default_order(counts).tolist()
    random.Random(seed).shuffle(children)
    return np.array(children, dtype=np.int64)


def interleaved_order(counts: Sequence[int]) -> np.ndarray:
    """
    :param counts: number of sequences per child
    :return: [sum of counts] child of each, so that all children are used up evenly: by (i + 1) / count
    """
    children = default_order(counts)
    fracs = np.concatenate([np.arange(1, count + 1) / max(count, 1) for count in counts] or [np.zeros(0)])
    return children[np.lexsort((children, fracs))]


def gumbel_order(counts: Sequence[int], seed: int, scale: GumbelScale) -> np.ndarray:
    """
    Each step draws one child, by the Gumbel-max trick from the numbers of remaining sequences.

    :param counts: number of sequences per child
    :param seed: of the epoch
    :param scale: of the noise
    :return: [sum of counts] child of each
    """
    rng = np.random.RandomState(seed)
    active = [i for i, count in enumerate(counts) if count]
    used = [0] * len(counts)
    # logits[i][j]: j sequences of child i are used
    logits = [np.log(np.arange(count, 0, -1)).tolist() for count in counts]
    result = array("L")
    while active:
        # Draws for as many steps as the number of active children cannot change in.
        steps = min(counts[i] - used[i] for i in active)
        if len(active) == 1:
            result.extend(active * steps)
            break
        for noise in rng.gumbel(size=(steps, len(active))).tolist():
            factor = scale
            if isinstance(factor, str):
                factor = 1.0 - max((used[i] + 1) / counts[i] for i in active)
            best = max(zip(active, noise, strict=True), key=lambda x: logits[x[0]][used[x[0]]] + factor * x[1])[0]
            used[best] += 1
            result.append(best)
        active = [i for i in active if used[i] < counts[i]]
    return np.array(result, dtype=np.int64)


class OnDemandOrder:
    """Where the children do not know their number of sequences: decides step by step."""

    def __init__(self, children: Sequence[Dataset], ordering: str, *, seed: int, gumbel_scale: GumbelScale):
        """
        :param children: at the start of the epoch
        :param ordering: one of ON_DEMAND_ORDERINGS
        :param seed: of the epoch
        :param gumbel_scale: 0: no noise
        """
        self._children = children
        self._ordering = ordering
        self._gumbel_scale = gumbel_scale
        self._rng = np.random.RandomState(seed)
        self._used = [0] * len(children)
        self._has_data = [True] * len(children)
        self._child_of_seq = array("L")
        self._pos_of_seq = array("Q")
        self._frac = 0.0
        self._at_end = False

    def __len__(self) -> int:
        """:return: number of steps so far"""
        return len(self._child_of_seq)

    def locate(self, seq_idx: int) -> tuple[int, int] | None:
        """
        :param seq_idx: in the epoch
        :return: child, and position in its epoch; None behind the end
        """
        while len(self) <= seq_idx and not self._at_end:
            self._step()
        return (self._child_of_seq[seq_idx], self._pos_of_seq[seq_idx]) if seq_idx < len(self) else None

    def complete_frac(self) -> float:
        """:return: after the last step"""
        return self._frac

    def _step(self) -> None:
        for i, child in enumerate(self._children):
            self._has_data[i] = self._has_data[i] and child.is_less_than_num_seqs(self._used[i])
        active = [i for i, has_data in enumerate(self._has_data) if has_data]
        if not active:
            self._at_end = True
            return
        chosen = self._choose(active)
        self._child_of_seq.append(chosen)
        self._pos_of_seq.append(self._used[chosen])
        self._used[chosen] += 1

    def _choose(self, active: list[int]) -> int:
        if self._ordering == "default":
            return active[0]
        if self._ordering == "reversed":
            return active[-1]
        if self._ordering == "random_dataset":
            return self._choose_at_random(active)
        fracs = {i: self._child_frac(i, self._used[i]) for i in active}
        if not self._gumbel_scale:
            chosen = min(active, key=lambda i: (fracs[i], i))
            self._frac = max(self._frac, fracs[chosen])
            return chosen
        noise = self._rng.gumbel(size=len(active))
        scale = self._gumbel_scale
        if isinstance(scale, str):
            scale = 1.0 - max(fracs.values())
        totals = [self._total(i) for i in range(len(self._children))]
        logits = np.log([max(totals[i] - self._used[i], 1) for i in active])
        self._frac = min(max(self._frac, (len(self) + 1) / max(sum(totals), 1)), 1.0)
        return active[int(np.argmax(logits + scale * noise))]

    def _choose_at_random(self, active: list[int]) -> int:
        """:return: child, with probability proportional to its estimated remaining number of sequences"""
        remaining = np.array([max(self._total(i) - self._used[i], 0.0) for i in active])
        total = remaining.sum()
        if total < 0.1:
            return active[int(self._rng.randint(len(active)))]
        return active[int(self._rng.choice(len(active), p=remaining / total))]

    def _child_frac(self, i: int, pos: int) -> float:
        frac = self._children[i].get_complete_frac(pos)
        return Dataset.generic_complete_frac(pos, None) if frac is None else frac

    def _total(self, i: int) -> float:
        """:return: number of sequences of that child, or the best estimate"""
        child = self._children[i]
        num = known_num_seqs(child)
        if num is not None:
            return num
        if self._used[i]:
            frac = child.get_complete_frac(self._used[i] - 1, allow_only_lr_suitable=True)
            if frac:
                return self._used[i] / frac
        estimate = child.estimated_num_seqs
        return 1 if estimate is None or estimate == float("inf") else estimate
