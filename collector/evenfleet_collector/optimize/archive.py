"""Pack a directory into one tar whose bytes depend on names and contents alone: no dates, owners or modes."""

from __future__ import annotations

import tarfile
from pathlib import Path

from evenfleet_shared.errors import ModelRefusedError


def pack(directory: Path, destination: Path) -> None:
    """Write every file below `directory` into an uncompressed tar, `directory` itself being its root.

    Raises:
        ModelRefusedError: A link leads out of the directory, or something is neither file nor directory.
    """
    root = directory.resolve()
    with tarfile.open(destination, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(directory.rglob("*"), key=lambda path: path.relative_to(directory).as_posix()):
            name = path.relative_to(directory).as_posix()
            if not path.resolve().is_relative_to(root):
                raise ModelRefusedError(f"{path} is a link that leads out of {directory}; copy it with cp -rL first")
            entry = tarfile.TarInfo(name)  # mtime, uid and gid are 0 unless set
            if path.is_dir():
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
            elif path.is_file():
                entry.mode = 0o644
                with path.open("rb") as file:
                    entry.size = path.stat().st_size
                    archive.addfile(entry, file)
            else:
                raise ModelRefusedError(f"{path} is neither a file nor a directory; a SavedModel holds nothing else")
