"""
Whether reading can start in the middle of an epoch: what the classes have in common for ``supports_jump``.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset

__all__ = ["reads_as_its_class", "is_plain_function", "are_plain_functions"]

# A class of the user that overrides one of these may keep whatever it wants from one sequence to the next.
_HOOKS = (
    "get_data get_input_data get_targets load_seqs _load_seqs _collect_single_seq _load_seq _read_real_seqs generate_seq"
    " get_corpus_seq _features_of_child num_seqs is_less_than_num_seqs"
).split()
_OWN_MODULES = "returnn.datasets.util."


def reads_as_its_class(dataset: Dataset) -> bool:
    """
    :param dataset: of one of our classes that say whether they can jump, or of a class of the user derived from it
    :return: whether no class of the user changes how sequences are read. If one does, it says by its own supports_jump
        whether reading can start anywhere
    """
    for cls in type(dataset).__mro__:
        if cls.__module__.startswith("returnn."):
            return True
        if any(name in vars(cls) for name in _HOOKS):
            return False
    return True


def is_plain_function(func: object) -> bool:
    """
    :param func: function of the user, called for each sequence
    :return: whether it is a function; an object that is called as one may keep something from call to call
    """
    if isinstance(func, functools.partial):
        return is_plain_function(func.func)
    # Text cleaners may be objects.
    return inspect.isfunction(func) or inspect.isbuiltin(func) or type(func).__module__.startswith(_OWN_MODULES)


def are_plain_functions(opts: Any) -> bool:
    """
    :param opts: as for :func:`returnn.datasets.util.post_processing.get_post_processor_function`. Any: as there
    :return: whether all functions in it are plain functions
    """
    if callable(opts):
        return is_plain_function(opts)
    return isinstance(opts, str) or all(are_plain_functions(item) for item in opts or ())
