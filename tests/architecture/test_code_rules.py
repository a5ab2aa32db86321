"""Rules about the code itself: facades, global state, eval, size of modules, one home per option."""

from __future__ import annotations

import ast
import os

import pytest

from tests.architecture.test_layers import ROOT, python_files, tree_of

#: Modules that hold only imports and ``__all__``.
FACADES = (
    "returnn/util/__init__.py",
    "returnn/util/basic.py",
    "returnn/util/native_code_compiler.py",
    "returnn/tensor/__init__.py",
    "returnn/torch/data/pipeline.py",
    "returnn/datasets/__init__.py",
    "returnn/datasets/generating.py",
    "returnn/datasets/meta.py",
    "returnn/datasets/util/hdf.py",
)
#: The only places that run text as code: the config is code, and so is what a user types into a shell.
MAY_EXECUTE = {
    "returnn/_config/files.py": "loads the config",
    "returnn/util/objects.py": "custom_exec, a public name that does this",
}
MAX_LINES = 600
#: Longer, with the reason.
LONG_MODULES: dict[str, str] = {}


def relative(path: str) -> str:
    """:return: path below the root, with slashes"""
    return os.path.relpath(path, ROOT).replace(os.sep, "/")


def is_facade_statement(node: ast.stmt) -> bool:
    """:return: whether it is a docstring, an import, ``__all__`` or an alias of a name"""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        return all(isinstance(t, ast.Name) for t in node.targets) and isinstance(
            node.value, (ast.List, ast.Tuple, ast.Name, ast.Attribute, ast.Constant)
        )
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


@pytest.mark.parametrize("name", FACADES)
def test_facades_hold_no_code(name: str) -> None:
    path = os.path.join(ROOT, name)
    bad = [f"{name}:{node.lineno}" for node in tree_of(path).body if not is_facade_statement(node)]
    assert not bad, f"facades hold only imports and __all__: {bad}"


def test_packages_hold_no_code() -> None:
    bad = []
    for module, path in python_files():
        if path.endswith("__init__.py") and module != "returnn":  # which has the version
            bad += [f"{relative(path)}:{node.lineno}" for node in tree_of(path).body if not is_facade_statement(node)]
    assert not bad, f"__init__.py files hold only imports and __all__: {bad}"


#: Calls that make something mutable.
_MUTABLE = ("dict", "list", "set", "defaultdict", "OrderedDict", "deque", "Counter", "local", "bytearray")
#: Names at module level that are no constants, and why.
MAY_CHANGE = {
    "returnn/options/registry.py": "filled by the declarations at import, constant after that",
    "returnn/util/signals.py": "signum_to_signame is a public name, and constant",
}


def test_no_mutable_state_in_modules() -> None:
    bad = []
    for module, path in python_files():
        if not module.startswith("returnn") or relative(path) in ("returnn/_state.py", *MAY_CHANGE):
            continue
        for node in tree_of(path).body:
            if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
                continue
            value, targets = node.value, node.targets if isinstance(node, ast.Assign) else [node.target]
            literal = isinstance(value, (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp))
            call = isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] in _MUTABLE
            names = [t.id for t in targets if isinstance(t, ast.Name) and not t.id.startswith("__")]
            if (literal or call) and any(name != name.upper() for name in names):
                bad.append(f"{relative(path)}:{node.lineno}: {', '.join(names)}")
    assert not bad, f"process state belongs to returnn/_state.py, constants have upper-case names: {bad}"


def test_no_global_statement() -> None:
    bad = [
        f"{relative(path)}:{node.lineno}"
        for _, path in python_files()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Global) and not path.endswith("_state.py")
    ]
    assert not bad, f"process state belongs to returnn/_state.py: {bad}"


def test_no_text_is_executed_as_code() -> None:
    bad = []
    for _, path in python_files():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                if relative(path) not in MAY_EXECUTE:
                    bad.append(f"{relative(path)}:{node.lineno}: {node.func.id}")
    assert not bad, "\n".join(bad)


def test_modules_are_not_too_long() -> None:
    long = {}
    for _, path in python_files():
        with open(path, encoding="utf8") as f:
            num_lines = sum(1 for _ in f)
        if num_lines > MAX_LINES and relative(path) not in LONG_MODULES:
            long[relative(path)] = num_lines
    assert not long, f"split them, or excuse them with a reason: {long}"


def options_by_module() -> dict[str, set[str]]:
    """:return: module of returnn/options -> names that it looks up with read or is_given"""
    result: dict[str, set[str]] = {}
    for module, path in python_files():
        if not module.startswith("returnn.options.") or module.endswith((".registry", ".check", ".docs")):
            continue
        names = result.setdefault(module, set())
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "read":
                names.update(str(a.value) for a in node.args[1:2] if isinstance(a, ast.Constant))
    return result


def test_each_option_is_read_in_one_module_only() -> None:
    from returnn.options import sections  # noqa: F401
    from returnn.options.registry import lookup

    readers: dict[str, list[str]] = {}
    for module, names in options_by_module().items():
        for name in names:
            option = lookup(name)
            readers.setdefault(option.name if option else name, []).append(module)
    twice = {name: modules for name, modules in readers.items() if len(modules) > 1}
    assert not twice, f"one option, one reader: {twice}"


def test_the_registry_is_used_below_options_only_by_options() -> None:
    """Library code gets values as arguments."""
    allowed = ("returnn.options", "returnn.__main__", "returnn.cli", "tools")
    bad = []
    for module, path in python_files():
        if module.startswith(allowed):
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and node.module == "returnn.options.registry":
                names = [alias.name for alias in node.names]
                if "read" in names or "declare" in names:
                    bad.append(f"{relative(path)}:{node.lineno}: {names}")
    assert not bad, "\n".join(bad)


#: Getters of Config; library code must not use them with the name of an option.
GETTERS = (
    "value",
    "typed_value",
    "opt_typed_value",
    "int",
    "float",
    "bool",
    "bool_or_other",
    "list",
    "is_true",
    "has",
    "int_list",
    "float_list",
)
#: Modules that ask a config for options by name, and why.
MAY_ASK_CONFIG = {
    "returnn/log.py": "Log.init_by_config is a public name, and takes the config",
    "returnn/util/backend.py": "BackendEngine.select_engine is a public name, and takes the config",
    "returnn/config_pickle.py": "opens the log in a worker, as Log.init_by_config does",
    "returnn/util/file_cache.py": "FileCache.get_instance is a public name, and takes the config",
    "returnn/__main__.py": "dry_run is announced before any section is read",
}


def test_library_code_does_not_ask_the_config_for_options() -> None:
    from returnn.options import sections  # noqa: F401
    from returnn.options.registry import lookup

    bad = []
    for module, path in python_files():
        if module.startswith(("returnn.options", "tools", "demos")) or relative(path) in MAY_ASK_CONFIG:
            continue
        for node in ast.walk(tree_of(path)):
            if not (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in GETTERS
                and node.args
            ):
                continue
            name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
            if "config" in ast.unparse(node.func.value) and isinstance(name, str) and lookup(name) is not None:
                bad.append(f"{relative(path)}:{node.lineno}: {ast.unparse(node)}")
    assert not bad, "\n".join(bad)
