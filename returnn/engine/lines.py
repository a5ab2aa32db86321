"""The log lines of the passes, in the form of each dialect. Clients search logs for them: the only place of these texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from returnn.engine.report import LoaderStats, PassReport, format_losses, step_line
from returnn.log import log
from returnn.util.time_format import hms

__all__ = ["MAINLINE_LINES", "MINI_LINES", "Lines", "MainlineLines", "StepNumbers", "format_value"]


@dataclasses.dataclass(frozen=True)
class StepNumbers:
    """What a step line is made of."""

    step: int  # within the pass, from 0
    step_secs: float  # duration of the step
    secs_since_last_line: float | None  # since the step line before, of any pass; None: this is the first
    device_memory: str | None = None  # e.g. "GMEM: 1.0/2.0/79.0"
    total_loss: float | None = None  # the optimised value; None in forward
    losses: Mapping[str, float] | None = None  # value / norm factor, in the order of marking; None in forward
    more: Sequence[str] = ()  # further parts


class Lines:
    """The lines of the Mini dialect."""

    def pass_prefix(self, what: str, epoch: int | None) -> str:
        """
        :param what: "train", "eval <name>", "forward"
        :param epoch: None: not known
        :return: start of all lines of the pass
        """
        return f"{what} epoch {epoch}"

    def train_starts(self, *, epoch: int, global_step: int) -> None:
        """:param epoch: first one to train"""
        print(f"Starting training at epoch {epoch}.", file=log.v3)

    def epoch_starts(self, epoch_str: str, *, global_step: int, learning_rate: float, effective: float) -> None:
        """
        :param epoch_str: e.g. "epoch 1"
        :param global_step: training steps done
        :param learning_rate: of the epoch
        :param effective: that of the first step
        """
        print(f"start {epoch_str} with learning rate {learning_rate} ...", file=log.v4)

    def first_step(self, report: PassReport) -> None:
        """Before the first step of a pass."""

    def step(self, report: PassReport, numbers: StepNumbers) -> str:
        """:return: line of a step (v5)"""
        line = step_line(
            report.prefix,
            numbers.step,
            step_secs=numbers.step_secs,
            secs_since_last_line=numbers.secs_since_last_line,
            device_memory=numbers.device_memory,
            total_loss=numbers.total_loss,
            losses=numbers.losses,
        )
        return ", ".join([line, *numbers.more])

    def train_pass_ends(self, report: PassReport, *, epoch: int, num_steps: int, secs: float, step_secs: float) -> None:
        """
        :param report: of the pass
        :param epoch: of the pass
        :param num_steps: steps done
        :param secs: time it took
        :param step_secs: thereof in the steps, not waiting for data
        """
        print(f"Trained {num_steps} steps, took {secs:.3f}s", file=log.v2)

    def train_scores(self, report: PassReport, scores: Mapping[str, float], *, epoch: int) -> None:
        """
        :param report: of the pass
        :param scores: of the pass, by loss name
        :param epoch: of the pass
        """
        _print_summary(report, scores)

    def eval_pass_starts(self, name: str) -> None:
        """:param name: of the dataset"""
        print(f"Evaluating dataset {name!r}'", file=log.v3)

    def eval_pass_ends(self, report: PassReport, scores: Mapping[str, float], *, name: str, secs: float) -> None:
        """
        :param report: of the pass
        :param scores: of the pass, by loss name
        :param name: of the dataset
        :param secs: time it took
        """
        _print_summary(report, scores)
        print(f"Finished evaluating {name} in {secs:.3}s", file=log.v3)

    def eval_ends(self, scores: Mapping[str, Mapping[str, float]], *, epoch: int) -> None:
        """
        :param scores: per dataset by loss name
        :param epoch: that was evaluated
        """

    def eval_task_scores(self, name: str, scores: Mapping[str, float], *, epoch: int) -> None:
        """
        In the task eval, after each dataset.

        :param name: of the dataset
        :param scores: by loss name
        :param epoch: of the checkpoint
        """
        print(f"Epoch {epoch} evaluation: {name}: {format_losses(scores)}", file=log.v1)

    def train_ends(self, *, epoch: int, global_step: int) -> None:
        """
        :param epoch: the last one
        :param global_step: training steps done
        """
        print(f"Finished training at epoch {epoch + 1}.", file=log.v3)

    def forward_prefix(self, dataset_name: str, epoch: int) -> str:
        """
        :param dataset_name: as the user knows it
        :param epoch: of the checkpoint
        :return: start of all lines of the pass
        """
        return f"forward epoch {epoch}"

    def forward_starts(self) -> None:
        """Before the first batch is asked for."""
        print("Start Forwarding", file=log.v3)

    def forward_ends(self, report: PassReport, *, num_steps: int, secs: float, step_secs: float) -> None:
        """
        :param report: of the pass
        :param num_steps: steps done, of this process
        :param secs: time it took
        :param step_secs: thereof in the steps, not waiting for data, nor for who takes the results
        """
        _print_summary(report, None)
        print(f"Finished forwarding in {secs:.3}s", file=log.v3)


def _print_summary(report: PassReport, scores: Mapping[str, float] | None) -> None:
    summary = report.summary(scores)
    if summary:
        print(summary, file=log.v3)


class MainlineLines(Lines):
    """The lines of the mainline dialect."""

    def pass_prefix(self, what: str, epoch: int | None) -> str:
        if what.startswith("eval "):
            what = f"{what.removeprefix('eval ')} eval"
        return f"ep {epoch} {what}"

    def train_starts(self, *, epoch: int, global_step: int) -> None:
        print(f"Starting training at epoch {epoch}, global train step {global_step}", file=log.v3)

    def epoch_starts(self, epoch_str: str, *, global_step: int, learning_rate: float, effective: float) -> None:
        print(
            f"start {epoch_str} global train step {global_step} with effective learning rate {effective} ...",
            file=log.v3,
        )

    def first_step(self, report: PassReport) -> None:
        num_seqs = getattr(report.stats, "num_seqs", None)
        if num_seqs is not None:
            report.line(f"{report.prefix} num_seqs: {num_seqs}")

    def step(self, report: PassReport, numbers: StepNumbers) -> str:
        parts = [report.prefix, f"step {numbers.step}"]
        if numbers.losses:
            parts += [f"{name} {format_value(value)}" for name, value in numbers.losses.items()]
        parts += numbers.more
        if numbers.device_memory:
            parts.append(numbers.device_memory)
        if not report.prefix.endswith(" eval"):
            parts.append(f"{numbers.step_secs:.3f} sec/step")
        elapsed, frac = report.elapsed, report.complete_frac
        parts.append(f"elapsed {hms(elapsed)}")
        if frac:
            parts += [f"exp. remaining {hms(elapsed * (1.0 - frac) / frac)}", f"complete {frac:.2%}"]
        return ", ".join(parts)

    def train_pass_ends(self, report: PassReport, *, epoch: int, num_steps: int, secs: float, step_secs: float) -> None:
        parts = [f"{min(step_secs / max(secs, 1e-6), 1.0):.1%} computing time"]
        padding = _padding_text(report.stats)
        if padding:
            parts.append(padding)
        print(f"Epoch {epoch}: Trained {num_steps} steps, {hms(secs)} elapsed ({', '.join(parts)})", file=log.v3)

    def train_scores(self, report: PassReport, scores: Mapping[str, float], *, epoch: int) -> None:
        print(f"Epoch {epoch}: Total train loss: {_scores_text(scores)}", file=log.v3)
        _print_summary(report, None)

    def eval_pass_starts(self, name: str) -> None:
        pass

    def eval_pass_ends(self, report: PassReport, scores: Mapping[str, float], *, name: str, secs: float) -> None:
        _print_summary(report, None)

    def eval_ends(self, scores: Mapping[str, Mapping[str, float]], *, epoch: int) -> None:
        if scores:
            text = " ".join(f"{name}: {_scores_text(values)}" for name, values in scores.items())
            print(f"Epoch {epoch} evaluation: {text}", file=log.v1)

    def eval_task_scores(self, name: str, scores: Mapping[str, float], *, epoch: int) -> None:
        print(f"Epoch {epoch} evaluation: {name}: {_scores_text(scores)}", file=log.v1)

    def train_ends(self, *, epoch: int, global_step: int) -> None:
        print(f"Finished training at epoch {epoch}, global train step {global_step}", file=log.v3)

    def forward_prefix(self, dataset_name: str, epoch: int) -> str:
        return f"ep {epoch} {dataset_name} forward"

    def forward_starts(self) -> None:
        pass

    def forward_ends(self, report: PassReport, *, num_steps: int, secs: float, step_secs: float) -> None:
        share = min(step_secs / max(secs, 1e-6), 1.0)
        print(f"Forward {num_steps} steps, {hms(secs)} elapsed ({share:.1%} computing time)", file=log.v3)
        _print_summary(report, None)


def format_value(value: float) -> str:
    """:return: as in the lines of the mainline dialect: "%.3f", or "%.3e" if it is above 1000 or below 0.001 in magnitude"""
    return f"{value:.3e}" if abs(value) > 1000 or abs(value) < 0.001 else f"{value:.3f}"


def _scores_text(scores: Mapping[str, float]) -> str:
    """:return: ``name value`` in the given order; one alone without its name"""
    if len(scores) == 1:
        return format_value(next(iter(scores.values())))
    return " ".join(f"{name} {format_value(value)}" for name, value in scores.items())


def _padding_text(stats: LoaderStats | None) -> str:
    ratios = stats.padding_ratios() if stats is not None and hasattr(stats, "padding_ratios") else {}
    return ", ".join(f"{key}: {ratio:.1%}" for key, ratio in ratios.items()) + " padding" if ratios else ""


#: Of each dialect.
MINI_LINES = Lines()
MAINLINE_LINES = MainlineLines()
