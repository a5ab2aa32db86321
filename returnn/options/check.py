"""Compares the names that a config sets with the registry: likely typos, options without effect, options not supported."""

from __future__ import annotations

import ast
import dataclasses
import functools
import os
import types
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import returnn.options.sections  # noqa: F401  # declares all options
from returnn._config.cmdline import parse_override
from returnn.errors import ConfigError, NotSupportedError
from returnn.log import log
from returnn.options.loading import LoadingOptions
from returnn.options.registry import Option, all_options, closest_names, lookup, options_read

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = [
    "Problem",
    "find_problems",
    "options_without_effect",
    "report_options",
    "unread_options",
    "report_unread_options",
    "unread_command_line_keys",
]

Kind = Literal["typo", "later", "refused"]
#: Keys that the loader itself puts into the namespace of the config.
_OWN_NAMES = ("config",)
#: Methods of Config whose first argument is the name of an option.
_GETTERS = (
    *(
        "has",
        "is_typed",
        "is_of_type",
        "get_of_type",
        "is_true",
        "value",
        "typed_value",
        "opt_typed_value",
        "int",
        "bool",
    ),
    *("bool_or_other", "float", "list", "int_list", "float_list", "int_pair", "get", "pop", "setdefault"),
)
#: Tasks which act by options. The others do next to nothing, or run functions of the user.
_TASKS_WITH_OPTIONS = ("train", "eval", "forward", "initialize_model")
#: Read when it is first needed, not when the engine is initialised.
_READ_LATE = (
    *("file_cache_opts", "output_file", "forward_override_hdf_output"),
    *(
        "forward_callback",
        "sort_dataset",
        "forward_auto_split_batch_on_oom",
    ),  # if init_forward is that of a custom engine
)
#: Options that hold datasets.
_DATASETS = ("train", "dev", "eval", "eval_datasets", "forward", "forward_data")
#: Job layers write these into each config of a task, whatever it does.
_WRITTEN_BY_JOBS = ("output_file", "forward_override_hdf_output")
#: So many names are shown at most.
_NUM_SHOWN = 5
_SIMPLE_TYPES = (bool, int, float, str, dict, list, tuple, type(None))


@dataclasses.dataclass(frozen=True)
class Problem:
    """One option that does not do what the user may think."""

    name: str
    kind: Kind
    text: str  # one or two sentences


def report_options(config: Config, task: str) -> None:
    """
    Check all names of the loaded config, before anything expensive happens. Warnings go to ``log.v1``. The options
    of other tasks are named in one line: all at ``log.v4``, else the first few at ``log.v3``, without those that
    just make the config serve several tasks.

    :param config: after loading, with the overrides of the command line
    :param task: the task that will run
    :raises NotSupportedError: an option is set which will not be supported, and the run would not be what the config asks for
    :raises ConfigError: ``strict_config`` is set and there is any problem; names all of them
    """
    LoadingOptions.from_config(config).warn()
    problems = find_problems(config)
    if config.is_true("strict_config") and problems:
        raise ConfigError(_joined("strict_config is set, and the config has", problems))
    for problem in problems:
        if problem.kind != "refused":
            print("WARNING:", problem.text, file=log.v1)
    refused = [p for p in problems if p.kind == "refused"]
    if refused:
        raise NotSupportedError(refused[0].text if len(refused) == 1 else _joined("the config has", refused))
    without_effect = options_without_effect(config, task)
    if without_effect:
        shown = _worth_showing(config, without_effect)
        text = f"Options without effect in the task {task}: "
        if shown != without_effect and log.verbose and log.verbose[4]:
            print(text + ", ".join(without_effect), file=log.v4)
        elif shown:
            more = len(shown) - _NUM_SHOWN
            names = shown if more <= 1 else [*shown[:_NUM_SHOWN], f"and {more} more"]
            print(text + ", ".join(names), file=log.v3)


def _worth_showing(config: Config, names: list[str]) -> list[str]:
    """
    One config often serves several tasks, and then holds their datasets and functions; these are no surprise.

    :return: without these, unless the command line sets them; those of the command line come first
    """
    on_command_line = [name for name in names if name in config.command_line_keys]
    others = [name for name in names if name not in on_command_line and not _is_part_of_a_task(config, name)]
    return on_command_line + others


def _is_part_of_a_task(config: Config, name: str) -> bool:
    return name in _DATASETS or name in _WRITTEN_BY_JOBS or callable(config.typed_dict.get(name))


def find_problems(config: Config) -> list[Problem]:
    """
    :param config:
    :return: all problems, in the order of the names in the config
    """
    problems = []
    usage = _Usage.of(config)
    for name, value, where in _given(config):
        option = lookup(name)
        if option is None:
            problem = _check_unknown(name, value, where, usage)
        else:
            problem = _check_known(option, name, value, where, usage)
        if problem is not None:
            problems.append(problem)
    return problems


def options_without_effect(config: Config, task: str) -> list[str]:
    """
    :param config:
    :param task:
    :return: given options that only act in other tasks than this one. Empty for tasks that run functions of the user
    """
    task = _same_options_as(task)
    if task not in _TASKS_WITH_OPTIONS:
        return []
    names = []
    for name, _, _ in _given(config):
        option = lookup(name)
        if option is not None and option.status == "supported" and option.tasks and task not in option.tasks:
            names.append(name)
    if task == "forward":
        names = [name for name in names if name != _dataset_of_forward(config)]
    return sorted(names)


def _dataset_of_forward(config: Config) -> str | None:
    """:return: option which holds the dataset of the task forward, if it is not the option forward itself"""
    given = [config.typed_dict.get(n, config.dict.get(n)) for n in ("forward", "forward_data")]
    value = next((v for v in given if v is not None), "eval")
    if isinstance(value, list) and len(value) == 1:  # untyped, from the command line
        value = value[0]
    if not isinstance(value, str):
        return None
    return value if value in ("train", "dev", "eval") else "eval_datasets"


def unread_options(config: Config, task: str) -> list[str]:
    """
    To be called when the engine has been initialised, so that all sections have been read.

    :param config:
    :param task:
    :return: given options that should act in this task, but that nobody has read
    """
    task = _same_options_as(task)
    read = options_read(config) | _names_read_directly(config)
    usage = _Usage.of(config)
    names = []
    for name, _, _ in _given(config):
        option = lookup(name)
        if option is None or option.status != "supported" or (option.tasks and task not in option.tasks):
            continue
        if name not in read and name not in usage.anywhere and name not in _READ_LATE:
            names.append(name)
    return sorted(names)


def report_unread_options(config: Config, task: str) -> None:
    """
    Name the options of :func:`unread_options` in one line at ``log.v2``.

    :param config:
    :param task:
    :raises ConfigError: there are any, and ``strict_config`` is set
    """
    names = unread_options(config, task)
    if not names:
        return
    text = f"options that are set, but that nothing reads in this run: {', '.join(names)}"
    if config.is_true("strict_config"):
        raise ConfigError(f"strict_config is set, and there are {text}. Remove them.")
    print("Note:", text, file=log.v2)


def unread_command_line_keys(config: Config) -> list[str]:
    """
    :param config: at the end of the run
    :return: keys given as ``++key value`` which the config does not define, and nobody has read
    """
    read = options_read(config) | _names_read_directly(config)
    usage = _Usage.of(config)
    return sorted(
        name
        for name in config.dict
        # A name that the config defines as well is its own, and it may use it in ways that cannot be seen.
        if name not in config.typed_dict and lookup(name) is None and name not in read and name not in usage.anywhere
    )


def _same_options_as(task: str) -> str:
    return "train" if task == "nop_init_net_train" else task


def _given(config: Config) -> Iterable[tuple[str, Any, str]]:  # Any: raw option value
    """:return: name, value, and where it was set, of each name that may be meant as an option"""
    files = ", ".join(os.path.basename(f) for f in dict.fromkeys(config.files)) or "the config"
    for name, value in list(config.typed_dict.items()):
        if not isinstance(name, str) or name in _OWN_NAMES or (name.startswith("__") and name.endswith("__")):
            continue
        yield name, value, files
    for name, value in list(config.dict.items()):
        if name not in config.typed_dict:
            # Not through a getter, since that would count as a use of the option.
            yield name, parse_override(",".join(value), ...)[1], "the command line"


def _check_unknown(name: str, value: object, where: str, usage: _Usage) -> Problem | None:
    if name.startswith(("_", "debug_")) or not isinstance(value, _SIMPLE_TYPES) or name in usage.anywhere:
        return None
    similar = closest_names(name, _suggestions())
    if not similar:
        return None
    return Problem(
        name,
        "typo",
        f'unknown option "{name}" in {where}: did you mean "{similar[0]}"? '
        'Nothing uses this name. Rename it, or start it with "_" if it is a name of your own.',
    )


def _check_known(option: Option, name: str, value: object, where: str, usage: _Usage) -> Problem | None:
    if option.status not in ("later", "refused") or not _is_set(value, option.default) or name in usage.in_functions:
        return None
    instead = option.instead.rstrip(".") + "." if option.instead else ""
    if option.status == "refused":
        return Problem(name, "refused", f'option "{name}" (in {where}) is not supported. {instead}'.rstrip())
    if name in usage.anywhere:  # a name of the user's own, e.g. hidden_size for the model
        return None
    return Problem(name, "later", f'option "{name}" (in {where}) has no effect here. {instead}'.rstrip())


def _is_set(value: object, default: object) -> bool:
    """:return: whether the value asks for something"""
    if value is None or value is False or (isinstance(value, str) and value.lower() in ("", "false", "none")):
        return False
    try:
        return bool(value != default)
    except Exception:  # arrays: comparing gives no single truth value
        return True


@functools.cache
def _suggestions() -> tuple[str, ...]:
    # A name without effect is no good answer to a typo.
    return tuple(name for o in all_options() if o.status == "supported" for name in (o.name, *o.aliases))


def _joined(start: str, problems: list[Problem]) -> str:
    lines = "".join(f"\n  - {p.text}" for p in problems)
    return f"{start} {len(problems)} problem{'s' if len(problems) > 1 else ''}:{lines}"


def _names_read_directly(config: Config) -> set[str]:
    """:return: names that were asked from the config object itself, e.g. by a custom engine"""
    names: Iterable[str] = config.__dict__.get("_names_read", ())
    return set(names)


@dataclasses.dataclass(frozen=True)
class _Usage:
    """Names that the code of the config uses, so that they may be the user's own."""

    in_functions: frozenset[str]  # globals and strings in functions and classes that the config defines
    anywhere: frozenset[str]  # these, and names that the source of the config reads

    @classmethod
    def of(cls, config: Config) -> _Usage:
        """:return: usage of names in all code of the config"""
        in_functions: set[str] = set()
        seen: set[int] = set()
        for name, value in list(config.typed_dict.items()):
            if name != "__builtins__":
                _collect_names(value, config.typed_dict, in_functions, seen)
        in_source: set[str] = set()
        for filename in dict.fromkeys(config.files):
            in_source |= _names_in_source(filename)
        return cls(frozenset(in_functions), frozenset(in_functions | in_source))


def _collect_names(obj: object, namespace: Mapping[str, object], names: set[str], seen: set[int]) -> None:
    """Add the global names and strings of all code that obj consists of and that was defined in this namespace."""
    if id(obj) in seen or isinstance(obj, (str, bytes, int, float, types.ModuleType)):
        return
    seen.add(id(obj))
    if isinstance(obj, types.FunctionType):
        if obj.__globals__ is namespace:
            _collect_names_of_code(obj.__code__, names)
            for cell in obj.__closure__ or ():
                try:
                    _collect_names(cell.cell_contents, namespace, names, seen)
                except ValueError:  # empty cell
                    continue
    elif isinstance(obj, functools.partial):
        for part in (obj.func, obj.args, obj.keywords):
            _collect_names(part, namespace, names, seen)
    elif isinstance(obj, (staticmethod, classmethod)):
        _collect_names(obj.__func__, namespace, names, seen)
    elif isinstance(obj, property):
        for accessor in (obj.fget, obj.fset, obj.fdel):
            _collect_names(accessor, namespace, names, seen)
    elif isinstance(obj, type):
        if obj.__module__ == namespace.get("__name__"):
            for part in vars(obj).values():
                _collect_names(part, namespace, names, seen)
    elif isinstance(obj, dict):
        for part in obj.values():
            _collect_names(part, namespace, names, seen)
    elif isinstance(obj, (list, tuple, set, frozenset)):
        for part in obj:
            _collect_names(part, namespace, names, seen)


def _collect_names_of_code(code: types.CodeType, names: set[str]) -> None:
    names.update(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            _collect_names_of_code(const, names)
        elif isinstance(const, str) and const.isidentifier():  # maybe config.typed_value("name")
            names.add(const)


def _names_in_source(filename: str) -> set[str]:
    """:return: names that the source of a Python config reads, directly or through the config object"""
    try:
        with open(filename, encoding="utf-8-sig", errors="replace") as f:
            tree = ast.parse(f.read().strip() + "\n")
    except (OSError, SyntaxError, ValueError):  # gone meanwhile, or not Python (json, line format)
        return set()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Load, ast.Del)):
            names.add(node.id)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _GETTERS:
            if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
                names.add(node.args[0].value)
    return names
