"""What the check of a config says, and about what it is silent."""

from __future__ import annotations

from pathlib import Path

import pytest

from returnn.config import Config, load_config
from returnn.errors import ConfigError, NotSupportedError
from returnn.log import log
from returnn.options.check import (
    find_problems,
    options_without_effect,
    report_options,
    report_unread_options,
    unread_command_line_keys,
    unread_options,
)
from returnn.options.registry import read


def load(folder: Path, text: str, args: tuple[str, ...] = ()) -> Config:
    """:return: config from that text"""
    (folder / "my.config").write_text("#!rnn.py\n" + text)
    config = Config()
    config.load_file(str(folder / "my.config"))
    config.parse_cmd_args(list(args))
    return config


def write_config(folder: Path, text: str) -> str:
    """:return: file name"""
    (folder / "my.config").write_text("#!rnn.py\n" + text)
    return str(folder / "my.config")


def kinds(config: Config) -> dict[str, str]:
    """:return: name -> kind of problem"""
    return {p.name: p.kind for p in find_problems(config)}


@pytest.mark.parametrize("value", ["3", "0.1", "'x'", "True", "{}", "[1]", "None", "(1, 2)"])
def test_typo_with_simple_value(value: str, tmp_path: Path) -> None:
    config = load(tmp_path, f"batch_sizee = {value}\n")
    (problem,) = find_problems(config)
    assert problem.kind == "typo"
    assert 'unknown option "batch_sizee" in my.config: did you mean "batch_size"?' in problem.text


@pytest.mark.parametrize(
    "text",
    [
        "import os as model_\n",  # modules
        "def train_stepp():\n    pass\n",  # functions
        "class optimizerr:\n    pass\n",
        "_batch_sizee = 3\n",
        "debug_batch_size = 3\n",
        "my_very_own_name = 3\n",
        "networks = {'a': 1}\n",  # close to an option that is not supported
        "config = {}\n",
        "batch_sizes = [1, 2]\nbatch_size = batch_sizes[0]\n",  # read by the config itself
        "batch_sizee = 3\ndef f():\n    return batch_sizee\n",  # global of a function
        "batch_sizee = 3\ndef f():\n    def g():\n        return [batch_sizee for _ in range(2)]\n    return g\n",
        "batch_sizee = 3\nclass A:\n    def f(self):\n        return batch_sizee\n",
        "batch_sizee = 3\nf = [lambda: batch_sizee]\n",
        "batch_sizee = 3\nimport functools\ndef f(x):\n    return batch_sizee\ng = functools.partial(f, 1)\ndel f\n",
        "batch_sizee = 3\ndef f():\n    return config.typed_value('batch_sizee')\n",
        "batch_sizee = 3\nx = config.int('batch_sizee', 0)\n",
        # Always set by job layers and old pipelines:
        "target = 'classes'\ntf_log_dir = 'x'\nuse_horovod = False\nbackend = 'torch'\nuse_tensorflow = False\n",
        "use_speed_perturbation = True\nmem_rqmt = 8\nkeep_epochs = [1]\ndecay = 0.1\nseed = 3\n",
        "network = {}\nnum_inputs = 40\nwindow = 0\n",
        "hidden_size = 512\ndef get_model(**kwargs):\n    return hidden_size\n",
    ],
)
def test_no_false_alarm(text: str, tmp_path: Path) -> None:
    assert kinds(load(tmp_path, text)) == {}


def test_generated_config_with_rebound_config_name(tmp_path: Path) -> None:
    config = load(tmp_path, "config = {'batch_size': 3, 'batch_sizee': 4, 'task': 'nop'}\nlocals().update(**config)\n")
    assert kinds(config) == {"batch_sizee": "typo"}


def test_typo_on_the_command_line(tmp_path: Path) -> None:
    config = load(tmp_path, "", ("++batch_sze", "3"))
    (problem,) = find_problems(config)
    assert "unknown option" in problem.text and "command line" in problem.text


@pytest.mark.parametrize(
    "text, name",
    [
        ("use_tensorflow = True\n", "use_tensorflow"),
        ("network = {'output': {'class': 'softmax'}}\n", "network"),
        ("use_horovod = True\n", "use_horovod"),
    ],
)
def test_refused(text: str, name: str, tmp_path: Path) -> None:
    config = load(tmp_path, text)
    with pytest.raises(NotSupportedError, match=f'option "{name}" .*is not supported'):
        report_options(config, "train")


def test_several_refused_are_all_named(tmp_path: Path) -> None:
    config = load(tmp_path, "use_tensorflow = True\nnetwork = {'a': {}}\n")
    with pytest.raises(NotSupportedError, match="2 problems") as exc_info:
        report_options(config, "train")
    assert "use_tensorflow" in str(exc_info.value) and "network" in str(exc_info.value)


def test_later_is_a_warning_that_says_what_to_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_options(load(tmp_path, "watch_memory = True\n"), "train")
    assert 'WARNING: option "watch_memory" (in my.config) has no effect here. Use' in capsys.readouterr().out


def test_refused_name_that_a_function_uses_is_the_users_own(tmp_path: Path) -> None:
    assert kinds(load(tmp_path, "network = {'a': 1}\ndef get_model(**kwargs):\n    return network\n")) == {}


def test_strict_collects_all_problems(tmp_path: Path) -> None:
    config = load(tmp_path, "strict_config = True\nbatch_sizee = 3\nwatch_memory = True\nuse_tensorflow = True\n")
    with pytest.raises(ConfigError, match="3 problems") as exc_info:
        report_options(config, "train")
    for name in ("batch_sizee", "watch_memory", "use_tensorflow"):
        assert name in str(exc_info.value)


def test_options_of_other_tasks_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load(
        tmp_path,
        "train = {'class': 'X'}\nforward = {'class': 'X'}\ngradient_clip = 1.0\ntask = 'forward'\nstrict_config = True\n",
    )
    assert options_without_effect(config, "forward") == ["gradient_clip", "train"]
    assert options_without_effect(config, "train") == ["forward"]
    assert options_without_effect(config, "config:f") == options_without_effect(config, "nop") == []
    log.initialize(verbosity=[4])
    report_options(config, "forward")  # no error, although strict: the same config serves both tasks
    assert "Options without effect in the task forward: gradient_clip, train\n" in capsys.readouterr().out
    log.initialize(verbosity=[3])
    report_options(config, "forward")  # datasets and functions of other tasks are no surprise
    assert "Options without effect in the task forward: gradient_clip\n" in capsys.readouterr().out
    report_options(config, "train")
    assert "without effect" not in capsys.readouterr().out


def test_options_of_other_tasks_are_one_short_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "cleanup_old_models = True\ngradient_clip = 1.0\nlearning_rates = [1]\nnum_epochs = 3\nsave_interval = 2\n"
        "optimizer = {'class': 'adam'}\naccum_grad_multiple_step = 2\ndef train_step(**kwargs):\n    pass\n"
        "output_file = 'output.hdf'\nforward_override_hdf_output = True\n"
    )
    config = load(tmp_path, text, ("++num_epochs", "4"))
    log.initialize(verbosity=[3])
    report_options(config, "forward")
    (line,) = capsys.readouterr().out.splitlines()
    # What the command line sets comes first.
    start = "Options without effect in the task forward: num_epochs, accum_grad_multiple_step, "
    assert line.startswith(start) and line.endswith(", and 2 more")
    report_options(config, "eval")
    assert "train_step" not in capsys.readouterr().out
    report_options(load(tmp_path, text[text.index("output_file") :]), "train")
    assert capsys.readouterr().out == ""


def test_key_of_the_command_line_that_the_config_defines_is_used(tmp_path: Path) -> None:
    args = ("++lm_scale", "0.5", "++other_scale", "0.5")
    config = load_config(command_line_options=[write_config(tmp_path, "lm_scale = 1.0\n"), *args])
    assert unread_command_line_keys(config) == ["other_scale"]


@pytest.mark.parametrize(
    "text, args, expected",
    [
        ("forward_data = 'train'\n", (), ["dev", "eval"]),
        ("forward = 'devtrain'\n", (), ["dev", "eval", "train"]),
        ("", ("++forward_data", "dev"), ["eval", "train"]),
        ("", (), ["dev", "train"]),
    ],
)
def test_dataset_that_forward_uses_has_an_effect(
    text: str, args: tuple[str, ...], expected: list[str], tmp_path: Path
) -> None:
    config = load(tmp_path, "train = dev = eval = {'class': 'X'}\n" + text, args)
    assert options_without_effect(config, "forward") == expected


def test_unread_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load(tmp_path, "random_seed = 3\nbatch_size = 10\ndevice = 'cpu'\n", ("++max_seqs", "3"))
    find_problems(config)  # looking is no use of the options
    assert unread_options(config, "train") == ["batch_size", "device", "max_seqs", "random_seed"]
    read(config, "batch_size")
    config.int("random_seed", 0)
    assert unread_options(config, "train") == ["device", "max_seqs"]
    report_unread_options(config, "train")
    assert "nothing reads in this run: device, max_seqs\n" in capsys.readouterr().out
    config.set("strict_config", True)
    with pytest.raises(ConfigError, match="device, max_seqs"):
        report_unread_options(config, "train")


def test_unread_command_line_keys(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "def f():\n    return config.value('by_function', None)\n",
        ("++by_function", "1", "++by_nobody", "1", "++asked", "1", "++batch_size", "3"),
    )
    config.value("asked", None)
    assert unread_command_line_keys(config) == ["by_nobody"]


def test_config_without_file() -> None:
    assert kinds(Config({"batch_sizee": 3, "batch_size": 3})) == {"batch_sizee": "typo"}
