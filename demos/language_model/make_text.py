"""English text that every Python brings along: the sentences of the docstrings of its standard library and of its help topics."""

from __future__ import annotations

import ast
import os
import pydoc_data.topics
import re
import sysconfig
from collections.abc import Iterator

_SKIP = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
_PROSE = re.compile(r"[A-Z][\w\s,.;:'\"()*/\-]*[.!?]")  # no code, no tables


def docstrings() -> Iterator[str]:
    """:return: of all modules of the standard library, in the order of their files"""
    for folder, folders, files in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = sorted(set(folders) - _SKIP)
        for name in sorted(name for name in files if name.endswith(".py")):
            with open(os.path.join(folder, name), encoding="utf8", errors="replace") as file:
                try:
                    tree = ast.parse(file.read())
                except SyntaxError:
                    continue
            for node in ast.walk(tree):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    yield ast.get_docstring(node) or ""


def sentences() -> list[str]:
    """:return: each once; lower case, words and punctuation separated by blanks"""
    result = {}
    for text in [*(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)), *docstrings()]:
        for paragraph in re.split(r"\n\s*\n", text):
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
                words = re.findall(r"[a-z']+|[.,;:!?()]", sentence.lower())
                if _PROSE.fullmatch(sentence) and 4 <= len(words) <= 50:
                    result[" ".join(words)] = None
    return list(result)
