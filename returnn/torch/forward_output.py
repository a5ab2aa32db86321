"""Writes the outputs that forward_step marked to an HDF file, if the config has no hook or callback for them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch

from returnn.datasets.util.hdf import SimpleHDFWriter
from returnn.errors import ConfigError, ModelError
from returnn.frontend.axes import check_lengths, lengths_of
from returnn.log import log
from returnn.tensor import Dim, Tensor, TensorDict

__all__ = ["HdfOutputWriter"]


class HdfOutputWriter:
    """
    One stream per output name, one sequence per tag, padding cut off.

    The output called "output", else the first marked one, becomes the main stream (``inputs`` in the file, key "data");
    the others keep their names. The file appears when :func:`close` is called; until then a temporary file is written.
    """

    def __init__(self, filename: str, *, override: bool):
        """
        :param filename: target
        :param override: whether it may exist
        """
        self.filename = filename
        self._override = override
        self._written_name = filename
        self._writer: SimpleHDFWriter | None = None
        self._main: str | None = None
        self._names: list[str] = []
        self._tags_without_output = 0
        self.num_seqs = 0

    def write(self, outputs: TensorDict, seq_tags: Sequence[str]) -> None:
        """
        :param outputs: of one step, each with a batch axis
        :param seq_tags: of the batch
        :raises ConfigError: at the first call: the file exists already, or its folder is missing
        :raises ModelError: outputs differ from those of the first step, or have no batch axis
        """
        names = list(outputs.data)
        if not names and self._writer is None:
            self._tags_without_output += len(seq_tags)
            return
        if self._tags_without_output:
            raise ModelError(
                f"forward_step marked the outputs {names}, but none in the first steps "
                f"({self._tags_without_output} sequences). Mark the same outputs in each step."
            )
        if self._writer is None:
            self._open(outputs)
        elif set(names) != set(self._names):
            raise ModelError(f"forward_step marked the outputs {names}, but {self._names} in the first step.")
        assert self._writer is not None and self._main is not None
        per_name = {name: _split(outputs[name], num_seqs=len(seq_tags)) for name in names}
        for i, tag in enumerate(seq_tags):
            main, main_lens = per_name[self._main][i]
            self._writer.insert_batch(
                main[None],
                {axis: [n] for axis, n in enumerate(main_lens)},
                [tag],
                extra={n: values[i][0][None] for n, values in per_name.items() if n != self._main},
            )
        self.num_seqs += len(seq_tags)

    def _check_target(self) -> None:
        if os.path.exists(self.filename) and not self._override:
            raise ConfigError(
                f'output file {self.filename!r} (option "output_file") exists already. Remove it, choose another '
                "output_file, or set forward_override_hdf_output = True."
            )
        folder = os.path.dirname(self.filename) or "."
        if not os.path.isdir(folder):
            raise ConfigError(
                f'option "output_file" is {self.filename!r}, but the folder {folder!r} does not exist. Create it, or '
                "choose another output_file."
            )

    def _open(self, outputs: TensorDict) -> None:
        self._check_target()
        self._names = list(outputs.data)
        self._main = "output" if "output" in outputs else self._names[0]
        for name in self._names:
            if any(d.is_static() and d.kind == Dim.Types.Spatial for d in outputs[name].dims):
                print(
                    f"Output {name!r} was marked without dims: padding is not cut off. "
                    "Give the lengths [B] of its time axis, e.g. mark_as_output(x, name, dims=[x.shape[0], lens, x.shape[2]]).",
                    file=log.v1,
                )
        main = outputs[self._main]
        value, lens = _split(main, num_seqs=None)[0]
        has_feature = value.ndim > len(lens)
        extra_type = {}
        for name in self._names:
            if name == self._main:
                continue
            part, part_lens = _split(outputs[name], num_seqs=None)[0]
            if part.ndim > 2 or len(part_lens) > 1:
                raise ModelError(
                    f"output {name!r}: sequences of shape {part.shape} with {len(part_lens)} time axes cannot be a "
                    f'further stream of {self.filename}. Mark it as "output", or write it in a forward_finish_hook.'
                )
            extra_type[name] = (int(part.shape[-1]) if part.ndim == 2 else None, max(part.ndim, 1), str(part.dtype))
        # An old file stays as it is until the new one is complete.
        folder, name = os.path.split(self.filename)
        self._written_name = os.path.join(folder, f".{name}.{os.getpid()}.new")
        self._writer = SimpleHDFWriter(
            self._written_name,
            dim=int(value.shape[-1]) if has_feature else None,
            ndim=value.ndim,
            extra_type=extra_type or None,
        )
        streams = {n: "data" if n == self._main else n for n in self._names}
        print(
            f"Writing outputs to {self.filename}: " + ", ".join(f"{n} as {k!r}" for n, k in streams.items()),
            file=log.v3,
        )

    def close(self) -> None:
        """Finish the file, if any output was marked."""
        if self._writer is None:
            print(
                "forward_step marked no output, and there is no forward_finish_hook: no output file is written. "
                'Call run_ctx.mark_as_output(tensor, "name", dims=[...]) in forward_step, or define the hooks.',
                file=log.v1,
            )
            return
        self._writer.close()
        os.replace(self._written_name, self.filename)
        print(f"Wrote {self.num_seqs} sequences to {self.filename}", file=log.v2)

    def abort(self) -> None:
        """Leave no file."""
        if self._writer is not None:
            self._writer.discard()


def _split(output: Tensor, *, num_seqs: int | None) -> list[tuple[np.ndarray, list[int]]]:
    """
    :return: per sequence the value without padding and the lengths of its time axes; a scalar becomes one frame
    """
    raw: torch.Tensor = output.raw_tensor
    batch_axes = [i for i, d in enumerate(output.dims) if d.is_batch_dim()]
    if not batch_axes:
        raise ModelError(f"output {output.name!r} has no batch axis, its dims are {list(output.dims)}.")
    raw = raw.detach().movedim(batch_axes[0], 0)
    dims = [d for d in output.dims if not d.is_batch_dim()]
    if num_seqs is not None and raw.shape[0] != num_seqs:
        raise ModelError(f"output {output.name!r} has {raw.shape[0]} sequences, but the batch has {num_seqs}.")
    if raw.dtype == torch.bfloat16:
        raw = raw.float()
    array = raw.cpu().numpy()
    sizes: list[np.ndarray | None] = []
    for axis, dim in enumerate(dims, 1):
        lens = lengths_of(dim, name=output.name)
        if lens is not None:
            lens = lens.detach().cpu()
            if lens.shape != raw.shape[:1]:
                raise ModelError(
                    f"output {output.name!r}: lengths of shape {tuple(lens.shape)}, but there are {raw.shape[0]} sequences."
                )
            check_lengths(lens, int(raw.shape[axis]), axis=axis, name=output.name)
        sizes.append(None if lens is None else lens.numpy())
    # A static last axis is the feature axis, unless it was inferred from [B,T]; other static axes are time axes.
    has_feature = bool(dims) and dims[-1].is_static() and dims[-1].kind != Dim.Types.Spatial
    if has_feature and len(dims) == 1:  # [B,F]: one frame per sequence
        array, sizes = array[:, None], [None, None]
    num_time = len(sizes) - has_feature
    res: list[tuple[np.ndarray, list[int]]] = []
    for i in range(array.shape[0]):
        value = array[i]
        cut = tuple(slice(None) if n is None else slice(int(n[i])) for n in sizes)
        value = value[cut] if cut else value.reshape(1)
        res.append((value, [int(n) for n in value.shape[: max(num_time, 1)]]))
    return res
