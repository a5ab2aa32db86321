"""Writing a module as ONNX file with one of torch's exporters, and checking the file against the module."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy
import torch

from returnn.errors import ModelError
from returnn.log import log
from returnn.util.optional_import import optional_import

__all__ = ["EXPORTERS", "Graph", "write_onnx"]

#: What may differ between PyTorch and onnxruntime: absolute, and relative to the value.
_ATOL, _RTOL = 1e-4, 1e-3
_NEEDED_BY = "tools/torch_export_to_onnx.py"

Values = Sequence[torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Graph:
    """What is to be exported."""

    module: torch.nn.Module  # positional tensors -> tuple of tensors
    input_names: Sequence[str]
    output_names: Sequence[str]
    dynamic_axes: Mapping[str, Mapping[int, str]]  # per tensor: axis -> name
    example: Values  # that the exporter runs the module with
    others: Sequence[Values]  # of other sizes, for the check


def write_onnx(graph: Graph, filename: str, *, exporter: str = "auto", verify: bool = True) -> str:
    """
    Write the file; it gets its name when it is complete and, if onnxruntime is there, gives what the module gives.

    :param graph:
    :param filename: to write; an existing file is replaced
    :param exporter: of EXPORTERS, or "auto": the first whose file is right
    :param verify: False: do not compare
    :return: which exporter wrote it
    :raises ModelError: no exporter can do it, or the results differ
    :raises MissingDependencyError: a package that the exporter needs is not there
    """
    folder, name = os.path.split(os.path.abspath(filename))
    if not os.path.isdir(folder):
        raise ModelError(f"Cannot write {filename}: the folder {folder} does not exist. Create it.")
    has_runtime = importlib.util.find_spec("onnxruntime") is not None
    if verify and not has_runtime:
        print("Note: onnxruntime is not installed, so the file is not compared with PyTorch.", file=log.v2)
    problems = []
    for exporter_name in _order(exporter, can_verify=verify and has_runtime):
        # Inside of a folder, since large models get a second file whose name is in the first.
        tmp_dir = tempfile.mkdtemp(prefix=f".{name}.", dir=folder)
        try:
            tmp_filename = os.path.join(tmp_dir, name)
            problem = _try(EXPORTERS[exporter_name], graph, tmp_filename)
            if problem is None and verify and has_runtime:
                problem = _compare(graph, tmp_filename)
            if problem is None:
                for part in sorted(os.listdir(tmp_dir), key=lambda part: part == name):  # the file itself at last
                    os.replace(os.path.join(tmp_dir, part), os.path.join(folder, part))
                return exporter_name
        finally:
            shutil.rmtree(tmp_dir, ignore_errors=True)
        print(f"Exporter {exporter_name}: {problem}", file=log.v3)
        problems.append(f"exporter {exporter_name}: {problem}")
    raise ModelError(
        f"The model cannot be exported to {filename}; {'; '.join(problems)}. Look for sizes that become Python numbers in "
        "forward_step or the model, or define a function export(*, model, args, f) in the config."
    )


def _order(exporter: str, *, can_verify: bool) -> Sequence[str]:
    if exporter != "auto":
        return [exporter]
    # Tracing is quick and knows most operators, but can fix sizes without a word: only where that would be seen.
    return ["torchscript", "dynamo"] if can_verify else ["dynamo", "torchscript"]


def _try(export: Callable[[Graph, str], None], graph: Graph, filename: str) -> str | None:
    """:return: what went wrong, in one line, or None"""
    try:
        with torch.no_grad(), _quiet():
            export(graph, filename)
    except (ModelError, ImportError):
        raise  # our own sentence
    except Exception as exc:  # exporters raise anything, and run the user's code
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        return f"{type(exc).__name__}: {lines[0][:300] if lines else ''}"
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters speak a lot, on all channels, about themselves."""
    onnx_logger = logging.getLogger("torch.onnx")
    old_level = onnx_logger.level
    onnx_logger.setLevel(logging.ERROR)
    # On an error the tracing exporter prints its whole graph, past sys.stdout; its own switch for that has no effect
    # (torch 2.13: setup_onnx_logging tests a function, not its result).
    print_graph = getattr(torch._C, "_jit_onnx_log", None)
    if print_graph is not None:
        torch._C._jit_onnx_log = lambda *args: None
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        if print_graph is not None:
            torch._C._jit_onnx_log = print_graph
        onnx_logger.setLevel(old_level)


def _export_torchscript(graph: Graph, filename: str) -> None:
    optional_import("onnx", needed_by=_NEEDED_BY)
    torch.onnx.export(
        graph.module,
        tuple(graph.example),
        filename,
        dynamo=False,
        input_names=list(graph.input_names),
        output_names=list(graph.output_names),
        dynamic_axes={name: dict(axes) for name, axes in graph.dynamic_axes.items()},
    )


def _export_dynamo(graph: Graph, filename: str) -> None:
    optional_import("onnx", needed_by=_NEEDED_BY)
    optional_import("onnxscript", needed_by=_NEEDED_BY)
    dynamic = torch.export.Dim.DYNAMIC  # type: ignore[attr-defined]
    shapes = tuple(dict.fromkeys(graph.dynamic_axes.get(name, ()), dynamic) for name in graph.input_names)
    program = torch.onnx.export(
        graph.module,
        tuple(graph.example),
        dynamo=True,
        input_names=list(graph.input_names),
        output_names=list(graph.output_names),
        dynamic_shapes={"values": shapes},
        verbose=False,
    )
    assert program is not None
    _rename_axes(program.model.graph, graph)
    program.save(filename)


def _rename_axes(onnx_graph: Any, graph: Graph) -> None:  # Any: of onnx_ir
    """Give the axes our names; those that the exporter made are not known to anybody."""
    names: dict[str, str] = {}
    for value, name in zip(onnx_graph.inputs, graph.input_names, strict=True):
        for axis, axis_name in graph.dynamic_axes.get(name, {}).items():
            names.setdefault(str(value.shape[axis]), axis_name)
            value.shape[axis] = axis_name
    for value, name in zip(onnx_graph.outputs, graph.output_names, strict=True):
        axes = graph.dynamic_axes.get(name, {})
        for axis in range(len(value.shape) if value.shape is not None else 0):
            new_name = axes.get(axis, names.get(str(value.shape[axis])))
            if new_name is not None:
                value.shape[axis] = new_name
    for node in onnx_graph.all_nodes():
        for value in node.outputs:
            for axis in range(len(value.shape) if value.shape is not None else 0):
                if str(value.shape[axis]) in names:
                    value.shape[axis] = names[str(value.shape[axis])]


#: Name -> function that writes a graph to a file.
EXPORTERS: dict[str, Callable[[Graph, str], None]] = {"torchscript": _export_torchscript, "dynamo": _export_dynamo}


def _compare(graph: Graph, filename: str) -> str | None:
    """:return: what differs between the module and the file, or None"""
    runtime: Any = optional_import("onnxruntime", needed_by=_NEEDED_BY)
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        session = runtime.InferenceSession(filename, options, providers=["CPUExecutionProvider"])
        wanted = {value.name for value in session.get_inputs()}
        for values in (graph.example, *graph.others):
            with torch.no_grad():
                expected = graph.module(*values)
            feed = {
                name: value.cpu().numpy()
                for name, value in zip(graph.input_names, values, strict=True)
                if name in wanted  # what is not used may be gone
            }
            got = session.run(list(graph.output_names), feed)
            for name, ours, theirs in zip(graph.output_names, expected, got, strict=True):
                problem = _difference(ours, theirs)
                if problem is not None:
                    shapes = ", ".join(f"{n} {list(v.shape)}" for n, v in zip(graph.input_names, values, strict=True))
                    return f"onnxruntime gives another output {name!r} than PyTorch for inputs {shapes}: {problem}"
    except Exception as exc:  # the types of onnxruntime have no common public base
        return f"onnxruntime cannot run the file: {(str(exc).splitlines() or [''])[0][:300]}"
    return None


def _difference(ours: torch.Tensor, theirs: numpy.ndarray) -> str | None:
    expected = (ours.detach().float() if ours.dtype == torch.bfloat16 else ours.detach()).cpu().numpy()
    if expected.shape != theirs.shape:
        return f"shape {list(theirs.shape)} instead of {list(expected.shape)}"
    if expected.dtype.kind == "f":
        close = numpy.isclose(theirs, expected, atol=_ATOL, rtol=_RTOL, equal_nan=True)
    else:
        close = theirs == expected
    if numpy.all(close):
        return None
    return f"{int(numpy.sum(~close))} of {close.size} values differ"
