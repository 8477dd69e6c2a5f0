"""What every store must do, whatever keeps the rows. SQLite is the only one so far."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlite_utils import Database

from evenfleet_collector import seqs
from evenfleet_collector.cell import Cell, ClassBaseline, ClassKey, MetricBaseline
from evenfleet_collector.seqs import Ranges
from evenfleet_collector.store.rows import Balance, IncarnationRow, LossRow, NewWindow, TagRow
from evenfleet_collector.store.schema import migrations
from evenfleet_collector.store.sqlite import (
    COMMANDS_KEPT,
    FILE_NAME,
    SqliteReader,
    SqliteWriter,
    open_reader,
    open_writer,
)
from evenfleet_collector.tolerance import SLEEP_S, Policy
from evenfleet_shared import manifest as manifests
from evenfleet_shared.errors import MessageError, StoreError
from evenfleet_shared.messages import Desired, Incarnation, Limit, Refusal
from evenfleet_shared.signature import PrivateKey
from fakes import uplink
from fakes.stores import cell_row, command_row, flag_row, small_manifest
from fakes.uplink import DEVICE, LIFE, RELEASE, SESSION, app_window, context, event, reply, state, window

NOW_S = 1.7e9
POLICY = Policy()
KEY = ClassKey(RELEASE, "float32", "bench-x86")


@dataclass
class Store:
    directory: Path
    writer: SqliteWriter
    reader: SqliteReader

    def settle(self, ranges: Ranges, incarnation: Incarnation = LIFE, *, floor: int = 1, highest: int = 0) -> None:
        row = IncarnationRow(
            device=DEVICE, incarnation=incarnation, settled=ranges, floor=floor, highest=highest or _last(ranges)
        )
        with self.writer.transaction() as tx:
            tx.put_incarnation(row)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    writer = open_writer(tmp_path)
    yield Store(tmp_path, writer, open_reader(tmp_path))
    writer.close()


def _last(ranges: Ranges) -> int:
    return ranges[-1][1] if ranges else 0


def test_what_a_failed_transaction_did_is_not_there(store: Store) -> None:
    def fail() -> None:
        with store.writer.transaction() as tx:
            tx.add_windows([NewWindow(window=window(1), backfill=False)], NOW_S)
            tx.put_policy(Policy(revision=2), NOW_S)
            tx.see_device(DEVICE, NOW_S)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert not store.reader.windows(DEVICE)
    assert store.reader.policy() == Policy()
    assert store.reader.device(DEVICE) is None
    with store.writer.transaction() as tx:
        tx.see_device(DEVICE, NOW_S)
    assert store.reader.device(DEVICE) is not None


def test_what_was_committed_is_there_after_opening_again(store: Store) -> None:
    with store.writer.transaction() as tx:
        tx.add_windows([NewWindow(window=window(1), backfill=True)], NOW_S)
        tx.put_cursor("judge", 7)
    store.settle(((1, 1),))
    store.writer.close()

    again = open_writer(store.directory)
    with again.transaction() as tx:
        assert tx.cursor("judge") == 7
        assert tx.incarnation(DEVICE, LIFE).settled == ((1, 1),)
    (row,) = store.reader.windows(DEVICE)
    assert (row.window, row.backfill, row.received_s) == (window(1), True, NOW_S)
    again.close()


def test_a_death_without_closing_loses_nothing_committed(store: Store, tmp_path: Path) -> None:
    """The files as they lie there are what a kill leaves."""
    with store.writer.transaction() as tx:
        tx.see_device(DEVICE, NOW_S)
    store.writer._connection.execute("BEGIN IMMEDIATE")
    store.writer.see_device("uncommitted", NOW_S)

    left = tmp_path / "left"
    left.mkdir()
    for file in store.directory.glob(f"{FILE_NAME}*"):
        shutil.copy(file, left)

    open_writer(left).close()
    assert [row.device for row in open_reader(left).devices()] == [DEVICE]


@pytest.mark.parametrize("statements", range(0, 80, 9))
def test_a_death_in_the_middle_of_creating_the_tables_leaves_a_file_that_opens(tmp_path: Path, statements: int) -> None:
    left = statements

    class Dying(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return super().execute(sql, *values)

    connections = []

    def connect() -> sqlite3.Connection:
        connections.append(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None, factory=Dying))
        return connections[0]

    try:
        SqliteWriter(connect).close()
    except KeyboardInterrupt:
        connections[0].close()

    writer = open_writer(tmp_path)
    with writer.transaction() as tx:
        tx.see_device(DEVICE, NOW_S)
    writer.close()


def test_migrations_are_applied_once(store: Store) -> None:
    def applied() -> list[Any]:
        with sqlite3.connect(store.directory / FILE_NAME) as db:
            return db.execute("SELECT name, applied_at FROM _sqlite_migrations ORDER BY id").fetchall()

    before = applied()
    open_writer(store.directory).close()

    assert before
    assert applied() == before


def test_a_directory_that_cannot_be_written_is_one_line() -> None:
    with pytest.raises(StoreError, match=r"cannot open the store /proc/evenfleet/.*") as caught:
        open_writer(Path("/proc/evenfleet"))

    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database_is_one_line_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"something else entirely\n" * 100)

    with pytest.raises(StoreError, match="not a database") as caught:
        open_writer(tmp_path)

    assert "\n" not in str(caught.value)
    assert (tmp_path / FILE_NAME).read_bytes().startswith(b"something else")


def test_a_database_that_another_keeps_locked_is_a_store_error_and_nothing_of_the_batch_is_kept(store: Store) -> None:
    store.writer._connection.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(store.directory / FILE_NAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreError, match="locked") as caught, store.writer.transaction() as tx:
        tx.see_device(DEVICE, NOW_S)

    assert "\n" not in str(caught.value)
    other.execute("ROLLBACK")
    assert store.reader.device(DEVICE) is None
    with store.writer.transaction() as tx:
        tx.see_device(DEVICE, NOW_S)
    other.close()


def test_a_reader_without_a_database_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot"):
        open_reader(tmp_path).devices()


def test_readers_go_on_while_a_transaction_is_open_and_see_what_was_before(store: Store) -> None:
    with store.writer.transaction() as tx:
        tx.see_device("before", NOW_S)

    seen: list[list[str]] = []

    def read() -> None:
        seen.append([row.device for row in store.reader.devices()])

    with store.writer.transaction() as tx:
        tx.see_device("while", NOW_S)
        thread = threading.Thread(target=read)
        thread.start()
        thread.join(timeout=5)
        assert not thread.is_alive()

    read()
    assert seen == [["before"], ["before", "while"]]


def test_a_reader_cannot_write(store: Store) -> None:
    with pytest.raises(StoreError, match=r"readonly|read-only"):
        store.reader._all("DELETE FROM devices", ())


# numbers


def test_an_unknown_incarnation_has_nothing_settled(store: Store) -> None:
    with store.writer.transaction() as tx:
        assert tx.incarnation(DEVICE, LIFE) == IncarnationRow(device=DEVICE, incarnation=LIFE)


@given(st.lists(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3)), max_size=4), max_size=5))
@settings(max_examples=30)
def test_settled_ranges_come_back_as_they_were_last_written(
    tmp_path_factory: pytest.TempPathFactory, writes: list[list[tuple[int, int]]]
) -> None:
    writer = open_writer(tmp_path_factory.mktemp("store"))
    other = Incarnation(1, "bbbbbbbb")
    settled: Ranges = ()
    with writer.transaction() as tx:
        tx.put_incarnation(IncarnationRow(device=DEVICE, incarnation=other, settled=((4, 9),), highest=9))
        for write in writes:
            settled = seqs.union([*settled, *((first, first + more) for first, more in write)])
            row = IncarnationRow(device=DEVICE, incarnation=LIFE, settled=settled, floor=2, highest=40)
            tx.put_incarnation(row)
            assert tx.incarnation(DEVICE, LIFE) == row
        assert tx.incarnation(DEVICE, other).settled == ((4, 9),)
    writer.close()


def test_how_far_an_incarnation_was_judged_survives_news_of_its_numbers(store: Store) -> None:
    store.settle(((1, 3),))
    with store.writer.transaction() as tx:
        tx.put_judging(DEVICE, LIFE, 3)
    store.settle(((1, 5),))

    with store.writer.transaction() as tx:
        assert tx.judging(DEVICE, LIFE) == 3
        assert tx.newest_judged(DEVICE) == LIFE


# receipts


def test_a_receipt_says_what_is_settled_and_what_is_missing(store: Store) -> None:
    store.settle(((1, 3), (6, 6), (9, 12)))
    store.settle(((2, 2),), Incarnation(2, "cccccccc"))

    with store.writer.transaction() as tx:
        receipt = tx.receipt(DEVICE)

    assert receipt.last_counter == 2
    parts = {part.incarnation: part for part in receipt.incarnations}
    assert (parts[LIFE].contiguous, parts[LIFE].gaps) == (3, ((4, 5), (7, 8)))
    newer = parts[Incarnation(2, "cccccccc")]
    assert (newer.contiguous, newer.gaps) == (0, ((1, 1),))


def test_a_receipt_names_refusals_only_from_the_floor_up(store: Store) -> None:
    store.settle(((1, 9),), floor=5)
    with store.writer.transaction() as tx:
        for seq in (4, 5, 7):
            tx.add_refusal(DEVICE, LIFE, Refusal(seq=seq, reason="invalid"))
        receipt = tx.receipt(DEVICE)

    assert [refusal.seq for refusal in receipt.incarnations[0].refused] == [5, 7]


def test_a_receipt_for_a_device_with_nothing_known_is_empty(store: Store) -> None:
    with store.writer.transaction() as tx:
        receipt = tx.receipt("unheard-of")

    assert (receipt.last_counter, receipt.incarnations) == (0, ())


def test_a_receipt_speaks_of_the_lives_heard_of_last_however_old(store: Store) -> None:
    """A device that rebooted often without a network still holds messages of many lives, and waits for word of each."""
    lives = [Incarnation(counter, "aaaaaaaa") for counter in range(1, 101)]
    for life in lives:
        store.settle(((1, 2),), life)
    store.settle(((1, 3),), lives[0])

    with store.writer.transaction() as tx:
        receipt = tx.receipt(DEVICE)

    assert receipt.last_counter == 100
    assert 1 < len(receipt.incarnations) <= 64
    assert {lives[0], lives[-1]} <= {part.incarnation for part in receipt.incarnations}


def test_a_receipt_that_becomes_due_again_before_it_is_marked_stays_due(store: Store) -> None:
    """The batch that came between making the receipt and marking it is not in it."""
    with store.writer.transaction() as tx:
        tx.mark_receipt_due(DEVICE)
        ((device, mark),) = tx.receipts_due(10)
    with store.writer.transaction() as tx:
        tx.mark_receipt_due(DEVICE)
    with store.writer.transaction() as tx:
        tx.receipt_sent(device, mark)
        ((device, mark),) = tx.receipts_due(10)
    with store.writer.transaction() as tx:
        tx.receipt_sent(device, mark)
        assert not tx.receipts_due(10)


def test_receipts_due_are_at_most_so_many(store: Store) -> None:
    with store.writer.transaction() as tx:
        for device in ("a", "b", "c"):
            tx.mark_receipt_due(device)

        assert len(tx.receipts_due(2)) == 2


# what was reported


def test_the_log_is_in_the_order_of_writing_and_pages_without_gaps(store: Store) -> None:
    with store.writer.transaction() as tx:
        tx.add_windows([NewWindow(window=window(seq), backfill=False) for seq in (3, 1)], NOW_S)
        tx.add_windows([NewWindow(window=window(2, variant="int8"), backfill=False)], NOW_S + 10)

        first = tx.arrivals(0, 2)
        assert [(row.device, row.incarnation) for row in first] == [(DEVICE, LIFE)] * 2
        assert len(tx.arrivals(first[-1].id, 2)) == 1

    rows = store.reader.windows(DEVICE)
    assert [row.window.seq for row in rows] == [3, 1, 2]
    assert [row.window.seq for row in store.reader.windows(DEVICE, after=rows[0].id, limit=1)] == [1]
    assert [row.window.seq for row in store.reader.windows(DEVICE, variant="int8")] == [2]
    assert [row.window.seq for row in store.reader.windows(DEVICE, end_s=NOW_S + 10)] == [3, 1]
    assert [row.window.seq for row in store.reader.windows(DEVICE, start_s=NOW_S + 10)] == [2]


def test_windows_of_a_life_are_in_the_order_of_their_numbers(store: Store) -> None:
    with store.writer.transaction() as tx:
        tx.add_windows([NewWindow(window=window(seq), backfill=False) for seq in (4, 2, 3, 1)], NOW_S)

        assert [row.window.seq for row in tx.windows_in(DEVICE, LIFE, 2, 3)] == [2, 3]


def test_what_stands_further_on_in_the_log_is_found_by_its_number(store: Store) -> None:
    with store.writer.transaction() as tx:
        tx.add_windows([NewWindow(window=window(seq), backfill=False) for seq in (4, 2, 3, 1)], NOW_S)
        four, two, *_ = tx.arrivals(0, 10)

        assert tx.first_behind(DEVICE, LIFE, 1, 4, four.id) == 1
        assert tx.first_behind(DEVICE, LIFE, 2, 4, two.id) == 3
        assert tx.first_behind(DEVICE, LIFE, 4, 4, two.id) is None


def test_when_the_next_windows_of_a_life_were_received(store: Store) -> None:
    with store.writer.transaction() as tx:
        for seq in (9, 7, 3, 5):
            tx.add_windows([NewWindow(window=window(seq), backfill=False)], NOW_S + seq)

        assert tx.received_from(DEVICE, LIFE, 4, 2) == [NOW_S + 5, NOW_S + 7]
        assert tx.received_from(DEVICE, LIFE, 9, 2) == [NOW_S + 9]


def test_a_cells_windows_are_those_that_were_judged_in_order_and_not_those_passed_over(store: Store) -> None:
    second = Incarnation(2, "bbbbbbbb")
    with store.writer.transaction() as tx:
        for incarnation in (second, LIFE):
            tx.put_incarnation(IncarnationRow(device=DEVICE, incarnation=incarnation, settled=((1, 6),), highest=6))
            windows = [window(seq, incarnation=incarnation) for seq in (6, 5, 4, 2)]
            tx.add_windows([NewWindow(window=one, backfill=False) for one in windows], NOW_S)
        tx.put_judging(DEVICE, LIFE, 6)
        tx.add_skip(DEVICE, LIFE, 4, 4, "watermark")
        tx.put_judging(DEVICE, second, 5)

        found = tx.cell_windows(DEVICE, RELEASE, "float32")

    assert [(row.window.incarnation.counter, row.window.seq) for row in found] == [
        (1, 2), (1, 5), (1, 6), (2, 2), (2, 4), (2, 5)
    ]  # fmt: skip


def test_windows_of_applications_come_back_as_they_were_sent(store: Store) -> None:
    sent = [
        app_window(1),
        app_window(2, app="counting", model=None),
        app_window(3),
        app_window(4, latency=None, calls=5),
    ]
    with store.writer.transaction() as tx:
        for at, one in enumerate(sent):
            tx.add_app_window(one, backfill=at == 1, now_s=NOW_S + at)
        tx.add_app_window(app_window(1, device="press-02"), backfill=False, now_s=NOW_S)

    rows = store.reader.app_windows(DEVICE)
    assert [row.window for row in rows] == sent
    assert [(row.received_s, row.backfill) for row in rows[:2]] == [(NOW_S, False), (NOW_S + 1, True)]
    assert [row.window.seq for row in store.reader.app_windows(DEVICE, app="inspection", limit=2)] == [1, 3]
    assert [row.window.seq for row in store.reader.app_windows(DEVICE, after=rows[1].id)] == [3, 4]
    assert [row.window.seq for row in store.reader.app_windows(DEVICE, start_s=NOW_S + 1, end_s=NOW_S + 3)] == [2, 3]


def test_newest_window_of_each_application_and_model_is_found(store: Store) -> None:
    with store.writer.transaction() as tx:
        for one in (app_window(1), app_window(2, model=None), app_window(3), app_window(4, app="counting")):
            tx.add_app_window(one, backfill=False, now_s=NOW_S)

    newest = store.reader.newest_app_windows(DEVICE)
    assert [(row.window.app, row.window.model, row.window.seq) for row in newest] == [
        ("counting", "fashion-cnn", 4),
        ("inspection", None, 2),
        ("inspection", "fashion-cnn", 3),
    ]


def test_older_database_has_no_windows_of_applications(tmp_path: Path) -> None:
    db = Database(tmp_path / FILE_NAME)
    migrations.apply(db, stop_before="m009_windows_of_applications")
    db.close()

    open_writer(tmp_path).close()

    assert open_reader(tmp_path).app_windows(DEVICE) == []


def test_events_and_contexts_are_kept(store: Store) -> None:
    told = context(1)
    with store.writer.transaction() as tx:
        tx.add_context(told, NOW_S)
        tx.add_context(replace(told, seq=2), NOW_S)
        tx.add_event(event(3, event="variant-refused", variant="int8", detail="too new"), NOW_S)

        assert tx.context(told.digest) == told.run
        assert tx.context("0" * 64) is None
        assert [row.event for row in tx.events(0, 10)] == ["variant-refused"]

    (row,) = store.reader.events(DEVICE)
    assert (row.variant, row.detail, row.received_s) == ("int8", "too new", NOW_S)
    assert not store.reader.events(DEVICE, after=row.id)


def test_dead_letters_are_counted_by_reason_and_kept_from_their_start(store: Store) -> None:
    with store.writer.transaction() as tx:
        tx.add_dead_letter("evenfleet/v1/a/window", MessageError("encoding", "no"), b"\xff" * 100_000, NOW_S)
        tx.add_dead_letter("x" * 10_000, MessageError("topic", "no"), b"", NOW_S)

    first, second = store.reader.dead_letters()
    assert (first.size_bytes, len(first.payload) < 100_000, first.payload[:1]) == (100_000, True, b"\xff")
    assert len(second.topic) < 10_000
    assert store.reader.stats().dead_letters_by_reason == {"encoding": 1, "topic": 1}
    assert [row.reason for row in store.reader.dead_letters(after=first.id)] == ["topic"]


def test_dead_letters_of_one_device_are_bounded_and_leave_the_others_and_the_count_alone(store: Store) -> None:
    with store.writer.transaction() as tx:
        tx.add_dead_letter("evenfleet/v1/b/window", MessageError("encoding", "rare"), b"b", NOW_S)
        tx.add_dead_letter("evenfleet/v1/a/window", MessageError("size", "rare"), b"a", NOW_S)
        for number in range(1000):
            tx.add_dead_letter("evenfleet/v1/a/window", MessageError("encoding", "often"), b"%d" % number, NOW_S)

    kept = store.reader.dead_letters(limit=1000)
    assert [row.payload for row in kept[:2]] == [b"b", b"a"]
    assert [row.payload for row in kept[2:]] == [b"%d" % number for number in range(900, 1000)]
    stats = store.reader.stats()
    assert (stats.dead_letters, stats.dead_letters_by_reason) == (1002, {"encoding": 1001, "size": 1})


def test_dead_letters_of_an_older_database_are_still_counted(tmp_path: Path) -> None:
    db = Database(tmp_path / FILE_NAME)
    migrations.apply(db, stop_before="m004_dead_letters_by_device")
    letter = {"received_s": NOW_S, "topic": "t", "reason": "size", "detail": "", "size_bytes": 1, "payload": b"x"}
    db.table("dead_letters").insert_all([letter, letter])
    db.close()

    writer = open_writer(tmp_path)
    with writer.transaction() as tx:
        tx.add_dead_letter("evenfleet/v1/a/window", MessageError("size", "no"), b"y", NOW_S)
    reader = open_reader(tmp_path)

    assert reader.stats().dead_letters_by_reason == {"size": 3}
    assert [row.payload for row in reader.dead_letters()] == [b"x", b"x", b"y"]
    writer.close()


def test_dead_letters_of_however_many_devices_are_bounded(store: Store) -> None:
    with store.writer.transaction() as tx:
        for number in range(4200):
            tx.add_dead_letter(f"evenfleet/v1/d{number}/window", MessageError("encoding", "no"), b"%d" % number, NOW_S)

    kept = store.reader.dead_letters(limit=5000)
    assert 4000 <= len(kept) <= 4050
    assert kept[-1].payload == b"4199"
    assert store.reader.stats().dead_letters == 4200


def test_a_reason_is_given_to_the_part_of_a_loss_that_it_covers(store: Store) -> None:
    def loss(first: int, last: int, reason: str) -> LossRow:
        return LossRow(device=DEVICE, incarnation=LIFE, first_seq=first, last_seq=last, reason=reason)

    with store.writer.transaction() as tx:
        tx.add_loss(loss(1, 9, "unexplained"), NOW_S)
        tx.add_loss(loss(11, 12, "refused-invalid"), NOW_S)
        tx.explain_loss(loss(4, 12, "outbox-full"))
        tx.explain_loss(replace(loss(1, 9, "never-taken"), device="another"))

    assert [(row.first_seq, row.last_seq, row.reason) for row in store.reader.losses(DEVICE)] == [
        (1, 3, "unexplained"),
        (4, 9, "outbox-full"),
        (11, 12, "refused-invalid"),
    ]


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (3, 5, [(1, 2), (3, 5), (6, 9)]),
        (1, 5, [(1, 5), (6, 9)]),
        (5, 9, [(1, 4), (5, 9)]),
        (1, 9, [(1, 9)]),
        (9, 20, [(1, 8), (9, 9)]),
        (10, 20, [(1, 9)]),
    ],
)
def test_explaining_a_loss_in_parts_counts_every_number_once(
    store: Store, first: int, last: int, expected: list[tuple[int, int]]
) -> None:
    with store.writer.transaction() as tx:
        whole = LossRow(device=DEVICE, incarnation=LIFE, first_seq=1, last_seq=9, reason="unexplained")
        tx.add_loss(whole, NOW_S)
        tx.explain_loss(replace(whole, first_seq=first, last_seq=last, reason="outbox-full"))

    assert [(row.first_seq, row.last_seq) for row in store.reader.losses(DEVICE)] == expected


# devices


def test_a_device_that_was_enrolled_is_known_and_was_never_seen(store: Store) -> None:
    with store.writer.transaction() as tx:
        assert tx.put_credential(DEVICE, "hash", NOW_S)
        assert not tx.put_credential(DEVICE, "another", NOW_S)
        assert tx.knows_device(DEVICE)
        assert not tx.knows_device("another")

    row = store.reader.device(DEVICE)
    assert row is not None
    assert (row.status, row.first_seen_s, row.last_seen_s) == ("enrolled", None, None)
    assert store.reader.credential(DEVICE) == "hash"
    assert store.reader.credential("another") is None


def test_a_device_is_seen_first_once_and_last_every_time(store: Store) -> None:
    with store.writer.transaction() as tx:
        tx.put_credential(DEVICE, "hash", NOW_S)
        tx.see_device(DEVICE, NOW_S + 1)
        tx.see_device(DEVICE, NOW_S + 2)

    row = store.reader.device(DEVICE)
    assert row is not None
    assert (row.first_seen_s, row.last_seen_s) == (NOW_S + 1, NOW_S + 2)


def test_the_will_of_an_older_session_is_ignored(store: Store) -> None:
    """The broker notices the death of the old connection after the device has come back on a new one."""
    with store.writer.transaction() as tx:
        tx.put_state(state(session="00000001"), NOW_S)
        tx.put_state(state(session="00000002"), NOW_S)
        tx.put_state(state(session="00000001", status="lost"), NOW_S)
        born = store.writer.device_class(DEVICE)
    assert born == "bench-x86"
    assert _status(store) == "birth"

    with store.writer.transaction() as tx:
        tx.put_state(state(session="00000002", status="lost"), NOW_S)
    assert _status(store) == "lost"


def test_a_birth_makes_what_the_device_was_told_due_again(store: Store) -> None:
    desired = Desired(
        device=DEVICE, revision=3, release=None, artifacts_url="http://127.0.0.1:1/x", window_length_s=300.0
    )
    with store.writer.transaction() as tx:
        tx.put_desired(desired)
        assert tx.desired_due(10) == [desired]
        tx.desired_sent(DEVICE, 2)
        assert tx.desired_due(10) == [desired]
        tx.desired_sent(DEVICE, 3)
        assert tx.desired_due(10) == []
        tx.put_state(state(session=SESSION), NOW_S)
        assert tx.desired_due(10) == [desired]
        assert tx.desired(DEVICE) == desired


def test_a_device_is_steered_once_it_has_told_its_class(store: Store) -> None:
    with store.writer.transaction() as tx:
        tx.see_device("never-born", NOW_S)
        tx.put_state(state(device="a", formats=("tflite", "saved_model"), desired_revision=9), NOW_S)
        tx.put_state(state(device="b", formats=()), NOW_S)

        steerable = tx.steerable()
        assert tx.class_devices("bench-x86") == 2

    assert [(one.device, one.formats, one.desired_revision) for one in steerable] == [
        ("a", ("tflite", "saved_model"), 9),
        ("b", (), 0),
    ]


def _status(store: Store) -> str:
    row = store.reader.device(DEVICE)
    assert row is not None
    return row.status


# what was made of it


def test_every_change_of_a_cell_has_a_version_above_all_before_it(store: Store) -> None:
    rows = [cell_row(device, "float32", RELEASE) for device in ("a", "b", "a", "c", "a")]
    versions = []
    for row in rows:
        with store.writer.transaction() as tx:
            tx.put_row(row)
        versions.append(store.reader.last_version())

    assert versions == sorted(set(versions))
    assert [row.device for row in store.reader.cells(after_version=versions[2])] == ["a", "c"]
    assert not store.reader.cells(after_version=versions[-1])


def test_a_cells_state_survives_a_row_that_is_only_shown(store: Store) -> None:
    cell = Cell(device=DEVICE, key=KEY, windows=12, burn_in=4)
    with store.writer.transaction() as tx:
        tx.put_cell(cell, cell_row(DEVICE, "float32", RELEASE))
        tx.put_row(cell_row(DEVICE, "float32", RELEASE, verdict="silent"))
        tx.put_row(cell_row("shown-only", "float32", RELEASE))

        assert tx.cell(DEVICE, RELEASE, "float32") == cell
        assert tx.cell("shown-only", RELEASE, "float32") is None
        assert tx.class_cells(KEY) == [cell]
        assert tx.cell_count() == 1
        assert tx.has_row("shown-only", RELEASE, "float32")
        assert not tx.has_row("shown-only", RELEASE, "int8")

    (row, _) = store.reader.cells()
    assert row.verdict == "silent"


def test_quiet_cells_are_those_not_heard_of_since(store: Store) -> None:
    with store.writer.transaction() as tx:
        tx.see_device(DEVICE, NOW_S + 100)
        cell = Cell(device=DEVICE, key=KEY)
        tx.put_cell(cell, cell_row(DEVICE, "float32", RELEASE))
        tx.put_row(cell_row(DEVICE, "int8", RELEASE))
        tx.put_row(cell_row("never-seen", "int8", RELEASE))
        tx.hear_cell(DEVICE, RELEASE, "int8", NOW_S + 50)
        looked_s = NOW_S + 50 + POLICY.silent_after_s

        never, heard = tx.quiet(POLICY, looked_s, 0.0, 10)
        assert (heard.row.variant, heard.cell, heard.device_heard_s) == ("float32", cell, NOW_S + 100)
        assert (never.row.device, never.cell, never.device_heard_s) == ("never-seen", None, None)
        assert len(tx.quiet(POLICY, looked_s, 0.0, 1)) == 1
        assert not tx.quiet(POLICY, looked_s - 50, 0.0, 10)
        assert not tx.quiet(POLICY, looked_s, NOW_S + 50, 10)


@pytest.mark.parametrize("length_s", [0.0, 60.0, 300.0, 300.5, 3600.0, 86_400.0, 1e12])
def test_a_cell_is_quiet_after_as_long_as_the_policy_says_for_its_last_window(store: Store, length_s: float) -> None:
    after_s = POLICY.silent_after(length_s)
    with store.writer.transaction() as tx:
        tx.put_row(cell_row(DEVICE, "float32", RELEASE))
        tx.hear_cell(DEVICE, RELEASE, "float32", NOW_S, length_s)
        tx.hear_cell(DEVICE, RELEASE, "float32", NOW_S)

        assert not tx.quiet(POLICY, NOW_S + after_s, 0.0, 10)
        (one,) = tx.quiet(POLICY, NOW_S + after_s + 1, 0.0, 10)
        assert one.length_s == length_s


@pytest.mark.parametrize("status", ["gone", "lost", "sleeping"])
def test_only_a_device_whose_own_session_said_so_has_slept(store: Store, status: str) -> None:
    def quiet_after(more_s: float) -> list[tuple[str, bool]]:
        looked_s = NOW_S + POLICY.silent_after_s + more_s
        return [(one.row.device, one.slept) for one in tx.quiet(POLICY, looked_s, 0.0, 10)]

    with store.writer.transaction() as tx:
        for device, session in ((DEVICE, "00000001"), ("older-session", "00000002")):
            tx.put_row(cell_row(device, "float32", RELEASE))
            tx.put_state(state(device=device, session="00000001"), NOW_S)
            tx.put_state(state(device=device, session=session, status=status), NOW_S + 1)
        asleep = status == "sleeping"
        assert quiet_after(1) == [("older-session", False)] + [(DEVICE, False)] * (not asleep)
        assert quiet_after(SLEEP_S + 1)[-1] == (DEVICE, asleep)

    assert store.reader.asleep(NOW_S) == ({DEVICE} if asleep else frozenset())
    assert store.reader.asleep(NOW_S + 2) == frozenset()


def test_a_cell_that_was_set_aside_is_looked_at_again_when_heard_of_or_told_something(store: Store) -> None:
    def quiet() -> list[str]:
        return sorted(one.row.device for one in tx.quiet(POLICY, NOW_S + POLICY.silent_after_s + 1, 0.0, 10))

    with store.writer.transaction() as tx:
        for device in ("heard", "told", "left"):
            tx.put_row(cell_row(device, "float32", RELEASE))
            tx.set_aside(device, RELEASE, "float32")
        assert quiet() == []

        tx.hear_cell("heard", RELEASE, "float32", NOW_S)
        tx.put_desired(
            Desired(device="told", revision=1, release=None, artifacts_url="http://127.0.0.1", window_length_s=300.0)
        )
        assert quiet() == ["heard", "told"]


def test_a_part_that_fails_is_undone_and_what_was_before_stays(store: Store) -> None:
    def fail() -> None:
        with tx.part():
            tx.see_device("in-the-part", NOW_S)
            raise ZeroDivisionError

    with store.writer.transaction() as tx:
        tx.see_device("before", NOW_S)
        with pytest.raises(ZeroDivisionError):
            fail()
        with tx.part():
            tx.see_device("in-a-good-part", NOW_S)

    assert [row.device for row in store.reader.devices()] == ["before", "in-a-good-part"]


def test_flags_open_and_close(store: Store) -> None:
    with store.writer.transaction() as tx:
        tx.open_flag(flag_row(0, DEVICE, "float32", RELEASE, metric="latency"))
        tx.open_flag(flag_row(0, DEVICE, "float32", RELEASE, metric="accuracy"))
        tx.clear_flag(DEVICE, RELEASE, "float32", "latency", NOW_S + 5)

    (still,) = store.reader.flags()
    assert still.metric == "accuracy"
    both = store.reader.flags(only_open=False)
    assert [row.cleared_s for row in both] == [NOW_S + 5, None]
    assert store.reader.flag(both[0].id) == both[0]
    assert store.reader.flag(1000) is None

    with store.writer.transaction() as tx:
        tx.open_flag(flag_row(0, DEVICE, "float32", RELEASE, metric="latency"))
        tx.clear_flag(DEVICE, RELEASE, "float32", "latency", NOW_S + 9)
    assert [row.cleared_s for row in store.reader.flags(only_open=False)] == [NOW_S + 5, None, NOW_S + 9]


def test_baselines_and_their_limits_come_back(store: Store) -> None:
    baseline = ClassBaseline(
        revision=1, run=uplink.RUN, latency=MetricBaseline(value=1.0, limit=1.1), memory=None, devices=2
    )
    with store.writer.transaction() as tx:
        assert tx.class_baseline(KEY) is None
        tx.put_class_baseline(KEY, baseline)
        frozen = replace(baseline, frozen=True)
        tx.put_class_baseline(KEY, frozen)

        assert tx.class_baseline(KEY) == frozen
        assert tx.limits(RELEASE, "bench-x86") == {"float32": (Limit(limit_ms=1.1, revision=1),)}
        assert tx.limits(RELEASE, "another") == {}


def test_the_newest_policy_is_in_force(store: Store) -> None:
    with store.writer.transaction() as tx:
        tx.put_policy(Policy(revision=2), NOW_S)
        tx.put_policy(Policy(revision=3, min_windows=5), NOW_S)

        assert tx.policy() == Policy(revision=3, min_windows=5)
    assert store.reader.policy() == Policy(revision=3, min_windows=5)


def test_a_release_is_found_by_the_start_of_its_digest_where_only_one_begins_so(store: Store) -> None:
    manifest, _ = small_manifest()
    payload = manifests.encode(manifest)
    with store.writer.transaction() as tx:
        tx.put_release("ab" + "0" * 62, payload, manifest.model, NOW_S)
        tx.put_release("ac" + "0" * 62, payload, manifest.model, NOW_S + 1)
        tx.put_release("ac" + "0" * 62, b"never", "again", NOW_S + 2)

        assert tx.manifest("ab" + "0" * 62) == manifest
        assert tx.manifest("a") is None

    assert [row.release[:2] for row in store.reader.releases()] == ["ac", "ab"]
    found = store.reader.release("ab")
    assert found is not None
    assert found.manifest == manifest
    assert store.reader.release("a") is None
    assert store.reader.release("%") is None


def test_signatures_of_a_release_are_kept_by_key_and_the_newest_of_each(store: Store) -> None:
    manifest, _ = small_manifest()
    keys = sorted((PrivateKey(bytes([number]) * 32) for number in range(3)), key=lambda key: key.public.id)
    made = [key.sign(RELEASE) for key in keys]
    spoiled = replace(made[0], signature=made[1].signature)
    with store.writer.transaction() as tx:
        tx.put_release(RELEASE, manifests.encode(manifest), manifest.model, NOW_S)
        tx.put_release("e" * 64, manifests.encode(manifest), manifest.model, NOW_S - 1)
        for signature in (made[2], spoiled, made[1], made[0]):
            tx.put_signature(signature, NOW_S)
        tx.put_signature(keys[0].sign("e" * 64), NOW_S)
        assert list(tx.signed_by(RELEASE)) == [key.public.id for key in keys]

    found = store.reader.release(RELEASE)
    assert found is not None
    assert list(found.signatures) == made
    assert [len(row.signatures) for row in store.reader.releases()] == [3, 1]


def test_a_tag_stands_for_one_release_at_a_time_and_every_move_is_written_down(store: Store) -> None:
    manifest, _ = small_manifest()
    first, second = "ab" + "0" * 62, "ac" + "0" * 62
    with store.writer.transaction() as tx:
        for release in (first, second):
            tx.put_release(release, manifests.encode(manifest), manifest.model, NOW_S)
        assert tx.tag("prod") is None
        tx.put_tag("prod", first, NOW_S)
        tx.put_tag("prod", first, NOW_S + 1)
        tx.put_tag("canary", first, NOW_S + 2)
        tx.put_tag("prod", second, NOW_S + 3)
        assert tx.tag("prod") == TagRow(tag="prod", release=second, tagged_s=NOW_S + 3)

    assert [(row.tag, row.release) for row in store.reader.tags()] == [("canary", first), ("prod", second)]
    assert store.reader.tag("prod") == TagRow(tag="prod", release=second, tagged_s=NOW_S + 3)
    assert {row.release: row.tags for row in store.reader.releases()} == {first: ("canary",), second: ("prod",)}
    found = store.reader.release("prod")
    assert found is not None
    assert (found.release, found.tags) == (second, ("prod",))

    with store.writer.transaction() as tx:
        tx.remove_tag("prod", NOW_S + 4)
        tx.remove_tag("prod", NOW_S + 5)
    assert store.reader.tag("prod") is None
    assert store.reader.release("prod") is None
    moves = [(row.before, row.release, row.moved_s - NOW_S) for row in store.reader.tag_moves("prod")]
    assert moves == [(None, first, 0), (first, second, 3), (second, None, 4)]
    assert len(store.reader.tag_moves("canary")) == 1


def test_releases_of_an_older_database_are_unsigned_and_untagged(tmp_path: Path) -> None:
    manifest, _ = small_manifest()
    db = Database(tmp_path / FILE_NAME)
    migrations.apply(db, stop_before="m005_signatures_and_tags")
    row = {"release": RELEASE, "model": "m", "pushed_s": NOW_S, "manifest": manifests.encode(manifest)}
    db.table("releases").insert(row)
    db.close()

    open_writer(tmp_path).close()

    (found,) = open_reader(tmp_path).releases()
    assert (found.release, found.signatures, found.tags) == (RELEASE, (), ())


def test_an_assignment_replaces_the_one_before(store: Store) -> None:
    with store.writer.transaction() as tx:
        tx.put_assignment("*", RELEASE, NOW_S)
        tx.put_assignment(DEVICE, RELEASE, NOW_S)
        tx.put_assignment(DEVICE, None, NOW_S)
        assert tx.assignments() == {"*": RELEASE, DEVICE: None}

    assert store.reader.assignments() == {"*": RELEASE, DEVICE: None}


def test_a_device_that_is_to_run_nothing_does_not_run_the_release_of_all_others(store: Store) -> None:
    with store.writer.transaction() as tx:
        for device in (DEVICE, "press-02"):
            tx.see_device(device, NOW_S)
            tx.put_row(cell_row(device, "float32", RELEASE))
        tx.put_assignment("*", RELEASE, NOW_S)
        tx.put_assignment(DEVICE, None, NOW_S)

    assert [(row.device, row.release, row.verdict) for row in store.reader.devices()] == [
        (DEVICE, None, None),
        ("press-02", RELEASE, "within"),
    ]


@given(
    st.lists(
        st.tuples(st.sampled_from(["committed", "refused", "lost", "waiting"]), st.integers(1, 4)),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=25)
def test_the_balance_adds_up(tmp_path_factory: pytest.TempPathFactory, stretches: list[tuple[str, int]]) -> None:
    directory = tmp_path_factory.mktemp("balance")
    writer = open_writer(directory)
    counts = dict.fromkeys(("committed", "refused", "lost", "waiting"), 0)
    settled: list[tuple[int, int]] = []
    seq = 1
    with writer.transaction() as tx:
        for what, length in stretches:
            first, last = seq, seq + length - 1
            counts[what] += length
            seq += length
            if what != "waiting":
                settled.append((first, last))
            if what == "refused":
                for one in range(first, last + 1):
                    tx.add_refusal(DEVICE, LIFE, Refusal(seq=one, reason="invalid"))
            if what == "lost":
                tx.add_loss(LossRow(device=DEVICE, incarnation=LIFE, first_seq=first, last_seq=last, reason="x"), NOW_S)
        tx.put_incarnation(
            IncarnationRow(device=DEVICE, incarnation=LIFE, settled=seqs.union(settled), highest=seq - 1)
        )
    writer.close()

    assert open_reader(directory).stats().balance == Balance(
        measured=seq - 1,
        committed=counts["committed"],
        refused=counts["refused"],
        lost=counts["lost"],
        in_flight=counts["waiting"],
    )


def test_absurd_numbers_of_hostile_devices_still_add_up(store: Store) -> None:
    with store.writer.transaction() as tx:
        for counter in range(1, 1100):
            tx.put_incarnation(IncarnationRow(device="x", incarnation=Incarnation(counter, "a" * 8), highest=2**53))

    balance = store.reader.stats().balance
    assert balance.measured == balance.in_flight == 1099 * 2**53


def test_commands_that_wait_are_kept_and_of_the_others_the_newest(store: Store) -> None:
    with store.writer.transaction() as tx:
        for number in range(1, COMMANDS_KEPT + 6):
            tx.add_command(command_row(number, DEVICE, ttl_s=1e6 if number == 1 else 60.0))
        tx.add_command(command_row(1, "press-02"))
        tx.expire_commands(NOW_S + 1e8 + 3600)
    with store.writer.transaction() as tx:
        waiting = tx.commands_waiting(DEVICE)
        tx.add_command(command_row(1000, DEVICE))

    assert waiting == 0
    kept = store.reader.commands(DEVICE, limit=1000)
    assert len(kept) == COMMANDS_KEPT + 1
    assert [row.correlation_id for row in kept[-1:]] == ["c1000"]
    assert len(store.reader.commands("press-02")) == 1


def test_a_command_that_waits_outlives_however_many_that_do_not(store: Store) -> None:
    with store.writer.transaction() as tx:
        tx.add_command(command_row(0, DEVICE, ttl_s=604_800.0, asked_s=NOW_S))
        for number in range(1, COMMANDS_KEPT + 6):
            tx.add_command(command_row(number, DEVICE, asked_s=NOW_S, ttl_s=60.0))
            tx.expire_commands(NOW_S + 61)

    first, *others = store.reader.commands(DEVICE, limit=1000)
    assert (first.correlation_id, first.state) == ("c0", "waiting")
    assert len(others) == COMMANDS_KEPT + 1
    assert store.reader.command(DEVICE, "c1") is None


def test_commands_come_back_as_they_were_kept_and_page_in_order(store: Store) -> None:
    rows = [command_row(number, DEVICE, variant=variant) for number, variant in ((1, None), (2, "int8"), (3, None))]
    with store.writer.transaction() as tx:
        for row in rows:
            tx.add_command(row)
        assert tx.put_reply(reply("c2"), NOW_S + 1)

    assert store.reader.commands(DEVICE, limit=1) == rows[:1]
    answered = replace(rows[1], state="done", replied_s=NOW_S + 1, reply=reply("c2"))
    assert store.reader.commands(DEVICE, after=1) == [answered, rows[2]]
    assert store.reader.command(DEVICE, "c2") == answered
    assert store.reader.command("press-02", "c2") is None


def test_events_page_in_both_directions(store: Store) -> None:
    with store.writer.transaction() as tx:
        for seq in (1, 2, 3):
            tx.add_event(event(seq), NOW_S)
        tx.add_event(event(1, device="press-02"), NOW_S)

    assert [row.id for row in store.reader.events(DEVICE, limit=2)] == [1, 2]
    assert [row.id for row in store.reader.events(DEVICE, after=2)] == [3]
    assert [row.id for row in store.reader.events(DEVICE, limit=2, newest_first=True)] == [3, 2]
    assert [row.id for row in store.reader.events(DEVICE, after=2, newest_first=True)] == [1]


def test_windows_and_cells_of_an_older_database_have_no_length(tmp_path: Path) -> None:
    database = Database(tmp_path / FILE_NAME)
    migrations.apply(database, stop_before="m007_lengths_of_windows")
    database.close()
    writer = open_writer(tmp_path)
    with writer.transaction() as tx:
        tx.put_row(cell_row(DEVICE, "float32", RELEASE))
        (one,) = tx.quiet(POLICY, NOW_S + POLICY.silent_after_s + 1, 0.0, 10)
    writer.close()

    assert one.length_s is None
