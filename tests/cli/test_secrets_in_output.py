"""Real runs that fail: neither stderr, nor the log, nor what is beside it shows secrets or colours, and both stay small."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, program_env, write_config

_BASE = """
    import numpy
    task = "train"
    log = ["my.log"]
    log_verbosity = 5
    store_cfg_dir = None
    hub_password = "global-Secret-1"
    connect_opts = {"host": "shown", "api_key": "dict-Secret-2"}
    extern_data = {"data": {"dim": 2}}
    train = {"class": "StaticDataset", "data": [{"data": numpy.zeros((3, 2), "float32")}] * 3, "output_dim": {"data": (2, 2)}}
    num_epochs = 1
    batch_size = 100
    optimizer = {"class": "adam"}

    class Client:
        def __init__(self):
            self.secret = "attr-Secret-3"

        def go(self, token, many):
            password = "local-Secret-4"
            for key, value in {"db_password": "loop-Secret-5"}.items():
                pass
            url = "https://me:url-Secret-6@host/x"
            raise ValueError(f"{self.secret}, {password}, {value}, {url}, {token}, {connect_opts}, {hub_password} " + "x" * 10**6)

    def fail():
        Client().go("token-Secret-7", list(range(10**6)))
"""
_IN_MODEL = """
    def get_model(**kwargs):
        fail()

    def train_step(**kwargs):
        pass
"""
_IN_WORKER = """
    import torch
    torch_dataloader_opts = {"num_workers": 1}
    train = {"class": "PostprocessingDataset", "dataset": train, "map_seq": lambda data, **kwargs: fail()}

    def get_model(**kwargs):
        return torch.nn.Linear(2, 2)

    def train_step(*, model, extern_data, **kwargs):
        pass
"""


def _run_at_terminal(config: str, tmp_path: Path, *args: str) -> tuple[int, str, str]:
    """:return: exit code, what the terminal got, log"""
    write_config(tmp_path / "my.config", _BASE + config)
    main_end, other_end = pty.openpty()
    env = program_env({"MY_API_TOKEN": "env-Secret-8", "FORCE_COLOR": "1", "TERM": "xterm-256color"})
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "rnn.py"), "my.config", *args],
        cwd=tmp_path,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=other_end,
        stderr=other_end,
    )
    os.close(other_end)
    parts = []
    try:
        while part := os.read(main_end, 1 << 16):
            parts.append(part)
    except OSError:  # how a terminal without anybody at the other end is read
        pass
    os.close(main_end)
    return process.wait(timeout=300), b"".join(parts).decode(), (tmp_path / "my.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("config", [_IN_MODEL, _IN_WORKER])
def test_failing_run(config: str, tmp_path: Path) -> None:
    code, shown, log = _run_at_terminal(
        config, tmp_path, "++my_password", "argv-Secret-9", "++url", "http://u:url-Secret-10@h"
    )
    assert code == 1
    for text in (shown, log):
        assert "Secret-" not in text, text[:5000]
        assert "ValueError: <hidden>, <hidden>, <hidden>, https://me:<hidden>@host/x, <hidden>" in text
        assert "\x1b" not in text
        assert len(text) < 150_000
    assert (
        "RETURNN command line options: ['my.config', '++my_password', <hidden>".replace("<hidden>", "'<hidden>'") in log
    )
    assert "in fail" in shown
    if config is _IN_MODEL:
        assert "password = <hidden>" in log and "key = 'db_password'" in log and "many = [0, 1, 2," in log


@pytest.mark.slow
def test_invalid_option(tmp_path: Path) -> None:
    config = """
    batch_size = {"api_key": "dict-Secret-2"}

    def get_model(**kwargs):
        pass

    def train_step(**kwargs):
        pass
    """
    code, shown, log = _run_at_terminal(config, tmp_path)
    assert code == 1 and 'option "batch_size"' in shown.splitlines()[-1]
    assert "Secret-" not in shown + log
