"""The option torch_profile."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from returnn._state import state
from returnn.log import log
from returnn.options.observers import ProfileOptions
from returnn.torch.device import device_type
from returnn.torch.observers.base import PassObserver

if TYPE_CHECKING:
    from returnn.engine.base import EngineBase

__all__ = ["Profiler"]

#: Rows of the table.
_NUM_ROWS = 30


class Profiler(PassObserver):
    """Profiles training steps, writes the trace, prints a table, and ends the program."""

    keeps_from_writing = True

    def __init__(self, options: ProfileOptions):
        """
        :param options: of the config
        """
        self._options = options
        self._profile: torch.profiler.profile | None = None
        self._device = "cpu"
        self._num_steps = 0
        self._num_written = 0

    @property
    def trace_filename(self) -> str:
        """:return: of the next trace: each rank and each repetition has its own"""
        stem, suffix = os.path.splitext(self._options.filename)
        if state.world_size > 1:
            stem += f".rank{state.rank}"
        if self._num_written:
            stem += f".{self._num_written + 1}"
        return stem + suffix

    def start_pass(self, name: str, *, engine: EngineBase) -> None:
        """Start with the first pass over the training data."""
        if name != "train" or self._profile is not None:
            return
        self._device = str(getattr(engine, "_device", "cpu"))
        activities = None
        if self._options.activities is not None:
            activities = [getattr(torch.profiler.ProfilerActivity, a.upper()) for a in self._options.activities]
        self._profile = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(**self._options.schedule),
            on_trace_ready=self._write,
            **self._options.arguments,
        )
        schedule = ", ".join(f"{key} {value}" for key, value in self._options.schedule.items())
        print(
            f"torch_profile: profiling training steps ({schedule}); the program ends after it, without writing "
            "checkpoints and scores.",
            file=log.v2,
        )
        self._profile.start()

    def end_step(
        self,
        *,
        name: str,
        step: int,
        global_step: int,
        epoch: int,
        data: Mapping[str, Any],
        losses: Mapping[str, float] | None,
    ) -> None:
        """
        Count a training step.

        :raises SystemExit: the schedule is through
        """
        if name != "train" or self._profile is None:
            return
        self._num_steps += 1
        self._profile.step()
        if self._num_written >= self._options.schedule["repeat"]:
            print(f"torch_profile: done after {self._num_steps} training steps, ending the program.", file=log.v1)
            raise SystemExit(0)

    def _write(self, profile: torch.profiler.profile) -> None:
        filename = self.trace_filename
        os.makedirs(os.path.dirname(filename) or ".", exist_ok=True)
        profile.export_chrome_trace(filename)
        self._num_written += 1
        print(f"torch_profile: wrote {filename}; open it in chrome://tracing or https://ui.perfetto.dev", file=log.v1)
        on_cuda = device_type(self._device) == "cuda"
        sort_by = "self_device_time_total" if on_cuda else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=sort_by, row_limit=_NUM_ROWS), file=log.v1)

    def close(self) -> None:
        """Stop; say so if the schedule was not through. A part of it is written."""
        profile, self._profile = self._profile, None
        if profile is None:
            return
        profile.stop()
        if not self._num_written:
            needed = sum(self._options.schedule[key] for key in ("skip_first", "wait", "warmup", "active"))
            print(
                f"torch_profile: the run ended after {self._num_steps} training steps, but its schedule needs {needed}. "
                'Nothing was written. Set e.g. torch_profile = {"schedule": {"skip_first": 0, "wait": 0, "warmup": 1}}.',
                file=log.v1,
            )
