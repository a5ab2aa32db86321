"""Writes the outputs that forward_step marked to an HDF file, if the config has no hook or callback for them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from returnn.datasets.util.hdf import SimpleHDFWriter
from returnn.errors import ConfigError, ModelError
from returnn.log import log
from returnn.tensor import Dim, Tensor, TensorDict
from returnn.torch.forward_seqs import SeqOutputs
from returnn.util.leftovers import remove_leftovers

__all__ = ["HdfOutputWriter", "check_output_file"]


def check_output_file(filename: str, *, override: bool) -> None:
    """
    :param filename: option ``output_file``
    :param override: whether it may exist
    :raises ConfigError: the file exists already, or its folder is missing
    """
    if os.path.exists(filename) and not override:
        raise ConfigError(
            f'output file {filename!r} (option "output_file") exists already. Remove it, choose another '
            "output_file, or set forward_override_hdf_output = True."
        )
    folder = os.path.dirname(filename) or "."
    if not os.path.isdir(folder):
        raise ConfigError(
            f'option "output_file" is {filename!r}, but the folder {folder!r} does not exist. Create it, or '
            "choose another output_file."
        )


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

    def write(self, seqs: Sequence[SeqOutputs]) -> None:
        """
        :param seqs: the next sequences
        :raises ConfigError: at the first call: the file exists already, or its folder is missing
        :raises ModelError: outputs differ from those of the first step
        """
        for seq in seqs:
            self._write_seq(seq)

    def _write_seq(self, seq: SeqOutputs) -> None:
        names = list(seq.outputs.data)
        if not names and self._writer is None:
            self._tags_without_output += 1
            return
        if self._tags_without_output:
            raise ModelError(
                f"forward_step marked the outputs {names}, but none in the first steps "
                f"({self._tags_without_output} sequences). Mark the same outputs in each step."
            )
        if self._writer is None:
            self._open(seq.outputs)
        elif set(names) != set(self._names):
            raise ModelError(f"forward_step marked the outputs {names}, but {self._names} in the first step.")
        assert self._writer is not None and self._main is not None
        values = {name: _as_frames(seq.outputs[name]) for name in names}
        main, main_lens = values[self._main]
        self._writer.insert_batch(
            main[None],
            {axis: [n] for axis, n in enumerate(main_lens)},
            [seq.seq_tag],
            extra={n: value[None] for n, (value, _) in values.items() if n != self._main},
        )
        self.num_seqs += 1

    def _open(self, outputs: TensorDict) -> None:
        check_output_file(self.filename, override=self._override)
        self._names = list(outputs.data)
        self._main = "output" if "output" in outputs else self._names[0]
        for name in self._names:
            if any(d.is_static() and d.kind == Dim.Types.Spatial for d in outputs[name].dims):
                print(
                    f"Output {name!r} was marked without dims: padding is not cut off. "
                    "Give the lengths [B] of its time axis, e.g. mark_as_output(x, name, dims=[x.shape[0], lens, x.shape[2]]).",
                    file=log.v1,
                )
        value, lens = _as_frames(outputs[self._main])
        has_feature = value.ndim > len(lens)
        extra_type = {}
        for name in self._names:
            if name == self._main:
                continue
            part, part_lens = _as_frames(outputs[name])
            if part.ndim > 2 or len(part_lens) > 1:
                raise ModelError(
                    f"output {name!r}: sequences of shape {part.shape} with {len(part_lens)} time axes cannot be a "
                    f'further stream of {self.filename}. Mark it as "output", or write it in a forward_finish_hook.'
                )
            extra_type[name] = (int(part.shape[-1]) if part.ndim == 2 else None, max(part.ndim, 1), str(part.dtype))
        # An old file stays as it is until the new one is complete.
        remove_leftovers(self.filename)
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
                "Call mark_as_output(tensor, name, dims=[...]) of the run context in forward_step, or set a "
                "forward_callback or the hooks.",
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


def _as_frames(output: Tensor) -> tuple[np.ndarray, list[int]]:
    """
    :param output: of one sequence
    :return: value with at least a time axis, and the lengths of its time axes; a scalar or ``[F]`` becomes one frame
    """
    value: np.ndarray = output.raw_tensor
    # A static last axis is the feature axis, unless it was inferred from [B,T]; other static axes are time axes.
    last = output.dims[-1] if output.dims else None
    has_feature = last is not None and last.is_static() and last.kind != Dim.Types.Spatial
    if not value.ndim:
        value = value.reshape(1)
    elif has_feature and value.ndim == 1:
        value = value[None]
    return value, list(value.shape[: max(value.ndim - has_feature, 1)])
