"""
Trainings that are killed again and again, at random moments and while files are written, and started again until they are
done: nothing may differ from the training that nobody has touched, and no process may stay.

usage: python -m tests.robustness.kill_matrix [--rounds 200] [--seed 1] [--case hdf] [--jobs 2] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.robustness.kill_compare import compare_folders
from tests.robustness.kill_configs import CASES, Case, make_data
from tests.robustness.kill_process import End, Hit, Moment, run_with_hit, wait_for_orphans

__all__ = ["KillMatrix", "Round", "report", "summary"]

_EXIT_CODE_STOPPED = 85  # saved, start it again
_MAX_STARTS = 60
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
#: Folder in TMPDIR that torch makes and leaves.
_OF_TORCH = re.compile(r"torchinductor_.*")
#: Line of a training step in both dialects: epoch, and step in the epoch.
_STEP = re.compile(r"^(?:train epoch (\d+), step:|ep (\d+) train, step )(\d+)", re.MULTILINE)
#: Exit codes before a training has begun, after it is over, and of other tasks: as always.
_OTHER_CODES: dict[int, set[int]] = {
    signal.SIGKILL: {-9},
    signal.SIGTERM: {143, -15},
    signal.SIGINT: {1, -2},
    signal.SIGUSR1: {-10},  # before Python has come to its handlers; later it has no effect
}


#: While files are written, and at the borders of parts of a training. The number is an upper limit here.
_TRAIN_AIMS = (
    *(Moment("created", r"models/.*\.pt\.tmp_write", 8, label="a checkpoint is being written"),) * 2,
    *(Moment("changed", r"models/.*\.pt\.tmp_write", 16, label="a checkpoint is being written"),) * 2,
    Moment("created", r"models/.*\.step\d+.*", 6, label="a checkpoint is being written"),
    Moment("renamed", r"models/.*\.pt", 8, label="a checkpoint got its name"),
    Moment("renamed", r"models/.*\.step\d+.*", 6, label="a checkpoint got its name"),
    Moment("deleted", r"models/.*\.pt", 4, label="a checkpoint is deleted"),
    Moment("deleted", r"models/.*\.step\d+.*", 6, label="a checkpoint is deleted"),
    Moment("created", r"learning_rates\..*", 4, label="the learning-rate file is being written"),
    Moment("renamed", r"learning_rates", 4, label="the learning-rate file got its name"),
    Moment("created", r"models/\..*", 1, label="the lock file appears"),
    Moment("line", r"start epoch ", 4, label="an epoch begins"),
    Moment("line", r"Trained |Save ", 6, label="an epoch is trained"),
    Moment("line", r"(Evaluating dataset|eval dev|ep \d+ dev)", 4, label="evaluation"),
    Moment("line", r"train epoch |ep \d+ train, step ", 40, label="a step"),
    Moment("line", r"Finished training|Quitting", 1, label="the end"),
)
#: Lines with which training and forwarding begin.
_BEGINS = (r"train epoch |ep \d+ train, step ", r"Writing outputs")
_FORWARD_AIMS = (
    Moment("created", r"\.+out\.hdf\..*", label="HDF output is being written"),
    Moment("changed", r"\.+out\.hdf\..*", 4, label="HDF output is being written"),
    Moment("renamed", r"\.?out\.hdf.*", 2, label="HDF output got its name"),
    Moment("line", r"(Writing outputs|Wrote)", label="forwarding"),
)


@dataclasses.dataclass
class Round:
    """One training and what became of it."""

    number: int
    case: Case
    #: What was done, and how the runs ended, in order.
    events: list[str] = dataclasses.field(default_factory=list)
    #: (signal, label of the moment, exit code)
    hits: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)
    #: What is not as it should be.
    differences: list[str] = dataclasses.field(default_factory=list)
    num_starts: int = 0
    #: Steps that were trained again after kill -9.
    num_repeated_steps: int = 0


@dataclasses.dataclass(frozen=True)
class _Reference:
    """The uninterrupted run of a case."""

    folder: Path
    #: Per command: seconds from start to end, and until the work begins.
    secs: list[tuple[float, float]]


class KillMatrix:
    """All rounds, in a folder."""

    def __init__(self, folder: Path, *, seed: int, cases: Sequence[Case] = CASES, max_hits: int = 4):
        """
        :param folder: for all files
        :param seed: decides what is sent, and when; not what the machine then does
        :param cases: in turn
        :param max_hits: signals per round, at most
        """
        self._folder, self._seed, self._cases, self._max_hits = folder, seed, cases, max_hits
        self._references: dict[str, _Reference] = {}
        self._locks = {case.name: threading.Lock() for case in cases}
        make_data(folder / "data")

    def run(self, num_rounds: int, *, jobs: int = 2, first: int = 0) -> Iterator[Round]:
        """
        :param num_rounds: how many
        :param jobs: so many at once
        :param first: number of the first one
        :return: the rounds, in order
        """
        with ThreadPoolExecutor(jobs) as pool:
            yield from pool.map(self._round, range(first, first + num_rounds))

    def round_folder(self, number: int) -> Path:
        """:return: where the files of a round are; removed if nothing differs"""
        return self._folder / f"round{number}"

    # ---- the uninterrupted run

    def _reference(self, case: Case) -> _Reference:
        with self._locks[case.name]:
            if case.name not in self._references:
                folder = self._new_folder(f"reference{self._cases.index(case)}", case)
                self._references[case.name] = _Reference(
                    folder, [self._reference_run(folder, case, i) for i in range(len(case.commands))]
                )
            return self._references[case.name]

    def _reference_run(self, folder: Path, case: Case, command: int) -> tuple[float, float]:
        # Signal 0 does nothing; the moment is only measured.
        begin = Hit(0, Moment("line", _BEGINS[command > 0]))
        end = self._start(folder, case, command, begin, str(command))
        if end.exit_code or not end.was_hit:
            raise AssertionError(f"uninterrupted run of {case.name!r}: exit code {end.exit_code}\n{end.log}\n{end.err}")
        return end.secs, end.secs_to_hit

    def _new_folder(self, name: str, case: Case) -> Path:
        folder = self._folder / name
        if folder.exists():
            shutil.rmtree(folder)
        (folder / "models").mkdir(parents=True)
        (folder / "tmp").mkdir()
        (folder / "my.config").write_text(case.config)
        return folder

    def _start(
        self, folder: Path, case: Case, command: int, hit: Hit | None, name: str, stop_secs: float | None = None
    ) -> End:
        env = {"KILL_MATRIX_DATA": str(self._folder / "data"), "TMPDIR": str(folder / "tmp")}
        if stop_secs is not None:
            env["KILL_MATRIX_STOP_SECS"] = str(stop_secs)
        return run_with_hit(case.commands[command], folder=folder, hit=hit, name=name, env=env, folders=(".", "models"))

    # ---- a round

    def _round(self, number: int) -> Round:
        rnd = random.Random(f"{self._seed} {number}")
        case = self._cases[number % len(self._cases)]
        res = Round(number, case)
        reference = self._reference(case)
        folder = self._new_folder(f"round{number}", case)
        try:
            num_hits = rnd.randint(1, self._max_hits)
            for command in range(len(case.commands)):
                # All hits of a round may go to one of the commands.
                here = num_hits if command == len(case.commands) - 1 else rnd.randint(0, num_hits)
                num_hits -= here
                if not self._run_command(res, folder, command, reference, here):
                    break
            else:
                res.differences += compare_folders(folder, reference.folder)
                if all(code >= 0 for _, _, code in res.hits):  # else a signal has ended a process at once
                    left = [path.name for path in (folder / "tmp").iterdir() if not _OF_TORCH.fullmatch(path.name)]
                    res.differences += [f"tmp/{name} is left" for name in left]
        except TimeoutError as exc:
            res.differences.append(str(exc))
        if not res.differences:
            shutil.rmtree(folder)
        return res

    def _run_command(self, res: Round, folder: Path, command: int, reference: _Reference, num_hits: int) -> bool:
        """Until it is done. :return: False: it cannot be done"""
        saved_until = (0, -1)  # (epoch, step): may never be trained again
        trained_until = (0, -1)
        marks: list[str] = []
        for start in range(_MAX_STARTS):
            rnd = random.Random(f"{self._seed} {res.number} {command} {start}")
            hit = None
            if start < num_hits:
                hit = _random_hit(rnd, reference.secs[command], forward=command > 0, num_before=start)
            res.num_starts += 1
            secs, secs_to_begin = reference.secs[command]
            # Only some starts, since each may be slower than the uninterrupted one, and come to no more than a step.
            stop_secs = secs_to_begin + 0.4 * (secs - secs_to_begin) if start < 4 else None
            end = self._start(folder, res.case, command, hit, f"{command}-{start}", stop_secs)
            steps = [(int(a or b), int(c)) for a, b, c in _STEP.findall(end.log)]
            last = f", last step {max(steps)}" if steps else ""
            sent = f"{hit}" + ("" if end.was_hit else " (never came)") if hit else "no signal"
            res.events.append(f"{command}-{start}: {sent}: exit code {end.exit_code}{last}")
            if hit and end.was_hit:
                res.hits.append((signal.Signals(hit.signum).name + "*" * hit.to_all, hit.moment.label, end.exit_code))
            marks.append(end.mark)
            # The next start may come while processes of this one still live.
            if end.exit_code == 0 or rnd.random() < 0.5:
                left = [text for mark in marks for text in wait_for_orphans(mark)]
                res.differences += [f"{command}-{start}: process {text} stays" for text in left]
                marks.clear()
            res.differences += [f"{command}-{start}: {text}" for text in _mistakes(end, hit, bool(steps))]
            again = [step for step in steps if step <= saved_until]
            if again:
                res.differences.append(f"{command}-{start}: trained {again} again, saved until {saved_until}")
            res.num_repeated_steps += sum(step <= trained_until for step in steps)
            trained_until = max([trained_until, *steps])
            if end.exit_code == _EXIT_CODE_STOPPED:
                saved_until = max([saved_until, *steps])
            if end.exit_code == 0:
                return True
            if not end.was_hit and end.exit_code != _EXIT_CODE_STOPPED:
                res.differences.append(
                    f"{command}-{start}: exit code {end.exit_code}\n{end.log[-2000:]}\n{end.err[-2000:]}"
                )
                return False
        res.differences.append(f"command {command} is not done after {_MAX_STARTS} starts")
        return False


def _random_hit(rnd: random.Random, secs: tuple[float, float], *, forward: bool, num_before: int) -> Hit:
    signum = rnd.choice(_SIGNALS)
    to_all = rnd.random() < 0.3
    kind = rnd.random()
    if kind < 0.15:
        moment = Moment("start", delay=rnd.uniform(0, secs[0]))
    elif kind < 0.4:
        moment = Moment("line", _BEGINS[forward], delay=rnd.uniform(0, max(secs[0] - secs[1], 0.1)))
    else:
        aim = rnd.choice(_FORWARD_AIMS if forward else _TRAIN_AIMS)
        delay = rnd.choice([0.0, 0.0, rnd.uniform(0, 0.001), rnd.uniform(0, 0.01)])
        # A training that goes on has less to do than a new one.
        moment = aim._replace(number=rnd.randint(1, max(aim.number // (1 + num_before), 1)), delay=delay)
    return Hit(signum, moment, to_all)


def _mistakes(end: End, hit: Hit | None, has_trained: bool) -> Iterator[str]:
    """:return: what is wrong with the way it ended"""
    code = end.exit_code
    if hit is None or not end.was_hit or code in (0, _EXIT_CODE_STOPPED):
        if code not in (0, _EXIT_CODE_STOPPED):
            return  # said by the caller
    elif code not in _OTHER_CODES[hit.signum]:
        yield f"exit code {code} after {hit}\n{end.log[-2000:]}\n{end.err[-2000:]}"
        return
    elif has_trained and hit.signum != signal.SIGKILL and "Finished training" not in end.log:
        yield f"exit code {code} after {hit}, nothing saved: " + " | ".join((end.log + end.err).splitlines()[-5:])
    if code >= 0 and "Traceback" in end.err + end.log and not (hit and hit.signum == signal.SIGUSR1):
        yield f"traceback after {hit}, exit code {code}\n{end.log[-1000:]}\n{end.err[-2000:]}"


def summary(rounds: Sequence[Round]) -> str:
    """:return: the counts"""
    hits = [hit for r in rounds for hit in r.hits]
    lines = []
    for name, num in sorted(Counter(name for name, _, _ in hits).items()):
        codes = Counter(code for other, _, code in hits if other == name)
        lines.append(f"{num:5} {name:9} exit codes: " + ", ".join(f"{code}: {n}" for code, n in sorted(codes.items())))
    lines += [f"{num:5} when: {label}" for label, num in sorted(Counter(label for _, label, _ in hits).items())]
    bad = [r for r in rounds if r.differences]
    lines.append(
        f"{len(rounds)} rounds of {len({r.case.name for r in rounds})} configs, {sum(r.num_starts for r in rounds)} starts, "
        f"{sum(len(r.hits) for r in rounds)} signals (*: to all processes), "
        f"{sum(r.num_repeated_steps for r in rounds)} steps trained again, {len(bad)} rounds differ"
    )
    return "\n".join(lines)


def report(res: Round) -> str:
    """:return: text about a round in which something differs"""
    return "\n  ".join([f"round {res.number}, {res.case.name}:", *res.events, "differences:", *res.differences])


def main() -> None:
    """As the docstring of the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first round, to repeat one")
    parser.add_argument("--case", help="only cases with this in their name")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--max-hits", type=int, default=4, help="signals per round")
    parser.add_argument("--keep", type=Path, help="folder for the files, where those of rounds that differ stay")
    args = parser.parse_args()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # the trainings would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cases = [case for case in CASES if not args.case or args.case in case.name]
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        matrix = KillMatrix(args.keep or Path(folder), seed=args.seed, cases=cases, max_hits=args.max_hits)
        for res in matrix.run(args.rounds, jobs=args.jobs, first=args.first):
            rounds.append(res)
            ends = ", ".join(f"{name} {code}" for name, _, code in res.hits)
            print(
                f"round {res.number}, {res.case.name}: {ends}: {'DIFFERS' if res.differences else 'equal'}", flush=True
            )
            if res.differences:
                print(report(res), flush=True)
    print(summary(rounds))
    sys.exit(any(r.differences for r in rounds))


if __name__ == "__main__":
    main()
