"""Keep the counter that tells this device's lives apart in a file of its own, and count time that no power cut undoes.

* A counter is on disk before a life with it begins; a lost outbox does not begin an old life again.
* Age is uptime: the wall clock of a board may jump by fifty years, and time without power is time that nobody knows of.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evenfleet_shared.disk import write_whole
from evenfleet_shared.errors import StoreError

COUNTER_NAME: Final = "incarnation"

# What a message may name; nobody gets there by rebooting.
MAX_COUNTER: Final = 2**31


class CounterFile:
    """The incarnation counter, in a file of its own, on disk before it is used."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> int:
        """Return the last counter used; 0 where the file is missing or damaged."""
        try:
            counter = int(self._path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0
        return counter if 0 <= counter < MAX_COUNTER else 0

    def write(self, counter: int) -> None:
        """Replace the counter, whole or not at all.

        Raises:
            StoreError: The directory cannot be written.
        """
        try:
            write_whole(self._path, str(counter).encode("ascii"))
        except OSError as error:
            raise StoreError(
                f"cannot write {self._path}: {error.strerror}; the agent needs a writable state_dir"
            ) from None


@dataclass(frozen=True, slots=True)
class AgeClock:
    """Seconds that this device has been up since its outbox was made, over all boots, as far as was written down.

    `before_s` are those of the boots before this one: up to the last write of each.
    """

    before_s: float

    def at_s(self, uptime_s: float) -> float:
        """Return the age of the outbox at an uptime of this boot.

        >>> AgeClock(before_s=500.0).at_s(20.0)
        520.0
        """
        return self.before_s + uptime_s
