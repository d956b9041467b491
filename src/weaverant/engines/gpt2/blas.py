"""One BLAS thread while a tiny model decodes: two threads that share a busy core made a product 200 times slower."""

from __future__ import annotations

import ctypes
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np


@contextmanager
def one_thread() -> Generator[None]:
    """Holds numpy's OpenBLAS to one thread, in the whole process, and then gives it back what it had.

    Does nothing where numpy came with another BLAS.
    """
    library = _openblas()
    if library is None:
        yield
        return
    before: int = library.scipy_openblas_get_num_threads64_()
    library.scipy_openblas_set_num_threads64_(1)
    try:
        yield
    finally:
        library.scipy_openblas_set_num_threads64_(before)


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
