"""One BLAS thread while a tiny model decodes: two threads that share a busy core make a product many times slower."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np


class Threads:
    """The thread count of numpy's OpenBLAS, which belongs to the whole process, and who asked for one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asking = 0
        self._before = 0

    @contextmanager
    def one(self) -> Generator[None]:
        """One thread until the last who asked is done; then as many as before.

        Does nothing where numpy came with another BLAS.
        """
        library = _openblas()
        if library is None:
            yield
            return
        with self._lock:
            if self._asking == 0:
                self._before = library.scipy_openblas_get_num_threads64_()
                library.scipy_openblas_set_num_threads64_(1)
            self._asking += 1
        try:
            yield
        finally:
            with self._lock:
                self._asking -= 1
                if self._asking == 0:
                    library.scipy_openblas_set_num_threads64_(self._before)


threads = Threads()


@cache
def _openblas() -> ctypes.CDLL | None:
    """The OpenBLAS that numpy's own wheels carry."""
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        for path in folder.glob("*openblas64*"):
            library = ctypes.CDLL(str(path))
            if hasattr(library, "scipy_openblas_set_num_threads64_"):
                return library
    return None
