"""Files that look like checkpoints, for the tests of this folder."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

__all__ = ["WHOLE", "write", "write_epochs"]


def _zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", b"x" * 50)
        file.writestr("archive/data/0", bytes(range(200)))
    return buffer.getvalue()


#: Content of a small file of the kind that torch.save writes.
WHOLE = _zip_bytes()


def write(*names: str, content: bytes = WHOLE) -> None:
    for name in names:
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        Path(name).write_bytes(content)


def write_epochs(*epochs: int, opt: bool = True) -> None:
    for epoch in epochs:
        write(f"m/ep.{epoch:03d}.pt", *([f"m/ep.{epoch:03d}.opt.pt"] if opt else []))
