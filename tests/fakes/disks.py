"""What a power cut would leave: which files have their content on disk, and had it before they had their name.

And a disk on which a directory's entries never get there.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest


class SyncedDisk:
    """Watches what is synced from its making on, with the real call behind it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._contents: dict[tuple[int, int], list[str]] = {}
        self._folders: dict[Path, set[str]] = {}
        fsync = os.fsync

        def watch(descriptor: int) -> None:
            fsync(descriptor)
            found = os.fstat(descriptor)
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if path.is_dir():
                self._folders[path] = {entry.name for entry in path.iterdir()}
            else:
                self._contents.setdefault((found.st_ino, found.st_mtime_ns), []).append(path.name)

        monkeypatch.setattr(os, "fsync", watch)

    @property
    def synced_anything(self) -> bool:
        return bool(self._contents or self._folders)

    def outlives_a_power_cut(self, path: Path) -> bool:
        """Whether a file's content, as it is now, was synced under another name, and its own name after it."""
        found = path.stat()
        synced_as = self._contents.get((found.st_ino, found.st_mtime_ns), [])
        return any(name != path.name for name in synced_as) and path.name in self._folders.get(path.parent, ())


class FoldersThatCannotBeSynced:
    """Files are synced, directories answer that the disk failed; from its making on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fsync = os.fsync

        def fail(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fail)
