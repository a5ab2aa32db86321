"""
Exceptions for mistakes of the user, and the one template for their text.

Each message says what happened, where, what was expected and got, and what to do.
The types also inherit from the builtin exceptions that client code of the peers catches.
"""

from __future__ import annotations

from returnn.util.safe_repr import safe_repr

__all__ = [
    "ReturnnError",
    "UserError",
    "ConfigError",
    "OptionError",
    "MissingOptionError",
    "ConfigFileError",
    "DatasetError",
    "DatasetOptionError",
    "DataFileError",
    "MissingPartError",
    "UnknownDataKeyError",
    "UnknownSeqTagError",
    "UnknownClassError",
    "LabelError",
    "MissingDependencyError",
    "MissingRandomStateError",
    "NotSupportedError",
    "CheckpointError",
    "ModelInUseError",
    "BatchKeyError",
    "NonFiniteLossError",
    "NonFiniteGradientError",
    "WorkerError",
    "DistributedError",
    "ModelError",
    "describe",
]


def describe(
    what: str,
    *,
    where: str | None = None,
    expected: str | None = None,
    got: object = None,
    todo: str | None = None,
    name: str | None = None,
) -> str:
    """
    Build an error text by the project's template.

    :param what: what happened, without final period
    :param where: option, file, line, dataset, seq tag
    :param expected: what would have been right
    :param got: the offending value; its repr is shortened, and without secrets
    :param todo: what the user can do about it
    :param name: of the value; under the name of a secret it is not shown
    :return: one line, e.g. ``option "batch_size" is invalid (in my.config): expected int > 0, got -1 (int). Set ...``
    """
    text = what
    if where:
        text += f" (in {where})"
    if expected is not None:
        shown = safe_repr(got, limit=200, name=name)
        text += f": expected {expected}, got {shown} ({type(got).__name__})"
    text += "."
    if todo:
        text += " " + todo.rstrip(".") + "."
    return text


class ReturnnError(Exception):
    """Base of all exceptions that this package raises on purpose."""

    #: the text says which dataset was being read, and where
    is_located: bool = False


class UserError(ReturnnError):
    """A mistake outside of our code: its sentence is shown last, without a long dump."""


class ConfigError(UserError, ValueError, AssertionError):
    """The config asks for something impossible. AssertionError is what the peers raise for many of these."""


class OptionError(ConfigError):
    """One option has an invalid value."""

    def __init__(self, name: str, *, expected: str, got: object, where: str | None = None, todo: str | None = None):
        """
        :param name: the option
        :param expected: accepted forms
        :param got: the value
        :param where: file or dataset, if known
        :param todo: example of a right value
        """
        self.option_name = name
        super().__init__(
            describe(f'option "{name}" is invalid', where=where, expected=expected, got=got, todo=todo, name=name)
        )


class MissingOptionError(ConfigError, KeyError):
    """A required option is not set."""

    def __init__(self, name: str, *, needed_for: str, todo: str | None = None):
        """
        :param name: the option
        :param needed_for: who needs it
        :param todo: example
        """
        self.option_name = name
        super().__init__(describe(f'option "{name}" is not set, but needed for {needed_for}', todo=todo))

    def __str__(self) -> str:
        # KeyError would show the repr of the text.
        return str(self.args[0]) if self.args else ""


class ConfigFileError(ConfigError):
    """A config file is missing, unreadable, or of unknown form."""


class DatasetError(UserError, ValueError, AssertionError):
    """A dataset cannot be built or iterated: bad options or inconsistent data."""


class UnknownDataKeyError(DatasetError, KeyError):
    """A data key was asked for that a sequence does not have."""

    def __str__(self) -> str:
        # KeyError would show the repr of the text.
        return str(self.args[0]) if self.args else ""


class DatasetOptionError(DatasetError, TypeError):
    """The class of a dataset has no such option, needs another one, or it is of the wrong type. TypeError is what the peers raise."""


class DataFileError(DatasetError, OSError):
    """A data file is missing, broken, or does not fit to the others. The message names the file."""

    def __str__(self) -> str:
        # OSError with one argument keeps it, but be explicit about the text.
        return str(self.args[0]) if self.args else ""


class MissingPartError(DataFileError, KeyError):
    """A data file lacks a part: a member of an archive, a key of an entry. KeyError is what the peers raise."""


class UnknownSeqTagError(DatasetError, KeyError):
    """A sequence tag was asked for that the dataset does not have, or a file with data per tag has not."""

    def __str__(self) -> str:
        # KeyError would show the repr of the text.
        return str(self.args[0]) if self.args else ""


class UnknownClassError(DatasetOptionError, KeyError):
    """The option "class" names no class that can be used there."""

    def __str__(self) -> str:
        # KeyError would show the repr of the text.
        return str(self.args[0]) if self.args else ""


class LabelError(DatasetError, KeyError, IndexError):
    """A label or label id is not in the vocabulary."""

    def __str__(self) -> str:
        # KeyError would show the repr of the text.
        return str(self.args[0]) if self.args else ""


class MissingRandomStateError(DatasetError, AttributeError):
    """Random draws for a sequence were asked for without a generator. AttributeError is what the peers raise."""


class MissingDependencyError(UserError, ImportError):
    """An optional package is needed. The message says which option needs it, and what to install."""


class NotSupportedError(UserError, NotImplementedError):
    """The peers have this, we do not. The message says what to use instead."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint is missing, broken, or does not fit to the model."""


class ModelInUseError(UserError, RuntimeError):
    """Another run trains the model of that name. The message says which process on which host, and since when."""


class ModelError(UserError, TypeError, AssertionError):
    """The functions of the config (get_model, train_step, forward_step, hooks) are missing or do not fit."""


class BatchKeyError(ModelError, KeyError):
    """A step asked for a key that the batch does not have."""

    def __str__(self) -> str:
        # KeyError would show the repr of the text.
        return str(self.args[0]) if self.args else ""


class NonFiniteLossError(UserError, RuntimeError):
    """A loss is inf or nan. The weights of that step were not changed."""


class NonFiniteGradientError(UserError, RuntimeError):
    """The gradient norm is inf or nan too often. The weights of these steps were not changed."""


class WorkerError(UserError, RuntimeError):
    """A data loader process failed or was killed."""


class DistributedError(UserError, RuntimeError):
    """The processes of a distributed run do not come together, or do not do the same."""


class DeviceMemoryError(UserError, RuntimeError):
    """Something does not fit into the memory of the device, and cannot be made smaller."""
