"""The ledger of what was given up: which numbers, why, when, and whether the collector has been told.

Stands in the outbox's database and in its transactions; the caller begins and commits them.

* A number stands here once, or is counted in `told_losses` under its reason.
* Ranges that touch and were given up for the same reason are one row, so that it stays small.
* What nobody has been told of stays, number by number; of what was told only the newest does.
* A row that the disk has damaged is passed over, until `give_up_damaged` takes it out.
"""

from __future__ import annotations

import math
import sqlite3
from dataclasses import dataclass
from typing import Final

from evenfleet_agent import held
from evenfleet_shared.messages import Incarnation, Loss

# Losses that the collector was told of, one by one; older ones are only counted.
MAX_TOLD: Final = 256
# What one event holds.
MAX_LOSSES: Final = 256

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS ledger (
    id INTEGER PRIMARY KEY, counter INTEGER, random TEXT, first INTEGER, last INTEGER, reason TEXT,
    told INTEGER DEFAULT 0, noted_uptime_s REAL, noted_wall_s REAL);
CREATE TABLE IF NOT EXISTS told_losses (reason TEXT PRIMARY KEY, messages INTEGER);
"""
# Those that came later, for files of earlier versions.
COLUMNS: Final = (("ledger", "noted_uptime_s", "REAL"), ("ledger", "noted_wall_s", "REAL"))

_INSERT: Final = (
    "INSERT INTO ledger (counter, random, first, last, reason, told, noted_uptime_s, noted_wall_s)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_WHOLE: Final = (
    f"{held.WHOLE_LIFE} AND {held.WHOLE_REASON} AND typeof(first) = 'integer' AND first >= 1"
    f" AND typeof(last) = 'integer' AND last BETWEEN first AND {held.MAX_SEQ}"
)
_WHOLE_TOLD: Final = "typeof(told) = 'integer' AND told IN (0, 1)"
_WHOLE_TOTAL: Final = f"{held.WHOLE_REASON} AND typeof(messages) = 'integer' AND messages BETWEEN 0 AND {held.MAX_SEQ}"
_SAME: Final = f"{_WHOLE} AND counter = ? AND random = ? AND reason = ? AND told = ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Numbers that were given up, and when the last of them was, by the device's own clocks; None where not known."""

    loss: Loss
    noted_uptime_s: float | None
    noted_wall_s: float | None


class Ledger:
    """The ledger of an open database."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def note(
        self, life: Incarnation, first: int, last: int, reason: str, *, told: bool, uptime_s: float, wall_s: float
    ) -> None:
        """Write down that numbers were given up; a row that they touch takes them in."""
        same = (*life, reason, int(told))
        for row, low, high in self._db.execute(
            f"SELECT id, first, last FROM ledger WHERE {_SAME} AND (last = ? OR first = ?)",
            (*same, first - 1, last + 1),
        ).fetchall():
            first, last = min(first, low), max(last, high)
            self._db.execute("DELETE FROM ledger WHERE id = ?", (row,))
        self._db.execute(_INSERT, (*life, first, last, reason, int(told), uptime_s, wall_s))

    def untold(self) -> list[Loss]:
        """Return the oldest of what the collector has not been told of, as much as one event holds."""
        rows = self._db.execute(
            f"SELECT counter, random, first, last, reason FROM ledger WHERE {_WHOLE} AND told = 0 ORDER BY id LIMIT ?",
            (MAX_LOSSES,),
        ).fetchall()
        return [_loss(*row) for row in rows]

    def told(self, losses: list[Loss]) -> None:
        """Note that an event with these losses is in the outbox; what joined them since is still to be told."""
        for loss in losses:
            for row, first, last, *noted in self._db.execute(
                "SELECT id, first, last, noted_uptime_s, noted_wall_s FROM ledger"
                f" WHERE {_SAME} AND first <= ? AND last >= ?",
                (*loss.incarnation, loss.reason, 0, loss.first_seq, loss.last_seq),
            ).fetchall():
                self._db.execute("DELETE FROM ledger WHERE id = ?", (row,))
                for low, high, told in (
                    (first, loss.first_seq - 1, 0),
                    (loss.first_seq, loss.last_seq, 1),
                    (loss.last_seq + 1, last, 0),
                ):
                    if low <= high:
                        self._db.execute(_INSERT, (*loss.incarnation, low, high, loss.reason, told, *noted))
        self.count_old()

    def count_old(self) -> None:
        """Keep of the losses that were told only the newest one by one, so that the ledger does not grow for years."""
        old = self._db.execute(
            f"SELECT id, reason, last - first + 1 FROM ledger WHERE {_WHOLE} AND told = 1 ORDER BY id DESC LIMIT -1 OFFSET ?",
            (MAX_TOLD,),
        ).fetchall()
        for row, reason, count in old:
            self.count(reason, count)
            self._db.execute("DELETE FROM ledger WHERE id = ?", (row,))

    def count(self, reason: str, messages: int) -> None:
        """Count messages that no row names."""
        self._db.execute(
            "INSERT INTO told_losses VALUES (?, ?) ON CONFLICT (reason) DO UPDATE SET messages = messages + ?",
            (reason, messages, messages),
        )

    def give_up_damaged(self) -> bool:
        """Take out rows that say no numbers any more; return whether there were any."""
        self._db.execute(f"UPDATE ledger SET told = 0 WHERE ({_WHOLE_TOLD}) IS NOT 1")
        gone = self._db.execute(f"DELETE FROM ledger WHERE ({_WHOLE}) IS NOT 1").rowcount
        gone += self._db.execute(f"DELETE FROM told_losses WHERE ({_WHOLE_TOTAL}) IS NOT 1").rowcount
        return gone > 0


def drops(db: sqlite3.Connection) -> tuple[dict[str, int], tuple[Drop, ...]]:
    """Return how many messages were ever given up by reason, and those that still stand one by one.

    The file may be one that an earlier version made and that no agent has opened since.
    """
    columns = {name for (name,) in db.execute("SELECT name FROM pragma_table_info('ledger')")}
    noted = "noted_uptime_s, noted_wall_s" if "noted_wall_s" in columns else "NULL, NULL"
    # In one statement, or the agent might move a row from one table to the other in between.
    rows = db.execute(
        f"SELECT id, counter, random, first, last, reason, {noted} FROM ledger WHERE {_WHOLE}"
        " UNION ALL SELECT NULL, NULL, NULL, 1, messages, reason, NULL, NULL FROM told_losses"
        f" WHERE {_WHOLE_TOTAL} ORDER BY 1"
    ).fetchall()
    given_up: dict[str, int] = {}
    found = []
    for row, counter, random, first, last, reason, uptime_s, wall_s in rows:
        given_up[reason] = given_up.get(reason, 0) + last - first + 1
        if row is not None:
            loss = _loss(counter, random, first, last, reason)
            found.append(Drop(loss=loss, noted_uptime_s=_clock_s(uptime_s), noted_wall_s=_clock_s(wall_s)))
    return given_up, tuple(found)


def _loss(counter: int, random: str, first: int, last: int, reason: str) -> Loss:
    return Loss(incarnation=Incarnation(counter, random), first_seq=first, last_seq=last, reason=reason)


def _clock_s(cell: object) -> float | None:
    return cell if isinstance(cell, float) and math.isfinite(cell) else None
