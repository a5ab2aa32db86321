"""
The part of the engine for a model that is spread over the ranks (FSDP2): spreading it, steps of evaluation, in which all ranks must
take part, and checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from returnn.engine.model_files import OPTIMIZER_POSTFIX, delete_optimizer, optimizer_filename, sharded_folder
from returnn.errors import NotSupportedError
from returnn.frontend.run_ctx import RunCtx
from returnn.log import log
from returnn.options.sharding import ShardingOptions
from returnn.torch.checkpoint import save_file_atomic
from returnn.torch.distributed.context import DistributedContext, get_distributed
from returnn.torch.distributed.parameters import broadcast_model, check_same_model
from returnn.torch.distributed.sharded_checkpoint import load_sharded_optimizer, save_sharded
from returnn.torch.distributed.sharded_model import ShardedModel
from returnn.torch.distributed.tensors import map_tensors, whole_model_state, whole_tensor
from returnn.torch.distributed.uneven import EvenSteps
from returnn.torch.loss_steps import LossSteps
from returnn.torch.ranked_steps import RankedSteps
from returnn.torch.step_reports import RawBatch
from returnn.torch.updater import Updater

__all__ = ["ShardedPasses", "sharding_wanted"]


def sharding_wanted() -> bool:
    """:return: whether the model of a training is spread over the ranks: there are several, and the options say so"""
    ctx = get_distributed()
    return ctx is not None and ctx.options.is_fsdp


class ShardedPasses(RankedSteps):
    """Base of the engine; uses attributes that the engine sets."""

    #: None: each rank has the whole model
    _sharded: ShardedModel | None = None

    @property
    def _context(self) -> DistributedContext:
        ctx = get_distributed()
        assert ctx is not None, "a model is sharded only if there are ranks"
        return ctx

    # ---- set-up

    def _shard_model(self) -> None:
        """
        After the model of a training was loaded, in host memory: shard it if the options say so.

        :raises UserError: see :class:`ShardedModel`
        """
        if not sharding_wanted():
            return
        ctx = self._context
        assert self._model is not None
        check_same_model(ctx, self._model)
        broadcast_model(ctx, self._model)
        options = ctx.options.fsdp or ShardingOptions()
        self._sharded = ShardedModel(self._model, device=self._device, options=options)

    def _connect_sharded_optimizer(self) -> None:
        """
        After the optimizer was created.

        :raises NotSupportedError: it needs whole parameters; or a custom engine has more than one, or another kind, or own steps
        """
        if self._sharded is None:
            return
        if (
            type(self).run_train_step is not LossSteps.run_train_step
            or type(self).run_eval_step is not LossSteps.run_eval_step
        ):
            raise NotSupportedError(
                f'torch_distributed = {{"class": "fsdp"}} runs the steps itself, but the engine {type(self).__name__} has its own '
                "run_train_step or run_eval_step. Use another class in torch_distributed, or put the computation into train_step."
            )
        if not isinstance(self._updater, Updater) or self._updater.optimizer is None:
            raise NotSupportedError(
                f'torch_distributed = {{"class": "fsdp"}} supports one Updater, but the engine has {type(self._updater).__name__}. '
                "Use another class in torch_distributed, or the engine's own updater."
            )
        self._sharded.watch_optimizer(self._updater.optimizer)

    def _wrap_train_step(self) -> None:
        self._connect_sharded_optimizer()
        super()._wrap_train_step()

    # ---- evaluation: training steps run by way of RankedTraining

    def _plain_step(self, data: RawBatch | None, run_ctx: RunCtx) -> torch.Tensor:
        sharded = self._sharded
        if sharded is None or sharded.is_running:
            return super()._plain_step(data, run_ctx)
        if data is None:
            return sharded.empty_step()
        step = super()._plain_step
        return sharded.run(lambda: step(data, run_ctx))

    def _even_batches(self, batches: Iterable[RawBatch], name: str) -> Iterator[RawBatch | None]:
        even = super()._even_batches(batches, name)
        if self._sharded is None:
            return even
        if name == "train":
            return self._then_reduce_gradients(even)
        steps: EvenSteps[RawBatch] = EvenSteps(self._context, uneven="join")
        return steps.iterate((batch for batch in even if batch is not None), lambda: None)

    def _then_reduce_gradients(self, batches: Iterator[RawBatch | None]) -> Iterator[RawBatch | None]:
        """After the last step: gradients of an incomplete accumulation group become part of the parameters as usual."""
        yield from batches
        if self._sharded is not None and self._updater.num_accumulated_steps:
            self._sharded.reduce_gradients()

    # ---- checkpoints

    def _whole_model_state(self, *, keep: bool) -> dict[str, Any]:
        """
        All ranks must call it if the model is sharded.

        :param keep: whether this rank needs it
        :return: state dict with whole tensors. Any: extra state of modules
        """
        assert self._model is not None
        return whole_model_state(self._model, keep=keep)

    def _save_sharded_optimizer(self, filename: str | None) -> None:
        """
        Write the folder with the state of all ranks. All ranks must call it.

        :param filename: of the checkpoint, without suffix; only that of rank 0 counts. None: nothing is to be written
        """
        assert self._sharded is not None and self._model is not None
        ctx = self._context
        path = ctx.broadcast_object(filename)
        if path is None:
            return
        state = self._updater.optimizer_state_dict()
        folder = sharded_folder(path)
        print(f"Save optimizer under {folder}", file=log.v4)
        save_sharded(
            folder, model=self._model, optimizer_state=state, epoch=self.epoch, step=self._train_step, ranks=ctx
        )
        if self._sharded.options.whole_optimizer_file:
            whole = map_tensors(state, lambda _, tensor: whole_tensor(tensor).cpu())
            if ctx.is_first:
                print(f"Save optimizer under {optimizer_filename(path)}", file=log.v4)
                save_file_atomic(whole, optimizer_filename(path))
        elif ctx.is_first:
            delete_optimizer(path, keep=folder)  # of an earlier training
        ctx.barrier()

    def _load_sharded_optimizer(self, filename: str) -> bool:
        """
        :param filename: optimizer file of a checkpoint
        :return: whether the state was loaded, from the folder beside it. Without sharding, an existing file comes first
        """
        folder = sharded_folder(filename.removesuffix(OPTIMIZER_POSTFIX))
        if not filename.endswith(OPTIMIZER_POSTFIX) or not os.path.isdir(folder):
            return False
        if not isinstance(self._updater, Updater) or (self._sharded is None and os.path.exists(filename)):
            return False
        assert self._model is not None
        print(f"Load optimizer {folder}", file=log.v4)
        state = load_sharded_optimizer(folder, model=self._model, step=self._train_step, ranks=get_distributed())
        self._updater.load_optimizer_state(state, folder)
        return True
