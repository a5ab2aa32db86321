"""The helpers of util.basic that have no golden values."""

from __future__ import annotations

import ctypes
import io
import math
import os
import pickle
import subprocess
import sys
import types
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy
import pytest

import returnn
from returnn._state import process_state_ctx, state
from returnn.config import Config
from returnn.errors import ConfigError, MissingDependencyError, NotSupportedError
from returnn.util import basic as util
from returnn.util import terminal
from returnn.util.basic import (
    BackendEngine,
    BehaviorVersion,
    CollectionReadCheckCovered,
    NotSpecified,
    NumbersDict,
    OptionalNotImplementedError,
    ReportImportedDevModules,
    Stats,
)
from returnn.util.compiling import CompileError, NativeCodeCompiler
from returnn.util.fwd_compat import get_fwd_compat_hook_kwargs, get_fwd_compat_kwargs_mini
from returnn.util.optional_import import optional_import


def test_facade_names_exist_and_are_documented() -> None:
    assert len(set(util.__all__)) == len(util.__all__)
    for name in util.__all__:
        obj = getattr(util, name)
        if isinstance(obj, (type, types.FunctionType)) and obj.__module__.startswith("returnn"):
            assert obj.__doc__, name
    import returnn.util as package

    assert package.NumbersDict is NumbersDict is util.NumbersDict


def test_numbers_dict_pickle_contains_and_dict_operands() -> None:
    nd = pickle.loads(pickle.dumps(NumbersDict({"a": 1}, None, None)))
    assert nd == NumbersDict({"a": 1}) and "a" in nd and "b" not in nd
    assert (nd + {"b": 2}).dict == {"a": 1, "b": 2} and (2 - nd).dict == {"a": 1}
    assert nd.has_value_for("a") and not nd.has_value_for("b") and NumbersDict(3).has_value_for("b")
    nd["c"] = 5
    del nd["a"]
    assert nd.dict == {"c": 5}


def test_collection_read_check_covered() -> None:
    coll = CollectionReadCheckCovered({"a": 1, "b": 2})
    assert coll["a"] == 1 and coll.get("x", 3) == 3 and coll.got_items == {"a"}
    with pytest.raises(AssertionError, match=r"\['b'\] were not read"):
        coll.assert_all_read()
    coll.get("b")
    coll.assert_all_read()
    with pytest.raises(KeyError):
        coll["x"]


def test_containers() -> None:
    d = {"a": {"x": 1, "y": {"x": 2}}, "x": 3}
    util.deep_update_dict_values(d, "x", 9)
    assert d == {"a": {"x": 9, "y": {"x": 9}}, "x": 9}
    assert util.dict_joined({"a": 1}, {"a": 2, "b": 3}) == {"a": 2, "b": 3}
    refs: util.DictRefKeys[Any, int] = util.DictRefKeys()
    key: list[int] = []
    refs[key] = 1
    assert key in refs and [] not in refs and refs[key] == 1 and refs.items() == [(key, 1)] and len(refs) == 1
    pair = namedtuple("pair", "a b")
    assert util.make_seq_of_type(pair, [1, 2]) == pair(1, 2) and util.make_seq_of_type(list, (1,)) == [1]
    assert util.ensure_list_of_type((1, 2), int) == [1, 2]
    with pytest.raises(TypeError, match="index 1"):
        util.ensure_list_of_type([1, "a"], int)
    obj = util.DictAsObj({"a": 1})
    obj.b = 2  # type: ignore[attr-defined]
    assert dict(util.ObjAsDict(obj)) == {"a": 1, "b": 2}
    with pytest.raises(ValueError):
        util.make_hashable({"a": 1})["b"] = 2
    assert issubclass(OptionalNotImplementedError, NotImplementedError)
    assert str(NotSpecified) == "NotSpecified" and NotSpecified.resolve(NotSpecified(), 3) == 3


class _Base:
    def __init__(self, a: int, *, kw: int, opt: int = 3) -> None:
        pass


class _Derived(_Base):
    def __init__(self, b: int, c: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)


def test_class_kwargs() -> None:
    assert util.collect_class_init_kwargs(_Derived, keyword_only=True) == ["b", "c", "a", "kw", "opt"]
    assert util.collect_mandatory_class_init_kwargs(_Derived) == ["b", "a", "kw"]
    text = util.help_on_type_error_wrong_args(_Derived, ["b", "a", "kw", "optt"])
    assert text == "_Derived has no argument optt. Did you mean opt?"
    assert util.help_on_type_error_wrong_args(_Derived, ["b"]) == "_Derived needs a, kw."
    chain = util.type_attrib_mro_chain(_Derived, "__init__")
    assert chain[:2] == [_Derived.__init__, _Base.__init__]
    assert util.next_type_attrib_in_mro_chain(_Derived, "__init__", _Derived.__init__) is _Base.__init__
    assert util.getargspec(_Derived.__init__).args == ["self", "b", "c"]


def test_obj_diff_objects_and_allowed_mapping() -> None:
    a, b = types.SimpleNamespace(x=1, y=[1]), types.SimpleNamespace(x=1, y=[2])
    assert util.obj_diff_str(a, b) == "object diff:\n.y list diff:\n.y [0] self: 1 != other: 2"
    assert util.obj_diff_str(a, b, allowed_mapping=lambda x, y: y == x + 1) == "No diff."
    assert util.obj_diff_list(numpy.zeros(3), numpy.zeros(3)) == []
    assert util.obj_diff_list({"a": 1}, {"a": 1, "b": 2}) == ["dict diff:", "  key 'b' not in self"]
    cyclic: list[Any] = [1]
    cyclic.append(cyclic)
    other: list[Any] = [1]
    other.append(other)
    assert util.obj_diff_str(cyclic, other) == "No diff."


def test_pretty_print_as_bytes() -> None:
    import base64
    import gzip

    array = numpy.arange(6, dtype="float32").reshape(2, 3)
    with process_state_ctx():
        util.set_pretty_print_as_bytes(True)
        text = util.pretty_print(array)
        assert (eval(text, {"numpy": numpy, "gzip": gzip, "base64": base64}) == array).all()
        util.set_pretty_print_as_bytes(False)
        util.set_pretty_print_default_limit(8)
        assert util.pretty_print("x" * 100) == "'xxxx..."
    assert "...," not in util.pretty_print("x" * 100)


def test_arrays() -> None:
    x = numpy.zeros(3)
    assert util.inplace_increment(x, numpy.array([0, 0, 2]), 1.0).tolist() == [2, 0, 1]
    assert util.prod([2, 3]) == 6 and util.prod([]) == 1
    assert util.softmax(numpy.array([[0.0, 0.0], [1000.0, 0.0]]), axis=1).tolist() == [[0.5, 0.5], [1.0, 0.0]]
    assert util.find_ranges([0, 1, 2, 5, 6, 9]) == [(0, 3), (5, 7), (9, 10)]
    assert util.uniq_generic("aabb a") == ["a", "b", " ", "a"]
    assert util.slice_pad_zeros(numpy.ones((2, 2)), -1, 3).tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]
    assert util.slice_pad_zeros(numpy.ones(2), -5, -2).tolist() == [0, 0, 0]


def test_bleu() -> None:
    ref = ["the cat is on the mat".split()]
    assert util.compute_bleu(ref, ref) == pytest.approx(1.0)
    assert util.compute_bleu(ref, ["the the the the the the the".split()]) == 0.0
    assert util.compute_bleu(ref, ["the the the the the the the".split()], max_order=1) == pytest.approx(2 / 7)
    hyp = ["the cat is on".split()]
    assert util.compute_bleu(ref, hyp) == pytest.approx(math.exp(1 - 6 / 4))
    assert util.compute_bleu(ref, hyp, use_bp=False) == pytest.approx(1.0)


def test_stats_dump_and_order(tmp_path: Path) -> None:
    rng = numpy.random.RandomState(1)
    blocks = [rng.normal(3.0, 2.0, (n, 4)) for n in (5, 0, 1, 30)]
    stats = Stats()
    for block in blocks:
        stats.collect(block)
    data = numpy.concatenate(blocks)
    numpy.testing.assert_allclose(stats.get_mean(), data.mean(axis=0), rtol=1e-12)
    numpy.testing.assert_allclose(stats.get_std_dev(), data.std(axis=0), rtol=1e-12)
    stream = io.StringIO()
    stats.dump(output_file_prefix=str(tmp_path / "s"), stream=stream, stream_prefix="> ")
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["> Stats:", "  3 seqs, 36 total frames, 12.000000 average frames"]
    assert lines[-1] == f"  Write mean/std-dev to {tmp_path / 's'}.(mean|std_dev).txt."
    numpy.testing.assert_array_equal(numpy.loadtxt(tmp_path / "s.mean.txt"), stats.get_mean())
    numpy.testing.assert_array_equal(numpy.loadtxt(tmp_path / "s.std_dev.txt"), stats.get_std_dev())
    stats = Stats(format_str=".1f")
    stats.collect([1.0, 2.0])
    assert "mean=1.5," in str(stats)


def test_objects(tmp_path: Path) -> None:
    assert util.deserialize_object(util.serialize_object({"a": 1})) == {"a": 1}
    pipe = io.BytesIO()
    util.write_pickled_object(pipe, [1, 2])
    pipe.seek(0)
    assert util.read_pickled_object(pipe) == [1, 2]
    with pytest.raises(EOFError):
        util.read_bytes_to_new_buffer(io.BytesIO(b"ab"), 3)
    shared = NumbersDict({"a": 1})
    original = {"x": [shared, sys], "y": (shared, [1])}
    copied = util.deepcopy(original, stop_types=[NumbersDict])
    assert copied["x"][0] is shared and copied["x"][1] is sys and copied["y"][1] is not original["y"][1]
    namespace: dict[str, Any] = {}
    util.custom_exec("x = 3", "<test>", namespace, {})
    assert namespace == {"x": 3}
    assert util.generic_import_module("returnn.config").__name__ == "returnn.config"
    vector = tmp_path / "v.txt"
    vector.write_text("<vector>\n1.5\n\n -2 \n</vector>\n")
    assert util.load_txt_vector(str(vector)) == [1.5, -2.0]


def test_model_epoch_from_filename(tmp_path: Path) -> None:
    assert util.model_epoch_from_filename("a/net.020") == 20
    assert util.model_epoch_from_filename("a/net.pretrain.003.pt") == 3
    assert util.model_epoch_from_filename("a/net") is None
    (tmp_path / "last.pt").symlink_to("net.123.pt")
    assert util.model_epoch_from_filename(str(tmp_path / "last")) == 123


def test_hdf5_helpers(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    filename = str(tmp_path / "x.hdf")
    with h5py.File(filename, "w") as f:
        f.attrs["num"] = 3
        f.create_group("g/h").attrs["a"] = 4
        f.create_dataset("d", data=numpy.zeros((2, 5)))
        util.hdf5_strings(f, "ascii", ["a", "bcd"])
        util.hdf5_strings(f, "unicode", ["ü", "b"])
        util.hdf5_strings(f, "empty", [])
    assert util.hdf5_dimension(filename, "num") == 3 and util.hdf5_dimension(filename, "g/h/a") == 4
    assert util.hdf5_group(filename, "g/h") == {"a": 4} and util.hdf5_shape(filename, "d") == (2, 5)
    with h5py.File(filename) as f:
        assert f["ascii"].dtype == "S3" and f["ascii"][:].tolist() == [b"a", b"bcd"]
        assert f["unicode"].asstr()[:].tolist() == ["ü", "b"] and f["empty"].shape == (0,)


def test_env() -> None:
    assert util.get_hostname() and "." not in util.get_hostname()
    assert (util.get_number_available_cpus() or 1) >= 1
    stream = io.StringIO()
    with util.override_env_var("OMP_NUM_THREADS", "1"), util.override_env_var("SGE_ROOT", None):
        assert util.guess_requested_max_num_threads(log_file=stream) == 2 and "OMP_NUM_THREADS" in stream.getvalue()
    with util.override_env_var("OMP_NUM_THREADS", None), util.override_env_var("SGE_ROOT", None):
        assert util.guess_requested_max_num_threads(fallback_num_cpus=False) is None
    with util.override_env_var("SLURM_JOB_ID", None):
        assert util.slurm_time_left_sec() is None
    with util.override_env_var("CUDA_VISIBLE_DEVICES", ""):
        assert util.have_gpu() is False
    assert util.get_cpu_model_name() and util.available_physical_memory_in_bytes() > 0
    assert util.default_cache_size_in_gbytes(1.0) > util.default_cache_size_in_gbytes(0.5) > 0
    with util.override_env_var("MY_PATH", "/a/x:/b:/a/y"):
        util.cleanup_env_var_path("MY_PATH", "/a")
        assert os.environ["MY_PATH"] == "/b"
    assert isinstance(util.is_running_on_cluster(), bool) and isinstance(util.get_ld_paths(), list)


def test_slurm_and_sge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, script in (("squeue", "echo 1-02:03:04"), ("qstat", "echo 'hard resource_list:   h_rt=1,num_proc=5'")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SGE_ROOT", "/sge")
    monkeypatch.setenv("JOB_ID", "2")
    assert util.slurm_time_left_sec() == 93784
    assert util.read_sge_num_procs() == util.guess_requested_max_num_threads() == 5


def test_ld_conf(tmp_path: Path) -> None:
    (tmp_path / "ld.conf").write_text("/lib/a\n# comment\ninclude sub/*.conf\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.conf").write_text("/lib/b # c\n")
    assert util.parse_ld_conf_file(str(tmp_path / "ld.conf")) == ["/lib/a", "/lib/b"]
    with util.override_env_var("LD_LIBRARY_PATH", str(tmp_path)):
        (tmp_path / "libmine.so").write_text("")
        assert util.find_lib("mine") == str(tmp_path / "libmine.so")


def test_process(capfd: pytest.CaptureFixture[str]) -> None:
    assert util.which("sh") and util.which("not-existing-program") is None
    assert os.path.basename(util.which_pip()).startswith("pip")
    assert util.pip_check_is_installed("numpy") and not util.pip_check_is_installed("not-existing-package-x")
    with pytest.raises(subprocess.CalledProcessError):
        util.sys_exec_ret_code("sh", "-c", "exit 3")
    assert util.sys_exec_ret_code("sh", "-c", "exit 3", valid=(3,)) == 3
    assert util.is_valid_fd(1) and not util.is_valid_fd(10**6)
    util.try_and_ignore_exception(lambda: 1 / 0)
    assert "ZeroDivisionError" in capfd.readouterr().err
    frame = util.try_get_stack_frame()
    assert frame is not None and frame.f_code.co_name == "test_process" and util.try_get_stack_frame(10**6) is None
    with process_state_ctx(quitting=False):
        assert not util.is_quitting()
        with pytest.raises(KeyboardInterrupt):
            util.interrupt_main()
        state.quitting = True
        util.interrupt_main()
        assert util.is_quitting()


def test_git(tmp_path: Path) -> None:
    env = {**os.environ, "GIT_COMMITTER_DATE": "2024-01-31T23:59:58", "GIT_CONFIG_GLOBAL": "/dev/null"}

    def git(*args: str) -> None:
        cmd = ["git", "-c", "user.name=n", "-c", "user.email=e@x", *args]
        subprocess.run(cmd, cwd=tmp_path, check=True, env=env, capture_output=True)

    git("init")
    (tmp_path / "f").write_text("1")
    git("add", "f")
    git("commit", "-m", "x")
    path = str(tmp_path)
    rev = util.git_commit_rev(git_dir=path)
    assert len(util.git_commit_rev(git_dir=path, length=10)) == 10
    assert util.git_commit_date(git_dir=path) == "20240131.235958" and not util.git_is_dirty(git_dir=path)
    assert util.git_describe_head_version(git_dir=path) == f"20240131.235958--git-{rev}"
    (tmp_path / "f").write_text("2")
    assert util.git_describe_head_version(git_dir=path).endswith("-dirty")
    assert util.describe_returnn_version() == returnn.__long_version__
    assert util.describe_torch_version()


def test_report_imported_dev_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_dev_module_x.py").write_text("")
    stream = io.StringIO()
    with ReportImportedDevModules(log_stream=stream):
        sys.path.insert(0, str(tmp_path))
        util.generic_import_module("my_dev_module_x")
    assert f"New sys.path entry: {tmp_path}\n" in stream.getvalue()
    assert f"New module: my_dev_module_x (<not-under-git> in {tmp_path})" in stream.getvalue()


class _Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = io.StringIO()
    assert util.terminal_size(plain) == (-1, -1) and not util.is_tty(plain)
    util.progress_bar_with_time(0.5, file=plain)
    util.progress_bar(0.5, file=plain)
    assert plain.getvalue() == ""
    monkeypatch.setattr(terminal, "terminal_size", lambda file=None: (60, 20))
    tty = _Tty()
    with process_state_ctx(progress_bar_starts={}):
        for complete in (0.0, 0.25, 0.5, 1.0):
            util.progress_bar_with_time(complete, prefix="p", file=tty)
    parts = tty.getvalue().split("\r")
    assert "50.00%" in parts[3] and parts[3].startswith("p [|") and parts[3].endswith("0:00:00")
    assert all(len(part) < 60 for part in parts) and parts[-2].strip() == "" and parts[-1] == ""


def test_confirm(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["what", "Yes", "n", "no"])
    questions = []

    def fake_input(text: str) -> str:
        questions.append(text)
        return next(answers)

    monkeypatch.setattr("builtins.input", fake_input)
    assert util.confirm("Delete?") is True and util.confirm("Delete?") is False
    assert questions[0] == "Delete? Confirm? [yes/no]"
    with pytest.raises(SystemExit) as exc_info:
        util.confirm("Delete?", exit_on_false=True)
    assert exc_info.value.code == 1


def test_confirm_without_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(ConfigError, match="No answer to the question 'Delete.'.*echo yes"):
        util.confirm("Delete?")


def test_should_write_to_disk() -> None:
    assert util.should_write_to_disk(Config()) and util.should_write_to_disk({})
    assert not util.should_write_to_disk(Config({"dry_run": True}))
    assert not util.should_write_to_disk({"torch_profile": {"x": 1}})
    with process_state_ctx(rank=1):
        assert not util.should_write_to_disk(Config())


def test_log_runtime_info_to_dir(tmp_path: Path) -> None:
    path = tmp_path / "my.config"
    path.write_text("#!rnn.py\nx = 1")
    config = Config()
    config.load_file(str(path))
    util.log_runtime_info_to_dir(str(tmp_path / "info"), config)
    log_file, copy = sorted((tmp_path / "info").iterdir(), key=lambda p: p.name.endswith(".config"))
    assert log_file.name == f"returnn.{util.get_utc_start_time_filename_part()}.{util.get_hostname()}.{os.getpid()}.log"
    for key in ("Time", "Call", "Path", "Hostname", "PID", "Returnn", "Config files"):
        assert f"{key}: " in log_file.read_text() and f"\n# {key}: " in copy.read_text()
    assert copy.read_text().startswith("#!rnn.py\nx = 1\n")


def test_behavior_version(caplog: pytest.LogCaptureFixture) -> None:
    with process_state_ctx(behavior_version=None, min_behavior_version=0, shown_warnings=set()):
        assert BehaviorVersion.get() == 0 and BehaviorVersion.get_if_set() is None and not BehaviorVersion.is_set()
        with caplog.at_level(1, logger="returnn"):
            caplog.handler.setLevel(1)
            BehaviorVersion.require(False, "do not do that", 5)
            BehaviorVersion.require(False, "do not do that", 5)
        assert len(caplog.records) <= 1
        BehaviorVersion.set_min_behavior_version(3)
        assert BehaviorVersion.get() == 3
        BehaviorVersion.set(None)
        BehaviorVersion.set(7)
        BehaviorVersion.set(7)
        assert BehaviorVersion.get() == 7 and BehaviorVersion.is_set()
        with pytest.raises(Exception, match="already set to 7"):
            BehaviorVersion.set(8)
        BehaviorVersion.require(True, "fine", 5)
        with pytest.raises(BehaviorVersion.RequirementNotSatisfied, match="do not do that"):
            BehaviorVersion.require(False, "do not do that", 5)
    with process_state_ctx(behavior_version=None):
        BehaviorVersion.set(99)
        assert BehaviorVersion.get() == 99
        with pytest.raises(ValueError, match="behavior_version"):
            BehaviorVersion.set("21")  # type: ignore[arg-type]


def test_backend_engine() -> None:
    BackendEngine.select_engine(config=Config({"backend": "torch"}))
    BackendEngine.select_engine(engine=BackendEngine.Torch)
    BackendEngine.select_engine(config=Config(), default_fallback_engine=BackendEngine.Torch)
    assert BackendEngine.is_torch_selected() and not BackendEngine.is_tensorflow_selected()
    with pytest.raises(NotSupportedError, match="'tensorflow' is not supported"):
        BackendEngine.select_engine(config=Config({"backend": "tensorflow"}))
    with process_state_ctx(global_config=None), pytest.raises(Exception, match="No backend defined"):
        BackendEngine.select_engine()


def test_fwd_compat_kwargs() -> None:
    names = {name for _ in range(100) for name in util.get_fwd_compat_kwargs()}
    assert all(name.startswith("__fwd_compat_random_arg_0") and len(name) == 27 for name in names) and len(names) > 1
    assert list(get_fwd_compat_kwargs_mini())[0].startswith("__fwd_compatible_random_arg_")
    assert list(get_fwd_compat_hook_kwargs())[0].startswith("__random_arg_")


def test_optional_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert optional_import("numpy", needed_by="x") is numpy
    with pytest.raises(
        MissingDependencyError, match="'nope_x' is not installed, but needed by OggZipDataset.*pip install nope-x"
    ):
        optional_import("nope_x.sub", needed_by="OggZipDataset", install="nope-x")
    (tmp_path / "broken_x.py").write_text("import nope_y")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match="'broken_x', needed by Y, cannot be imported: No module named 'nope_y'"):
        optional_import("broken_x", needed_by="Y")


def test_native_code_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (util.which("g++") or util.which("clang++")):
        pytest.skip("no C++ compiler")
    monkeypatch.setenv("RETURNN_CACHE_DIR", str(tmp_path))
    code = 'extern "C" int add(int a, int b) { return a + b + OFFSET; }'

    def make(**kwargs: Any) -> NativeCodeCompiler:
        return NativeCodeCompiler(base_name="my_add", code_version=1, code=code, **kwargs)

    compiler = make(c_macro_defines={"OFFSET": 1})
    lib = compiler.load_lib_ctypes()
    assert isinstance(lib, ctypes.CDLL) and lib.add(2, 3) == 6 and compiler.load_lib_ctypes() is lib
    filename = compiler.get_lib_filename()
    assert filename.startswith(f"{tmp_path}/returnn_native/my_add/")
    mtime = os.stat(filename).st_mtime_ns
    assert make(c_macro_defines={"OFFSET": 1}).get_lib_filename() == filename and os.stat(filename).st_mtime_ns == mtime
    assert make(c_macro_defines={"OFFSET": 2}).load_lib_ctypes().add(2, 3) == 7
    with pytest.raises(CompileError, match="my_add.*OFFSET"):
        make().get_lib_filename()


def test_process_state_ctx() -> None:
    before = state.worker_id
    with pytest.raises(KeyError), process_state_ctx(worker_id=7):
        assert state.worker_id == 7
        state.num_workers = 9
        raise KeyError
    assert state.worker_id == before and state.num_workers != 9
    with pytest.raises(TypeError, match="unknown field 'nope'"), process_state_ctx(nope=1):
        pass
