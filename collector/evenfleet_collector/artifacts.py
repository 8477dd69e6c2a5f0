"""The artifact files: each named by the sha256 of its bytes, and never there unless its bytes have that digest.

Leaves to `routes.artifacts` how bytes arrive and leave, to `Edits.add_release` which artifacts a release needs.

* No path comes from outside: a name is 64 hexadecimal digits or it is refused, so no name can leave the folder.
* A file appears under its name by a rename after its digest was checked and its bytes synced; whatever happens
  before that leaves nothing, a power cut at most a temporary file that the next start removes.
* A file that is there is never written again: the same name is the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from evenfleet_shared.disk import sync_folder
from evenfleet_shared.errors import ArtifactError, StoreError
from evenfleet_shared.manifest import FileRef

MAX_ARTIFACT_BYTES: Final = 2 * 1024**3

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_TEMPORARY: Final = ".upload-"


class ArtifactTooLargeError(ArtifactError):
    """More bytes arrived than an artifact may have."""


class DiskFullError(StoreError):
    """There is no room for an artifact."""


def is_digest(text: str) -> bool:
    r"""Return whether `text` may name an artifact.

    >>> is_digest("0" * 64), is_digest("../" + "0" * 61), is_digest("0" * 64 + "\n")
    (True, False, False)
    """
    return _DIGEST.fullmatch(text) is not None


class ArtifactFolder:
    """A flat folder of immutable files."""

    def __init__(self, directory: Path, *, max_bytes: int = MAX_ARTIFACT_BYTES) -> None:
        """Use `directory`, which is made if need be, and remove what an interrupted upload left there.

        Raises:
            StoreError: The folder cannot be made or read.
        """
        self.max_bytes = max_bytes
        self._directory = directory
        with _told(f"cannot use the artifact folder {directory}"):
            directory.mkdir(parents=True, exist_ok=True)
            for leftover in directory.glob(f"{_TEMPORARY}*"):
                leftover.unlink()

    def find(self, sha256: str) -> Path | None:
        """Return where the artifact lies, None where it is not here (or the name is none)."""
        if not is_digest(sha256):
            return None
        path = self._directory / sha256
        return path if path.is_file() else None

    def missing(self, references: Iterable[FileRef]) -> tuple[FileRef, ...]:
        """Return those of a manifest's files that are not here, or have another size than it says."""
        return tuple(reference for reference in references if not self._has(reference))

    def add(self, payload: bytes) -> str:
        """Keep bytes that are in memory; returns their name.

        Raises:
            ArtifactTooLargeError: There are too many.
            StoreError: They could not be written.
        """
        sha256 = hashlib.sha256(payload).hexdigest()
        if self.find(sha256) is None:
            with self.receive(sha256) as upload:
                upload.write(payload)
                upload.commit()
        return sha256

    @contextlib.contextmanager
    def receive(self, sha256: str) -> Iterator[Upload]:
        """Return a context to write an artifact in; without `Upload.commit` nothing of it stays.

        Raises:
            ArtifactError: `sha256` is not a digest.
            StoreError: No file can be made.
        """
        if not is_digest(sha256):
            raise ArtifactError(f"expected a sha256 of 64 hexadecimal digits, found {sha256[:80]!r}")
        with _told("cannot keep the artifact"):
            handle, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=self._directory)
        try:
            with Upload(handle, Path(temporary), self._directory / sha256, self.max_bytes) as upload:
                yield upload
        finally:
            Path(temporary).unlink(missing_ok=True)

    def _has(self, reference: FileRef) -> bool:
        path = self.find(reference.sha256)
        return path is not None and path.stat().st_size == reference.size_bytes


class Upload:
    """One artifact on its way to disk. Blocking: from the event loop, call it in a thread."""

    def __init__(self, handle: int, temporary: Path, final: Path, max_bytes: int) -> None:
        self._file = os.fdopen(handle, "wb")
        self._temporary = temporary
        self._final = final
        self._max_bytes = max_bytes
        self._size = 0
        self._running = hashlib.sha256()

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        # What was not committed is deleted anyway; a full disk may refuse even the last flush.
        with contextlib.suppress(OSError):
            self._file.close()

    def write(self, chunk: bytes) -> None:
        """Append bytes.

        Raises:
            ArtifactTooLargeError: There are more than allowed.
            StoreError: They could not be written.
        """
        self._size += len(chunk)
        if self._size > self._max_bytes:
            raise ArtifactTooLargeError(
                f"an artifact has at most {self._max_bytes:,} bytes, more arrived; nothing kept"
            )
        with _told("cannot keep the artifact"):
            self._file.write(chunk)
        self._running.update(chunk)

    def commit(self) -> None:
        """Check the digest, bring the bytes to disk and give them their name.

        Raises:
            ArtifactError: The bytes are not those of the name.
            StoreError: They could not be written.
        """
        found = self._running.hexdigest()
        if found != self._final.name:
            raise ArtifactError(
                f"expected bytes with sha256 {self._final.name}, found {self._size:,} bytes with {found}; nothing kept"
            )
        with _told("cannot keep the artifact"):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._temporary.replace(self._final)
            sync_folder(self._final.parent)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError(f"{what}: the disk is full; nothing kept") from error
        raise StoreError(f"{what}: {error.strerror or error}; nothing kept") from error
