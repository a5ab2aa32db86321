"""The table of tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from returnn.cli.help import help_text
from returnn.cli.tasks import REFUSED_TASKS, TASKS, find_task
from returnn.errors import ConfigError, NotSupportedError

DOCS = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf8")


@pytest.mark.parametrize("name", [*TASKS, *REFUSED_TASKS])
def test_each_task_is_documented(name: str) -> None:
    assert f"`{name}`" in DOCS
    assert name in help_text("rnn.py")


def test_find_task() -> None:
    assert find_task("train") is TASKS["train"]
    assert find_task("config:f") is TASKS["config:NAME"]
    assert find_task("optional-config:a:b") is TASKS["optional-config:NAME"]


@pytest.mark.parametrize("name", ["bogus", "config:", "other:f", "Train"])
def test_unknown_task(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown task: '{name}'. Known are: train, eval, forward"):
        find_task(name)


@pytest.mark.parametrize("name", REFUSED_TASKS)
def test_refused_task_says_what_to_use(name: str) -> None:
    with pytest.raises(NotSupportedError, match="use the task forward|dump-dataset") as exc_info:
        find_task(name)
    assert isinstance(exc_info.value, NotImplementedError)


def test_only_tasks_that_work_with_the_model_need_an_engine() -> None:
    assert {name for name, task in TASKS.items() if not task.needs_engine} == {
        "nop",
        "config:NAME",
        "optional-config:NAME",
    }
