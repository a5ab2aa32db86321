"""Train and run sequence-to-sequence models from one Python config."""

from __future__ import annotations

import os as _os

from returnn.__setup__ import VERSION as _version
from returnn.__setup__ import get_version_str as _get_version_str

__version__ = _version
__root_dir__ = _os.path.dirname(_os.path.dirname(_os.path.abspath(__file__)))


def __getattr__(name: str) -> str:
    # Lazy: the git calls cost time, and most processes do not ask.
    if name in ("__long_version__", "__git_version__"):
        return _get_version_str(long=True)
    raise AttributeError(f"module 'returnn' has no attribute {name!r}")
