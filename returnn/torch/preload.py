"""The option ``preload_from_files``: parameters of a model from other checkpoints."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from returnn.errors import CheckpointError, ConfigError, OptionError
from returnn.log import log
from returnn.options.checkpoint import CheckpointOptions
from returnn.options.loading import LoadingOptions
from returnn.options.registry import closest_names
from returnn.torch.checkpoint import LoadReport, find_checkpoint_file, get_model_state, load_file, load_model_state
from returnn.util.fwd_compat import get_fwd_compat_kwargs

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["PreloadEntry", "Preloads"]

_OPTION = "preload_from_files"


@dataclasses.dataclass(frozen=True)
class PreloadEntry:
    """One entry of the option, checked."""

    name: str
    filename: str | None
    checkpoint_key: str | None = "model"
    prefix: str = ""
    pattern: str | None = None
    ignore_params: tuple[str, ...] = ()
    ignore_params_prefixes: tuple[str, ...] = ()
    var_name_mapping: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignore_missing: bool = False
    init_for_train: bool | str = False  # "always": at every start, and never part of own checkpoints
    custom_missing_load_func: Callable[..., torch.Tensor | None] | None = None

    @classmethod
    def from_dict(cls, name: str, opts: object) -> PreloadEntry:
        """
        :param name: key in the option
        :param opts: value in the option
        :raises ConfigError: unknown keys, wrong types, or no filename
        """
        where = f'{_OPTION}["{name}"]'
        if not isinstance(opts, Mapping):
            raise OptionError(_OPTION, expected='a dict with "filename"', got=opts, where=f'entry "{name}"')
        known = [f.name for f in dataclasses.fields(cls) if f.name != "name"]
        for key in opts:
            if key not in known:
                guess = closest_names(str(key), known)
                raise ConfigError(
                    f"option {where}: unknown key {key!r}."
                    + (f" Did you mean {guess[0]!r}?" if guess else "")
                    + f" Known are {', '.join(known)}."
                )
        if "filename" not in opts:
            raise ConfigError(
                f'option {where}: "filename" is missing. Give the checkpoint, or None with "prefix" or "pattern".'
            )
        entry = cls(name=name, **{**opts, **_as_tuples(where, opts)})
        entry._check(where)
        return entry

    def _check(self, where: str) -> None:
        if self.filename is not None and not isinstance(self.filename, (str, os.PathLike)):
            raise OptionError(_OPTION, expected="a path or None as filename", got=self.filename, where=where)
        if self.filename is None and not (self.prefix or self.pattern):
            raise ConfigError(
                f'option {where}: filename = None needs "prefix" or "pattern": the parameters that keep their initial values.'
            )
        if self.filename is not None and self.pattern:
            raise ConfigError(
                f'option {where}: "pattern" is only possible with filename = None. Use "ignore_params" to leave out parameters.'
            )
        if self.init_for_train not in (True, False, "always"):
            raise OptionError(
                _OPTION, expected='True, False or "always" as init_for_train', got=self.init_for_train, where=where
            )
        if not isinstance(self.prefix, str):
            raise OptionError(_OPTION, expected="str as prefix", got=self.prefix, where=where)
        if not isinstance(self.var_name_mapping, Mapping):
            raise OptionError(
                _OPTION,
                expected="a dict {model name: name in file} as var_name_mapping",
                got=self.var_name_mapping,
                where=where,
            )
        if self.custom_missing_load_func is not None and not callable(self.custom_missing_load_func):
            raise OptionError(
                _OPTION,
                expected="a function as custom_missing_load_func",
                got=self.custom_missing_load_func,
                where=where,
            )

    def is_active(self, *, train: bool, first_train_epoch: bool) -> bool:
        """
        :param train: the task trains (or only initializes) the model
        :param first_train_epoch: training, and no own checkpoint is continued
        :return: whether to load it
        """
        if self.init_for_train == "always":
            return True
        return first_train_epoch if self.init_for_train else not train

    def is_ignored(self, param_name: str) -> bool:
        """
        :param param_name: name in the model
        :return: whether the user excluded it
        """
        return param_name in self.ignore_params or param_name.startswith(self.ignore_params_prefixes or ("\0",))

    def initial_names(self, model_names: list[str]) -> set[str]:
        """
        :param model_names: all parameters and buffers of the model
        :return: for filename None: those that may keep their initial values
        """
        if self.pattern:
            return {n for n in model_names if fnmatch.fnmatchcase(n, self.pattern) and n.startswith(self.prefix)}
        return {n for n in model_names if n.startswith(self.prefix)}


def _as_tuples(where: str, opts: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    res: dict[str, tuple[str, ...]] = {}
    for key in ("ignore_params", "ignore_params_prefixes"):
        value = opts.get(key) or ()
        if isinstance(value, str) or not isinstance(value, (list, tuple, set, frozenset)):
            raise OptionError(_OPTION, expected=f"a list of names as {key}", got=value, where=where)
        res[key] = tuple(value)
    return res


class Preloads:
    """
    The active entries of ``preload_from_files``. Use: build, ask for :meth:`provided_names`, load the main checkpoint, :meth:`apply`.
    """

    def __init__(
        self,
        opts: Mapping[str, Any] | None,
        *,
        train: bool,
        first_train_epoch: bool,
        allow_unsafe: bool = False,
    ):
        """
        :param opts: value of the option. Any: checked here
        :param train: the task trains (or only initializes) the model
        :param first_train_epoch: training, and no own checkpoint is continued
        :param allow_unsafe: option ``unsafe_load``
        :raises ConfigError: wrong options
        """
        if opts is not None and not isinstance(opts, Mapping):
            raise OptionError(_OPTION, expected="a dict of dicts", got=opts)
        # Reverse order, so that the smallest key is loaded last and wins.
        entries = [PreloadEntry.from_dict(name, (opts or {})[name]) for name in sorted(opts or {}, reverse=True)]
        self.entries = [e for e in entries if e.is_active(train=train, first_train_epoch=first_train_epoch)]
        self._train = train
        self._allow_unsafe = allow_unsafe
        # By entry name: state with the names of the model, of those files that are already read.
        self._states: dict[str, dict[str, torch.Tensor]] = {}

    @classmethod
    def from_config(
        cls, config: Config | Mapping[str, Any], *, is_training: bool, is_first_train_epoch: bool
    ) -> Preloads:
        """
        :param config:
        :param is_training: the task trains (or only initializes) the model
        :param is_first_train_epoch: training, and no own checkpoint is continued
        :raises ConfigError: wrong options
        """
        return cls(
            CheckpointOptions.from_config(config).preload_from_files,
            train=is_training,
            first_train_epoch=is_first_train_epoch,
            allow_unsafe=LoadingOptions.from_config(config).allow_unsafe,
        )

    def __bool__(self) -> bool:
        """Whether any entry is active."""
        return bool(self.entries)

    def provided_names(self, model: torch.nn.Module) -> set[str]:
        """
        Reads the files.

        :param model:
        :return: names of the model that need not be in the main checkpoint
        :raises CheckpointError: a file cannot be read
        """
        own_names = list(model.state_dict())
        provided: set[str] = set()
        for entry in self.entries:
            if entry.filename is None:
                provided |= entry.initial_names(own_names)
                continue
            state = self._load_state(entry)
            provided |= set(own_names).intersection(state)
            if entry.custom_missing_load_func is not None:
                provided |= {n for n in own_names if n.startswith(entry.prefix)}
        return provided

    def apply(self, model: torch.nn.Module) -> list[LoadReport]:
        """
        Load the active entries into the model, and log a summary of each.

        :param model: after the main checkpoint was loaded
        :return: what each file gave
        :raises CheckpointError: a file cannot be read, or does not fit
        """
        reports = []
        for entry in self.entries:
            if entry.filename is None:
                continue
            reports.append(self._apply_entry(entry, model))
        for entry in self.entries:
            if entry.init_for_train == "always":
                self._exclude_from_checkpoints(entry, model)
        self._states.clear()
        return reports

    def _load_state(self, entry: PreloadEntry) -> dict[str, torch.Tensor]:
        """:return: state of the file with names of the model, without ignored ones"""
        if entry.name not in self._states:
            assert entry.filename is not None
            try:
                filename = find_checkpoint_file(entry.filename)
            except CheckpointError as exc:
                raise CheckpointError(f'option {_OPTION}["{entry.name}"]: {exc}') from exc
            # Mapped: asking for the names reads no tensors, and parts that are not used are never read.
            obj = load_file(filename, weights_only=not self._allow_unsafe, mmap=True)
            state = get_model_state(obj, filename=filename, key=entry.checkpoint_key)
            self._states[entry.name] = _rename(entry, state, filename)
        return self._states[entry.name]

    def _apply_entry(self, entry: PreloadEntry, model: torch.nn.Module) -> LoadReport:
        state = self._load_state(entry)
        filename = str(entry.filename)
        own = model.state_dict()
        if entry.custom_missing_load_func is not None:
            state = {**state, **_custom_missing(entry, own, state)}
        if own and not set(own).intersection(state):
            raise CheckpointError(
                f'option {_OPTION}["{entry.name}"]: no parameter of {filename} fits to the model. '
                f"The file has, after prefix and mapping: {', '.join(list(state)[:5]) or 'nothing'}. The model has: {', '.join(list(own)[:5])}."
            )
        report = load_model_state(model, state, allow_missing=True, filename=filename)
        missing = tuple(n for n in report.missing if n.startswith(entry.prefix) and not entry.is_ignored(n))
        report = dataclasses.replace(report, missing=missing)
        if missing and not entry.ignore_missing:
            raise ConfigError(
                f"Missing keys and ignore_missing=False: {set(missing)} "
                f'(option {_OPTION}["{entry.name}"], file {filename}). '
                "Set ignore_missing = True to keep their initial values, or list them in ignore_params."
            )
        print(f"Pre-load weights for key '{entry.name}' from {report.summary()}", file=log.v3)
        return report

    def _exclude_from_checkpoints(self, entry: PreloadEntry, model: torch.nn.Module) -> None:
        """Makes loaded parameters non-persistent buffers: not trained, not part of the model's own state_dict."""
        names = set(self._load_state(entry)) if entry.filename is not None else set()
        params = dict(model.named_parameters(remove_duplicate=False))
        buffers = dict(model.named_buffers(remove_duplicate=False))
        tied = {id(params[name]) for name in names if name in params}
        tied |= {id(buffers[name]) for name in names if name in buffers}
        frozen: dict[int, torch.Tensor] = {}
        for module in model.modules():
            for local_name, param in list(module._parameters.items()):
                if param is not None and id(param) in tied:
                    # Shared parameters stay shared.
                    value = frozen.setdefault(id(param), param.detach())
                    del module._parameters[local_name]
                    module.register_buffer(local_name, value, persistent=False)
            for local_name, buffer in module._buffers.items():
                if buffer is not None and id(buffer) in tied:
                    module._non_persistent_buffers_set.add(local_name)


def _rename(entry: PreloadEntry, state: Mapping[str, torch.Tensor], filename: str) -> dict[str, torch.Tensor]:
    renamed = {entry.prefix + name: value for name, value in state.items()}
    absent = [f"{own} (from {other})" for own, other in entry.var_name_mapping.items() if other not in renamed]
    if absent and not entry.ignore_missing:
        raise CheckpointError(
            f'option {_OPTION}["{entry.name}"]: var_name_mapping names parameters that {filename} does not have (names after adding the '
            f"prefix): {', '.join(absent[:5])}. It has, for example: {', '.join(list(renamed)[:5])}."
        )
    mapped = {own: renamed[other] for own, other in entry.var_name_mapping.items() if other in renamed}
    used = set(entry.var_name_mapping.values())
    result = {**{name: value for name, value in renamed.items() if name not in used}, **mapped}
    return {name: value for name, value in result.items() if not entry.is_ignored(name)}


def _custom_missing(
    entry: PreloadEntry, own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """:return: what the user's function gives for keys of the model below the prefix that the file does not have"""
    func = entry.custom_missing_load_func
    assert func is not None
    found: dict[str, torch.Tensor] = {}
    for name, value in own.items():
        if name in state or not name.startswith(entry.prefix) or entry.is_ignored(name):
            continue
        tensor = func(name=name, shape=value.shape, preload_model_state=state, **get_fwd_compat_kwargs())
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor) or tensor.shape != value.shape:
            got = list(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ConfigError(
                f'option {_OPTION}["{entry.name}"]: custom_missing_load_func returned {got} for {name}, '
                f"expected None or a tensor of shape {list(value.shape)}."
            )
        found[name] = tensor
    return found
