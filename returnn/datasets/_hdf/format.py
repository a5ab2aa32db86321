"""Names and small conversions of the HDF file format: one array per stream, all sequences concatenated without padding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import h5py
import numpy as np

from returnn.errors import DataFileError, describe

__all__ = [
    "HDF_SEQ_LENGTHS_KEY",
    "HDF_INPUT_PATT_SIZE_KEY",
    "HDF_TIMES_KEY",
    "HDF_CTC_INDEX_TRANSCRIPTION_KEY",
    "INPUTS_KEY",
    "SEQ_TAGS_KEY",
    "LABELS_KEY",
    "TARGETS_KEY",
    "PHANTOM_TARGET_KEY",
    "DUMMY_LABEL",
    "HDF_ERRORS",
    "worded_hdf_errors",
    "decode_strings",
    "encode_fixed_strings",
    "is_real_vocabulary",
]

HDF_SEQ_LENGTHS_KEY = "seqLengths"
HDF_INPUT_PATT_SIZE_KEY = "inputPattSize"
HDF_TIMES_KEY = "times"
HDF_CTC_INDEX_TRANSCRIPTION_KEY = "ctcIndexTranscription"
INPUTS_KEY = "inputs"
SEQ_TAGS_KEY = "seqTags"
LABELS_KEY = "labels"
TARGETS_KEY = "targets"
# A file without targets has a length column for this key, always 0. It gives no data.
PHANTOM_TARGET_KEY = "classes"
# The only label that SimpleHDFWriter gives to extra streams without labels.
DUMMY_LABEL = "dummy-label"


#: What h5py raises for broken files, whatever is asked.
HDF_ERRORS = (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError)


@contextlib.contextmanager
def worded_hdf_errors(filename: str, *, what: str = "metadata") -> Iterator[None]:
    """
    :param filename: which is read in the block
    :param what: is read
    :raises DataFileError: in place of what h5py raises for a broken file; names the file
    """
    try:
        yield
    except DataFileError:
        raise
    except HDF_ERRORS as exc:
        raise DataFileError(
            describe(
                f"Cannot read the {what} of HDF file {filename!r} ({type(exc).__name__}: {exc})",
                todo="The file is broken or has a dangling link; copy or write it again",
            )
        ) from exc


def decode_strings(values: np.ndarray) -> list[str]:
    """
    :param values: [n] fixed-length bytes, or objects of bytes or str
    :return: [n] texts: UTF-8, cut at the first NUL
    """
    res = []
    for value in values.tolist():
        text = value.decode("utf8") if isinstance(value, bytes) else str(value)
        res.append(text.partition("\0")[0])
    return res


def encode_fixed_strings(values: Sequence[str], *, extra_length: int = 0) -> np.ndarray:
    """
    :param values: texts
    :param extra_length: bytes to add to the length of the longest
    :return: [len(values)] fixed-length bytes, UTF-8
    """
    encoded = [value.encode("utf8") for value in values]
    length = max((len(value) for value in encoded), default=0) + extra_length
    return np.array(encoded, dtype=f"S{max(length, 1)}")


def is_real_vocabulary(labels: Sequence[str] | None) -> bool:
    """
    :param labels: labels of a data key, as a file has them
    :return: False for no labels and for the placeholder that SimpleHDFWriter writes
    """
    return bool(labels) and list(labels or ()) != [DUMMY_LABEL]


def dtype_name(dtype: np.dtype) -> str:
    """
    :param dtype: of an HDF dataset
    :return: numpy name; "object" for variable-length strings
    """
    if h5py.check_string_dtype(dtype) is not None and dtype.kind == "O":
        return "object"
    return str(dtype.name)
