"""Keep what was built and measured, by the digest of all that it was made from, so that no work is done twice.

An entry is a directory: files, and `entry.json` with the sha256 of each. It appears complete, by one rename, or not at all;
one whose files are not those that it names is thrown away and made again. Entries that were not used for longest go
first when the cache is full, but for those that this build has found or made: it reads them to its end.

Decides nothing about what makes two things the same: that is in the key. Leaves to `builder` and `timing` what is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from evenfleet_shared.errors import ConfigError
from evenfleet_shared.manifest import file_digest

DEFAULT_MAX_BYTES: Final = 8 << 30
_INDEX: Final = "entry.json"
_UNFINISHED: Final = ".unfinished-"
# A build that was killed leaves one; another that still runs may be writing one for hours.
_ABANDONED_S: Final = 24 * 3600.0

logger = logging.getLogger(__name__)


def default_folder() -> Path:
    """Return where results are kept unless another place is named."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "evenfleet" / "optimize"


def key(*parts: str) -> str:
    """Return the name of what is made from these, and from nothing else.

    >>> key("ab", "c") == key("a", "bc")
    False
    """
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


class Cache:
    """One folder of entries, which several builds may use at once."""

    def __init__(self, folder: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        """Make the folder.

        Raises:
            ConfigError: It cannot be written in.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._in_use: set[Path] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise ConfigError(
                f"the cache {folder} cannot be written in: {error.strerror}; name another with --cache, or say --no-cache"
            ) from None

    def find(self, name: str) -> Path | None:
        """Return the entry of that name, whole; None where there is none."""
        entry = self._folder / name
        try:
            digests = msgspec.json.decode((entry / _INDEX).read_bytes(), type=dict[str, str])
            wrong = next((file for file, digest in digests.items() if file_digest(entry / file) != digest), None)
        except FileNotFoundError:
            wrong = _INDEX if entry.exists() else None
            if wrong is None:
                return None
        except (OSError, msgspec.MsgspecError) as error:
            wrong = f"{_INDEX} ({error})"
        if wrong is not None:
            logger.warning("%s of the cache was changed (%s); it is made again", entry, wrong)
            shutil.rmtree(entry, ignore_errors=True)
            return None
        with contextlib.suppress(OSError):  # another build may be making room
            os.utime(entry)
        self._in_use.add(entry)
        return entry

    def put(self, name: str, write: Callable[[Path], None]) -> Path:
        """Have an entry written, and return it.

        Args:
            name: Its key.
            write: Given a folder to write the files into; whatever it raises leaves no entry.

        Raises:
            ConfigError: The disk took it not.
        """
        entry = self._folder / name
        with self._unfinished() as folder:
            try:
                write(folder)
                digests = {
                    path.relative_to(folder).as_posix(): file_digest(path)
                    for path in sorted(folder.rglob("*"))
                    if path.is_file()
                }
                (folder / _INDEX).write_bytes(msgspec.json.encode(digests))
                folder.rename(entry)
            except OSError as error:
                # Another build may have been quicker: theirs is made from the same, and may be in use.
                if not entry.exists():
                    raise ConfigError(f"the cache {self._folder} cannot be written: {error.strerror}") from None
        self._in_use.add(entry)
        self._make_room()
        return entry

    @contextlib.contextmanager
    def _unfinished(self) -> Iterator[Path]:
        try:
            folder = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self._folder))
        except OSError as error:
            raise ConfigError(f"the cache {self._folder} cannot be written: {error.strerror}") from None
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _make_room(self) -> None:
        entries = []
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):  # another build may be making room
                used_s = path.stat().st_mtime
                if path.name.startswith(_UNFINISHED) and time.time() - used_s < _ABANDONED_S:
                    continue
                entries.append((used_s, sum(file.stat().st_size for file in path.rglob("*") if file.is_file()), path))
        excess = sum(size_bytes for _, size_bytes, _ in entries) - self._max_bytes
        for _, size_bytes, path in sorted(entries):
            if path.name.startswith(_UNFINISHED) or (excess > 0 and path not in self._in_use):
                shutil.rmtree(path, ignore_errors=True)
                excess -= size_bytes
