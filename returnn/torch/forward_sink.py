"""What happens with the results of forwarding: the hooks of the config, or an HDF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from returnn.config import Config
from returnn.frontend.run_ctx import RunCtx
from returnn.log import log
from returnn.options.checkpoint import should_write_to_disk
from returnn.options.model import ModelOptions
from returnn.options.training import ForwardOutputOptions
from returnn.torch.forward_output import HdfOutputWriter
from returnn.torch.user_functions import UserFunction

__all__ = ["ForwardSink"]


class ForwardSink:
    """
    Calls the hooks; writes marked outputs to HDF if there is no finish hook that would take them.

    A context manager: after an error no half-written output file stays.
    """

    def __init__(
        self, *, init_hook: UserFunction | None, finish_hook: UserFunction | None, writer: HdfOutputWriter | None
    ):
        """
        :param init_hook: called before the first step
        :param finish_hook: called after the last step
        :param writer: None: nothing is written
        """
        self._init_hook = init_hook
        self._finish_hook = finish_hook
        self._writer = writer
        self._left_to_hook: list[str] = []

    @classmethod
    def from_config(cls, config: Config) -> ForwardSink:
        """:return: by the options forward_init_hook, forward_finish_hook, output_file"""
        functions = ModelOptions.from_config(config, used=("forward_init_hook", "forward_finish_hook"))
        init_hook, finish_hook = (
            None if func is None else UserFunction(func, random_arg="__random_arg_%i")
            for func in (functions.forward_init_hook, functions.forward_finish_hook)
        )
        output = ForwardOutputOptions.from_config(config)
        writer = None
        if finish_hook is None and should_write_to_disk(config):
            writer = HdfOutputWriter(output.output_file, override=output.override)
        return cls(init_hook=init_hook, finish_hook=finish_hook, writer=writer)

    def __enter__(self) -> ForwardSink:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        if exc_type is not None and self._writer is not None:
            self._writer.abort()

    def init(self, run_ctx: RunCtx) -> None:
        """Before the first step."""
        if self._init_hook is not None:
            self._init_hook(run_ctx)

    def write(self, run_ctx: RunCtx, data: Mapping[str, Any]) -> None:
        """
        After each step.

        :param run_ctx: with the marked outputs
        :param data: raw batch. Any: tensors and lists
        """
        if self._writer is not None:
            self._writer.write(run_ctx.outputs, data["seq_tag"])
        elif self._finish_hook is not None and not self._left_to_hook:
            self._left_to_hook = list(run_ctx.outputs.data)
            if self._left_to_hook:
                print(
                    f"Outputs {', '.join(self._left_to_hook)}: no output file is written, since there is a forward_finish_hook.",
                    file=log.v3,
                )

    def finish(self, run_ctx: RunCtx) -> None:
        """After the last step."""
        if self._finish_hook is not None:
            self._finish_hook(run_ctx)
        elif self._writer is not None:
            self._writer.close()
