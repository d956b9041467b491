"""The one seam to fsspec: objects in S3, Google Cloud Storage, Azure and whatever else creates them exclusively.

Credentials, endpoints and regions come from the environment, as each file system of fsspec takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from weaverant.errors import UserError

T = TypeVar("T")


class Remote:
    """Implements `Objects` on a file system of fsspec that knows `pipe_file(..., mode="create")`."""

    def __init__(self, url: str) -> None:
        """`UserError` where fsspec or the file system's own package is missing."""
        try:
            import fsspec  # pyright: ignore[reportMissingTypeStubs, reportMissingImports]
        except ImportError:
            raise UserError(f"the store {url!r} needs fsspec: pip install 'weaverant[store]'") from None
        try:
            fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)  # pyright: ignore
        except (ImportError, ValueError, TypeError) as error:
            raise UserError(f"the store {url!r} cannot be opened: {error}. pip install 'weaverant[store]'") from None
        self._fs: Any = fs
        self._path = str(path).rstrip("/")  # pyright: ignore[reportUnknownArgumentType]

    def create(self, name: str, data: bytes) -> bool:
        try:
            _asked(lambda: self._fs.pipe_file(self._place(name), data, mode="create"))
        except FileExistsError:
            return False
        return True

    def get(self, name: str) -> bytes:
        return _asked(lambda: bytes(self._fs.cat_file(self._place(name))))

    def names(self, folder: str) -> list[str]:
        place = self._place(folder).rstrip("/")

        def listed() -> list[str]:
            self._fs.invalidate_cache()
            return [str(path).rstrip("/") for path in self._fs.ls(place, detail=False)]

        try:
            found = _asked(listed)
        except FileNotFoundError:
            return []
        return [path.rpartition("/")[2] for path in found if path.lstrip("/") != place.lstrip("/")]

    def _place(self, name: str) -> str:
        return f"{self._path}/{name}"


def _asked(ask: Callable[[], T]) -> T:
    """A file system of fsspec raises what its library raises; here all of it is `OSError`."""
    try:
        return ask()
    except OSError:
        raise
    except Exception as error:  # the boundary to fsspec's file systems
        raise OSError(f"{type(error).__name__}: {error}") from error
