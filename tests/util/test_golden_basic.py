"""The public names of returnn.util.basic against golden values."""

from __future__ import annotations

import collections
import json
import math
import os
import subprocess
import sys
from collections import deque, namedtuple
from pathlib import Path
from typing import Any

import numpy
import pytest

from returnn.util import basic as util
from returnn.util.basic import NumbersDict, Stats

_GOLDEN = Path(__file__).parent.parent / "golden" / "01-config-cli" / "util_basic.json"
_CASES = json.loads(_GOLDEN.read_text())["cases"]

# Where we are better on purpose (spec 01 section 13, row 12): the fraction is carried into the seconds.
_EXCEPTIONS = {
    "hms_fraction(3661.99999)": "1:01:02.0000",
    "hms_fraction(3661.99999, decimals=3)": "1:01:02.000",
    "hms_fraction(119.99999)": "0:02:00.0000",
    "hms_fraction(119.99999, decimals=3)": "0:02:00.000",
}


class _A0:
    def __init__(self, a: Any, b: Any = 2, *args: Any, **kw: Any) -> None:
        pass


class _A1(_A0):
    def __init__(self, c: Any, d: Any = None, **kw: Any) -> None:
        super().__init__(**kw)


class _A2(_A1):
    def __init__(self, b: Any = 7, e: Any = "x", *, kwonly: Any = 1, **kw: Any) -> None:
        super().__init__(b, **kw)


class B0:
    """Stores its arguments."""

    def __init__(self, x: Any, y: Any = 3) -> None:
        self.x = x
        self.y = y


def _stats(cols: list[list[Any]]) -> list[Any]:
    stats = Stats()
    for col in cols:
        stats.collect(numpy.array(col))
    return [
        *(stats.get_mean(), stats.get_std_dev(), stats.min, stats.max, stats.total_data_len, stats.num_seqs),
        str(stats),
    ]


def _inpl() -> tuple[NumbersDict, bool]:
    nd = nd0 = NumbersDict({"a": 1})
    nd += {"b": 2}
    nd -= 1
    nd *= {"a": 3}
    nd /= 2
    return nd, nd is nd0


def _encode(obj: Any) -> Any:
    if isinstance(obj, NumbersDict):
        return {
            "NumbersDict": sorted([_encode(k), _encode(v)] for k, v in obj.dict.items()),
            "broadcast": _encode(obj.value),
        }
    if isinstance(obj, tuple):
        return {"tuple": [_encode(x) for x in obj]}
    if isinstance(obj, (list, deque)):
        return [_encode(x) for x in obj]
    if isinstance(obj, dict):
        return {"dict": [[_encode(k), _encode(v)] for k, v in obj.items()]}
    if isinstance(obj, (set, frozenset)):
        return {"set": sorted(_encode(x) for x in obj)}
    if isinstance(obj, numpy.ndarray):
        return {"ndarray": obj.tolist(), "dtype": str(obj.dtype)}
    if isinstance(obj, numpy.generic):
        return _encode(obj.item())
    if isinstance(obj, float) and not math.isfinite(obj):
        return {"float": repr(obj)}
    if obj is None or isinstance(obj, (int, float, str)):
        return obj
    return {"repr": repr(obj)}


def _namespace() -> dict[str, Any]:
    namespace = {name: getattr(util, name) for name in util.__all__}
    namespace.update(numpy=numpy, deque=deque, namedtuple=namedtuple, collections=collections, util=util)
    namespace.update(A0=_A0, A1=_A1, A2=_A2, B0=B0, stats=_stats, inpl=_inpl)
    return namespace


def _is_close(a: Any, b: Any) -> bool:
    """:return: equal, up to rounding inside of arrays (they depend on the LAPACK build)"""
    if isinstance(a, dict) and isinstance(b, dict) and "ndarray" in a and "ndarray" in b:
        return a["dtype"] == b["dtype"] and numpy.allclose(a["ndarray"], b["ndarray"], rtol=1e-12, atol=1e-14)
    return bool(a == b)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S01A", "x 'y z'")
    monkeypatch.delenv("S01B", raising=False)


@pytest.mark.parametrize("case_idx", range(len(_CASES)))
def test_golden(case_idx: int) -> None:
    case = _CASES[case_idx]
    expr = case["expr"]
    expected = [case, case.get("mainline", {})]
    if expr in _EXCEPTIONS:
        expected = [{"ok": _EXCEPTIONS[expr]}]
    try:
        result = {"ok": _encode(eval(expr, _namespace()))}  # the expressions are ours, not data of a user
    except Exception as exc:
        bases = [cls.__name__ for cls in type(exc).__mro__]
        assert any(e.get("error") in bases for e in expected), (expr, repr(exc), expected)
        return
    assert any("ok" in e and (e["ok"] == "differs" or _is_close(result["ok"], e["ok"])) for e in expected), (
        expr,
        result,
        expected,
    )


def test_numbers_dict_key_order_is_stable() -> None:
    """Row 13: independent of hash randomisation."""
    code = (
        "from returnn.util import NumbersDict as N\n"
        "a, b = N({k: 1 for k in 'zyxabc'}), N({k: 2 for k in 'qaz'})\n"
        "print(list((a + b).dict), list((b * a).dict), list(N.max([a, b]).dict), list(a.elem_eq(b).dict), N.keys_union(a, b))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(outputs) == 1
    assert outputs.pop().startswith("['z', 'y', 'x', 'a', 'b', 'c', 'q'] ['q', 'a', 'z', 'y', 'x', 'b', 'c']")


def test_import_needs_neither_torch_nor_h5py() -> None:
    code = (
        "import returnn.util.basic, sys; print([m for m in ('torch', 'h5py', 'multiprocessing') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
