"""
The machine and the job: CPUs, memory, host name, limits of the batch system, environment variables.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import glob
import os
import platform
import re
import socket
import subprocess
from collections.abc import Iterator
from typing import TextIO

from returnn.util.process import which

__all__ = [
    "get_hostname",
    "is_running_on_cluster",
    "get_number_available_cpus",
    "guess_requested_max_num_threads",
    "read_sge_num_procs",
    "slurm_time_left_sec",
    "get_cpu_model_name",
    "have_gpu",
    "available_physical_memory_in_bytes",
    "default_cache_size_in_gbytes",
    "override_env_var",
    "cleanup_env_var_path",
    "parse_ld_conf_file",
    "get_ld_paths",
    "find_lib",
]


def get_hostname() -> str:
    """:return: host name, without domain"""
    return socket.gethostname().partition(".")[0]


def is_running_on_cluster() -> bool:
    """:return: whether this is a node of the i6 cluster, by its name"""
    return get_hostname().startswith(("cluster-cn-", "cn-"))


def get_number_available_cpus() -> int | None:
    """:return: number of CPUs that this process may use"""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def read_sge_num_procs(job_id: int | None = None) -> int | None:
    """
    :param job_id: default is ``$JOB_ID``
    :return: ``num_proc`` of that job of the Sun Grid Engine; None if there is no such job or no such limit
    """
    if not os.environ.get("SGE_ROOT"):
        return None
    job = str(job_id) if job_id is not None else os.environ.get("JOB_ID") or os.environ.get("SGE_JOB_ID")
    if not job:
        return None
    try:
        text = subprocess.run(["qstat", "-j", job], stdout=subprocess.PIPE, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    match = re.search(r"^hard[ _]resource_list:.*\bnum_proc=(\d+)", text, re.MULTILINE)
    return int(match[1]) if match else None


def guess_requested_max_num_threads(log_file: TextIO | None = None, fallback_num_cpus: bool = True) -> int | None:
    """
    :param log_file: says where the number comes from
    :param fallback_num_cpus: use the number of CPUs if nothing else is known
    :return: limit of the batch system, or ``$OMP_NUM_THREADS`` (at least 2), or the number of CPUs
    """
    num = read_sge_num_procs()
    if num:
        if log_file:
            print(f"Use num_threads={num} (but min 2) via SGE num_proc.", file=log_file)
        return max(num, 2)
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        num = max(int(os.environ["OMP_NUM_THREADS"]), 2)
        if log_file:
            print(f"Use num_threads={num} (but min 2) via OMP_NUM_THREADS.", file=log_file)
        return num
    return get_number_available_cpus() if fallback_num_cpus else None


def slurm_time_left_sec() -> float | None:
    """:return: seconds until the time limit of this Slurm job; None outside of one"""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return None
    try:
        text = subprocess.run(
            ["squeue", "-h", "-j", job, "-o", "%L"], stdout=subprocess.PIPE, check=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text)
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def get_cpu_model_name() -> str:
    """:return: e.g. "AMD EPYC 7742" """
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf8") as f:
        for line in f:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def have_gpu() -> bool:
    """:return: whether an NVIDIA GPU is visible to this process; does not import torch"""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return False
    if os.path.isdir("/proc/driver/nvidia/gpus"):
        return bool(os.listdir("/proc/driver/nvidia/gpus"))
    return bool(glob.glob("/dev/nvidia[0-9]*"))


def available_physical_memory_in_bytes() -> int:
    """:return: memory of the machine"""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def default_cache_size_in_gbytes(factor: float = 0.7) -> float:
    """:return: that fraction of the memory, in GB"""
    return available_physical_memory_in_bytes() / 1024**3 * factor


@contextlib.contextmanager
def override_env_var(var_name: str, new_value: str | None) -> Iterator[None]:
    """
    :param var_name: environment variable
    :param new_value: inside the block; None: not set
    """
    old = os.environ.get(var_name)

    def _set(value: str | None) -> None:
        if value is None:
            os.environ.pop(var_name, None)
        else:
            os.environ[var_name] = value

    _set(new_value)
    try:
        yield
    finally:
        _set(old)


def cleanup_env_var_path(env_var: str, path_prefix: str) -> None:
    """
    :param env_var: environment variable with a list of paths, e.g. LD_LIBRARY_PATH
    :param path_prefix: paths that start so are removed
    """
    if env_var not in os.environ:
        return
    paths = [path for path in os.environ[env_var].split(":") if not path.startswith(path_prefix)]
    os.environ[env_var] = ":".join(paths)


def parse_ld_conf_file(fn: str) -> list[str]:
    """
    :param fn: in the form of ``/etc/ld.so.conf``
    :return: library folders, with those of included files
    """
    paths: list[str] = []
    with contextlib.suppress(OSError), open(fn, encoding="utf8") as f:
        for line in f:
            line = line.partition("#")[0].strip()
            if line.startswith("include "):
                pattern = os.path.join(os.path.dirname(fn), line[len("include ") :].strip())
                for included in sorted(glob.glob(pattern)):
                    paths += parse_ld_conf_file(included)
            elif line:
                paths.append(line)
    return paths


def get_ld_paths() -> list[str]:
    """:return: folders in which the dynamic linker looks for libraries"""
    paths = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    paths += parse_ld_conf_file("/etc/ld.so.conf")
    return paths + ["/lib", "/usr/lib", "/lib64", "/usr/lib64"]


def find_lib(lib_name: str) -> str | None:
    """
    :param lib_name: without "lib" and extension, e.g. "cudart"
    :return: path of the library, or None
    """
    for path in get_ld_paths():
        candidate = os.path.join(path, f"lib{lib_name}.so")
        if os.path.exists(candidate):
            return candidate
    if which("ldconfig"):
        return ctypes.util.find_library(lib_name)
    return None
