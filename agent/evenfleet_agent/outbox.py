"""Keep everything sent up on disk until the collector has receipted it, and a ledger of what was given up.

Decides which messages are due to be sent, what a receipt settles, and what gives way when the disk's share is full.
Leaves to `link` how they travel.

* A message has its number when it is on disk, and keeps it: numbers are never used twice within an incarnation.
* A message leaves the outbox only when a receipt settles it, or when the ledger says why.
* A gap in a receipt counts once for each time that the message was really sent again, however many receipts show it.
* A new incarnation begins at every boot of the device and whenever the file is created anew; the counter that tells
  incarnations apart lies in a file of its own, so that a lost outbox does not begin an old life again.
"""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evenfleet_shared import messages
from evenfleet_shared.disk import write_whole
from evenfleet_shared.errors import MessageError, StoreError
from evenfleet_shared.messages import Incarnation, IncarnationReceipt, Loss, Numbered, Receipt

FILE_NAME: Final = "outbox.sqlite"
COUNTER_NAME: Final = "incarnation"

# Messages published and not receipted, at most: what a slow collector or a lost receipt can make us hold in memory.
MAX_UNDER_WAY: Final = 1000

RESEND_FIRST_S: Final = 300.0
RESEND_MAX_S: Final = 3600.0
# A gap that a receipt shows is news only of what was sent some time before the receipt came.
GAP_PATIENCE_S: Final = 5.0
# How long a missing message waits to be sent again, by how often it was already, and at last to be given up. What never
# arrives although later messages do cannot be decoded over there, not even its number; but a queue that is full
# acknowledges messages and drops them just so, and a slow collector has not come to them yet. So it takes hours, and a
# queue that is full for one and a half of them, then an hour behind, costs nothing.
GAP_WAITS_S: Final = (GAP_PATIENCE_S, 60.0, 600.0, 1800.0, 3600.0, 7200.0)
MAX_GAP_RESENDS: Final = len(GAP_WAITS_S) - 1

# Losses that the collector was told of, one by one; older ones are only counted.
MAX_TOLD: Final = 256

# What a message may name; nobody gets there by rebooting.
MAX_COUNTER: Final = 2**31

Key = tuple[int, str, int]

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS life (
    one INTEGER PRIMARY KEY CHECK (one = 1), counter INTEGER, random TEXT, next_seq INTEGER, boot TEXT);
CREATE TABLE IF NOT EXISTS messages (
    counter INTEGER, random TEXT, seq INTEGER, kind TEXT, payload BLOB, PRIMARY KEY (counter, random, seq));
CREATE TABLE IF NOT EXISTS ledger (
    id INTEGER PRIMARY KEY, counter INTEGER, random TEXT, first INTEGER, last INTEGER, reason TEXT,
    told INTEGER DEFAULT 0);
CREATE TABLE IF NOT EXISTS told_losses (reason TEXT PRIMARY KEY, messages INTEGER);
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A message that is due, as it goes on the wire."""

    key: Key
    kind: str
    payload: bytes


@dataclass(slots=True)
class _Sending:
    """What is known of a message's way since this process started; forgotten with it, which only costs a resend."""

    sent_s: float
    again_s: float
    wait_s: float


@dataclass(slots=True)
class _Gap:
    """A message that receipts show as missing; kept over reconnections, or a poor link would let it try for ever.

    `since_s` is when it was sent for the last time that counts: `resends` are those that waited for their time, not
    those that a reconnection brought.
    """

    since_s: float
    resends: int = 0
    shown: bool = True

    @property
    def due_s(self) -> float:
        return self.since_s + GAP_WAITS_S[self.resends]


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


def open_outbox(
    directory: Path, *, boot: str, new_random: Callable[[], str], max_bytes: int, jitter: Callable[[], float]
) -> Outbox:
    """Open or create the outbox of a state directory; a damaged file is set aside and its loss told.

    Raises:
        StoreError: The directory cannot be written.
    """
    path = directory / FILE_NAME
    counters = CounterFile(directory / COUNTER_NAME)

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None)

    def build() -> Outbox:
        return Outbox(connect, counters, boot=boot, new_random=new_random, max_bytes=max_bytes, jitter=jitter)

    try:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            return build()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            for suffix in ("", "-wal", "-shm"):
                damaged = path.with_name(path.name + suffix)
                if damaged.exists():
                    damaged.replace(path.with_name(f"{path.name}{suffix}.damaged"))
            return build()
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"cannot open the outbox {path}: {error}; the agent needs a writable state_dir") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What an outbox holds, and what was given up, told to the collector or not.

    `given_up` counts all messages ever given up by reason, `losses` names those that the ledger still has one by one.
    """

    incarnation: Incarnation | None
    last_seq: int
    messages: int
    bytes: int
    given_up: dict[str, int]
    losses: tuple[Loss, ...]


def look(directory: Path) -> Holding:
    """Look into the outbox of a state directory, whose agent may be running.

    Raises:
        StoreError: There is none, or it cannot be read.
    """
    try:
        with closing(sqlite3.connect(f"file:{directory / FILE_NAME}?mode=ro", uri=True)) as db:
            life = db.execute("SELECT counter, random, next_seq - 1 FROM life").fetchone()
            held = db.execute("SELECT count(*), coalesce(sum(length(payload)), 0) FROM messages").fetchone()
            # In one statement, or the agent might move a row from one table to the other in between.
            rows = db.execute(
                "SELECT id, counter, random, first, last, reason FROM ledger"
                " UNION ALL SELECT NULL, NULL, NULL, 1, messages, reason FROM told_losses ORDER BY 1"
            ).fetchall()
    except sqlite3.Error as error:
        raise StoreError(str(error)) from None
    given_up: Counter[str] = Counter()
    for *_, first, last, reason in rows:
        given_up[reason] += last - first + 1
    return Holding(
        incarnation=Incarnation(life[0], life[1]) if life else None,
        last_seq=life[2] if life else 0,
        messages=held[0],
        bytes=held[1],
        given_up=dict(given_up),
        losses=_losses([row[1:] for row in rows if row[0] is not None]),
    )


class Outbox:
    """The messages of one device that the collector has not receipted."""

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        counters: CounterFile,
        *,
        boot: str,
        new_random: Callable[[], str],
        max_bytes: int,
        jitter: Callable[[], float],
    ) -> None:
        """Open the outbox.

        Args:
            connect: Opens the database, in autocommit mode.
            counters: Where the incarnation counter lies.
            boot: Names this boot of the device.
            new_random: Returns a fresh random word for an incarnation.
            max_bytes: Of all messages together; beyond it the oldest give way, and the ledger says so.
            jitter: Returns a factor around 1 for each waiting time, so that a fleet does not resend in step.
        """
        self._counters = counters
        self._boot = boot
        self._new_random = new_random
        self._max_bytes = max_bytes
        self._jitter = jitter
        self._sending: dict[Key, _Sending] = {}
        self._gaps: dict[Key, _Gap] = {}
        self._db = connect()
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA cache_size=-256")
        self._db.executescript(_SCHEMA)
        row = self._db.execute("SELECT counter, random, boot FROM life").fetchone()
        if row is None or row[2] != boot:
            self.begin_life(after=max(counters.read(), row[0] if row else 0))
        else:
            self.incarnation = Incarnation(row[0], row[1])
        self._bytes = self._count_bytes()

    incarnation: Incarnation

    def begin_life(self, *, after: int) -> None:
        """Begin an incarnation whose counter is above `after`; what older ones hold stays to be sent."""
        incarnation = Incarnation(after + 1, self._new_random())
        self._counters.write(incarnation.counter)
        self._db.execute("INSERT OR REPLACE INTO life VALUES (1, ?, ?, 1, ?)", (*incarnation, self._boot))
        self.incarnation = incarnation

    def append(self, kind: str, make: Callable[[Incarnation, int, int], Numbered]) -> int:
        """Write a message to disk under the next number.

        Args:
            kind: The topic's kind.
            make: Given incarnation, seq and floor, returns the message.

        Returns:
            Its number.

        Raises:
            StoreError: It could not be written; no number was used up.
        """
        with self._transaction():
            (seq,) = self._db.execute("SELECT next_seq FROM life").fetchone()
            payload = messages.encode(make(self.incarnation, seq, seq))
            self._db.execute("INSERT INTO messages VALUES (?, ?, ?, ?, ?)", (*self.incarnation, seq, kind, payload))
            self._db.execute("UPDATE life SET next_seq = ?", (seq + 1,))
            evicted = self._make_room(len(payload))
        self._bytes += len(payload) - evicted
        return int(seq)

    def floor(self, incarnation: Incarnation | None = None) -> int:
        """Return the lowest number still held of an incarnation (the present one by default), or the next to come."""
        life = incarnation or self.incarnation
        with self._reported("read"):
            row = self._db.execute("SELECT min(seq) FROM messages WHERE counter = ? AND random = ?", life).fetchone()
        if row[0] is not None:
            return int(row[0])
        if life == self.incarnation:
            return self.last_seq + 1
        raise ValueError(f"nothing is held of incarnation {life}")

    @property
    def last_seq(self) -> int:
        """Return the last number given out in this incarnation; 0 at its start."""
        with self._reported("read"):
            return int(self._db.execute("SELECT next_seq FROM life").fetchone()[0]) - 1

    @property
    def size_bytes(self) -> int:
        """Return how many bytes of messages are held."""
        return self._bytes

    def __len__(self) -> int:
        with self._reported("read"):
            return int(self._db.execute("SELECT count(*) FROM messages").fetchone()[0])

    def due(self, now_s: float, limit: int) -> list[Entry]:
        """Return messages to send now, the oldest first: never sent since the last (re)connection, or overdue.

        What the disk has damaged is given up, or it would keep what is behind it from ever being sent.

        Args:
            now_s: Monotonic seconds.
            limit: At most so many.

        Raises:
            StoreError: The disk cannot be read, or what is damaged cannot be given up.
        """
        waiting = [key for key, sending in self._sending.items() if now_s < sending.again_s]
        limit = min(limit, MAX_UNDER_WAY - len(waiting))
        if limit <= 0:
            return []
        blocked = set(waiting)
        entries = []
        damaged: list[Key] = []
        with self._reported("read"):
            # So many hold as many as are asked for, whichever are waiting: a long queue is not listed each time.
            keys = self._db.execute(
                "SELECT counter, random, seq FROM messages ORDER BY counter, random, seq LIMIT ?",
                (len(blocked) + limit,),
            ).fetchall()
            for key in [key for key in keys if key not in blocked][:limit]:
                kind, payload = self._db.execute(
                    "SELECT kind, payload FROM messages WHERE counter = ? AND random = ? AND seq = ?", key
                ).fetchone()
                floor = self.floor(Incarnation(key[0], key[1]))
                try:
                    entries.append(Entry(key, kind, messages.with_floor(payload, floor)))
                except MessageError:
                    damaged.append(key)
        if damaged:
            self._give_up_damaged(damaged)
        return entries

    def sent(self, key: Key, now_s: float) -> None:
        """Note that a message was handed to the broker's client."""
        before = self._sending.get(key)
        wait_s = min(RESEND_MAX_S, before.wait_s * 2) if before else RESEND_FIRST_S
        self._sending[key] = _Sending(now_s, now_s + wait_s * self._jitter(), wait_s)
        gap = self._gaps.get(key)
        if gap and gap.shown and gap.resends < MAX_GAP_RESENDS and now_s >= gap.due_s:
            self._gaps[key] = _Gap(now_s, gap.resends + 1, shown=False)

    def reconnected(self) -> None:
        """Make everything due again: what was under way may be lost."""
        self._sending.clear()

    def settle(self, receipt: Receipt, now_s: float) -> bool:
        """Let go of what a receipt settles, and make what it misses due.

        Returns:
            Whether a new incarnation began, because the collector knows a later one than ours: the counter file was
            lost, or the device's disk was copied.

        Raises:
            StoreError: It could not be written; nothing was let go of, or no new incarnation began.
        """
        with self._transaction():
            for part in receipt.incarnations:
                self._settle_life(part, now_s)
            if any(part.refused for part in receipt.incarnations):
                self._count_old_losses()
            held_bytes = self._count_bytes()
        self._bytes = held_bytes
        strangers = (part.incarnation.counter for part in receipt.incarnations if self._is_later(part.incarnation))
        latest = max((*strangers, receipt.last_counter))
        if latest >= MAX_COUNTER:
            return False  # no collector of ours says so, and there would be no number left for the next life
        if latest > self.incarnation.counter or any(self._is_later(part.incarnation) for part in receipt.incarnations):
            with self._reported("write to"):
                self.begin_life(after=latest)
            return True
        return False

    def ledger(self) -> list[Loss]:
        """Return what was given up and the collector has not been told of."""
        with self._reported("read"):
            rows = self._db.execute(
                "SELECT counter, random, first, last, reason FROM ledger WHERE told = 0 ORDER BY id LIMIT 256"
            ).fetchall()
        return list(_losses(rows))

    def told(self, losses: list[Loss]) -> None:
        """Note that an event with these losses is in the outbox."""
        with self._transaction():
            for loss in losses:
                self._db.execute(
                    "UPDATE ledger SET told = 1 WHERE counter = ? AND random = ? AND first = ? AND last = ?",
                    (*loss.incarnation, loss.first_seq, loss.last_seq),
                )
            self._count_old_losses()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Begin, and commit at the end unless an error leaves the block."""
        with self._reported("write to"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _reported(self, doing: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"cannot {doing} the outbox: {error}") from error

    def _count_bytes(self) -> int:
        return int(self._db.execute("SELECT coalesce(sum(length(payload)), 0) FROM messages").fetchone()[0])

    def _is_later(self, other: Incarnation) -> bool:
        return other.counter > self.incarnation.counter or (
            # The same counter given out twice: two lives that the collector could not put in order.
            other.counter == self.incarnation.counter and other.random != self.incarnation.random
        )

    def _settle_life(self, part: IncarnationReceipt, now_s: float) -> None:
        life = part.incarnation
        for refusal in part.refused:
            if self._holds((*life, refusal.seq)):
                self._give_up(life, refusal.seq, refusal.seq, f"refused-{refusal.reason}", told=True)
        self._drop(life, 1, part.contiguous)
        settled_from = part.contiguous + 1
        for first, last in part.gaps:
            self._drop(life, settled_from, first - 1)
            settled_from = last + 1
            self._show_gap(life, first, last, now_s)

    def _show_gap(self, life: Incarnation, first: int, last: int, now_s: float) -> None:
        for key in _within(self._sending, life, first, last):
            sending = self._sending[key]
            if now_s - sending.sent_s < GAP_PATIENCE_S:
                continue
            gap = self._gaps.setdefault(key, _Gap(sending.sent_s))
            gap.shown = True
            if gap.resends < MAX_GAP_RESENDS:
                sending.again_s = max(now_s, gap.due_s)
            elif now_s < gap.due_s:
                sending.again_s = math.inf  # that was the last time, but for a reconnection
            else:
                self._give_up(life, key[2], key[2], "never-taken", told=False)

    def _holds(self, key: Key) -> bool:
        return bool(
            self._db.execute("SELECT 1 FROM messages WHERE counter = ? AND random = ? AND seq = ?", key).fetchone()
        )

    def _drop(self, life: Incarnation, first: int, last: int) -> None:
        self._db.execute(
            "DELETE FROM messages WHERE counter = ? AND random = ? AND seq BETWEEN ? AND ?", (*life, first, last)
        )
        for key in _within(self._sending, life, first, last):
            del self._sending[key]
        for key in _within(self._gaps, life, first, last):
            del self._gaps[key]

    def _give_up(self, life: Incarnation, first: int, last: int, reason: str, *, told: bool) -> None:
        self._drop(life, first, last)
        joined = self._db.execute(
            "UPDATE ledger SET last = ? WHERE counter = ? AND random = ? AND last = ? AND reason = ? AND told = ?",
            (last, *life, first - 1, reason, int(told)),
        )
        if joined.rowcount:
            return
        self._db.execute(
            "INSERT INTO ledger (counter, random, first, last, reason, told) VALUES (?, ?, ?, ?, ?, ?)",
            (*life, first, last, reason, int(told)),
        )

    def _give_up_damaged(self, damaged: list[Key]) -> None:
        with self._transaction():
            for counter, random, seq in damaged:
                self._give_up(Incarnation(counter, random), seq, seq, "damaged", told=False)
            held_bytes = self._count_bytes()
        self._bytes = held_bytes

    def _count_old_losses(self) -> None:
        """Keep of the losses that were told only the newest one by one, so that the ledger does not grow for years."""
        old = self._db.execute(
            "SELECT id, reason, last - first + 1 FROM ledger WHERE told = 1 ORDER BY id DESC LIMIT -1 OFFSET ?",
            (MAX_TOLD,),
        ).fetchall()
        for row, reason, count in old:
            self._db.execute(
                "INSERT INTO told_losses VALUES (?, ?) ON CONFLICT (reason) DO UPDATE SET messages = messages + ?",
                (reason, count, count),
            )
            self._db.execute("DELETE FROM ledger WHERE id = ?", (row,))

    def _make_room(self, new_bytes: int) -> int:
        """Give up the oldest messages until the rest fits; the new one always stays."""
        excess = self._bytes + new_bytes - self._max_bytes
        freed = 0
        while freed < excess:
            row = self._db.execute(
                "SELECT counter, random, seq, length(payload) FROM messages"
                " WHERE NOT (counter = ? AND random = ? AND seq = (SELECT next_seq - 1 FROM life))"
                " ORDER BY counter, random, seq LIMIT 1",
                self.incarnation,
            ).fetchone()
            if row is None:
                break
            self._give_up(Incarnation(row[0], row[1]), row[2], row[2], "outbox-full", told=False)
            freed += row[3]
        return freed


def _within(known: Collection[Key], life: Incarnation, first: int, last: int) -> list[Key]:
    """Return the keys of a range; a receipt may name hundreds of short ones, and one that never ends."""
    if last - first < len(known):
        return [key for seq in range(first, last + 1) if (key := (*life, seq)) in known]
    return [key for key in known if key[:2] == life and first <= key[2] <= last]


def _losses(rows: list[tuple[int, str, int, int, str]]) -> tuple[Loss, ...]:
    return tuple(
        Loss(incarnation=Incarnation(c, r), first_seq=first, last_seq=last, reason=reason)
        for c, r, first, last, reason in rows
    )
