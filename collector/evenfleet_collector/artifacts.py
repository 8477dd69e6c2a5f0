"""The artifact files: each named by the sha256 of its bytes, and never there unless its bytes have that digest.

Leaves to `routes.artifacts` how bytes arrive and leave, to `Edits.add_release` which artifacts a release needs.

* No path comes from outside: a name is 64 hexadecimal digits or it is refused, so no name can leave the folder.
* A file appears under its name by a rename after its digest was checked and its bytes synced.
* A file that is there is never written again: the same name is the same bytes.
* What has come of an upload that was broken off, by the network or by our own end, stays as a part that another upload
  of the same artifact goes on with. Each upload writes to a part of its own, held by a lock that ends with the process,
  so two at a time neither mix nor wait. What was refused leaves nothing; parts are bounded in age and number.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from evenfleet_shared.disk import sync_folder
from evenfleet_shared.errors import ArtifactError, EvenfleetError, StoreError
from evenfleet_shared.manifest import FileRef

MAX_ARTIFACT_BYTES: Final = 2 * 1024**3
MAX_IDLE_S: Final = 30.0
# Parts of uploads that nobody went on with: enough for a release of many variants, and for a night.
MAX_PARTS: Final = 16
MAX_PART_AGE_S: Final = 24 * 3600.0

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_TEMPORARY: Final = ".upload-"
_PIECE_BYTES: Final = 1 << 20


class ArtifactTooLargeError(ArtifactError):
    """More bytes arrived than an artifact may have."""


class DiskFullError(StoreError):
    """There is no room for an artifact."""


class OffsetError(ArtifactError):
    """An upload was to go on elsewhere than where it stopped."""


def is_digest(text: str) -> bool:
    r"""Return whether `text` may name an artifact.

    >>> is_digest("0" * 64), is_digest("../" + "0" * 61), is_digest("0" * 64 + "\n")
    (True, False, False)
    """
    return _DIGEST.fullmatch(text) is not None


class ArtifactFolder:
    """A flat folder of immutable files."""

    def __init__(self, directory: Path, *, max_bytes: int = MAX_ARTIFACT_BYTES, max_idle_s: float = MAX_IDLE_S) -> None:
        """Use `directory`, which is made if need be, and remove old parts of uploads.

        Args:
            directory: The folder.
            max_bytes: What an artifact may have.
            max_idle_s: How long an upload may bring nothing before it counts as broken off.

        Raises:
            StoreError: The folder cannot be made or read.
        """
        self.max_bytes = max_bytes
        self.max_idle_s = max_idle_s
        self._directory = directory
        with _told(f"cannot use the artifact folder {directory}"):
            directory.mkdir(parents=True, exist_ok=True)
            self._sweep()

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

    def received(self, sha256: str) -> int:
        """Return how many bytes are here of an artifact whose upload was broken off."""
        with _told("cannot read the artifact folder"):
            for part in self._parts(sha256):
                if (handle := _take(part)) is not None:
                    os.close(handle)
                    return part.stat().st_size
        return 0

    @contextlib.contextmanager
    def receive(self, sha256: str, offset: int = 0) -> Iterator[Upload]:
        """Return a context to write an artifact in, from `offset` on.

        What was written stays as a part if the block is left by an error that is none of ours, as when the network
        breaks. It does not if the block ends without `Upload.commit`, or by an error of ours.

        Raises:
            ArtifactError: `sha256` is not a digest.
            OffsetError: There is no part of `offset` bytes.
            StoreError: No file can be made.
        """
        if not is_digest(sha256):
            raise ArtifactError(f"expected a sha256 of 64 hexadecimal digits, found {sha256[:80]!r}")
        with _told("cannot keep the artifact"):
            handle, temporary = self._resume(sha256, offset) if offset else self._begin(sha256)
        final = self._directory / sha256
        with Upload(handle, temporary, final, self.max_bytes, resumed=offset > 0) as upload:
            # Removed while it is still locked: another upload must not go on with what is about to vanish.
            try:
                yield upload
            except EvenfleetError:
                temporary.unlink(missing_ok=True)
                raise
            temporary.unlink(missing_ok=True)

    def _begin(self, sha256: str) -> tuple[int, Path]:
        self._sweep()
        handle, temporary = tempfile.mkstemp(prefix=f"{_TEMPORARY}{sha256}-", dir=self._directory)
        fcntl.flock(handle, fcntl.LOCK_EX)
        return handle, Path(temporary)

    def _resume(self, sha256: str, offset: int) -> tuple[int, Path]:
        longest = 0
        for part in self._parts(sha256):
            if (handle := _take(part)) is None:
                continue
            found = os.fstat(handle).st_size
            if found == offset:
                return handle, part
            os.close(handle)
            longest = max(longest, found)
        raise OffsetError(
            f"expected the upload of {sha256[:12]}… to go on at byte {longest:,}, found {offset:,}; nothing was changed"
        )

    def _parts(self, sha256: str) -> list[Path]:
        """Return what there is of an artifact, the longest first, without what is longer than it may become."""
        sizes = {}
        for part in self._directory.glob(f"{_TEMPORARY}{sha256}-*") if is_digest(sha256) else ():
            with contextlib.suppress(FileNotFoundError):  # completed meanwhile
                sizes[part] = part.stat().st_size
        return sorted((part for part in sizes if 0 < sizes[part] <= self.max_bytes), key=lambda part: -sizes[part])

    def _sweep(self) -> None:
        """Remove parts that are old or more than are kept, but none that is being written."""
        ages = {}
        for part in self._directory.glob(f"{_TEMPORARY}*"):
            with contextlib.suppress(FileNotFoundError):
                ages[part] = time.time() - part.stat().st_mtime
        for rank, part in enumerate(sorted(ages, key=lambda part: ages[part])):
            if (rank >= MAX_PARTS or ages[part] > MAX_PART_AGE_S) and (handle := _take(part)) is not None:
                part.unlink(missing_ok=True)
                os.close(handle)

    def _has(self, reference: FileRef) -> bool:
        path = self.find(reference.sha256)
        return path is not None and path.stat().st_size == reference.size_bytes


class Upload:
    """One artifact on its way to disk. Blocking: from the event loop, call it in a thread."""

    def __init__(self, handle: int, temporary: Path, final: Path, max_bytes: int, *, resumed: bool = False) -> None:
        self._resumed = resumed
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
        self._read_back()
        self._size += len(chunk)
        if self._size > self._max_bytes:
            raise ArtifactTooLargeError(
                f"an artifact has at most {self._max_bytes:,} bytes, more arrived; nothing kept"
            )
        with _told("cannot keep the artifact"):
            self._file.write(chunk)
        self._running.update(chunk)

    def _read_back(self) -> None:
        """Go on behind what an earlier upload left in the file; not before a thread is at it, for it may be long."""
        if not self._resumed:
            return
        self._resumed = False
        with _told("cannot read what came of the artifact"), self._temporary.open("rb") as earlier:
            while piece := earlier.read(_PIECE_BYTES):
                self._running.update(piece)
                self._size += len(piece)
        self._file.seek(self._size)

    def commit(self) -> None:
        """Check the digest, bring the bytes to disk and give them their name.

        Raises:
            ArtifactError: The bytes are not those of the name.
            StoreError: They could not be written.
        """
        self._read_back()
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


def _take(part: Path) -> int | None:
    """Open a part and lock it; None where an upload writes to it, or it is gone."""
    try:
        handle = os.open(part, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It may have been finished, and so renamed, between the two.
        if part.stat().st_ino == os.fstat(handle).st_ino:
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(handle)
    return None


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError(f"{what}: the disk is full; nothing kept") from error
        raise StoreError(f"{what}: {error.strerror or error}; nothing kept") from error
