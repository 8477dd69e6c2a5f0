"""What is kept until its receipt, what is given up and said to be, and a death at any statement."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from evenfleet_agent.outbox import (
    COUNTER_NAME,
    FILE_NAME,
    GAP_PATIENCE_S,
    GAP_WAITS_S,
    MAX_COUNTER,
    MAX_GAP_RESENDS,
    MAX_TOLD,
    MAX_UNDER_WAY,
    CounterFile,
    Key,
    Outbox,
    look,
    open_outbox,
)
from evenfleet_shared import messages
from evenfleet_shared.errors import StoreError
from evenfleet_shared.messages import Event, Incarnation, IncarnationReceipt, Receipt, Refusal

DEVICE = "press-01"


def words() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"{next(numbers):08x}"


def opened(directory: Path, *, boot: str = "boot-1", max_bytes: int = 1 << 20, jitter: float = 1.0) -> Outbox:
    outbox = open_outbox(directory, boot=boot, new_random=words(), max_bytes=max_bytes, jitter=lambda: jitter)
    # No power fails here.
    outbox._db.execute("PRAGMA synchronous=OFF")
    return outbox


def make(incarnation: Incarnation, seq: int, floor: int) -> Event:
    return Event(
        device=DEVICE,
        incarnation=incarnation,
        seq=seq,
        floor=floor,
        event="runner-failed",
        happened_uptime_s=1.0,
        happened_wall_s=1.0,
        detail="x" * 100,
    )


def fill(outbox: Outbox, messages_count: int) -> list[int]:
    return [outbox.append("event", make) for _ in range(messages_count)]


def receipt(outbox: Outbox, contiguous: int, *, last_counter: int | None = None, **part: Any) -> Receipt:
    return Receipt(
        device=DEVICE,
        last_counter=outbox.incarnation.counter if last_counter is None else last_counter,
        incarnations=(IncarnationReceipt(incarnation=outbox.incarnation, contiguous=contiguous, **part),),
    )


def due(outbox: Outbox, now_s: float, limit: int = 10_000) -> list[int]:
    return [entry.key[2] for entry in outbox.due(now_s, limit)]


def send(outbox: Outbox, now_s: float) -> list[int]:
    """Send what is due and return its numbers."""
    entries = outbox.due(now_s, 10_000)
    for entry in entries:
        outbox.sent(entry.key, now_s)
    return [entry.key[2] for entry in entries]


def losses(outbox: Outbox) -> list[tuple[int, int, str]]:
    return [(loss.first_seq, loss.last_seq, loss.reason) for loss in outbox.ledger()]


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    outbox = opened(tmp_path)
    yield outbox
    outbox.close()


# numbers


def test_numbers_count_from_one_and_go_on_after_a_restart(tmp_path: Path) -> None:
    first = opened(tmp_path)
    assert fill(first, 3) == [1, 2, 3]
    first.close()

    second = opened(tmp_path)
    assert fill(second, 2) == [4, 5]
    assert second.incarnation == first.incarnation
    assert len(second) == 5


def test_a_number_is_not_given_out_again_when_its_message_has_gone(tmp_path: Path) -> None:
    first = opened(tmp_path)
    fill(first, 3)
    first.settle(receipt(first, 3), 0.0)
    first.close()

    second = opened(tmp_path)
    assert (len(second), second.last_seq, second.floor()) == (0, 3, 4)
    assert fill(second, 1) == [4]


def test_a_boot_begins_a_life_with_a_higher_counter_and_keeps_the_older_ones_messages(tmp_path: Path) -> None:
    first = opened(tmp_path)
    fill(first, 2)
    first.close()

    second = opened(tmp_path, boot="boot-2")
    assert second.incarnation.counter == first.incarnation.counter + 1
    assert fill(second, 1) == [1]
    assert [(entry.key[0], entry.key[2]) for entry in second.due(0.0, 10)] == [(1, 1), (1, 2), (2, 1)]


def test_a_lost_outbox_begins_a_life_above_the_counter_in_its_own_file(tmp_path: Path) -> None:
    opened(tmp_path).close()
    opened(tmp_path, boot="boot-2").close()
    for file in tmp_path.glob(f"{FILE_NAME}*"):
        file.unlink()

    assert opened(tmp_path, boot="boot-2").incarnation.counter == 3


@pytest.mark.parametrize("left", [b"", b"not a number", b"\xff\xfe", b"-4", b"9" * 30, str(MAX_COUNTER).encode()])
def test_a_damaged_counter_file_is_one_that_is_not_there(tmp_path: Path, left: bytes) -> None:
    opened(tmp_path).close()
    opened(tmp_path, boot="boot-2").close()
    (tmp_path / COUNTER_NAME).write_bytes(left)

    assert opened(tmp_path, boot="boot-3").incarnation.counter == 3


def test_a_counter_that_the_collector_knows_better_begins_a_life_above_it(outbox: Outbox) -> None:
    """Outbox and counter file were lost; the collector has lives of ours that we know nothing of."""
    fill(outbox, 2)
    older = outbox.incarnation

    assert outbox.settle(receipt(outbox, 1, last_counter=7), 0.0)

    assert outbox.incarnation.counter == 8
    assert fill(outbox, 1) == [1]
    assert [(entry.key[0], entry.key[2]) for entry in outbox.due(0.0, 10)] == [(older.counter, 2), (8, 1)]
    assert not outbox.settle(receipt(outbox, 0), 0.0)


def test_the_same_counter_with_another_word_is_another_life(outbox: Outbox) -> None:
    twin = IncarnationReceipt(incarnation=Incarnation(outbox.incarnation.counter, "ffffffff"), contiguous=4)

    assert outbox.settle(Receipt(device=DEVICE, last_counter=1, incarnations=(twin,)), 0.0)
    assert outbox.incarnation.counter == 2


def test_a_life_begun_survives_a_restart(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.settle(receipt(first, 0, last_counter=7), 0.0)
    fill(first, 1)
    first.close()

    assert opened(tmp_path).incarnation == first.incarnation
    assert CounterFile(tmp_path / COUNTER_NAME).read() == 8


# receipts


def test_what_is_receipted_goes_and_the_rest_stays(outbox: Outbox) -> None:
    fill(outbox, 6)
    outbox.settle(receipt(outbox, 2, gaps=((3, 3), (5, 5))), 0.0)

    assert due(outbox, 0.0) == [3, 5, 6]
    assert losses(outbox) == []


def test_the_floor_is_the_lowest_held_and_goes_out_with_every_message(outbox: Outbox) -> None:
    fill(outbox, 4)
    outbox.settle(receipt(outbox, 2), 0.0)

    assert outbox.floor() == 3
    floors = [messages.decode("event", entry.payload).floor for entry in outbox.due(0.0, 10)]
    assert floors == [3, 3]


def test_each_life_has_its_own_floor(tmp_path: Path) -> None:
    first = opened(tmp_path)
    fill(first, 3)
    first.settle(receipt(first, 2), 0.0)
    older = first.incarnation
    first.close()
    second = opened(tmp_path, boot="boot-2")
    fill(second, 1)

    assert (second.floor(older), second.floor()) == (3, 1)
    assert [messages.decode("event", entry.payload).floor for entry in second.due(0.0, 10)] == [3, 1]


def test_what_is_refused_goes_and_the_ledger_keeps_why(tmp_path: Path, outbox: Outbox) -> None:
    fill(outbox, 4)
    refused = (Refusal(seq=2, reason="invalid"), Refusal(seq=9, reason="invalid"))
    outbox.settle(receipt(outbox, 1, refused=refused), 0.0)

    assert due(outbox, 0.0) == [3, 4]
    # The collector knows; it is not told what it said.
    assert losses(outbox) == []
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        assert db.execute("SELECT first, last, reason FROM ledger").fetchall() == [(2, 2, "refused-invalid")]


@pytest.mark.parametrize(
    "hostile",
    [
        {"contiguous": 2**53},
        {"contiguous": 0, "gaps": ((1, 2**53),)},
        {"contiguous": 2, "gaps": ((1, 4), (3, 3), (2, 9), (1, 1))},
        {"contiguous": 2, "gaps": ((9, 3),)},
        {"contiguous": 0, "refused": (Refusal(seq=2**53, reason="invalid"),) * 3},
        {"contiguous": 1, "refused": (Refusal(seq=1, reason="invalid"), Refusal(seq=3, reason="x" * 64))},
    ],
)
def test_a_hostile_receipt_stops_nothing(outbox: Outbox, hostile: dict[str, Any]) -> None:
    fill(outbox, 5)
    send(outbox, 0.0)
    for now_s in (10.0, 20.0):
        outbox.settle(receipt(outbox, **hostile), now_s)

    assert fill(outbox, 1) == [6]
    assert 6 in due(outbox, 30.0)


def test_a_receipt_of_lives_that_are_not_ours_takes_nothing(outbox: Outbox) -> None:
    fill(outbox, 3)
    other = IncarnationReceipt(incarnation=Incarnation(outbox.incarnation.counter, "ffffffff"), contiguous=3)
    outbox.settle(Receipt(device=DEVICE, last_counter=0, incarnations=(other,)), 0.0)

    assert len(outbox) == 3


@pytest.mark.parametrize("last_counter", [2**31, 2**53])
def test_a_counter_that_no_message_could_name_is_not_followed(outbox: Outbox, last_counter: int) -> None:
    assert not outbox.settle(receipt(outbox, 0, last_counter=last_counter), 0.0)
    assert outbox.incarnation.counter == 1


# sending again


def test_what_was_sent_is_not_sent_again_before_five_minutes_then_ten_then_an_hour_at_most(outbox: Outbox) -> None:
    fill(outbox, 1)
    sent_s = [now_s for now_s in range(0, 20_000, 50) if send(outbox, float(now_s))]

    waits_s = [b - a for a, b in pairwise(sent_s)]
    assert waits_s[:5] == [300, 600, 1200, 2400, 3600]
    assert set(waits_s[5:]) == {3600}


def test_a_fleet_does_not_send_again_in_step(tmp_path: Path) -> None:
    early, late = opened(tmp_path / "a", jitter=0.8), opened(tmp_path / "b", jitter=1.2)
    for outbox in (early, late):
        fill(outbox, 1)
        send(outbox, 0.0)

    assert (due(early, 240.0), due(late, 240.0)) == ([1], [])
    assert due(late, 360.0) == [1]


def test_after_a_reconnection_all_is_sent_again(outbox: Outbox) -> None:
    fill(outbox, 3)
    send(outbox, 0.0)
    assert due(outbox, 1.0) == []

    outbox.reconnected()
    assert due(outbox, 1.0) == [1, 2, 3]


def test_a_gap_is_news_only_of_what_was_sent_before_the_receipt_was_made(outbox: Outbox) -> None:
    fill(outbox, 3)
    send(outbox, 0.0)
    outbox.settle(receipt(outbox, 0, gaps=((1, 2),)), GAP_PATIENCE_S - 0.1)
    assert due(outbox, 4.9) == []

    outbox.settle(receipt(outbox, 0, gaps=((1, 2),)), GAP_PATIENCE_S)
    assert due(outbox, GAP_PATIENCE_S) == [1, 2]


def gap_shown(
    outbox: Outbox, seqs: Iterable[int], until_s: float, *, every_s: float = 10.0, since_s: float = 0.0
) -> int:
    """Let receipts show gaps for some time while what is due is sent; returns how often the first one was sent."""
    gaps = tuple((seq, seq) for seq in seqs)
    tries = 0
    now_s = since_s
    while now_s < until_s:
        tries += gaps[0][0] in send(outbox, now_s)
        now_s += every_s
        outbox.settle(receipt(outbox, 0, gaps=gaps), now_s)
    return tries


GIVEN_UP_S = sum(GAP_WAITS_S) + 100.0


def test_what_never_arrives_though_later_ones_do_is_given_up_after_five_more_tries_and_hours(outbox: Outbox) -> None:
    """Not even its number can be read over there, so nobody will ever refuse it."""
    fill(outbox, 2)
    tries = gap_shown(outbox, [1], until_s=3 * 3600.0)
    assert losses(outbox) == []

    tries += gap_shown(outbox, [1], since_s=3 * 3600.0, until_s=GIVEN_UP_S)
    assert tries == 1 + MAX_GAP_RESENDS
    assert losses(outbox) == [(1, 1, "never-taken")]
    assert outbox.floor() == 2


@pytest.mark.parametrize("every_s", [0.01, 1.0])
def test_a_gap_counts_for_each_time_sent_again_and_not_for_each_receipt(outbox: Outbox, every_s: float) -> None:
    """A busy device has many receipts a minute, and all of them show the same gap."""
    fill(outbox, 2)

    assert gap_shown(outbox, [1], until_s=60.0, every_s=every_s) == 2
    assert losses(outbox) == []


def test_a_queue_that_is_full_for_an_hour_and_a_half_costs_nothing(outbox: Outbox) -> None:
    """It acknowledges what it drops. Some messages find room, so that receipts come and show what is missing."""
    fill(outbox, 50)
    taken: set[int] = set()
    now_s = 0.0
    while now_s < 3 * 3600.0:
        for seq in send(outbox, now_s):
            if now_s > 5400.0 or seq % 7 == 0:
                taken.add(seq)
        now_s += 60.0
        fill(outbox, 1)
        missing = [(seq, seq) for seq in range(1, max(taken)) if seq not in taken]
        contiguous = missing[0][0] - 1 if missing else max(taken)
        outbox.settle(receipt(outbox, contiguous, gaps=tuple(missing[:256])), now_s)

    assert losses(outbox) == []
    assert set(range(1, 51)) <= taken


def test_a_poor_connection_neither_hastens_giving_up_nor_puts_it_off_for_ever(outbox: Outbox) -> None:
    """All is sent again with each reconnection, and that proves nothing; but what was proven is not forgotten."""
    fill(outbox, 2)
    for minute in range(59):
        gap_shown(outbox, [1], since_s=minute * 60.0, until_s=minute * 60.0 + 60.0)
        outbox.reconnected()
    assert losses(outbox) == []

    for minute in range(60, 300):
        gap_shown(outbox, [1], since_s=minute * 60.0, until_s=minute * 60.0 + 60.0)
        outbox.reconnected()
    assert losses(outbox) == [(1, 1, "never-taken")]


def test_no_more_is_under_way_than_memory_is_for(outbox: Outbox) -> None:
    fill(outbox, MAX_UNDER_WAY + 5)

    assert len(send(outbox, 0.0)) == MAX_UNDER_WAY
    assert send(outbox, 1.0) == []
    outbox.settle(receipt(outbox, 3), 1.0)
    assert send(outbox, 1.0) == [MAX_UNDER_WAY + 1, MAX_UNDER_WAY + 2, MAX_UNDER_WAY + 3]


def test_the_oldest_go_first_and_so_many_at_a_time_as_asked_for(outbox: Outbox) -> None:
    fill(outbox, 5)

    assert due(outbox, 0.0, limit=2) == [1, 2]
    assert due(outbox, 0.0, limit=0) == []


def test_what_is_due_takes_no_longer_to_find_in_a_long_queue(tmp_path: Path) -> None:
    steps = []
    for held in (100, 3000):
        outbox = opened(tmp_path / str(held))
        fill(outbox, held)
        done = count(1)
        outbox._db.set_progress_handler(lambda done=done: next(done) * 0, 10)
        assert due(outbox, 0.0, limit=50) == list(range(1, 51))
        steps.append(next(done))
        outbox.close()

    assert steps[1] < 1.5 * steps[0]


# room


def test_the_oldest_give_way_and_the_ledger_says_which(tmp_path: Path) -> None:
    outbox = opened(tmp_path, max_bytes=3000)
    size = 0
    while outbox.size_bytes == size or not losses(outbox):
        size = outbox.size_bytes
        fill(outbox, 1)
    fill(outbox, 5)

    held = due(outbox, 0.0)
    assert outbox.size_bytes <= 3000
    assert losses(outbox) == [(1, held[0] - 1, "outbox-full")]
    assert held == list(range(held[0], outbox.last_seq + 1))


def test_a_message_larger_than_the_outbox_is_kept_until_the_next_one(tmp_path: Path) -> None:
    outbox = opened(tmp_path, max_bytes=10)

    fill(outbox, 3)

    assert due(outbox, 0.0) == [3]
    assert losses(outbox) == [(1, 2, "outbox-full")]


def test_what_older_lives_hold_gives_way_first(tmp_path: Path) -> None:
    first = opened(tmp_path)
    fill(first, 3)
    held = first.size_bytes
    first.close()
    second = opened(tmp_path, boot="boot-2", max_bytes=held)
    fill(second, 2)

    assert [(loss.incarnation.counter, loss.first_seq, loss.last_seq) for loss in second.ledger()] == [(1, 1, 2)]


def test_a_loss_that_was_told_is_not_told_again_and_a_later_one_is(tmp_path: Path) -> None:
    outbox = opened(tmp_path, max_bytes=10)
    fill(outbox, 3)
    outbox.told(outbox.ledger())
    assert losses(outbox) == []

    fill(outbox, 1)
    assert losses(outbox) == [(3, 3, "outbox-full")]


def test_losses_are_told_at_most_as_many_at_a_time_as_an_event_holds(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    fill(outbox, 600)
    gap_shown(outbox, range(1, 600, 2), until_s=2 * GIVEN_UP_S, every_s=600.0)

    found = outbox.ledger()
    assert len(found) == 256
    outbox.told(found)
    assert len(outbox.ledger()) == 300 - 256


@pytest.mark.parametrize("refused", [False, True])
def test_the_ledger_of_years_stays_small_and_its_totals_exact(tmp_path: Path, refused: bool) -> None:
    outbox = opened(tmp_path, max_bytes=1 << 20 if refused else 10)
    for _ in range(MAX_TOLD + 50):
        fill(outbox, 2)
        last = outbox.last_seq
        if refused:
            outbox.settle(receipt(outbox, last, refused=(Refusal(seq=last - 1, reason="invalid"),)), 0.0)
        outbox.told(outbox.ledger())
    outbox._max_bytes = 10
    fill(outbox, 4)
    untold = outbox.ledger()

    found = look(tmp_path)

    assert len(found.losses) == MAX_TOLD + 1
    assert found.losses[-1:] == tuple(untold)
    assert sum(found.given_up.values()) + found.messages == outbox.last_seq - (MAX_TOLD + 50) * refused
    assert set(found.given_up) == ({"outbox-full", "refused-invalid"} if refused else {"outbox-full"})


def test_losses_that_nobody_could_be_told_of_stay_one_by_one(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    for boot in range(MAX_TOLD + 20):
        outbox.close()
        outbox = opened(tmp_path, boot=f"boot-{boot}", max_bytes=10)
        fill(outbox, 1)
    outbox.told([])

    assert len(look(tmp_path).losses) == MAX_TOLD + 19


# disks


def test_a_damaged_file_is_set_aside_and_a_new_life_begins(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    fill(outbox, 200)
    outbox.close()
    file = tmp_path / FILE_NAME
    damaged = b"\0" * 50 + file.read_bytes()[50:]
    file.write_bytes(damaged)

    again = opened(tmp_path)

    assert again.incarnation.counter == 2
    assert fill(again, 1) == [1]
    assert (tmp_path / f"{FILE_NAME}.damaged").read_bytes() == damaged


@pytest.mark.parametrize("kept", [0, 1, 100, 4096, 5000])
def test_a_file_cut_off_anywhere_is_replaced_or_read(tmp_path: Path, kept: int) -> None:
    outbox = opened(tmp_path)
    fill(outbox, 100)
    outbox.close()
    file = tmp_path / FILE_NAME
    file.write_bytes(file.read_bytes()[:kept])

    again = opened(tmp_path)

    assert fill(again, 1) == [1]
    assert again.incarnation.counter == 2


def test_a_full_disk_uses_up_no_number_and_loses_nothing(outbox: Outbox) -> None:
    fill(outbox, 3)
    outbox._db.execute("PRAGMA max_page_count = 1")

    with pytest.raises(StoreError, match="full"):
        fill(outbox, 200)
    kept = outbox.last_seq
    assert due(outbox, 0.0) == list(range(1, kept + 1))

    outbox._db.execute("PRAGMA max_page_count = 100000")
    assert fill(outbox, 1) == [kept + 1]


def test_a_database_that_fails_is_a_store_error_whatever_is_asked(outbox: Outbox) -> None:
    """One line and an exit code for whoever looks, instead of a traceback."""
    fill(outbox, 2)
    outbox._db.execute("DROP TABLE messages")
    outbox._db.execute("DROP TABLE ledger")
    for ask in (
        lambda: outbox.due(0.0, 10),
        outbox.floor,
        lambda: len(outbox),
        outbox.ledger,
        lambda: outbox.settle(receipt(outbox, 1), 0.0),
        lambda: fill(outbox, 1),
    ):
        with pytest.raises(StoreError, match="outbox"):
            ask()


def test_a_directory_that_cannot_be_written_is_one_line() -> None:
    with pytest.raises(StoreError, match=r"cannot open the outbox /proc/evenfleet/.*writable state_dir") as caught:
        opened(Path("/proc/evenfleet"))

    assert "\n" not in str(caught.value)


# death at any statement


class Killed(BaseException):
    pass


class Mortal(sqlite3.Connection):
    """Dies at a statement: before it, or after it was carried out."""

    left: int | None = None
    after = False

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        cls = type(self)
        if cls.left is not None and not sql.startswith("PRAGMA"):
            cls.left -= 1
            if cls.left < 0:
                if cls.after:
                    super().execute(sql, *values)
                raise Killed
        return super().execute(sql, *values)


class Lives(RuleBasedStateMachine):
    """An outbox that is killed and booted at any time: each number that it gave out is held, settled or in the ledger."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.directory = Path(self.folder.name)
        self.new_random = words()
        self.boots = 0
        self.now_s = 0.0
        self.last_seqs: dict[Incarnation, int] = {}
        self.settled: set[Key] = set()
        Mortal.left = None
        self.open()

    def open(self) -> None:
        self.outbox = Outbox(
            lambda: sqlite3.connect(self.directory / FILE_NAME, isolation_level=None, factory=Mortal),
            CounterFile(self.directory / COUNTER_NAME),
            boot=f"boot-{self.boots}",
            new_random=self.new_random,
            max_bytes=2500,
            jitter=lambda: 1.0,
        )

    def die(self) -> None:
        Mortal.left = None
        self.outbox.close()
        self.open()

    @contextmanager
    def dying(self, statements: int | None, after: bool) -> Iterator[None]:
        Mortal.left, Mortal.after = statements, after
        try:
            yield
        except Killed:
            self.die()
        Mortal.left = None

    @rule(statements=st.none() | st.integers(0, 12), after=st.booleans())
    def append(self, statements: int | None, after: bool) -> None:
        def build(incarnation: Incarnation, seq: int, floor: int) -> Event:
            assert seq == self.last_seqs.get(incarnation, 0) + 1
            return make(incarnation, seq, floor)

        with self.dying(statements, after):
            self.outbox.append("event", build)

    @rule(share=st.floats(0, 1), statements=st.none() | st.integers(0, 12), after=st.booleans())
    def receipt_comes(self, share: float, statements: int | None, after: bool) -> None:
        life = self.outbox.incarnation
        upto = int(share * self.outbox.last_seq)
        # The collector has them, whatever becomes of the receipt.
        self.settled |= {(*life, seq) for seq in range(1, upto + 1)}
        with self.dying(statements, after):
            self.outbox.settle(receipt(self.outbox, upto), self.now_s)

    @rule(reboot=st.booleans(), statements=st.none() | st.integers(0, 6), after=st.booleans())
    def restart(self, reboot: bool, statements: int | None, after: bool) -> None:
        self.boots += reboot
        self.outbox.close()
        with self.dying(statements, after):
            self.open()

    @rule()
    def send(self) -> None:
        self.now_s += 10.0
        send(self.outbox, self.now_s)

    @invariant()
    def every_number_given_out_is_accounted_for(self) -> None:
        if not hasattr(self, "outbox"):
            return
        life = self.outbox.incarnation
        self.last_seqs[life] = self.outbox.last_seq
        given_out = {(*one, seq) for one, last in self.last_seqs.items() for seq in range(1, last + 1)}
        held, given_up = self._held(), self._given_up()
        assert given_out == held | given_up | self.settled
        assert not held & given_up
        current = [seq for counter, word, seq in held if (counter, word) == life]
        assert self.outbox.floor() == min(current, default=self.outbox.last_seq + 1)
        assert self.outbox.size_bytes <= 2500

    def teardown(self) -> None:
        Mortal.left = None
        if hasattr(self, "outbox"):
            self.outbox.close()
            self.folder.cleanup()

    def _held(self) -> set[Key]:
        return set(self._ask("SELECT counter, random, seq FROM messages"))

    def _given_up(self) -> set[Key]:
        rows = self._ask("SELECT counter, random, first, last FROM ledger")
        return {(counter, word, seq) for counter, word, first, last in rows for seq in range(first, last + 1)}

    def _ask(self, sql: str) -> list[Any]:
        connection = sqlite3.connect(self.directory / FILE_NAME)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()


Lives.TestCase.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLives = Lives.TestCase
