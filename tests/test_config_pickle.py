"""The state of worker processes: with real spawned and fork-served processes, also nested."""

from __future__ import annotations

import dataclasses
import functools
import io
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy
import pytest

from returnn._state import process_state_ctx, state
from returnn.config import Config, global_config_ctx
from returnn.config_pickle import dumps_for_worker, loads_in_worker
from returnn.errors import ConfigError
from returnn.log import log
from tests.helpers import ROOT, program_env

_CONFIG = """\
#!rnn.py
import os, threading
from cfg_helpers import Base, scale
from returnn.log import log as my_log
log_verbosity = [5]
base = 10
lock = threading.Lock()

def add(x, offset=1):
    print("adding", file=my_log.v5)
    return x + base + offset

class Child(Base):
    def __call__(self, x):
        return super().__call__(add(x))

square = lambda x: x * x
"""

_SCRIPT = """\
import functools, multiprocessing, sys
from returnn.config import get_global_config, load_config, set_global_config
from returnn.config_pickle import dumps_for_worker, loads_in_worker

METHOD = sys.argv[1]


def worker(data, level, queue):
    obj = loads_in_worker(data)
    check(obj, level, queue)


def check(obj, level, queue):
    import faulthandler, __returnn_config__
    from returnn.log import log
    from returnn._state import state

    config = get_global_config()
    d = config.typed_dict
    assert obj["add"] is d["add"] and obj["child"].__class__ is d["Child"] and obj["partial"].func is d["add"]
    assert __returnn_config__.add is d["add"]
    assert d["config"] is config and config.typed_value("untyped") == 5
    result = (level, obj["add"](1), obj["partial"](), obj["child"](1), obj["square"](3), state.world_size)
    if level:
        assert log is d["my_log"] and log.initialized and log.verbose[5] and faulthandler.is_enabled()
        assert sys.excepthook is not sys.__excepthook__
    queue.put(result)
    if level < 2:
        context = multiprocessing.get_context(METHOD)
        proc = context.Process(target=worker, args=(dumps_for_worker(obj), level + 1, queue))
        proc.start()
        proc.join()
        assert proc.exitcode == 0


if __name__ == "__main__":
    from returnn._state import state
    from returnn.log import log

    load_config("my.config", ["++base", "20", "++untyped", "5"], on_created=set_global_config)
    log.init_by_config(get_global_config())
    state.world_size = 3
    d = get_global_config().typed_dict
    obj = dict(add=d["add"], partial=functools.partial(d["add"], 1, offset=2), child=d["Child"](2), square=d["square"])
    queue = multiprocessing.get_context(METHOD).Queue()
    check(obj, 0, queue)
    results = [queue.get() for _ in range(3)]
    assert results == [(level, 22, 23, 44, 9, 3) for level in range(3)], results
    print("all good")
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_nested_workers(method: str, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "cfg_helpers.py").write_text(
        "class Base:\n    def __init__(self, f): self.f = f\n    def __call__(self, x): return scale(x, self.f)\n"
        "def scale(x, f): return x * f\n"
    )
    config = _CONFIG.replace(
        "import os, threading", "import os, sys, threading\nsys.path.insert(0, os.path.abspath('lib'))"
    )
    (tmp_path / "my.config").write_text(config)
    (tmp_path / "script.py").write_text(_SCRIPT)
    proc = subprocess.run(
        [sys.executable, "script.py", method],
        cwd=tmp_path,
        env=program_env({"PYTHONPATH": str(ROOT)}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert proc.returncode == 0, proc.stdout + proc.stderr
    assert proc.stdout.strip().endswith("all good")


def test_config_in_package_in_worker(tmp_path: Path) -> None:
    package = tmp_path / "cfg_package_b"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "other.py").write_text("value = 3\n")
    (package / "conf.py").write_text("from .other import value\ndef f(x):\n  return x + value\n")
    (tmp_path / "script.py").write_text(
        textwrap.dedent(
            """\
            import multiprocessing
            from returnn.config import get_global_config, load_config, set_global_config
            from returnn.config_pickle import dumps_for_worker, loads_in_worker

            def worker(data):
                f = loads_in_worker(data)
                assert get_global_config().typed_dict["f"] is f and f.__module__ == "cfg_package_b.conf"
                print("result", f(4), flush=True)

            if __name__ == "__main__":
                set_global_config(load_config("cfg_package_b/conf.py"))
                f = get_global_config().typed_dict["f"]
                proc = multiprocessing.get_context("spawn").Process(target=worker, args=(dumps_for_worker(f),))
                proc.start()
                proc.join()
            """
        )
    )
    proc = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=program_env({"PYTHONPATH": str(ROOT)}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert proc.stdout.strip() == "result 7", proc.stdout + proc.stderr


class _LogsWhenUnpickled:
    def __reduce__(self) -> tuple[object, ...]:
        return _log_line, ()


def _log_line() -> str:
    print("unpickled", state.world_size, state.global_config is not None, file=log.v4)
    return "done"


def test_log_is_ready_before_user_objects(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    config = Config({"log": str(path), "log_verbosity": 4, "obj": _LogsWhenUnpickled()})
    with global_config_ctx(config), process_state_ctx(world_size=1):
        log.init_by_config(config)
        data = dumps_for_worker(_LogsWhenUnpickled())
        log.initialize()
    with process_state_ctx(global_config=None):
        assert loads_in_worker(data) == "done"
    log.initialize()
    assert path.read_text() == "unpickled 1 True\n" * 2


def test_pre_init_func(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        textwrap.dedent(
            """\
            import io, multiprocessing
            from returnn.config import *
            from returnn.log import log

            def worker(pre_init, ):
                assert get_global_config(raise_exception=False) is not None  # since unpickling
                pre_init()
                assert log.initialized and log.verbose[4] and not log.verbose[5]
                print("result", get_global_config().typed_dict["f"](1), flush=True)

            if __name__ == "__main__":
                config = Config()
                config.load_file(io.StringIO("#!x\\nlog_verbosity = [4]\\ny = 2\\ndef f(x): return x + y"))
                set_global_config(config)
                func = SubProcCopyGlobalConfigPreInitFunc()
                proc = multiprocessing.get_context("spawn").Process(target=worker, args=(func,))
                proc.start()
                proc.join()
            """
        )
    )
    proc = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=program_env({"PYTHONPATH": str(ROOT)}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert proc.stdout.strip() == "result 3", proc.stdout + proc.stderr


def test_without_config() -> None:
    with process_state_ctx(global_config=None, worker_id=3):
        data = dumps_for_worker([1, {"a": 2}])
    with process_state_ctx(global_config=None):
        hooks = sys.excepthook
        try:
            assert loads_in_worker(data) == [1, {"a": 2}]
        finally:
            sys.excepthook = hooks
        assert state.worker_id == 3 and state.global_config is None


def test_local_function_and_lambda_by_value() -> None:
    offset = 5

    def local(x: int) -> int:
        return x + offset

    with global_config_ctx(Config()):
        f, g, h = loads_in_worker(dumps_for_worker((local, lambda x: local(x) * 2, functools.partial(local, 1))))
    assert (f(1), g(1), h()) == (6, 12, 6)
    assert f.__globals__ is local.__globals__


def test_object_that_cannot_be_pickled() -> None:
    with (
        global_config_ctx(Config()),
        pytest.raises(ConfigError, match="TextIOWrapper cannot be sent to a worker process"),
    ):
        dumps_for_worker(io.TextIOWrapper(io.BytesIO()))


_MANY_KINDS = """\
#!rnn.py
import abc, enum, typing, dataclasses, functools, logging, re, collections, contextlib, sys, os
import numpy as np
logger = logging.getLogger("x")
regex = re.compile("a+")
rng = np.random.RandomState(3)
dtype = np.float32
class Ab(abc.ABC):
    @abc.abstractmethod
    def f(self): ...
    @property
    @abc.abstractmethod
    def p(self): ...
class Impl(Ab):
    def f(self): return 1
    @property
    def p(self): return 2
class Hook:
    subs = []
    def __init_subclass__(cls, tag=None, **kw):
        super().__init_subclass__(**kw)
        Hook.subs.append(cls.__name__)
class Sub(Hook, tag="t"): pass
class Meta(type):
    def __new__(mcs, name, bases, ns, **kw):
        ns["added"] = 1
        return super().__new__(mcs, name, bases, ns)
class M(metaclass=Meta):
    def me(self): return self.added
class Color(enum.IntEnum):
    R = 1
    G = 2
class Fl(enum.Flag):
    A = enum.auto()
    B = enum.auto()
class TD(typing.TypedDict, total=False):
    a: int
class P(typing.Protocol):
    def f(self) -> int: ...
Nt = collections.namedtuple("Nt", "a b")
@contextlib.contextmanager
def ctx():
    yield 5
def gen():
    for i in range(3): yield i
@dataclasses.dataclass
class Dc:
    x: int = 3
    y: list = dataclasses.field(default_factory=list, metadata={"k": 1})
    c: typing.ClassVar[int] = 3
    @functools.cached_property
    def z(self): return self.x
@dataclasses.dataclass(slots=True)
class Ds:
    x: int = 3
class Err(ValueError):
    def __init__(self, a): super().__init__(a); self.a = a
err = Err(3)
class Desc:
    def __set_name__(self, owner, name): self.name = name
    def __get__(self, obj, owner=None): return self.name
class UsesDesc:
    d = Desc()
class Outer:
    class Inner:
        v = 7
    inner = Inner()
    def m(self): return Outer.Inner.v
@functools.wraps(gen)
def wrapped(): return list(gen())
@functools.singledispatch
def sd(x): return "base"
def deco(f):
    @functools.wraps(f)
    def inner(*a, **k): return f(*a, **k) + 1
    return inner
@deco
def decorated(x): return x
train = {"class": "StaticDataset", "func": decorated}
fileh = sys.stdout
"""


def test_many_kinds_of_definitions() -> None:
    config = Config()
    config.load_file(io.StringIO(_MANY_KINDS))
    for _ in range(2):
        with global_config_ctx(config):
            data = dumps_for_worker(config.typed_dict["train"])
        with process_state_ctx(global_config=None):
            train = loads_in_worker(data)
            config = state.global_config  # type: ignore[assignment]
        d = config.typed_dict
        bad = {key for key, value in d.items() if type(value).__name__ == "NotPicklable"}
        assert bad == {"fileh", "sd"}
        assert train["func"](1) == 2 and train["func"] is d["decorated"]
        impl = d["Impl"]()
        assert impl.f() == 1 and impl.p == 2 and isinstance(impl, d["Ab"])
        with pytest.raises(TypeError, match="abstract"):
            d["Ab"]()
        assert d["Hook"].subs == ["Sub"] and d["M"]().me() == 1 and type(d["M"]) is d["Meta"]
        assert d["Color"](1) is d["Color"].R and d["Color"].G == 2 and (d["Fl"].A | d["Fl"].B).value == 3
        assert d["TD"](a=1) == {"a": 1} and d["Nt"](1, 2).b == 2
        with d["ctx"]() as value:
            assert value == 5
        assert list(d["gen"]()) == [0, 1, 2] == d["wrapped"]()
        assert (
            repr(d["Dc"]()) == "Dc(x=3, y=[])"
            and d["Dc"](5).z == 5
            and [f.name for f in dataclasses.fields(d["Dc"])] == ["x", "y"]
        )
        assert not hasattr(d["Ds"](), "__dict__") and d["Ds"](4).x == 4
        assert d["err"].a == 3 and isinstance(d["err"], d["Err"]) and d["UsesDesc"]().d == "d"
        assert d["Outer"]().m() == 7 and d["Outer"].inner.v == 7
        assert d["regex"].match("aa") and d["logger"].name == "x" and d["dtype"] is numpy.float32


def test_worker_has_the_log_settings_of_its_parent_without_a_config(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from returnn.config_pickle import dumps_for_worker
from returnn.log import log

log.initialize(logs=[{str(tmp_path / "x.log")!r}], verbosity=[4, 1], formatter=["verbose", "default"])
sys.stdout.buffer.write(dumps_for_worker("obj"))
"""
    data = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    worker = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from returnn.config_pickle import loads_in_worker
from returnn.log import log

assert loads_in_worker(sys.stdin.buffer.read()) == "obj"
print("quiet", file=log.v4)
print("loud", file=log.v1)
"""
    out = subprocess.run([sys.executable, "-c", worker], input=data, capture_output=True, check=True).stdout
    assert out.decode().splitlines() == ["loud"]
    lines = (tmp_path / "x.log").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["quiet", "loud"]
