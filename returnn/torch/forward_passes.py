"""
The part of the engine that runs forward_step over a dataset::

    init_forward            options, data, workers, model
    forward                 hooks or output file; with a callback: forward_with_callback
    forward_with_callback   also for code that has its own dataset and callback
        _forward_pass       for each batch: forward_step, outputs per sequence, to the callback or file
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from returnn import frontend
from returnn.datasets.basic import Dataset
from returnn.engine.report import PassReport, with_first_batch_notice
from returnn.errors import ConfigError, DatasetError, DeviceMemoryError, NotSupportedError
from returnn.forward_iface import ForwardCallbackIface
from returnn.frontend.run_ctx import RunCtx
from returnn.log import log
from returnn.options.batching import BatchingOptions
from returnn.options.extern_data import ExternDataOptions
from returnn.options.forward import ForwardOptions, make_callback
from returnn.options.model import ModelOptions
from returnn.options.training import EngineOptions
from returnn.tensor import TensorDict
from returnn.torch.context import get_run_ctx, init_forward_step_run_ctx
from returnn.torch.data.extern_data import raw_dict_can_split_batch, raw_dict_split_batch
from returnn.torch.data.loader import Loader
from returnn.torch.ema import AveragedWeights
from returnn.torch.errors_context import add_batch_note, add_oom_note
from returnn.torch.forward_data import keep_order_of_ranks, positions_of_batch, sort_by_length
from returnn.torch.forward_ranks import RankExchange, rounds
from returnn.torch.forward_seqs import SeqOutputs
from returnn.torch.forward_sink import CallbackSink, ForwardSink, HdfSink, make_sink
from returnn.torch.messages import no_data_text
from returnn.torch.precision import step_precision
from returnn.torch.step_call import StepCall
from returnn.torch.step_reports import RawBatch, StepReports
from returnn.torch.user_functions import UserFunction

__all__ = ["ForwardPasses"]


class ForwardPasses(StepReports, AveragedWeights):
    """Base of the engine; uses attributes that the engine sets."""

    _options: EngineOptions
    _amp_dtype: torch.dtype | None
    _model: torch.nn.Module | None
    _forward_step_func: StepCall | UserFunction | None
    _forward_dataloader: Loader | None
    #: None: one process. Any: DistributedContext
    _distributed: Any
    #: Set by init_forward, so that mistakes are found before the model is built.
    _forward_sink: ForwardSink | None = None
    #: The loader is of the forward dataset, sorted as a callback wants it, and not used yet.
    _forward_loader_is_ready: bool = False
    #: Of the config, as they are when a pass is prepared.
    _forward_options: ForwardOptions
    _model_outputs: TensorDict | None = None

    def close_loaders(self) -> None:
        """End all worker processes."""
        raise NotImplementedError  # by Engine

    def move_data_to_device(self, data: RawBatch) -> RawBatch:
        """:return: new dict with the tensors on the device of the model"""
        raise NotImplementedError  # by LossSteps

    def _create_data_loader(
        self, dataset: Dataset, *, train: bool | None = None, dataset_init_epoch: bool = True
    ) -> Loader:
        """:return: batches of the dataset, by the options of the config"""
        raise NotImplementedError  # by Engine

    def _make_step_call(self, func: Callable[..., Any], *, with_eval_targets: bool = True) -> StepCall:
        """:return: a step function of the config, as it will be called"""
        raise NotImplementedError  # by Engine

    @property
    def _rank_and_size(self) -> tuple[int, int]:
        ranks = self._distributed
        return (0, 1) if ranks is None else (ranks.rank, ranks.size)

    # ---- set-up

    def _read_forward_options(self) -> ForwardOptions:
        """:raises OptionError: a value is invalid"""
        self._forward_options = ForwardOptions.from_config(self.config)
        self._model_outputs = ExternDataOptions.from_config(self.config).model_outputs
        return self._forward_options

    def _init_forward_sink(self) -> Any:  # Any: a function of the user
        """
        Find mistakes of the config before data and model are there.

        :return: forward_step
        :raises ConfigError: options that are invalid or contradict, output file that exists
        """
        functions = ModelOptions.from_config(
            self.config, needed=("get_model", "forward_step"), used=("forward_init_hook", "forward_finish_hook")
        )
        self._open_observers(train=False)
        rank, size = self._rank_and_size
        self._forward_sink = make_sink(self.config, rank=rank, num_ranks=size)
        if self._read_forward_options().callback is not None:
            self._check_skipping(self._allows_skipping)
        return functions.forward_step

    def _init_forward_loader(self) -> None:
        """After the dataset was made: start its workers."""
        assert self.forward_dataset is not None
        options = self._forward_options
        self._forward_loader_is_ready = options.callback is not None
        if self._forward_loader_is_ready and options.sort_dataset:
            sort_by_length(self.forward_dataset)
        self._forward_dataloader = self._create_data_loader(self.forward_dataset)
        keep_order_of_ranks(self._forward_dataloader, self._rank_and_size[1])
        if isinstance(self._forward_dataloader, Loader):  # a custom engine may have another one
            self._forward_dataloader.prepare()

    @property
    def _allows_skipping(self) -> bool:
        return bool(BatchingOptions.from_config(self.config, role="forward").allow_skipping_seqs_in_forward)

    def _check_skipping(self, is_allowed: bool) -> None:
        """:raises ConfigError: sequences may be dropped, and that is not allowed"""
        batching = BatchingOptions.from_config(self.config, role="forward")
        limits = {"min_seq_length": batching.min_seq_length, "max_seq_length": batching.max_seq_length}
        given = [f"{name} = {value!r}" for name, value in limits.items() if value is not None]
        if given and not is_allowed:
            raise ConfigError(
                f"{' and '.join(given)} may drop sequences, so that the forward_callback would not get them. "
                "Unset the limits for the forward task, or set allow_skipping_seqs_in_forward = True."
            )

    # ---- passes

    def forward(self) -> None:
        """
        Run forward_step over the forward dataset. The results go to the forward_callback, or to the hooks (which share
        the run context with the steps), or to the output_file.
        """
        assert self._model is not None and self._forward_dataloader is not None
        if self._forward_sink is None:  # a custom engine with an init_forward of its own
            rank, size = self._rank_and_size
            self._forward_sink = make_sink(self.config, rank=rank, num_ranks=size)
        sink, self._forward_sink = self._forward_sink, None
        self.epoch = self._forward_epoch or 0
        if self._read_forward_options().callback is not None:
            assert self.forward_dataset is not None
            self.forward_with_callback(
                dataset=self.forward_dataset,
                # The other ranks have none, and call none.
                callback=sink.callback if isinstance(sink, CallbackSink) else ForwardCallbackIface(),
                allow_skipping_seqs=self._allows_skipping,
            )
            return
        self._forward_pass(sink, self._forward_dataloader)

    def forward_with_callback(
        self,
        *,
        dataset: Dataset,
        callback: ForwardCallbackIface,
        dataset_init_epoch: bool = True,
        allow_skipping_seqs: bool = False,
    ) -> None:
        """
        Run forward_step over a dataset, and give the outputs of each sequence to a callback. Several ranks call this
        together, each forwards its part of the data, and the callback of rank 0 gets all.

        :param dataset: unless the option sort_dataset is False, it is sorted by length if it can be; then it stays so
        :param callback: init(model=...) is called first, process_seq(seq_tag=..., outputs=...) per sequence, then
            finish(), unless there was an error
        :param dataset_init_epoch: start the epoch of the dataset; False: it has its order already, which is kept
        :param allow_skipping_seqs: whether min_seq_length and max_seq_length may drop sequences
        :raises ConfigError: they may, but must not
        :raises NotSupportedError: the model is sharded over the ranks (FSDP)
        """
        assert self._model is not None, "there is no model yet: call init_forward or init_train first"
        if getattr(self, "_sharded", None) is not None:
            # forward_step may call its modules a different number of times on each rank, e.g. in a search.
            raise NotSupportedError(
                "forward_with_callback is not supported with a model that is sharded over the ranks for its training. "
                'Use the task forward with its checkpoint, where each rank has the whole model: task = "forward".'
            )
        self._check_skipping(allow_skipping_seqs)
        callback = make_callback(callback)
        options = self._read_forward_options()
        if self._forward_step_func is None:
            functions = ModelOptions.from_config(self.config, needed=("forward_step",), used=())
            assert functions.forward_step is not None
            self._forward_step_func = self._make_step_call(functions.forward_step, with_eval_targets=False)
        is_ready, self._forward_loader_is_ready = self._forward_loader_is_ready, False
        if not is_ready or dataset is not self.forward_dataset or not dataset_init_epoch:
            if options.sort_dataset and dataset_init_epoch:
                sort_by_length(dataset)
            self._close_forward_loader()
            self.forward_dataset = dataset
            self._forward_dataloader = (
                self._create_data_loader(dataset)
                if dataset_init_epoch  # the argument is missing in older custom engines
                else self._create_data_loader(dataset, dataset_init_epoch=False)
            )
            keep_order_of_ranks(self._forward_dataloader, self._rank_and_size[1])
        assert self._forward_dataloader is not None
        sink = CallbackSink(callback) if self._rank_and_size[0] == 0 else HdfSink(None)
        self._forward_pass(sink, self._forward_dataloader, needs_data=False)

    def _forward_pass(self, sink: ForwardSink, loader: Loader, *, needs_data: bool = True) -> None:
        """
        :param sink: gets the results
        :param loader: over the data
        :param needs_data: whether a dataset without sequences is an error
        """
        assert self._model is not None
        self._model.eval()
        run_ctx = self._new_forward_ctx()
        progress = _Progress()
        self._open_observers(train=False)
        self._start_observing("forward")
        prefix = self._lines.forward_prefix(getattr(self.forward_dataset, "name", None) or "data", self.epoch)
        self._lines.forward_starts()
        try:
            with torch.no_grad(), self._averaged_weights("forward"), sink, PassReport(prefix, loader) as report:
                sink.init(run_ctx, self._model)
                for seqs in self._forward_steps(sink, loader, run_ctx, report, progress):
                    sink.write(seqs)
                if not progress.num_seqs:
                    text = no_data_text("forward", loader, epoch=self.epoch)
                    if needs_data:
                        raise DatasetError(text)
                    print(f"Warning: {text} The forward_callback gets no sequence.", file=log.v1)
                sink.finish(run_ctx)
        finally:
            self._close_forward_loader()
        self._lines.forward_ends(
            report, num_steps=progress.num_steps, secs=report.elapsed, step_secs=progress.step_secs
        )

    def _forward_steps(
        self, sink: ForwardSink, loader: Loader, run_ctx: RunCtx, report: PassReport, progress: _Progress
    ) -> Iterator[list[SeqOutputs]]:
        """:return: per step the sequences that are next, in the order of the dataset"""
        batches = with_first_batch_notice(iter(loader), what="forward")
        if self._distributed is None:
            for data in batches:
                progress.num_seqs += len(data["seq_tag"])
                yield self._forward_step(sink, data, run_ctx, report, progress)
            return
        exchange = RankExchange(self._distributed)
        for data_or_none, is_done in rounds(batches, exchange):
            items: list[tuple[int, SeqOutputs]] = []
            if data_or_none is not None:
                positions = positions_of_batch(data_or_none, loader, rank=exchange.rank, num_ranks=exchange.size)
                seqs = self._forward_step(sink, data_or_none, run_ctx, report, progress)
                items = list(zip(positions, seqs, strict=True))
            merged = exchange.exchange(items, is_done=is_done)
            progress.num_seqs = exchange.num_seqs
            yield merged

    def _forward_step(
        self, sink: ForwardSink, data: RawBatch, run_ctx: RunCtx, report: PassReport, progress: _Progress
    ) -> list[SeqOutputs]:
        start = time.time()
        seqs = self._forward_batch(sink, data, run_ctx)
        progress.step_secs += time.time() - start
        self._report_step(report, progress.num_steps, start, None, None, name="forward", data=data)
        progress.num_steps += 1
        return seqs

    def _forward_batch(self, sink: ForwardSink, data: RawBatch, run_ctx: RunCtx) -> list[SeqOutputs]:
        """
        :return: outputs per sequence, if the sink takes them
        :raises DeviceMemoryError: one sequence alone does not fit into the memory of the device
        """
        if not self._forward_options.split_batch_on_oom:
            try:
                return self._forward_part(sink, data, run_ctx)
            except torch.OutOfMemoryError as exc:
                add_oom_note(exc)
                raise
        try:
            return self._forward_part(sink, data, run_ctx)
        except torch.OutOfMemoryError as exc:
            reason = str(exc)
        # Here, since the exception keeps all tensors of the step alive.
        run_ctx.init_step(run_ctx.global_step)
        gc.collect()
        torch.cuda.empty_cache()
        tags = list(map(str, data["seq_tag"]))
        shapes = ", ".join(f"{k} {list(v.shape)}" for k, v in data.items() if ":size" not in k and hasattr(v, "shape"))
        if not raw_dict_can_split_batch(data):
            raise DeviceMemoryError(
                f"forward_step needs more memory than the device has for the sequence {tags[0]!r} alone ({shapes}). "
                f"Set max_seq_length and allow_skipping_seqs_in_forward = True to leave such sequences out, or use a device with more memory. {reason}"
            )
        first, second = raw_dict_split_batch(data, splits=2)
        print(
            f"Out of memory with a batch of {len(tags)} sequences ({shapes}): forward_step is called again for the first "
            f"{len(first['seq_tag'])} and then for the other {len(second['seq_tag'])}.",
            file=log.v3,
        )
        return [*self._forward_batch(sink, first, run_ctx), *self._forward_batch(sink, second, run_ctx)]

    def _forward_part(self, sink: ForwardSink, data: RawBatch, run_ctx: RunCtx) -> list[SeqOutputs]:
        run_ctx = self._start_forward_step(run_ctx)
        self.run_forward_step(data, run_ctx)
        run_ctx.check_outputs_complete()
        return sink.collect(run_ctx, data)

    def _start_forward_step(self, run_ctx: RunCtx) -> RunCtx:
        """
        :param run_ctx: of the pass, or of the step before
        :return: that of the step: in the mainline dialect each step gets its own, else there is one for all
        """
        if self._dialect_is_mainline:
            return self._new_forward_ctx()
        run_ctx.init_step(self._train_step)
        if self._model_outputs is not None:
            self._model_outputs.reset_content()
        return run_ctx

    def _new_forward_ctx(self) -> RunCtx:
        if self._model_outputs is not None:
            self._model_outputs.reset_content()
        init = frontend.init_forward_step_run_ctx if self._dialect_is_mainline else init_forward_step_run_ctx
        init(
            device=self._device,
            engine=self,
            epoch=self.epoch or None,
            # mainline: that of the last training step; Mini: the number of steps done
            step=max(self._train_step - 1, 0) if self._dialect_is_mainline else self._train_step,
            expected_outputs=self._model_outputs,
        )
        return get_run_ctx()

    def run_forward_step(self, data: RawBatch, run_ctx: RunCtx) -> None:
        """
        One forward step; what it computes, user code keeps or marks on the context.

        :param data: raw batch, anywhere
        :param run_ctx: init_step was called
        """
        step = self._forward_step_func
        assert step is not None, "forward_step not defined"
        try:
            with step_precision(self._device, self._amp_dtype):
                if isinstance(step, StepCall):
                    step(self._model, data, run_ctx, move=self.move_data_to_device)
                else:  # set by a custom engine
                    step(model=self._model, data=self.move_data_to_device(data), run_ctx=run_ctx)
        except Exception as exc:
            add_batch_note(exc, epoch=self.epoch, data=data)
            raise

    def _close_forward_loader(self) -> None:
        """End the workers."""
        close = getattr(self._forward_dataloader, "close", None)  # a custom engine may have another iterable
        if close is not None:
            close()


@dataclasses.dataclass
class _Progress:
    """Of one pass."""

    num_steps: int = 0  # of this process
    num_seqs: int = 0  # of all processes
    step_secs: float = 0.0
