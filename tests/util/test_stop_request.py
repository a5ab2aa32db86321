"""Requests to stop after the current step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from returnn._state import process_state_ctx, state
from returnn.util import stop_request
from returnn.util.stop_request import StopRequested, TrainingStopped, accept_stops


@pytest.fixture(autouse=True)
def _own_state() -> Iterator[None]:
    with process_state_ctx(num_stop_acceptors=0, stop_reason=None, world_size=1):
        yield


def test_nobody_accepts() -> None:
    assert not stop_request.request("SIGTERM")
    assert stop_request.requested() is None
    assert not stop_request.will_stop_on_request()


def test_the_first_reason_stays() -> None:
    with accept_stops():
        assert stop_request.will_stop_on_request() and stop_request.requested() is None
        assert stop_request.request("SIGUSR1") and stop_request.request("SIGTERM")
        assert stop_request.requested() == "SIGUSR1"


def test_forgotten_at_the_outermost_end() -> None:
    with accept_stops():
        with accept_stops():
            stop_request.request("SIGTERM")
        assert stop_request.requested() == "SIGTERM"
    assert stop_request.requested() is None and not stop_request.request("SIGTERM")
    with pytest.raises(ValueError), accept_stops():
        stop_request.request("SIGTERM")
        raise ValueError
    assert stop_request.requested() is None


def test_safe_points_raise() -> None:
    stop_request.raise_if_requested()
    with accept_stops():
        stop_request.raise_if_requested()
        stop_request.request("stop_after_minutes")
        with pytest.raises(StopRequested, match="stop requested by stop_after_minutes") as info:
            stop_request.raise_if_requested()
        assert info.value.reason == "stop_after_minutes"


def test_several_ranks_do_not_stop_in_the_middle_of_a_step() -> None:
    state.world_size = 2
    with accept_stops():
        stop_request.request("SIGTERM")
        stop_request.raise_if_requested()
        assert stop_request.requested() == "SIGTERM"


def test_after_the_stop_signals_change_nothing() -> None:
    with pytest.raises(TrainingStopped) as info, accept_stops():
        raise TrainingStopped("SIGTERM")
    assert info.value.code == 85 and str(info.value) == "training stopped as requested (SIGTERM), saved"
    assert stop_request.will_stop_on_request()  # until the process ends
    stop_request.forget()
    assert not stop_request.will_stop_on_request()


def test_a_warning_that_comes_too_early_is_remembered() -> None:
    """SLURM's signal while the model is made: the training stops after its first step."""
    stop_request.remember("SIGUSR1")
    assert stop_request.requested() is None
    with accept_stops():
        assert stop_request.requested() == "SIGUSR1"
    with accept_stops():
        assert stop_request.requested() is None
    stop_request.remember("SIGUSR1")
    stop_request.forget()
    with accept_stops():
        assert stop_request.requested() is None
