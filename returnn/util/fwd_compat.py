"""
The extra keyword argument that makes user functions accept ``**kwargs``.
"""

from __future__ import annotations

import random

__all__ = ["get_fwd_compat_kwargs", "get_fwd_compat_kwargs_mini", "get_fwd_compat_hook_kwargs"]

# Own generator: the argument name must not change the state that seeds anything else.
_rng = random.Random()


def get_fwd_compat_kwargs() -> dict[str, None]:
    """
    :return: one keyword argument with an unpredictable name, so that functions which take no ``**kwargs`` fail at once,
        and later versions can pass further arguments
    """
    return {f"__fwd_compat_random_arg_{_rng.randint(0, 99):03}": None}


def get_fwd_compat_kwargs_mini() -> dict[str, None]:
    """:return: as :func:`get_fwd_compat_kwargs`, with the name that Mini-RETURNN gives to ``train_step`` and co"""
    return {f"__fwd_compatible_random_arg_{_rng.randint(0, 99)}": None}


def get_fwd_compat_hook_kwargs() -> dict[str, None]:
    """:return: as :func:`get_fwd_compat_kwargs`, with the name that Mini-RETURNN gives to forward hooks"""
    return {f"__random_arg_{_rng.randint(0, 99)}": None}
