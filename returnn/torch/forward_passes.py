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
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from returnn.datasets.basic import Dataset
from returnn.engine.base import EngineBase
from returnn.engine.report import with_first_batch_notice
from returnn.errors import ConfigError, DatasetError, DeviceMemoryError
from returnn.forward_iface import ForwardCallbackIface
from returnn.frontend.run_ctx import RunCtx, init_forward_step_run_ctx
from returnn.log import log
from returnn.options.batching import BatchingOptions
from returnn.options.dialect import is_mainline
from returnn.options.forward import ForwardOptions, make_callback
from returnn.options.model import ModelOptions
from returnn.options.training import EngineOptions
from returnn.tensor import TensorDict
from returnn.torch.context import get_run_ctx
from returnn.torch.data.extern_data import raw_dict_can_split_batch, raw_dict_split_batch
from returnn.torch.data.loader import Loader
from returnn.torch.errors_context import add_batch_note, add_oom_note
from returnn.torch.forward_data import read_as_it_is, sort_by_length
from returnn.torch.forward_ranks import RankExchange, rounds
from returnn.torch.forward_seqs import SeqOutputs
from returnn.torch.forward_sink import CallbackSink, ForwardSink, HdfSink, make_sink
from returnn.torch.messages import no_data_text
from returnn.torch.precision import step_precision
from returnn.torch.step_call import StepCall
from returnn.torch.step_reports import RawBatch, StepReports
from returnn.torch.user_functions import UserFunction

__all__ = ["ForwardPasses"]
