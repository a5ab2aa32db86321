"""After which steps a training pauses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from returnn._state import process_state_ctx
from returnn.engine.pauses import PausePlan
from returnn.util import stop_request
from returnn.util.stop_request import accept_stops


@pytest.fixture(autouse=True)
def _accepting() -> Iterator[None]:
    with process_state_ctx(num_stop_acceptors=0, stop_reason=None, world_size=1), accept_stops():
        yield


class _Clock:
    """In seconds, set by the test."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_nothing_to_do() -> None:
    plan = PausePlan()
    assert [plan.after_step(step) for step in range(1, 5)] == [None] * 4
    assert plan.steps_to_planned(3) is None


def test_each_so_many_steps() -> None:
    plan = PausePlan(save_every_steps=3)
    assert [plan.after_step(step) for step in range(1, 8)] == [None, None, "save", None, None, "save", None]
    assert [plan.steps_to_planned(step) for step in range(7)] == [3, 2, 1, 3, 2, 1, 3]


def test_each_so_many_minutes_since_the_last_save() -> None:
    clock = _Clock()
    plan = PausePlan(save_every_minutes=0.5, clock=clock)
    assert plan.after_step(1) is None
    clock.now += 31
    assert plan.after_step(2) == "save" and plan.after_step(3) is None
    clock.now += 20
    plan.saved()  # the checkpoint of an epoch
    clock.now += 20
    assert plan.after_step(4) is None
    clock.now += 11
    assert plan.after_step(5) == "save"


def test_limit_of_time() -> None:
    clock = _Clock()
    plan = PausePlan(stop_after_minutes=1, save_every_minutes=1, save_every_steps=1, clock=clock)
    assert plan.after_step(1) == "save"
    clock.now += 60
    assert plan.after_step(2) == "stop"
    assert stop_request.requested() == "stop_after_minutes"


def test_signal() -> None:
    plan = PausePlan(save_every_steps=1)
    stop_request.request("SIGTERM")
    assert plan.after_step(1) == "stop"


def test_several_ranks_only_do_what_they_agreed_on() -> None:
    plan = PausePlan(save_every_steps=1, several_ranks=True)
    stop_request.request("SIGTERM")
    assert plan.wanted() == "stop" and plan.after_step(1) is None
    plan.agree("stop")
    assert plan.after_step(2) == "stop"
    assert plan.after_step(3) is None
