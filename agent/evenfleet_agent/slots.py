"""Two slots for releases on disk: one runs, the other is filled; switching renames a symlink.

    slots/a/  slots/b/  slots/current -> a

* The slot that runs is never written to.
* A power cut at any instant leaves `current` pointing at one whole release or the other. Where the directory cannot be
  synced the other may have been emptied since: then no release is found, and it is fetched again.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from evenfleet_shared import manifest
from evenfleet_shared.disk import sync_folder
from evenfleet_shared.errors import ArtifactError, StoreError
from evenfleet_shared.manifest import FileRef, Golden, Manifest, Variant

log = logging.getLogger(__name__)

_NAMES: Final = ("a", "b")


class Slots:
    """The releases of one agent on disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._current = directory / "current"
        try:
            for name in _NAMES:
                (directory / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot create {directory}: {error.strerror}; the agent needs a writable state_dir"
            ) from None

    def current(self) -> Path | None:
        """Return the slot that runs, None before the first switch."""
        try:
            name = self._current.readlink().name
        except OSError:
            return None
        return self._directory / name if name in _NAMES else None

    def idle(self) -> Path:
        """Return the slot to fill."""
        running = self.current()
        return self._directory / (_NAMES[1] if running and running.name == _NAMES[0] else _NAMES[0])

    def release(self) -> tuple[Manifest, str] | None:
        """Return the manifest and the digest of the release that runs.

        Returns:
            None where there is none, a damaged one, or one whose golden set has gone: no variant can be run without it.
        """
        running = self.current()
        if running is None:
            return None
        try:
            found = manifest.load(running)
        except ArtifactError:
            return None
        return found if self._holds_all(found[0].golden.files) else None

    def has(self, variant: Variant, golden: Golden) -> bool:
        """Return whether all that a variant is run with is in the slot that runs; sizes are looked at, not digests."""
        return self._holds_all((variant.artifact, *golden.files))

    def switch(self) -> None:
        """Make the idle slot the one that runs; where only its being on disk is in doubt, the log says so.

        Raises:
            StoreError: The symlink could not be replaced; the old one still stands.
        """
        draft = self._directory / "current.new"
        target = self.idle().name
        try:
            draft.unlink(missing_ok=True)
            draft.symlink_to(target)
            draft.replace(self._current)
        except OSError as error:
            raise StoreError(f"cannot switch to slot {target}: {error.strerror}; the old release goes on") from None
        try:
            sync_folder(self._directory)
        except OSError as error:
            # The new one runs already: to call it a failure would start the old release's variants from its slot.
            log.warning(
                "cannot sync %s: %s; a power cut may bring the old release back", self._directory, error.strerror
            )

    def _holds_all(self, files: tuple[FileRef, ...]) -> bool:
        running = self.current()
        try:
            return running is not None and all((running / one.file).stat().st_size == one.size_bytes for one in files)
        except OSError:
            return False
