"""Config: golden getter results, loading forms, precedence, errors, pickling."""

from __future__ import annotations

import builtins
import importlib
import io
import json
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from returnn._state import process_state_ctx
from returnn.config import (
    Config,
    get_global_config,
    global_config_ctx,
    load_config,
    set_global_config,
    split_command_line,
)
from returnn.errors import ConfigError, ConfigFileError

_GOLDEN = Path(__file__).parent / "golden" / "01-config-cli" / "config_api.json"
_CASES = json.loads(_GOLDEN.read_text())["cases"]

# Where we are better on purpose (spec 01 section 13, rows 1 and 2; json and line configs as mainline; issue: --key value).
_LOAD_EXCEPTIONS = {
    7: "++i undefined_name: the text, with a warning, instead of NameError",
    15: "++t false: False instead of NameError",
    22: "++c yes for a bool: True instead of NameError",
    23: "--key value sets any key",
    29: "line-based config, as mainline",
    30: "json config, as mainline",
}
# Untyped options are visible to the typed getters, as parsed values.
_UNTYPED_VISIBLE = ("typed_value", "opt_typed_value")


def _encode(obj: Any) -> Any:
    if isinstance(obj, tuple):
        return {"tuple": [_encode(x) for x in obj]}
    if isinstance(obj, list):
        return [_encode(x) for x in obj]
    if isinstance(obj, dict):
        return {"dict": [[_encode(k), _encode(v)] for k, v in obj.items()]}
    if isinstance(obj, float) and not math.isfinite(obj):
        return {"float": repr(obj)}
    if obj is None or isinstance(obj, (int, float, str)):
        return obj
    return {"repr": repr(obj)}


def _decode(obj: Any) -> Any:
    if isinstance(obj, dict):
        if "tuple" in obj:
            return tuple(_decode(x) for x in obj["tuple"])
        if "dict" in obj:
            return {_decode(k): _decode(v) for k, v in obj["dict"]}
    if isinstance(obj, list):
        return [_decode(x) for x in obj]
    return obj


def _call(config: Config, call: dict[str, Any]) -> tuple[str, Any]:
    args = [_decode(arg) for arg in call["args"]]
    kwargs = {key: _decode(value) for key, value in call["kwargs"].items()}
    try:
        return "ok", getattr(config, call["method"])(*args, **kwargs)
    except Exception as exc:
        return "error", exc


@pytest.mark.parametrize("case_idx", range(len(_CASES)))
def test_golden(case_idx: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = _CASES[case_idx]
    monkeypatch.chdir(tmp_path)
    Path("c.config").write_text(case["config"])
    expected_error = case["load_error"]
    calls = case["calls"]
    if case_idx in _LOAD_EXCEPTIONS:
        expected_error = None
        calls = case.get("mainline", {}).get("calls", calls)
    if expected_error is not None:
        with pytest.raises(getattr(builtins, expected_error)):
            load_config(command_line_options=["c.config", *case["cmd"]])
        return
    config = load_config(command_line_options=["c.config", *case["cmd"]])
    for call in calls:
        status, result = _call(config, call)
        key = call["args"][0]
        if call["method"] in _UNTYPED_VISIBLE and key in config.dict and key not in config.typed_dict:
            continue  # see test_untyped_is_visible_to_typed_value
        if "ok" in call:
            assert (status, _encode(result)) == ("ok", call["ok"]), call
        else:
            assert status == "error" and isinstance(result, getattr(builtins, call["error"])), (call, result)


def test_golden_exceptions_give_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = {}
    for case_idx in (7, 15, 22, 23):
        Path("c.config").write_text(_CASES[case_idx]["config"])
        results[case_idx] = load_config(command_line_options=["c.config", *_CASES[case_idx]["cmd"]])
    assert results[7].typed_value("i") == "undefined_name"
    assert results[15].typed_value("t") is False
    assert results[22].typed_value("c") is True
    assert results[22].typed_value("a") == "fromcmd" and results[22].typed_value("b") == 10
    assert results[23].typed_value("nonexist") == 1 and not results[23].is_typed("nonexist")


@pytest.mark.parametrize(
    "text,expected",
    [
        ("1000", 1000),
        ("1e-3", 1e-3),
        ("+-0.5", -0.5),
        ("false", False),
        ("True", True),
        ("yes", "yes"),
        ("cuda", "cuda"),
        ("cuda:1", "cuda:1"),
        ("1,2,3", (1, 2, 3)),
        ("a,b", "a,b"),
        ("[1,2]", [1, 2]),
        ("{'class': 'HDFDataset', 'files': ['a,b', 'c']}", {"class": "HDFDataset", "files": ["a,b", "c"]}),
        ("None", None),
        ("inf", float("inf")),
        ("10*1000", 10000),
        ("2**10", 1024),
        ("__import__('os').getcwd()", "__import__('os').getcwd()"),
        ("(lambda: 1)()", "(lambda: 1)()"),
        ("", ""),
    ],
)
def test_untyped_is_visible_to_typed_value(text: str, expected: Any) -> None:
    config = load_config(command_line_options=["++key", text])
    value = config.typed_value("key", "DEF")
    assert value == expected and type(value) is type(expected)
    assert config.opt_typed_value("key") == expected
    assert config.has("key") and not config.is_typed("key") and not config.is_of_type("key", (int, str))
    assert config.value("key", "DEF") == text.replace("+-", "-")


def test_typed_override_bool_words() -> None:
    config = Config({"flag": True, "none": None, "num": 3, "text": "x"})
    for key, value in [("flag", "off"), ("none", "no"), ("num", "no"), ("text", "no")]:
        config.add_line(key, value)
    assert config.typed_dict == {"flag": False, "none": False, "num": "no", "text": "no"}


def test_override_does_not_run_code(capsys: pytest.CaptureFixture[str]) -> None:
    config = Config({"x": 1})
    config.add_line("x", "[print('executed')]")
    assert config.typed_dict["x"] == "[print('executed')]"
    out = capsys.readouterr().out
    assert "WARNING: can't evaluate config param 'x' to previous type: <class 'int'>. Keeping as string." in out
    assert "\nexecuted" not in out


def test_cmd_forms() -> None:
    config = Config()
    config.parse_cmd_args(
        [
            "++a",
            "1",
            "--b",
            "2",
            "--c=x=y",
            "-r",
            "0.1",
            "-z5",
            "--d",
            "-0.1",
            "--verbose",
            "5",
            "++e",
            "+-2",
            "--f",
            "",
        ]
    )
    expected = {"a": "1", "b": "2", "c": "x=y", "learning_rate": "0.1", "max_seqs": "5", "d": "-0.1"}
    expected.update({"log_verbosity": "5", "e": "-2", "f": ""})
    assert {key: config.value(key, None) for key in config.dict} == expected
    assert config.command_line_keys == set(expected)


@pytest.mark.parametrize("args", [["-Q", "1"], ["--x"], ["--x", "--y", "1"], ["++x", "-1"], ["--1x", "2"], ["-r"]])
def test_cmd_malformed_dash_exits_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exc_info:
        Config().parse_cmd_args(args)
    assert exc_info.value.code == 2
    assert args[0] in capsys.readouterr().err


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["-V"], ["--version"]])
def test_cmd_help_exits_0(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exc_info:
        Config().parse_cmd_args(args)
    assert exc_info.value.code == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("args", [["++x"], ["+x", "1"], ["++x", "1", "y", "2"], ["++x=1", "2"]])
def test_cmd_malformed_plus(args: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"Command line: .*\+\+"):
        Config().parse_cmd_args(args)


def test_split_command_line() -> None:
    assert split_command_line(["a", "b", "++x", "c"]) == (["a", "b"], ["++x", "c"])
    assert split_command_line(["a"]) == (["a"], [])
    assert split_command_line([]) == ([], [])


_LOG_LINE = "seen = globals().get('seen', []) + [(__file__[-1], config.value('x', None), config.value('by', None))]\n"


def test_precedence_and_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ABC":
        Path(name).write_text(f"#!rnn.py\nimport __main__\n{_LOG_LINE}by = {name!r}\ny = {name!r}\n")
    config = load_config(
        command_line_options=["A", "B", "--config", "C", "++x", "3"],
        default_config={"y": "default", "only_default": 1, "z": "default"},
        extra_updates={"z": "extra", "y": "extra"},
    )
    # C (x unset), A (x "3"), B, C, then x. C uses globals(), so it really runs twice.
    assert config.typed_dict["seen"] == [("C", None, None), ("A", "3", "C"), ("B", "3", "A"), ("C", "3", "B")]
    assert config.files == ["C", "A", "B", "C"]
    assert config.typed_dict["by"] == "C" and config.typed_dict["y"] == "C"
    assert config.typed_dict["z"] == "extra" and config.typed_dict["only_default"] == 1
    assert not config.is_typed("x") and config.typed_value("x") == 3


@pytest.mark.parametrize(
    "source,num_runs",
    [
        ("x = 5\ny = x + 1\ndef f(): return x\n", 1),
        ("y = config.value('other', None)\n", 1),
        ("y = config.value('x', None)\n", 2),  # sees what A sets only the second time
        ("y = config.int('base', 0) + 1\n", 2),  # sees what A sets only the second time
        ("y = config.int('base', 1) + config.int('y', 0)\n", 2),
        ("y = globals().get('base')\n", 2),
        ("y = config.typed_dict.get('base')\n", 2),
    ],
)
def test_config_option_file_runs_again_only_if_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, num_runs: int
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("A").write_text("#!rnn.py\nbase = 10\ny = 100\nx = 'A'\n")
    Path("C").write_text(f"#!rnn.py\nopen('runs', 'a').write('.')\n{source}")
    config = load_config(command_line_options=["A", "--config", "C", "++x", "3"])
    assert Path("runs").read_text() == "." * num_runs
    # C wins over A. If it asks for x, it sees that of A.
    assert config.typed_dict["y"] == "A" if "'x'" in source else config.typed_dict["y"] != 100
    assert config.typed_value("x") in (3, "3")  # ++x wins over both
    if "base" in source:
        assert config.typed_dict["y"] in (10, 11, 110)
    assert config.files == ["C", "A", "C"]


def test_on_created_makes_it_global(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    path.write_text("#!rnn.py\nfrom returnn.config import get_global_config\nsame = get_global_config() is config\n")
    with global_config_ctx(None):
        assert load_config(str(path), on_created=set_global_config).typed_value("same") is True


def test_several_files_share_namespace(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("#!rnn.py\na = 1\ndef f():\n  return b\n")
    (tmp_path / "b").write_text("#!rnn.py\nb = a + 1\n")
    config = Config()
    config.load_file(str(tmp_path / "a"))
    config.load_file(str(tmp_path / "b"))
    assert config.typed_dict["f"]() == 2
    config.add_line("b", "7")
    assert config.typed_dict["f"]() == 7


def test_loading_namespace(tmp_path: Path) -> None:
    path = tmp_path / "returnn.config"
    path.write_text(
        "#!returnn/rnn.py\nimport json\nc = config\nn = __name__\np = __package__\nf = __file__\n"
        "config = json.loads('{\"k\": 5}')\nlocals().update(**config)\ndef g():\n  return k\n# end"
    )
    config = Config()
    config.load_file(str(path))
    assert config.typed_dict["c"] is config
    assert config.typed_value("n") == "__returnn_config__" and config.typed_value("p") == "returnn"
    assert config.typed_value("f") == str(path)
    assert config.typed_value("k") == 5 and config.typed_dict["g"]() == 5
    assert config.typed_value("config") == {"k": 5}


def test_include_and_streams(tmp_path: Path) -> None:
    path = tmp_path / "inc"
    path.write_text("key value # comment\n\n# only comment\nlist a,b\n")
    config = Config()
    config.load_file(io.StringIO(f"include {path}\nx 1"))
    assert config.dict == {"key": ["value"], "list": ["a", "b"], "x": ["1"]}
    assert config.files == [str(path)]
    config.load_file(io.StringIO('{"j": [1, {"k": null}], /* c */ "s": "a//b"} // end'))
    assert config.typed_dict == {"j": [1, {"k": None}], "s": "a//b"}
    assert Config.get_config_file_type(str(path)) == "txt"


def test_config_in_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    package = tmp_path / "cfg_package_a" / "sub"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    (package / "other.py").write_text("value = 3\n")
    (package / "conf.py").write_text("from .other import value\nname = __name__\nhas_config = 'config' in globals()\n")
    (package / "plain.config").write_text("#!rnn.py\nname = __name__\n")
    config = Config()
    config.load_file(str(package / "conf.py"))
    assert config.typed_value("value") == 3 and config.typed_value("name") == "cfg_package_a.sub.conf"
    assert config.typed_value("has_config") is False
    # Not a module name: executed directly.
    config = Config()
    config.load_file(str(package / "plain.config"))
    assert config.typed_value("name") == "__returnn_config__"


@pytest.mark.parametrize(
    "source,parts",
    [
        ("#!rnn.py\nx = 1\ny = = 2\n", ["line 3", "SyntaxError", "y = = 2"]),
        ("#!rnn.py\nx = 1\ny = undefined_name\n", ["line 3", "NameError", "undefined_name"]),
        ("#!rnn.py\nimport json\njson.loads('{')\n", ["line 3", "JSONDecodeError", "raised in"]),
        ("#!rnn.py\nimport not_existing_module_x\n", ["line 2", "ModuleNotFoundError", "not_existing_module_x"]),
        ("\n\n  \n#!rnn.py\n1 / 0\n", ["line 5", "ZeroDivisionError"]),
        ("just_a_key\n", ["line 1", "'just_a_key'", "#!rnn.py"]),
        ("num_epochs = 5\n", ["line 1", "num_epochs = 5", "#!rnn.py"]),
        ("{1: 2}\n", ["not valid json", "#!rnn.py"]),
        ("{}[]", ["not valid json"]),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, source: str, parts: list[str]) -> None:
    path = tmp_path / "my.config"
    path.write_text(source)
    with pytest.raises(ConfigFileError) as exc_info:
        Config().load_file(str(path))
    for part in [str(path), *parts]:
        assert part in str(exc_info.value)


def test_missing_file() -> None:
    with pytest.raises(ConfigFileError, match="config file not found: 'not_there.config'"):
        Config().load_file("not_there.config")
    with pytest.raises(AssertionError):
        Config().load_file("not_there.config")


def test_exit_in_config_passes() -> None:
    with pytest.raises(SystemExit) as exc_info:
        Config().load_file(io.StringIO("#!rnn.py\nraise SystemExit(7)\n"))
    assert exc_info.value.code == 7


def test_option_errors_have_sentences() -> None:
    config = Config({"x": "abc", "l": [1, "a"]})
    with pytest.raises(ConfigError, match=r'option "x" is invalid: expected int, got \'abc\' \(str\)'):
        config.int("x", 1)
    with pytest.raises(ConfigError, match='"x" is invalid: expected bool'):
        config.bool("x", True)
    with pytest.raises(ConfigError, match='"l" is invalid: expected list of int'):
        config.int_list("l")


def test_global_config() -> None:
    with process_state_ctx(global_config=None):
        assert get_global_config(raise_exception=False) is None
        assert get_global_config(False) is None
        with pytest.raises(Exception, match="No global config found."):
            get_global_config()
        empty = get_global_config(return_empty_if_none=True)
        assert isinstance(empty, Config) and get_global_config(raise_exception=False) is None
        created = get_global_config(auto_create=True)
        assert get_global_config() is created
        other = Config()
        with pytest.raises(KeyError), global_config_ctx(other):
            assert get_global_config() is other
            raise KeyError
        assert get_global_config() is created
        set_global_config(None)
        assert get_global_config(raise_exception=False) is None


_FUNCTIONS = """#!rnn.py
import dataclasses, enum, functools, typing
base = 10
T = typing.TypeVar("T")
def f(x, y=1, *, z=2):
    return base + x + y + z
def outer(n):
    def inner(m):
        return n * m + base if m else inner(1)
    return inner
inner = outer(3)
lam = lambda x: f(x) + 1
part = functools.partial(f, 1, z=5)
class A:
    attr = [1]
    def __init__(self, v): self.v = v
    @property
    def prop(self): return self.v + base
    @staticmethod
    def stat(): return base
    @classmethod
    def make(cls): return cls(base)
    @functools.cached_property
    def cached(self): return self.v * 2
class B(A, typing.Generic[T]):
    __slots__ = ("extra",)
    def __init__(self, v):
        super().__init__(v + 1)
        self.extra = "e"
@dataclasses.dataclass(frozen=True)
class D:
    a: int
    b: "typing.List[int]" = dataclasses.field(default_factory=list)
class E(enum.Enum):
    X = 1
    Y = "y"
    def describe(self): return self.name + "!"
class N(typing.NamedTuple):
    p: int
    q: str = "q"
@functools.lru_cache(maxsize=3)
def cached(x): return x + base
instances = [A(1), B(2), D(3), E.X, N(4)]
"""


def _check_functions(d: dict[str, Any]) -> None:
    assert d["f"](1) == d["base"] + 4
    assert d["inner"](2) == 6 + d["base"] and d["inner"](0) == 3 + d["base"]
    assert d["lam"](1) == d["f"](1) + 1
    assert d["part"]() == d["base"] + 7 and d["part"].func is d["f"]
    a, b, dc, e, n = d["instances"]
    assert type(a) is d["A"] and a.prop == 1 + d["base"] and d["A"].stat() == d["base"]
    assert type(d["B"].make()) is d["B"] and a.cached == 2
    assert isinstance(b, d["A"]) and b.v == 3 and b.extra == "e"
    assert dc == d["D"](3) and hash(d["D"](1, ())) is not None and repr(dc) == "D(a=3, b=[])"
    assert e is d["E"].X and d["E"]("y") is d["E"].Y and e.describe() == "X!"
    assert n == (4, "q") and n.p == 4 and type(n) is d["N"]
    assert d["cached"](1) == 1 + d["base"] and d["cached"].cache_parameters()["maxsize"] == 3


def test_pickle_by_value_repeatedly() -> None:
    config = Config()
    config.load_file(io.StringIO(_FUNCTIONS))
    config.parse_cmd_args(["++base", "20", "++untyped", "a,b"])
    for _ in range(3):
        _check_functions(config.typed_dict)
        copy = pickle.loads(pickle.dumps(config))
        assert copy is not config and copy.typed_dict["config"] is copy
        assert copy.typed_dict["f"] is not config.typed_dict["f"]
        assert copy.typed_dict["f"].__globals__ is copy.typed_dict
        assert copy.dict == {"untyped": ["a", "b"]} and copy.command_line_keys == {"base", "untyped"}
        copy.typed_dict["base"] += 1
        config = copy


def test_proxy_module() -> None:
    config = Config()
    config.load_file(io.StringIO(_FUNCTIONS))
    with global_config_ctx(config):
        data = pickle.dumps(config.typed_dict["f"])
        assert len(data) < 60
        assert pickle.loads(data) is config.typed_dict["f"]
        module: Any = importlib.import_module("__returnn_config__")

        assert module.base == 10 and "base" in dir(module)
        module.base = 11
        assert config.typed_dict["base"] == 11
        with pytest.raises(AttributeError, match="not_there"):
            module.not_there  # noqa: B018
    with process_state_ctx(global_config=None), pytest.raises(AttributeError):
        pickle.loads(data)


def test_not_picklable_entries_become_placeholders() -> None:
    config = Config()
    config.load_file(
        io.StringIO(
            "#!rnn.py\nimport threading\nlock = threading.Lock()\ndef f():\n  return 5\ndef g():\n  with lock: pass\n"
        )
    )
    copy = pickle.loads(pickle.dumps(config))
    assert copy.typed_dict["f"]() == 5
    for use in (lambda: copy.typed_dict["lock"].acquire(), copy.typed_dict["g"]):
        with pytest.raises(ConfigError, match='"lock" of the config is not available in this worker process'):
            use()
    # And again, as in a nested worker.
    copy = pickle.loads(pickle.dumps(copy))
    assert copy.typed_dict["f"]() == 5
