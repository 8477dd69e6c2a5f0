"""Keep everything sent up on disk until the collector has receipted it, and a ledger of what was given up.

Decides which messages are due to be sent and what a receipt settles. Leaves to `room` what gives way when the disk's
share is full, to `sending` when a message goes again, to `held` what is whole, to `link` how messages travel.

* A message has its number when it is on disk, and keeps it: numbers are never used twice within an incarnation.
* A message leaves the outbox only when a receipt settles it, or when the ledger says why.
* A new incarnation begins at every boot of the device and whenever the file is created anew; the counter that tells
  incarnations apart lies in a file of its own, so that a lost outbox does not begin an old life again.
* What may have been published is never merged. A window written while a session stands counts as published at once; one
  written without counts from when a mark, on disk before it goes out, has passed it.
* A cell that turns out damaged costs its message, or what the cell said, and never more than a `StoreError`.
* A file that turns out damaged is set aside whenever that is, what can be read of it is taken over, and the loss told.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evenfleet_agent import held, ledger, rescue, summary
from evenfleet_agent.ledger import Drop, Ledger
from evenfleet_agent.lives import COUNTER_NAME, LIFE, MAX_COUNTER, AgeClock, CounterFile, Life, read_life
from evenfleet_agent.room import AGE_CHECK_S, INDEX_LIES, INSERT, ORDER, Room, tell_damage
from evenfleet_agent.sending import MAX_UNDER_WAY, Key, Rate, Ways
from evenfleet_shared import messages
from evenfleet_shared.disk import sync_folder
from evenfleet_shared.errors import StoreError
from evenfleet_shared.messages import AppWindow, Incarnation, IncarnationReceipt, Loss, Numbered, Receipt, Window

FILE_NAME: Final = "outbox.sqlite"
# One damaged file is kept, for a person to look at; the next one takes its place.
DAMAGED_NAME: Final = f"{FILE_NAME}.damaged"

DEFAULT_MAX_AGE_S: Final = 30 * 86_400.0
DEFAULT_BACKFILL_PER_S: Final = 10.0

# How far ahead backfill is marked as published: a mark is a write and a sync, so it is not made for each message.
MARK_AHEAD: Final = 100
# A loss takes the room of more messages when it is told: so while there is no room it is told as seldom as this.
TELL_WHEN_FULL_S: Final = 600.0
_ROOM_TO_TELL: Final = 0.9
# How long a write waits for whoever holds the file. The device's one loop waits with it, and tries again later anyway.
BUSY_WAIT_S: Final = 0.2

_LIFE_LOST: Final = "the next number was damaged: a new incarnation was begun, and nothing that was held is lost"
_DETAIL_LOST: Final = "what was said here of a damaged outbox is damaged itself"

# Between the keys of the messages and before all of them.
_BEFORE_ALL: Final[Key] = (0, "", 0)

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS life (
    one INTEGER PRIMARY KEY CHECK (one = 1), counter INTEGER, random TEXT, next_seq INTEGER, boot TEXT,
    stretch INTEGER DEFAULT 0, settled INTEGER DEFAULT 0, before_s REAL DEFAULT 0, age_s REAL DEFAULT 0);
CREATE TABLE IF NOT EXISTS messages (
    counter INTEGER, random TEXT, seq INTEGER, kind TEXT, late INTEGER DEFAULT 0, level INTEGER DEFAULT 0,
    alike TEXT, age_s REAL DEFAULT 0, payload BLOB, PRIMARY KEY (counter, random, seq));
CREATE TABLE IF NOT EXISTS marks (one INTEGER PRIMARY KEY CHECK (one = 1), counter INTEGER, random TEXT, seq INTEGER);
CREATE TABLE IF NOT EXISTS damages (id INTEGER PRIMARY KEY, detail TEXT);
"""
# Those that came later, for files of earlier versions: what lies in them counts as published and new.
_COLUMNS: Final = (
    ("life", "stretch", "INTEGER DEFAULT 0"),
    ("life", "settled", "INTEGER DEFAULT 0"),
    ("life", "before_s", "REAL DEFAULT 0"),
    ("life", "age_s", "REAL DEFAULT 0"),
    ("messages", "late", "INTEGER DEFAULT 0"),
    ("messages", "level", "INTEGER DEFAULT 0"),
    ("messages", "alike", "TEXT"),
    ("messages", "age_s", "REAL DEFAULT 0"),
    *ledger.COLUMNS,
)
_INDEXES: Final = """
CREATE INDEX IF NOT EXISTS sending ON messages (late, counter, random, seq);
CREATE INDEX IF NOT EXISTS merging ON messages (level, alike, counter, random, seq) WHERE alike IS NOT NULL;
"""
_KEY: Final = "counter = ? AND random = ? AND seq = ?"


class OutboxDamagedError(StoreError):
    """The file was damaged; it has been set aside and a new one begun, so that the next try finds that."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A message that is due, as it goes on the wire."""

    key: Key
    kind: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What an outbox holds, and what was given up, told to the collector or not.

    `given_up` counts all messages ever given up by reason, `drops` names those that the ledger still has one by one.
    """

    incarnation: Incarnation | None
    last_seq: int
    messages: int
    bytes: int
    given_up: dict[str, int]
    drops: tuple[Drop, ...]

    @property
    def losses(self) -> tuple[Loss, ...]:
        """Return what the ledger still has one by one."""
        return tuple(drop.loss for drop in self.drops)


def open_outbox(
    directory: Path,
    *,
    boot: str,
    new_random: Callable[[], str],
    max_bytes: int,
    jitter: Callable[[], float],
    max_age_s: float = DEFAULT_MAX_AGE_S,
    fsync_interval_s: float | None = None,
    backfill_per_s: float = DEFAULT_BACKFILL_PER_S,
    uptime_s: Callable[[], float] = time.monotonic,
    wall_s: Callable[[], float] = time.time,
    packed: bool = False,
) -> Outbox:
    """Open or create the outbox of a state directory; a damaged file is set aside and its loss told.

    Raises:
        StoreError: The directory cannot be written.
    """
    path = directory / FILE_NAME
    counters = CounterFile(directory / COUNTER_NAME)

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None)

    def set_aside() -> Path:
        damaged = directory / DAMAGED_NAME
        for suffix in ("", "-wal", "-shm"):
            source, target = path.with_name(f"{FILE_NAME}{suffix}"), damaged.with_name(f"{DAMAGED_NAME}{suffix}")
            if source.exists():
                source.replace(target)
            else:
                target.unlink(missing_ok=True)
        return damaged

    try:
        directory.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        outbox = Outbox(
            connect,
            counters,
            boot=boot,
            new_random=new_random,
            max_bytes=max_bytes,
            jitter=jitter,
            max_age_s=max_age_s,
            fsync_interval_s=fsync_interval_s,
            backfill_per_s=backfill_per_s,
            uptime_s=uptime_s,
            wall_s=wall_s,
            packed=packed,
            set_aside=set_aside,
        )
        if is_new:
            with suppress(OSError):
                # Whoever made the directory: without its name it would be lost with all that is in it.
                sync_folder(directory.parent)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"cannot open the outbox {path}: {error}; the agent needs a writable state_dir") from None
    return outbox


def look(directory: Path) -> Holding:
    """Look into the outbox of a state directory, whose agent may be running.

    Raises:
        StoreError: There is none, or it cannot be read.
    """
    try:
        with closing(sqlite3.connect(f"file:{directory / FILE_NAME}?mode=ro", uri=True)) as db:
            db.text_factory = held.text
            # Of what every version of the file has.
            row = db.execute("SELECT counter, random, next_seq FROM life WHERE one = 1").fetchone()
            life = read_life((*row, "", 0, 0, 0.0, 0.0)) if row else None
            count, size = db.execute("SELECT count(*), coalesce(sum(length(payload)), 0) FROM messages").fetchone()
            given_up, drops = ledger.drops(db)
    except sqlite3.Error as error:
        raise StoreError(str(error)) from None
    return Holding(
        incarnation=life.incarnation if life else None,
        last_seq=life.next_seq - 1 if life else 0,
        messages=count,
        bytes=size,
        given_up=given_up,
        drops=drops,
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
        max_age_s: float = DEFAULT_MAX_AGE_S,
        fsync_interval_s: float | None = None,
        backfill_per_s: float = DEFAULT_BACKFILL_PER_S,
        uptime_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
        packed: bool = False,
        set_aside: Callable[[], Path] | None = None,
    ) -> None:
        """Open the outbox.

        Args:
            connect: Opens the database, in autocommit mode.
            counters: Where the incarnation counter lies.
            boot: Names this boot of the device.
            new_random: Returns a fresh random word for an incarnation.
            max_bytes: Of all messages together; beyond it windows give way to summaries, then the oldest go.
            jitter: Returns a factor around 1 for each waiting time, so that a fleet does not resend in step.
            max_age_s: Of a message, in seconds that the device was up.
            fsync_interval_s: None brings each write to disk before it counts as done. Otherwise a power cut may take
                what was written within so many seconds.
            backfill_per_s: How many windows that were measured offline go out in a second, at most.
            uptime_s: The device's monotonic clock, by which messages age.
            wall_s: The device's wall clock, right or wrong, which only the ledger writes down.
            packed: Messages are written as MessagePack without fields at their default, instead of JSON.
            set_aside: Moves a damaged file out of the way and returns where to; None leaves it, and every try fails.
        """
        self._connect = connect
        self._counters = counters
        self._boot = boot
        self._new_random = new_random
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._fsync_interval_s = fsync_interval_s
        self._jitter = jitter
        self._uptime_s = uptime_s
        self._wall_s = wall_s
        self._packed = packed
        self._set_aside = set_aside
        self._ways = Ways()
        self._rate = Rate(backfill_per_s)
        # Of what was due the last time: whether the rate kept more back, and what of it was backfill.
        self._held_back = False
        self._late: frozenset[Key] = frozenset()
        self._online = False
        self._told_s: float | None = None
        self._open: sqlite3.Connection | None = None
        # What the file said last, in case that it can't be asked any more.
        self._last_known = 0
        self._settled_known = 0
        self._age_check_s = -1.0
        # Set while the file that was damaged has not been replaced yet, by what is known of it.
        self._lost: _Lost | None = None
        try:
            self._begin()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error) or set_aside is None:
                raise
            self._start_anew(None)

    incarnation: Incarnation

    def begin_life(self, *, after: int) -> None:
        """Begin an incarnation whose counter is above `after`; what older ones hold stays to be sent."""
        self._begin_life(self._db, after=after)

    def append(self, kind: str, make: Callable[[Incarnation, int, int], Numbered]) -> int:
        """Write a message to disk under the next number.

        A window that is written while no session stands goes as `backfill`. Where there is no room for it others give
        way, in the same transaction.

        Args:
            kind: The topic's kind.
            make: Given incarnation, seq and floor, returns the message.

        Returns:
            Its number.

        Raises:
            StoreError: It could not be written; no number was used up.
        """
        try:
            return self._append(kind, make)
        except OutboxDamagedError:
            return self._append(kind, make)

    def tend(self, now_s: float) -> None:
        """Do what is due without a message: bring to disk what waits for it, and give up what is too old.

        Raises:
            StoreError: The disk does not take it; the next call tries again.
        """
        unsynced = self._unsynced_s is not None and now_s >= self._unsynced_s + (self._fsync_interval_s or 0.0)
        if unsynced or self._age_s() >= self._age_check_s:
            with self._transaction(durable=unsynced) as db:
                db.execute("UPDATE life SET age_s = ? WHERE one = 1", (self._age_s(),))
                room = self._room(db)
                self._give_up_old(room, None)
                held_bytes = self._held_bytes(db, room)
            self._bytes = held_bytes

    def floor(self, incarnation: Incarnation | None = None) -> int:
        """Return the lowest number still held of an incarnation (the present one by default), or the next to come."""
        life = incarnation or self.incarnation
        with self._reported("read") as db:
            lowest = _floor(db, life)
        if lowest is not None:
            return lowest
        if life == self.incarnation:
            return self.last_seq + 1
        raise ValueError(f"nothing is held of incarnation {life}")

    @property
    def last_seq(self) -> int:
        """Return the last number given out in this incarnation; 0 at its start."""
        with self._reported("read") as db:
            life = self._life(db)
        return life.next_seq - 1 if life else self._last_known

    @property
    def size_bytes(self) -> int:
        """Return how many bytes of messages are held."""
        return self._bytes

    def __len__(self) -> int:
        with self._reported("read") as db:
            return int(db.execute("SELECT count(*) FROM messages").fetchone()[0])

    def due(self, now_s: float, limit: int) -> list[Entry]:
        """Return messages to send now: never sent since the last (re)connection, or overdue.

        What was written while a session stood comes first, then events and contexts, each the oldest first; then what
        was measured offline, the oldest first and as much as its rate allows. What the disk has damaged is given up, or
        it would keep what is behind it from ever being sent.

        Args:
            now_s: Monotonic seconds.
            limit: At most so many.

        Raises:
            StoreError: The disk cannot be read, what is damaged cannot be given up, or what goes out cannot be marked.
        """
        waiting = self._ways.waiting(now_s)
        limit = min(limit, MAX_UNDER_WAY - len(waiting))
        self._held_back = False
        if limit <= 0:
            return []
        places = self._next(False, waiting, limit)
        self._late = frozenset()
        room = limit - len(places)
        if room > 0:
            late = self._next(True, waiting, room)
            allowed = self._rate.allows(now_s)
            self._held_back = len(late) > allowed
            late = late[:allowed]
            if late:
                try:
                    self._mark_published(late[-1].key)
                except OutboxDamagedError:
                    raise  # there is another file now, and what is due was read from the old one
                except StoreError:
                    if not places:
                        raise
                else:
                    places += late
                    self._late = frozenset(place.key for place in late)
        return self._entries(places)

    def next_due_s(self, now_s: float) -> float | None:
        """Return when `due` has more to give that only waited for its rate; None where nothing did the last time."""
        return self._rate.next_s(now_s) if self._held_back else None

    def sent(self, key: Key, now_s: float) -> None:
        """Note that a message that was due was handed to the broker's client."""
        self._ways.sent(key, now_s, self._jitter())
        if key in self._late:
            self._rate.took(now_s)

    def reconnected(self) -> None:
        """A session stands: all is due again, for what was under way may be lost."""
        self._online = True
        self._ways.reconnected()

    def disconnected(self) -> None:
        """No session stands: what is measured from now on is backfill."""
        self._online = False
        self._held_back = False

    def settle(self, receipt: Receipt, now_s: float) -> bool:
        """Let go of what a receipt settles, and make what it misses due.

        Returns:
            Whether a new incarnation began, because the collector knows a later one than ours: the counter file was
            lost, or the device's disk was copied.

        Raises:
            StoreError: It could not be written; nothing was let go of, or no new incarnation began.
        """
        with self._transaction() as db:
            room = self._room(db)
            for part in receipt.incarnations:
                self._settle_life(db, room, part, now_s)
            if any(part.refused for part in receipt.incarnations):
                Ledger(db).count_old()
            held_bytes = self._held_bytes(db, room)
        self._bytes = held_bytes
        strangers = (part.incarnation.counter for part in receipt.incarnations if self._is_later(part.incarnation))
        latest = max((*strangers, receipt.last_counter))
        if latest >= MAX_COUNTER:
            return False  # no collector of ours says so, and there would be no number left for the next life
        if latest > self.incarnation.counter or any(self._is_later(part.incarnation) for part in receipt.incarnations):
            with self._reported("write to") as db:
                self._begin_life(db, after=latest)
            return True
        return False

    def ledger(self) -> list[Loss]:
        """Return what was given up and the collector has not been told of."""
        with self._reported("read") as db:
            return Ledger(db).untold()

    def losses_due(self, now_s: float) -> list[Loss]:
        """Return what of the ledger should be told now: while there is no room seldom, for that takes more of it."""
        full = self._bytes > _ROOM_TO_TELL * self._max_bytes
        if full and self._told_s is not None and now_s < self._told_s + TELL_WHEN_FULL_S:
            return []
        losses = self.ledger()
        if losses:
            self._told_s = now_s
        return losses

    def told(self, losses: list[Loss]) -> None:
        """Note that an event with these losses is in the outbox."""
        with self._transaction() as db:
            Ledger(db).told(losses)

    def damages(self) -> list[str]:
        """Return what became of damaged files, one line each, that the collector has not been told of."""
        with self._reported("read") as db:
            return [detail for _, detail in _damages(db)]

    def damages_told(self, details: list[str]) -> None:
        """Note that events with these lines are in the outbox."""
        with self._transaction() as db:
            told = [(row,) for row, detail in _damages(db) if detail in details]
            db.executemany("DELETE FROM damages WHERE id = ?", told)

    def close(self) -> None:
        """Close the file; what waits to be brought to disk is."""
        if self._open is None:
            return
        if self._unsynced_s is not None:
            with suppress(StoreError), self._transaction(durable=True) as db:
                db.execute("UPDATE life SET age_s = ? WHERE one = 1", (self._age_s(),))
        if self._open is not None:
            self._open.close()

    # the file

    @property
    def _db(self) -> sqlite3.Connection:
        """The open database; one that could not be opened anew before is tried again."""
        if self._open is None:
            self._begin()
        assert self._open is not None
        return self._open

    def _begin(self) -> None:
        """Open the file, and go on with the life that is in it or begin one."""
        db = self._connect()
        try:
            db.text_factory = held.text
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA cache_size=-256")
            db.executescript(_SCHEMA + ledger.SCHEMA)
            for table, column, kind in _COLUMNS:
                known = {name for (name,) in db.execute(f"SELECT name FROM pragma_table_info('{table}')")}
                if column not in known:
                    db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
            db.executescript(_INDEXES)
            self._full = True
            self._unsynced_s: float | None = None
            self._synced_s = self._uptime_s()
            self._go_on(db)
            if self._lost is not None:
                self._take_over(db, self._lost)
            mark = db.execute("SELECT counter, random, seq FROM marks WHERE one = 1").fetchone()
            # One that is damaged may have been anywhere: all that there is may have been published.
            self._mark = (held.key(*mark) or (*self.incarnation, self._last_known)) if mark else _BEFORE_ALL
            self._bytes = _count_bytes(db)
            self._age_check_s = -1.0  # at once
            # Whoever holds the file now is waited for shortly; to open it, as long as `connect` has it.
            db.execute(f"PRAGMA busy_timeout={round(BUSY_WAIT_S * 1000)}")
        except BaseException:
            db.close()
            raise
        self._open = db
        self._lost = None

    def _go_on(self, db: sqlite3.Connection) -> None:
        """Go on with the life that the file is in, or begin another: after a boot, or where it is damaged."""
        row = db.execute(f"SELECT {LIFE} FROM life WHERE one = 1").fetchone()
        life = read_life(row)
        is_damaged = row is not None and (life is None or _is_used(db, life))
        age_s = (life.before_s if life.boot == self._boot else life.age_s) if life else None
        self._clock = AgeClock(_newest_age_s(db) if age_s is None else age_s)
        if life is None or life.boot != self._boot or is_damaged:
            self._begin_life(db, after=max(self._counters.read(), life.incarnation.counter if life else 0))
        else:
            self.incarnation = life.incarnation
            self._last_known, self._settled_known = life.next_seq - 1, life.settled
        if is_damaged:
            tell_damage(db, _LIFE_LOST)

    def _life(self, db: sqlite3.Connection) -> Life | None:
        """Return the life as the file has it; None where it is not ours, or would give a number out twice."""
        life = read_life(db.execute(f"SELECT {LIFE} FROM life WHERE one = 1").fetchone())
        if life is None or life.incarnation != self.incarnation or life.next_seq <= self._last_known:
            return None
        return life

    def _begin_life(self, db: sqlite3.Connection, *, after: int) -> None:
        incarnation = Incarnation(after + 1, self._new_random())
        self._counters.write(incarnation.counter)
        db.execute(
            "INSERT OR REPLACE INTO life (one, counter, random, next_seq, boot, before_s, age_s)"
            " VALUES (1, ?, ?, 1, ?, ?, ?)",
            (*incarnation, self._boot, self._clock.before_s, self._age_s()),
        )
        self.incarnation = incarnation
        self._last_known = self._settled_known = 0

    def _start_anew(self, known: rescue.Left | None) -> None:
        """Set a damaged file aside and begin another, with what can be read of the damaged one."""
        assert self._set_aside is not None
        if self._open is not None:
            with suppress(sqlite3.Error):
                self._open.close()
            self._open = None
        path = self._set_aside()
        self._lost = _Lost(path, rescue.numbers(path) or known)
        self._ways = Ways()
        self._begin()

    def _take_over(self, db: sqlite3.Connection, lost: _Lost) -> None:
        """Take over what is whole of a damaged file, and write down what is not."""
        db.execute("BEGIN IMMEDIATE")
        try:
            kept = set()
            room = self._room(db)
            for row in rescue.rows(lost.path):
                late = row.kind == "backfill"
                # Whether it was published is not known any more: it is never merged.
                db.execute(
                    "INSERT OR IGNORE INTO messages (counter, random, seq, kind, late, age_s, payload)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (*row.life, row.seq, row.kind, late, self._age_s(), row.payload),
                )
                kept.add((row.life, row.seq))
            if lost.left is not None:
                life, missing = lost.left.life, 0
                following = lost.left.settled + 1
                for seq in (*sorted(seq for of, seq in kept if of == life), lost.left.last_seq + 1):
                    if following < seq:
                        room.note(life, following, seq - 1, "outbox-damaged")
                        missing += seq - following
                    following = max(following, seq + 1)
                said = f"{missing} messages of incarnation {life.counter} up to number {lost.left.last_seq} may be lost"
            else:
                said = "how many messages it held is not known"
            db.execute(
                "INSERT INTO damages (detail) VALUES (?)",
                (f"{lost.path.name}: {said}; {len(kept)} messages were taken over",),
            )
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    @contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """Begin, and commit at the end unless an error leaves the block; `durable` brings it to disk in any case."""
        with self._reported("write to") as db:
            now_s = self._uptime_s()
            interval_s = self._fsync_interval_s
            full = durable or interval_s is None or now_s >= self._synced_s + interval_s
            if full is not self._full:
                db.execute(f"PRAGMA synchronous={'FULL' if full else 'NORMAL'}")
                self._full = full
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                # A file that is damaged may not even do that; what is wrong with it is known already.
                with suppress(sqlite3.Error):
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                raise
            if full:
                self._synced_s, self._unsynced_s = now_s, None
            elif self._unsynced_s is None:
                self._unsynced_s = now_s

    @contextmanager
    def _reported(self, doing: str) -> Iterator[sqlite3.Connection]:
        try:
            yield self._db
        except sqlite3.Error as error:
            if _is_damage(error) and self._set_aside is not None and self._open is not None:
                self._replace_damaged(error)
            raise StoreError(f"cannot {doing} the outbox: {error}") from error

    def _replace_damaged(self, error: sqlite3.Error) -> None:
        known = rescue.Left(self.incarnation, self._last_known, self._settled_known)
        try:
            self._start_anew(known)
        except (OSError, sqlite3.Error, StoreError) as failure:
            raise StoreError(f"the outbox is damaged ({error}) and cannot be begun anew: {failure}") from failure
        raise OutboxDamagedError(f"the outbox was damaged ({error}); it was set aside and a new one begun") from error

    # numbers and age

    def _age_s(self) -> float:
        return self._clock.at_s(self._uptime_s())

    def _append(self, kind: str, make: Callable[[Incarnation, int, int], Numbered]) -> int:
        with self._transaction() as db:
            life = self._life(db)
            if life is None or _is_taken(db, life):
                self._begin_life(db, after=max(self._counters.read(), self.incarnation.counter))
                tell_damage(db, _LIFE_LOST)
            seq, stretch = (
                (1, 0) if life is None or life.incarnation != self.incarnation else (life.next_seq, life.stretch)
            )
            message = make(self.incarnation, seq, seq)
            payload = messages.encode(message, compact=self._packed, packed=self._packed)
            late = isinstance(message, Window | AppWindow) and not self._online
            # Numbers of one stretch have nothing between them that was measured while a session stood.
            stretch = 0 if self._online else stretch or seq
            alike = f"{stretch}:{summary.likeness(message)}" if late and isinstance(message, Window) else None
            age_s = self._age_s()
            key = (*self.incarnation, seq)
            db.execute(INSERT, (*key, "backfill" if late else kind, late, 0, alike, age_s, payload))
            db.execute("UPDATE life SET next_seq = ?, stretch = ?, age_s = ? WHERE one = 1", (seq + 1, stretch, age_s))
            room = self._room(db)
            self._give_up_old(room, key)
            excess_bytes = self._held_bytes(db, room, len(payload)) - self._max_bytes
            room.make(excess_bytes, key, published=self._mark, age_s=age_s, packed=self._packed)
            held_bytes = self._held_bytes(db, room, len(payload))
            (following,) = db.execute("SELECT next_seq FROM life WHERE one = 1").fetchone()
        self._bytes = held_bytes
        self._last_known = following - 1
        return seq

    def _is_later(self, other: Incarnation) -> bool:
        return other.counter > self.incarnation.counter or (
            # The same counter given out twice: two lives that the collector could not put in order.
            other.counter == self.incarnation.counter and other.random != self.incarnation.random
        )

    # what goes out

    def _next(self, late: bool, waiting: set[Key], limit: int) -> list[_Place]:
        # So many hold as many as are asked for, whichever are waiting: a long queue is not listed each time.
        most = len(waiting) + limit
        with self._reported("read") as db:
            places = _places(db, late, most)
        if None in places:
            with self._transaction() as db:
                room = self._room(db)
                room.give_up_damaged(self._age_s())
                places = _places(db, late, most)
                if None in places:
                    raise sqlite3.DatabaseError(INDEX_LIES)
                held_bytes = self._held_bytes(db, room)
            self._bytes = held_bytes
        return [place for place in places if place and place.key not in waiting][:limit]

    def _entries(self, places: list[_Place]) -> list[Entry]:
        """Return messages as they go out; what is not whole is given up, or it would keep the rest from being sent."""
        entries = []
        damaged = []
        with self._reported("read") as db:
            for place in places:
                found = db.execute(
                    "SELECT counter, random, seq, kind, payload, coalesce(length(payload), 0) FROM messages"
                    " WHERE rowid = ?",
                    (place.row,),
                ).fetchone()
                if found is None:
                    raise sqlite3.DatabaseError(INDEX_LIES)
                *number, kind, payload, size = found
                floor = _floor(db, Incarnation(place.key[0], place.key[1])) or place.key[2]
                is_itself = tuple(number) == place.key
                sendable = held.sendable(place.key, kind, payload, floor) if is_itself else None
                if sendable is None:
                    damaged.append((place, size))
                else:
                    entries.append(Entry(place.key, kind, sendable))
        if damaged:
            with self._transaction() as db:
                room = self._room(db)
                for place, size in damaged:
                    room.give_up_row(place.row, place.key, size, "damaged")
                held_bytes = self._held_bytes(db, room)
            self._bytes = held_bytes
        return entries

    def _mark_published(self, key: Key) -> None:
        """See that the mark on disk has passed a message before it goes out; it goes ahead, to be written seldom."""
        if key <= self._mark:
            return
        with self._transaction(durable=True) as db:
            ahead: list[Key] = db.execute(
                f"SELECT counter, random, seq FROM messages WHERE late AND (counter, random, seq) >= (?, ?, ?) {ORDER}"
                " LIMIT ?",
                (*key, MARK_AHEAD),
            ).fetchall()
            mark = ahead[-1] if ahead else key
            db.execute("INSERT OR REPLACE INTO marks VALUES (1, ?, ?, ?)", mark)
        self._mark = mark

    # what goes

    def _room(self, db: sqlite3.Connection) -> Room:
        return Room(db, self._ways, uptime_s=self._uptime_s(), wall_s=self._wall_s())

    def _settle_life(self, db: sqlite3.Connection, room: Room, part: IncarnationReceipt, now_s: float) -> None:
        life = part.incarnation
        for refusal in part.refused:
            if db.execute(f"SELECT 1 FROM messages WHERE {_KEY}", (*life, refusal.seq)).fetchone():
                room.give_up((*life, refusal.seq), f"refused-{refusal.reason}", told=True)
        room.let_go(life, 1, part.contiguous)
        settled_from = part.contiguous + 1
        for first, last in part.gaps:
            room.let_go(life, settled_from, first - 1)
            settled_from = last + 1
            for key in self._ways.show_gap(life, first, last, now_s):
                room.give_up(key, "never-taken")
        if life == self.incarnation and part.contiguous > self._settled_known:
            self._settled_known = part.contiguous
            db.execute("UPDATE life SET settled = ? WHERE one = 1", (part.contiguous,))

    def _give_up_old(self, room: Room, newest: Key | None) -> None:
        """Give up what is too old, and what the disk has damaged, where it is time to look."""
        age_s = self._age_s()
        if age_s < self._age_check_s:
            return
        self._age_check_s = age_s + min(AGE_CHECK_S, self._max_age_s / 10)
        room.give_up_damaged(age_s)
        room.give_up_old(age_s - self._max_age_s, newest)

    def _held_bytes(self, db: sqlite3.Connection, room: Room, added: int = 0) -> int:
        """Return what is held after a transaction's work; it is counted anew only where what was counted is damaged."""
        return _count_bytes(db) if room.found_damage else self._bytes + added - room.freed_bytes


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a message lies."""

    row: int
    key: Key


@dataclass(frozen=True, slots=True)
class _Lost:
    """A damaged file that was set aside, and what is known of its numbers."""

    path: Path
    left: rescue.Left | None


def _places(db: sqlite3.Connection, late: bool, limit: int) -> list[_Place | None]:
    """Return where the next messages lie, None for one whose number is damaged."""
    rows = db.execute(
        f"SELECT rowid, counter, random, seq FROM messages WHERE late = ? {ORDER} LIMIT ?", (late, limit)
    ).fetchall()
    keys = ((row, held.key(*number)) for row, *number in rows)
    return [_Place(row, key) if key else None for row, key in keys]


def _floor(db: sqlite3.Connection, life: Incarnation) -> int | None:
    row = db.execute(
        f"SELECT min(seq) FROM messages WHERE counter = ? AND random = ? AND {held.WHOLE_SEQ}", life
    ).fetchone()
    return None if row[0] is None else int(row[0])


def _is_taken(db: sqlite3.Connection, life: Life) -> bool:
    """Return whether a number that is to be given out next or later lies in the file already."""
    return bool(
        db.execute(
            # One lower bound alone: with two, SQLite may begin at the other one and look at all that is held.
            "SELECT 1 FROM messages WHERE counter = ? AND random = ? AND seq BETWEEN ? AND ?"
            " AND typeof(seq) = 'integer' LIMIT 1",
            (*life.incarnation, life.next_seq, held.MAX_SEQ),
        ).fetchone()
    )


def _is_used(db: sqlite3.Connection, life: Life) -> bool:
    """Return whether a number that is to be given out next or later was given out before, by all that the file says."""
    given_up = db.execute(
        "SELECT 1 FROM ledger WHERE counter = ? AND random = ? AND last >= ? AND typeof(last) = 'integer' LIMIT 1",
        (*life.incarnation, life.next_seq),
    ).fetchone()
    return bool(given_up) or _is_taken(db, life)


def _newest_age_s(db: sqlite3.Connection) -> float:
    row = db.execute(f"SELECT max(age_s) FROM messages WHERE {held.WHOLE_AGE}").fetchone()
    return float(row[0] or 0.0)


def _damages(db: sqlite3.Connection) -> list[tuple[int, str]]:
    rows = db.execute("SELECT id, detail FROM damages ORDER BY id").fetchall()
    return [(row, detail if isinstance(detail, str) else _DETAIL_LOST) for row, detail in rows]


def _count_bytes(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT coalesce(sum(length(payload)), 0) FROM messages").fetchone()[0])


def _is_damage(error: sqlite3.Error) -> bool:
    """Return whether an error says that the file is corrupt or no database: the one kind that has no class of its own."""
    return type(error) is sqlite3.DatabaseError
