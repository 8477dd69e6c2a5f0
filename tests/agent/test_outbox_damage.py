"""A cell that the disk has damaged, in any table: it costs its message, or what it said, and stops nothing."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evenfleet_agent.lives import COUNTER_NAME, CounterFile
from evenfleet_agent.outbox import FILE_NAME, Outbox, OutboxDamagedError, look, open_outbox
from evenfleet_shared import messages, topics
from evenfleet_shared.errors import StoreError
from evenfleet_shared.messages import Incarnation, IncarnationReceipt, Loss, Receipt, Refusal
from fakes import uplink

HOUR_S = 3600.0


def opened(directory: Path, *, boot: str = "boot-1", max_bytes: int = 1 << 20, **more: Any) -> Outbox:
    numbers = count(1)
    outbox = open_outbox(
        directory,
        boot=boot,
        new_random=lambda: f"{next(numbers):08x}",
        max_bytes=max_bytes,
        jitter=lambda: 1.0,
        backfill_per_s=1000.0,
        **more,
    )
    outbox._db.execute("PRAGMA synchronous=OFF")  # no power fails here
    return outbox


def measure(outbox: Outbox, windows: int) -> None:
    for _ in range(windows):
        outbox.append("window", lambda life, seq, floor: uplink.window(seq, incarnation=life, floor=floor))


def happen(outbox: Outbox, events: int) -> None:
    for _ in range(events):
        outbox.append("event", lambda life, seq, floor: uplink.event(seq, incarnation=life, floor=floor))


def damage(directory: Path, sql: str) -> None:
    with closing(sqlite3.connect(directory / FILE_NAME, isolation_level=None)) as db:
        db.execute(sql)


def send(outbox: Outbox, now_s: float = 0.0) -> list[tuple[str, int]]:
    """Send what is due as the link does, and return its topics and numbers."""
    entries = outbox.due(now_s, 1000)
    for entry in entries:
        topics.build(uplink.DEVICE, entry.kind)
        outbox.sent(entry.key, now_s)
    return [(entry.kind, entry.key[2]) for entry in entries]


def losses(outbox: Outbox) -> list[tuple[int, int, str]]:
    return [(loss.first_seq, loss.last_seq, loss.reason) for loss in outbox.ledger()]


def settle_all(outbox: Outbox) -> None:
    part = IncarnationReceipt(incarnation=outbox.incarnation, contiguous=outbox.last_seq)
    outbox.settle(
        Receipt(device=uplink.DEVICE, last_counter=outbox.incarnation.counter, incarnations=(part,)), now_s=0.0
    )


# one cell

CELLS = [
    "payload = CAST(payload AS TEXT)",
    "payload = NULL",
    "payload = 7",
    "payload = zeroblob(length(payload))",
    "kind = 'widow'",
    "kind = 'state'",
    "kind = CAST(x'77ff' AS TEXT)",
    "kind = NULL",
    "kind = x'00'",
    "seq = 33",
]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("restarted", [False, True])
def test_a_message_with_a_damaged_cell_is_given_up_and_the_others_go_out(
    tmp_path: Path, cell: str, restarted: bool
) -> None:
    outbox = opened(tmp_path)
    happen(outbox, 3)
    measure(outbox, 3)
    damage(tmp_path, f"UPDATE messages SET {cell} WHERE seq = 2")
    if restarted:
        outbox.close()
        outbox = opened(tmp_path)
    outbox.reconnected()

    found = send(outbox)

    assert found == [("event", 1), ("event", 3), ("backfill", 4), ("backfill", 5), ("backfill", 6)]
    assert [reason for _, _, reason in losses(outbox)] == ["damaged"]
    assert len(outbox) == 5


@pytest.mark.parametrize(
    "cell", ["counter = 'x'", "counter = NULL", "seq = x'01'", "seq = -1", "seq = 1.5", "random = 9", "random = 'no'"]
)
def test_a_message_whose_number_cannot_be_read_is_given_up_and_counted(tmp_path: Path, cell: str) -> None:
    outbox = opened(tmp_path)
    happen(outbox, 3)
    damage(tmp_path, f"UPDATE messages SET {cell} WHERE seq = 2")

    outbox.tend(0.0)

    assert send(outbox) == [("event", 1), ("event", 3)]
    assert look(tmp_path).given_up == {"damaged": 1}
    (said,) = outbox.damages()
    outbox.damages_told([said])
    assert outbox.damages() == []


def test_a_number_that_breaks_after_the_last_look_is_given_up_when_it_is_due(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    happen(outbox, 3)
    outbox.tend(0.0)
    damage(tmp_path, "UPDATE messages SET seq = 'two' WHERE seq = 2")

    assert send(outbox) == [("event", 1), ("event", 3)]
    assert look(tmp_path).given_up == {"damaged": 1}


def test_a_window_that_no_longer_says_what_the_others_do_is_in_no_summary(tmp_path: Path) -> None:
    outbox = opened(tmp_path, max_bytes=40_000)
    measure(outbox, 10)
    (payload,) = outbox._db.execute("SELECT payload FROM messages WHERE seq = 3").fetchone()
    context = messages.decode("window", payload).context
    flipped = ("0" if context[0] != "0" else "1") + context[1:]
    outbox._db.execute(
        "UPDATE messages SET payload = ? WHERE seq = 3", (payload.replace(context.encode(), flipped.encode()),)
    )

    measure(outbox, 60)

    assert (3, 3, "damaged") in losses(outbox)
    assert look(tmp_path).given_up["summarised"] > 12


def test_parts_of_which_nobody_knows_which_is_damaged_go_as_they_are(tmp_path: Path) -> None:
    outbox = opened(tmp_path, max_bytes=1 << 20)
    measure(outbox, 2)
    (payload,) = outbox._db.execute("SELECT payload FROM messages WHERE seq = 2").fetchone()
    context = messages.decode("window", payload).context.encode()
    outbox._db.execute("UPDATE messages SET payload = ? WHERE seq = 2", (payload.replace(context, context[::-1]),))
    outbox._max_bytes = outbox.size_bytes

    happen(outbox, 1)

    assert losses(outbox) == [(1, 1, "outbox-full")]


@pytest.mark.parametrize(
    "cell", ["late = 7", "late = NULL", "late = 'x'", "level = 'x'", "alike = CAST(x'ff' AS TEXT)", "age_s = 'old'"]
)
def test_what_only_the_outbox_reads_of_a_message_is_set_right_and_costs_nothing(tmp_path: Path, cell: str) -> None:
    outbox = opened(tmp_path, max_bytes=200_000)
    measure(outbox, 3)
    outbox.close()
    damage(tmp_path, f"UPDATE messages SET {cell} WHERE seq = 2")
    outbox = opened(tmp_path, max_bytes=200_000)
    outbox.tend(0.0)
    outbox.reconnected()

    assert send(outbox) == [("backfill", 1), ("backfill", 2), ("backfill", 3)]
    assert losses(outbox) == []


@pytest.mark.parametrize(
    "cell",
    ["next_seq = 'x'", "next_seq = 2", "next_seq = NULL", "counter = x'ff'", "random = 'x'", f"next_seq = {2**60}"],
)
@pytest.mark.parametrize("restarted", [False, True])
def test_a_life_that_is_damaged_is_not_gone_on_with(tmp_path: Path, cell: str, restarted: bool) -> None:
    """A number is never used twice: what the next one is, nobody knows."""
    outbox = opened(tmp_path)
    happen(outbox, 3)
    damage(tmp_path, f"UPDATE life SET {cell}")
    if restarted:
        outbox.close()
        outbox = opened(tmp_path)
    assert outbox.last_seq in (0, 3)

    happen(outbox, 1)

    assert (outbox.incarnation.counter, outbox.last_seq) == (2, 1)
    assert [seq for _, seq in send(outbox)] == [1, 2, 3, 1]
    assert len(outbox.damages()) == 1


def test_a_mark_that_is_damaged_may_have_been_anywhere(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    measure(outbox, 20)
    outbox.reconnected()
    outbox.due(0.0, 1)
    outbox.close()
    damage(tmp_path, "UPDATE marks SET seq = 'x'")
    outbox = opened(tmp_path, max_bytes=1 << 20)
    outbox._max_bytes = outbox.size_bytes // 2

    happen(outbox, 1)

    assert set(look(tmp_path).given_up) == {"outbox-full"}


@pytest.mark.parametrize("cell", ["first = 'x'", "last = NULL", "counter = 'x'", "reason = CAST(x'ff' AS TEXT)"])
def test_an_entry_of_the_ledger_that_is_damaged_is_not_told_for_ever(tmp_path: Path, cell: str) -> None:
    outbox = opened(tmp_path, max_bytes=10)
    happen(outbox, 3)
    outbox._max_bytes = 1 << 20
    damage(tmp_path, f"UPDATE ledger SET {cell}")

    assert outbox.losses_due(0.0) == []
    outbox.told([Loss(incarnation=outbox.incarnation, first_seq=1, last_seq=2, reason="outbox-full")])
    assert look(tmp_path).given_up == {}
    outbox.close()
    outbox = opened(tmp_path)
    outbox.tend(0.0)
    assert len(outbox.damages()) == 1
    assert outbox._db.execute("SELECT count(*) FROM ledger").fetchone() == (0,)


@pytest.mark.parametrize("detail", ["NULL", "x'ff'", "CAST(x'61ff62' AS TEXT)"])
def test_a_line_that_is_damaged_is_told_once(tmp_path: Path, detail: str) -> None:
    outbox = opened(tmp_path)
    damage(tmp_path, f"INSERT INTO damages (detail) VALUES ({detail})")

    told = outbox.damages()
    assert [type(line) for line in told] == [str]
    outbox.damages_told(told)
    assert outbox.damages() == []


# a file that breaks while it is marked


class Breaking(sqlite3.Connection):
    """Finds the file damaged at the first mark."""

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql.startswith("INSERT OR REPLACE INTO marks"):
            raise sqlite3.DatabaseError("database disk image is malformed")
        return super().execute(sql, *values)


def test_damage_found_while_marking_is_told_although_there_are_live_messages(tmp_path: Path) -> None:
    file = tmp_path / FILE_NAME

    def set_aside() -> Path:
        return file.replace(tmp_path / "aside")

    outbox = Outbox(
        lambda: sqlite3.connect(file, isolation_level=None, factory=Breaking),
        CounterFile(tmp_path / COUNTER_NAME),
        boot="boot-1",
        new_random=lambda: "aaaaaaaa",
        max_bytes=1 << 20,
        jitter=lambda: 1.0,
        set_aside=set_aside,
    )
    measure(outbox, 2)
    happen(outbox, 2)
    outbox.reconnected()

    with pytest.raises(OutboxDamagedError):
        outbox.due(0.0, 10)

    assert outbox.incarnation.counter == 2
    happen(outbox, 1)


# a file that somebody holds


def test_a_file_that_somebody_holds_stops_the_loop_only_shortly_and_is_tried_again(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    happen(outbox, 1)
    with closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        begun_s = time.monotonic()
        with pytest.raises(StoreError, match="locked"):
            happen(outbox, 1)
        took_s = time.monotonic() - begun_s
        holder.execute("ROLLBACK")

    assert took_s < 2.0
    happen(outbox, 1)
    assert send(outbox) == [("event", 1), ("event", 2)]


# what a receipt costs


def test_a_receipt_takes_no_longer_with_much_that_is_held(tmp_path: Path) -> None:
    steps = []
    for held in (100, 2000):
        outbox = opened(tmp_path / str(held))
        happen(outbox, held)
        done = count(1)
        outbox._db.set_progress_handler(lambda done=done: next(done) * 0, 10)
        part = IncarnationReceipt(incarnation=outbox.incarnation, contiguous=20, gaps=((25, 30),))
        outbox.settle(Receipt(device=uplink.DEVICE, last_counter=1, incarnations=(part,)), 0.0)
        steps.append(next(done))
        outbox._db.set_progress_handler(None, 0)
        assert outbox.size_bytes == size_on_disk(outbox)
        outbox.close()

    assert steps[1] < 1.5 * steps[0]


def test_a_message_takes_no_longer_to_keep_with_much_that_is_held(tmp_path: Path) -> None:
    steps = []
    for held in (100, 2000):
        outbox = opened(tmp_path / str(held))
        happen(outbox, held)
        done = count(1)
        outbox._db.set_progress_handler(lambda done=done: next(done) * 0, 10)
        happen(outbox, 10)
        steps.append(next(done))
        outbox._db.set_progress_handler(None, 0)
        outbox.close()

    assert steps[1] < 1.5 * steps[0]


def size_on_disk(outbox: Outbox) -> int:
    return int(outbox._db.execute("SELECT coalesce(sum(length(payload)), 0) FROM messages").fetchone()[0])


# any cell of any table

TABLES = {
    "messages": ("rowid", "counter", "random", "seq", "kind", "late", "level", "alike", "age_s", "payload"),
    "life": ("counter", "random", "next_seq", "boot", "stretch", "settled", "before_s", "age_s"),
    "marks": ("counter", "random", "seq"),
    "ledger": ("counter", "random", "first", "last", "reason", "told", "noted_uptime_s", "noted_wall_s"),
    "told_losses": ("reason", "messages"),
    "damages": ("id", "detail"),
}
VALUES = (
    st.none()
    | st.sampled_from([-1, 0, 1, 2, 3, 40, 2**31, 2**53, 2**62, -(2**63), 2**63 - 1])
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=12)
    | st.sampled_from(["window", "event", "backfill", "state", "aaaaaaaa", "00000001", "1:00", "outbox-full"])
    | st.binary(max_size=12)
)


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, tuple[Any, ...]]:
    """Return a statement that damages a cell, and its values."""
    table = draw(st.sampled_from(list(TABLES)))
    column = draw(st.sampled_from(TABLES[table]))
    row = draw(st.integers(0, 30))
    where = f"WHERE rowid = (SELECT rowid FROM {table} LIMIT 1 OFFSET ? % max(1, (SELECT count(*) FROM {table})))"
    how = draw(st.sampled_from(["value", "text", "blob", "flip"]))
    if how == "value":
        return f"UPDATE {table} SET {column} = ? {where}", (draw(VALUES), row)
    if how == "text":
        return f"UPDATE {table} SET {column} = CAST(? AS TEXT) {where}", (draw(st.binary(min_size=1, max_size=9)), row)
    if how == "blob":
        return f"UPDATE {table} SET {column} = CAST({column} AS BLOB) {where}", (row,)
    sql = f"UPDATE {table} SET {column} = flipped({column}, ?, ?) {where}"
    return sql, (draw(st.integers(0, 3000)), draw(st.integers(0, 7)), row)


def flipped(cell: Any, at: int, bit: int) -> Any:
    if isinstance(cell, int):
        changed = cell ^ (1 << (at % 63))
        return changed if -(2**63) <= changed < 2**63 else 0
    if not isinstance(cell, str | bytes) or not cell:
        return cell
    raw = bytearray(cell.encode() if isinstance(cell, str) else cell)
    raw[at % len(raw)] ^= 1 << bit
    if isinstance(cell, bytes):
        return bytes(raw)
    return raw.decode("utf-8", "replace")


def asks(outbox: Outbox, now_s: float) -> dict[str, Callable[[], object]]:
    life = outbox.incarnation

    def receipt(**part: Any) -> Receipt:
        of = IncarnationReceipt(incarnation=life, **part)
        return Receipt(device=uplink.DEVICE, last_counter=life.counter, incarnations=(of,))

    return {
        "append": lambda: happen(outbox, 1),
        "measure": lambda: measure(outbox, 1),
        "due": lambda: send(outbox, now_s),
        "settle": lambda: outbox.settle(
            receipt(contiguous=2, gaps=((5, 6),), refused=(Refusal(seq=4, reason="invalid"),)), now_s
        ),
        "tend": lambda: outbox.tend(now_s),
        "losses_due": lambda: outbox.losses_due(now_s),
        "ledger": lambda: messages.encode(uplink.event(1, losses=tuple(outbox.ledger()))),
        "told": lambda: outbox.told(outbox.ledger()),
        "damages": outbox.damages,
        "damages_told": lambda: outbox.damages_told(outbox.damages()),
        "floor": outbox.floor,
        "last_seq": lambda: outbox.last_seq,
        "size_bytes": lambda: outbox.size_bytes,
        "len": lambda: len(outbox),
        "next_due_s": lambda: outbox.next_due_s(now_s),
        "reconnected": outbox.reconnected,
        "disconnected": outbox.disconnected,
    }


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An outbox with something in every table: windows, summaries, older lives, losses told and not told, a mark."""
    directory = tmp_path_factory.mktemp("used")
    outbox = opened(directory, boot="boot-0")
    happen(outbox, 2)
    outbox.close()
    outbox = opened(directory, max_bytes=30_000)
    outbox.append("context", lambda life, seq, floor: uplink.context(seq, incarnation=life, floor=floor))
    measure(outbox, 30)
    outbox.told(outbox.ledger())
    measure(outbox, 10)
    outbox.reconnected()
    outbox.due(0.0, 2)
    happen(outbox, 3)
    outbox._db.execute("INSERT INTO damages (detail) VALUES ('something')")
    outbox._db.execute("INSERT INTO told_losses VALUES ('outbox-full', 4)")
    outbox.disconnected()
    measure(outbox, 8)
    outbox.close()
    return directory


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    hurt=st.lists(damages(), min_size=1, max_size=4),
    when=st.sampled_from(["running", "restarted", "booted"]),
    full=st.booleans(),
    order=st.lists(st.integers(0, 16), min_size=1, max_size=12),
)
def test_whatever_cell_is_damaged_nothing_but_a_store_error_comes_and_the_outbox_works_again(
    used: Path, hurt: list[tuple[str, tuple[Any, ...]]], when: str, full: bool, order: list[int]
) -> None:
    with tempfile.TemporaryDirectory(prefix="evenfleet-damage-") as folder:
        directory = Path(folder) / "state"
        shutil.copytree(used, directory)
        up_s = [1000.0]
        max_bytes = 20_000 if full else 1 << 20
        outbox = opened(directory, max_bytes=max_bytes, uptime_s=lambda: up_s[0]) if when == "running" else None
        with closing(sqlite3.connect(directory / FILE_NAME, isolation_level=None)) as db:
            db.create_function("flipped", 3, flipped)
            for sql, values in hurt:
                # What a constraint or a cell that is hurt already does not let happen.
                with suppress(sqlite3.IntegrityError, sqlite3.OperationalError):
                    db.execute(sql, values)
        if outbox is None:
            boot = "boot-2" if when == "booted" else "boot-1"
            outbox = opened(directory, boot=boot, max_bytes=max_bytes, uptime_s=lambda: up_s[0])

        for number in order:
            up_s[0] += 100.0
            ways = asks(outbox, up_s[0])
            with suppress(StoreError):
                list(ways.values())[number]()
            look(directory)

        # An hour later all is in order.
        up_s[0] += 2 * HOUR_S
        outbox.tend(up_s[0])
        outbox.reconnected()
        for name in asks(outbox, up_s[0]):
            up_s[0] += 100.0
            asks(outbox, up_s[0])[name]()
        outbox.tend(up_s[0])
        assert outbox.size_bytes == size_on_disk(outbox)
        outbox.reconnected()
        happen(outbox, 1)
        newest = (*outbox.incarnation, outbox.last_seq)
        up_s[0] += 100.0
        assert newest in {entry.key for entry in outbox.due(up_s[0], 1000)}
        while found := outbox.ledger():
            outbox.told(found)
        assert outbox._db.execute("SELECT count(*) FROM ledger WHERE told IS NOT 1").fetchone() == (0,)
        settle_all(outbox)
        assert newest not in {entry.key for entry in outbox.due(up_s[0], 1000)}
        outbox.close()
        assert look(directory).incarnation == Incarnation(*newest[:2])
