"""Parts of :mod:`returnn.datasets.generating`."""
