#!/usr/bin/env python3
"""
Averages the parameters of several PyTorch checkpoints into one checkpoint.

This file needs torch only, so that it can be copied to where returnn is not; it imports torch (which takes seconds) when it is
needed, after the command line has been looked at. Tensors are read from disk one parameter at a time: besides the result,
memory holds one tensor per input.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["AverageError", "main", "merge_checkpoints"]

#: Name of a file that is being written: this is added.
_TMP_POSTFIX = ".tmp_write"
_POSITION_KEYS = ("epoch", "step")


class AverageError(AssertionError):
    """The inputs cannot be averaged, or are missing. AssertionError is what client code of the peers may catch."""


def merge_checkpoints(
    in_ckpts: Sequence[str],
    out_ckpt: str,
    extra_state: Mapping[str, Any] | None = None,
    *,
    weights: Sequence[float] | None = None,
    as_peers: bool = False,
    load_unsafe_checkpoints: bool = False,
) -> None:
    """
    Write the average of checkpoints.

    Floating-point parameters: mean over the checkpoints that have the name, computed in float64, stored in the dtype of
    the newest of them. Other parameters (counters, flags, indices): of the newest checkpoint, that is the one with the
    highest epoch, then step, then the last given. ``epoch`` and ``step``: the highest ones. ``merged_epochs``,
    ``merged_steps``: those of the inputs, and of what these were averaged from. Other entries: of the first checkpoint
    that has them.

    :param in_ckpts: files with an entry ``model``
    :param out_ckpt: file; it appears, or is replaced, when it is complete
    :param extra_state: entries that override others
    :param weights: one per input, not negative; divided by their sum. None: all the same
    :param as_peers: numbers as the peers have them: integers become floats; an input that is an average itself is also
        listed in merged_epochs with its own epoch. For comparisons
    :param load_unsafe_checkpoints: accept files with any Python objects; loading them can run any code
    :raises AverageError: missing or broken file, no entry ``model``, shapes that differ, wrong weights
    """
    weights = _check_weights(weights, num=len(in_ckpts))
    folder = os.path.dirname(out_ckpt) or "."
    if not os.path.isdir(folder):
        raise AverageError(f"Cannot save {out_ckpt}: the folder {folder} does not exist. Create it.")
    checkpoints = []
    for filename in in_ckpts:
        print("read ckpt:", filename)
        checkpoints.append(_load(filename, unsafe=load_unsafe_checkpoints))
    models = [checkpoint["model"] for checkpoint in checkpoints]
    _warn_about_keys(in_ckpts, models)
    state: dict[str, Any] = {
        "model": _Average(in_ckpts, models, weights, newest=_newest_last(checkpoints), as_peers=as_peers).state()
    }
    state.update(_merged_positions(checkpoints, as_peers=as_peers))
    for checkpoint in checkpoints:
        for key, value in checkpoint.items():
            state.setdefault(key, value)
    state.update(extra_state or {})
    print("save ckpt:", out_ckpt)
    _save_atomic(state, out_ckpt)


def _check_weights(weights: Sequence[float] | None, *, num: int) -> list[float]:
    if not num:
        raise AverageError("No checkpoints were given. Give at least one.")
    if weights is None:
        return [1.0] * num
    if len(weights) != num or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise AverageError(
            f"The weights are wrong: expected {num} numbers, one per checkpoint, not negative and not all 0, "
            f"got {list(weights)}."
        )
    return [float(w) for w in weights]


def _newest_last(checkpoints: Sequence[Mapping[str, Any]]) -> list[int]:
    """:return: indices; by epoch, then step, then the given order. A checkpoint that does not know its epoch is oldest"""

    def position(i: int) -> tuple[float, float]:
        values = [checkpoints[i].get(key) for key in _POSITION_KEYS]
        epoch, step = (float("-inf") if value is None else float(value) for value in values)
        return epoch, step

    return sorted(range(len(checkpoints)), key=position)


def _merged_positions(checkpoints: Sequence[Mapping[str, Any]], *, as_peers: bool) -> dict[str, Any]:
    """:return: merged_epochs, merged_steps, epoch, step"""
    res: dict[str, Any] = {}
    for key in _POSITION_KEYS:
        merged: list[Any] = []
        for checkpoint in checkpoints:
            if f"merged_{key}s" in checkpoint:
                merged += checkpoint[f"merged_{key}s"]
                if not as_peers:
                    continue
            if not as_peers:
                merged.append(checkpoint.get(key))
        if as_peers:
            merged += [checkpoint.get(key) for checkpoint in checkpoints]
        res[f"merged_{key}s"] = merged
    for key in _POSITION_KEYS:
        values = [checkpoint[key] for checkpoint in checkpoints if checkpoint.get(key) is not None]
        if values:
            res[key] = max(values)
    return res


class _Average:
    """The state dict of the result."""

    def __init__(
        self,
        names: Sequence[str],
        models: Sequence[Mapping[str, Any]],
        weights: Sequence[float],
        *,
        newest: Sequence[int],
        as_peers: bool,
    ):
        """
        :param names: of the checkpoints, for messages
        :param models: their state dicts; Any: modules can have extra state of any type
        :param weights: one per checkpoint
        :param newest: indices of the checkpoints, the newest is last
        :param as_peers: see merge_checkpoints
        """
        self._names = names
        self._models = models
        self._weights = weights
        self._newest = newest
        self._as_peers = as_peers
        self._done: dict[object, torch.Tensor] = {}

    def state(self) -> dict[str, Any]:
        """:return: parameter name -> value. Names that are one tensor in all inputs are one in the result too"""
        names = dict.fromkeys(name for model in self._models for name in model)
        return {name: self._value(name) for name in names}

    def _value(self, name: str) -> Any:
        import torch

        having = [i for i, model in enumerate(self._models) if name in model]
        newest = self._models[[i for i in self._newest if i in having][-1]][name]
        values = [self._models[i][name] for i in having]
        if not isinstance(newest, torch.Tensor) or not all(isinstance(v, torch.Tensor) for v in values):
            return newest
        identity = tuple((i, *_identity(v)) for i, v in zip(having, values, strict=True))
        if identity not in self._done:
            self._done[identity] = self._tensor(name, having, values, newest)
        return self._done[identity]

    def _tensor(
        self, name: str, having: Sequence[int], values: Sequence[torch.Tensor], newest: torch.Tensor
    ) -> torch.Tensor:
        import torch

        for i, value in zip(having, values, strict=True):
            if value.shape != newest.shape:
                raise AverageError(
                    f"Parameter {name!r} has the shape {list(value.shape)} in {self._names[i]}, but {list(newest.shape)} "
                    "in another checkpoint. Average only checkpoints of the same model."
                )
        is_float = newest.is_floating_point() or newest.is_complex()
        if not is_float and not self._as_peers:
            return newest.clone()
        if is_float and len(values) == 1:
            return newest.clone()
        total_weight = sum(self._weights[i] for i in having)
        if not total_weight:  # only checkpoints with weight 0 have it
            return newest.clone()
        sum_ = torch.zeros(newest.shape, dtype=torch.complex128 if newest.is_complex() else torch.float64)
        for i, value in zip(having, values, strict=True):
            if self._weights[i]:
                sum_ += value.to(sum_.dtype) * self._weights[i]
        return (sum_ / total_weight).to(newest.dtype if is_float else torch.get_default_dtype())


def _identity(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _warn_about_keys(names: Sequence[str], models: Sequence[Mapping[str, Any]]) -> None:
    all_keys = dict.fromkeys(key for model in models for key in model)
    for name, model in zip(names, models, strict=True):
        missing = [key for key in all_keys if key not in model]
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            print(
                f"Warning: {name} has not all parameters of the others, {len(missing)} of {len(all_keys)} are missing: "
                f"{shown}. These are averaged over the checkpoints that have them.",
                file=sys.stderr,
            )


def _load(filename: str, *, unsafe: bool) -> dict[str, Any]:
    """:return: content of a checkpoint, tensors still on disk where the format allows it"""
    import torch

    if not os.path.isfile(filename):
        raise AverageError(f"Checkpoint not found: {filename} is not a file.")
    try:
        with torch.serialization.safe_globals(_numpy_scalar_globals()):
            checkpoint = torch.load(
                filename, map_location="cpu", weights_only=not unsafe, mmap=zipfile.is_zipfile(filename) or None
            )
    except pickle.UnpicklingError as exc:
        raise AverageError(
            f"Checkpoint {filename} is broken, or contains more than tensors and plain values; loading such objects can "
            f"run any code, so it is refused ({_what_is_refused(exc)}). If you trust the file, use --unsafe_load."
        ) from exc
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise AverageError(
            f"Checkpoint {filename} ({os.path.getsize(filename)} bytes) cannot be read: it is truncated, broken, or no "
            f"file of torch.save ({(str(exc).splitlines() or [''])[0]})."
        ) from exc
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), Mapping):
        entries = ", ".join(map(str, list(checkpoint)[:10])) if isinstance(checkpoint, Mapping) else type(checkpoint)
        raise AverageError(f'Checkpoint {filename} has no entry "model" with a dict of parameters; it has: {entries}.')
    return checkpoint


def _what_is_refused(exc: BaseException) -> str:
    """:return: e.g. "posix.system", if torch says it, else the first line of its text"""
    found = re.search(r"GLOBAL (\S+)", str(exc))
    return found[1] if found else (str(exc).splitlines() or [""])[0]


def _numpy_scalar_globals() -> list[Any]:
    """:return: what numpy scalars need, e.g. learning rates in files of the peers. Any: classes, (function, name) pairs"""
    import numpy

    scalar = numpy.float64(0).__reduce__()[0]  # has moved between numpy versions
    dtypes = {type(numpy.dtype(t)) for t in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")}
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), numpy.dtype, *sorted(dtypes, key=lambda c: c.__name__)]


def _save_atomic(state: Mapping[str, Any], filename: str) -> None:
    import torch

    tmp = filename + _TMP_POSTFIX
    try:
        with open(tmp, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp, filename)
    except (OSError, RuntimeError) as exc:
        with contextlib.suppress(OSError):
            os.remove(tmp)
        raise AverageError(
            f"Cannot save {filename}: {(str(exc).splitlines() or [''])[0]}. Check permissions and free space."
        ) from exc
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(tmp)
        raise


def _filenames(args: argparse.Namespace) -> Iterable[str]:
    for value in args.checkpoints:
        for part in value.split(args.separator) if args.separator else [value]:
            filename = args.prefix + part + args.postfix
            if not os.path.isfile(filename):
                raise AverageError(
                    f"Checkpoint not found: {filename} is not a file "
                    f"(prefix {args.prefix!r}, postfix {args.postfix!r}, name {part!r})."
                )
            yield filename


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Average the parameters of PyTorch checkpoints. Integer parameters are those of the newest one."
    )
    parser.add_argument("--checkpoints", nargs="+", required=True, metavar="CKPT", help="files, see also --separator")
    parser.add_argument("--prefix", default="", help="put before each name")
    parser.add_argument("--postfix", default="", help="put after each name")
    parser.add_argument(
        "--separator",
        default=",",
        help="each value of --checkpoints is split at it (default: comma); '' does not split",
    )
    parser.add_argument("--output_path", required=True, metavar="FILE", help="file to write; its folder must exist")
    parser.add_argument(
        "--weights",
        nargs="+",
        type=float,
        metavar="W",
        help="one per checkpoint; divided by their sum (default: equal)",
    )
    parser.add_argument(
        "--as_peers",
        action="store_true",
        help="average integer parameters to floats, and list averaged inputs by their own epoch too, as RETURNN does",
    )
    parser.add_argument(
        "--unsafe_load",
        "--load_unsafe_checkpoints",
        dest="unsafe_load",
        action="store_true",
        help="load any Python objects; only for files that you trust, since that can run any code",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """
    :param argv: argv[0] is the program; default ``sys.argv``
    :raises AverageError: see merge_checkpoints
    """
    args = _make_parser().parse_args(list(sys.argv if argv is None else argv)[1:])
    print("RETURNN torch_avg_checkpoints.py -- average PyTorch model checkpoints")
    import torch

    print("PyTorch version:", torch.__version__)
    in_ckpts = list(_filenames(args))
    for filename in in_ckpts:
        print("in ckpt:", filename)
    print("out ckpt:", args.output_path)
    merge_checkpoints(
        in_ckpts,
        args.output_path,
        weights=args.weights,
        as_peers=args.as_peers,
        load_unsafe_checkpoints=args.unsafe_load,
    )
    print("Done.")


def _main_with_exit_code() -> int:
    """:return: 0, or 1 after an error, whose sentence is the last line on stderr"""
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("KeyboardInterrupt", file=sys.stderr)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("BrokenPipeError", file=sys.stderr)
    except AverageError as exc:
        sys.stdout.flush()
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(_main_with_exit_code())
