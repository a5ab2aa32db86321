"""
The config: options from Python files and the command line, with typed access; and the global config.
"""

from __future__ import annotations

import builtins
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from returnn._config import files, pickling
from returnn._config.cmdline import parse_command_line, parse_override
from returnn._config.files import CONFIG_MODULE_NAME
from returnn._config.module import install_config_module
from returnn._state import find_global_config, state
from returnn.errors import OptionError
from returnn.log import log
from returnn.util.exception_hook import init_better_exchook
from returnn.util.strings import to_bool

__all__ = [
    "Config",
    "set_global_config",
    "get_global_config",
    "global_config_ctx",
    "SubProcCopyGlobalConfigPreInitFunc",
    "load_config",
    "split_command_line",
    "CONFIG_MODULE_NAME",
]


class Config:
    """
    Options of two kinds: *typed* ones from Python and json files, and *untyped* ones, texts from the command line
    for keys that no file defines. Getters look at the typed ones first, then the untyped ones, then use the default.

    Any in the signatures: values of options have any type.
    """

    def __init__(self, items: Mapping[str, Any] | None = None) -> None:
        """
        :param items: typed options
        """
        #: untyped options; the text is split at commas
        self.dict: builtins.dict[str, builtins.list[str]] = {}
        #: typed options; also the namespace of the executed config files
        self.typed_dict: builtins.dict[str, Any] = {}
        #: file names given to load_file, in order
        self.files: builtins.list[str] = []
        self.network_topology_json = None
        #: keys which the command line has set
        self.command_line_keys: builtins.set[str] = set()
        #: keys which the getters were asked for, for the report of options that nothing reads
        self._names_read: builtins.set[str] = set()
        if items is not None:
            self.typed_dict.update(items)

    # --- loading

    def load_file(self, f: str | TextIO) -> None:
        """
        :param f: file name or text stream. Python if it starts with ``#!`` or the name ends with ``.py``; else json if
            it starts with a brace; else lines of key and value
        :raises ConfigFileError: with file and line
        """
        filename, content = files.read_source(f)
        if isinstance(f, str):
            self.files.append(f)
        kind = files.file_type(content, filename)
        if kind == "py":
            install_config_module()
            with _loading(self):
                if files.is_in_package(filename):
                    self.update(files.import_from_package(filename))
                else:
                    files.execute_python(content, filename, self.typed_dict, self)
        elif kind == "js":
            self.update(files.parse_json(content, filename))
        else:
            for key, value in files.parse_lines(content, filename):
                self.add_line(key, value)

    @classmethod
    def get_config_file_type(cls, f: str) -> str:
        """
        :param f: file name
        :return: "py" (starts with ``#!``), "js" (starts with a brace), else "txt"
        """
        return files.file_type(files.read_source(f)[1])

    def parse_cmd_args(self, args: Sequence[str]) -> None:
        """
        Apply command-line options: ``++key value``, ``--key value``, ``--config file`` (loaded first), and the short
        forms of :mod:`returnn.cli_syntax`.

        :param args: without program name and config file names
        :raises SystemExit: 0 after ``--help`` or ``--version``; 2 for options that cannot be understood
        :raises ConfigError: ``++key`` without value, or something else which is no option
        """
        parsed = parse_command_line(args)
        for filename in parsed.config_files:
            self.load_file(filename)
        self._apply_overrides(parsed.overrides)

    def _apply_overrides(self, overrides: Sequence[tuple[str, str]]) -> None:
        for key, value in overrides:
            self.command_line_keys.add(key)
            self.add_line(key, value)

    def add_line(self, key: str, value: str) -> None:
        """
        Set an option from text.

        :param key: if typed, it is overwritten, and the text is parsed as a literal unless the old value is a str;
            otherwise it becomes an untyped option. "include" loads files
        :param value: the text
        """
        if key in self.typed_dict:
            old = self.typed_dict[key]
            if isinstance(old, str):
                self.typed_dict[key] = value
                return
            parsed, new_value = parse_override(value, old)
            if not parsed:
                print(
                    f"WARNING: can't evaluate config param {key!r} to previous type: {type(old)}. Keeping as string.",
                    file=log.v1,
                )
            self.typed_dict[key] = new_value
            return
        values = value.split(",") if value.find(",") > 0 else [value]
        if key == "include":
            for filename in values:
                self.load_file(filename)
        else:
            self.dict[key] = values

    def set(self, key: str, value: Any) -> None:
        """
        :param key: option
        :param value: typed
        """
        self.typed_dict[key] = value

    def update(self, dikt: Mapping[str, Any]) -> None:
        """
        :param dikt: typed options
        """
        for key, value in dikt.items():
            self.set(key, value)

    # --- access

    def has(self, key: str) -> builtins.bool:
        """:return: whether the option is set, typed or untyped"""
        self._names_read.add(key)
        return key in self.typed_dict or key in self.dict

    def is_typed(self, key: str) -> builtins.bool:
        """:return: whether the option is set as Python object"""
        self._names_read.add(key)
        return key in self.typed_dict

    def is_of_type(self, key: str, types: type | tuple[type, ...]) -> builtins.bool:
        """:return: whether it is typed and an instance"""
        return self.is_typed(key) and isinstance(self.typed_dict[key], types)

    def get_of_type(self, key: str, types: type | tuple[type, ...], default: Any = None) -> Any:
        """:return: the typed value if it is an instance, else the default"""
        return self.typed_dict[key] if self.is_of_type(key, types) else default

    def is_true(self, key: str, default: builtins.bool = False) -> builtins.bool | None:
        """:return: truth of the value; any object is possible"""
        if self.is_typed(key):
            return bool(self.typed_dict[key])
        return self.bool(key, default)

    def value(self, key: str, default: Any, index: builtins.int | None = None, list_join_str: str = ",") -> Any:
        """
        :param key: option
        :param default: if unset, or None
        :param index: only that element
        :param list_join_str: between the elements of a list
        :return: the value as str
        """
        if self.is_typed(key):
            value = self.typed_dict[key]
            if index is not None:
                return str(value[index])
            if isinstance(value, (tuple, list)):
                return list_join_str.join([str(v) for v in value])
            return default if value is None else str(value)
        if key in self.dict:
            values = self.dict[key]
            return list_join_str.join(values) if index is None else values[index]
        return default

    def typed_value(self, key: str, default: Any = None, index: builtins.int | None = None) -> Any:
        """
        :param key: option
        :param default: if unset; the index counts for it as well
        :param index: element of a list or tuple; other values only have index 0
        :return: the object itself. A text from the command line is parsed as a literal (``1000``, ``{"a": 1}``), or
            true/false in any case, else it stays a str
        """
        if self.is_typed(key):
            value = self.typed_dict[key]
        elif key in self.dict:
            value = self._parsed_untyped(key)
        else:
            value = default
        if index is None:
            return value
        if isinstance(value, (list, tuple)):
            return value[index]
        if index != 0:
            raise OptionError(key, expected=f"a list with an element {index}", got=value)
        return value

    def _parsed_untyped(self, key: str) -> Any:
        # The text is what joining gives back: it was split at the commas.
        return parse_override(",".join(self.dict[key]), ...)[1]

    def opt_typed_value(self, key: str, default: Any = None) -> Any:
        """:return: as :func:`typed_value` without index"""
        return self.typed_value(key, default)

    def int(self, key: str, default: Any, index: builtins.int = 0) -> Any:
        """:return: int, or None if it is set to None; a list gives its element"""
        if self.is_typed(key):
            value = self.typed_value(key, default=default, index=index)
            if value is not None and not isinstance(value, int):
                raise OptionError(key, expected="int", got=value)
            return value
        if key in self.dict:
            return int(self.value(key, default, index))
        return default

    def bool(self, key: str, default: Any, index: builtins.int = 0) -> Any:
        """:return: bool, or None if it is set to None; an empty text means the default"""
        if self.is_typed(key):
            value = self.typed_value(key, default=default, index=index)
            if isinstance(value, int):
                return bool(value)
            if value is not None:
                raise OptionError(key, expected="bool", got=value, todo="Write True or False, without quotes")
            return value
        if key in self.dict:
            text = self.value(key, default, index)
            return to_bool(text) if text else default
        return default

    def bool_or_other(self, key: str, default: Any = None, index: builtins.int = 0) -> Any:
        """:return: bool, or the object or text that is none"""
        if self.is_typed(key):
            return self.typed_value(key, default=default, index=index)
        if key in self.dict:
            text = self.value(key, default, index)
            if not text:
                return default
            try:
                return to_bool(text)
            except ValueError:
                return text
        return default

    def float(self, key: str, default: Any, index: builtins.int = 0) -> Any:
        """:return: float or int, or None if it is set to None; a str is converted"""
        if self.is_typed(key):
            value = self.typed_value(key, default=default, index=index)
            if isinstance(value, str):
                value = float(value)
            if value is not None and not isinstance(value, (int, float)):
                raise OptionError(key, expected="float", got=value)
            return value
        if key in self.dict:
            return float(self.value(key, default, index))
        return default

    def list(self, key: str, default: Any = None) -> Any:
        """:return: new list; a single value gives a list with one element. None as default means the empty list"""
        if default is None:
            default = []
        if self.is_typed(key):
            value = self.typed_dict[key]
            if value is None:
                return default
            return list(value) if isinstance(value, (tuple, list)) else [value]
        if key in self.dict:
            return list(self.dict[key])
        return default

    def int_list(self, key: str, default: Any = None) -> Any:
        """:return: as :func:`list`, of int"""
        if self.is_typed(key):
            values = self.list(key, default)
            for value in values:
                if not isinstance(value, int):
                    raise OptionError(key, expected="list of int", got=self.typed_dict[key])
            return values
        if key in self.dict:
            return [int(text) for text in self.dict[key]]
        return [] if default is None else default

    def float_list(self, key: str, default: Any = None) -> Any:
        """:return: as :func:`list`, of float or int"""
        if self.is_typed(key):
            values = self.list(key, default)
            for value in values:
                if not isinstance(value, (int, float)):
                    raise OptionError(key, expected="list of float", got=self.typed_dict[key])
            return values
        if key in self.dict:
            return [float(text) for text in self.dict[key]]
        return [] if default is None else default

    def int_pair(self, key: str, default: Any = None) -> Any:
        """:return: tuple of two int; a single value counts twice. Untyped: "3:4" """
        if default is None:
            default = (0, 0)
        if self.is_typed(key):
            value = self.typed_dict[key]
            pair = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
            if len(pair) != 2 or not all(isinstance(v, int) for v in pair):
                raise OptionError(key, expected="int, or two ints", got=value)
            return pair
        if key in self.dict:
            parts = self.value(key, "").split(":")
            if len(parts) == 1:
                parts = parts * 2
            if len(parts) != 2:
                raise OptionError(key, expected="int, or two ints as 3:4", got=self.value(key, ""))
            return int(parts[0]), int(parts[1])
        return default

    # --- pickling

    def __getstate__(self) -> builtins.dict[str, Any]:
        """:return: everything by value: functions and classes of the config with their code"""
        return {
            "data": pickling.dump_config(self),
            "is_global": get_global_config(raise_exception=False) is self,
            "pid": os.getpid(),
        }

    def __setstate__(self, pickled: builtins.dict[str, Any]) -> None:
        """
        :param pickled: from __getstate__. In another process, the copy of the global config becomes the global config
        """
        Config.__init__(self)
        if pickled["is_global"] and pickled["pid"] != os.getpid():
            set_global_config(self)
        pickling.load_config_state(self, pickled["data"])


@contextlib.contextmanager
def _loading(config: Config) -> Iterator[None]:
    earlier = state.loading_config
    state.loading_config = config
    try:
        yield
    finally:
        state.loading_config = earlier


def set_global_config(config: Config | None) -> None:
    """
    :param config: becomes the global one. None: there is no explicit one any more
    """
    state.global_config = config


def get_global_config(
    raise_exception: bool = True, auto_create: bool = False, *, return_empty_if_none: bool = False
) -> Any:
    """
    :param raise_exception: if there is none
    :param auto_create: if there is none, create an empty one, which becomes the global one
    :param return_empty_if_none: if there is none, return a new empty one, which does not become the global one
    :return: the one of :func:`set_global_config`, or the variable ``config`` of the main module or of
        ``returnn.__main__`` (if that is already imported). Config | None, but Any: callers rely on it being there
    """
    config = find_global_config()
    if config is not None:
        return config
    if auto_create:
        config = Config()
        set_global_config(config)
        return config
    if return_empty_if_none:
        return Config()
    if raise_exception:
        raise Exception("No global config found.")
    return None


@contextlib.contextmanager
def global_config_ctx(config: Config | None) -> Iterator[Config | None]:
    """
    :param config: is the global config inside the block; the earlier one is restored at the end
    """
    earlier = state.global_config
    set_global_config(config)
    try:
        yield config
    finally:
        set_global_config(earlier)


class SubProcCopyGlobalConfigPreInitFunc:
    """Picklable function: makes a new process ready with a copy of the global config of this one, and its log."""

    def __init__(self) -> None:
        self.global_config: Config | None = get_global_config(raise_exception=False)

    def __call__(self) -> None:
        """Call it first in the new process."""
        init_better_exchook()
        set_global_config(self.global_config)
        if self.global_config is not None:
            log.init_by_config(self.global_config)
        elif not log.initialized:
            log.initialize(verbosity=[5])


def split_command_line(args: Sequence[str]) -> tuple[builtins.list[str], builtins.list[str]]:
    """
    :param args: without the program name
    :return: config file names (all before the first argument that starts with ``-`` or ``+``), options
    """
    for i, arg in enumerate(args):
        if arg.startswith(("-", "+")):
            return list(args[:i]), list(args[i:])
    return list(args), []


def load_config(
    config_filename: str | None = None,
    command_line_options: Sequence[str] = (),
    default_config: Mapping[str, Any] | None = None,
    extra_updates: Mapping[str, Any] | None = None,
    *,
    on_created: Callable[[Config], None] | None = None,
) -> Config:
    """
    Make a Config from all sources. Later ones win: default_config; config files (with ``--config`` files last);
    extra_updates; ``++key value`` options. The config files see options and extra_updates while loading.

    :param config_filename: loaded before the files on the command line
    :param command_line_options: config file names, then options
    :param default_config: typed options
    :param extra_updates: typed options
    :param on_created: called with the new Config before anything is loaded, to make it the global one
    :raises ConfigError: a file or an option is wrong
    :raises SystemExit: see :func:`Config.parse_cmd_args`
    """
    config = Config()
    if on_created:
        on_created(config)
    filenames, options = split_command_line(command_line_options)
    parsed = parse_command_line(options)
    config.update(default_config or {})
    config.update(extra_updates or {})
    # Each --config file comes first, so that the others see it, and is applied again at the end, where it wins.
    first_loads = [_TrackedLoad(config, filename) for filename in parsed.config_files]
    config._apply_overrides(parsed.overrides)
    for filename in ([config_filename] if config_filename else []) + filenames:
        config.load_file(filename)
    config.update(extra_updates or {})
    for load in first_loads:
        load.apply_again()
    config._apply_overrides(parsed.overrides)
    return config


class _TrackedLoad:
    """
    Loads a file now, and applies it again later: from memory if nothing that it read has changed,
    so that side effects (downloads, random choices) happen only once.
    """

    def __init__(self, config: Config, filename: str) -> None:
        self._config = config
        self._filename = filename
        before = dict(config.typed_dict)
        before_untyped = {key: list(value) for key, value in config.dict.items()}
        earlier_reads, config._names_read = config._names_read, set()
        config.load_file(filename)
        reads, config._names_read = config._names_read, config._names_read | earlier_reads
        stored, loaded, sees_everything = files.module_level_names(filename)
        after = config.typed_dict
        changed = {key for key in after if key not in before or after[key] is not before[key]}
        # A global that the file assigns as well was assigned before it was read: else the first load had failed.
        self._inputs = reads | (loaded - stored - changed)
        self._input_values = {key: self._get(key, before, before_untyped) for key in self._inputs}
        self._repeatable = not sees_everything
        self._updates = {key: after[key] for key in after if key in stored or key in changed}

    @staticmethod
    def _get(key: str, typed: Mapping[str, Any], untyped: Mapping[str, Any]) -> Any:
        return (key in typed, typed.get(key), untyped.get(key))

    def _inputs_unchanged(self) -> bool:
        for key, (was_typed, value, untyped) in self._input_values.items():
            typed_dict = self._config.typed_dict
            if (key in typed_dict) != was_typed or typed_dict.get(key) is not value:
                return False
            if self._config.dict.get(key) != untyped:
                return False
        return True

    def apply_again(self) -> None:
        """As if the file was loaded once more."""
        if self._repeatable and self._inputs_unchanged():
            self._config.typed_dict.update(self._updates)
            self._config.files.append(self._filename)
        else:
            self._config.load_file(self._filename)
