"""HDF writers, and names of the HDF format."""

from returnn.datasets._hdf.dataset_writer import HDFDatasetWriter
from returnn.datasets._hdf.format import (
    HDF_CTC_INDEX_TRANSCRIPTION_KEY,
    HDF_INPUT_PATT_SIZE_KEY,
    HDF_SEQ_LENGTHS_KEY,
    HDF_TIMES_KEY,
)
from returnn.datasets._hdf.simple_writer import SimpleHDFWriter

__all__ = [
    "SimpleHDFWriter",
    "HDFDatasetWriter",
    "HDF_SEQ_LENGTHS_KEY",
    "HDF_INPUT_PATT_SIZE_KEY",
    "HDF_TIMES_KEY",
    "HDF_CTC_INDEX_TRANSCRIPTION_KEY",
]
