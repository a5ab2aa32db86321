"""
From the name of a dataset class, or a dataset dict, to the dataset. Modules are imported on demand.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from returnn._state import state
from returnn.errors import ConfigError, DatasetError, DatasetOptionError, NotSupportedError
from returnn.log import log
from returnn.options.datasets import config_value, has_config
from returnn.util.file_cache import handle_cached_files
from returnn.util.kwargs import collect_class_init_kwargs
from returnn.util.literal import LiteralError, parse_literal

if TYPE_CHECKING:
    from returnn.config import Config
    from returnn.datasets.basic import Dataset

__all__ = [
    "init_dataset",
    "init_dataset_via_str",
    "get_dataset_class",
    "extend_dataset_dict_from_parent_dataset",
    "DATASET_CLASS_MODULES",
]

# Any: the options of a dataset have many types.
DatasetDict: TypeAlias = Mapping[str, Any]

_BY_MODULE = {
    "basic": "Dataset",
    "cached": "CachedDataset",
    "cached2": "CachedDataset2",
    "hdf": "HDFDataset",
    "stream_hdf": "StreamHDFDataset NextGenHDFDataset",
    "audio": "OggZipDataset",
    "lm": "LmDataset TranslationDataset TranslationFactorsDataset ConfusionNetworkDataset",
    "text_dict": "TextDictDataset",
    "meta": "MetaDataset CombinedDataset ConcatDataset ConcatSeqsDataset ClusteringDataset"
    " AnythingDataset VariableDataset MultiEpochDataset",
    "multi_proc": "MultiProcDataset",
    "postprocessing": "PostprocessingDataset",
    "distrib_files": "DistributeFilesDataset",
    "huggingface": "HuggingFaceDataset",
    "map": "MapDatasetWrapper",
    "numpy_dump": "NumpyDumpDataset",
    "generating": "GeneratingDataset StaticDataset DummyDataset DummyDatasetMultipleSequenceLength"
    " DummyDatasetMultipleDataKeys DummyGenericDataset CopyTaskDataset Task12AXDataset TaskEpisodicCopyDataset"
    " TaskXmlModelingDataset TaskVariableAssignmentDataset TaskNumberBaseConvertDataset"
    " TimitDataset NltkTimitDataset LibriSpeechCorpus Enwik8Corpus",
}
#: Name in a dataset dict -> module that defines the class.
DATASET_CLASS_MODULES: dict[str, str] = {
    name: f"returnn.datasets.{module}" for module, names in _BY_MODULE.items() for name in names.split()
}
_SPRINT = "it needs a RASR/Sprint process, which is not supported. Convert the data to HDF and use HDFDataset"
_REFUSED = {
    "ChunkShuffleDataset": "it could never be read in any version. Use the config option 'chunking' of the data pipeline",
    "ExternSprintDataset": _SPRINT,
    "SprintCacheDataset": _SPRINT,
    "SprintDatasetBase": _SPRINT,
    "BlissDataset": "it could never load data. Use OggZipDataset or HDFDataset",
    "SiameseHDFDataset": "no training uses it. Use HDFDataset or MetaDataset",
    "StereoDataset": "it was removed. Use HDFDataset with several streams",
    "StereoHdfDataset": "it was removed. Use HDFDataset with several streams",
    "RawWavDataset": "it was removed. Put the files into an ogg-zip with tools/bliss-to-ogg-zip.py and use OggZipDataset",
}


def _dataset_base() -> type[Dataset]:
    # By name: basic itself imports this module for the re-export.
    base: type[Dataset] = importlib.import_module("returnn.datasets.basic").Dataset
    return base


def get_dataset_class(name: str | type[Dataset]) -> type[Dataset] | None:
    """
    :param name: name in the table, a dotted path ``package.module.Class``, or the class itself
    :return: the class; None if the name is unknown
    :raises NotSupportedError: the peers have this class, we do not
    :raises DatasetError: not a Dataset subclass
    """
    if isinstance(name, type):
        if not issubclass(name, _dataset_base()):
            text = f'dataset "class": {name!r} is not a subclass of returnn.datasets.Dataset.'
            if any(base.__name__ == "MapDatasetBase" for base in name.__mro__):
                text += f' It is map-style: use {{"class": "MapDatasetWrapper", "map_dataset": {name.__name__}}}.'
            raise DatasetError(text)
        return name
    if not isinstance(name, str):
        raise DatasetError(f'dataset "class": expected a name or a class, got {name!r} ({type(name).__name__}).')
    if name in _REFUSED:
        raise NotSupportedError(f"dataset class {name!r} is not supported: {_REFUSED[name]}.")
    if name in DATASET_CLASS_MODULES:
        cls: type[Dataset] = getattr(importlib.import_module(DATASET_CLASS_MODULES[name]), name)
        return cls
    if "." in name:
        return _class_by_path(name)
    return None


def _class_by_path(path: str) -> type[Dataset] | None:
    module_name, _, class_name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name and (module_name == exc.name or module_name.startswith(exc.name + ".")):
            return None
        raise  # found, but something that it imports is missing
    cls = getattr(module, class_name, None)
    return None if cls is None else get_dataset_class(cls)


def _available() -> str:
    return ", ".join(sorted(DATASET_CLASS_MODULES))


def _unknown_class(name: object, dataset_name: object) -> DatasetError:
    close = difflib.get_close_matches(str(name), list(DATASET_CLASS_MODULES), n=2, cutoff=0.6)
    hint = f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    return DatasetError(
        f"Dataset class {name!r} not found (dataset {dataset_name or '<unknown_name>'}).{hint} Available are: "
        f"{_available()}; or give the class itself, or its dotted path 'package.module.Class'."
    )


def init_dataset(
    kwargs: DatasetDict | str | Callable[[], Any] | Dataset,
    extra_kwargs: DatasetDict | None = None,
    default_kwargs: DatasetDict | None = None,
    *,
    parent_dataset: Dataset | None = None,
) -> Dataset:
    """
    Create a dataset. Each :class:`returnn.util.file_cache.CachedFile` in the dict, also in those of inner datasets, is
    replaced by the name of a local copy, which is kept as long as the dataset exists.

    :param kwargs: dict with "class" and its constructor arguments; or a function that returns one; or a Python dict
        literal as str; or ``"config:NAME"``, a global of the config; or a Dataset, which is returned as is
    :param extra_kwargs: override those of the dict
    :param default_kwargs: fill in where the dict has no entry
    :param parent_dataset: seed offset and shard are taken from there, where the dict has no entry
    :return: constructed, not initialised: call ``init_seq_order(epoch=...)``
    :raises DatasetError: no, unknown or wrong class
    :raises DatasetOptionError: the class has no such option, or needs another one
    """
    if isinstance(kwargs, _dataset_base()):
        return kwargs
    if not kwargs:
        raise DatasetError(f"init_dataset: expected a dataset dict with a 'class', got {kwargs!r}.")
    if callable(kwargs):
        _check_needs_no_arguments(kwargs)
        return init_dataset(kwargs(), extra_kwargs, default_kwargs, parent_dataset=parent_dataset)
    if isinstance(kwargs, str):
        return init_dataset(_from_str(kwargs), extra_kwargs, default_kwargs, parent_dataset=parent_dataset)
    if not isinstance(kwargs, Mapping):
        raise DatasetError(f"init_dataset: expected a dataset dict, got {kwargs!r} ({type(kwargs).__name__}).")
    opts = dict(kwargs)
    if parent_dataset is not None:
        opts = extend_dataset_dict_from_parent_dataset(opts, parent_dataset)
    for key, value in (default_kwargs or {}).items():
        opts.setdefault(key, value)
    opts.update(extra_kwargs or {})
    if "class" not in opts:
        raise DatasetError(f"dataset dict without 'class': {kwargs!r}. Add e.g. 'class': 'HDFDataset'.")
    class_name = opts.pop("class")
    cls = get_dataset_class(class_name)
    if cls is None:
        raise _unknown_class(class_name, opts.get("name"))
    opts, file_cache, copies = handle_cached_files(opts)
    try:
        dataset = cls(**opts)
    except BaseException as exc:
        if file_cache is not None:
            file_cache.release_files(copies)
        problem = _wrong_options(cls, opts) if isinstance(exc, TypeError) else ""
        if not problem:
            raise
        raise DatasetOptionError(f"dataset {opts.get('name') or '<unknown_name>'}: {problem}") from exc
    if file_cache is not None:
        # Not before: the dataset may read its files at any time.
        weakref.finalize(dataset, file_cache.release_files, copies)
    if state.in_worker:  # a copy of what the main process has shown
        return dataset
    print(f"Created Dataset {dataset.name}", file=log.v2)
    print("  input:", dataset.num_inputs, file=log.v2)
    print("  output:", dataset.num_outputs, file=log.v2)
    print(f"  {dataset.len_info(fast=True) if _takes_fast(dataset) else dataset.len_info()}", file=log.v2)
    return dataset


def _wrong_options(cls: type[Dataset], opts: DatasetDict) -> str:
    """:return: sentences about options that the class does not have, or that it needs; "" if there are none"""
    known = collect_class_init_kwargs(cls, keyword_only=True)
    sentences = []
    for name in opts:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = (
                f" Did you mean {close[0]!r}?"
                if close
                else f" Its options are {', '.join(n for n in known if n[0] != '_')}."
            )
            sentences.append(f"{cls.__name__} has no option {name!r}.{hint}")
    missing = [
        name
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in opts
    ]
    if missing:
        sentences.append(f"{cls.__name__} needs the option {', '.join(map(repr, missing))}.")
    return " ".join(sentences)


def _takes_fast(dataset: Dataset) -> bool:
    return "fast" in inspect.signature(dataset.len_info).parameters


def _check_needs_no_arguments(func: Callable[..., object]) -> None:
    """:raises DatasetError: the function cannot be called without arguments"""
    try:
        inspect.signature(func).bind()
    except ValueError:  # a builtin without signature
        return
    except TypeError as exc:
        raise DatasetError(
            f"a dataset is given by the function {getattr(func, '__qualname__', func)!r}, which is called without arguments "
            f"and returns the dataset dict; but it needs some: {exc}. Give them defaults."
        ) from exc


def _from_str(text: str) -> Any:
    """:return: what the string stands for. Any: anything that init_dataset accepts"""
    if text.startswith("{"):
        try:
            return parse_literal(text)
        except LiteralError as exc:
            raise DatasetError(f"dataset given as str is no Python dict literal: {exc} Give the dict itself.") from exc
    if text.startswith("config:"):
        return _from_config(text[len("config:") :])
    raise ConfigError(
        f"Defining datasets via string is no longer allowed: {text!r}. Give a dict, e.g. {{'class': 'HDFDataset', ...}}."
    )


def _from_config(name: str) -> Any:
    if not name.isidentifier():
        raise ConfigError(
            f"dataset 'config:{name}': expected the name of a global of the config. Expressions are not evaluated: "
            "assign it to a name in the config, and give that."
        )
    if not has_config(name):
        raise ConfigError(f"dataset 'config:{name}': the config has no global {name!r}. Define it there.")
    return config_value(name)


def init_dataset_via_str(config_str: str, config: Config | None = None, **kwargs: Any) -> Dataset:
    """
    Create a dataset from one of the string forms of command lines.

    :param config_str: ``"config:NAME"``; a dict literal; ``"ClassName:opt=literal,..."``;
        or HDF files separated by commas
    :param config: ignored, as everything is in the string; for compatibility
    :param kwargs: further constructor arguments. Any: each has its own type
    """
    if config_str.startswith(("{", "config:")):
        return init_dataset(config_str, extra_kwargs=kwargs)
    class_name, colon, args = config_str.partition(":")
    if colon and (class_name in DATASET_CLASS_MODULES or class_name in _REFUSED):
        try:
            opts = parse_literal(f"dict({args})") if args else {}
        except LiteralError as exc:
            raise DatasetError(f"dataset {config_str!r}: options must be literals: {exc}") from exc
        return init_dataset({"class": class_name, **opts}, extra_kwargs=kwargs)
    return init_dataset({"class": "HDFDataset", "files": config_str.split(","), **kwargs})


def extend_dataset_dict_from_parent_dataset(
    dataset_dict: DatasetDict, parent_dataset: Dataset | None
) -> dict[str, Any]:
    """
    :param dataset_dict: not changed
    :param parent_dataset: None: nothing is added
    :return: copy, with the parent's ``random_seed_offset``, ``_num_shards`` and ``_shard_index`` as defaults
    """
    result = dict(dataset_dict)
    if parent_dataset is not None:
        for key in ("random_seed_offset", "_num_shards", "_shard_index"):
            result.setdefault(key, getattr(parent_dataset, key))
    return result
