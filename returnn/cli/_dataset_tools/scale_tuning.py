"""Search for the weights of several scores over n-best lists with the fewest word errors."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy

from returnn.errors import ConfigError, DataFileError, describe
from returnn.log import log
from returnn.util.edit_distance import edit_distance
from returnn.util.optional_import import optional_import

__all__ = ["ScaleOptions", "NBestLists", "SearchResult", "load_n_best", "search_scales", "make_evaluator"]

#: inf and nan would make products with the scale 0 undefined.
_HUGE = 1e30
#: Numbers in memory at once.
_MAX_NUMBERS = 1 << 24
#: Values up to this factor above the 5th percentile count as good.
_TOLERANCE = 1.0001

#: Real scales [B, num_scores] -> word error rate [B].
Evaluator = Callable[[numpy.ndarray], numpy.ndarray]


@dataclasses.dataclass(frozen=True)
class ScaleOptions:
    """
    :param names: of the scores
    :param fixed: name -> scale, not searched
    :param negative: names whose real scale has the other sign
    :param relative_to: name -> other name: the scale is a factor on the real scale of that
    :param min_scales: name -> smallest scale (default 0)
    :param max_scales: name -> largest scale
    :param max_scale: default of the latter
    """

    names: Sequence[str]
    fixed: Mapping[str, float] = dataclasses.field(default_factory=dict)
    negative: Sequence[str] = ()
    relative_to: Mapping[str, str] = dataclasses.field(default_factory=dict)
    min_scales: Mapping[str, float] = dataclasses.field(default_factory=dict)
    max_scales: Mapping[str, float] = dataclasses.field(default_factory=dict)
    max_scale: float = 2.0

    def __post_init__(self) -> None:
        """:raises ConfigError: unknown or repeated names, a circle of relations, an empty range"""
        if len(set(self.names)) != len(self.names):
            raise ConfigError(describe("--names has a name twice", expected="different names", got=list(self.names)))
        for option, names in (
            ("--fixed-scales", self.fixed),
            ("--negative-scales", self.negative),
            ("--scale-relative-to", [*self.relative_to, *self.relative_to.values()]),
            ("--min-scales", self.min_scales),
            ("--max-scales", self.max_scales),
        ):
            for name in names:
                if name not in self.names:
                    raise ConfigError(
                        describe(f"{option} has an unknown name", expected=f"one of {list(self.names)}", got=name)
                    )
        for name in self.names:
            seen = [name]
            while seen[-1] in self.relative_to:
                seen.append(self.relative_to[seen[-1]])
                if seen[-1] in seen[:-1]:
                    raise ConfigError(f"--scale-relative-to goes in a circle: {' -> '.join(seen)}.")
            low, high = self.range_of(name)
            if low > high:
                raise ConfigError(describe(f"The range of the scale {name!r} is empty", expected=f">= {low}", got=high))

    @property
    def sorted_names(self) -> list[str]:
        """:return: fixed ones first, then those to which others are relative"""
        others = set(self.relative_to.values())
        return sorted(self.names, key=lambda name: (name not in self.fixed, name not in others))

    @property
    def free_names(self) -> list[str]:
        """:return: those to search, in the order of sorted_names"""
        return [name for name in self.sorted_names if name not in self.fixed]

    def range_of(self, name: str) -> tuple[float, float]:
        """:return: smallest and largest scale"""
        return float(self.min_scales.get(name, 0.0)), float(self.max_scales.get(name, self.max_scale))

    def real_scales(self, scales: Mapping[str, Any]) -> dict[str, Any]:
        """
        :param scales: name -> scale or array of scales. Any: float or array
        :return: the factors on the scores
        """
        real: dict[str, Any] = {}

        def get(name: str) -> Any:
            if name not in real:
                value = scales[name]
                if name in self.relative_to:
                    value = value * get(self.relative_to[name])
                real[name] = -value if name in self.negative else value
            return real[name]

        return {name: get(name) for name in self.sorted_names}


@dataclasses.dataclass(frozen=True)
class NBestLists:
    """
    :param scores: [num_scores, num_seqs, max_hyps], -1e30 where a list is shorter
    :param distances: [num_seqs, max_hyps], edit distance of each hypothesis
    :param is_hyp: [num_seqs, max_hyps], False where a list is shorter
    :param num_ref_words: of all references
    """

    scores: numpy.ndarray
    distances: numpy.ndarray
    is_hyp: numpy.ndarray
    num_ref_words: int


def load_n_best(
    score_files: Sequence[tuple[str, Mapping[str, Any]]], refs: Mapping[str, Any], *, refs_name: str
) -> NBestLists:
    """
    :param score_files: file name, and tag -> [(score, text), ...], for each score; all with the same tags and texts.
        Any: of a file
    :param refs: tag -> text. Any: of a file
    :param refs_name: file name, for errors
    :raises DataFileError: they do not fit together
    """
    first_name, first = score_files[0]
    for name, content in [*score_files[1:], (refs_name, refs)]:
        if content.keys() != first.keys():
            differ = sorted(content.keys() ^ first.keys())
            raise DataFileError(
                describe(
                    f"{name} and {first_name} have different tags: {len(differ)} are in one of them only, e.g. {differ[:3]}",
                    todo="All score files and the references need the same tags",
                )
            )
    if not first:
        raise DataFileError(f"{first_name} has no sequences.")
    texts: list[list[str]] = []
    columns: list[list[list[float]]] = [[] for _ in score_files]
    for tag in first:
        expected: list[str] | None = None
        for column, (name, content) in zip(columns, score_files, strict=True):
            scores, hyps = _parse_n_best(content[tag], where=f"{name}, tag {tag!r}")
            if expected is None:
                expected = hyps
                texts.append(hyps)
            elif hyps != expected:
                raise DataFileError(
                    describe(
                        f"{name} and {first_name} have different hypotheses",
                        where=f"tag {tag!r}",
                        expected=f"{expected[:3]}",
                        got=hyps[:3],
                    )
                )
            column.append(scores)
    ref_words = {tag: _ref_text(refs[tag], where=f"{refs_name}, tag {tag!r}").split() for tag in first}
    num_ref_words = sum(map(len, ref_words.values()))
    if not num_ref_words:
        raise DataFileError(f"The references in {refs_name} have no words.")
    shape = (len(texts), max(map(len, texts)))
    is_hyp = numpy.zeros(shape, dtype=bool)
    distances = numpy.zeros(shape)
    scores_array = numpy.full((len(score_files), *shape), -_HUGE)
    for i, (tag, hyps) in enumerate(zip(first, texts, strict=True)):
        is_hyp[i, : len(hyps)] = True
        distances[i, : len(hyps)] = [edit_distance(ref_words[tag], hyp.split()) for hyp in hyps]
        for k, column in enumerate(columns):
            scores_array[k, i, : len(hyps)] = column[i]
    scores_array = numpy.nan_to_num(scores_array, nan=-_HUGE, posinf=_HUGE, neginf=-_HUGE)
    return NBestLists(scores_array, distances, is_hyp, num_ref_words)


def _parse_n_best(value: Any, *, where: str) -> tuple[list[float], list[str]]:
    """Any: of a file. :return: scores, texts"""
    entries = value if isinstance(value, (list, tuple)) else None
    if not entries or not all(
        isinstance(entry, (list, tuple))
        and len(entry) == 2
        and isinstance(entry[0], (int, float))
        and isinstance(entry[1], str)
        for entry in entries
    ):
        raise DataFileError(
            describe("The entry is no n-best list", where=where, expected="[(score, text), ...], not empty", got=value)
        )
    return [float(score) for score, _ in entries], [text for _, text in entries]


def _ref_text(value: Any, *, where: str) -> str:
    """Any: of a file"""
    if not isinstance(value, str):
        raise DataFileError(describe("The reference is no text", where=where, expected="text", got=value))
    return value


def make_evaluator(lists: NBestLists, *, device: str = "cpu", batch_size: int = 1024) -> Evaluator:
    """
    :param lists: scores and errors
    :param device: "cpu": numpy; "cuda": torch; "auto": the latter if there is a GPU; "torch-cpu": torch, for tests
    :param batch_size: combinations of scales at once, at most
    :return: function from real scales [B, num_scores] to the word error rate [B] if the best hypotheses are taken: the
        first one of those with the largest sum
    """
    num_seqs, num_hyps = lists.distances.shape
    batch_size = max(min(batch_size, _MAX_NUMBERS // (num_seqs * num_hyps)), 1)
    flat_scores = lists.scores.reshape(len(lists.scores), num_seqs * num_hyps)
    rows = numpy.arange(num_seqs)

    def evaluate_batch(real_scales: numpy.ndarray) -> numpy.ndarray:
        total = (real_scales @ flat_scores).reshape(-1, num_seqs, num_hyps)
        # Sums that differ only by rounding are equal. The peer computes them in single precision.
        best = numpy.where(lists.is_hyp, total, -numpy.inf).astype(numpy.float32).argmax(axis=2)
        errors: numpy.ndarray = lists.distances[rows, best].sum(axis=1) / lists.num_ref_words
        return errors

    on_device = None if device == "cpu" else _torch_evaluator(lists, device)

    def evaluate(real_scales: numpy.ndarray) -> numpy.ndarray:
        batch = on_device or evaluate_batch
        return numpy.concatenate(
            [batch(real_scales[i : i + batch_size]) for i in range(0, len(real_scales), batch_size)]
        )

    return evaluate


def _torch_evaluator(lists: NBestLists, device: str) -> Evaluator | None:
    """:return: None: use numpy"""
    torch = optional_import("torch", needed_by=f"--device {device}")
    if device == "auto" and not torch.cuda.is_available():
        return None
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU. Use --device cpu.")
    target = torch.device("cpu" if device == "torch-cpu" else "cuda")
    scores = torch.as_tensor(lists.scores, device=target).flatten(1)
    distances = torch.as_tensor(lists.distances, device=target)
    is_hyp = torch.as_tensor(lists.is_hyp, device=target)
    idxs = torch.arange(distances.shape[1], device=target)

    def evaluate(real_scales: numpy.ndarray) -> numpy.ndarray:
        total = (torch.as_tensor(real_scales, device=target) @ scores).unflatten(1, distances.shape)
        total = total.masked_fill(~is_hyp, -float("inf")).float()
        is_best = total == total.amax(dim=2, keepdim=True)
        best = torch.where(is_best, idxs, len(idxs)).amin(dim=2)  # the first one; argmax may give any of them
        errors = distances.expand(len(best), -1, -1).gather(2, best[:, :, None]).sum(dim=(1, 2))
        return (errors / lists.num_ref_words).cpu().numpy()  # type: ignore[no-any-return]

    return evaluate


@dataclasses.dataclass
class SearchResult:
    """
    :param scales: name -> scale, of all names
    :param real_scales: name -> factor on the score
    :param value: word error rate
    :param grid: of the first iteration of a grid search: the scales of each axis, and the values; for plots
    """

    scales: dict[str, float]
    real_scales: dict[str, float]
    value: float
    grid: tuple[list[numpy.ndarray], numpy.ndarray] | None = None


def search_scales(
    evaluate: Evaluator,
    options: ScaleOptions,
    *,
    mode: Literal["auto", "grid", "single"] = "auto",
    num_iterations: int = 10,
    num_steps: int = 21,
) -> SearchResult:
    """
    :param evaluate: from :func:`make_evaluator`, for scores in the order of ``options.names``
    :param options: about the scales
    :param mode: "grid": all combinations; "single": one scale after the other; "auto": grid for two free scales
    :param num_iterations: at most; in each the ranges of good scales get smaller
    :param num_steps: values of a scale in its range
    """
    search = _Search(evaluate, options, num_steps)
    if not search.free:
        pass
    elif mode == "grid" or (mode == "auto" and len(search.free) == 2):
        search.grid(num_iterations)
    else:
        search.single(num_iterations)
    value = float(search.values([search.scales])[0])
    real = options.real_scales(search.scales)
    return SearchResult(
        {name: float(scale) for name, scale in search.scales.items()},
        {name: float(scale) for name, scale in real.items()},
        value,
        search.first_grid,
    )


class _Search:
    """State of a search."""

    def __init__(self, evaluate: Evaluator, options: ScaleOptions, num_steps: int):
        self._evaluate = evaluate
        self._options = options
        self._num_steps = num_steps
        self.free = options.free_names
        self.ranges = {name: options.range_of(name) for name in self.free}
        self.scales = {name: options.fixed.get(name, 0.0) for name in options.sorted_names}
        self.first_grid: tuple[list[numpy.ndarray], numpy.ndarray] | None = None
        for name in self.free:
            self.scales[name] = sum(self.ranges[name]) / 2

    def values(self, candidates: Sequence[Mapping[str, float]]) -> numpy.ndarray:
        """:return: [len(candidates)]"""
        columns = {name: numpy.array([c[name] for c in candidates], dtype=float) for name in self.scales}
        real = self._options.real_scales(columns)
        return self._evaluate(numpy.stack([real[name] for name in self._options.names], axis=1))

    def _steps(self, name: str) -> numpy.ndarray:
        low, high = self.ranges[name]
        return numpy.linspace(low, high, self._num_steps)

    def single(self, num_iterations: int) -> None:
        """One scale after the other, the others as they are."""
        for iteration in range(num_iterations):
            before = dict(self.ranges)
            for name in reversed(self.free):
                steps = self._steps(name)
                values = self.values([{**self.scales, name: float(step)} for step in steps])
                good = steps[values <= _limit(values)]
                self.ranges[name] = float(good.min()), float(good.max())
                self.scales[name] = sum(self.ranges[name]) / 2
                self._report(iteration, float(values.min()), name)
            if self.ranges == before:
                return

    def grid(self, num_iterations: int) -> None:
        """All combinations."""
        for iteration in range(num_iterations):
            before = dict(self.ranges)
            axes = [self._steps(name) for name in self.free]
            combinations = list(itertools.product(*(axis.tolist() for axis in axes)))
            values = self.values([{**self.scales, **dict(zip(self.free, c, strict=True))} for c in combinations])
            if self.first_grid is None:
                self.first_grid = axes, values.reshape([len(axis) for axis in axes])
            good = numpy.array(combinations)[values <= _limit(values)]
            for i, name in enumerate(self.free):
                self.ranges[name] = float(good[:, i].min()), float(good[:, i].max())
            _, best = min(zip(values.tolist(), combinations, strict=True))
            self.scales.update(zip(self.free, best, strict=True))
            self._report(iteration, float(values.min()), ", ".join(self.free))
            if self.ranges == before:
                return

    def _report(self, iteration: int, value: float, names: str) -> None:
        ranges = ", ".join(f"{name} {low:.4g}..{high:.4g}" for name, (low, high) in self.ranges.items())
        print(f"iteration {iteration + 1}, {names}: best {value * 100:.02f}%, ranges {ranges}", file=log.v4)


def _limit(values: numpy.ndarray) -> float:
    return max(float(numpy.percentile(values, 5)) * _TOLERANCE, float(values.min()))


def iter_pairs(args: Sequence[str], *, option: str) -> Iterator[tuple[str, str]]:
    """
    :param args: of the command line: name, value, name, value, ...
    :param option: for the error
    :raises ConfigError: an odd number
    """
    if len(args) % 2:
        raise ConfigError(describe(f"{option} needs pairs", expected="name value name value ...", got=list(args)))
    return zip(args[::2], args[1::2], strict=True)
