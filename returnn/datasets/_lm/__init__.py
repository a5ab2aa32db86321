"""Parts of :mod:`returnn.datasets.lm`."""
