"""
Where temporary and cached files go.
"""

from __future__ import annotations

import os
import string

__all__ = ["get_login_username", "get_temp_dir", "get_cache_dir", "expand_env_vars"]


def get_login_username() -> str:
    """:return: name of the user of this process by the password data base, else the user id"""
    if os.name == "posix":
        import pwd

        try:
            return pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            return str(os.getuid())
    return os.environ.get("USERNAME", "user")


def get_temp_dir(*, with_username: bool = True) -> str:
    """
    :param with_username: with the user name as last part
    :return: below ``$TMPDIR``, ``$TEMP`` or ``$TMP`` (the first set one), else below /var/tmp or /tmp. May not exist yet
    """
    base = next((os.environ[name] for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)), None)
    if base is None:
        base = "/var/tmp" if os.path.exists("/var/tmp") else "/tmp"
    return f"{base}/{get_login_username()}" if with_username else base


def get_cache_dir() -> str:
    """:return: ``$RETURNN_CACHE_DIR``, else :func:`get_temp_dir`"""
    return os.environ.get("RETURNN_CACHE_DIR") or get_temp_dir()


class _EnvMapping(dict[str, str]):
    def __missing__(self, key: str) -> str:
        if key in os.environ:
            return os.environ[key]
        if key in ("TMPDIR", "TEMP", "TMP"):
            return get_temp_dir(with_username=False)
        if key == "USER":
            return get_login_username()
        raise KeyError(key)


def expand_env_vars(s: str) -> str:
    """
    :param s: with ``$var`` or ``${var}``; ``$$`` is a dollar sign
    :return: variables replaced. TMPDIR, TEMP, TMP and USER have fall-backs
    :raises ValueError: undefined variable
    """
    try:
        return string.Template(s).substitute(_EnvMapping())
    except KeyError as exc:
        raise ValueError(f"Environment variable {exc.args[0]!r} is not defined, but used in {s!r}.") from exc
