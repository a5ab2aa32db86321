"""A config's forward_step as a torch module with tensors as positional arguments and results."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from returnn._state import state
from returnn.errors import ModelError
from returnn.frontend.axes import AxisSpec, resolve_dims
from returnn.frontend.run_ctx import RunCtx
from returnn.tensor import Dim, Tensor, TensorDict
from returnn.torch.batch import Batch
from returnn.torch.export.interface import Slot
from returnn.torch.user_functions import UserFunction

__all__ = ["StepModule", "DictStepModule", "StepOutputs"]

#: name -> value and what was said about its axes (None: nothing).
StepOutputs = dict[str, tuple[torch.Tensor, Sequence[AxisSpec] | None]]


class _RecordingBatch(Batch):
    """Remembers which entries were asked for."""

    def __init__(self, data: Mapping[str, Any], read: set[str]):
        super().__init__(data)
        self._read = read

    def __getitem__(self, key: str) -> Any:
        if super().__contains__(key):
            self._read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As dict.get."""
        return self[key] if key in self else default

    def items(self) -> Any:
        """As dict.items; all entries count as read."""
        self._read.update(self)
        return super().items()

    def values(self) -> Any:
        """As dict.values; all entries count as read."""
        self._read.update(self)
        return super().values()


class _ExportRunCtx(RunCtx):
    """Keeps outputs as they are: the checks of the base class would fix sizes in a traced graph."""

    def __init__(self, **kwargs: Any):
        """:param kwargs: as the base class. Any: of several types"""
        super().__init__(**kwargs)
        self.raw_outputs: StepOutputs = {}

    def __getattr__(self, name: str) -> Any:
        """:raises AttributeError: always; what a hook would have set is not there"""
        raise AttributeError(
            f"run_ctx.{name} is not set: the export calls forward_step alone, without forward_init_hook. Use "
            f'getattr(run_ctx, "{name}", None) there, or define a function export(*, model, args, f) in the config.'
        )

    def mark_as_output(
        self, tensor: torch.Tensor | Tensor, name: str, *, dims: Sequence[AxisSpec] | None = None
    ) -> None:
        """See :func:`RunCtx.mark_as_output`."""
        if name in self.raw_outputs:
            raise ModelError(f"mark_as_output: the output {name!r} was marked already in this step. Use another name.")
        if isinstance(tensor, Tensor):
            dims = tensor.dims if dims is None else dims
            tensor = tensor.raw_tensor
        if not isinstance(tensor, torch.Tensor):
            raise ModelError(f"mark_as_output: {name!r} is {type(tensor).__name__}, expected a torch tensor.")
        expected = self._expected_output(name)
        if dims is None and expected is not None:
            dims = expected.dims
        self.raw_outputs[name] = (tensor, dims)


class StepModule(torch.nn.Module):
    """
    ``forward(*values)``: one tensor per input slot, returns one per output slot.

    Which outputs there are is known after :func:`run_eagerly`; then set ``output_slots``.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        forward_step: Callable[..., Any],
        *,
        templates: Mapping[str, Tensor],
        input_slots: Sequence[Slot],
        expected_outputs: Mapping[str, Tensor] | None,
        run_ctx_args: Mapping[str, Any],
    ):
        """
        :param model: in eval mode
        :param forward_step: of the config, of either dialect. Any: of the user
        :param templates: of the inputs
        :param input_slots: order of the arguments
        :param expected_outputs: option model_outputs
        :param run_ctx_args: device, epoch, step of the run context. Any: as there
        """
        super().__init__()
        self.model = model
        self.input_slots = list(input_slots)
        self.output_slots: list[Slot] = []
        self.keys_read: set[str] = set()  # entries of data that forward_step asked for
        self._forward_step = UserFunction(forward_step)
        self._takes_extern_data = takes_extern_data(forward_step)
        self._templates = TensorDict(templates)
        self._expected_outputs = None if expected_outputs is None else TensorDict(expected_outputs)
        self._run_ctx_args = dict(run_ctx_args)

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """:return: outputs, as output_slots says"""
        outputs = self._run(values)
        return tuple(_output_value(slot, outputs, self._expected_outputs) for slot in self.output_slots)

    def run_eagerly(self, values: Sequence[torch.Tensor]) -> tuple[StepOutputs, dict[str, Tensor]]:
        """
        :param values: one per input slot
        :return: marked or returned outputs; their templates
        :raises ModelError: there is none, or one does not fit to what model_outputs says
        """
        with torch.no_grad():
            outputs = self._run(values)
        if self._expected_outputs is not None and set(outputs) != set(self._expected_outputs.data):
            raise ModelError(
                f"forward_step gave the outputs {sorted(outputs)}, but model_outputs has "
                f"{sorted(self._expected_outputs.data)}. Mark exactly those, with run_ctx.mark_as_output(tensor, name)."
            )
        if not outputs:
            raise ModelError(
                "forward_step gave no output that could be exported: it marks none and returns none. Call "
                'run_ctx.mark_as_output(tensor, "name", dims=[...]) in forward_step, or return the tensor, or define a '
                "function export(*, model, args, f) in the config that exports the model itself."
            )
        return outputs, {name: self._template(name, *output) for name, output in outputs.items()}

    def _template(self, name: str, value: torch.Tensor, dims: Sequence[AxisSpec] | None) -> Tensor:
        resolved = resolve_dims(value, dims, name=name)
        dtype = str(value.dtype).split(".")[-1]
        if self._expected_outputs is not None:
            expected = self._expected_outputs[name]
            sizes = [(dim.size, dim.is_batch_dim()) for dim in expected.dims]
            if expected.dtype != dtype or sizes != [(dim.size, dim.is_batch_dim()) for dim in resolved]:
                raise ModelError(
                    f"mark_as_output: {name!r} is {dtype} with dims {list(resolved)}, but model_outputs says "
                    f"{expected.dtype} with dims {list(expected.dims)}."
                )
        return Tensor(name, resolved, dtype)

    def _run(self, values: Sequence[torch.Tensor]) -> StepOutputs:
        given = {slot.name: value for slot, value in zip(self.input_slots, values, strict=True)}
        ctx = _ExportRunCtx(stage="forward_step", expected_outputs=self._expected_outputs, **self._run_ctx_args)
        old_ctx, state.run_ctx = state.run_ctx, ctx
        extern_data = self._extern_data(given)
        try:
            returned = self._forward_step(
                model=self.model,
                data=_RecordingBatch(given, self.keys_read),
                run_ctx=ctx,
                only_if_declared={"extern_data": extern_data},
            )
            return ctx.raw_outputs or _as_outputs(returned)
        finally:
            state.run_ctx = old_ctx

    def _extern_data(self, given: Mapping[str, torch.Tensor]) -> TensorDict | None:
        if not self._takes_extern_data:
            return None
        extern_data = TensorDict({key: template.copy() for key, template in self._templates.data.items()})
        for slot in self.input_slots:
            if slot.size_of_axis is None:
                extern_data[slot.key].raw_tensor = given[slot.name]
            else:
                lens = extern_data[slot.key].dims[slot.size_of_axis].dyn_size_ext
                assert lens is not None, slot
                lens.raw_tensor = given[slot.name]
        return extern_data


class DictStepModule(torch.nn.Module):
    """The same with one dict as argument and result: what an ``export`` function for mainline RETURNN gets."""

    def __init__(self, step: StepModule):
        """:param step: flat"""
        super().__init__()
        self.step = step

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """:return: outputs by name"""
        values = self.step(*(inputs[slot.name] for slot in self.step.input_slots))
        return {slot.name: value for slot, value in zip(self.step.output_slots, values, strict=True)}


def takes_extern_data(forward_step: Callable[..., Any]) -> bool:
    """:return: whether the function is of the mainline dialect"""
    try:
        return "extern_data" in inspect.signature(forward_step).parameters
    except (TypeError, ValueError):  # a builtin without signature
        return False


def _as_outputs(returned: Any) -> StepOutputs:
    if isinstance(returned, torch.Tensor):
        return {"output": (returned, None)}
    if isinstance(returned, Mapping):
        return {str(name): (value, None) for name, value in returned.items() if isinstance(value, torch.Tensor)}
    if isinstance(returned, (tuple, list)):
        tensors = [value for value in returned if isinstance(value, torch.Tensor)]
        return {f"output{i}": (value, None) for i, value in enumerate(tensors)}
    return {}


def _output_value(slot: Slot, outputs: StepOutputs, expected: TensorDict | None) -> torch.Tensor:
    value, dims = outputs[slot.key]
    if slot.size_of_axis is None:
        return value
    candidates: list[AxisSpec] = [] if dims is None else [dims[slot.size_of_axis]]
    if expected is not None:
        candidates.append(expected[slot.key].dims[slot.size_of_axis])
    for entry in candidates:
        lens = entry.lengths() if isinstance(entry, Dim) else entry
        if isinstance(lens, torch.Tensor) and lens.ndim:
            return lens.clone()  # an output must not be an input itself
    raise ModelError(
        f"output {slot.key!r}: the lengths of axis {slot.size_of_axis} are not known. Give them in mark_as_output, "
        "e.g. dims=[batch, lens, num_features], or set "
        f'run_ctx.expected_outputs["{slot.key}"].dims[{slot.size_of_axis}].dyn_size_ext.raw_tensor = lens.'
    )
