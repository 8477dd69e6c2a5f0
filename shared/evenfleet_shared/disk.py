"""What both sides ask of a disk: that a file is whole after a power cut or not there, and that a directory has one user.

Raises what the system raises; whoever calls knows what the directory is for and words the error.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def sync_folder(directory: Path) -> None:
    """Bring a directory's entries to disk: a file that was renamed into it is found there after a power cut.

    Raises:
        OSError: The directory cannot be opened, or the disk failed.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(draft: Path, path: Path) -> None:
    """Rename a finished draft to `path`, in the same directory, with its content on disk before and its name after.

    Without the first a power cut leaves a file of the right name and size that is full of zeros.

    Raises:
        OSError: There is no such draft, or the disk failed; as in `write_whole`.
    """
    descriptor = os.open(draft, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    draft.replace(path)
    sync_folder(path.parent)


def write_whole(path: Path, payload: bytes, *, synced: bool = True) -> None:
    """Replace a file's content, whole or not at all, whenever the power is cut.

    Args:
        path: The file; its directory is there.
        payload: All of the new content.
        synced: False for a file that nothing depends on: a power cut may leave it damaged, and each sync wears out flash.

    Raises:
        OSError: The directory cannot be written; what was at `path` is still there, unless all that failed is to sync
            the directory: then the new content is there, and a power cut may bring the old one back.
    """
    draft = path.with_name(f"{path.name}.new")
    try:
        draft.write_bytes(payload)
        if synced:
            put_in_place(draft, path)
        else:
            draft.replace(path)
    except OSError:
        # On a full disk a half-written draft would take the room that others wait for.
        with suppress(OSError):
            draft.unlink()
        raise


@contextmanager
def held(lock_file: Path) -> Iterator[None]:
    """Hold a lock file, made where it is missing, until the block is left or the process ends, however it ends.

    Raises:
        BlockingIOError: Another process holds it.
        OSError: It cannot be made or opened.
    """
    descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
