"""Facts about an epoch that the mainline dialect keeps beside its scores in the learning-rate file."""

from __future__ import annotations

import dataclasses
import platform
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import torch

import returnn
from returnn._state import state
from returnn.lr.epoch_data import META_PREFIX

__all__ = ["EpochMeta"]


@dataclasses.dataclass(frozen=True)
class EpochMeta:
    """What is known at the start of the training pass of an epoch."""

    global_step: int  # training steps done before
    learning_rate: float  # of the first step
    start_time: float = dataclasses.field(default_factory=time.time)
    #: in earlier runs, which were stopped inside the epoch
    secs_before: float = 0.0
    #: of this run, in the epoch
    went_on_time: float | None = None

    def secs_since_start(self) -> float:
        """:return: seconds in the pass, without the time between runs"""
        since = self.start_time if self.went_on_time is None else self.went_on_time
        return self.secs_before + time.time() - since

    def as_entries(self) -> dict[str, int | float]:
        """:return: for a checkpoint inside the epoch"""
        return {
            "global_step": self.global_step,
            "learning_rate": self.learning_rate,
            "start_time": self.start_time,
            "secs": self.secs_since_start(),
        }

    @classmethod
    def going_on(cls, entries: Mapping[str, int | float]) -> EpochMeta:
        """:param entries: of :meth:`as_entries`, of an earlier run"""
        return cls(
            global_step=int(entries["global_step"]),
            learning_rate=float(entries["learning_rate"]),
            start_time=float(entries["start_time"]),
            secs_before=float(entries["secs"]),
            went_on_time=time.time(),
        )

    def entries(
        self, *, global_step: int, num_steps: int, secs: float, device: str | torch.device
    ) -> dict[str, str | int | float | None]:
        """
        :param global_step: training steps done after the pass
        :param num_steps: of the pass
        :param secs: duration of the pass
        :param device: of the model
        :return: for the learning-rate file, each key with its prefix
        """
        facts: dict[str, str | int | float | None] = {
            "epoch_num_train_steps": num_steps,
            "epoch_train_time_secs": round(secs),
            "global_train_step": self.global_step,
            "global_train_step_end": global_step,
            "effective_learning_rate": float(self.learning_rate),
            "returnn": returnn.__version__,
            "torch": torch.__version__,
            "time": time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(self.start_time)),
            "hostname": socket.gethostname(),
            "device": _device_name(device),
            "cpu": _cpu_name(),
            "distributed": None if state.world_size == 1 else f"{state.world_size} ranks",
        }
        return {META_PREFIX + name: value for name, value in facts.items()}


def _device_name(device: str | torch.device) -> str:
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
