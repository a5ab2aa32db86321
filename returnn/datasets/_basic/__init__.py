"""Parts of :mod:`returnn.datasets.basic`."""
