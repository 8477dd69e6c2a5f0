"""Decide what leaves the outbox without a receipt, and make room of it: the policy of what gives way.

Stands in the outbox's database and in its transactions; the caller begins and commits them. Leaves to `summary` what
becomes of windows that are merged, to `ledger` how what was given up is written down, to `outbox` when there is no room.

* Windows that were never published are merged first, the oldest of them, twelve at a time; then the oldest messages go,
  contexts and summaries last. The newest message always stays.
* A row that is not whole goes as `damaged`, under its number where that can be read; where it cannot, it is counted.
* Whatever goes stands in the ledger, and its bytes in `freed_bytes`.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Final

from evenfleet_agent import held, summary
from evenfleet_agent.ledger import Ledger
from evenfleet_agent.sending import Key, Ways
from evenfleet_shared import messages
from evenfleet_shared.messages import Incarnation, Summary, Window

# How many parts make one summary where there are so many: an hour of five-minute windows, half a day of those.
FAN_IN: Final = 12
# What is too old is looked for no more often than this, and what is damaged.
AGE_CHECK_S: Final = 3600.0

INSERT: Final = (
    "INSERT INTO messages (counter, random, seq, kind, late, level, alike, age_s, payload)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
ORDER: Final = "ORDER BY counter, random, seq"
INDEX_LIES: Final = "an index names a message that the table does not have"
NUMBERS_LOST: Final = "messages whose numbers the disk has damaged were given up; the device's status counts them"
LEDGER_LOST: Final = "entries of the ledger that the disk has damaged were given up"

_ODD: Final = (
    f"({held.WHOLE_MESSAGE} AND {held.WHOLE_LATE} AND {held.WHOLE_LEVEL} AND ({held.WHOLE_ALIKE})"
    f" AND {held.WHOLE_AGE}) IS NOT 1"
)
_PLACE: Final = "rowid, counter, random, seq, coalesce(length(payload), 0)"
_OTHERS: Final = "(counter, random, seq) <> (?, ?, ?)"


class Room:
    """What leaves the outbox in one transaction.

    Attributes:
        freed_bytes: Of messages, so far.
        found_damage: A row was not whole, so that bytes may have been counted otherwise than they are freed.
    """

    def __init__(self, db: sqlite3.Connection, ways: Ways, *, uptime_s: float, wall_s: float) -> None:
        """Begin with a transaction.

        Args:
            db: In the transaction.
            ways: Forgets what goes.
            uptime_s: By the device's monotonic clock, for the ledger.
            wall_s: By its wall clock, for the ledger.
        """
        self._db = db
        self._ways = ways
        self._uptime_s = uptime_s
        self._wall_s = wall_s
        self.freed_bytes = 0
        self.found_damage = False

    def let_go(self, life: Incarnation, first: int, last: int) -> None:
        """Let go of what a receipt settles; the ledger has nothing to say of it."""
        numbers = "counter = ? AND random = ? AND seq BETWEEN ? AND ?"
        values = (*life, first, last)
        (size,) = self._db.execute(
            f"SELECT coalesce(sum(length(payload)), 0) FROM messages WHERE {numbers}", values
        ).fetchone()
        self._db.execute(f"DELETE FROM messages WHERE {numbers}", values)
        self.freed_bytes += size
        self._ways.forget(life, first, last)

    def give_up(self, key: Key, reason: str, *, told: bool = False) -> None:
        """Give up a message, and write down why."""
        life = Incarnation(key[0], key[1])
        self.let_go(life, key[2], key[2])
        self.note(life, key[2], key[2], reason, told=told)

    def note(self, life: Incarnation, first: int, last: int, reason: str, *, told: bool = False) -> None:
        """Write down that numbers are given up."""
        Ledger(self._db).note(life, first, last, reason, told=told, uptime_s=self._uptime_s, wall_s=self._wall_s)

    def give_up_row(self, row: int, number: tuple[object, object, object], size: int, reason: str) -> None:
        """Give up a message by its row, whatever its number is.

        Raises:
            sqlite3.DatabaseError: There is no such row, though an index names it: the file is damaged.
        """
        if self._db.execute("DELETE FROM messages WHERE rowid = ?", (row,)).rowcount != 1:
            raise sqlite3.DatabaseError(INDEX_LIES)
        self.freed_bytes += size
        self.found_damage |= reason == "damaged"
        key = held.key(*number)
        if key is None:
            self.found_damage = True
            Ledger(self._db).count("damaged", 1)
            tell_damage(self._db, NUMBERS_LOST)
            return
        life = Incarnation(key[0], key[1])
        self._ways.forget(life, key[2], key[2])
        self.note(life, key[2], key[2], reason)

    def give_up_damaged(self, age_s: float) -> bool:
        """Give up what the disk has damaged, and set right what can be worked out; return whether there was any.

        It looks at every row, though not into payloads: what these hold is looked at when they go out or are merged.
        """
        before = self._db.total_changes
        # One look at the table in the order that it lies in: this is what the hour costs when nothing is damaged.
        if self._db.execute(f"SELECT 1 FROM messages NOT INDEXED WHERE {_ODD} LIMIT 1").fetchone():
            self._give_up_odd(age_s)
        if Ledger(self._db).give_up_damaged():
            tell_damage(self._db, LEDGER_LOST)
        found = self._db.total_changes != before
        self.found_damage |= found
        return found

    def _give_up_odd(self, age_s: float) -> None:
        for row, *number, size in self._db.execute(
            f"SELECT {_PLACE} FROM messages WHERE ({held.WHOLE_MESSAGE}) IS NOT 1 {ORDER}"
        ).fetchall():
            self.give_up_row(row, (number[0], number[1], number[2]), size, "damaged")
        self._db.execute(f"UPDATE messages SET late = kind = 'backfill' WHERE ({held.WHOLE_LATE}) IS NOT 1")
        # Whether it may be merged is not known any more.
        self._db.execute(
            "UPDATE messages SET level = 0, alike = NULL"
            f" WHERE ({held.WHOLE_LEVEL}) IS NOT 1 OR ({held.WHOLE_ALIKE}) IS NOT 1"
        )
        self._db.execute(f"UPDATE messages SET age_s = ? WHERE ({held.WHOLE_AGE}) IS NOT 1", (age_s,))

    def give_up_old(self, before_age_s: float, newest: Key | None) -> None:
        """Give up what was written before an age of the outbox."""
        for row, *number, size in self._db.execute(
            f"SELECT {_PLACE} FROM messages WHERE age_s < ? {ORDER}", (before_age_s,)
        ).fetchall():
            if tuple(number) != newest:
                self.give_up_row(row, (number[0], number[1], number[2]), size, "too-old")

    def make(self, excess_bytes: int, newest: Key, *, published: Key, age_s: float, packed: bool) -> None:
        """Merge and give up until so many bytes more are free; the newest message always stays.

        Args:
            excess_bytes: How many are too many.
            newest: The message that there is no room for; summaries are numbered in its incarnation.
            published: Up to this number all of the backfill may have been published, and is never merged.
            age_s: Of the outbox.
            packed: Summaries are written as MessagePack.
        """
        wanted = self.freed_bytes + excess_bytes
        while self.freed_bytes < wanted and (
            self._summarise(newest, published, age_s, packed) or self._give_up_oldest(newest)
        ):
            pass

    def _summarise(self, newest: Key, published: Key, age_s: float, packed: bool) -> bool:
        """Make one summary of windows, or of summaries, that were never published; return whether anything changed.

        The oldest go first, and twelve at a time wherever there are so many, so that what is recent stays apart longest.
        """
        db = self._db
        found = db.execute(
            "SELECT level, alike FROM messages WHERE alike IS NOT NULL AND typeof(alike) = 'text'"
            f" AND {held.WHOLE_LEVEL} AND (counter, random, seq) > (?, ?, ?) AND {_OTHERS}"
            " GROUP BY level, alike HAVING count(*) > 1"
            " ORDER BY min(count(*), ?) DESC, level, min(counter), min(seq) LIMIT 1",
            (*published, *newest, FAN_IN),
        ).fetchone()
        if found is None:
            return False
        level, alike = found
        rows = db.execute(
            f"SELECT {_PLACE}, age_s, payload FROM messages WHERE level = ? AND alike = ?"
            f" AND (counter, random, seq) > (?, ?, ?) AND {_OTHERS} {ORDER} LIMIT ?",
            (level, alike, *published, *newest, FAN_IN),
        ).fetchall()
        if len(rows) < 2:
            # The word is no UTF-8.
            return self.give_up_damaged(age_s)
        parts = [_part((row[1], row[2], row[3]), level, row[6]) for row in rows]
        odd = {index for index, part in enumerate(parts) if part is None}
        if not odd:
            odd = set(summary.unlike([part for part in parts if part]))
        for index in odd:
            self._give_up_found(rows[index], "damaged")
        if odd:
            return True
        life = Incarnation(newest[0], newest[1])
        (number,) = db.execute("SELECT next_seq FROM life WHERE one = 1").fetchone()
        try:
            merged = summary.merge([part for part in parts if part], life, number, number)
        except (ValueError, ArithmeticError):
            # Something is damaged, and which of them is not known: they go as they are.
            db.executemany("UPDATE messages SET alike = NULL WHERE rowid = ?", [(row[0],) for row in rows])
            return True
        made = messages.encode(merged, compact=packed, packed=packed)
        if sum(row[4] for row in rows) <= len(made):
            return False
        for row in rows:
            self._give_up_found(row, "summarised")
        db.execute("UPDATE life SET next_seq = ? WHERE one = 1", (number + 1,))
        # Summaries that were made before and after something was published have that between them.
        under = alike if level else f"{alike}@{published[0]}.{published[2]}"
        ages = [row[5] for row in rows if isinstance(row[5], float)]
        db.execute(INSERT, (*life, number, "backfill", True, level + 1, under, max(ages, default=age_s), made))
        self.freed_bytes -= len(made)
        return True

    def _give_up_oldest(self, newest: Key) -> bool:
        """Give up the oldest message, contexts and summaries last; return whether there was one."""
        for others in ("level = 0 AND kind <> 'context'", "1"):
            found = self._db.execute(
                f"SELECT {_PLACE} FROM messages WHERE {others} AND ({_OTHERS}) IS NOT 0 {ORDER} LIMIT 1", newest
            ).fetchone()
            if found is not None:
                self._give_up_found(found, "outbox-full")
                return True
        return False

    def _give_up_found(self, found: tuple[Any, ...], reason: str) -> None:
        row, counter, random, seq, size, *_ = found
        self.give_up_row(row, (counter, random, seq), size, reason)


def tell_damage(db: sqlite3.Connection, detail: str) -> None:
    """Leave a line for the collector, unless the same waits already."""
    db.execute(
        "INSERT INTO damages (detail) SELECT ? WHERE NOT EXISTS (SELECT 1 FROM damages WHERE detail = ?)",
        (detail, detail),
    )


def _part(number: tuple[object, object, object], level: int, payload: object) -> Window | Summary | None:
    """Return a window or a summary as it was written, None where the disk has damaged it."""
    message = held.whole(number, "backfill", payload)
    expected = Summary if level else Window
    return message if isinstance(message, expected) else None
