"""
The other processes of a distributed run: how they come together, and how they exchange objects.

Tensors travel over the default group of ``torch.distributed`` (nccl for CUDA, gloo for the CPU). Objects and numbers of the host
travel over a gloo group of their own, so that no process waits for its device because of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from returnn._state import state
from returnn.errors import DistributedError
from returnn.log import log
from returnn.options.distributed import DistributedOptions
from returnn.options.training import EngineOptions
from returnn.torch.device import choose_device
from returnn.torch.distributed.failure import end_rank_watch, start_rank_watch
from returnn.util.launcher import Launch, find_launch, set_process_rank

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["DistributedContext", "get_distributed", "init_distributed", "shutdown_distributed"]

T = TypeVar("T")

#: With more, the connections of each rank with each other one take long, and are more than a process may have open.
_MAX_RANKS_ALL_CONNECTED = 64


@dataclasses.dataclass(frozen=True)
class RankInfo:
    """What each process tells the others at the start."""

    rank: int
    host: str
    pid: int
    device: str
    gpu: str | None  # identity of the GPU; None: no CUDA device
    local_rank: int


class DistributedContext:
    """
    This process among the others. All methods that exchange something must be called on all ranks, in the same order, from
    the main thread.
    """

    def __init__(
        self,
        launch: Launch,
        options: DistributedOptions,
        device: torch.device,
        *,
        store: dist.Store | None,
        owns_group: bool,
    ):
        """
        :param launch: rank and size
        :param options: the user's
        :param device: of this rank
        :param store: of the rendezvous; None if user code made the process group
        :param owns_group: the default group was made here
        """
        self.rank = launch.rank
        self.size = launch.size
        self.local_rank = launch.local_rank
        self.local_size = launch.local_size
        self.launcher = launch.launcher
        self.device = device
        self.options = options
        self.store = store
        self._owns_group = owns_group
        if owns_group and dist.get_backend() == "gloo":
            # Each gloo group connects each rank with each other one, so there is only one of them.
            self._objects = dist.group.WORLD
        else:
            self._objects = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=options.timeout_sec))
        #: one entry per rank
        self.ranks: Sequence[RankInfo] = self.all_gather_objects(_own_info(launch, device))

    def __repr__(self) -> str:
        return f"<DistributedContext rank {self.rank} of {self.size}, {self.device}>"

    @property
    def is_first(self) -> bool:
        """:return: whether this is rank 0, which writes the files"""
        return self.rank == 0

    def gather_objects(self, obj: T) -> list[T] | None:
        """
        :param obj: can be pickled
        :return: on rank 0 those of all ranks, in their order; None on the others
        """
        res: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(obj, res, dst=0, group=self._objects)
        return res

    def all_gather_objects(self, obj: T) -> list[T]:
        """
        :param obj: can be pickled
        :return: those of all ranks, in their order
        """
        res: list[Any] = [None] * self.size
        dist.all_gather_object(res, obj, group=self._objects)
        return res

    def broadcast_object(self, obj: T, src: int = 0) -> T:
        """
        :param obj: can be pickled; only that of the rank ``src`` matters
        :param src: rank
        :return: that of the rank ``src``
        """
        objs = [obj]
        dist.broadcast_object_list(objs, src=src, group=self._objects, device=torch.device("cpu"))
        return objs[0]

    def all_reduce_sums(self, values: Sequence[float]) -> list[float]:
        """
        :param values: as many on all ranks
        :return: per value the sum over all ranks, correctly rounded: it depends neither on the order of the ranks, nor on how
            the summands are distributed, as long as those of each rank are exact
        """
        own = torch.tensor(list(values), dtype=torch.float64)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own, group=self._objects)
        return [math.fsum(column) for column in zip(*(part.tolist() for part in parts), strict=True)]

    def begin_sum(self, values: torch.Tensor) -> dist.Work:
        """
        Sum numbers of the host over all ranks, in the background.

        :param values: on the CPU; in place
        :return: to wait for
        """
        work = dist.all_reduce(values, group=self._objects, async_op=True)
        assert work is not None
        return work

    def sum_on_host(self, values: torch.Tensor) -> torch.Tensor:
        """
        :param values: on the CPU; in place
        :return: the same, summed over all ranks
        """
        self.begin_sum(values).wait()
        return values

    def barrier(self) -> None:
        """Wait for all ranks (for their main threads, not for their devices)."""
        self.sum_on_host(torch.zeros(1))

    @property
    def object_group(self) -> dist.ProcessGroup | None:
        """:return: gloo group for tensors on the CPU, used only from the main thread"""
        return self._objects

    def close(self, *, error: bool) -> None:
        """:param error: this process ends by an error: do not wait for the others"""
        if error or not dist.is_initialized():
            return
        # Rank 0 may hold the connection of all: it should not be gone while others still need it.
        with contextlib.suppress(RuntimeError):
            self.barrier()
        if self._owns_group:
            dist.destroy_process_group()


def get_distributed() -> DistributedContext | None:
    """:return: what :func:`init_distributed` made; None: this process trains alone"""
    ctx: DistributedContext | None = state.distributed
    return ctx


def init_distributed(config: Config | Mapping[str, Any]) -> DistributedContext | None:
    """
    Come together with the other processes, if there are any. Repeated calls give the same context.

    :param config: the user's
    :return: None: there is only this process
    :raises OptionError: the option ``torch_distributed`` is invalid
    :raises DistributedError: the processes do not come together in time, or share a GPU
    """
    if state.distributed is not None:
        return get_distributed()
    options = DistributedOptions.from_config(config)
    launch = find_launch(job_systems=options.is_set)
    if launch.size <= 1:
        if options.is_set:
            print("torch_distributed is set, but there is only one process: training goes as without it.", file=log.v2)
        return None
    set_process_rank(launch)  # the program did so already; an engine that is used as a library did not
    requested = EngineOptions.from_config(config).device
    device = torch.device(choose_device(requested, local_rank=launch.local_rank))
    backend = _backend(options, device)
    owns_group = not dist.is_initialized()
    store = None
    if owns_group:
        with _as_sentence(launch, options):
            store = _meet(launch, options)
            start_rank_watch(store, host=launch.master_addr, timeout_secs=options.timeout_sec)
            dist.init_process_group(
                backend=backend,
                store=dist.PrefixStore("default_pg", store),
                rank=launch.rank,
                world_size=launch.size,
                timeout=datetime.timedelta(seconds=options.timeout_sec),
            )
    elif (dist.get_rank(), dist.get_world_size()) != (launch.rank, launch.size):
        raise DistributedError(
            f"The process group that was made before says rank {dist.get_rank()} of {dist.get_world_size()}, the environment of "
            f"{launch.launcher} says rank {launch.rank} of {launch.size}. Leave the group to us, or make the same one."
        )
    with _as_sentence(launch, options):
        if store is None:
            start_rank_watch(None, host=launch.master_addr, timeout_secs=options.timeout_sec)
        ctx = DistributedContext(launch, options, device, store=store, owns_group=owns_group)
    if "nccl" in backend:
        _check_gpus(ctx.ranks)
    state.distributed = ctx
    print(
        f"Distributed: rank {ctx.rank} of {ctx.size}, started by {launch.launcher}"
        + ("" if options.is_set else " (torch_distributed is not set: its defaults are used)")
        + f"; {len({info.host for info in ctx.ranks})} machines, {backend}, {device}, {_describe(options)}",
        file=log.v2,
    )
    return ctx


def shutdown_distributed(error: bool = False) -> None:
    """
    Part from the other processes: wait for them to come here too, and say good-bye, so that they do not take the end of this
    process for a failure. A program that trains with several ranks calls it at its end (rnn.py does). Without effect if
    there are none.

    :param error: this process ends by an error: do not wait for the others
    """
    ctx = get_distributed()
    state.distributed = None
    if ctx is not None:
        ctx.close(error=error)
    end_rank_watch(error=error)


def _describe(options: DistributedOptions) -> str:
    if options.is_fsdp:
        text = "model in shards (FSDP2)"
    else:
        text = f'reduce_type "{options.reduce_type}"'
        if options.param_sync_step:
            text += f", parameters are averaged each {options.param_sync_step} steps"
    return (
        text
        + f', losses normalised "{options.loss_normalization}", uneven data "{options.uneven}", {options.data} data'
    )


def _backend(options: DistributedOptions, device: torch.device) -> str:
    """
    :return: for init_process_group
    :raises DistributedError: it cannot be used here
    """
    if device.type not in ("cpu", "cuda"):
        raise DistributedError(
            f'Several processes need device = "cpu" or "cuda", not "{device.type}", which torch.distributed does not support.'
        )
    backend = options.backend or ("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    if device.type == "cpu" and backend == "cpu:gloo,cuda:nccl":
        backend = "gloo"  # the peers' default, usual in configs for any device
    if not dist.is_gloo_available():
        raise DistributedError(
            "This torch has no gloo, which distributed training needs. Install another build of torch."
        )
    if "nccl" in backend and device.type != "cuda":
        raise DistributedError(
            f'torch_distributed has the backend "{backend}", but the device is {device}. Remove the backend, or set device = "cuda".'
        )
    if "nccl" in backend and not dist.is_nccl_available():
        raise DistributedError(
            f'This torch has no nccl (backend "{backend}"). Install a build for CUDA, or set the backend "gloo".'
        )
    return backend


def _meet(launch: Launch, options: DistributedOptions) -> dist.Store:
    """:return: where all ranks have said that they are there"""
    if launch.master_addr is None or launch.master_port is None:
        missing = "MASTER_ADDR" if launch.master_addr is None else "MASTER_PORT"
        raise DistributedError(
            f"{launch.launcher} does not say where rank 0 runs. Set the environment variable {missing} "
            "for all processes, or start them with torchrun."
        )
    os.environ.setdefault("MASTER_ADDR", launch.master_addr)
    os.environ.setdefault("MASTER_PORT", str(launch.master_port))
    if launch.size > _MAX_RANKS_ALL_CONNECTED:
        os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")  # connect two ranks only when they talk to each other
    timeout = datetime.timedelta(seconds=options.startup_timeout_sec)
    store, _, _ = next(rendezvous("env://", rank=launch.rank, world_size=launch.size, timeout=timeout))
    # After an elastic restart, torchrun's agent may still have what the processes before wrote there.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"returnn/{attempt}/{launch.size}", store)
    keys = [f"here/{rank}" for rank in range(launch.size)]
    store.set(keys[launch.rank], socket.gethostname())
    try:
        store.wait(keys, timeout)
    except RuntimeError as exc:
        missing_ranks = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
        raise DistributedError(
            f"Rank {launch.rank} of {launch.size}: after {options.startup_timeout_sec:g} s "
            f"(startup_timeout_sec of torch_distributed) these ranks are still missing: {_shorten(missing_ranks)}. "
            "Look into their logs, and check that all processes were started with the same number of processes."
        ) from exc
    return store


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


@contextlib.contextmanager
def _as_sentence(launch: Launch, options: DistributedOptions) -> Iterator[None]:
    """Errors of torch.distributed while the ranks come together are mistakes of the environment, not of our code."""
    try:
        yield
    except DistributedError:
        raise
    except (RuntimeError, ValueError) as exc:
        text = str(exc)
        where = f"{launch.master_addr}:{launch.master_port}"
        start = f"Rank {launch.rank} of {launch.size}:"
        if "EADDRINUSE" in text or "address already in use" in text.lower():
            sentence = (
                f"the port {launch.master_port}, where rank 0 should listen, is in use on this machine. Set the environment variable "
                "MASTER_PORT to another one for all processes (with torchrun: --master-port, or --standalone)."
            )
        elif "clients joined" in text:
            sentence = (
                f"not all {launch.size} processes came to {where} within {options.startup_timeout_sec:g} s "
                "(startup_timeout_sec of torch_distributed). Look into their logs, and check that all were started."
            )
        elif "socket" in text or "connect" in text.lower() or "hostname" in text:
            sentence = (
                f"rank 0 is not reachable at {where} (environment variables MASTER_ADDR and MASTER_PORT). "
                "Check that it was started and did not end, and that no firewall is between."
            )
        else:
            sentence = "the processes could not come together. Look into the logs of the other ranks."
        raise DistributedError(f"{start} {sentence} (torch says: {text.strip().splitlines()[0][:300]})") from exc


def _own_info(launch: Launch, device: torch.device) -> RankInfo:
    gpu = None
    if device.type == "cuda":
        props: Any = torch.cuda.get_device_properties(device)  # Any: the attributes differ between versions of torch
        gpu = str(getattr(props, "uuid", None) or f"{os.environ.get('CUDA_VISIBLE_DEVICES')}:{device.index}")
    return RankInfo(
        rank=launch.rank,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=str(device),
        gpu=gpu,
        local_rank=launch.local_rank,
    )


def _check_gpus(ranks: Sequence[RankInfo]) -> None:
    """:raises DistributedError: two ranks have the same GPU, which nccl cannot do"""
    users: dict[tuple[str, str], int] = {}
    for info in ranks:
        if info.gpu is None:
            continue
        other = users.setdefault((info.host, info.gpu), info.rank)
        if other != info.rank:
            raise DistributedError(
                f"Ranks {other} and {info.rank} both use the same GPU ({info.device} on {info.host}), which nccl does not support. "
                'Set device = "cuda" without a number, and start at most as many processes per machine as it has GPUs.'
            )
