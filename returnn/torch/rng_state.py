"""The state of all random generators of the process, in a form that safe loading of checkpoints accepts."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy
import torch

from returnn.errors import CheckpointError

__all__ = ["RngState", "get_rng_state", "set_rng_state"]

#: generator name -> state. Any: tensors, ints, floats and lists, as each generator needs.
RngState: TypeAlias = dict[str, Any]


def get_rng_state() -> RngState:
    """
    :return: state of the generators of torch (CPU, and all CUDA devices once CUDA is in use), numpy (legacy global generator)
        and Python's ``random``; only tensors, ints, floats, lists, None
    """
    _, keys, pos, has_gauss, cached = numpy.random.get_state()  # type: ignore[misc]  # tuple form: legacy=True
    version, internal, gauss_next = random.getstate()
    state: RngState = {
        "torch": torch.get_rng_state(),
        "numpy": {
            "keys": torch.from_numpy(numpy.asarray(keys).astype(numpy.int64)),
            "pos": int(pos),
            "has_gauss": int(has_gauss),
            "cached_gaussian": float(cached),
        },
        "python": {"version": version, "internal": list(internal), "gauss_next": gauss_next},
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["torch_cuda"] = list(torch.cuda.get_rng_state_all())
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """
    Continue with the generators where :func:`get_rng_state` was called. Generators that the state does not have stay as they are.

    :param state: from :func:`get_rng_state`. Any: see RngState
    :raises CheckpointError: not such a state
    """
    try:
        if "torch" in state:
            torch.set_rng_state(state["torch"].cpu())
        if "torch_cuda" in state and torch.cuda.is_available():
            # Another machine may have another number of devices.
            for device_idx, device_state in enumerate(state["torch_cuda"][: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(device_state.cpu(), device_idx)
        if "numpy" in state:
            opts = state["numpy"]
            keys = opts["keys"].cpu().numpy().astype(numpy.uint32)
            numpy.random.set_state(("MT19937", keys, opts["pos"], opts["has_gauss"], opts["cached_gaussian"]))
        if "python" in state:
            opts = state["python"]
            random.setstate((opts["version"], tuple(opts["internal"]), opts["gauss_next"]))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as exc:
        raise CheckpointError(
            f"The random generator state of the checkpoint cannot be used: {type(exc).__name__}: {exc}."
        ) from exc
