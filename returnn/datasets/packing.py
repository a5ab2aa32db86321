"""
The option ``packed_tensors``: batches without padding, all sequences one after the other, for the mainline dialect.
Here is what the option means per data key; batches of PyTorch configs are always padded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from returnn.errors import OptionError
from returnn.options.datasets import config_value, has_config

__all__ = ["packed_batch_config", "packed_batch_key_opts"]

_DEFAULTS = {"gap": 0, "align": 1}
_LEAST = {"gap": 0, "align": 1}
_OPTION = "packed_tensors"


def packed_batch_config() -> dict[str, Any] | None:
    """
    :return: None: off; else ``gap`` (frames between sequences), ``align`` (their starts are multiples of it), and
        ``per_key``: data key -> dict with gap, align, packed. Any: these
    :raises OptionError: (an AssertionError) wrong keys or values
    """
    value = config_value(_OPTION) if has_config(_OPTION) else None
    if value is None or value is False:
        return None
    if value is True:
        value = {}
    if not isinstance(value, Mapping):
        raise OptionError(_OPTION, expected="bool, or dict with gap, align, per_key", got=value)
    result = {**_DEFAULTS, **_checked(value, ("gap", "align", "per_key"), _OPTION)}
    per_key = result.get("per_key") or {}
    if not isinstance(per_key, Mapping):
        raise OptionError(f"{_OPTION}['per_key']", expected="dict data key -> dict", got=per_key)
    result["per_key"] = {
        key: _checked(opts, ("gap", "align", "packed"), f"{_OPTION}['per_key'][{key!r}]")
        for key, opts in per_key.items()
    }
    return result


def _checked(opts: Any, known: tuple[str, ...], name: str) -> dict[str, Any]:
    if not isinstance(opts, Mapping) or set(opts) - set(known):
        raise OptionError(name, expected=f"dict with some of {', '.join(known)}", got=opts)
    for key, value in opts.items():
        if key in _LEAST and (isinstance(value, bool) or not isinstance(value, int) or value < _LEAST[key]):
            raise OptionError(f"{name}[{key!r}]", expected=f"int >= {_LEAST[key]}", got=value)
        if key == "packed" and not isinstance(value, bool):
            raise OptionError(f"{name}[{key!r}]", expected="bool", got=value)
    return dict(opts)


def packed_batch_key_opts(packing: Mapping[str, Any] | None, key: str) -> dict[str, int] | None:
    """
    :param packing: from :func:`packed_batch_config`. Any: see there
    :param key: data key
    :return: ``gap`` and ``align`` for this key; None: it is not packed
    """
    if packing is None:
        return None
    opts = packing.get("per_key", {}).get(key, {})
    if not opts.get("packed", True):
        return None
    return {name: int(opts.get(name, packing.get(name, default))) for name, default in _DEFAULTS.items()}
