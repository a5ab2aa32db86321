"""Says which devices there are, and why there may be none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TextIO

import torch

from returnn.log import log

__all__ = ["diagnose_no_gpu", "print_available_devices", "print_using_cuda_device_report"]


def print_available_devices(*, file: TextIO | None = None) -> None:
    """
    Print all CUDA devices with name and memory, and the environment variables that select them.

    :param file: None: the log, v2
    """
    out = file if file is not None else log.v2
    for var in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF"):
        if var in os.environ:
            print(f"{var} is set to {os.environ[var]!r}.", file=out)
    num = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not num:
        print("Available CUDA devices: none", file=out)
        return
    print("Available CUDA devices:", file=out)
    for i in range(num):
        props = torch.cuda.get_device_properties(i)
        print(f"  {i + 1}/{num}: cuda:{i}", file=out)
        print(f"       name: {props.name}", file=out)
        print(f"       total_memory: {props.total_memory / 1024**3:.1f}GB", file=out)
        print(f"       capability: {props.major}.{props.minor}", file=out)


def print_using_cuda_device_report(dev: str | torch.device, *, file: TextIO | None = None) -> None:
    """
    Print which CUDA device is used.

    :param dev: e.g. "cuda" or "cuda:1"
    :param file: None: the log, v2
    """
    out = file if file is not None else log.v2
    device = torch.device(dev)
    index = device.index if device.index is not None else torch.cuda.current_device()
    free, total = torch.cuda.mem_get_info(index)
    name = torch.cuda.get_device_name(index)
    print(f"Using cuda device {index}: {name}, {free / 1024**3:.1f}GB of {total / 1024**3:.1f}GB free", file=out)


def diagnose_no_gpu() -> list[str]:
    """
    :return: lines that help to find out why torch sees no GPU: torch build, environment, what the driver's tool says
    """
    lines = [
        f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, Python {sys.version.split()[0]}",
        f"CUDA_VISIBLE_DEVICES = {os.environ.get('CUDA_VISIBLE_DEVICES')!r}",
        f"torch.cuda.is_available() = {torch.cuda.is_available()}",
    ]
    if torch.version.cuda is None and torch.version.hip is None:
        lines.append("This torch is a CPU build: install one with CUDA.")
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as exc:
        lines.append(f"torch.cuda.init() says: {exc}")
    tool = shutil.which("nvidia-smi")
    if tool is None:
        lines.append("nvidia-smi is not installed: probably this machine has no NVIDIA driver.")
        return lines
    try:
        res = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=10)
        lines.append(f"nvidia-smi -L says: {(res.stdout + res.stderr).strip()}")
    except (OSError, subprocess.TimeoutExpired) as exc:
        lines.append(f"nvidia-smi failed: {exc}")
    return lines
