"""The parts of :mod:`returnn.config`: reading files, command line syntax, the proxy module, pickling."""
