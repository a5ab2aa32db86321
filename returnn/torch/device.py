"""Which device the model runs on."""

from __future__ import annotations

import functools
import os

import torch

from returnn.errors import ConfigError
from returnn.log import log

__all__ = ["choose_device", "device_memory_text", "device_type", "move_to_device"]


class DeviceError(ConfigError, RuntimeError):
    """The wanted device is not there."""


def choose_device(requested: str | None, *, local_rank: int | None = None) -> str:
    """
    :param requested: option ``device``; the environment variable PT_DEVICE goes first. None: cuda if available, else cpu
    :param local_rank: of several processes on this machine: each gets another GPU, unless a number is requested
    :return: e.g. "cpu", "cuda", "cuda:1"
    :raises ConfigError: not available here, or no such device
    """
    source = "config"
    if os.environ.get("PT_DEVICE"):
        requested, source = os.environ["PT_DEVICE"], "environment variable PT_DEVICE"
    if requested is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and local_rank is not None:
            device = _cuda_of_rank(local_rank)
        print(f"Using device: {device} (automatic; set the option device to choose)", file=log.v2)
        return device
    device = requested.strip().lower()
    if device == "gpu" or device.startswith("gpu:"):
        device = "cuda" + device[len("gpu") :]
        source += f': "{requested}", the old name'
    try:
        parsed = torch.device(device)
    except RuntimeError as exc:
        raise ConfigError(
            f'option "device" is {requested!r} ({source}), which is no device. Use "cpu", "cuda" or "cuda:N".'
        ) from exc
    if parsed.type == "cuda":
        if not torch.cuda.is_available():
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            raise DeviceError(
                f"No GPU device found, but config requested 'gpu' device. (device = {requested!r} from {source}, "
                f"torch {torch.__version__}, CUDA_VISIBLE_DEVICES = {visible!r}.) "
                'Check the driver and the job\'s GPU request, or set device = "cpu".'
            )
        if parsed.index is None and local_rank is not None:
            device = _cuda_of_rank(local_rank)
            parsed = torch.device(device)
        if parsed.index is not None and parsed.index >= torch.cuda.device_count():
            raise DeviceError(
                f"No GPU device found with index {parsed.index} (device = {requested!r} from {source}): "
                f"there are {torch.cuda.device_count()}."
            )
        if parsed.index is not None:
            torch.cuda.set_device(parsed)  # for code that says just "cuda"
    if parsed.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f'device = {requested!r} ({source}) is not available here. Set device = "cpu".')
    print(f"Using device: {device} ({source})", file=log.v2)
    return device


def _cuda_of_rank(local_rank: int) -> str:
    """
    :return: the GPU of that process. If only one is visible, it is this one: launchers may show each process its own
    :raises DeviceError: there are fewer GPUs than processes on this machine
    """
    num_devices = torch.cuda.device_count()
    index = local_rank if num_devices > 1 else 0
    if index >= num_devices:
        raise DeviceError(
            f"Local rank {local_rank} has no GPU: there are {num_devices} on this machine "
            f"(CUDA_VISIBLE_DEVICES = {os.environ.get('CUDA_VISIBLE_DEVICES')!r}). Start at most {num_devices} processes on it "
            '(torchrun: --nproc-per-node), or set device = "cpu".'
        )
    torch.cuda.set_device(index)  # for code that says just "cuda"
    return f"cuda:{index}"


@functools.cache
def device_type(device: str | torch.device) -> str:
    """:return: e.g. "cuda" for a device "cuda:1"."""
    return torch.device(device).type


def device_memory_text(device: str | torch.device) -> str | None:
    """:return: ``GMEM: max allocated/max reserved/total`` in GiB for a CUDA device, else None"""
    parsed = torch.device(device)
    if parsed.type != "cuda":
        return None
    gib = 1024**3
    total = torch.cuda.get_device_properties(parsed).total_memory
    allocated = torch.cuda.max_memory_allocated(parsed)
    reserved = torch.cuda.max_memory_reserved(parsed)
    return f"GMEM: {allocated / gib:.1f}/{reserved / gib:.1f}/{total / gib:.1f}"


def move_to_device(data: dict[str, object], device: str | torch.device) -> dict[str, object]:
    """
    :param data: raw batch: tensors, lists
    :param device: target
    :return: new dict, tensors on the device. Copies do not wait for the device; all int64 size tensors travel in one copy
    """
    if device_type(device) == "cpu":
        return {k: v.to(device) if isinstance(v, torch.Tensor) and not v.is_cpu else v for k, v in data.items()}
    sizes = {k: v for k, v in data.items() if isinstance(v, torch.Tensor) and ":size" in k and v.dtype == torch.int64}
    moved: dict[str, torch.Tensor] = {}
    if sizes:
        flat = torch.cat([v.reshape(-1) for v in sizes.values()])
        if device_type(device) == "cuda":
            flat = flat.pin_memory()
        parts = flat.to(device, non_blocking=True).split([v.numel() for v in sizes.values()])
        moved = {k: part.reshape(v.shape) for (k, v), part in zip(sizes.items(), parts, strict=True)}
    return {
        k: moved[k] if k in moved else v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v
        for k, v in data.items()
    }
