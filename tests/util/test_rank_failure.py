"""What torchrun's agent is told, and lines with the rank."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from returnn._state import process_state_ctx
from returnn.util.rank_failure import RankFailure, prefix_lines, rank_prefix, write_error_file


def failure_of(rank: int, path: Path) -> ProcessFailure:
    """:return: as the agent reads it"""
    return ProcessFailure(local_rank=rank, pid=1, exitcode=1, error_file=str(path))


def test_the_agent_shows_our_sentence_of_the_first_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with process_state_ctx(rank=1, world_size=3):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "1.json"))
        first = RankFailure.here("ValueError: wrong")
        write_error_file("Traceback ...\nValueError: wrong\n")
    for rank in (0, 2):
        with process_state_ctx(rank=rank, world_size=3):
            monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / f"{rank}.json"))
            if rank == 0:
                write_error_file(f"ended because {first}", first=first)
            else:
                write_error_file("stopped by SIGTERM", is_stop=True)
    assert sorted(os.listdir(tmp_path)) == ["0.json", "1.json", "2.json"]
    error = ChildFailedError("rnn.py", {rank: failure_of(rank, tmp_path / f"{rank}.json") for rank in range(3)})
    rank, root = error.get_first_failure()
    assert rank == 1
    assert root.message["message"] == "ValueError: wrong"  # type: ignore[index]
    others, cause = str(error).split("Root Cause")
    assert "ended because rank 1 failed first: ValueError: wrong" in others
    assert "traceback : Traceback ...\n  ValueError: wrong\n" in cause


def test_a_killed_rank_comes_before_those_that_ended_because_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "0.json"))
    with process_state_ctx(rank=0, world_size=2):
        first = RankFailure(1, "it was killed", "lost", time.time())
        write_error_file(f"ended because {first}", first=first)
    failures = {0: failure_of(0, tmp_path / "0.json"), 1: failure_of(1, tmp_path / "none")}
    assert ChildFailedError("rnn.py", failures).get_first_failure()[0] == 1


def test_without_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    write_error_file("x")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "no" / "folder.json"))
    write_error_file("x")  # nobody reads it: no other error because of that


def test_failures_travel_as_json() -> None:
    failure = RankFailure(3, "ValueError: \u00fc", "hang", 12.5, "host", 7)
    assert RankFailure.from_dict(json.loads(json.dumps(failure.to_dict()))) == failure


def test_lines_of_one_process_have_no_rank() -> None:
    assert rank_prefix() == "" and prefix_lines("a\nb") == "a\nb"
    with process_state_ctx(rank=2, world_size=4):
        assert prefix_lines("a\nb\n") == "[rank 2] a\n[rank 2] b\n"
