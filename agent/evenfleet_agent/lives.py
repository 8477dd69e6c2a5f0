"""Keep the counter that tells this device's lives apart in a file of its own, and count time that no power cut undoes.

* A counter is on disk before a life with it begins; a lost outbox does not begin an old life again.
* A life whose row the disk has damaged is not gone on with: the next number is not known, and none is used twice.
* Age is uptime: the wall clock of a board may jump by fifty years, and time without power is time that nobody knows of.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evenfleet_agent import held
from evenfleet_shared.disk import write_whole
from evenfleet_shared.errors import StoreError
from evenfleet_shared.messages import Incarnation

COUNTER_NAME: Final = "incarnation"

# What a message may name; nobody gets there by rebooting.
MAX_COUNTER: Final = 2**31
# Half of what a message may name; nobody gets there by measuring.
MAX_NEXT_SEQ: Final = held.MAX_SEQ // 2

LIFE: Final = "counter, random, next_seq, boot, stretch, settled, before_s, age_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """The life that an outbox is in, as its file has it.

    Attributes:
        incarnation: Which it is.
        next_seq: The number to give out next.
        boot: Names the boot that it began in; empty where that is not known.
        stretch: Where the present stretch without a session began; 0 for none.
        settled: Everything up to this number is settled.
        before_s: The age of the outbox when the boot began; None where it is not known.
        age_s: Its age at the last write; None where it is not known.
    """

    incarnation: Incarnation
    next_seq: int
    boot: str
    stretch: int
    settled: int
    before_s: float | None
    age_s: float | None


def read_life(row: tuple[object, ...] | None) -> Life | None:
    """Return a life from its row's `LIFE`, None where it is damaged beyond going on with it.

    >>> read_life((3, "aaaaaaaa", 7, "boot-1", None, "x", 1.0, -4)).stretch
    0
    >>> read_life((3, "aaaaaaaa", "seven", "boot-1", 0, 0, 1.0, 2.0)) is None
    True
    """
    if row is None:
        return None
    counter, random, next_seq, boot, stretch, settled, before_s, age_s = row
    incarnation = held.life(counter, random)
    if incarnation is None or incarnation.counter >= MAX_COUNTER:
        return None
    if not isinstance(next_seq, int) or not 1 <= next_seq <= MAX_NEXT_SEQ:
        return None
    return Life(
        incarnation=incarnation,
        next_seq=next_seq,
        boot=boot if isinstance(boot, str) else "",
        stretch=stretch if isinstance(stretch, int) and 0 < stretch < next_seq else 0,
        settled=settled if isinstance(settled, int) and 0 < settled < next_seq else 0,
        before_s=_age_s(before_s),
        age_s=_age_s(age_s),
    )


def _age_s(cell: object) -> float | None:
    return cell if isinstance(cell, float) and 0.0 <= cell <= held.MAX_AGE_S else None


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
