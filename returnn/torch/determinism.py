"""The option ``deterministic``, and which seeds a training has."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Mapping
from typing import Any

import numpy
import torch

from returnn._state import state
from returnn.log import log
from returnn.options.training import EngineOptions
from returnn.torch.device import device_type
from returnn.util.seeds import merge_random_seeds

__all__ = ["make_deterministic", "print_seeds"]

_WORKSPACE_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
#: With one of these, results of cuBLAS do not depend on how its streams share memory.
_WORKSPACE_VALUES = (":4096:8", ":16:8")


def make_deterministic(options: EngineOptions, *, device: str) -> None:
    """
    Set what torch offers, for the whole process and those that it starts, seed the generators that nobody seeds otherwise, and say what
    stays open.

    :param options: of the engine. ``deterministic`` True: operations that have no deterministic implementation warn, by name, once each;
        "strict": they are errors. False: nothing is done
    :param device: of the model
    """
    mode = options.deterministic
    if not mode:
        return
    done = [f"torch.use_deterministic_algorithms({'' if mode == 'strict' else 'warn_only'})"]
    torch.use_deterministic_algorithms(True, warn_only=mode != "strict")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    if device_type(device) == "cuda":
        done.append("cudnn.deterministic, no cudnn.benchmark")
        if os.environ.get(_WORKSPACE_VARIABLE) not in _WORKSPACE_VALUES:
            os.environ[_WORKSPACE_VARIABLE] = _WORKSPACE_VALUES[0]  # read when cuBLAS is first used
        done.append(f"{_WORKSPACE_VARIABLE}={os.environ[_WORKSPACE_VARIABLE]}")
    seed = merge_random_seeds([options.random_seed, state.rank])
    random.seed(seed)
    numpy.random.seed(seed)
    done.append(f"seed {seed} for numpy.random and random of this process")
    print(f"Deterministic: {', '.join(done)}.", file=log.v3)
    print(f"  Not in our hands: {'; '.join(_open_points(device))}.", file=log.v3)


def _open_points(device: str) -> list[str]:
    """:return: what can still change results"""
    points = [
        f"the number of threads, now {torch.get_num_threads()} (OMP_NUM_THREADS)",
        f"versions and machine: torch {torch.__version__}, CPU capability {torch.backends.cpu.get_cpu_capability()}",
    ]
    if device_type(device) == "cuda":
        points[-1] += f", {torch.cuda.get_device_name(torch.device(device))}"
        points.append("kernels that you or extensions bring along, and what torch_compile chooses by measuring")
    if state.world_size > 1:
        points.append(
            f"the number of processes, now {state.world_size}, and the order in which NCCL or gloo add them up"
        )
    if not sys.flags.hash_randomization:
        return points
    value = os.environ.get("PYTHONHASHSEED", "random")
    if not value.isdigit():
        points.append("the order of sets of texts in code of the config (set PYTHONHASHSEED=0 before the start)")
    return points


def print_seeds(options: EngineOptions, *, per_epoch: bool, datasets: Mapping[str, Any]) -> None:
    """
    One line: what the random numbers of a training come from.

    :param options: of the engine
    :param per_epoch: torch is seeded at the start of each epoch
    :param datasets: by name. Any: a class of the user may have no seeds
    """
    seed = options.random_seed
    parts = [f"random_seed {seed} (model, loader workers{', and with the step each epoch' if per_epoch else ''})"]
    for name, dataset in datasets.items():
        fixed, offset = getattr(dataset, "fixed_random_seed", None), getattr(dataset, "random_seed_offset", None)
        if fixed is not None:
            parts.append(f"dataset {name}: {fixed} in each epoch")
        elif offset is not None:
            parts.append(f"dataset {name}: epoch + {offset}" if offset else f"dataset {name}: the epoch")
    others = merge_random_seeds([seed, state.rank]) if options.deterministic else "from the system"
    parts.append(f"numpy.random and random of the main process: {others}")
    print(f"Random seeds: {'; '.join(parts)}.", file=log.v3)
