"""Which device and backend a rank uses; what does not need other processes."""

from __future__ import annotations

import pytest
import torch

from returnn._state import process_state_ctx, state
from returnn.config import Config
from returnn.errors import ConfigError, DistributedError
from returnn.options.distributed import DistributedOptions
from returnn.torch.device import choose_device
from returnn.torch.distributed import context
from returnn.torch.distributed.context import RankInfo, get_distributed, init_distributed, shutdown_distributed
from returnn.torch.distributed.start import first_rank_decides, gather_rng_states, shared_file


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """:return: the number of GPUs that there seem to be, to be changed; then, the ones that were chosen"""
    seen = [4]
    monkeypatch.delenv("PT_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen[0])
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: seen.append(device if isinstance(device, int) else device.index)
    )
    return seen


@pytest.mark.parametrize("requested", [None, "cuda", "gpu"])
def test_gpu_of_a_rank(requested: str | None, gpus: list[int]) -> None:
    assert choose_device(requested, local_rank=2) == "cuda:2"
    assert set(gpus[1:]) == {2}
    gpus[0] = 1  # the launcher shows each process its own
    assert choose_device(requested, local_rank=2) == "cuda:0"


def test_gpu_by_number(gpus: list[int]) -> None:
    assert choose_device("cuda:3", local_rank=1) == "cuda:3"
    assert choose_device("cpu", local_rank=1) == "cpu"
    assert gpus == [4, 3]


def test_too_few_gpus(gpus: list[int]) -> None:
    gpus[0] = 2
    with pytest.raises(ConfigError, match="Local rank 2 has no GPU: there are 2 on this machine.*at most 2 processes"):
        choose_device("cuda", local_rank=2)


def _rank(rank: int, host: str, gpu: str | None) -> RankInfo:
    return RankInfo(rank=rank, host=host, pid=1, device="cuda:0", gpu=gpu, local_rank=0)


def test_two_ranks_on_one_gpu() -> None:
    context._check_gpus([_rank(0, "a", "x"), _rank(1, "a", "y"), _rank(2, "b", "x"), _rank(3, "b", None)])
    with pytest.raises(DistributedError, match="Ranks 0 and 2 both use the same GPU .cuda:0 on a."):
        context._check_gpus([_rank(0, "a", "x"), _rank(1, "a", "y"), _rank(2, "a", "x")])


def _backend(device: str, backend: str | None = None) -> str:
    return context._backend(DistributedOptions(backend=backend), torch.device(device))


def test_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    assert _backend("cpu") == "gloo"
    assert _backend("cpu", "cpu:gloo,cuda:nccl") == "gloo"
    assert _backend("cuda:1") == "cpu:gloo,cuda:nccl"
    assert _backend("cuda:1", "nccl") == "nccl"
    assert _backend("cuda:1", "gloo") == "gloo"
    with pytest.raises(DistributedError, match='not "mps"'):
        _backend("mps")
    with pytest.raises(DistributedError, match='backend "nccl", but the device is cpu'):
        _backend("cpu", "nccl")
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(DistributedError, match="no nccl"):
        _backend("cuda")


def test_one_process(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with process_state_ctx():
        assert init_distributed(Config({"device": "cpu"})) is None
        assert capsys.readouterr().out == ""
        assert init_distributed(Config({"device": "cpu", "torch_distributed": {}})) is None
        assert "there is only one process" in capsys.readouterr().out
        assert get_distributed() is None
        shutdown_distributed()
    assert first_rank_decides(lambda: 3) == 3
    assert gather_rng_states() == []
    with shared_file("some file", is_model=True) as path:
        assert path == "some file"


@pytest.mark.parametrize("error", [False, True])
def test_the_end_tells_the_other_ranks(error: bool) -> None:
    class Watch:
        closed: list[bool] = []

        def close(self, *, error: bool) -> None:
            self.closed.append(error)

    with process_state_ctx():
        state.rank_watch = Watch()
        shutdown_distributed(error=error)
        assert Watch.closed == [error] and state.rank_watch is None
        shutdown_distributed(error=error)
        assert Watch.closed == [error]
