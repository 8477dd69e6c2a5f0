"""Two things that both sides ask of a disk: that a rename outlives a power cut, and that a directory has one user.

Raises what the system raises; whoever calls knows what the directory is for and words the error.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
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
