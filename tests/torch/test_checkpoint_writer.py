"""Tests of the thread that writes checkpoints, and of the snapshot it is given."""

from __future__ import annotations

import collections
import pathlib
import subprocess
import sys
import threading
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.errors import CheckpointError, ReturnnError
from returnn.torch.checkpoint import load_file, save_file_atomic
from returnn.torch.checkpoint_writer import CheckpointWriter, to_host

REPO = pathlib.Path(__file__).parents[2]


# --- the thread


def test_jobs_are_run_in_order_beside_the_caller() -> None:
    done: list[tuple[int, bool]] = []
    caller = threading.get_ident()
    writer = CheckpointWriter()
    for num in range(20):
        writer.submit(lambda num=num: done.append((num, threading.get_ident() == caller)), what=f"job {num}")  # type: ignore[misc]
    writer.wait()
    assert done == [(num, False) for num in range(20)]
    assert writer.num_outstanding == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint writer" and thread.is_alive()]


def test_submit_waits_while_two_are_outstanding() -> None:
    go_on, begun, third_is_in = threading.Event(), threading.Event(), threading.Event()
    writer = CheckpointWriter()

    def blocked() -> None:
        begun.set()
        assert go_on.wait(60)

    writer.submit(blocked, what="first")
    assert begun.wait(60)
    writer.submit(lambda: None, what="second")
    assert writer.num_outstanding == 2

    def submit_third() -> None:
        writer.submit(lambda: None, what="third")
        third_is_in.set()

    thread = threading.Thread(target=submit_third)
    thread.start()
    assert not third_is_in.wait(0.05)
    go_on.set()
    thread.join(60)
    assert third_is_in.is_set()
    writer.wait()


def test_error_is_raised_once_and_what_waits_is_dropped(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    go_on, done = threading.Event(), []
    writer = CheckpointWriter()
    writer.check()

    def fail() -> None:
        assert go_on.wait(60)
        save_file_atomic({}, tmp_path / "file" / "m.pt")

    writer.submit(fail, what="m.pt")
    writer.submit(lambda: done.append(1), what="other")
    go_on.set()
    with pytest.raises(CheckpointError, match=r"Cannot save .*m\.pt: .*(File exists|Not a directory)"):
        writer.wait()
    assert not done
    writer.check()
    writer.submit(lambda: done.append(2), what="later")
    writer.wait()
    assert done == [2]


@pytest.mark.parametrize("method", ["check", "wait", "submit"])
def test_other_errors_become_a_sentence(method: str) -> None:
    writer = CheckpointWriter()

    def fail() -> None:
        raise OSError(28, "No space left on device")

    writer.submit(fail, what="model.003.step12.pt")
    while writer.num_outstanding:
        pass
    with pytest.raises(
        CheckpointError, match=r"Cannot save model\.003\.step12\.pt: OSError: \[Errno 28\] No space left"
    ) as exc_info:
        if method == "submit":
            writer.submit(lambda: None, what="next")
        else:
            getattr(writer, method)()
    assert isinstance(exc_info.value.__cause__, OSError)


def test_close_tells_but_does_not_raise() -> None:
    writer = CheckpointWriter()

    def fail() -> None:
        raise CheckpointError("Cannot save x.")

    writer.submit(fail, what="x")
    assert writer.close() == "Cannot save x."
    assert writer.close() is None
    writer.wait()


def test_context() -> None:
    done: list[int] = []

    def fail() -> None:
        raise CheckpointError("Cannot save x.")

    with CheckpointWriter() as writer:
        writer.submit(lambda: done.append(1), what="x")
    assert done == [1]
    with pytest.raises(ReturnnError, match="Cannot save x"), CheckpointWriter() as writer:
        writer.submit(fail, what="x")
    with pytest.raises(ZeroDivisionError), CheckpointWriter() as writer:  # the first error is what counts
        writer.submit(fail, what="x")
        raise ZeroDivisionError


def test_job_is_finished_when_the_program_ends(tmp_path: pathlib.Path) -> None:
    code = (
        "import sys, time, torch\n"
        "from returnn.torch.checkpoint import save_file_atomic\n"
        "from returnn.torch.checkpoint_writer import CheckpointWriter\n"
        "def job():\n"
        "    time.sleep(0.2)\n"
        "    save_file_atomic({'epoch': 3}, sys.argv[1])\n"
        "CheckpointWriter().submit(job, what='x')\n"
        "sys.exit(85)\n"
    )
    res = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.pt")], cwd=REPO, timeout=120, check=False)
    assert res.returncode == 85
    assert load_file(tmp_path / "m.pt") == {"epoch": 3}


# --- the snapshot


class Pair(NamedTuple):
    a: torch.Tensor
    b: int


def same(a: Any, b: Any) -> bool:
    """Any: nested containers"""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, numpy.ndarray):
        return a.dtype == b.dtype and numpy.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


tensors = st.builds(
    lambda shape, dtype: torch.arange(int(numpy.prod(shape, dtype=int))).reshape(shape).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64]),
)
leaves = st.one_of(
    tensors,
    st.none(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=3),
    st.builds(numpy.array, st.lists(st.integers(0, 9))),
)
states = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.integers(), st.text(max_size=2)), inner, max_size=3),
        st.dictionaries(st.text(max_size=2), inner, max_size=3).map(collections.OrderedDict),
    ),
    max_leaves=8,
)


def set_to_zero(obj: Any) -> None:
    """Any: nested containers"""
    if isinstance(obj, torch.Tensor):
        obj.zero_()
    elif isinstance(obj, numpy.ndarray):
        obj[...] = 0
    elif isinstance(obj, dict):
        for value in obj.values():
            set_to_zero(value)
        obj.clear()
    elif isinstance(obj, (list, tuple)):
        for value in obj:
            set_to_zero(value)
        if isinstance(obj, list):
            obj.clear()


@given(states)
@settings(max_examples=100, deadline=None)
def test_copy_is_equal_and_apart(state: Any) -> None:
    """Any: nested containers"""
    copied, again = to_host(state), to_host(state)
    assert same(copied, state)
    set_to_zero(state)
    assert same(copied, again)


def test_model_and_optimizer(tmp_path: pathlib.Path) -> None:
    """The snapshot is what a checkpoint at that moment has, also in size, while training goes on."""
    first, tied = torch.nn.Linear(30, 40), torch.nn.Linear(30, 40)
    model = torch.nn.Sequential(first, torch.nn.BatchNorm1d(40), torch.nn.Linear(40, 30), tied)
    tied.weight = first.weight
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)

    def step() -> None:
        model(torch.randn(5, 30)).square().sum().backward()
        optimizer.step()

    step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    paths = [tmp_path / name / "m.pt" for name in ("now", "later")]
    save_file_atomic(state, paths[0])
    copied = to_host(state)
    step()
    save_file_atomic(copied, paths[1])
    assert abs(paths[0].stat().st_size - paths[1].stat().st_size) < 500  # a weight more would be 4800
    now, later = map(load_file, paths)
    assert same(now, later)
    assert later["model"]._metadata == now["model"]._metadata
    assert not torch.equal(later["model"]["0.weight"], first.weight)
    assert copied["model"]["0.weight"].data_ptr() == copied["model"]["3.weight"].data_ptr()


def test_special_tensors() -> None:
    param = torch.nn.Parameter(torch.ones(2, 3).t())
    sparse = torch.eye(3).to_sparse()
    base = torch.arange(6.0)
    state: dict[str, Any] = {  # Any: all that to_host takes
        "param": param,
        "sparse": sparse,
        "views": [base[:2], base[2:], base[:2]],
        "expanded": torch.ones(1).expand(4),
        "conj": torch.tensor([1 + 2j]).conj(),
        "pair": Pair(torch.ones(2), 3),
        "default": collections.defaultdict(list, {"a": [torch.zeros(1)]}),
        "set": {1, 2},
    }
    copied = to_host(state)
    assert type(copied["param"]) is torch.Tensor and not copied["param"].requires_grad
    assert copied["param"].stride() == param.stride() and torch.equal(copied["param"], param)
    assert torch.equal(copied["sparse"].to_dense(), torch.eye(3))
    views: Any = copied["views"]
    assert views[0].data_ptr() == views[2].data_ptr() != views[1].data_ptr()
    assert [view.tolist() for view in views] == [[0, 1], [2, 3, 4, 5], [0, 1]]
    assert copied["expanded"].tolist() == [1, 1, 1, 1]
    assert torch.equal(copied["conj"], state["conj"])
    assert type(copied["pair"]) is Pair and copied["pair"] is not state["pair"]
    assert copied["default"].default_factory is list and copied["default"] is not state["default"]
    assert copied["set"] == {1, 2} and copied["set"] is not state["set"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_device() -> None:
    weight = torch.randn(1000, 1000, device="cuda")
    state = {"w": weight, "tied": weight, "t": weight.t(), "half": weight.half()}
    expected = {key: value.cpu() for key, value in state.items()}
    copied = to_host(state)
    weight.zero_()
    assert all(same(copied[key], expected[key]) for key in state)
    assert copied["w"].is_pinned() and copied["w"].data_ptr() == copied["tied"].data_ptr()
