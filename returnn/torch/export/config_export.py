"""Export of the model of a config and a checkpoint: by the config's own function, or automatically."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from returnn.config import Config
from returnn.datasets.basic import init_dataset
from returnn.errors import ConfigError, MissingOptionError, ModelError
from returnn.log import log
from returnn.options.data import DataOptions
from returnn.options.export import ExportOptions
from returnn.options.model import ModelOptions, check_signature
from returnn.options.training import EngineOptions
from returnn.tensor import Tensor
from returnn.torch.device import choose_device
from returnn.torch.export.examples import Examples, templates_of_dataset
from returnn.torch.export.interface import BATCH_AXIS_NAME, Slot, dynamic_axes, flat_slots, permute
from returnn.torch.export.onnx import Graph, write_onnx
from returnn.torch.export.step_module import DictStepModule, StepModule, StepOutputs, takes_extern_data
from returnn.torch.model_state import build_model

__all__ = ["ExportArgs", "export_model"]

#: Sizes of the random example, as mainline RETURNN has them.
_BATCH, _SEED = 5, 42


@dataclasses.dataclass(frozen=True)
class ExportArgs:
    """What the user of the tool may choose."""

    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    exporter: str = "auto"
    verify: bool = True
    example_length: int = 16


def export_model(config: Config, checkpoint: str, filename: str, args: ExportArgs) -> None:
    """
    :param config: with get_model, and forward_step or export
    :param checkpoint: file, with or without suffix
    :param filename: of the ONNX file
    :param args:
    :raises UserError: what is wrong with config, checkpoint, names, or the exported file
    """
    options = EngineOptions.from_config(config)
    device = choose_device(options.device)
    export_options = ExportOptions.from_config(config)
    functions = ModelOptions.from_config(config, needed=("get_model",), used=())
    is_mainline = export_options.extern_data is not None
    loaded = build_model(
        config=config,
        engine=None,
        device=device,
        epoch=None,
        filename=checkpoint,
        options=options,
        get_model_kwargs=None if is_mainline else {"onnx_export": True},
    )
    loaded.model.eval()
    torch.manual_seed(_SEED)
    export = export_options.export
    if export is not None and _is_mini_export(export, is_mainline=is_mainline):
        print(f"Calling export of the config to write {filename}", file=log.v3)
        export(model=loaded.model, args=None, f=filename)
        _check_written(filename)
        return
    if functions.forward_step is None:
        raise MissingOptionError(
            "forward_step",
            needed_for="the export",
            todo="Define forward_step(*, model, data, run_ctx, **kwargs), which marks its outputs, or your own "
            "export(*, model, args, f, **kwargs)",
        )
    check_signature("forward_step", functions.forward_step, keywords=("model", "data", "run_ctx", "extern_data"))
    run_ctx_args = {"device": device, "epoch": loaded.model_epoch, "step": loaded.step, "engine": None}
    graph = _make_graph(config, export_options, loaded.model, functions.forward_step, run_ctx_args, args, device)
    print(f"*** Input names: {list(graph.input_names)}", file=log.v1)
    print(f"*** Output names: {list(graph.output_names)}", file=log.v1)
    print(f"*** Dynamic axes: {graph.dynamic_axes}", file=log.v1)
    if export is not None:
        _call_mainline_export(export, graph, filename)
        _check_written(filename)
        return
    exporter = write_onnx(graph, filename, exporter=args.exporter, verify=args.verify)
    print(f"Exported with {exporter} to {filename}", file=log.v3)


def _is_mini_export(export: Callable[..., Any], *, is_mainline: bool) -> bool:
    """:return: whether it wants the user's model by keyword; else it has the arguments of torch.onnx.export"""
    try:
        param = inspect.signature(export).parameters.get("model")
    except (TypeError, ValueError):  # a builtin
        param = None
    return not is_mainline or (param is not None and param.kind is inspect.Parameter.KEYWORD_ONLY)


def _check_written(filename: str) -> None:
    if not os.path.isfile(filename):
        raise ModelError(f"The function export of the config did not write {filename}. It must write the file f.")


def _call_mainline_export(export: Callable[..., Any], graph: Graph, filename: str) -> None:
    assert isinstance(graph.module, StepModule)
    inputs = dict(zip(graph.input_names, graph.example, strict=True))
    export(
        DictStepModule(graph.module).eval(),
        (inputs, {}),
        f=filename,
        verbose=True,
        input_names=list(graph.input_names),
        output_names=list(graph.output_names),
        dynamic_axes={name: dict(axes) for name, axes in graph.dynamic_axes.items()},
    )


def _make_graph(
    config: Config,
    options: ExportOptions,
    model: torch.nn.Module,
    forward_step: Callable[..., Any],
    run_ctx_args: Mapping[str, Any],
    args: ExportArgs,
    device: str,
) -> Graph:
    templates, known = _inputs(config, options)
    step = StepModule(
        model,
        forward_step,
        templates=templates,
        input_slots=flat_slots(templates),
        expected_outputs=options.model_outputs,
        run_ctx_args=run_ctx_args,
    ).eval()
    examples = Examples(
        templates, size_dtype=torch.int32 if takes_extern_data(forward_step) else torch.int64, known=known
    )
    length = examples.length(args.example_length)
    _restrict_inputs(step, examples, args, length=length, device=device, is_described=options.extern_data is not None)
    sizes = [(_BATCH, length), (3, length + 7)]
    generator = torch.Generator().manual_seed(_SEED)
    example, other = (
        examples.make(step.input_slots, batch=batch, length=n, generator=generator, device=device) for batch, n in sizes
    )
    outputs, output_templates = step.run_eagerly(example)
    other_outputs, _ = step.run_eagerly(other)
    output_templates = {**output_templates, **(options.model_outputs or {})}
    slots = flat_slots(output_templates)
    if args.output_names is not None and not options.model_outputs and not _is_permutation(slots, args.output_names):
        slots = _renamed(slots, args.output_names)
    step.output_slots = permute(slots, args.output_names, what="output")
    step(*example)  # all lengths are known
    axes = dynamic_axes(step.input_slots, templates)
    output_axes = dynamic_axes(step.output_slots, output_templates)
    for slot in step.output_slots:
        _add_seen_axes(slot, outputs, other_outputs, output_axes)
    return Graph(
        module=step,
        input_names=[slot.name for slot in step.input_slots],
        output_names=[slot.name for slot in step.output_slots],
        dynamic_axes={**axes, **output_axes},
        example=example,
        others=[other],
    )


def _inputs(config: Config, options: ExportOptions) -> tuple[dict[str, Tensor], dict[str, torch.Tensor] | None]:
    """:return: templates; values of some sequences, if there is a dataset to take them from"""
    if options.extern_data is not None:
        usable = {
            key: template
            for key, template in options.extern_data.items()
            if template.available_for_inference and template.dtype != "string"
        }
        if not usable:
            raise ConfigError('option "extern_data" has no stream with available_for_inference; the export needs one.')
        return usable, None
    data = DataOptions.from_config(config)
    candidates = {"forward": data.forward, **data.eval_datasets, "train": data.train}
    name, opts = next(((name, opts) for name, opts in candidates.items() if opts is not None), ("", None))
    if opts is None:
        raise ConfigError(
            "The export must know the inputs, but the config has neither extern_data nor a dataset (forward, dev, "
            'train). Set e.g. extern_data = {"data": {"dim": 80}}: [batch, time, 80] and its lengths.'
        )
    print(f"The inputs are described by the first sequences of the dataset {name!r}.", file=log.v3)
    templates, values = templates_of_dataset(init_dataset(opts, default_kwargs={"name": name}))
    return templates, values


def _restrict_inputs(
    step: StepModule, examples: Examples, args: ExportArgs, *, length: int, device: str, is_described: bool
) -> None:
    """The inputs are those of --input_names, else all of extern_data, else the streams that forward_step reads."""
    if is_described:
        step.input_slots = permute(step.input_slots, args.input_names, what="input")
        return
    all_slots = {slot.name: slot for slot in step.input_slots}
    generator = torch.Generator().manual_seed(_SEED)
    values = examples.make(step.input_slots, batch=_BATCH, length=length, generator=generator, device=device)
    step.run_eagerly(values)
    used = [name for name in all_slots if name in step.keys_read]
    names = used if args.input_names is None else list(args.input_names)
    unknown = [name for name in names if name not in all_slots]
    missing = [name for name in used if name not in names]
    if unknown or missing or len(set(names)) != len(names) or not names:
        raise ConfigError(
            f"--input_names: expected names of {list(all_slots)}, with {used}, which forward_step reads, among them, "
            f"got {names}."
        )
    step.input_slots = [all_slots[name] for name in names]


def _is_permutation(slots: Sequence[Slot], names: Sequence[str]) -> bool:
    return sorted(slot.name for slot in slots) == sorted(names)


def _renamed(slots: Sequence[Slot], names: Sequence[str]) -> list[Slot]:
    """:return: slots with the given names in order, if there are as many; else permute will say what is wrong"""
    if len(slots) != len(names) or len(set(names)) != len(names):
        return list(slots)
    return [dataclasses.replace(slot, name=name) for slot, name in zip(slots, names, strict=True)]


def _add_seen_axes(
    slot: Slot, outputs: StepOutputs, other_outputs: StepOutputs, axes: dict[str, dict[int, str]]
) -> None:
    """An axis that had different sizes is dynamic, whatever forward_step said."""
    if slot.size_of_axis is not None:
        return
    shapes = [tuple(found[slot.key][0].shape) for found in (outputs, other_outputs)]
    for axis, (size, other_size) in enumerate(zip(*shapes, strict=True)):
        if size != other_size:
            name = BATCH_AXIS_NAME if axis == 0 else f"{slot.name}:dim{axis}"
            axes.setdefault(slot.name, {}).setdefault(axis, name)
    if slot.name in axes:
        axes[slot.name] = dict(sorted(axes[slot.name].items()))
