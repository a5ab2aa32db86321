"""Helpers of datasets: vocabularies, strings, HDF writing."""
