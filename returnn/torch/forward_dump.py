"""What a model computes for some sequences: the marked outputs of forward_step, or the output of one submodule."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import torch

from returnn.config import Config
from returnn.datasets.basic import Dataset
from returnn.errors import ModelError
from returnn.options.registry import closest_names
from returnn.torch.engine import Engine
from returnn.torch.inspection import as_numpy

__all__ = ["ForwardDump", "SeqValues", "configure_dump"]


#: One sequence per batch, in the order of the dataset; nobody takes the results, and no file is written.
_DUMP_OPTIONS: dict[str, Any] = {
    "max_seqs": 1,
    "torch_batching": None,
    "batch_drop_last": False,
    "num_workers_per_gpu": 0,
    "forward_callback": None,
    "forward_init_hook": None,
    "forward_finish_hook": None,
    "dry_run": True,
}


@dataclasses.dataclass(frozen=True)
class SeqValues:
    """Of one sequence."""

    seq_idx: int  # in the order of the epoch, from 0
    seq_tag: str
    values: Mapping[str, numpy.ndarray]  # without batch axis


def configure_dump(config: Config, *, load: str | None) -> None:
    """
    Set what a dump needs: one sequence per batch, so that there is no padding; the newest checkpoint if none is named.

    :param config: is changed
    :param load: checkpoint; None: option load, else the newest of the training
    """
    config.update({**_DUMP_OPTIONS, "task": "forward"})
    loader_opts = config.typed_dict.get("torch_dataloader_opts")
    if isinstance(loader_opts, dict):
        config.set("torch_dataloader_opts", {**loader_opts, "num_workers": 0})
    existing = Engine.get_existing_models(config)
    if load is None and not config.typed_dict.get("load") and existing:
        load = existing[max(existing)] + Engine.FILE_POSTFIX
    if load is not None:
        config.set("load", load)


class ForwardDump:
    """Runs forward_step over a dataset, one sequence at a time, without the hooks and without writing files."""

    def __init__(self, config: Config, dataset: Dataset, *, epoch: int = 1, layer: str | None = None):
        """
        :param config: see configure_dump
        :param dataset: to run over
        :param epoch: whose order of sequences
        :param layer: path of a submodule, e.g. "encoder.layers.0": its output instead of the marked outputs
        :raises UserError: what is wrong with config or checkpoint; no such submodule
        """
        self._engine = Engine(config)
        self._engine.init_forward(dataset)
        self._engine._epoch_mp_shared.value = epoch
        self._layer = layer
        self._layer_outputs: list[torch.Tensor] = []
        if layer is not None:
            self._submodule(layer).register_forward_hook(self._keep_output)

    def _submodule(self, name: str) -> torch.nn.Module:
        model = self._engine._model
        assert model is not None
        modules = dict(model.named_modules())
        if name in modules:
            return modules[name]
        names = [n for n in modules if n]
        shown = closest_names(name, names) or names
        raise ModelError(f"The model has no submodule {name!r}. It has e.g. {', '.join(shown[:10])}.")

    def _keep_output(self, module: torch.nn.Module, args: Any, output: Any) -> None:  # Any: as the user's module
        del module, args
        tensors = [output] if isinstance(output, torch.Tensor) else list(_tensors(output))
        if tensors:
            self._layer_outputs.append(tensors[0].detach())

    def iter_seqs(self, *, start: int = 0, end: int | None = None) -> Iterator[SeqValues]:
        """
        :param start: first sequence
        :param end: last one, inclusive; None: all
        :raises ModelError: forward_step gives nothing that could be shown
        """
        engine = self._engine
        assert engine._model is not None and engine._forward_dataloader is not None
        engine._model.eval()
        engine.epoch = engine._forward_epoch or 0
        run_ctx = engine._new_forward_ctx()
        try:
            with torch.no_grad():
                for seq_idx, data in enumerate(engine._forward_dataloader):
                    if end is not None and seq_idx > end:
                        break
                    if seq_idx < start:
                        continue
                    run_ctx = engine._start_forward_step(run_ctx)
                    self._layer_outputs.clear()
                    engine.run_forward_step(data, run_ctx)
                    yield SeqValues(seq_idx, str(data["seq_tag"][0]), self._values(run_ctx.outputs.data))
        finally:
            engine.close_loaders()

    def _values(self, outputs: Mapping[str, Any]) -> dict[str, numpy.ndarray]:
        if self._layer is None:
            if not outputs:
                raise ModelError(
                    "forward_step marks no output. Call run_ctx.mark_as_output(tensor, name) there, or use "
                    "tools/dump-forward-stats.py --layer NAME to see the output of a submodule."
                )
            return {name: _without_batch(output.raw_tensor, _batch_axis(output)) for name, output in outputs.items()}
        if not self._layer_outputs:
            raise ModelError(
                f"The submodule {self._layer!r} gave no tensor in forward_step. It is not used there, or its forward is "
                "not called through the module itself."
            )
        names = [self._layer, *(f"{self._layer} (call {i})" for i in range(2, len(self._layer_outputs) + 1))]
        return {
            name: _without_batch(x, _guess_batch_axis(x)) for name, x in zip(names, self._layer_outputs, strict=True)
        }


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)


def _batch_axis(output: Any) -> int | None:  # Any: returnn.tensor.Tensor
    return next((i for i, dim in enumerate(output.dims) if dim.is_batch_dim()), None)


def _guess_batch_axis(value: torch.Tensor) -> int | None:
    """:return: the first of the leading axes that has size 1, as there is one sequence"""
    return next((i for i, size in enumerate(value.shape[:2]) if size == 1), None)


def _without_batch(value: torch.Tensor, batch_axis: int | None) -> numpy.ndarray:
    value = value.detach()
    if batch_axis is not None:
        value = value.select(batch_axis, 0)
    return as_numpy(value)
