"""Public path of mainline RETURNN for :mod:`returnn.util.compiling`."""

from returnn.util.compiling import NativeCodeCompiler

__all__ = ["NativeCodeCompiler"]
