"""``returnn.__main__`` as a library: what tools and tests of client code call."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import returnn.__main__ as rnn
from returnn._state import state
from returnn.config import get_global_config
from returnn.engine.base import EngineBase
from returnn.errors import ModelError, NotSupportedError
from returnn.log import log
from returnn.options.datasets import default_random_seed_offset
from returnn.util.basic import override_env_var
from returnn.util.file_cache import get_instance


@pytest.fixture(autouse=True)
def restored_state() -> Iterator[None]:
    """Leave no trace of a run in this process."""
    saved = (
        rnn.config,
        rnn.engine,
        rnn.quit_returnn,
        state.quitting,
        sys.excepthook,
        state.global_config,
        state.behavior_version,
    )
    state.global_config = None
    yield
    (
        rnn.config,
        rnn.engine,
        rnn.quit_returnn,
        state.quitting,
        sys.excepthook,
        state.global_config,
        state.behavior_version,
    ) = saved
    if hasattr(sys, "exited"):
        del sys.exited


def write(folder: Path, text: str) -> str:
    """:return: path of a config"""
    path = folder / "my.config"
    path.write_text("#!rnn.py\n" + text)
    return str(path)


def test_init_config_stores_the_config_and_makes_it_global(tmp_path: Path) -> None:
    rnn.init_config(
        write(tmp_path, "a = 1\nseen = config.value('b', None)\n"), ["++b", "2"], {"a": 0, "c": 3}, {"d": 4}
    )
    assert rnn.config is not None
    assert [rnn.config.typed_value(k) for k in "abcd"] == [1, 2, 3, 4]
    assert rnn.config.typed_value("seen") == "2"
    assert get_global_config() is rnn.config


def test_datasets_of_the_program_read_its_config(tmp_path: Path) -> None:
    """Also in this process, where nobody calls set_global_config."""
    rnn.init_config(write(tmp_path, f"file_cache_opts = {{'cache_directory': {str(tmp_path)!r}}}\n"))
    assert get_instance().cache_directory == str(tmp_path)
    with override_env_var("RETURNN_RANDOM_SEED_OFFSET", "42"):
        assert default_random_seed_offset() == 42


def test_init_as_dataset_tools_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rnn.init_better_exchook()
    rnn.init_config(config_filename=write(tmp_path, "log = 'never-opened.log'\n"), default_config={"cache_size": "0"})
    assert rnn.config is not None
    rnn.config.set("log", None)
    rnn.config.set("log_verbosity", 4)
    rnn.init_log()
    rnn.returnn_greeting(config_filename="my.config", command_line_options=["x"])
    rnn.init_faulthandler()
    rnn.finalize()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("RETURNN starting up, version ")
    assert "RETURNN config: my.config" in lines
    assert "RETURNN command line options: ['x']" in lines
    assert lines[-1] == "Quitting"
    assert rnn.quit_returnn and state.quitting and sys.exited  # type: ignore[attr-defined]
    assert not os.path.exists("never-opened.log")


def test_greeting_names_the_target_of_a_symlink(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link").symlink_to("target")
    log.initialize(verbosity=[4])
    rnn.returnn_greeting(config_filename=str(tmp_path / "link"))
    assert "RETURNN config is symlink to: target" in capsys.readouterr().out


def test_init_without_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rnn.engine = None
    rnn.init(write(tmp_path, "task = 'nop'\n"), extra_greeting="Hello.")
    assert rnn.engine is None
    assert capsys.readouterr().out.startswith("Hello.\n")
    rnn.execute_main_task()
    assert "elapsed: 0:00:0" in capsys.readouterr().out


def test_main_returns_after_a_normal_end(tmp_path: Path) -> None:
    rnn.main(["rnn.py", write(tmp_path, "task = 'nop'\n")])


def test_main_lets_exceptions_pass_after_finalizing(tmp_path: Path) -> None:
    rnn.quit_returnn = False
    with pytest.raises(NotSupportedError):
        rnn.main(["rnn.py", write(tmp_path, "task = 'search'\n")])
    assert rnn.quit_returnn


def test_interrupt_gives_exit_code_1(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exc_info:
        rnn.main(["rnn.py", write(tmp_path, "task = 'config:f'\ndef f():\n    raise KeyboardInterrupt\n")])
    assert exc_info.value.code == 1


def test_custom_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "from returnn.engine.base import EngineBase\n"
        "class CustomEngine(EngineBase):\n"
        "    def init_train(self, *args, **kwargs):\n"
        "        print('init_train')\n"
        "    def train(self):\n"
        "        print('train')\n"
        "log_verbosity = 5\n"
    )
    rnn.init(write(tmp_path, text))
    assert isinstance(rnn.engine, EngineBase) and type(rnn.engine).__name__ == "CustomEngine"
    rnn.execute_main_task()
    out = capsys.readouterr().out
    assert "Using custom engine from config" in out
    assert out.index("init_train") < out.index("train\n", out.index("init_train") + 10) < out.index("elapsed")


def test_custom_engine_must_be_an_engine(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match='"CustomEngine" must give an instance of returnn.engine.base.EngineBase, got dict'
    ):
        rnn.init(write(tmp_path, "CustomEngine = dict\n"))


def test_engine_without_eval(tmp_path: Path) -> None:
    text = "from returnn.engine.base import EngineBase\nclass CustomEngine(EngineBase):\n    eval_task = None\ntask = 'eval'\n"
    rnn.init(write(tmp_path, text))
    with pytest.raises(NotSupportedError, match="the task eval is not supported by the engine CustomEngine"):
        rnn.execute_main_task()


def test_forward_takes_the_epoch(tmp_path: Path) -> None:
    text = (
        "from returnn.engine.base import EngineBase\n"
        "class CustomEngine(EngineBase):\n"
        "    def init_forward(self):\n"
        "        self.config.set('seen', self.config.int('load_epoch', -1))\n"
        "    def forward(self):\n"
        "        pass\n"
        "task = 'forward'\n"
    )
    rnn.init(write(tmp_path, text), config_updates={"epoch": 7})
    rnn.execute_main_task()
    assert rnn.config is not None and rnn.config.typed_value("seen") == 7


def test_startup_callback_behavior_version_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setattr(state, "behavior_version", None)
    text = (
        "def startup_callback(config, **kwargs):\n    config.set('called', True)\n"
        "behavior_version = 20\nPYTORCH_CUDA_ALLOC_CONF = 'expandable_segments:True'\ntask = 'nop'\n"
    )
    rnn.init(write(tmp_path, text))
    assert rnn.config is not None and rnn.config.typed_value("called") is True
    assert state.behavior_version == 20
    assert os.environ.pop("PYTORCH_CUDA_ALLOC_CONF") == "expandable_segments:True"


def test_dry_run_is_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rnn.init(write(tmp_path, "task = 'nop'\ndry_run = True\n"))
    rnn.execute_main_task()
    assert "Dry run, will not save anything." in capsys.readouterr().out


def test_backend_of_tools() -> None:
    rnn.init_config(default_config={})
    rnn.init_backend_engine(config_opts={"backend": "torch"})
    with pytest.raises(NotSupportedError):
        rnn.init_backend_engine(config_opts={"backend": "jax"})


@pytest.mark.parametrize(
    "name",
    ["init_better_exchook", "init_faulthandler", "init_ipython_kernel", "describe_returnn_version", "debug_shell"],
)
def test_reexports(name: str) -> None:
    assert callable(getattr(rnn, name))


def test_data_of_tools(capsys: pytest.CaptureFixture[str]) -> None:
    rnn.init_config(
        default_config={
            "train": {"class": "Task12AXDataset", "num_seqs": 3},
            "eval": {"class": "Task12AXDataset", "num_seqs": 2},
        }
    )
    log.initialize(verbosity=[4])
    rnn.init_data()
    assert rnn.dev_data is None
    assert rnn.train_data is not None and rnn.train_data.name == "train"
    rnn.train_data.init_seq_order(epoch=1)
    assert rnn.train_data.num_seqs == 3
    capsys.readouterr()
    rnn.print_task_properties()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Train data:" and lines[1] == "  input: 9"
    rnn.train_data = rnn.eval_data = None


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = rnn.nope
