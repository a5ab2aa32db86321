"""
Pickling by value of what a config defines: functions with their code, classes with their content.

The pickle is for another process of the same program (same Python and same packages), not for storage.
The namespace of the config and the Config itself are references inside the pickle, so each function finds its globals.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import enum
import functools
import importlib
import io
import marshal
import pickle
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from returnn._config.files import CONFIG_MODULE_NAME
from returnn._config.module import install_config_module
from returnn.errors import ConfigError, DataFileError

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["dump_config", "load_config_state", "NotPicklable"]

_PROTOCOL = pickle.HIGHEST_PROTOCOL
# Entries of the namespace that Python or the loader puts there, and which the other process has on its own.
_SKIPPED_NAMES = frozenset(["__builtins__", "__loader__", "__spec__", "__cached__"])
_REF_CONFIG = "config"
_REF_NAMESPACE = "namespace"


class NotPicklable:
    """Stands in a worker process for an entry of the config that cannot be sent there. Any use is an error that says so."""

    def __init__(self, key: str, reason: str) -> None:
        """
        :param key: name in the config
        :param reason: why it cannot be pickled
        """
        self.__dict__["_key"] = key
        self.__dict__["_reason"] = reason

    def _fail(self, *_args: Any, **_kwargs: Any) -> Any:
        raise ConfigError(
            f'"{self._key}" of the config is not available in this worker process: it cannot be pickled'
            f" ({self._reason}). Create it inside of a function, at first use."
        )

    def __getattr__(self, item: str) -> Any:
        if item.startswith("__") and item.endswith("__"):  # what pickle, copy and inspect ask for
            raise AttributeError(item)
        return self._fail()

    __call__ = __getitem__ = __setitem__ = __iter__ = __len__ = __bool__ = __enter__ = __exit__ = __contains__ = _fail
    __add__ = __radd__ = __mul__ = __rmul__ = __float__ = __int__ = __index__ = _fail

    def __reduce__(self) -> tuple[Any, ...]:
        return NotPicklable, (self._key, self._reason)

    def __repr__(self) -> str:
        return f"<NotPicklable {self._key}: {self._reason}>"


class _EntryError(Exception):
    """An entry of the namespace cannot be pickled."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key = key
        self.reason = reason


def dump_config(config: Config, objs: Iterable[Any] = ()) -> bytes:
    """
    :param config: its whole state by value; entries which cannot be pickled become :class:`NotPicklable`
    :param objs: further objects in the same pickle, which may refer to anything of the config
    :return: for :func:`load_config_state`
    :raises ConfigError: one of the objs cannot be pickled
    """
    objs = list(objs)
    bad: dict[str, str] = {}
    while True:
        try:
            return _dump(config, objs, bad)
        except _EntryError as exc:
            bad[exc.key] = exc.reason


def _dump(config: Config, objs: list[Any], bad: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, config)
    items = [(key, value) for key, value in config.typed_dict.items() if key not in _SKIPPED_NAMES]
    state = {key: value for key, value in vars(config).items() if key != "typed_dict"}
    pickler.dump((list(sys.path), state, [key for key, _ in items], len(objs)))
    for key, value in items:
        if key in bad:
            value = NotPicklable(key, bad[key])
        try:
            pickler.dump(value)
        except Exception as exc:  # whatever the value's own reduce functions raise
            raise _EntryError(key, f"{type(exc).__name__}: {exc}") from exc
    for obj in objs:
        try:
            pickler.dump(obj)
        except Exception as exc:
            raise ConfigError(
                f"{type(obj).__name__} cannot be sent to a worker process: {type(exc).__name__}: {exc}."
                " Keep open files, locks and the like out of it, or create them at first use."
            ) from exc
    return buffer.getvalue()


def load_config_state(config: Config, data: bytes) -> list[Any]:
    """
    :param config: new; gets the state. Whoever needs it while loading (the global config) must know it already
    :param data: from :func:`dump_config`
    :return: the further objects
    """
    install_config_module()
    unpickler = _Unpickler(io.BytesIO(data), config)
    sys_path, state, keys, num_objs = unpickler.load()
    sys.path[:] = sys_path + [path for path in sys.path if path not in sys_path]
    vars(config).update(state)
    for key in keys:
        config.typed_dict[key] = unpickler.load()
    return [unpickler.load() for _ in range(num_objs)]


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, config: Config) -> None:
        super().__init__(file, protocol=_PROTOCOL)
        self._config = config
        self._namespace = config.typed_dict

    def persistent_id(self, obj: Any) -> str | None:
        if obj is self._namespace:
            return _REF_NAMESPACE
        if obj is self._config:
            return _REF_CONFIG
        return None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type):
            return self._reduce_class(obj) if _is_by_value(obj) else NotImplemented
        reduce = _REDUCERS.get(type(obj))
        return reduce(self, obj) if reduce else NotImplemented

    def _reduce_function(self, func: types.FunctionType) -> Any:
        if not _is_by_value(func):
            return NotImplemented
        state = {
            "__defaults__": func.__defaults__,
            "__kwdefaults__": func.__kwdefaults__,
            "__dict__": func.__dict__,
            "__module__": func.__module__,
            "__qualname__": func.__qualname__,
            "__doc__": func.__doc__,
            "__annotations__": func.__annotations__,
        }
        args = (marshal.dumps(func.__code__), self._globals_of(func), func.__name__, func.__closure__)
        return _make_function, args, state, None, None, _set_function_state

    def _globals_of(self, func: types.FunctionType) -> Any:
        if func.__globals__ is self._namespace:
            return self._namespace
        if func.__globals__.get("__name__") == CONFIG_MODULE_NAME and func.__globals__ is not self._namespace:
            # E.g. a function of a Config that is not this one: take what it uses.
            return _used_globals(func)
        module = sys.modules.get(func.__module__ or "")
        if module is not None and vars(module) is func.__globals__:
            return _ModuleGlobals(module.__name__)
        return _used_globals(func)

    def _reduce_cell(self, cell: types.CellType) -> Any:
        try:
            contents = (cell.cell_contents,)
        except ValueError:  # empty
            contents = ()  # type: ignore[assignment]
        return _make_cell, (), contents, None, None, _set_cell

    def _reduce_class(self, cls: type) -> Any:
        if issubclass(cls, enum.Enum):
            members = {member.name: member.value for member in cls}
            return _make_enum, (
                cls.__bases__,
                cls.__name__,
                cls.__qualname__,
                cls.__module__,
                members,
                _enum_extras(cls),
            )
        kwargs: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        slots = cls.__dict__.get("__slots__")
        if slots is not None:
            kwargs["__slots__"] = slots
        skipped = {"__dict__", "__weakref__", "__slots__", "_abc_impl", "__module__", "__qualname__"}
        skipped.update([slots] if isinstance(slots, str) else slots or ())
        state = {key: value for key, value in cls.__dict__.items() if key not in skipped}
        if "__orig_bases__" in cls.__dict__:  # typing.Generic looks at it when the class is created
            kwargs["__orig_bases__"] = cls.__dict__["__orig_bases__"]
        return _make_class, (type(cls), cls.__name__, cls.__bases__, kwargs), state, None, None, _set_class_state

    def _reduce_module(self, module: types.ModuleType) -> Any:
        if module.__name__ == CONFIG_MODULE_NAME:
            return install_config_module, ()
        return importlib.import_module, (module.__name__,)

    def _reduce_lru_cache(self, func: Any) -> Any:
        if not _is_by_value(func):
            return NotImplemented
        return _make_lru_cache, (func.__wrapped__, func.cache_parameters())

    def _reduce_property(self, obj: property) -> Any:
        return property, (obj.fget, obj.fset, obj.fdel, obj.__doc__)

    def _reduce_wrapped_method(self, obj: Any) -> Any:
        return type(obj), (obj.__func__,)

    def _reduce_cached_property(self, obj: Any) -> Any:
        return _make_cached_property, (obj.func, obj.attrname)

    def _reduce_type_var(self, obj: Any) -> Any:
        # Unpickled ones count as defined in this module.
        if obj.__module__ not in (CONFIG_MODULE_NAME, __name__):
            return NotImplemented
        return _make_type_var, (
            obj.__name__,
            obj.__constraints__,
            {"bound": obj.__bound__, "covariant": obj.__covariant__, "contravariant": obj.__contravariant__},
        )

    def _reduce_mapping_proxy(self, obj: Any) -> Any:
        return _make_mapping_proxy, (dict(obj),)

    def _reduce_dataclass_marker(self, obj: Any) -> Any:
        # Compared by identity in dataclasses, so by name.
        return _DATACLASS_MARKERS.get(id(obj), NotImplemented)


# Private: there is no other way to pickle the fields of a dataclass.
_DATACLASS_MARKERS: typing.Final[dict[int, str]] = {
    id(value): name
    for name, value in vars(dataclasses).items()
    if name in ("MISSING", "KW_ONLY", "_FIELD", "_FIELD_CLASSVAR", "_FIELD_INITVAR", "_HAS_DEFAULT_FACTORY")
}


_REDUCERS: typing.Final[dict[type, Any]] = {
    types.FunctionType: _Pickler._reduce_function,
    types.CellType: _Pickler._reduce_cell,
    types.ModuleType: _Pickler._reduce_module,
    type(functools.lru_cache(len)): _Pickler._reduce_lru_cache,
    property: _Pickler._reduce_property,
    staticmethod: _Pickler._reduce_wrapped_method,
    classmethod: _Pickler._reduce_wrapped_method,
    functools.cached_property: _Pickler._reduce_cached_property,
    typing.TypeVar: _Pickler._reduce_type_var,
    types.MappingProxyType: _Pickler._reduce_mapping_proxy,
    **{
        type(getattr(dataclasses, name)): _Pickler._reduce_dataclass_marker
        for name in _DATACLASS_MARKERS.values()
        if not isinstance(getattr(dataclasses, name), type)
    },
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, config: Config) -> None:
        super().__init__(file)
        self._refs: dict[str, Any] = {_REF_CONFIG: config, _REF_NAMESPACE: config.typed_dict}

    def persistent_load(self, pid: Any) -> Any:
        try:
            return self._refs[pid]
        except KeyError:
            raise DataFileError(f"Config pickle: unknown reference {pid!r}.") from None


def _is_by_value(obj: Any) -> bool:
    """:return: whether the other process cannot import it: defined in the config, or not at module level"""
    module_name = getattr(obj, "__module__", None)
    if module_name == CONFIG_MODULE_NAME:
        return True
    if module_name is None:
        return False
    module = sys.modules.get(module_name)
    if module is None:
        return isinstance(obj, types.FunctionType)
    found: Any = module
    for part in obj.__qualname__.split("."):
        if part == "<locals>":
            return True
        found = getattr(found, part, None)
        if found is None:
            # Types of C extensions may not tell where they are; the usual pickling reports it if so.
            return isinstance(obj, types.FunctionType)
    return isinstance(obj, types.FunctionType) and found is not obj


class _ModuleGlobals:
    """Pickles as the namespace of a module."""

    def __init__(self, module_name: str) -> None:
        self.module_name = module_name

    def __reduce__(self) -> tuple[Any, ...]:
        return _module_globals, (self.module_name,)


def _module_globals(module_name: str) -> dict[str, Any]:
    if module_name == "__main__" and "__mp_main__" in sys.modules:
        module_name = "__mp_main__"  # as multiprocessing names the main module of the parent
    return vars(importlib.import_module(module_name))


def _used_globals(func: types.FunctionType) -> dict[str, Any]:
    names: set[str] = set()
    codes = [func.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes.extend(const for const in code.co_consts if isinstance(const, types.CodeType))
    result = {name: func.__globals__[name] for name in sorted(names) if name in func.__globals__}
    result.setdefault("__name__", func.__globals__.get("__name__", CONFIG_MODULE_NAME))
    return result


def _make_function(
    code: bytes, namespace: dict[str, Any], name: str, closure: tuple[types.CellType, ...] | None
) -> types.FunctionType:
    if "__builtins__" not in namespace:
        namespace["__builtins__"] = __builtins__
    return types.FunctionType(marshal.loads(code), namespace, name, None, closure)


def _set_function_state(func: types.FunctionType, state: dict[str, Any]) -> None:
    func.__dict__.update(state.pop("__dict__"))
    for key, value in state.items():
        setattr(func, key, value)


def _make_cell() -> types.CellType:
    return types.CellType()


def _set_cell(cell: types.CellType, contents: tuple[Any, ...]) -> None:
    if contents:
        cell.cell_contents = contents[0]


def _make_class(metaclass: type, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> type:
    """
    Without the content of the class body, which may refer to the class; that is set afterwards. So nothing that user code
    does at class creation (metaclass, __init_subclass__) runs a second time: its results are part of the content.
    """
    new = abc.ABCMeta.__new__ if issubclass(metaclass, abc.ABCMeta) else type.__new__
    with _without_init_subclass(bases):
        cls: type = new(metaclass, name, bases, namespace)  # type: ignore[call-overload]
    return cls


@contextlib.contextmanager
def _without_init_subclass(bases: tuple[type, ...]) -> Iterator[None]:
    definers = [cls for base in bases for cls in base.__mro__ if "__init_subclass__" in vars(cls)]
    definer = definers[0] if definers else object
    # That of typing.Generic is needed, and builtin types cannot be changed.
    if definer is object or definer.__module__ == "typing":
        yield
        return
    original = vars(definer)["__init_subclass__"]
    type.__setattr__(definer, "__init_subclass__", classmethod(lambda cls, **_kwargs: None))
    try:
        yield
    finally:
        type.__setattr__(definer, "__init_subclass__", original)


# Set by Python itself, or read-only.
_CLASS_ATTRIBS_OF_PYTHON = frozenset(["__static_attributes__", "__firstlineno__", "__classcell__"])


def _set_class_state(cls: type, state: dict[str, Any]) -> None:
    for key, value in state.items():
        if key not in _CLASS_ATTRIBS_OF_PYTHON:
            type.__setattr__(cls, key, value)


def _enum_extras(cls: type[enum.Enum]) -> dict[str, Any]:
    """:return: what the class body defines besides the members"""
    own = {"_generate_next_value_", "_missing_"}
    return {
        key: value
        for key, value in cls.__dict__.items()
        if (isinstance(value, (types.FunctionType, property, staticmethod, classmethod)) or key == "__doc__")
        and key not in own
        and not (key.startswith("__") and key in ("__new__", "__reduce_ex__", "__format__"))
    }


def _make_enum(
    bases: tuple[type, ...], name: str, qualname: str, module: str, members: dict[str, Any], extras: dict[str, Any]
) -> type:
    metaclass: Any = type(bases[-1])
    namespace = metaclass.__prepare__(name, bases)
    namespace["__module__"] = module
    namespace["__qualname__"] = qualname
    for key, value in members.items():
        namespace[key] = value
    cls: type = metaclass(name, bases, namespace)
    for key, value in extras.items():
        type.__setattr__(cls, key, value)
    return cls


def _make_lru_cache(func: Any, params: dict[str, Any]) -> Any:
    return functools.lru_cache(**params)(func)


def _make_cached_property(func: Any, attrname: str | None) -> Any:
    result: Any = functools.cached_property(func)
    if attrname is not None:
        result.__set_name__(None, attrname)
    return result


def _make_mapping_proxy(content: dict[Any, Any]) -> types.MappingProxyType[Any, Any]:
    return types.MappingProxyType(content)


def _make_type_var(name: str, constraints: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return typing.TypeVar(name, *constraints, **kwargs)  # type: ignore[misc]
