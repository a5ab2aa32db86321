"""Datasets that combine others; the public names are in returnn.datasets.meta."""
