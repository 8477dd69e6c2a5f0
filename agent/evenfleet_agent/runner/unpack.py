"""Take a SavedModel out of the tar it was sent in, trusting nothing that the tar says.

* Only plain files and directories, with plain relative names; one link or device and the whole tar is refused.
* At most `MAX_BYTES` and `MAX_FILES`, counted while writing, not believed from headers.
* The file modes are ours.
"""

from __future__ import annotations

import errno
import tarfile
from pathlib import Path, PurePosixPath
from typing import Final

from evenfleet_shared.errors import ModelRefusedError, ResourceError

MAX_BYTES: Final = 4 * 1024**3
MAX_FILES: Final = 10_000
_CHUNK_BYTES: Final = 1 << 20
_OF_THE_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES)


def saved_model(archive: Path, directory: Path, *, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> Path:
    """Unpack a tar and return the SavedModel's directory: the top one, or the only one in it.

    Args:
        archive: The tar, not compressed or with gzip, bzip2 or xz.
        directory: An empty directory of the caller's own.
        max_bytes: Of all files together.
        max_files: Files and directories.

    Raises:
        ModelRefusedError: It is no tar, or it breaks one of the rules above; `directory` may hold a part of it.
    """
    written = count = 0
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                count += 1
                if count > max_files:
                    raise ModelRefusedError(f"{archive.name} holds more than {max_files} files; not unpacked")
                target = directory / _safe(member, archive.name)
                if member.isdir():
                    target.mkdir(mode=0o700, parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None  # _safe let a plain file through
                with source, target.open("xb") as file:
                    while chunk := source.read(_CHUNK_BYTES):
                        written += len(chunk)
                        if written > max_bytes:
                            raise ModelRefusedError(f"{archive.name} unpacks to more than {max_bytes} bytes; stopped")
                        file.write(chunk)
    except tarfile.ReadError:
        raise ModelRefusedError(f"{archive.name} is not a whole tar, which a SavedModel has to come as") from None
    # tarfile lets through what the decompressors and number fields of a damaged archive raise.
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            # The model is none the worse, and may be tried again.
            raise ResourceError(f"{archive.name} cannot be unpacked here: {error.strerror}") from None
        raise ModelRefusedError(f"{archive.name} cannot be unpacked as a tar of a SavedModel: {error}") from None
    entries = list(directory.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else directory


def _safe(member: tarfile.TarInfo, archive: str) -> PurePosixPath:
    name = PurePosixPath(member.name)
    if not (member.isfile() or member.isdir()) or member.issparse():
        raise ModelRefusedError(
            f"{archive} holds {member.name!r}, which is neither a file nor a directory; not unpacked"
        )
    if name.is_absolute() or ".." in name.parts or "\0" in member.name:
        raise ModelRefusedError(f"{archive} holds {member.name!r}, which lies outside of it; not unpacked")
    return name
