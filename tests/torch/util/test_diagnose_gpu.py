"""returnn.torch.util.diagnose_gpu, on machines with and without GPU."""

from __future__ import annotations

import io

import torch

from returnn.torch.util.diagnose_gpu import diagnose_no_gpu, print_available_devices, print_using_cuda_device_report


def test_available_devices() -> None:
    out = io.StringIO()
    print_available_devices(file=out)
    assert "Available CUDA devices:" in out.getvalue()
    assert ("none" in out.getvalue()) == (not torch.cuda.is_available())


def test_diagnosis_names_the_torch_build() -> None:
    lines = diagnose_no_gpu()
    assert torch.__version__ in lines[0]
    assert any("nvidia-smi" in line for line in lines)


def test_using_device_report() -> None:
    if not torch.cuda.is_available():
        return
    out = io.StringIO()
    print_using_cuda_device_report("cuda", file=out)
    assert "Using cuda device 0" in out.getvalue()
