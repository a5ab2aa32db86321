"""What the demos share: running rnn.py and the tools as a user would, programs that must be installed, the verdict at the end."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from returnn.learning_rate_control import LearningRateControl  # noqa: E402
from returnn.log import log  # noqa: E402

START_TIME = time.monotonic()


def parse_args(name: str, description: str | None, **options: str) -> argparse.Namespace:
    """
    :param name: of the demo, for the default folder
    :param description: docstring of the program
    :param options: further options with their help
    :return: ``out`` (folder, made new), ``small`` (less data, for tests)
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "out",
        nargs="?",
        default=os.path.join("out", name),
        help=f"folder for all files, made new (default: out/{name})",
    )
    parser.add_argument("--small", action="store_true", help="less data and a weaker target, for tests")
    for option, text in options.items():
        parser.add_argument(f"--{option}", help=text)
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    os.makedirs(args.out)
    log.initialize(verbosity=[1])  # of the demo's own program: only what matters
    return args


def need_programs(**packages: str) -> None:
    """
    Stop with one sentence if a program is missing.

    :param packages: program (with _ for -) -> Debian package that has it
    """
    missing = [name.replace("_", "-") for name in packages if not shutil.which(name.replace("_", "-"))]
    if missing:
        install = " ".join(sorted({packages[name.replace("-", "_")] for name in missing}))
        sys.exit(
            f"This demo needs {' and '.join(missing)}. Install, e.g. on Debian or Ubuntu: apt-get install {install}"
        )


def need_files(packages: Mapping[str, str]) -> None:
    """
    Stop with one sentence if a file is missing.

    :param packages: file -> Debian package that has it
    """
    for filename, package in packages.items():
        if not os.path.exists(filename):
            sys.exit(f"This demo needs {filename}. Install, e.g. on Debian or Ubuntu: apt-get install {package}")


def _call(command: Sequence[str], env: Mapping[str, str]) -> None:
    print("$", " ".join(["python", *(os.path.relpath(a) if os.path.isabs(a) else a for a in command[1:])]), flush=True)
    returncode = subprocess.call(command, env={**os.environ, **env})
    if returncode:
        sys.exit(returncode)


def rnn(*args: str, num_processes: int = 1, **env: str) -> None:
    """
    Run rnn.py, and stop here if it fails.

    :param args: config files, "++task", "forward", ..
    :param num_processes: above 1: started by torchrun
    :param env: environment variables that the config reads
    """
    launcher = []
    if num_processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
        env = {"OMP_NUM_THREADS": "1", **env}  # torchrun sets it too, with a warning
    _call([sys.executable, *launcher, os.path.join(ROOT, "rnn.py"), *args], env)


def tool(name: str, *args: str) -> None:
    """
    Run a tool, and stop here if it fails.

    :param name: e.g. "bliss-to-ogg-zip.py"
    :param args: command line
    """
    _call([sys.executable, os.path.join(ROOT, "tools", name), *args], {})


def scores(learning_rate_file: str, epoch: int) -> dict[str, float]:
    """
    :param learning_rate_file: of the training
    :param epoch: from 1
    :return: its losses, e.g. "dev_loss_ce"
    """
    return dict(_control(learning_rate_file).get_epoch_error_dict(epoch))


def best_epoch(learning_rate_file: str, key: str) -> int:
    """
    :param learning_rate_file: of the training
    :param key: score, e.g. "dev_loss_ctc"
    :return: epoch with the lowest score
    """
    control = _control(learning_rate_file)
    by_epoch = {epoch: control.get_epoch_error_dict(epoch) for epoch in control.epoch_data}
    return min((epoch for epoch in by_epoch if key in by_epoch[epoch]), key=lambda epoch: by_epoch[epoch][key])


def _control(learning_rate_file: str) -> LearningRateControl:
    return LearningRateControl(default_learning_rate=1.0, filename=learning_rate_file)


def finish(what: str, result: float, limit: float, show: Callable[[float], str] = "{:.2f}".format) -> None:
    """
    Print the verdict and exit: code 0 if the result is at most the limit.

    :param what: e.g. "Word error rate on held-out voices"
    :param result: smaller is better
    :param limit: that it must reach
    :param show: format of both
    """
    passed = result <= limit
    seconds = time.monotonic() - START_TIME
    print(
        f"{what}: {show(result)} (must reach {show(limit)}): {'passed' if passed else 'FAILED'}, after {seconds:.0f} s"
    )
    sys.exit(0 if passed else 1)
