"""Long texts, one file each, named by their digest: `blobs/ab/<32 hex digits>.zst`."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

import zstandard

from weaverant.errors import JournalCorrupt, JournalError
from weaverant.journal.chain import Shipper
from weaverant.journal.disk import Disk
from weaverant.journal.homes import OWN
from weaverant.journal.segment import MOST_PAYLOAD
from weaverant.journal.shelf import shelf_of
from weaverant.message import digest


class BlobStore:
    """Reads and writes the blobs of one run. `put` belongs to the journal's writing thread."""

    def __init__(
        self, directory: Path, disk: Disk | None = None, epoch: int = OWN, shipper: Shipper | None = None
    ) -> None:
        """`epoch` is that of the peer that writes: several may write the same text at once. With a `shipper` a text is
        in the store before it is here."""
        self._directory = directory
        self._unfinished = f".{epoch}.tmp" if epoch else ".tmp"
        self._disk = disk or Disk()
        self._shipper = shipper
        self._durable: set[bytes] = set()
        self._zstd = zstandard.ZstdCompressor(level=1)

    def put(self, texts: Mapping[bytes, str]) -> None:
        """Return when all are durable. A text that is there already is not written again. Raises `OSError`."""
        new = {key: text for key, text in texts.items() if key not in self._durable}
        paths = {key: blob_path(self._directory, key) for key in new}
        folders = dict.fromkeys(path.parent for path in paths.values())
        if new and not self._durable:
            self._disk.make_directory(self._directory)
        for folder in folders:
            self._disk.make_directory(folder)
        for key, text in new.items():
            if not paths[key].exists():
                self._write(paths[key], text)
        for folder in folders:  # also for files found there: their writer may have died before this
            self._disk.sync_directory(folder)
        self._durable.update(new)

    def get(self, key: bytes) -> str:
        """The text with this digest. `JournalCorrupt` if it is missing or another."""
        path = blob_path(self._directory, key)
        try:
            if not path.exists():
                shelf_of(self._directory.parent).fetch_blob(path)
            packed = path.read_bytes()
            if zstandard.frame_content_size(packed) > MOST_PAYLOAD:
                raise zstandard.ZstdError(f"it claims to unpack to more than {MOST_PAYLOAD:,} bytes")
            text = zstandard.ZstdDecompressor().decompress(packed)
        except FileNotFoundError:
            raise JournalCorrupt(f"blob {str(path)!r} is missing. Put it back from a copy of the run") from None
        except OSError as error:
            raise JournalError(f"blob {str(path)!r} cannot be read: {error}") from error
        except zstandard.ZstdError as error:
            raise JournalCorrupt(f"blob {str(path)!r} is damaged: {error}. Put it back from a copy") from error
        if digest(text) != key:
            raise JournalCorrupt(f"blob {str(path)!r} is damaged: its digest differs. Put it back from a copy")
        try:
            return text.decode(errors="surrogatepass")
        except UnicodeDecodeError as error:
            raise JournalCorrupt(f"blob {str(path)!r} holds no text: {error}") from error

    def _write(self, path: Path, text: str) -> None:
        raw = text.encode(errors="surrogatepass")
        if len(raw) > MOST_PAYLOAD:
            raise OSError(errno.EFBIG, f"a text of {len(raw):,} bytes, expected {MOST_PAYLOAD:,} at most")
        data = self._zstd.compress(raw)
        if self._shipper is not None:
            self._shipper.blob(f"{path.parent.name}/{path.name}", data)
        unfinished = path.with_suffix(self._unfinished)
        file = self._disk.overwrite(unfinished)
        try:
            self._disk.write(file, data)
            self._disk.sync(file)
        finally:
            self._disk.close(file)
        self._disk.rename(unfinished, path)


def blob_path(directory: Path, key: bytes) -> Path:
    name = key.hex()
    return directory / name[:2] / f"{name}.zst"
