"""The store in one SQLite file: one writing connection, and one reading connection per thread that asks.

sqlite-utils does the schema and its migrations; the statements of the hot path are written out. The write-ahead log
lets readers go on while the writer commits; `synchronous=FULL` makes a commit outlive a power cut, which at batches of
hundreds costs nothing measurable.

* What a transaction did is on disk when it is left, or not at all.
* The file is the only state: closing at any instant and opening again loses nothing committed.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec
from sqlite_utils import Database

from evenfleet_collector.cell import Cell, ClassBaseline, ClassKey, Metric, peak_bytes
from evenfleet_collector.seqs import contiguous, gaps, size
from evenfleet_collector.store.rows import (
    INGEST_RESULTS,
    UNEXPLAINED,
    AppWindowRow,
    ArrivalRow,
    Balance,
    CellRow,
    CommandRow,
    DeadLetterRow,
    DeviceRow,
    EventRow,
    FlagRow,
    IncarnationRow,
    LossRow,
    NewWindow,
    QuietCell,
    ReleaseRow,
    Stats,
    SteeredDevice,
    SummaryRow,
    TagMoveRow,
    TagRow,
    WindowRow,
)
from evenfleet_collector.store.schema import migrations
from evenfleet_collector.tolerance import LONGEST_WINDOW_S, SLEEP_S, Policy, Verdict, combine
from evenfleet_shared import manifest as manifests
from evenfleet_shared import signature as signatures
from evenfleet_shared import topics
from evenfleet_shared.errors import MessageError, StoreError
from evenfleet_shared.manifest import Manifest
from evenfleet_shared.messages import (
    AppWindow,
    Context,
    Desired,
    Event,
    Incarnation,
    IncarnationReceipt,
    Limit,
    Receipt,
    Refusal,
    Reply,
    RunContext,
    State,
    Summary,
    Window,
)
from evenfleet_shared.signature import Signature

T = TypeVar("T")

FILE_NAME: Final = "fleet.sqlite"

# A dead letter is kept for a person to look at: its start will do.
MAX_DEAD_LETTER_BYTES: Final = 16 * 1024
# The newest of each device and reason, and of all: a device that sends nothing else must not fill the disk. The bound on
# all is looked at now and then, so a few more may be there.
DEAD_LETTERS_OF_A_KIND: Final = 100
DEAD_LETTERS: Final = 4000
_DEAD_LETTERS_LOOK: Final = 50
# The newest of a device that wait for nothing any more.
COMMANDS_KEPT: Final = 100
# A receipt speaks of the lives heard of last: a device that rebooted often without a network has messages of many.
RECEIPT_INCARNATIONS: Final = 8
RECEIPT_LIST: Final = 256

Connect = Callable[[], sqlite3.Connection]

# What would be refused again however well the disk is: nothing to wait for.
_OF_THE_DATA: Final = (sqlite3.IntegrityError, sqlite3.DataError)

_LIFE: Final = "device = ? AND counter = ? AND random = ?"
_NEWEST_POLICY: Final = "SELECT body FROM policies ORDER BY revision DESC LIMIT 1"
_ASSIGNMENTS: Final = "SELECT device, release FROM assignments"
_EVENTS: Final = "SELECT id, device, counter, random, event, release, variant, detail, received_s FROM events"
_COMMANDS: Final = (
    "SELECT id, device, correlation_id, command, variant, ttl_s, sustained_s, offline_s, asked_s, state, offered_s, sends,"
    " sent_s, replied_s, reply"
    " FROM commands"
)
_TAGS: Final = "SELECT tag, release, tagged_s FROM tags"
_CELL: Final = "device = ? AND release = ? AND variant = ?"
# 1 for a cell `c` of a device `d` that sleeps, or has said so since it was last heard of.
_SLEPT: Final = "coalesce(d.status = 'sleeping' OR d.slept_s >= c.heard_s, 0)"


def open_writer(directory: Path) -> SqliteWriter:
    """Open, create or migrate the database of a data directory for writing.

    Raises:
        StoreError: The directory cannot be written, or the file is no database of ours.
    """
    path = directory / FILE_NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return SqliteWriter(lambda: sqlite3.connect(path, isolation_level=None, check_same_thread=False))
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"cannot open the store {path}: {error}; expected a writable directory") from None


def open_reader(directory: Path) -> SqliteReader:
    """Open the database of a data directory for reading; it must exist."""
    uri = f"file:{quote(str(directory / FILE_NAME))}?mode=ro"
    return SqliteReader(lambda: sqlite3.connect(uri, uri=True, isolation_level=None))


class SqliteWriter:
    """The one writing connection; also its own `Transaction`."""

    def __init__(self, connect: Connect) -> None:
        self._connection = connect()
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        migrations.apply(Database(self._connection))

    def close(self) -> None:
        """Close the connection; an open transaction is rolled back."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[SqliteWriter]:
        """Begin, and commit at the end unless an error leaves the block."""
        with self._reported():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def part(self) -> Iterator[None]:
        with self._reported():
            self._connection.execute("SAVEPOINT part")
            try:
                yield
            except BaseException:
                # A full disk or a lost file has undone the whole transaction already.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK TO part")
                    self._connection.execute("RELEASE part")
                raise
            self._connection.execute("RELEASE part")

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except _OF_THE_DATA:
            raise
        except sqlite3.Error as error:
            raise StoreError(f"the store refused to write: {error}; nothing of this batch was kept") from error

    # ingest

    def incarnation(self, device: str, incarnation: Incarnation) -> IncarnationRow:
        key = (device, *incarnation)
        known = self._one(f"SELECT floor, highest, booted_s FROM incarnations WHERE {_LIFE}", key)
        floor, highest, booted_s = known or (1, 0, None)
        return IncarnationRow(
            device=device,
            incarnation=incarnation,
            settled=self._settled(key),
            floor=floor,
            highest=highest,
            booted_s=booted_s,
        )

    def put_incarnation(self, row: IncarnationRow) -> None:
        key = (row.device, *row.incarnation)
        self._run(
            "INSERT INTO incarnations (device, counter, random, floor, highest, booted_s, judged_to, heard)"
            " VALUES (?, ?, ?, ?, ?, ?, 0, (SELECT coalesce(max(heard), 0) + 1 FROM incarnations WHERE device = ?))"
            " ON CONFLICT DO UPDATE SET floor = excluded.floor, highest = excluded.highest, heard = excluded.heard,"
            " booted_s = excluded.booted_s",
            (*key, row.floor, row.highest, row.booted_s, row.device),
        )
        before, after = set(self._settled(key)), set(row.settled)
        gone = [(*key, first) for first, _ in before - after]
        new = [(*key, first, last) for first, last in after - before]
        self._many(f"DELETE FROM settled WHERE {_LIFE} AND first = ?", gone)
        self._many("INSERT INTO settled (device, counter, random, first, last) VALUES (?, ?, ?, ?, ?)", new)

    def add_windows(self, windows: Sequence[NewWindow], now_s: float) -> None:
        self._many(
            "INSERT INTO windows (device, counter, random, seq, release, variant, context, received_s, backfill,"
            " p50_ms, p95_ms, n, errors, golden_n, peak_bytes, length_s, body, measured_s, dated)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(*_window_values(new.window, new.backfill, now_s), new.measured_s, new.dated) for new in windows],
        )

    def later_booted_s(self, device: str, incarnation: Incarnation) -> float | None:
        row = self._one(
            "SELECT booted_s FROM incarnations WHERE device = ? AND counter > ? AND booted_s IS NOT NULL"
            " ORDER BY counter LIMIT 1",
            (device, incarnation.counter),
        )
        return float(row[0]) if row else None

    def add_summary(self, summary: Summary, now_s: float) -> None:
        self._run(
            "INSERT INTO summaries (device, counter, random, seq, release, variant, summarised_counter,"
            " summarised_random, first, last, windows, received_s, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                summary.device,
                *summary.incarnation,
                summary.seq,
                summary.release,
                summary.variant,
                *summary.summarised,
                summary.first_seq,
                summary.last_seq,
                summary.windows,
                now_s,
                msgspec.json.encode(summary),
            ),
        )

    def has_window_of(self, summary: Summary) -> bool:
        found = self._one(
            f"SELECT 1 FROM windows WHERE {_LIFE} AND seq BETWEEN ? AND ? AND release = ? AND variant = ?"
            " AND context = ? LIMIT 1",
            (
                summary.device,
                *summary.summarised,
                summary.first_seq,
                summary.last_seq,
                summary.release,
                summary.variant,
                summary.context,
            ),
        )
        return found is not None

    def add_app_window(self, window: AppWindow, *, backfill: bool, now_s: float) -> None:
        latency = window.latency
        self._run(
            "INSERT INTO app_windows (device, counter, random, seq, app, model, received_s, backfill, calls, p50_ms,"
            " p95_ms, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                window.device,
                *window.incarnation,
                window.seq,
                window.app,
                window.model or "",
                now_s,
                int(backfill),
                window.calls,
                latency.p50_ms if latency else None,
                latency.p95_ms if latency else None,
                msgspec.json.encode(window),
            ),
        )

    def add_context(self, context: Context, now_s: float) -> None:
        self._run(
            "INSERT INTO contexts (digest, first_seen_s, body) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (context.digest, now_s, msgspec.json.encode(context.run)),
        )
        self._run(
            "INSERT INTO device_contexts (device, counter, random, seq, digest, received_s) VALUES (?, ?, ?, ?, ?, ?)",
            (context.device, *context.incarnation, context.seq, context.digest, now_s),
        )

    def add_event(self, event: Event, now_s: float) -> None:
        self._run(
            "INSERT INTO events (device, counter, random, seq, event, release, variant, detail, received_s, body)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                event.device,
                *event.incarnation,
                event.seq,
                event.event,
                event.release,
                event.variant,
                event.detail,
                now_s,
                msgspec.json.encode(event),
            ),
        )

    def add_refusal(self, device: str, incarnation: Incarnation, refusal: Refusal) -> None:
        self._run(
            "INSERT INTO refusals (device, counter, random, seq, reason) VALUES (?, ?, ?, ?, ?)",
            (device, *incarnation, refusal.seq, refusal.reason),
        )

    def add_loss(self, loss: LossRow, now_s: float) -> None:
        self._run(
            "INSERT INTO losses (device, counter, random, first, last, reason, noted_s) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (loss.device, *loss.incarnation, loss.first_seq, loss.last_seq, loss.reason, now_s),
        )

    def explain_loss(self, loss: LossRow) -> None:
        life = (loss.device, *loss.incarnation)
        for first, last, noted_s in self._all(
            f"SELECT first, last, noted_s FROM losses WHERE {_LIFE} AND reason = ? AND first <= ? AND last >= ?",
            (*life, UNEXPLAINED, loss.last_seq, loss.first_seq),
        ):
            low, high = max(first, loss.first_seq), min(last, loss.last_seq)
            parts = ((first, low - 1, UNEXPLAINED), (low, high, loss.reason), (high + 1, last, UNEXPLAINED))
            self._run(f"DELETE FROM losses WHERE {_LIFE} AND first = ?", (*life, first))
            for part_first, part_last, reason in parts:
                if part_first <= part_last:
                    self.add_loss(replace(loss, first_seq=part_first, last_seq=part_last, reason=reason), noted_s)

    def see_device(self, device: str, now_s: float) -> None:
        self._run(
            "INSERT INTO devices (device, status, first_seen_s, last_seen_s) VALUES (?, 'enrolled', ?, ?)"
            " ON CONFLICT DO UPDATE SET last_seen_s = excluded.last_seen_s,"
            " first_seen_s = coalesce(first_seen_s, excluded.first_seen_s)",
            (device, now_s, now_s),
        )

    def put_state(self, state: State, now_s: float) -> None:
        self.see_device(state.device, now_s)
        if state.status == "birth":
            self._run(
                "UPDATE devices SET status = 'birth', session = ?, device_class = ?, agent_version = ?, formats = ?,"
                " desired_revision = ? WHERE device = ?",
                (
                    state.session,
                    state.device_class,
                    state.agent_version,
                    ",".join(state.formats),
                    state.desired_revision,
                    state.device,
                ),
            )
            # A new session has a new subscription, and downlink messages are not kept for it: all is sent again.
            self._run("UPDATE desired SET sent = 0 WHERE device = ?", (state.device,))
            self._run(
                "UPDATE commands SET offered_s = ?, next_s = 0 WHERE device = ? AND state = 'waiting'",
                (now_s, state.device),
            )
        else:
            self._run(
                "UPDATE devices SET status = ?, slept_s = coalesce(?, slept_s) WHERE device = ? AND session = ?",
                (state.status, now_s if state.status == "sleeping" else None, state.device, state.session),
            )

    def put_reply(self, reply: Reply, now_s: float) -> bool:
        key = (reply.device, reply.correlation_id, reply.command)
        asked = "device = ? AND correlation_id = ? AND command = ?"
        if self._one(f"SELECT 1 FROM commands WHERE {asked}", key) is None:
            return False
        self._run(
            f"UPDATE commands SET state = ?, replied_s = ?, reply = ? WHERE {asked} AND reply IS NULL",
            (reply.status, now_s, msgspec.json.encode(reply), *key),
        )
        return True

    def add_dead_letter(self, topic: str, error: MessageError, payload: bytes, now_s: float) -> None:
        device = _device_of(topic)
        row = self._connection.execute(
            "INSERT INTO dead_letters (received_s, device, topic, reason, detail, size_bytes, payload)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                now_s,
                device,
                topic[:500],
                error.reason,
                error.detail[:2000],
                len(payload),
                payload[:MAX_DEAD_LETTER_BYTES],
            ),
        ).lastrowid
        self._run(
            "INSERT INTO dead_letter_counts (reason, count) VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1",
            (error.reason,),
        )
        self._run(
            "DELETE FROM dead_letters WHERE device = ? AND reason = ? AND id <= (SELECT id FROM dead_letters"
            " WHERE device = ? AND reason = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (device, error.reason, device, error.reason, DEAD_LETTERS_OF_A_KIND),
        )
        if row is not None and row % _DEAD_LETTERS_LOOK == 0:
            self._run(
                "DELETE FROM dead_letters WHERE id <= (SELECT id FROM dead_letters ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (DEAD_LETTERS,),
            )

    def tally(self, name: str, count: int) -> None:
        self._run(
            "INSERT INTO tallies (name, count) VALUES (?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count",
            (name, count),
        )

    def mark_receipt_due(self, device: str) -> None:
        self._run(
            "INSERT INTO receipts_due (device, mark) VALUES (?, 1) ON CONFLICT DO UPDATE SET mark = mark + 1", (device,)
        )

    # judge

    def cursor(self, name: str) -> int:
        row = self._one("SELECT position FROM cursors WHERE name = ?", (name,))
        return int(row[0]) if row else 0

    def put_cursor(self, name: str, position: int) -> None:
        self._run(
            "INSERT INTO cursors (name, position) VALUES (?, ?) ON CONFLICT DO UPDATE SET position = excluded.position",
            (name, position),
        )

    def arrivals(self, after: int, limit: int) -> Sequence[ArrivalRow]:
        rows = self._all(
            "SELECT id, device, counter, random, release, variant, received_s, length_s FROM windows WHERE id > ?"
            " ORDER BY id LIMIT ?",
            (after, limit),
        )
        return [
            ArrivalRow(
                id=i,
                device=device,
                incarnation=Incarnation(c, r),
                release=release,
                variant=variant,
                received_s=at,
                length_s=length_s,
            )
            for i, device, c, r, release, variant, at, length_s in rows
        ]

    def judging(self, device: str, incarnation: Incarnation) -> int:
        row = self._one(f"SELECT judged_to FROM incarnations WHERE {_LIFE}", (device, *incarnation))
        return int(row[0]) if row else 0

    def put_judging(self, device: str, incarnation: Incarnation, seq: int) -> None:
        self._run(f"UPDATE incarnations SET judged_to = ? WHERE {_LIFE}", (seq, device, *incarnation))

    def newest_judged(self, device: str) -> Incarnation | None:
        row = self._one(
            "SELECT counter, random FROM incarnations WHERE device = ? AND judged_to > 0"
            " ORDER BY counter DESC, random DESC LIMIT 1",
            (device,),
        )
        return Incarnation(*row) if row else None

    def unjudged(self, stale_s: float) -> Sequence[tuple[str, Incarnation]]:
        rows = self._all(
            "SELECT i.device, i.counter, i.random FROM incarnations i WHERE i.highest > i.judged_to AND EXISTS ("
            "SELECT 1 FROM windows w WHERE w.device = i.device AND w.counter = i.counter AND w.random = i.random"
            " AND w.seq > i.judged_to AND w.received_s < ?)",
            (stale_s,),
        )
        return [(device, Incarnation(c, r)) for device, c, r in rows]

    def windows_in(self, device: str, incarnation: Incarnation, first: int, last: int) -> Sequence[WindowRow]:
        return _window_rows(
            self._all(
                f"SELECT id, received_s, backfill, measured_s, dated, body FROM windows WHERE {_LIFE} AND seq BETWEEN ? AND ? ORDER BY seq",
                (device, *incarnation, first, last),
            )
        )

    def first_behind(
        self, device: str, incarnation: Incarnation, first: int, last: int, log_position: int
    ) -> int | None:
        row = self._one(
            f"SELECT seq FROM windows WHERE {_LIFE} AND seq BETWEEN ? AND ? AND id > ? ORDER BY seq LIMIT 1",
            (device, *incarnation, first, last, log_position),
        )
        return int(row[0]) if row else None

    def received_from(self, device: str, incarnation: Incarnation, seq: int, limit: int) -> Sequence[float]:
        rows = self._all(
            f"SELECT received_s FROM windows WHERE {_LIFE} AND seq >= ? ORDER BY seq LIMIT ?",
            (device, *incarnation, seq, limit),
        )
        return [received_s for (received_s,) in rows]

    def cell_windows(self, device: str, release: str, variant: str) -> Sequence[WindowRow]:
        return _window_rows(
            self._all(
                "SELECT w.id, w.received_s, w.backfill, w.measured_s, w.dated, w.body FROM windows w JOIN incarnations i"
                " ON i.device = w.device AND i.counter = w.counter AND i.random = w.random AND w.seq <= i.judged_to"
                # Skips of one life do not overlap: only the last one that begins before a window can hold it.
                " WHERE w.device = ? AND w.release = ? AND w.variant = ? AND NOT coalesce((SELECT s.last >= w.seq"
                " FROM skips s WHERE s.device = w.device AND s.counter = w.counter AND s.random = w.random"
                " AND s.first <= w.seq ORDER BY s.first DESC LIMIT 1), 0) ORDER BY w.counter, w.random, w.seq",
                (device, release, variant),
            )
        )

    def events(self, after: int, limit: int) -> Sequence[EventRow]:
        return _event_rows(
            self._all(
                f"{_EVENTS} WHERE id > ? ORDER BY id LIMIT ?",
                (after, limit),
            )
        )

    def class_devices(self, device_class: str) -> int:
        (count,) = self._one("SELECT count(*) FROM devices WHERE device_class = ?", (device_class,)) or (0,)
        return int(count)

    def device_class(self, device: str) -> str | None:
        row = self._one("SELECT device_class FROM devices WHERE device = ?", (device,))
        return row[0] if row else None

    def knows_device(self, device: str) -> bool:
        return self._one("SELECT 1 FROM devices WHERE device = ?", (device,)) is not None

    def cell_count(self) -> int:
        (count,) = self._one("SELECT count(*) FROM cells WHERE state IS NOT NULL", ()) or (0,)
        return int(count)

    def add_skip(self, device: str, incarnation: Incarnation, first: int, last: int, reason: str) -> None:
        self._run(
            "INSERT INTO skips (device, counter, random, first, last, reason) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            (device, *incarnation, first, last, reason),
        )

    def context(self, digest: str) -> RunContext | None:
        row = self._one("SELECT body FROM contexts WHERE digest = ?", (digest,))
        return msgspec.json.decode(row[0], type=RunContext) if row else None

    def manifest(self, release: str) -> Manifest | None:
        row = self._one("SELECT manifest FROM releases WHERE release = ?", (release,))
        return _manifest(release, row[0]) if row else None

    def policy(self) -> Policy:
        return _policy(self._all(_NEWEST_POLICY, ()))

    def put_policy(self, policy: Policy, now_s: float) -> None:
        self._run(
            "INSERT INTO policies (revision, set_s, body) VALUES (?, ?, ?)",
            (policy.revision, now_s, msgspec.json.encode(policy)),
        )

    def class_baseline(self, key: ClassKey) -> ClassBaseline | None:
        row = self._one("SELECT body FROM class_baselines WHERE release = ? AND variant = ? AND device_class = ?", key)
        return msgspec.json.decode(row[0], type=ClassBaseline) if row else None

    def put_class_baseline(self, key: ClassKey, baseline: ClassBaseline) -> None:
        self._run(
            "INSERT INTO class_baselines (release, variant, device_class, body) VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET body = excluded.body",
            (*key, msgspec.json.encode(baseline)),
        )

    def cell(self, device: str, release: str, variant: str) -> Cell | None:
        row = self._one(f"SELECT state FROM cells WHERE {_CELL}", (device, release, variant))
        return msgspec.json.decode(row[0], type=Cell) if row and row[0] else None

    def class_cells(self, key: ClassKey) -> Sequence[Cell]:
        rows = self._all(
            "SELECT state FROM cells WHERE release = ? AND variant = ? AND device_class = ? AND state IS NOT NULL"
            " ORDER BY device",
            key,
        )
        return [msgspec.json.decode(state, type=Cell) for (state,) in rows]

    def put_cell(self, cell: Cell, row: CellRow) -> None:
        self.put_row(row)
        self._run(
            f"UPDATE cells SET state = ? WHERE {_CELL}",
            (msgspec.json.encode(cell), row.device, row.release, row.variant),
        )

    def put_row(self, row: CellRow) -> None:
        (version,) = self._one("SELECT coalesce(max(version), 0) + 1 FROM cells", ()) or (1,)
        row = replace(row, version=version)
        self._run(
            "INSERT INTO cells (device, release, variant, device_class, verdict, version, updated_s, row, heard_s,"
            " set_aside) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT DO UPDATE SET"
            " device_class = excluded.device_class, verdict = excluded.verdict, version = excluded.version,"
            " updated_s = excluded.updated_s, row = excluded.row",
            (
                row.device,
                row.release,
                row.variant,
                row.device_class,
                row.verdict,
                version,
                row.updated_s,
                msgspec.json.encode(row),
                row.updated_s,
            ),
        )

    def has_row(self, device: str, release: str, variant: str) -> bool:
        return self._one(f"SELECT 1 FROM cells WHERE {_CELL}", (device, release, variant)) is not None

    def hear_cell(self, device: str, release: str, variant: str, now_s: float, length_s: float | None = None) -> None:
        self._run(
            f"UPDATE cells SET heard_s = ?, length_s = coalesce(?, length_s), set_aside = 0 WHERE {_CELL}",
            (now_s, length_s, device, release, variant),
        )

    def quiet(self, policy: Policy, now_s: float, hearing_since_s: float, limit: int) -> Sequence[QuietCell]:
        rows = self._all(
            f"SELECT c.row, c.state, d.last_seen_s, c.length_s, {_SLEPT} FROM cells c"
            " LEFT JOIN devices d ON d.device = c.device WHERE c.set_aside = 0 AND c.heard_s < ?"
            # As in `Policy.silent_after`.
            f" AND max(c.heard_s, ?) < ? - max(?, ? * min(coalesce(c.length_s, 0.0), ?)) - ? * {_SLEPT}"
            " ORDER BY c.heard_s, c.device, c.variant LIMIT ?",
            (
                now_s - policy.silent_after_s,
                hearing_since_s,
                now_s,
                policy.silent_after_s,
                policy.silence_windows,
                LONGEST_WINDOW_S,
                SLEEP_S,
                limit,
            ),
        )
        return [
            QuietCell(
                row=msgspec.json.decode(row, type=CellRow),
                cell=msgspec.json.decode(state, type=Cell) if state else None,
                device_heard_s=heard_s,
                length_s=length_s,
                slept=bool(slept),
            )
            for row, state, heard_s, length_s, slept in rows
        ]

    def set_aside(self, device: str, release: str, variant: str) -> None:
        self._run(f"UPDATE cells SET set_aside = 1 WHERE {_CELL}", (device, release, variant))

    def open_flag(self, flag: FlagRow) -> None:
        self._run(
            "INSERT INTO flags (device, release, variant, device_class, metric, reason, opened_s, evidence)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                flag.device,
                flag.release,
                flag.variant,
                flag.device_class,
                flag.metric,
                flag.reason,
                flag.opened_s,
                flag.evidence_json,
            ),
        )

    def clear_flag(self, device: str, release: str, variant: str, metric: Metric, now_s: float) -> None:
        self._run(
            f"UPDATE flags SET cleared_s = ? WHERE {_CELL} AND metric = ? AND cleared_s IS NULL",
            (now_s, device, release, variant, metric),
        )

    # steer

    def assignments(self) -> dict[str, str | None]:
        return dict(self._all(_ASSIGNMENTS, ()))

    def put_assignment(self, device: str, release: str | None, now_s: float) -> None:
        self._run(
            "INSERT INTO assignments (device, release, assigned_s) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET release = excluded.release, assigned_s = excluded.assigned_s",
            (device, release, now_s),
        )

    def steerable(self) -> Sequence[SteeredDevice]:
        rows = self._all(
            "SELECT device, device_class, formats, desired_revision FROM devices WHERE device_class IS NOT NULL"
            " ORDER BY device",
            (),
        )
        return [
            SteeredDevice(
                device=device,
                device_class=device_class,
                formats=tuple(formats.split(",")) if formats else (),
                desired_revision=revision,
            )
            for device, device_class, formats, revision in rows
        ]

    def signatures(self, release: str) -> Sequence[Signature]:
        return [
            signatures.decode(body, f"a signature of release {release[:12]}")
            for (body,) in self._all("SELECT body FROM signatures WHERE release = ? ORDER BY key", (release,))
        ]

    def limits(self, release: str, device_class: str) -> dict[str, tuple[Limit, ...]]:
        rows = self._all(
            "SELECT variant, body FROM class_baselines WHERE release = ? AND device_class = ?",
            (release, device_class),
        )
        return {variant: msgspec.json.decode(body, type=ClassBaseline).limits for variant, body in rows}

    def desired(self, device: str) -> Desired | None:
        row = self._one("SELECT body FROM desired WHERE device = ?", (device,))
        return msgspec.json.decode(row[0], type=Desired) if row else None

    def put_desired(self, desired: Desired) -> None:
        self._run(
            "INSERT INTO desired (device, revision, sent, body) VALUES (?, ?, 0, ?)"
            " ON CONFLICT DO UPDATE SET revision = excluded.revision, sent = 0, body = excluded.body",
            (desired.device, desired.revision, msgspec.json.encode(desired)),
        )
        self._run("UPDATE cells SET set_aside = 0 WHERE device = ?", (desired.device,))

    # access and releases

    def put_credential(self, device: str, token_hash: str, now_s: float) -> bool:
        done = self._connection.execute(
            "INSERT INTO credentials (device, token_hash, enrolled_s) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (device, token_hash, now_s),
        )
        if done.rowcount:
            self._run("INSERT INTO devices (device, status) VALUES (?, 'enrolled') ON CONFLICT DO NOTHING", (device,))
        return bool(done.rowcount)

    def put_release(self, digest: str, manifest: bytes, model: str, now_s: float) -> None:
        self._run(
            "INSERT INTO releases (release, model, pushed_s, manifest) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (digest, model, now_s, manifest),
        )

    def signed_by(self, release: str) -> Sequence[str]:
        return [key for (key,) in self._all("SELECT key FROM signatures WHERE release = ? ORDER BY key", (release,))]

    def put_signature(self, signature: Signature, now_s: float) -> None:
        self._run(
            "INSERT INTO signatures (release, key, added_s, body) VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET added_s = excluded.added_s, body = excluded.body",
            (signature.release, signature.key, now_s, signatures.encode(signature)),
        )

    def tag(self, tag: str) -> TagRow | None:
        row = self._one(f"{_TAGS} WHERE tag = ?", (tag,))
        return _tag_row(row) if row else None

    def put_tag(self, tag: str, release: str, now_s: float) -> None:
        before = self.tag(tag)
        if before is not None and before.release == release:
            return
        self._run(
            "INSERT INTO tags (tag, release, tagged_s) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET release = excluded.release, tagged_s = excluded.tagged_s",
            (tag, release, now_s),
        )
        self._note_tag_move(tag, release, before, now_s)

    def remove_tag(self, tag: str, now_s: float) -> None:
        before = self.tag(tag)
        if before is not None:
            self._run("DELETE FROM tags WHERE tag = ?", (tag,))
            self._note_tag_move(tag, None, before, now_s)

    def _note_tag_move(self, tag: str, release: str | None, before: TagRow | None, now_s: float) -> None:
        self._run(
            "INSERT INTO tag_moves (tag, release, before, moved_s) VALUES (?, ?, ?, ?)",
            (tag, release, before.release if before else None, now_s),
        )

    def commands_waiting(self, device: str) -> int:
        (count,) = self._one("SELECT count(*) FROM commands WHERE device = ? AND state = 'waiting'", (device,)) or (0,)
        return int(count)

    def add_command(self, command: CommandRow) -> None:
        self._run(
            "INSERT INTO commands (device, correlation_id, command, variant, ttl_s, sustained_s, offline_s, asked_s, state,"
            " offered_s, sends, next_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
            (
                command.device,
                command.correlation_id,
                command.command,
                command.variant,
                command.ttl_s,
                command.sustained_s,
                command.offline_s,
                command.asked_s,
                command.state,
                command.offered_s,
                command.sends,
            ),
        )
        ended = "device = ? AND state != 'waiting'"
        self._run(
            f"DELETE FROM commands WHERE {ended} AND id <= (SELECT id FROM commands WHERE {ended}"
            " ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (command.device, command.device, COMMANDS_KEPT),
        )

    # outgoing

    def expire_commands(self, now_s: float) -> None:
        self._run("UPDATE commands SET state = 'expired' WHERE state = 'waiting' AND asked_s + ttl_s <= ?", (now_s,))

    def commands_due(self, now_s: float, next_before_s: float, limit: int) -> Sequence[CommandRow]:
        rows = self._all(
            f"{_COMMANDS} WHERE state = 'waiting' AND (next_s <= ? OR next_s > ?) ORDER BY id LIMIT ?",
            (now_s, next_before_s, limit),
        )
        return [_command_row(row) for row in rows]

    def command_sent(self, command: CommandRow, now_s: float, next_s: float) -> None:
        self._run(
            "UPDATE commands SET sends = sends + 1, sent_s = ?, next_s = CASE WHEN offered_s = ? THEN ? ELSE next_s END"
            " WHERE id = ?",
            (now_s, command.offered_s, next_s, command.id),
        )

    def receipts_due(self, limit: int) -> Sequence[tuple[str, int]]:
        return self._all("SELECT device, mark FROM receipts_due ORDER BY device LIMIT ?", (limit,))

    def receipt(self, device: str) -> Receipt:
        lives = self._all(
            "SELECT counter, random, floor FROM incarnations WHERE device = ? ORDER BY heard DESC LIMIT ?",
            (device, RECEIPT_INCARNATIONS),
        )
        (last_counter,) = self._one("SELECT max(counter) FROM incarnations WHERE device = ?", (device,)) or (None,)
        return Receipt(
            device=device,
            last_counter=last_counter or 0,
            incarnations=tuple(self._life_receipt(device, Incarnation(c, r), floor) for c, r, floor in lives),
        )

    def receipt_sent(self, device: str, mark: int) -> None:
        self._run("DELETE FROM receipts_due WHERE device = ? AND mark = ?", (device, mark))

    def desired_due(self, limit: int) -> Sequence[Desired]:
        rows = self._all("SELECT body FROM desired WHERE sent = 0 ORDER BY device LIMIT ?", (limit,))
        return [msgspec.json.decode(body, type=Desired) for (body,) in rows]

    def desired_sent(self, device: str, revision: int) -> None:
        self._run("UPDATE desired SET sent = 1 WHERE device = ? AND revision = ?", (device, revision))

    def _life_receipt(self, device: str, incarnation: Incarnation, floor: int) -> IncarnationReceipt:
        settled = self._settled((device, *incarnation))
        refused = self._all(
            f"SELECT seq, reason FROM refusals WHERE {_LIFE} AND seq >= ? ORDER BY seq LIMIT ?",
            (device, *incarnation, floor, RECEIPT_LIST),
        )
        return IncarnationReceipt(
            incarnation=incarnation,
            contiguous=contiguous(settled),
            gaps=gaps(settled)[:RECEIPT_LIST],
            refused=tuple(Refusal(seq=seq, reason=reason) for seq, reason in refused),
        )

    def _settled(self, key: tuple[Any, ...]) -> tuple[tuple[int, int], ...]:
        return tuple(self._all(f"SELECT first, last FROM settled WHERE {_LIFE} ORDER BY first", key))

    def _one(self, sql: str, values: Sequence[Any]) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._connection.execute(sql, values).fetchone()
        return row

    def _all(self, sql: str, values: Sequence[Any]) -> list[Any]:
        return self._connection.execute(sql, values).fetchall()

    def _run(self, sql: str, values: Sequence[Any]) -> None:
        self._connection.execute(sql, values)

    def _many(self, sql: str, values: Iterable[Sequence[Any]]) -> None:
        self._connection.executemany(sql, values)


class SqliteReader:
    """Answers from a read-only connection of the asking thread."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._threads = threading.local()

    def devices(self, *, after: str = "", limit: int = 100) -> Sequence[DeviceRow]:
        rows = self._all(f"{_DEVICES} WHERE d.device > ? ORDER BY d.device LIMIT ?", (after, limit))
        return [self._device_row(row) for row in rows]

    def device(self, device: str) -> DeviceRow | None:
        rows = self._all(f"{_DEVICES} WHERE d.device = ?", (device,))
        return self._device_row(rows[0]) if rows else None

    def asleep(self, since_s: float) -> frozenset[str]:
        rows = self._all("SELECT device FROM devices WHERE status = 'sleeping' AND slept_s >= ?", (since_s,))
        return frozenset(device for (device,) in rows)

    def windows(
        self,
        device: str,
        *,
        variant: str | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Sequence[WindowRow]:
        where = ["device = ?", "id > ?"]
        values: list[Any] = [device, after]
        for clause, value in (("variant = ?", variant), ("received_s >= ?", start_s), ("received_s < ?", end_s)):
            if value is not None:
                where.append(clause)
                values.append(value)
        return _window_rows(
            self._all(
                f"SELECT id, received_s, backfill, measured_s, dated, body FROM windows WHERE {' AND '.join(where)} ORDER BY id LIMIT ?",
                (*values, limit),
            )
        )

    def summaries(self, device: str, *, after: int = 0, limit: int = 100) -> Sequence[SummaryRow]:
        rows = self._all(
            "SELECT id, received_s, body FROM summaries WHERE device = ? AND id > ? ORDER BY id LIMIT ?",
            (device, after, limit),
        )
        return [
            SummaryRow(id=i, received_s=at, summary=msgspec.json.decode(body, type=Summary)) for i, at, body in rows
        ]

    def app_windows(
        self,
        device: str,
        *,
        app: str | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Sequence[AppWindowRow]:
        where = ["device = ?", "id > ?"]
        values: list[Any] = [device, after]
        for clause, value in (("app = ?", app), ("received_s >= ?", start_s), ("received_s < ?", end_s)):
            if value is not None:
                where.append(clause)
                values.append(value)
        return _app_window_rows(
            self._all(f"{_APP_WINDOWS} WHERE {' AND '.join(where)} ORDER BY id LIMIT ?", (*values, limit))
        )

    def newest_app_windows(self, device: str) -> Sequence[AppWindowRow]:
        return _app_window_rows(
            self._all(
                f"{_APP_WINDOWS} WHERE id IN (SELECT max(id) FROM app_windows WHERE device = ? GROUP BY app, model)"
                " ORDER BY app, model",
                (device,),
            )
        )

    def cells(
        self, *, release: str | None = None, device: str | None = None, after_version: int = 0
    ) -> Sequence[CellRow]:
        where = ["version > ?"]
        values: list[Any] = [after_version]
        for clause, value in (("release = ?", release), ("device = ?", device)):
            if value is not None:
                where.append(clause)
                values.append(value)
        rows = self._all(f"SELECT row FROM cells WHERE {' AND '.join(where)} ORDER BY device, variant", values)
        return [msgspec.json.decode(row, type=CellRow) for (row,) in rows]

    def last_version(self) -> int:
        return int(self._all("SELECT coalesce(max(version), 0) FROM cells", ())[0][0])

    def flags(
        self, *, device: str | None = None, only_open: bool = True, after: int = 0, limit: int = 100
    ) -> Sequence[FlagRow]:
        where = ["id > ?"]
        values: list[Any] = [after]
        if device is not None:
            where.append("device = ?")
            values.append(device)
        if only_open:
            where.append("cleared_s IS NULL")
        rows = self._all(f"{_FLAGS} WHERE {' AND '.join(where)} ORDER BY id LIMIT ?", (*values, limit))
        return [_flag_row(row) for row in rows]

    def flag(self, flag_id: int) -> FlagRow | None:
        rows = self._all(f"{_FLAGS} WHERE id = ?", (flag_id,))
        return _flag_row(rows[0]) if rows else None

    def releases(self) -> Sequence[ReleaseRow]:
        return self._release_rows(self._all(f"{_RELEASES} ORDER BY pushed_s DESC, release", ()))

    def release(self, name: str) -> ReleaseRow | None:
        # No tag could be the start of a digest, so both never match.
        rows = self._all(
            f"{_RELEASES} WHERE substr(release, 1, ?) = ? OR release = (SELECT release FROM tags WHERE tag = ?) LIMIT 2",
            (len(name), name, name),
        )
        return self._release_rows(rows)[0] if len(rows) == 1 else None

    def tags(self) -> Sequence[TagRow]:
        return [_tag_row(row) for row in self._all(f"{_TAGS} ORDER BY tag", ())]

    def tag(self, tag: str) -> TagRow | None:
        rows = self._all(f"{_TAGS} WHERE tag = ?", (tag,))
        return _tag_row(rows[0]) if rows else None

    def tag_moves(self, tag: str) -> Sequence[TagMoveRow]:
        rows = self._all("SELECT id, tag, release, before, moved_s FROM tag_moves WHERE tag = ? ORDER BY id", (tag,))
        return [
            TagMoveRow(id=i, tag=name, release=release, before=before, moved_s=at)
            for i, name, release, before, at in rows
        ]

    def events(
        self, device: str, *, after: int = 0, limit: int = 100, newest_first: bool = False
    ) -> Sequence[EventRow]:
        behind = "(? = 0 OR id < ?) ORDER BY id DESC" if newest_first else "(? = 0 OR id > ?) ORDER BY id"
        return _event_rows(self._all(f"{_EVENTS} WHERE device = ? AND {behind} LIMIT ?", (device, after, after, limit)))

    def commands(self, device: str, *, after: int = 0, limit: int = 100) -> Sequence[CommandRow]:
        rows = self._all(f"{_COMMANDS} WHERE device = ? AND id > ? ORDER BY id LIMIT ?", (device, after, limit))
        return [_command_row(row) for row in rows]

    def command(self, device: str, correlation_id: str) -> CommandRow | None:
        rows = self._all(f"{_COMMANDS} WHERE device = ? AND correlation_id = ?", (device, correlation_id))
        return _command_row(rows[0]) if rows else None

    def losses(self, device: str) -> Sequence[LossRow]:
        rows = self._all(
            "SELECT counter, random, first, last, reason FROM losses WHERE device = ? ORDER BY counter, random, first",
            (device,),
        )
        return [
            LossRow(device=device, incarnation=Incarnation(c, r), first_seq=first, last_seq=last, reason=reason)
            for c, r, first, last, reason in rows
        ]

    def dead_letters(self, *, after: int = 0, limit: int = 100) -> Sequence[DeadLetterRow]:
        rows = self._all(
            "SELECT id, received_s, topic, reason, detail, size_bytes, payload FROM dead_letters"
            " WHERE id > ? ORDER BY id LIMIT ?",
            (after, limit),
        )
        return [
            DeadLetterRow(
                id=i, received_s=at, topic=topic, reason=reason, detail=detail, size_bytes=bytes_, payload=payload
            )
            for i, at, topic, reason, detail, bytes_, payload in rows
        ]

    def policy(self) -> Policy:
        return _policy(self._all(_NEWEST_POLICY, ()))

    def assignments(self) -> Mapping[str, str | None]:
        return dict(self._all(_ASSIGNMENTS, ()))

    def credential(self, device: str) -> str | None:
        rows = self._all("SELECT token_hash FROM credentials WHERE device = ?", (device,))
        return rows[0][0] if rows else None

    def lag(self) -> int:
        rows = self._all(
            "SELECT count(*) FROM windows WHERE id > coalesce((SELECT position FROM cursors WHERE name = 'judge'), 0)",
            (),
        )
        return int(rows[0][0])

    def stats(self) -> Stats:
        dead = dict(self._all("SELECT reason, count FROM dead_letter_counts", ()))
        tallies: dict[str, int] = dict(self._all("SELECT name, count FROM tallies", ()))
        return Stats(
            devices=self._count("devices"),
            windows=self._count("windows"),
            flags_open=self._count("flags WHERE cleared_s IS NULL"),
            dead_letters=sum(dead.values()),
            balance=self._balance(),
            ingested={name: count for name, count in tallies.items() if name in INGEST_RESULTS},
            passed_over={name: count for name, count in tallies.items() if name not in INGEST_RESULTS},
            dead_letters_by_reason=dead,
        )

    def _balance(self) -> Balance:
        # Added up here: a hostile device's numbers are too large for SQLite's sum.
        measured = sum(highest for (highest,) in self._all("SELECT highest FROM incarnations", ()))
        settled = size(tuple(self._all("SELECT first, last FROM settled", ())))
        refused = self._count("refusals")
        lost = size(tuple(self._all("SELECT first, last FROM losses", ())))
        return Balance(
            measured=measured,
            committed=settled - refused - lost,
            refused=refused,
            lost=lost,
            in_flight=measured - settled,
        )

    def _release_rows(self, rows: Sequence[tuple[Any, ...]]) -> list[ReleaseRow]:
        """Return releases with what they are signed by and called: three questions, however many releases."""
        one = (" WHERE release = ?", (rows[0][0],)) if len(rows) == 1 else ("", ())
        signed: dict[str, list[Signature]] = {}
        for release, body in self._all(f"SELECT release, body FROM signatures{one[0]} ORDER BY key", one[1]):
            signed.setdefault(release, []).append(signatures.decode(body, f"a signature of release {release[:12]}"))
        called: dict[str, list[str]] = {}
        for release, tag in self._all(f"SELECT release, tag FROM tags{one[0]} ORDER BY tag", one[1]):
            called.setdefault(release, []).append(tag)
        return [
            ReleaseRow(
                release=release,
                model=model,
                pushed_s=pushed_s,
                manifest=_manifest(release, manifest),
                signatures=tuple(signed.get(release, ())),
                tags=tuple(called.get(release, ())),
            )
            for release, model, pushed_s, manifest in rows
        ]

    def _count(self, what: str) -> int:
        return int(self._all(f"SELECT count(*) FROM {what}", ())[0][0])

    def _device_row(self, row: tuple[Any, ...]) -> DeviceRow:
        device, device_class, status, agent_version, first_seen_s, last_seen_s, release = row
        verdicts: list[Verdict] = [
            verdict
            for (verdict,) in self._all("SELECT verdict FROM cells WHERE device = ? AND release = ?", (device, release))
        ]
        return DeviceRow(
            device=device,
            device_class=device_class,
            status=status,
            agent_version=agent_version,
            release=release,
            verdict=combine(verdicts) if verdicts else None,
            first_seen_s=first_seen_s,
            last_seen_s=last_seen_s,
        )

    def _all(self, sql: str, values: Sequence[Any]) -> list[Any]:
        connection: sqlite3.Connection | None = getattr(self._threads, "connection", None)
        try:
            if connection is None:
                connection = self._connect()
                connection.execute("PRAGMA query_only = ON")
                self._threads.connection = connection
            return connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"the store cannot be read: {error}; ask again later") from error


_DEVICES: Final = (
    "SELECT d.device, d.device_class, d.status, d.agent_version, d.first_seen_s, d.last_seen_s,"
    # A device that was assigned nothing does not run what is assigned to all others.
    " CASE WHEN a.device IS NULL THEN b.release ELSE a.release END FROM devices d"
    " LEFT JOIN assignments a ON a.device = d.device LEFT JOIN assignments b ON b.device = '*'"
)
_FLAGS: Final = (
    "SELECT id, device, device_class, release, variant, metric, reason, opened_s, cleared_s, evidence FROM flags"
)
_APP_WINDOWS: Final = "SELECT id, received_s, backfill, body FROM app_windows"
_RELEASES: Final = "SELECT release, model, pushed_s, manifest FROM releases"


def _device_of(topic: str) -> str:
    """Return the device that a topic belongs to, for its own device alone may publish on it; empty where it is nobody's."""
    try:
        return topics.parse(topic).device
    except MessageError:
        return ""


def _policy(rows: list[tuple[bytes]]) -> Policy:
    return msgspec.json.decode(rows[0][0], type=Policy) if rows else Policy()


# Asked for with every window that is judged; a release never changes.
@lru_cache(maxsize=16)
def _manifest(release: str, payload: bytes) -> Manifest:
    return manifests.decode(payload, f"release {release[:12]}")


def _flag_row(row: tuple[Any, ...]) -> FlagRow:
    flag_id, device, device_class, release, variant, metric, reason, opened_s, cleared_s, evidence = row
    return FlagRow(
        id=flag_id,
        device=device,
        device_class=device_class,
        release=release,
        variant=variant,
        metric=metric,
        reason=reason,
        opened_s=opened_s,
        cleared_s=cleared_s,
        evidence_json=evidence,
    )


def _tag_row(row: tuple[Any, ...]) -> TagRow:
    tag, release, tagged_s = row
    return TagRow(tag=tag, release=release, tagged_s=tagged_s)


def _event_rows(rows: Iterable[tuple[Any, ...]]) -> list[EventRow]:
    return [
        EventRow(
            id=i,
            device=device,
            incarnation=Incarnation(counter, random),
            event=event,
            release=release,
            variant=variant,
            detail=detail,
            received_s=at,
        )
        for i, device, counter, random, event, release, variant, detail, at in rows
    ]


def _command_row(row: tuple[Any, ...]) -> CommandRow:
    i, device, correlation_id, command, variant, ttl_s, sustained_s, offline_s, asked_s, state, *sent = row
    offered_s, sends, sent_s, replied_s, reply = sent
    return CommandRow(
        id=i,
        device=device,
        correlation_id=correlation_id,
        command=command,
        variant=variant,
        ttl_s=ttl_s,
        sustained_s=sustained_s,
        offline_s=offline_s,
        asked_s=asked_s,
        state=state,
        offered_s=offered_s,
        sends=sends,
        sent_s=sent_s,
        replied_s=replied_s,
        reply=msgspec.json.decode(reply, type=Reply) if reply else None,
    )


def _window_rows(rows: Iterable[tuple[Any, ...]]) -> list[WindowRow]:
    return [
        WindowRow(
            id=i,
            received_s=at,
            backfill=bool(backfill),
            window=msgspec.json.decode(body, type=Window),
            measured_s=measured_s,
            dated=dated,
        )
        for i, at, backfill, measured_s, dated, body in rows
    ]


def _app_window_rows(rows: Iterable[tuple[Any, ...]]) -> list[AppWindowRow]:
    return [
        AppWindowRow(id=i, received_s=at, backfill=bool(backfill), window=msgspec.json.decode(body, type=AppWindow))
        for i, at, backfill, body in rows
    ]


def _window_values(window: Window, backfill: bool, now_s: float) -> tuple[Any, ...]:
    latency, accuracy = window.latency, window.accuracy
    return (
        window.device,
        *window.incarnation,
        window.seq,
        window.release,
        window.variant,
        window.context,
        now_s,
        int(backfill),
        latency.p50_ms if latency else None,
        latency.p95_ms if latency else None,
        latency.n if latency else None,
        accuracy.errors if accuracy else None,
        accuracy.n if accuracy else None,
        peak_bytes(window),
        window.length_s,
        msgspec.json.encode(window),
    )
