"""Imports point one way: a module imports its own layer or a lower one."""

from __future__ import annotations

import ast
import functools
import os
import sys
from collections.abc import Iterator

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
#: The longest prefix decides; what is not listed is in layer 0, so a new folder must be placed here deliberately.
LAYERS = {
    "returnn": 0,
    "returnn._state": 0,
    "returnn.errors": 0,
    "returnn.util": 0,
    "returnn.log": 1,
    "returnn.config": 1,
    "returnn._config": 1,
    "returnn.config_pickle": 1,
    "returnn.options": 1,
    "returnn.tensor": 1,
    "returnn.import_": 1,
    "returnn.datasets": 2,
    "returnn.lr": 2,
    "returnn.learning_rate_control": 2,
    "returnn.forward_iface": 2,
    "returnn.engine": 3,
    "returnn.frontend": 3,
    "returnn.torch.util": 4,
    "returnn.torch.data": 5,
    "returnn.torch": 6,
    "returnn.cli": 7,
    "returnn.__main__": 7,
    "rnn": 7,
    "tools": 7,
    "demos": 7,
}
TORCH_FROM_LAYER = 3
#: Modules that may import first-party modules inside of functions, for a quick start.
LAZY = ("returnn.cli", "returnn.__main__", "tools", "demos", "rnn")


def layer(module: str) -> int:
    """:return: layer of the longest listed prefix"""
    parts = module.split(".")
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in LAYERS:
            return LAYERS[".".join(parts[:n])]
    return 0


@functools.cache
def python_files() -> tuple[tuple[str, str], ...]:
    """:return: (module name, path) of all first-party files"""
    result = []
    for top in ("returnn", "tools", "demos"):
        for folder, _, names in os.walk(os.path.join(ROOT, top)):
            for name in sorted(names):
                if name.endswith(".py"):
                    path = os.path.join(folder, name)
                    module = os.path.relpath(path, ROOT)[:-3].replace(os.sep, ".").removesuffix(".__init__")
                    result.append((module, path))
    return tuple(result + [("rnn", os.path.join(ROOT, "rnn.py"))])


@functools.cache
def tree_of(path: str) -> ast.Module:
    """:return: parsed file"""
    with open(path, encoding="utf8") as f:
        return ast.parse(f.read(), path)


def is_type_checking(node: ast.AST) -> bool:
    """:return: whether it is the condition ``TYPE_CHECKING``"""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(
    module: str, path: str, node: ast.AST | None = None, in_function: bool = False
) -> Iterator[tuple[int, str, bool]]:
    """:return: (line, imported module, whether inside of a function) of all imports that run"""
    is_package = path.endswith("__init__.py")
    for child in ast.iter_child_nodes(node or tree_of(path)):
        if is_type_checking(child):
            continue
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield child.lineno, alias.name, in_function
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                parents = module.split(".")[: len(module.split(".")) - child.level + int(is_package)]
                base = ".".join([*parents, *([child.module] if child.module else [])])
            for alias in child.names:
                # "from package import module" imports the module.
                full = f"{base}.{alias.name}"
                is_module = os.path.exists(os.path.join(ROOT, *full.split(".")) + ".py") or os.path.isdir(
                    os.path.join(ROOT, *full.split("."))
                )
                yield child.lineno, full if is_module else base, in_function
        else:
            inner = in_function or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports_of(module, path, child, inner)


def is_first_party(module: str) -> bool:
    """:return: whether it is ours"""
    return module.split(".")[0] in ("returnn", "tools", "demos")


def test_imports_point_one_way() -> None:
    bad = []
    for module, path in python_files():
        for line, target, _ in imports_of(module, path):
            if is_first_party(target) and layer(target) > layer(module):
                bad.append(f"{path}:{line}: {module} (layer {layer(module)}) -> {target} (layer {layer(target)})")
    assert not bad, "\n".join(bad)


def test_torch_is_only_imported_from_layer_3_on() -> None:
    bad = []
    for module, path in python_files():
        for line, target, _ in imports_of(module, path):
            if target.split(".")[0] == "torch" and layer(module) < TORCH_FROM_LAYER:
                bad.append(f"{path}:{line}: {module} -> {target}")
    assert not bad, "\n".join(bad)


#: Other packages than the standard library, and the layer from which on they may be imported.
#: Optional ones are imported by returnn.util.optional_import, which says what to install.
THIRD_PARTY = {"numpy": 0, "h5py": 2, "tqdm": 3, "torch": TORCH_FROM_LAYER, "_setup_returnn_env": 7, "sklearn": 7}


def _lies_beside(path: str, name: str) -> bool:
    """:return: whether the program at this path has a module of this name in its own folder, or in the one above"""
    folder = os.path.dirname(path)
    return any(os.path.exists(os.path.join(d, f"{name}.py")) for d in (folder, os.path.dirname(folder)))


def test_other_packages_are_imported_where_they_belong() -> None:
    bad = []
    for module, path in python_files():
        for line, target, _ in imports_of(module, path):
            top = target.split(".")[0]
            if top in sys.stdlib_module_names or top == "rnn" or is_first_party(target):
                continue
            if module.startswith("demos.") and _lies_beside(path, top):
                continue
            if layer(module) < THIRD_PARTY.get(top, 99):
                bad.append(f"{path}:{line}: {module} -> {target}")
    assert not bad, "\n".join(bad)


def test_no_first_party_import_inside_functions() -> None:
    bad = []
    for module, path in python_files():
        if module.startswith(LAZY):
            continue
        for line, target, in_function in imports_of(module, path):
            if in_function and is_first_party(target):
                bad.append(f"{path}:{line}: {module} -> {target}")
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    "module, expected",
    [
        ("returnn.torch.data.loader", 5),
        ("returnn.torch.engine", 6),
        ("returnn.util.debug", 0),
        ("returnn.datasets._hdf.reader", 2),
    ],
)
def test_longest_prefix_decides(module: str, expected: int) -> None:
    assert layer(module) == expected
