"""Which exceptions may be the fault of another rank."""

from __future__ import annotations

import pytest
import torch

from returnn.torch.distributed.failure import is_peer_error


@pytest.mark.parametrize(
    "exc",
    [
        RuntimeError(
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"
        ),
        RuntimeError(
            "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv"
        ),
        RuntimeError("NCCL communicator was aborted on rank 1"),
        torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:1, remote process exited"),
        torch.distributed.DistNetworkError("Failed to recv"),
        ConnectionResetError("reset"),
    ],
)
def test_may_be_the_fault_of_another_rank(exc: Exception) -> None:
    assert is_peer_error(exc)
    try:
        raise ValueError("wrapped") from exc
    except ValueError as wrapper:
        assert is_peer_error(wrapper)


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("bad value"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("shape mismatch"),
    ],
)
def test_own_fault(exc: Exception) -> None:
    assert not is_peer_error(exc)
