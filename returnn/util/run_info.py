"""
Whether and what this run writes about itself.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from typing import Any

from returnn._state import state
from returnn.util.env import get_hostname
from returnn.util.git_info import describe_returnn_version
from returnn.util.secret_names import mask_args
from returnn.util.time_format import get_utc_start_time_filename_part, start_time

__all__ = ["should_write_to_disk", "log_runtime_info_to_dir"]


def should_write_to_disk(config: Any) -> bool:
    """
    :param config: Config (Any: a higher layer), or a dict
    :return: whether checkpoints, learning-rate files and so on are written: not in a dry run, not while profiling, and only
        by rank 0 of a distributed run
    """
    if state.rank != 0:
        return False
    for name in ("dry_run", "torch_profile"):
        value = config.is_true(name) if hasattr(config, "is_true") else config.get(name)
        if value:
            return False
    return True


def log_runtime_info_to_dir(path: str, config: Any) -> None:
    """
    Write ``returnn.<utc start>.<host>.<pid>.log``, and copies of the config files with the same information appended.

    :param path: folder, created if needed. A full disk is only reported
    :param config: Config (Any: a higher layer), for its ``files``
    """
    name = f"returnn.{get_utc_start_time_filename_part()}.{get_hostname()}.{os.getpid()}"
    content = [
        f"Time: {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(start_time))}",
        f"Call: {mask_args(sys.argv)}",
        f"Path: {os.getcwd()}",
        f"Hostname: {get_hostname()}",
        f"PID: {os.getpid()}",
        f"Returnn: {describe_returnn_version()}",
        f"Config files: {config.files}",
    ]
    try:
        os.makedirs(path, exist_ok=True)
        with open(os.path.join(path, name + ".log"), "w", encoding="utf8") as f:
            f.write("\n".join(content) + "\n")
        for filename in dict.fromkeys(config.files):
            with open(filename, encoding="utf8") as f:
                source = f.read()
            target = os.path.join(path, f"{os.path.basename(filename)}.{name}.config")
            with open(target, "w", encoding="utf8") as f:
                f.write(source.rstrip("\n") + "\n\n\n")
                f.writelines(f"# {line}\n" for line in content)
    except OSError as exc:
        if exc.errno not in (errno.EDQUOT, errno.ENOSPC):
            raise
        print(f"log_runtime_info_to_dir: cannot write to {path}: {exc.strerror}", file=sys.stderr)
