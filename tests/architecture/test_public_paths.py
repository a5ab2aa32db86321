"""
Each module path that client code uses imports alone in a fresh process and has its names;
those for datasets and config do not import torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.architecture.test_layers import ROOT

#: Paths that must import without torch.
WITHOUT_TORCH: dict[str, str] = {
    "returnn": "__version__ __long_version__ __git_version__ __root_dir__",
    "returnn.__main__": "main console_main init init_config init_log init_engine init_better_exchook init_faulthandler "
    "init_ipython_kernel init_backend_engine returnn_greeting execute_main_task finalize config engine quit_returnn "
    "describe_returnn_version debug_shell",
    "returnn.__setup__": "VERSION get_version_str git_rev_version",
    "returnn.config": "Config set_global_config get_global_config global_config_ctx",
    "returnn.log": "log Log Stream StdoutHandler StreamThreadLocal StreamDummy wrap_log_streams",
    "returnn.util": "NumbersDict basic",
    "returnn.util.basic": "cf NumbersDict NotSpecified better_repr hms hms_fraction pretty_print Stats ObjAsDict DictAsObj "
    "make_hashable get_login_username pip_install which which_pip pip_check_is_installed human_bytes_size human_size "
    "progress_bar_with_time parse_orthography parse_orthography_into_symbols describe_returnn_version BackendEngine BehaviorVersion "
    "OptionalNotImplementedError class_idx_seq_to_1_of_k hdf5_strings unicode uniq LockFile get_temp_dir terminal_size is_tty "
    "set_pretty_print_default_limit set_pretty_print_as_bytes get_fwd_compat_kwargs",
    "returnn.util.numbers_dict": "NumbersDict",
    "returnn.util.debug": "debug_shell init_better_exchook init_faulthandler install_lib_sig_segfault",
    "returnn.util.debug_helpers": "find_obj_in_stack SimpleHdf",
    "returnn.util.better_exchook": "install setup_all better_exchook replace_traceback_format_tb debug_shell",
    "returnn.util.literal_py_to_pickle": "literal_eval py_to_pickle",
    "returnn.util.compiling": "NativeCodeCompiler",
    "returnn.util.native_code_compiler": "NativeCodeCompiler",
    "returnn.util.bpe": "StandardBytePairEncoder PrefixTree BpeOpts DepthFirstSearch CharSyncSearch SamplingBytePairEncoder "
    "BpePostMergeSymbol BpeMergeSymbol",
    "returnn.util.math": "PiecewiseLinear StepFunction merge_random_seeds ceil_div next_power_of_two",
    "returnn.util.file_cache": "FileCache CachedFile get_instance",
    "returnn.import_": "import_",
    "returnn.forward_iface": "ForwardCallbackIface",
    "returnn.learning_rate_control": "LearningRateControl NewbobRelative NewbobMultiEpoch load_learning_rate_control_from_config os",
    "returnn.tensor": "Tensor Dim TensorDict batch_dim single_step_dim",
    "returnn.tensor.tensor_dict": "TensorDict",
    "returnn.tensor.dim": "Dim batch_dim",
    "returnn.datasets": "init_dataset Dataset",
    "returnn.datasets.basic": "Dataset DatasetSeq init_dataset convert_data_dims get_dataset_class shapes_for_batches "
    "set_config_extern_data_from_dataset",
    "returnn.datasets.cached": "CachedDataset",
    "returnn.datasets.cached2": "CachedDataset2",
    "returnn.datasets.map": "MapDatasetBase MapDatasetWrapper",
    "returnn.datasets.generating": "DummyDataset StaticDataset Task12AXDataset TaskNumberBaseConvertDataset "
    "DummyDatasetMultipleSequenceLength TimitDataset Vocabulary BytePairEncoding CharacterTargets",
    "returnn.datasets.hdf": "SimpleHDFWriter HDFDataset HDFDatasetWriter NextGenHDFDataset numpy attr_seqLengths attr_inputPattSize "
    "attr_times attr_ctcIndexTranscription StreamParser FeatureSequenceStreamParser SparseStreamParser SegmentAlignmentStreamParser",
    "returnn.datasets.util.hdf": "SimpleHDFWriter HDFDatasetWriter HDF_SEQ_LENGTHS_KEY HDF_INPUT_PATT_SIZE_KEY HDF_TIMES_KEY",
    "returnn.datasets.util.strings": "str_to_numpy_array",
    "returnn.datasets.util.vocabulary": "Vocabulary BytePairEncoding SamplingBytePairEncoding SentencePieces CharacterTargets "
    "Utf8ByteTargets HuggingFaceTokenizer",
    "returnn.datasets.stream_hdf": "StreamHDFDataset StreamParser FeatureSequenceStreamParser SparseStreamParser "
    "SegmentAlignmentStreamParser",
    "returnn.datasets.numpy_dump": "NumpyDumpDataset",
    "returnn.datasets.meta": "MetaDataset",
}
#: Paths that need torch. The value is the list of names.
WITH_TORCH: dict[str, str] = {
    "returnn.engine.base": "EngineBase",
    "returnn.frontend": "get_run_ctx init_train_step_run_ctx init_forward_step_run_ctx Tensor Dim",
    "returnn.frontend.run_ctx": "RunCtx Loss get_run_ctx reset_run_ctx",
    "returnn.torch.context": "get_run_ctx init_load_run_ctx init_train_step_run_ctx init_forward_step_run_ctx RunCtx Loss",
    "returnn.torch.engine": "Engine ForwardCallbackIface TrainCtx",
    "returnn.torch.updater": "Updater wrap_user_blacklist_wd_modules get_optimizer_class",
    "returnn.torch.data.pipeline": "BatchingIterDataPipe ChunkingIterDataPipe LenFilterDataPipe collate_batch create_tensor "
    "create_data_loader_from_batches",
    "returnn.torch.data.returnn_dataset_wrapper": "ReturnnDatasetIterDataPipe ReturnnDatasetResetDefaultEpochCounterCallback "
    "ReturnnDatasetResetMpSharedEpochCallback",
    "returnn.torch.data.extern_data": "raw_dict_to_extern_data extern_data_template_from_config_opts raw_dict_can_split_batch "
    "raw_dict_split_batch",
    "returnn.torch.data.tensor_utils": "tensor_dict_numpy_to_torch_ tensor_dict_torch_to_numpy_",
    "returnn.torch.util.diagnose_gpu": "print_available_devices print_using_cuda_device_report diagnose_no_gpu",
}
#: Names and paths of work that is still to come.
LATER: dict[str, str] = {
    "returnn.datasets.basic": "Batch BatchSetGenerator shapes_for_batches set_config_extern_data_from_dataset",
}

#: Runs in one clean process; each import happens in a forked copy of it, so that it starts without any first-party module.
_PROGRAM = """
import importlib, json, os, sys
table, preload, root = json.loads(sys.argv[1])
sys.path.insert(0, root)
for name in preload:
    importlib.import_module(name)


def in_child(function):
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        try:
            result = function()
        except BaseException as exc:
            result = f"{type(exc).__name__}: {exc}"
        with os.fdopen(write_end, "wb") as f:
            f.write(result.encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as f:
        text = f.read().decode()
    os.waitpid(pid, 0)
    return text


def import_all():
    for name in table:
        try:
            importlib.import_module(name)
        except BaseException:
            pass
    return "\\n".join(sys.modules)


def check(module, names):
    m = importlib.import_module(module)
    torch_loaded = "torch" in sys.modules and "torch" not in preload
    missing = []
    for name in names.split():
        try:
            exec(f"from {module} import {name}")  # also finds submodules
        except ImportError:
            missing.append(name)
    return ("imports torch" if torch_loaded else "") + (" has no " + ", ".join(missing) if missing else "")


# What others wrote is imported once, before the forks: half of the time.
for name in in_child(import_all).splitlines():
    if name.partition(".")[0] not in ("returnn", "torch", "tests", "tools", "__main__"):
        try:
            importlib.import_module(name)
        except Exception:
            pass
problems = []
for module, names in table.items():
    text = in_child(lambda: check(module, names))
    if text:
        problems.append(f"{module}: {text}")
print(json.dumps(problems))
"""


def problems_of(table: dict[str, str], preload: list[str]) -> list[str]:
    """:return: what is wrong when each module is imported alone"""
    arg = json.dumps([table, preload, ROOT])
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        [sys.executable, "-c", _PROGRAM, arg], capture_output=True, text=True, env=env, cwd=os.path.dirname(ROOT)
    )
    assert out.returncode == 0, out.stderr
    result: list[str] = json.loads(out.stdout.splitlines()[-1])
    return result


def without_later(table: dict[str, str]) -> dict[str, str]:
    """:return: the table without what is still to come"""
    result = {}
    for module, names in table.items():
        later = LATER.get(module, "").split()
        if later and set(later) >= set(names.split()):
            continue
        result[module] = " ".join(n for n in names.split() if n not in later)
    return result


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_public_paths_import_alone_and_without_torch() -> None:
    assert problems_of(without_later(WITHOUT_TORCH), ["numpy", "h5py"]) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_public_paths_with_torch_import_alone() -> None:
    assert problems_of(without_later(WITH_TORCH), ["numpy", "h5py", "torch", "torch.utils.data"]) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_all_modules_of_the_layers_without_torch_import_without_it() -> None:
    from tests.architecture.test_layers import TORCH_FROM_LAYER, layer, python_files

    modules = {m: "" for m, _ in python_files() if m.startswith("returnn") and layer(m) < TORCH_FROM_LAYER}
    modules.update(
        dict.fromkeys(("returnn.cli.args", "returnn.cli.help", "returnn.cli.tasks", "returnn.cli.error_report"), "")
    )
    others = {m: "" for m in modules if m not in without_later(WITHOUT_TORCH)}  # those are in a test of their own
    assert problems_of(others, ["numpy", "h5py"]) == []


@pytest.mark.parametrize("tool", ["hdf_dump", "hdf_dump_translation_dataset"])
def test_tools_for_datasets_do_not_import_torch(tool: str) -> None:
    program = f"import sys; sys.path.insert(0, {os.path.join(ROOT, 'tools')!r}); import {tool}; assert 'torch' not in sys.modules"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
