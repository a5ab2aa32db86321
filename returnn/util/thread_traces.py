"""
Stack traces of all threads as text.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Collection
from typing import TextIO

from returnn.util.secret_names import mask_text

__all__ = ["dump_all_thread_tracebacks"]


def dump_all_thread_tracebacks(
    exclude_thread_ids: Collection[int] | None = None, exclude_self: bool = False, *, file: TextIO | None = None
) -> None:
    """
    :param exclude_thread_ids: only name these threads
    :param exclude_self: only name the current thread
    :param file: default is standard output
    """
    file = file or sys.stdout
    excluded = set(exclude_thread_ids or ())
    if exclude_self:
        excluded.add(threading.get_ident())
    threads = {thread.ident: thread for thread in threading.enumerate()}
    print("", file=file)
    for thread_id, frame in sys._current_frames().items():
        thread = threads.get(thread_id)
        tags = []
        if thread is not None:
            tags += [type(thread).__name__, f"name={thread.name!r}"]
        tags.append(f"id={thread_id}")
        if thread_id == threading.get_ident():
            tags.append("current")
        if thread_id == threading.main_thread().ident:
            tags.append("main")
        print(f"Thread {', '.join(tags)}:", file=file)
        if thread_id in excluded:
            print("(Excluded thread.)\n", file=file)
            continue
        print(mask_text("".join(traceback.format_stack(frame))), file=file)
    print("That were all threads.", file=file)
