"""Where a release goes: what may be replaced there, the folder beside it that it is built in, and the move.

* A release appears complete, by one rename, or not at all; an earlier one goes only once the new one is whole.
* Nothing but an earlier release is ever replaced.
"""

from __future__ import annotations

import contextlib
import glob
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from evenfleet_shared import disk, manifest, trust
from evenfleet_shared.errors import ConfigError

_LOCK: Final = "lock"
_EARLIER: Final = "earlier"
_OURS: Final = frozenset({manifest.MANIFEST_NAME, "artifacts", "golden", trust.FOLDER})


def check(out: Path) -> None:
    """Refuse a place that holds anything but an earlier release.

    Raises:
        ConfigError: It does, or cannot be read.
    """
    try:
        if not out.exists() and not out.is_symlink():
            return
        if out.is_symlink() or not out.is_dir():
            raise ConfigError(f"--out {out} is not a directory; give one that is new, empty, or an earlier release")
        entries = {entry.name for entry in out.iterdir()}
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be read: {error.strerror}") from None
    if entries and not (manifest.MANIFEST_NAME in entries and entries <= _OURS):
        found = ", ".join(sorted(entries - _OURS)[:3]) or "no manifest"
        raise ConfigError(
            f"--out {out} already holds something else ({found}); give a directory that is new, empty, or an earlier release"
        )


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` until the block ends, and remove those of builds that were killed.

    Raises:
        ConfigError: Nothing can be written there.
    """
    prefix = f".{out.name or 'release'}-building-"
    with contextlib.ExitStack() as stack:
        try:
            for left in out.parent.glob(f"{glob.escape(prefix)}*"):
                _remove_abandoned(left)
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(disk.held(folder / _LOCK))
        except OSError as error:
            raise ConfigError(f"--out {out}: cannot write in {out.parent}: {error.strerror}") from None
        yield folder


def _remove_abandoned(staging: Path) -> None:
    # One without a lock may be about to get it; one that was killed while moving holds the only earlier release.
    if not (staging / _LOCK).is_file() or (staging / _EARLIER).exists():
        return
    with contextlib.suppress(OSError), disk.held(staging / _LOCK):  # another build's, which goes on
        shutil.rmtree(staging, ignore_errors=True)


def move(finished: Path, out: Path) -> None:
    """Put a finished release where it belongs, in the place of an earlier one.

    Raises:
        ConfigError: That cannot be; the earlier one is where it was.
    """
    check(out)  # it may have been filled while we worked
    earlier = finished.parent / _EARLIER
    try:
        if out.exists():
            out.rename(earlier)
        finished.rename(out)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error.strerror}; nothing was changed") from None
    finally:
        # Also when interrupted between the two: the earlier release would go with the staging folder.
        if earlier.exists() and not out.exists():
            earlier.rename(out)
