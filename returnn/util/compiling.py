"""
Compiling small native libraries, once per code and settings.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from returnn.errors import MissingDependencyError, ReturnnError
from returnn.util.fs import atomic_write, maybe_make_dirs
from returnn.util.lock_file import LockFile
from returnn.util.temp_dirs import get_cache_dir

__all__ = ["NativeCodeCompiler", "CompileError"]


class CompileError(ReturnnError, RuntimeError):
    """The compiler failed. The message has the command and its output."""


class NativeCodeCompiler:
    """
    Compiles C or C++ code into a shared library below the cache folder, where later processes find it.

    The folder name has a hash of the code and all settings. Processes which need the same library wait for each other.
    """

    CacheDirName = "returnn_native"

    def __init__(
        self,
        base_name: str,
        code_version: int | tuple[int, ...],
        code: str,
        is_cpp: bool = True,
        c_macro_defines: Mapping[str, str | int | None] | None = None,
        ld_flags: Sequence[str] | None = None,
        include_paths: Sequence[str] = (),
        include_deps: Sequence[str] | None = None,
        static_version_name: str | None = None,
        should_cleanup_old_all: bool = True,
        should_cleanup_old_mydir: bool = False,
        use_cxx11_abi: bool = False,
        log_stream: TextIO | None = None,
        verbose: bool | None = None,
    ) -> None:
        """
        :param base_name: for file names
        :param code_version: counts as part of the code
        :param code: source text
        :param is_cpp: C++ or C
        :param c_macro_defines: name -> value; None: without value
        :param ld_flags: for the linker, e.g. ["-lm"]
        :param include_paths: folders of headers
        :param include_deps: files whose change needs a new compilation
        :param static_version_name: use this instead of the hash as folder name
        :param should_cleanup_old_all: no effect, nothing is deleted; accepted for old callers
        :param should_cleanup_old_mydir: likewise
        :param use_cxx11_abi: with the new ABI of the C++ library
        :param log_stream: file for the compiler command, default none
        :param verbose: print the command; default by the environment variable RETURNN_NATIVE_CODE_COMPILER_VERBOSE
        """
        if verbose is None:
            verbose = os.environ.get("RETURNN_NATIVE_CODE_COMPILER_VERBOSE", "0") not in ("", "0")
        self.base_name = base_name
        self.code_version = code_version
        self.code = code
        self.is_cpp = is_cpp
        self.c_macro_defines = dict(c_macro_defines or {})
        self.ld_flags = list(ld_flags or [])
        self.include_paths = list(include_paths)
        self.include_deps = list(include_deps or [])
        self.static_version_name = static_version_name
        self.use_cxx11_abi = use_cxx11_abi
        self._log_stream = log_stream if log_stream is not None else (sys.stdout if verbose else None)
        self._ctypes_lib: ctypes.CDLL | None = None

    def _compiler(self) -> str:
        names = (
            [os.environ.get("CXX"), "g++", "clang++"] if self.is_cpp else [os.environ.get("CC"), "gcc", "cc", "clang"]
        )
        for name in names:
            path = shutil.which(name) if name else None
            if path:
                return path
        raise MissingDependencyError(
            f"No {'C++' if self.is_cpp else 'C'} compiler found, but {self.base_name!r} must be compiled."
            " Install g++, or set the environment variable CXX (or CC)."
        )

    def _hash(self) -> str:
        state = hashlib.sha256()
        settings: list[Any] = [self.code, self.code_version, self.is_cpp, sorted(self.c_macro_defines.items(), key=str)]
        settings += [self.ld_flags, self.include_paths, self.use_cxx11_abi, sys.platform, os.uname().machine]
        state.update(repr(settings).encode("utf8"))
        for filename in self.include_deps:
            with open(filename, "rb") as f:
                state.update(f.read())
        return state.hexdigest()[:20]

    @property
    def _mod_path(self) -> str:
        return os.path.join(
            get_cache_dir(), self.CacheDirName, self.base_name, self.static_version_name or self._hash()
        )

    @property
    def _c_filename(self) -> str:
        return os.path.join(self._mod_path, f"{self.base_name}.{'cc' if self.is_cpp else 'c'}")

    def get_lib_filename(self) -> str:
        """
        :return: path of the library, compiled if it is not there yet
        :raises CompileError: the compiler failed
        :raises MissingDependencyError: there is no compiler
        """
        lib_filename = os.path.join(self._mod_path, f"{self.base_name}.so")
        if self._is_ready(lib_filename):
            return lib_filename
        maybe_make_dirs(self._mod_path)
        with LockFile(self._mod_path, name="compile.lock"):
            if not self._is_ready(lib_filename):
                self._compile(lib_filename)
        return lib_filename

    def _is_ready(self, lib_filename: str) -> bool:
        # With a static name the folder says nothing about the code.
        if not os.path.exists(lib_filename):
            return False
        if self.static_version_name is None:
            return True
        try:
            with open(lib_filename + ".hash", encoding="utf8") as f:
                return f.read() == self._hash()
        except OSError:
            return False

    def _compile(self, lib_filename: str) -> None:
        with atomic_write(self._c_filename) as f:
            f.write(self.code)
        tmp = f"{lib_filename}.{os.getpid()}.tmp"
        cmd = [self._compiler(), "-shared", "-O2", "-fPIC"]
        if self.is_cpp:
            cmd += ["-std=c++17", f"-D_GLIBCXX_USE_CXX11_ABI={int(self.use_cxx11_abi)}"]
        cmd += [f"-I{path}" for path in self.include_paths]
        cmd += [
            f"-D{name}" + (f"={value}" if value is not None else "") for name, value in self.c_macro_defines.items()
        ]
        cmd += [self._c_filename, "-o", tmp, *self.ld_flags]
        if self._log_stream is not None:
            print(f"{type(self).__name__} call: {' '.join(cmd)}", file=self._log_stream)
        proc = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self._mod_path)
        if proc.returncode != 0:
            if os.path.exists(tmp):
                os.unlink(tmp)
            raise CompileError(f"Compiling {self.base_name!r} failed: {' '.join(cmd)}\n{proc.stdout}")
        os.replace(tmp, lib_filename)
        with atomic_write(lib_filename + ".hash") as f:
            f.write(self._hash())

    def load_lib_ctypes(self) -> ctypes.CDLL:
        """:return: the library, loaded once per instance"""
        if self._ctypes_lib is None:
            self._ctypes_lib = ctypes.CDLL(self.get_lib_filename())
        return self._ctypes_lib
