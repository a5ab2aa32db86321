"""
Options of the peers that have no reader here: each with the reason, and with what to use instead.

- ignored: old pipelines always set them; they never had an effect on the jobs that run here. Accepted silently.
- later: without effect here; a warning says what to use.
- refused: a run that ignored them would do something else than asked, so it does not start.
"""

from __future__ import annotations

from typing import Any

from returnn.options.registry import Option, declare

__all__: list[str] = []

_LAYERS = "Layer-dict networks are not supported; build the model as torch.nn.Module in get_model"
_TASK_FORWARD = 'Use task = "forward" with forward_step and hooks'
_IN_DATASET = "Datasets have no global defaults; set it in the dataset dict"


def _ignored(*names: str, doc: str, default: Any = None) -> None:  # Any: each option has its own type
    declare(*[Option(name, "any", default, doc, status="ignored") for name in names])


def _later(*names: str, doc: str, instead: str, default: Any = None, types: str = "any") -> None:  # Any: as above
    declare(*[Option(name, types, default, doc, status="later", instead=instead) for name in names])


def _refused(*names: str, doc: str, instead: str, default: Any = None, types: str = "any") -> None:  # Any: as above
    declare(*[Option(name, types, default, doc, status="refused", instead=instead) for name in names])


# -- ignored -----------------------------------------------------------------------------------------------------------

_ignored(
    *("target", "tf_log_dir", "tf_log_memory_usage", "debug_print_layer_output_template", "optimize_move_layers_out"),
    *("num_inputs", "num_outputs", "loss", "extract", "combine_labels"),
    *("search_data", "search_output_file", "search_output_file_format", "search_output_layer", "search_do_eval"),
    *("forward_batch_size", "forward_use_search"),
    doc="TensorFlow back end only; old pipelines and job layers always set it.",
)
_ignored("need_data", default=True, doc="Datasets are created by the tasks that need them, not at the start.")
_ignored(
    "EnableAutoNumpySharedMemPickling", default=False, doc="Worker processes pass arrays through shared memory anyway."
)
_ignored("export", "onnx_export", doc="Read by the export tool, not by a run.")
_ignored("dataset", "wer_data", "dump_data", "seq_drop", "max_pad_size", doc="Read by tools and jobs of client code.")
_ignored(
    *(
        "seed",
        "use_speed_perturbation",
        "mem_rqmt",
        "time_rqmt",
        "cpu_rqmt",
        "keep_epochs",
        "decay",
        "submodel",
        "asdf",
    ),
    *("returnn_root", "returnn_python_exe", "ext_model"),
    doc="Not an option: a name that client code leaves in the config.",
)
_ignored(
    *("rf_use_mask", "rf_att_dropout_broadcast", "rf_dropout_broadcast", "rf_batch_norm_distributed", "rf_native_opt"),
    *(
        "rf_packed_ops",
        "rf_module_output_keep_dtype",
        "rf_scatter_use_fixed_masking",
        "rf_specaugment_num_masks_per_seq",
    ),
    *("rf_use_consistent_same_padding", "rf_conformer_conv_norm_use_mask", "packed_fallback_allowed"),
    doc="Setting of layers of the peers' frontend, which is out of scope.",
)

# -- later -------------------------------------------------------------------------------------------------------------

_later(
    "use_train_proc_manager",
    default=False,
    doc="Restart the training process after a crash.",
    instead="A restart of the same command continues from the newest whole checkpoint",
)
_later(
    "watch_memory", default=False, doc="Log the memory of all processes.", instead="Use a tool of the system, e.g. top"
)
_later(
    *("use_lovely_tensors", "use_hot_reloading", "debug_shell_before_train_loop"),
    default=False,
    doc="Interactive debugging.",
    instead="Call returnn.util.debug.debug_shell() in your own functions, e.g. in get_model",
)
_later(
    *("hidden_size", "hidden_sizes", "hidden_type", "activation", "initial_weights"),
    doc="Layer option of the oldest configs.",
    instead=_LAYERS,
)
_later(
    *("window", "context_window", "shuffle_frames_of_nseqs", "chunking_variance"),
    doc="Global default of a dataset option.",
    instead="Windows, chunks and batches are not the datasets' work here; use chunking_options, or stack frames in train_step",
    default=0,
)
_later(
    "batching",
    doc="Global default of the dataset option seq_ordering.",
    instead='Set "seq_ordering" in the dataset dict',
)
_later("on_size_limit", doc=_IN_DATASET + ".", default="ignore", instead="Use max_seq_length to drop long sequences")
_later(
    "chunk_eval",
    doc=_IN_DATASET + ".",
    default=False,
    instead="Evaluation uses the chunking of chunking_options or none",
)
_later(
    *("analyze_dataset", "statistics_save_prefix", "statistics_dtype", "data_key"),
    doc="Settings of the task analyze_data.",
    instead="Use tools/dump-dataset.py --stats",
)
_later(
    *(
        "eval_output_file",
        "eval_output_file_per_seq",
        "output_per_seq_format",
        "output_per_seq_file_format",
        "loss_name",
    ),
    doc="Scores per sequence of the mainline task eval.",
    instead=_TASK_FORWARD,
)
_later(
    "inf_value",
    default=float("inf"),
    doc="Value used as infinity.",
    instead="Use a constant of your own in the model code",
)

_later(
    "lm_dataset_debug_limit_line_count",
    doc="For debugging: only the first lines of each text file.",
    instead="Write these lines to a file of their own (head -n 1000), or name them by seq_list_filter_file in the dataset dict",
)
_later(
    "__debug_dummy_distributed_rank_and_size",
    doc="For debugging.",
    instead="Start several ranks with torchrun, it works without a GPU too",
)

# -- refused -----------------------------------------------------------------------------------------------------------

_refused(
    "use_tensorflow",
    default=False,
    types="bool",
    doc="TensorFlow back end.",
    instead="Only PyTorch is supported; " + _LAYERS[0].lower() + _LAYERS[1:],
)
_refused(
    "use_horovod",
    default=False,
    types="bool",
    doc="Training on many devices with Horovod.",
    instead="Horovod is not supported; start the training with torchrun and set torch_distributed, or remove the option",
)
_refused(
    "network", "get_network", "pretrain", "pretrain_repetitions", default={}, doc="Layer-dict network.", instead=_LAYERS
)
_refused(
    *("SprintInterfacePythonFeatureScorer", "sprint_interface_loss", "sprint_trainer_exec_path", "sprint_opts"),
    doc="Interface to RASR/Sprint processes.",
    instead="RASR processes are out of scope; dump the data to HDF files first and use HDFDataset",
)
_refused(
    "torch_cuda_graph",
    types="dict",
    doc="Capture training steps as CUDA graphs.",
    instead="A captured graph has fixed shapes and addresses, while here each batch has its own lengths; use torch_compile, and "
    "torch_batching with buckets to have few different shapes",
)
