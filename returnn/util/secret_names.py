"""
What looks like a secret: names of variables, options and keys, and texts in which such a name stands before its value.

Used by everything that shows values: error dumps, tracebacks, the command line in the log. Nothing is sure here; a secret
under a harmless name is shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = ["HIDDEN", "is_secret_name", "hides", "hidden_locals", "hidden_args", "mask_text", "mask_args"]

#: Shown in place of a value.
HIDDEN = "<hidden>"

_MAX_NAME_LEN = 200
# Alone, or as a word of a name: db_password, PasswordHash. The value is always hidden.
_STRONG = (
    "password|passwort|passwd|passphrase|passcode|pwd|secret|secrets|credential|credentials|apikey|apikeys|authorization"
    "|bearer|privatekey|secretkey|accesskey|passwords"
)
# Two words in a row, however they are joined.
_STRONG_PAIRS = (
    "api_key|api_keys|access_key|private_key|secret_key|signing_key|encryption_key|ssh_key|auth_key|license_key|account_key"
    "|auth_token|auth_tokens|access_token|access_tokens|api_token|api_tokens|refresh_token|session_token|bearer_token|id_token"
    "|hf_token|hub_token|github_token|gitlab_token|git_token|ntfy_token|slack_token|bot_token|user_token|oauth_token"
    "|wandb_key|session_cookie|set_cookie|auth_header"
)
# In our field, tokens are mostly words; hidden is only a text under a name that ends so.
_WEAK = ("token", "auth", "cookie", "cookies")

_NAMES_OF_NAMES = ("key", "k", "name", "option", "option_name", "opt", "field", "attr", "var")
_NAMES_OF_VALUES = ("value", "val", "v", "got", "old", "new", "default", "arg", "text", "raw")

# Also names of the working directory.
_WORKING_DIR = ("pwd", "oldpwd")

_STRONG_WORDS = frozenset(_STRONG.split("|"))
_PAIRS = frozenset(_STRONG_PAIRS.split("|"))
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def _words(name: str) -> list[str]:
    """:return: in lower case: ``myApiKey``, ``MY-API-KEY`` -> my, api, key"""
    return [word for word in re.split(r"[^a-z0-9]+", _CAMEL.sub("_", name[-_MAX_NAME_LEN:]).lower()) if word]


def is_secret_name(name: str) -> bool:
    """:return: whether any value under this name is likely to be secret, e.g. of ``db_password``, ``apiKey``, ``HF_TOKEN``"""
    words = _words(name)
    return any(w.rstrip("0123456789") in _STRONG_WORDS for w in words) or any(
        f"{a}_{b.rstrip('0123456789')}" in _PAIRS for a, b in zip(words, words[1:], strict=False)
    )


def hides(name: object, value: object) -> bool:
    """
    :param name: of a variable or attribute, or key of a dict. Of any type, a str decides
    :param value: what it stands for
    :return: whether the value is not to be shown. None, booleans and empty texts are shown: they help, and tell nothing
    """
    if isinstance(name, bytes):
        name = name[-_MAX_NAME_LEN:].decode("latin1")
    if not isinstance(name, str) or value is None or isinstance(value, (bool, type)) or callable(value):
        return False
    if isinstance(value, (str, bytes, bytearray)) and not value:
        return False
    words = _words(name)
    if words and words[-1] in _WORKING_DIR and isinstance(value, str) and value.startswith(("/", "~", ".")):
        return False
    if is_secret_name(name):
        return True
    return bool(words) and words[-1] in _WEAK and isinstance(value, (str, bytes, bytearray))


_QUOTED = r"""[bBrRuUfF]{0,2}(?:'''.*?(?:'''|$)|\"\"\".*?(?:\"\"\"|$)|'(?:[^'\\\n]|\\.)*'?|"(?:[^"\\\n]|\\.)*"?)"""
# A name, maybe quoted as the key of a dict or as part of an argument, then = or :, then a value.
_NAMED = re.compile(
    rf"""(?<![A-Za-z0-9_])(?:(?<=\\)[nrt])?(?P<name>[A-Za-z_][\w-]{{0,99}})(?P<sep>\\?['"]?\]?\s{{0,20}}(?::\s{{0,20}}[\w.\[\]| ]{{1,40}}=(?!=)|=(?!=)|:)\s{{0,20}})"""
    rf"""(?:(?P<quoted>\\?{_QUOTED})|(?P<bare>[^\s'",;&(){{}}\[\]]{{1,500}})(?P<after>[(\[])?)""",
    re.DOTALL,
)
_REST_OF_BARE = re.compile(r"""[^\s'",;&(){}\[\]]*""")
_URL_PASSWORD = re.compile(r"(?P<start>\b[a-zA-Z][\w+.-]{0,20}://[^\s/:@'\"]{0,100}:)[^\s/@'\"]{1,500}(?=@)")
_BEARER = re.compile(r"(?P<start>\b(?:[Bb]earer|[Bb]asic)\s+)[A-Za-z0-9+/._~=-]{12,}")
_TYPES = ("str", "int", "bytes", "bool", "dict", "list", "object", "Any", "Optional", "Callable")
# Before a colon that begins a block: ``if password: return``.
_CODE = re.compile(r"\b(?:if|elif|while|for|lambda|with|class|def|except|case|match|assert)\b")
_HARMLESS_VALUES = frozenset(("None", "True", "False", "null", "true", "false", *_TYPES))


def _mask_match(match: re.Match[str]) -> str:
    name, sep, quoted, bare = match["name"], match["sep"], match["quoted"], match["bare"]
    start = name + sep
    if quoted is not None:
        value = quoted.lstrip("bBrRuUfF\\").strip("'\"")
        # After a colon, a word that is about tokens is prose, unless the name is quoted as in a dict.
        is_prose = ":" in sep and not re.match(r"\\?['\"]", sep)
        if hides(name, value) and (not is_prose or is_secret_name(name)):
            return start + HIDDEN
        return match[0]
    is_expression = match["after"] is not None or re.fullmatch(r"[A-Za-z_][\w]*(\.[A-Za-z_]\w*)+", bare) is not None
    before = match.string[max(match.start() - 100, 0) : match.start()]
    if ":" in sep and "=" not in sep and _CODE.search(before, before.rfind("\n") + 1):
        return match[0]
    if bare in _HARMLESS_VALUES or bare.startswith(HIDDEN[:-1]) or is_expression:
        return match[0]
    if is_secret_name(name) and hides(name, bare):
        return start + HIDDEN
    if hides(name, bare) and "=" in sep and len(bare) >= 12 and re.search(r"\d", bare):
        return start + HIDDEN
    return match[0]


def mask_text(text: str) -> str:
    """
    :param text: a traceback, a message, source lines
    :return: with ``<hidden>`` in place of what stands behind a name of a secret and ``=`` or ``:``, of passwords in URLs
        (``ftp://user:password@host``), and of ``Authorization: Bearer ...``
    """
    if "=" not in text and ":" not in text and "earer" not in text:
        return text
    text = _BEARER.sub(rf"\g<start>{HIDDEN}", text)
    text = _URL_PASSWORD.sub(rf"\g<start>{HIDDEN}", text)
    pos, parts = 0, []
    while (match := _NAMED.search(text, pos)) is not None:
        masked = _mask_match(match)
        # What is not hidden may itself have such a name: ``f"token = {x}"``, ``opts: dict = {"password": ...}``.
        is_hidden = masked != match[0]
        end = match.end("name")
        if is_hidden:
            rest = _REST_OF_BARE.match(text, match.end()) if match["bare"] else None
            end = match.end() if rest is None else rest.end()
        parts += [text[pos : match.start()], masked if is_hidden else text[match.start() : end]]
        pos = end
    return "".join([*parts, text[pos:]])


def hidden_locals(names: Mapping[str, object]) -> set[str]:
    """
    :param names: local variables
    :return: names of those that are not to be shown; also of ``value`` where ``key`` says that it is that of a password
    """
    result = {name for name, value in list(names.items()) if hides(name, value)}
    if any(type(names.get(n)) is str and is_secret_name(str(names.get(n))) for n in _NAMES_OF_NAMES):
        result.update(n for n in _NAMES_OF_VALUES if isinstance(names.get(n), (str, bytes)) and names[n])
    return result


def hidden_args(args: Sequence[object]) -> list[int]:
    """
    :param args: of a command line, options as ``++name value``, ``--name value``, ``-name value``
    :return: which of them are values of secrets
    """
    result = []
    name: str | None = None  # of the option whose value comes now
    for i, arg in enumerate(args):
        if name is not None and hides(name, arg):
            result.append(i)
            name = None
        else:
            is_name = isinstance(arg, str) and arg[:1] in ("+", "-") and "=" not in arg[:_MAX_NAME_LEN]
            name = str(arg).lstrip("+-") if is_name else None
    return result


def mask_args(args: Sequence[str]) -> list[str]:
    """
    :param args: of a command line
    :return: the same without values of secrets, see :func:`hidden_args` and :func:`mask_text`
    """
    hidden = set(hidden_args(args))
    return [HIDDEN if i in hidden else mask_text(str(arg)) for i, arg in enumerate(args)]
