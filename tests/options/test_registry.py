"""Every option of the contract is declared exactly once, and aliases lead to the same option."""

from __future__ import annotations

import pytest

from returnn.config import Config
from returnn.errors import ConfigError
from returnn.options import sections  # noqa: F401
from returnn.options.registry import all_options, closest_names, is_given, lookup, options_read, read

#: All names of the contract, by section of it.
NAMES = {
    "run control": """task backend use_tensorflow device log log_verbosity log_format log_batch_size torch_log_memory_usage
        calculate_exp_loss dry_run patch_atfork ipython CustomEngine random_seed need_data startup_callback behavior_version
        use_train_proc_manager watch_memory PYTORCH_CUDA_ALLOC_CONF use_lovely_tensors use_hot_reloading
        debug_shell_before_train_loop stop_for_resubmission_when_low_time_left stop_for_resubmission_safety_factor use_horovod
        EnableAutoNumpySharedMemPickling use_dummy_datasets dummy_dataset_num_seqs train_dummy_dataset_num_seqs include epoch
        seed target tf_log_dir tf_log_memory_usage debug_print_layer_output_template optimize_move_layers_out""",
    "data": """train dev eval eval_datasets forward forward_data search_data extern_data batch_size batch_size_train
        batch_size_dev packed_batch_size max_seqs batch_drop_last batching_drop_last min_seq_length max_seq_length
        chunking_options chunking min_chunk_size num_workers_per_gpu num_workers_for_gpu torch_dataloader_opts torch_batching
        online_shuffle_batches packed_tensors allow_skipping_seqs_in_forward sort_dataset forward_auto_split_batch_on_oom
        cache_size window context_window batching shuffle_frames_of_nseqs chunking_variance on_size_limit chunk_eval
        file_cache_opts lm_dataset_debug_limit_line_count __debug_dummy_distributed_rank_and_size dataset
        SprintInterfacePythonFeatureScorer extract sprint_trainer_exec_path""",
    "model": """get_model train_step forward_step forward_init_hook forward_finish_hook forward_callback model_outputs export
        epoch_start epoch_end load_model_post_hooks onnx_export inf_value default_float_dtype get_network network num_inputs
        num_outputs loss rf_use_mask rf_att_dropout_broadcast rf_dropout_broadcast rf_batch_norm_distributed rf_native_opt
        rf_module_output_keep_dtype rf_scatter_use_fixed_masking rf_specaugment_num_masks_per_seq rf_use_consistent_same_padding
        rf_conformer_conv_norm_use_mask packed_fallback_allowed""",
    "training": """num_epochs start_epoch start_batch save_interval stop_on_nonfinite_train_score torch_amp_options torch_amp
        grad_scaler accum_grad_multiple_step torch_distributed torch_profile torch_cuda_graph reset_dev_memory_caches
        use_tensorboard tensorboard_opts""",
    "optimizer": """optimizer updater gradient_clip gradient_clip_norm gradient_clip_global_norm
        gradient_clip_norm_invalid_gradient_threshold num_allowed_consec_invalid_gradient_steps gradient_noise log_grad_norm
        decouple_constraints dynamic_learning_rate gradient_clip_avg_norm global_norm_tag gradient_clip_global_norm_tag
        grad_norm_to_clip_to_zero maximize_grad_norm debug_grad_summaries gradient_nan_inf_filter grad_clip""",
    "learning rate": """learning_rate learning_rates learning_rate_file learning_rate_control
        learning_rate_control_error_measure learning_rate_control_min_num_epochs_per_new_lr
        learning_rate_control_relative_error_relative_lr min_learning_rate learning_rate_decay newbob_learning_rate_decay
        learning_rate_growth newbob_learning_rate_growth newbob_relative_error_threshold newbob_relative_error_grow_threshold
        newbob_error_threshold newbob_multi_num_epochs newbob_multi_update_interval newbob_relative_error_div_by_old
        relative_error_div_by_old use_learning_rate_control_always check_learning_rates pretrain_learning_rate""",
    "checkpoints": """model load load_epoch import_model_train_epoch1 preload_from_files load_ignore_missing_vars
        allow_missing_optimizer_checkpoint use_fresh_optimizer_for_missing_checkpoint allow_missing_optimizer
        allow_random_model_init cleanup_old_models apply_cleanup_old_models_to_optim_states save_ignore_params
        save_ignore_params_prefixes""",
    "output": """output_file forward_override_hdf_output forward_batch_size forward_use_search combine_labels search_output_file
        search_output_file_format search_output_layer search_do_eval eval_output_file eval_output_file_per_seq
        output_per_seq_format output_per_seq_file_format loss_name analyze_dataset statistics_save_prefix statistics_dtype
        data_key ext_model""",
    "tools": "seq_drop max_pad_size wer_data dump_data",
    "left by client code": "use_speed_perturbation mem_rqmt time_rqmt cpu_rqmt keep_epochs decay submodel asdf returnn_root "
    "returnn_python_exe",
}
ALIASES = {
    "gradient_clip_global_norm": "gradient_clip_norm",
    "torch_amp": "torch_amp_options",
    "forward_data": "forward",
    "num_workers_for_gpu": "num_workers_per_gpu",
    "batching_drop_last": "batch_drop_last",
    "newbob_learning_rate_decay": "learning_rate_decay",
    "newbob_learning_rate_growth": "learning_rate_growth",
    "relative_error_div_by_old": "newbob_relative_error_div_by_old",
    "allow_missing_optimizer": "allow_missing_optimizer_checkpoint",
    "use_fresh_optimizer_for_missing_checkpoint": "allow_missing_optimizer_checkpoint",
}


@pytest.mark.parametrize("area", NAMES)
def test_all_options_of_the_contract_are_declared(area: str) -> None:
    assert [name for name in NAMES[area].split() if lookup(name) is None] == []


@pytest.mark.parametrize("alias", ALIASES)
def test_alias(alias: str) -> None:
    option = lookup(alias)
    assert option is not None and option.name == ALIASES[alias]


def test_each_option_has_a_sentence_and_unsupported_ones_say_what_to_use() -> None:
    for option in all_options():
        assert option.doc.strip(), option
        assert option.types.strip(), option
        if option.status in ("later", "refused"):
            assert option.instead.strip(), option


def test_conflicting_aliases_are_an_error_that_names_both() -> None:
    config = Config({"batch_drop_last": True, "batching_drop_last": False})
    with pytest.raises(ConfigError, match='"batch_drop_last" .*"batching_drop_last"'):
        read(config, "batch_drop_last")


def test_agreeing_aliases_are_fine() -> None:
    config = Config({"batch_drop_last": True, "batching_drop_last": True})
    assert read(config, "batch_drop_last") is True
    assert options_read(config) >= {"batch_drop_last", "batching_drop_last"}


def test_read_by_alias_and_default() -> None:
    assert read({"batching_drop_last": True}, "batch_drop_last") is True
    assert read({}, "batch_drop_last") is False
    assert is_given({"batching_drop_last": True}, "batch_drop_last")
    assert not is_given({}, "batch_drop_last")


def test_value_of_the_command_line_is_parsed() -> None:
    config = Config()
    config.parse_cmd_args(["++batch_size", "1000", "++max_seq_length", "{'data': 10}"])
    assert read(config, "batch_size") == 1000
    assert read(config, "max_seq_length") == {"data": 10}


@pytest.mark.parametrize(
    "typo, meant", [("batch_sizee", "batch_size"), ("gradient_clipp", "gradient_clip"), ("num_epoch", "num_epochs")]
)
def test_closest_name(typo: str, meant: str) -> None:
    assert closest_names(typo) == [meant]


def test_closest_name_by_meaning() -> None:
    assert closest_names("epochs") == ["num_epochs"]
    assert closest_names("batch_sizee") == ["batch_size"]
