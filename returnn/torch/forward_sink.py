"""What happens with the results of forwarding: the callback or the hooks of the config, or an HDF file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from returnn.config import Config
from returnn.errors import NotSupportedError
from returnn.frontend.run_ctx import RunCtx
from returnn.log import log
from returnn.options.checkpoint import should_write_to_disk
from returnn.options.forward import ForwardOptions, make_callback
from returnn.options.model import ModelOptions
from returnn.torch.errors_context import add_seq_note
from returnn.torch.forward_output import HdfOutputWriter, check_output_file
from returnn.torch.forward_seqs import SeqOutputs, split_outputs
from returnn.torch.user_functions import UserFunction

__all__ = ["CallbackSink", "ForwardSink", "HdfSink", "HookSink", "make_sink"]


class ForwardSink(Protocol):
    """Gets the results. A context manager: after an error no half-written output file stays."""

    def __enter__(self) -> ForwardSink:
        """:return: itself"""

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        """After an error: leave no file."""

    def init(self, run_ctx: RunCtx, model: torch.nn.Module) -> None:
        """Before the first step."""

    def collect(self, run_ctx: RunCtx, data: Mapping[str, Any]) -> list[SeqOutputs]:
        """
        After each step, in the process that ran it.

        :param run_ctx: with the marked outputs
        :param data: raw batch. Any: tensors and lists
        :return: what :func:`write` is to get of this step
        """

    def write(self, seqs: Sequence[SeqOutputs]) -> None:
        """
        The outputs of some sequences, in the order of the dataset.

        :param seqs: may be none
        """

    def finish(self, run_ctx: RunCtx) -> None:
        """After the last step."""


class CallbackSink:
    """Gives the outputs of each sequence to a callback."""

    def __init__(self, callback: Any):
        """:param callback: has the methods of ForwardCallbackIface. Any: a class of the user may have them without deriving from it"""
        self.callback = callback

    def __enter__(self) -> CallbackSink:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        pass  # its files are its own

    def init(self, run_ctx: RunCtx, model: torch.nn.Module) -> None:
        """:param model: goes to the callback"""
        self.callback.init(model=model)

    def collect(self, run_ctx: RunCtx, data: Mapping[str, Any]) -> list[SeqOutputs]:
        """:return: the sequences of the batch"""
        return split_outputs(run_ctx.outputs, data["seq_tag"])

    def write(self, seqs: Sequence[SeqOutputs]) -> None:
        """:raises Exception: that of the callback, with a note that names the sequence"""
        for seq in seqs:
            try:
                self.callback.process_seq(seq_tag=seq.seq_tag, outputs=seq.outputs)
            except Exception as exc:
                add_seq_note(exc, what=f"{type(self.callback).__name__}.process_seq", seq_tag=seq.seq_tag)
                raise

    def finish(self, run_ctx: RunCtx) -> None:
        """Also if there was no sequence."""
        self.callback.finish()


class HookSink:
    """Calls the hooks, which share the run context with the steps; forward_finish_hook takes the results from it."""

    def __init__(self, *, init_hook: UserFunction | None, finish_hook: UserFunction):
        """
        :param init_hook: called before the first step
        :param finish_hook: called after the last step
        """
        self._init_hook = init_hook
        self._finish_hook = finish_hook
        self._left_to_hook: list[str] = []

    def __enter__(self) -> HookSink:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        pass  # their files are their own

    def init(self, run_ctx: RunCtx, model: torch.nn.Module) -> None:
        """Call the first hook."""
        if self._init_hook is not None:
            self._init_hook(run_ctx)

    def collect(self, run_ctx: RunCtx, data: Mapping[str, Any]) -> list[SeqOutputs]:
        """:return: nothing: the hook knows where forward_step has put its results"""
        if not self._left_to_hook:
            self._left_to_hook = list(run_ctx.outputs.data)
            if self._left_to_hook:
                print(
                    f"Outputs {', '.join(self._left_to_hook)}: no output file is written, since there is a forward_finish_hook.",
                    file=log.v3,
                )
        return []

    def write(self, seqs: Sequence[SeqOutputs]) -> None:
        """Nothing to do."""

    def finish(self, run_ctx: RunCtx) -> None:
        """Call the second hook."""
        self._finish_hook(run_ctx)


class HdfSink:
    """Writes the outputs to an HDF file, which appears when all is done."""

    def __init__(self, writer: HdfOutputWriter | None, *, init_hook: UserFunction | None = None):
        """
        :param writer: None: nothing is written (dry run, or another rank does it)
        :param init_hook: called before the first step
        """
        self._writer = writer
        self._init_hook = init_hook

    def __enter__(self) -> HdfSink:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        if exc_type is not None and self._writer is not None:
            self._writer.abort()

    def init(self, run_ctx: RunCtx, model: torch.nn.Module) -> None:
        """Call the hook."""
        if self._init_hook is not None:
            self._init_hook(run_ctx)

    def collect(self, run_ctx: RunCtx, data: Mapping[str, Any]) -> list[SeqOutputs]:
        """:return: the sequences of the batch"""
        return split_outputs(run_ctx.outputs, data["seq_tag"])

    def write(self, seqs: Sequence[SeqOutputs]) -> None:
        """Append to the file."""
        if self._writer is not None:
            self._writer.write(seqs)

    def finish(self, run_ctx: RunCtx) -> None:
        """Let the file appear."""
        if self._writer is not None:
            self._writer.close()


def make_sink(config: Config, *, rank: int = 0, num_ranks: int = 1) -> ForwardSink:
    """
    By the options forward_callback, forward_init_hook, forward_finish_hook, output_file. All that can be known to go
    wrong is said here, so call it before the model is built.

    :param config: the user's
    :param rank: only rank 0 writes
    :param num_ranks: processes that forward
    :raises ConfigError: callback and hooks; the output file exists; its folder is missing
    :raises NotSupportedError: hooks with several ranks
    """
    options = ForwardOptions.from_config(config)
    functions = ModelOptions.from_config(config, used=("forward_init_hook", "forward_finish_hook"))
    init_hook, finish_hook = (
        None if func is None else UserFunction(func, random_arg="__random_arg_%i")
        for func in (functions.forward_init_hook, functions.forward_finish_hook)
    )
    if num_ranks > 1 and (init_hook or finish_hook):
        raise NotSupportedError(
            f"the hooks forward_init_hook and forward_finish_hook are not supported with {num_ranks} processes, since each "
            "process would only see its part of the data. Use forward_callback, or mark_as_output without hooks, or one process."
        )
    if options.callback is not None:
        return CallbackSink(make_callback(options.callback)) if rank == 0 else HdfSink(None)
    if finish_hook is not None:
        return HookSink(init_hook=init_hook, finish_hook=finish_hook)
    if rank or not should_write_to_disk(config):
        return HdfSink(None, init_hook=init_hook)
    if options.expects_output_file:
        check_output_file(options.output_file, override=options.override)
    return HdfSink(HdfOutputWriter(options.output_file, override=options.override), init_hook=init_hook)
