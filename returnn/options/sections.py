"""
Imports all modules of this folder, so that every option is declared.

A new section only needs its file here. None of them may import torch.
"""

from __future__ import annotations

import importlib
import pkgutil

import returnn.options as _package

__all__ = ["SECTION_MODULES"]

#: Modules of this folder that declare nothing (docs is also a program).
_NO_SECTIONS = ("registry", "sections", "check", "docs")
#: Full names of the modules that declare options.
SECTION_MODULES: tuple[str, ...] = tuple(
    sorted(
        f"{_package.__name__}.{m.name}" for m in pkgutil.iter_modules(_package.__path__) if m.name not in _NO_SECTIONS
    )
)

for _name in SECTION_MODULES:
    importlib.import_module(_name)
