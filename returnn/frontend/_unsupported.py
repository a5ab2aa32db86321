"""
The answer to whoever asks ``returnn.frontend`` for its layers and functions, which are out of scope here.

As an attribute (``rf.Linear``) the package itself answers; as an import (``from returnn.frontend import Linear``,
``import returnn.frontend.encoder``) a finder does, which Python asks after all others, when there is no such module.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

from returnn.errors import NotSupportedError

__all__ = ["FrontendAttributeError", "FrontendImportError", "refuse_attribute"]

_PACKAGE = "returnn.frontend"


class FrontendAttributeError(AttributeError, NotSupportedError):
    """``rf.something`` that is not here. An AttributeError, so that hasattr and getattr with default work."""


class FrontendImportError(ImportError, NotSupportedError):
    """An import of something that is not here."""


def _sentence(name: str) -> str:
    """:return: what to say about ``returnn.frontend.<name>``"""
    return (
        f"{_PACKAGE}.{name} is not supported: layers of the frontend are out of scope; write the model with torch.nn. "
        f"{_PACKAGE} has get_run_ctx, RunCtx, Loss, Tensor, Dim and the functions that make a run context."
    )


class _Finder:
    """Finds nothing; raises for modules below the package."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """
        :param fullname: of a module that no other finder has found
        :param path: where others look
        :param target: hint of a reload
        :raises FrontendImportError: it would be below returnn.frontend
        """
        del path, target
        if fullname.startswith(_PACKAGE + "."):
            raise FrontendImportError(_sentence(fullname[len(_PACKAGE) + 1 :]), name=fullname)
        return None


def refuse_attribute(name: str) -> NoReturn:
    """
    The function ``__getattr__`` of the package.

    :param name: what it does not have
    :raises FrontendAttributeError: always; says what to use instead
    """
    if name.startswith("__"):  # Python itself asks for some
        raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}")
    raise FrontendAttributeError(_sentence(name))


if not any(getattr(finder, "__module__", None) == __name__ for finder in sys.meta_path):
    sys.meta_path.append(_Finder())  # the last one of the process, once
