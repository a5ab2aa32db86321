"""The interface of a callback that gets the outputs of the task forward, one sequence at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from returnn.tensor import TensorDict

__all__ = ["ForwardCallbackIface"]


class ForwardCallbackIface:
    """
    Base class for such callbacks. Calls come in this order: :meth:`init` once, :meth:`process_seq` for each sequence,
    :meth:`finish` once, also if there was no sequence. The base class does nothing.
    """

    def init(self, *, model: torch.nn.Module) -> None:
        """
        Called before the first sequence.

        :param model: as loaded, in evaluation mode
        """

    def process_seq(self, *, seq_tag: str, outputs: TensorDict) -> None:
        """
        Called once per sequence, in the order of the dataset.

        :param seq_tag: of the sequence
        :param outputs: marked outputs by name; numpy values, without batch axis, without padding
        """

    def finish(self) -> None:
        """Called after the last sequence."""
