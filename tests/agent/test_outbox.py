"""What is kept until its receipt, what is given up and said to be, and a death at any statement."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from evenfleet_agent.ledger import MAX_TOLD
from evenfleet_agent.lives import COUNTER_NAME, MAX_COUNTER, CounterFile
from evenfleet_agent.outbox import (
    DAMAGED_NAME,
    FILE_NAME,
    TELL_WHEN_FULL_S,
    Outbox,
    look,
    open_outbox,
)
from evenfleet_agent.room import FAN_IN
from evenfleet_agent.sending import GAP_PATIENCE_S, GAP_WAITS_S, MAX_GAP_RESENDS, MAX_UNDER_WAY, Key
from evenfleet_shared import messages
from evenfleet_shared.errors import StoreError
from evenfleet_shared.messages import (
    AppWindow,
    Context,
    Event,
    Incarnation,
    IncarnationReceipt,
    Receipt,
    Refusal,
    Summary,
    Window,
)
from fakes import uplink

DEVICE = "press-01"


def words() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"{next(numbers):08x}"


def opened(
    directory: Path, *, boot: str = "boot-1", max_bytes: int = 1 << 20, jitter: float = 1.0, **more: Any
) -> Outbox:
    outbox = open_outbox(directory, boot=boot, new_random=words(), max_bytes=max_bytes, jitter=lambda: jitter, **more)
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


# what is measured offline


def measured(variant: str = "float32") -> Callable[[Incarnation, int, int], Window]:
    return lambda life, seq, floor: uplink.window(seq, incarnation=life, variant=variant, floor=floor)


def told_context(incarnation: Incarnation, seq: int, floor: int) -> Context:
    return uplink.context(seq, incarnation=incarnation, floor=floor)


def measure(outbox: Outbox, windows: int, *variants: str) -> list[int]:
    return [
        outbox.append("window", measured(variant)) for _ in range(windows) for variant in (variants or ("float32",))
    ]


def kinds(outbox: Outbox, now_s: float, limit: int = 10_000) -> list[tuple[str, int]]:
    """Send what is due and return its topics and numbers."""
    entries = outbox.due(now_s, limit)
    for entry in entries:
        outbox.sent(entry.key, now_s)
    return [(entry.kind, entry.key[2]) for entry in entries]


def test_what_is_measured_without_a_session_is_backfill_and_stays_that(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    measure(outbox, 1)
    outbox.reconnected()
    measure(outbox, 1)
    outbox.disconnected()
    measure(outbox, 1)
    outbox.close()

    again = opened(tmp_path)
    again.reconnected()

    assert kinds(again, 0.0) == [("window", 2), ("backfill", 1), ("backfill", 3)]


def reported(incarnation: Incarnation, seq: int, floor: int) -> AppWindow:
    return uplink.app_window(seq, incarnation=incarnation, floor=floor)


def test_an_applications_windows_without_a_session_are_backfill_at_its_rate(tmp_path: Path) -> None:
    outbox = opened(tmp_path, backfill_per_s=2.0)
    for _ in range(3):
        outbox.append("window", reported)
    outbox.reconnected()
    outbox.append("window", reported)

    assert kinds(outbox, 0.0) == [("window", 4), ("backfill", 1), ("backfill", 2)]
    assert kinds(outbox, 0.5) == [("backfill", 3)]


def test_an_applications_windows_have_no_summary_and_give_way_as_the_oldest(tmp_path: Path) -> None:
    outbox = opened(tmp_path, max_bytes=10_000)
    for _ in range(30):
        outbox.append("window", reported)

    assert summaries(outbox) == []
    assert losses(outbox) == [(1, 30 - len(outbox), "outbox-full")]
    assert outbox.size_bytes <= 10_000


def test_events_and_contexts_do_not_wait_behind_a_week_of_windows(outbox: Outbox) -> None:
    measure(outbox, 50)
    fill(outbox, 1)
    outbox.reconnected()

    assert kinds(outbox, 0.0)[0] == ("event", 51)


def test_backfill_goes_at_its_rate_the_oldest_first_and_live_windows_go_at_once(tmp_path: Path) -> None:
    outbox = opened(tmp_path, backfill_per_s=4.0)
    measure(outbox, 20)
    outbox.reconnected()

    assert kinds(outbox, 0.0) == [("backfill", seq) for seq in (1, 2, 3, 4)]
    assert kinds(outbox, 0.1) == []
    assert outbox.next_due_s(0.1) == pytest.approx(0.25, abs=1e-3)
    measure(outbox, 1)
    assert kinds(outbox, 0.25) == [("window", 21), ("backfill", 5)]
    sent = [kind for step in range(2, 20) for kind in kinds(outbox, step * 0.25)]
    assert sent == [("backfill", seq) for seq in range(6, 21)]
    assert outbox.next_due_s(10.0) is None


def test_what_is_sent_again_counts_against_the_rate_too(tmp_path: Path) -> None:
    outbox = opened(tmp_path, backfill_per_s=2.0)
    measure(outbox, 2)
    outbox.reconnected()
    assert len(kinds(outbox, 0.0)) == 2
    outbox.reconnected()

    assert kinds(outbox, 0.0) == []
    assert len(kinds(outbox, 1.0)) == 2


# summaries


def summaries(outbox: Outbox) -> list[Summary]:
    rows = outbox._db.execute("SELECT payload FROM messages WHERE level > 0 ORDER BY counter, seq").fetchall()
    return [messages.decode("backfill", payload) for (payload,) in rows]


def test_windows_that_were_never_published_leave_summaries_an_hour_of_each_variant_at_a_time(tmp_path: Path) -> None:
    outbox = opened(tmp_path, max_bytes=60_000)
    while not summaries(outbox):
        measure(outbox, 1, "float32", "int8")
    measure(outbox, 6, "float32", "int8")

    first, second = summaries(outbox)
    assert {first.variant, second.variant} == {"float32", "int8"}
    assert (first.windows, first.first_seq, first.last_seq) == (FAN_IN, 1, 23)
    assert (second.windows, second.first_seq, second.last_seq) == (FAN_IN, 2, 24)
    assert first.measured_s == FAN_IN * 300.0
    assert losses(outbox) == [(1, 24, "summarised")]
    assert outbox.size_bytes <= 60_000


def test_a_year_offline_keeps_a_summary_of_every_window_within_the_cap(tmp_path: Path) -> None:
    outbox = opened(tmp_path, max_bytes=40_000)
    measure(outbox, 1500)

    kept = summaries(outbox)
    assert sum(one.windows for one in kept) + len(outbox) - len(kept) == 1500
    assert outbox.size_bytes <= 40_000
    assert set(look(tmp_path).given_up) == {"summarised"}
    assert max(one.windows for one in kept) > FAN_IN


def test_what_may_have_been_published_gives_way_as_it_is(tmp_path: Path) -> None:
    outbox = opened(tmp_path, max_bytes=40_000)
    outbox.reconnected()
    measure(outbox, 60)

    assert summaries(outbox) == []
    assert set(look(tmp_path).given_up) == {"outbox-full"}


def test_backfill_that_went_out_is_not_merged_after_a_death_either(tmp_path: Path) -> None:
    outbox = opened(tmp_path, max_bytes=60_000)
    measure(outbox, 20)
    outbox.reconnected()
    gone = {seq for kind, seq in kinds(outbox, 0.0)}
    assert gone
    # As a death leaves it: nothing is closed.

    again = opened(tmp_path, max_bytes=60_000)
    measure(again, 100)

    for one in summaries(again):
        assert not gone & set(range(one.first_seq, one.last_seq + 1))


def test_no_summary_reaches_over_a_window_that_was_measured_with_a_session(tmp_path: Path) -> None:
    outbox = opened(tmp_path, max_bytes=30_000)
    measure(outbox, 10)
    outbox.reconnected()
    (live,) = measure(outbox, 1)
    outbox.disconnected()
    measure(outbox, 60)

    assert len(summaries(outbox)) > 1
    assert all(not one.first_seq <= live <= one.last_seq for one in summaries(outbox))


def test_no_summary_reaches_over_what_was_published_between_two_others(tmp_path: Path) -> None:
    """Some of the backlog goes out, then the network is lost again: older summaries wait behind what went out."""
    outbox = opened(tmp_path, max_bytes=200_000)  # more than is marked ahead
    while len(summaries(outbox)) < 2:
        measure(outbox, 1)
    outbox.reconnected()
    gone = {seq for step in range(2) for kind, seq in kinds(outbox, step * 1.0)}
    outbox.disconnected()
    measure(outbox, 3000)

    assert max(one.windows for one in summaries(outbox)) > FAN_IN
    for one in summaries(outbox):
        assert not gone & set(range(one.first_seq, one.last_seq + 1))


def test_contexts_and_summaries_give_way_last(tmp_path: Path) -> None:
    outbox = opened(tmp_path, max_bytes=30_000)
    outbox.append("context", told_context)
    measure(outbox, 60)
    outbox.reconnected()
    measure(outbox, 60)

    left = {kind for (kind,) in outbox._db.execute("SELECT kind FROM messages").fetchall()}
    assert "context" in left
    assert summaries(outbox)


def test_a_window_that_the_disk_has_damaged_is_in_no_summary_and_in_the_ledger(tmp_path: Path) -> None:
    outbox = opened(tmp_path, max_bytes=40_000)
    measure(outbox, 10)
    outbox._db.execute("UPDATE messages SET payload = zeroblob(length(payload)) WHERE seq = 3")
    measure(outbox, 60)

    assert (3, 3, "damaged") in losses(outbox)
    assert all(one.windows < one.last_seq - one.first_seq + 1 for one in summaries(outbox) if one.first_seq < 3)


def test_what_joined_a_loss_while_it_was_told_is_still_to_be_told(tmp_path: Path) -> None:
    outbox = opened(tmp_path, max_bytes=10)
    fill(outbox, 3)
    found = outbox.ledger()
    fill(outbox, 1)
    outbox.told(found)

    assert losses(outbox) == [(3, 3, "outbox-full")]


def test_while_there_is_no_room_losses_are_told_seldom_for_telling_takes_room(tmp_path: Path) -> None:
    outbox = opened(tmp_path, max_bytes=10)
    fill(outbox, 3)
    assert len(outbox.losses_due(0.0)) == 1
    assert outbox.losses_due(TELL_WHEN_FULL_S - 1.0) == []
    assert len(outbox.losses_due(TELL_WHEN_FULL_S)) == 1

    outbox._max_bytes = 1 << 20
    assert len(outbox.losses_due(TELL_WHEN_FULL_S + 1.0)) == 1


# flash


def syncs(outbox: Outbox) -> int:
    """Return how the next commit is synced: 2 whole, 1 at a checkpoint only."""
    return int(outbox._db.execute("PRAGMA synchronous").fetchone()[0])


def test_every_write_is_synced_unless_told_otherwise(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path, boot="b", new_random=words(), max_bytes=1 << 20, jitter=lambda: 1.0)
    for _ in range(3):
        fill(outbox, 1)
        assert syncs(outbox) == 2


def test_at_an_interval_one_write_is_synced_for_all_before_it_and_none_waits_longer(tmp_path: Path) -> None:
    uptime_s = 0.0
    outbox = open_outbox(
        tmp_path,
        boot="b",
        new_random=words(),
        max_bytes=1 << 20,
        jitter=lambda: 1.0,
        fsync_interval_s=60.0,
        uptime_s=lambda: uptime_s,
    )
    found = []
    for now_s in (10.0, 50.0, 61.0, 70.0):
        uptime_s = now_s
        fill(outbox, 1)
        found.append(syncs(outbox))
    assert found == [1, 1, 2, 1]

    outbox.tend(129.0)
    assert syncs(outbox) == 1
    uptime_s = 131.0
    outbox.tend(131.0)
    assert syncs(outbox) == 2
    before = outbox._db.total_changes
    uptime_s = 300.0
    outbox.tend(300.0)
    assert outbox._db.total_changes == before


def test_what_goes_out_is_marked_on_disk_first_however_seldom_the_rest_is_synced(tmp_path: Path) -> None:
    outbox = open_outbox(
        tmp_path,
        boot="b",
        new_random=words(),
        max_bytes=1 << 20,
        jitter=lambda: 1.0,
        fsync_interval_s=1e6,
        uptime_s=lambda: 0.0,
    )
    measure(outbox, 3)
    assert syncs(outbox) == 1
    outbox.reconnected()
    assert kinds(outbox, 0.0)
    assert syncs(outbox) == 2


# age


def test_what_is_too_old_goes_and_the_ledger_says_when(tmp_path: Path) -> None:
    uptime_s = 100.0
    outbox = opened(tmp_path, max_age_s=50_000.0, uptime_s=lambda: uptime_s, wall_s=lambda: 12.5)
    fill(outbox, 2)
    uptime_s = 30_000.0
    fill(outbox, 1)
    uptime_s = 60_000.0
    outbox.tend(uptime_s)

    assert due(outbox, 0.0) == [3]
    (drop,) = look(tmp_path).drops
    assert (drop.loss.first_seq, drop.loss.last_seq, drop.loss.reason) == (1, 2, "too-old")
    assert (drop.noted_uptime_s, drop.noted_wall_s) == (60_000.0, 12.5)


def test_a_wall_clock_that_jumps_by_fifty_years_ages_nothing(tmp_path: Path) -> None:
    wall_s = 0.0
    outbox = opened(tmp_path, max_age_s=50_000.0, uptime_s=lambda: 10.0, wall_s=lambda: wall_s)
    fill(outbox, 2)
    wall_s = 50 * 365 * 86_400.0
    fill(outbox, 1)
    outbox.tend(10.0)

    assert due(outbox, 0.0) == [1, 2, 3]


def test_age_counts_the_uptime_of_every_boot_and_not_the_time_without_power(tmp_path: Path) -> None:
    uptime_s = 0.0

    def up_s() -> float:
        return uptime_s

    for boot in range(6):
        uptime_s = 0.0
        outbox = opened(tmp_path, boot=f"boot-{boot}", max_age_s=50_000.0, uptime_s=up_s)
        fill(outbox, 1)
        uptime_s = 20_000.0
        fill(outbox, 1)
        outbox.close()

    held = {row[0] for row in sqlite3.connect(tmp_path / FILE_NAME).execute("SELECT counter FROM messages")}
    assert held == {4, 5, 6}
    assert look(tmp_path).given_up == {"too-old": 7}


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


def broken_page(file: Path, number: int) -> None:
    content = bytearray(file.read_bytes())
    content[4096 * number : 4096 * (number + 1)] = b"\xa5" * 4096
    file.write_bytes(content)


@pytest.mark.parametrize("page", range(1, 12))
def test_a_file_that_breaks_while_it_is_used_is_replaced_and_the_loss_told(tmp_path: Path, page: int) -> None:
    """Whatever page it is: what is held and what the ledger names are all that there was."""
    outbox = opened(tmp_path)
    fill(outbox, 40)
    outbox.settle(receipt(outbox, 3), 0.0)
    life = outbox.incarnation
    outbox.close()
    broken_page(tmp_path / FILE_NAME, page)
    again = open_outbox(tmp_path, boot="boot-1", new_random=words(), max_bytes=1 << 20, jitter=lambda: 1.0)

    for ask in (lambda: due(again, 0.0), lambda: again.settle(receipt(again, 0), 0.0), again.ledger):
        with suppress(StoreError):
            ask()
    fill(again, 1)
    with suppress(StoreError):
        due(again, 0.0)

    held = {entry.key for entry in again.due(0.0, 10_000)}
    lost = {(*loss.incarnation, seq) for loss in again.ledger() for seq in range(loss.first_seq, loss.last_seq + 1)}
    assert {(*life, seq) for seq in range(4, 41)} <= held | lost
    assert not held & lost
    if (tmp_path / DAMAGED_NAME).exists():
        (said,) = again.damages()
        assert said.startswith(f"{DAMAGED_NAME}: ")
        again.damages_told([said])
        assert again.damages() == []


def test_a_message_is_kept_although_the_file_turns_out_damaged_while_it_is_written(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    fill(outbox, 2000)  # more than SQLite keeps in memory
    outbox.close()
    again = opened(tmp_path)
    file = tmp_path / FILE_NAME
    with file.open("r+b") as content:
        content.seek(4096 * 3)
        content.write(b"\xa5" * (file.stat().st_size - 4096 * 3))

    assert fill(again, 1) == [1]

    assert again.incarnation.counter == 2
    assert losses(again) == [(1, 2000, "outbox-damaged")]
    assert due(again, 0.0) == [1]


def test_one_damaged_file_is_kept_the_last_one(tmp_path: Path) -> None:
    for round_ in range(3):
        outbox = opened(tmp_path)
        fill(outbox, 5)
        outbox.close()
        (tmp_path / FILE_NAME).write_bytes(f"broken {round_}".encode() * 100)
    opened(tmp_path).close()

    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [COUNTER_NAME, FILE_NAME, DAMAGED_NAME]
    assert (tmp_path / DAMAGED_NAME).read_bytes().startswith(b"broken 2")


def test_a_file_that_tells_nothing_is_told_to_tell_nothing(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / FILE_NAME).write_bytes(b"no database" * 100)

    assert opened(tmp_path).damages() == [
        f"{DAMAGED_NAME}: how many messages it held is not known; 0 messages were taken over"
    ]


def test_a_disk_that_is_read_only_for_a_while_loses_nothing(outbox: Outbox) -> None:
    fill(outbox, 2)
    outbox._db.execute("PRAGMA query_only = ON")
    for ask in (lambda: fill(outbox, 1), lambda: outbox.settle(receipt(outbox, 1), 0.0)):
        with pytest.raises(StoreError, match="readonly"):
            ask()
    assert due(outbox, 0.0) == [1, 2]

    outbox._db.execute("PRAGMA query_only = OFF")
    assert fill(outbox, 1) == [3]


def test_a_damaged_file_on_a_full_disk_is_replaced_once_there_is_room(tmp_path: Path) -> None:
    """Nothing can be written, not even the counter: the next try finds what this one left."""
    outbox = opened(tmp_path)
    fill(outbox, 3)
    outbox.close()
    (tmp_path / f"{COUNTER_NAME}.new").mkdir()
    again = opened(tmp_path)
    again._db.close()
    (tmp_path / FILE_NAME).write_bytes(b"no database" * 1000)
    again._open = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)

    for _ in range(2):
        with pytest.raises(StoreError, match="writable state_dir"):
            fill(again, 1)
    (tmp_path / f"{COUNTER_NAME}.new").rmdir()

    assert fill(again, 1) == [1]
    assert losses(again) == [(1, 3, "outbox-damaged")]
    assert again.damages() == [
        f"{DAMAGED_NAME}: 3 messages of incarnation 1 up to number 3 may be lost; 0 messages were taken over"
    ]


def test_a_file_of_an_earlier_version_is_read_and_its_windows_are_never_merged(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as db:
        db.executescript(FIRST_SCHEMA)
        db.execute("INSERT INTO life VALUES (1, 7, 'aaaaaaaa', 31, 'boot-1')")
        life = Incarnation(7, "aaaaaaaa")
        for seq in range(1, 31):
            payload = messages.encode(uplink.window(seq, incarnation=life))
            db.execute("INSERT INTO messages VALUES (?, ?, ?, 'window', ?)", (*life, seq, payload))
        db.execute("INSERT INTO ledger VALUES (1, 6, 'bbbbbbbb', 1, 4, 'outbox-full', 0)")
        db.commit()
    assert look(tmp_path).given_up == {"outbox-full": 4}

    outbox = opened(tmp_path, max_bytes=30_000)

    assert (outbox.incarnation, outbox.last_seq, len(outbox)) == (life, 30, 30)
    measure(outbox, 1)
    assert summaries(outbox) == []
    assert losses(outbox)[0] == (1, 4, "outbox-full")


FIRST_SCHEMA = """
CREATE TABLE life (
    one INTEGER PRIMARY KEY CHECK (one = 1), counter INTEGER, random TEXT, next_seq INTEGER, boot TEXT);
CREATE TABLE messages (
    counter INTEGER, random TEXT, seq INTEGER, kind TEXT, payload BLOB, PRIMARY KEY (counter, random, seq));
CREATE TABLE ledger (
    id INTEGER PRIMARY KEY, counter INTEGER, random TEXT, first INTEGER, last INTEGER, reason TEXT,
    told INTEGER DEFAULT 0);
CREATE TABLE told_losses (reason TEXT PRIMARY KEY, messages INTEGER);
"""


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
