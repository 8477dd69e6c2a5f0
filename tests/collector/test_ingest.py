"""Batches on their way to disk: the store is the real one, the batches are hostile."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_collector import seqs
from evenfleet_collector.ingest import MAX_STRETCHES, Arrival, Ingest
from evenfleet_collector.store.sqlite import FILE_NAME, SqliteReader, SqliteWriter, open_reader, open_writer
from evenfleet_shared import messages, topics
from evenfleet_shared.errors import StoreError
from evenfleet_shared.messages import Incarnation, IncarnationReceipt, Loss, Receipt, Uplink
from fakes import uplink
from fakes.stores import command_row
from fakes.uplink import DEVICE, LIFE, app_window, arrival, context, event, reply, state, window

NOW_S = 1.7e9
OTHER_LIFE = Incarnation(2, "bbbbbbbb")


@dataclass
class Collector:
    directory: Path
    writer: SqliteWriter
    reader: SqliteReader

    def save(self, *sent: Uplink | Arrival) -> None:
        arrivals = [one if isinstance(one, Arrival) else arrival(one) for one in sent]
        Ingest(self.writer).save(arrivals, NOW_S)

    def receipt(self, device: str = DEVICE) -> Receipt:
        with self.writer.transaction() as tx:
            return tx.receipt(device)

    def part(self, incarnation: Incarnation = LIFE, device: str = DEVICE) -> IncarnationReceipt:
        return next(part for part in self.receipt(device).incarnations if part.incarnation == incarnation)

    def due(self) -> set[str]:
        with self.writer.transaction() as tx:
            return {device for device, _ in tx.receipts_due(100)}

    def clear_due(self) -> None:
        with self.writer.transaction() as tx:
            for device, mark in tx.receipts_due(100):
                tx.receipt_sent(device, mark)

    @property
    def seqs(self) -> list[int]:
        return [row.window.seq for row in self.reader.windows(DEVICE, limit=10_000)]

    @property
    def losses(self) -> list[tuple[int, int, str]]:
        return [(row.first_seq, row.last_seq, row.reason) for row in self.reader.losses(DEVICE)]


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    writer = open_writer(tmp_path)
    yield Collector(tmp_path, writer, open_reader(tmp_path))
    writer.close()


def broken(seq: int, *, device: str = DEVICE, floor: int = 1) -> Arrival:
    """Return a window with a header that can be read and a body that cannot."""
    fields = msgspec.json.decode(messages.encode(window(seq, device=device, floor=floor)))
    fields["length_s"] = "for ever"
    return Arrival(topics.build(device, "window"), msgspec.json.encode(fields))


def test_a_message_that_arrives_again_is_there_once(collector: Collector) -> None:
    collector.save(window(1), window(1), context(2), context(2))
    collector.save(window(1), event(3), event(3))
    collector.save(event(3))

    assert collector.seqs == [1]
    assert len(collector.reader.events(DEVICE)) == 1
    assert collector.reader.stats().ingested == {"committed": 3, "duplicate": 5}


def test_another_message_under_a_number_used_before_is_a_duplicate(collector: Collector) -> None:
    collector.save(window(1), window(1, variant="int8"), event(1))

    (row,) = collector.reader.windows(DEVICE)
    assert row.window.variant == "float32"
    assert not collector.reader.events(DEVICE)


def test_the_same_number_of_another_life_or_device_is_another_message(collector: Collector) -> None:
    collector.save(window(1), window(1, incarnation=OTHER_LIFE), window(1, device="press-02"))

    assert collector.seqs == [1, 1]
    assert len(collector.reader.windows("press-02")) == 1


def test_an_applications_window_is_kept_apart_from_the_log_and_settled_like_any_message(collector: Collector) -> None:
    collector.save(window(1), app_window(2), app_window(2), window(3))
    assert collector.seqs == [1, 3]
    assert [row.window.seq for row in collector.reader.app_windows(DEVICE)] == [2]
    assert collector.part().contiguous == 3
    assert collector.part().gaps == ()


def test_an_applications_window_that_was_reported_offline_is_taken_as_backfill(collector: Collector) -> None:
    collector.save(Arrival(topics.build(DEVICE, "backfill"), messages.encode(app_window(1))))

    assert [(row.window.seq, row.backfill) for row in collector.reader.app_windows(DEVICE)] == [(1, True)]


def test_an_applications_window_that_contradicts_itself_is_refused_by_its_number(collector: Collector) -> None:
    fields = msgspec.json.decode(messages.encode(app_window(1)))
    collector.save(Arrival(topics.build(DEVICE, "window"), msgspec.json.encode({**fields, "calls": 1})))
    assert [refusal.reason for refusal in collector.part().refused] == ["invalid"]
    assert collector.reader.app_windows(DEVICE) == []


def test_a_backfill_topic_carries_windows_and_says_so(collector: Collector) -> None:
    collector.save(Arrival(topics.build(DEVICE, "backfill"), messages.encode(window(1))))

    (row,) = collector.reader.windows(DEVICE)
    assert row.backfill


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        ("evenfleet/v1/press-01/window", b"", "encoding"),
        ("evenfleet/v1/press-01/window", b"\xff\x00 what is this", "encoding"),
        ("evenfleet/v1/press-01/window", b"{}", "invalid"),
        ("evenfleet/v1/press-01/window", b"[" * 100_000, "encoding"),
        ("evenfleet/v1/press-01/window", b'{"a":' * 50_000, "encoding"),
        ("evenfleet/v1/press-01/window", b"{" + b" " * messages.MAX_MESSAGE_BYTES, "size"),
        ("evenfleet/v1/press-01/window", b'{"schema": "\xed\xa0\x80"}', "encoding"),
        ("evenfleet/v1/press-01/state", b"\x81\xa6schema\xa1x", "invalid"),
        ("evenfleet/v1/press-01/nonsense", b"{}", "topic"),
        ("evenfleet/v1/press-01/receipt", b"{}", "topic"),
        ("elsewhere", b"{}", "topic"),
        ("evenfleet/v1/UPPER/window", b"{}", "topic"),
        ("evenfleet/v1//window", b"{}", "topic"),
        ("", b"", "topic"),
    ],
)
def test_bytes_that_are_no_message_are_a_dead_letter_and_hold_nothing_up(
    collector: Collector, topic: str, payload: bytes, reason: str
) -> None:
    collector.save(window(1), Arrival(topic, payload), window(2))

    assert collector.seqs == [1, 2]
    assert collector.reader.stats().dead_letters_by_reason == {reason: 1}
    assert collector.reader.stats().ingested["dead_letter"] == 1
    assert collector.part().refused == ()


@given(st.lists(st.tuples(st.sampled_from([*topics.KINDS, "x"]), st.binary(max_size=60)), max_size=6))
def test_no_bytes_stop_a_batch(tmp_path_factory: pytest.TempPathFactory, sent: list[tuple[str, bytes]]) -> None:
    directory = tmp_path_factory.mktemp("store")
    writer = open_writer(directory)
    arrivals = [Arrival(f"{topics.PREFIX}/{DEVICE}/{kind}", payload) for kind, payload in sent]

    Ingest(writer).save([*arrivals, arrival(window(1))], NOW_S)

    writer.close()
    stats = open_reader(directory).stats()
    assert (stats.windows, stats.dead_letters) == (1, len(sent))


@given(data=st.data())
def test_no_damage_to_a_good_message_stops_a_batch(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("store")
    writer = open_writer(directory)
    whole: list[Uplink] = [window(5, accuracy=uplink.accuracy(1)), context(5), event(5), state()]
    message = data.draw(st.sampled_from(whole))
    fields = msgspec.json.decode(messages.encode(message))
    leaves = data.draw(st.sampled_from([list(fields), list(fields.get("latency", fields))]))
    target = fields if leaves == list(fields) else fields["latency"]
    odd: st.SearchStrategy[Any] = st.sampled_from(
        [None, -1, 0, 2**53, 2**60, 2**70, 1e300, "", "\x00", "\u2028x", [], {}, [[]], True, "a" * 999]
    )
    target[data.draw(st.sampled_from(leaves))] = data.draw(odd)
    encode = data.draw(st.sampled_from([msgspec.json.encode, msgspec.msgpack.encode]))
    try:
        payload = encode(fields)
    except OverflowError:  # MessagePack has no integer that large
        payload = msgspec.json.encode(fields)

    Ingest(writer).save([Arrival(topics.build(DEVICE, uplink.kind_of(message)), payload)], NOW_S)
    Ingest(writer).save([arrival(window(6))], NOW_S)

    writer.close()
    stats = open_reader(directory).stats()
    assert stats.balance.measured == (
        stats.balance.committed + stats.balance.refused + stats.balance.lost + stats.balance.in_flight
    )
    assert stats.ingested["committed"] >= 1


def test_a_receipt_schema_on_an_uplink_topic_is_a_dead_letter(collector: Collector) -> None:
    """It has every field of a header, and of what it says it is."""
    fields = msgspec.json.decode(messages.encode(window(1))) | {"schema": "receipt/1", "last_counter": 1}
    for kind in ("window", "reply", "receipt"):
        collector.save(Arrival(topics.build(DEVICE, kind), msgspec.json.encode(fields)))

    assert collector.reader.stats().dead_letters == 3


def test_a_body_that_is_refused_is_refused_by_number_and_holds_nothing_up(collector: Collector) -> None:
    collector.save(window(1), broken(2))
    collector.save(window(3))

    part = collector.part()
    assert (part.contiguous, part.gaps) == (3, ())
    assert [(refusal.seq, refusal.reason) for refusal in part.refused] == [(2, "invalid")]
    assert collector.reader.stats().dead_letters_by_reason == {"invalid": 1}
    assert collector.reader.stats().balance.refused == 1


def test_a_refused_message_that_comes_again_is_refused_once(collector: Collector) -> None:
    collector.save(broken(2), broken(2))
    collector.save(broken(2))

    assert [refusal.seq for refusal in collector.part().refused] == [2]
    assert collector.reader.stats().balance.refused == 1


def test_a_good_message_is_not_refused_by_a_bad_one_that_comes_later_under_its_number(collector: Collector) -> None:
    collector.save(window(1))
    collector.save(broken(1))

    assert collector.part().refused == ()
    assert collector.reader.stats().balance.committed == 1


def test_nothing_is_refused_in_the_name_of_another_device(collector: Collector) -> None:
    collector.save(Arrival(topics.build("press-02", "window"), messages.encode(window(1))))

    assert collector.reader.stats().dead_letters_by_reason == {"device": 1}
    assert collector.receipt() == Receipt(device=DEVICE, last_counter=0)
    assert collector.receipt("press-02") == Receipt(device="press-02", last_counter=0)
    assert not collector.reader.windows(DEVICE)


def test_a_schema_of_a_later_version_is_refused_by_number(collector: Collector) -> None:
    payload = messages.encode(window(4)).replace(b'"window/1"', b'"window/9"')
    collector.save(Arrival(topics.build(DEVICE, "window"), payload))

    assert [(refusal.seq, refusal.reason) for refusal in collector.part().refused] == [(4, "schema")]


def test_a_floor_above_the_number_that_bears_it_is_refused(collector: Collector) -> None:
    """It would mark as lost what the device says in the same breath that it holds."""
    collector.save(window(3, floor=4))
    collector.save(window(4, floor=4))

    assert [refusal.seq for refusal in collector.part().refused] == []  # below the floor by now
    assert collector.losses == [(1, 2, "unexplained")]
    assert collector.part().contiguous == 4


def test_the_floor_of_a_message_that_is_refused_is_not_believed(collector: Collector) -> None:
    collector.save(broken(9, floor=9))

    assert collector.losses == []
    assert collector.part().gaps == ((1, 8),)


def test_a_floor_closes_what_never_came_as_lost(collector: Collector) -> None:
    collector.save(window(1), window(3))
    assert collector.part().gaps == ((2, 2),)

    collector.save(window(7, floor=6))

    assert collector.losses == [(2, 2, "unexplained"), (4, 5, "unexplained")]
    assert collector.part().gaps == ((6, 6),)


def test_a_floor_in_a_batch_does_not_lose_what_comes_later_in_the_same_batch(collector: Collector) -> None:
    """The broker may deliver in any order."""
    collector.save(window(3, floor=3), window(2), window(1))

    assert collector.losses == []
    assert collector.part().contiguous == 3


def test_what_was_closed_as_lost_and_comes_after_all_is_not_taken(collector: Collector) -> None:
    collector.save(window(3, floor=3))
    collector.save(window(1))

    assert collector.seqs == [3]
    balance = collector.reader.stats().balance
    assert (balance.committed, balance.lost, balance.measured) == (1, 2, 3)


def test_a_loss_told_later_gives_the_reason(collector: Collector) -> None:
    collector.save(window(8, floor=8))
    assert collector.losses == [(1, 7, "unexplained")]

    losses = (
        Loss(incarnation=LIFE, first_seq=1, last_seq=4, reason="outbox-full"),
        Loss(incarnation=LIFE, first_seq=5, last_seq=6, reason="never-taken"),
    )
    collector.save(event(9, floor=8, event="loss", losses=losses))

    assert collector.losses == [(1, 4, "outbox-full"), (5, 6, "never-taken"), (7, 7, "unexplained")]
    balance = collector.reader.stats().balance
    assert (balance.committed, balance.lost, balance.in_flight) == (2, 7, 0)


def test_a_loss_told_of_an_older_life_closes_its_gaps(collector: Collector) -> None:
    collector.save(window(1), window(5))
    loss = Loss(incarnation=LIFE, first_seq=1, last_seq=4, reason="outbox-full")
    collector.save(event(1, incarnation=OTHER_LIFE, event="loss", losses=(loss,)))

    assert collector.losses == [(2, 4, "outbox-full")]
    assert collector.part().contiguous == 5
    assert collector.seqs == [1, 5]


def test_a_loss_told_of_a_life_never_heard_of_is_noted(collector: Collector) -> None:
    loss = Loss(incarnation=LIFE, first_seq=3, last_seq=4, reason="outbox-full")
    collector.save(event(1, incarnation=OTHER_LIFE, event="loss", losses=(loss,)))

    assert collector.losses == [(3, 4, "outbox-full")]
    assert (collector.part().contiguous, collector.part().gaps) == (0, ((1, 2),))
    assert collector.receipt().last_counter == 2


def test_a_loss_told_twice_or_overlapping_counts_every_number_once(collector: Collector) -> None:
    losses = tuple(Loss(incarnation=LIFE, first_seq=a, last_seq=b, reason=r) for a, b, r in [(1, 4, "x"), (3, 6, "y")])
    collector.save(event(9, event="loss", losses=losses))
    collector.save(event(10, event="loss", losses=losses))

    assert collector.losses == [(1, 4, "x"), (5, 6, "y")]
    assert collector.reader.stats().balance.lost == 6


def test_a_birth_says_how_far_the_numbers_go_and_what_is_gone(collector: Collector) -> None:
    collector.save(state(seq=12, floor=4))

    balance = collector.reader.stats().balance
    assert (balance.measured, balance.lost, balance.in_flight) == (12, 3, 9)
    assert collector.due() == {DEVICE}


def test_a_birth_of_an_empty_outbox_has_the_next_number_as_its_floor(collector: Collector) -> None:
    collector.save(window(1), window(2))
    collector.save(state(seq=2, floor=3))

    assert collector.losses == []
    assert collector.reader.stats().dead_letters == 0


def test_the_will_of_an_older_session_changes_nothing(collector: Collector) -> None:
    collector.save(state(session="00000001"))
    collector.save(state(session="00000002"), state(session="00000001", status="lost"))

    row = collector.reader.device(DEVICE)
    assert row is not None
    assert row.status == "birth"


def test_a_state_that_cannot_be_read_refuses_no_number(collector: Collector) -> None:
    fields = msgspec.json.decode(messages.encode(state(seq=3)))
    fields["status"] = "confused"
    collector.save(Arrival(topics.build(DEVICE, "state"), msgspec.json.encode(fields)))
    collector.save(window(3))

    assert collector.seqs == [3]
    assert collector.part().refused == ()


@pytest.mark.parametrize("again", [window(1), context(2), event(3), state(), broken(4)], ids=str)
def test_whatever_arrives_from_a_device_leaves_a_receipt_due_to_it(
    collector: Collector, again: Uplink | Arrival
) -> None:
    """Duplicates included: the receipt before may have been lost."""
    for _ in range(2):
        collector.save(again, window(1, device="press-02"))
        assert collector.due() == {DEVICE, "press-02"}
        collector.clear_due()


def test_a_large_batch_in_any_order_is_all_there(collector: Collector) -> None:
    sent: list[Uplink] = [window(seq) for seq in range(1, 2001)]
    random.Random(7).shuffle(sent)

    collector.save(*sent)

    assert sorted(collector.seqs) == list(range(1, 2001))
    assert (collector.part().contiguous, collector.part().gaps) == (2000, ())


@given(
    order=st.permutations(range(1, 13)),
    cuts=st.lists(st.integers(1, 12), max_size=3),
    missing=st.sets(st.integers(1, 12), max_size=4),
)
def test_what_a_receipt_says_does_not_depend_on_the_order_of_arrival(
    tmp_path_factory: pytest.TempPathFactory, order: Sequence[int], cuts: list[int], missing: set[int]
) -> None:
    directory = tmp_path_factory.mktemp("store")
    collector = Collector(directory, open_writer(directory), open_reader(directory))
    edges = [0, *sorted(cuts), 12]
    for start, end in pairwise(edges):
        collector.save(*(window(seq) for seq in order[start:end] if seq not in missing))

    held = seqs.union([(seq, seq) for seq in order if seq not in missing])
    part = next(iter(collector.receipt().incarnations), None)
    collector.writer.close()
    assert part is not None
    assert (part.contiguous, part.gaps) == (seqs.contiguous(held), seqs.gaps(held))


def test_a_store_that_refuses_leaves_nothing_of_a_batch_and_takes_it_the_next_time(collector: Collector) -> None:
    collector.writer._connection.execute("PRAGMA max_page_count = 1")

    with pytest.raises(StoreError, match="full"):
        collector.save(*(window(seq) for seq in range(1, 300)))
    assert collector.seqs == []

    collector.writer._connection.execute("PRAGMA max_page_count = 1000000")
    collector.save(*(window(seq) for seq in range(1, 300)))
    assert len(collector.seqs) == 299


def test_lives_with_the_same_counter_are_told_apart(collector: Collector) -> None:
    twin = replace(window(1), incarnation=Incarnation(1, "cccccccc"))
    collector.save(window(1), twin, window(2))

    assert collector.part().contiguous == 2
    assert collector.part(Incarnation(1, "cccccccc")).contiguous == 1


def test_a_life_full_of_gaps_takes_bounded_room_and_loses_nothing(collector: Collector) -> None:
    """Every other number arrives: what there is no room for is not said to be here, and is taken once gaps are closed."""
    odd = [window(seq) for seq in range(1, 2 * MAX_STRETCHES + 40, 2)]
    even = [window(seq) for seq in range(2, 2 * MAX_STRETCHES + 40, 2)]
    collector.save(*odd)

    assert len(collector.seqs) == MAX_STRETCHES
    assert collector.reader.stats().ingested["too-many-gaps"] == 20
    with collector.writer.transaction() as tx:
        assert tx.incarnation(DEVICE, LIFE).settled[-1] == (2 * MAX_STRETCHES - 1, 2 * MAX_STRETCHES - 1)

    collector.save(*even)
    collector.save(*odd)
    assert sorted(collector.seqs) == list(range(1, 2 * MAX_STRETCHES + 40))
    assert collector.part().gaps == ()


def test_losses_told_of_a_life_full_of_gaps_take_no_room_either(collector: Collector) -> None:
    collector.save(*(window(seq) for seq in range(1, 2 * MAX_STRETCHES, 2)))
    losses = tuple(
        Loss(incarnation=LIFE, first_seq=10_000 + 2 * n, last_seq=10_000 + 2 * n, reason="outbox-full")
        for n in range(99)
    )
    collector.save(event(2, losses=losses))

    with collector.writer.transaction() as tx:
        assert len(tx.incarnation(DEVICE, LIFE).settled) <= MAX_STRETCHES


def test_a_message_that_we_cannot_take_for_a_fault_of_ours_is_set_aside_and_the_others_go_on(
    collector: Collector,
) -> None:
    """The log has its number and the settled ranges do not, as in a database that was mended by hand."""
    collector.save(*(window(seq) for seq in (1, 2)))
    with sqlite3.connect(collector.directory / FILE_NAME) as db:
        db.execute("DELETE FROM settled")

    collector.save(*(window(seq) for seq in (1, 2, 3)), window(1, device="press-02"))

    assert collector.seqs == [1, 2, 3]
    assert collector.reader.stats().dead_letters_by_reason == {"internal": 2}
    assert [refusal.seq for refusal in collector.part().refused] == [1, 2]
    assert len(collector.reader.windows("press-02")) == 1


def test_a_life_that_names_the_losses_of_many_others_is_in_its_own_receipt(collector: Collector) -> None:
    losses = tuple(
        Loss(incarnation=Incarnation(counter, "cccccccc"), first_seq=1, last_seq=1, reason="outbox-full")
        for counter in range(10, 30)
    )
    collector.save(event(1, losses=losses))

    assert collector.part().contiguous == 1


# replies


def asked(collector: Collector, *numbers: int) -> None:
    with collector.writer.transaction() as tx:
        for number in numbers:
            tx.add_command(command_row(number, DEVICE))


def test_the_first_answer_to_a_command_is_kept_and_no_later_one(collector: Collector) -> None:
    asked(collector, 1)
    first, second = reply("c1", seqs=(7,)), reply("c1", status="failed", detail="started anew")
    collector.save(first)
    collector.save(first, second)

    (row,) = collector.reader.commands(DEVICE)
    assert (row.state, row.reply) == ("done", first)
    assert "unasked-reply" not in collector.reader.stats().passed_over


def test_an_answer_after_the_time_is_over_still_says_what_was_done(collector: Collector) -> None:
    asked(collector, 1)
    with collector.writer.transaction() as tx:
        tx.expire_commands(NOW_S + 1e6)
    collector.save(reply("c1"))

    (row,) = collector.reader.commands(DEVICE)
    assert row.state == "done"


def test_answers_that_nobody_asked_for_are_counted_and_change_nothing(collector: Collector) -> None:
    """Of a command that was forgotten, of another device's, and to another thing than was asked."""
    asked(collector, 1)
    collector.save(reply("c2"), reply("c1", device="press-02"), reply("c1", command="restart-runner"))

    (row,) = collector.reader.commands(DEVICE)
    assert (row.state, row.reply) == ("waiting", None)
    stats = collector.reader.stats()
    assert (stats.passed_over["unasked-reply"], stats.dead_letters, stats.balance.measured) == (3, 0, 0)


def test_an_answer_takes_no_number_and_settles_none(collector: Collector) -> None:
    asked(collector, 1)
    collector.save(window(1), replace(reply("c1"), seq=1))

    assert collector.seqs == [1]
    assert (collector.part().contiguous, collector.part().gaps) == (1, ())


# what gave way


def test_a_summary_is_kept_and_the_windows_that_it_stands_for_are_told_as_lost(collector: Collector) -> None:
    told = event(
        8, floor=7, event="loss", losses=(Loss(incarnation=LIFE, first_seq=1, last_seq=6, reason="summarised"),)
    )
    collector.save(uplink.summary(7, 1, 6, floor=7), told)

    (row,) = collector.reader.summaries(DEVICE)
    assert (row.summary, row.received_s) == (uplink.summary(7, 1, 6, floor=7), NOW_S)
    assert collector.losses == [(1, 6, "summarised")]
    assert (collector.part().contiguous, collector.seqs) == (8, [])
    collector.save(uplink.summary(7, 1, 6, floor=7))
    assert len(collector.reader.summaries(DEVICE)) == 1


@pytest.mark.parametrize("batches", [1, 2])
def test_a_summary_of_a_window_that_is_here_is_refused_by_its_number(collector: Collector, batches: int) -> None:
    sent: list[Uplink] = [window(3), uplink.summary(7, 1, 6)]
    for batch in [sent] if batches == 1 else [[one] for one in sent]:
        collector.save(*batch)

    assert collector.reader.summaries(DEVICE) == []
    assert [(refusal.seq, refusal.reason) for refusal in collector.part().refused] == [(7, "overlaps")]
    assert collector.seqs == [3]


@pytest.mark.parametrize(
    "other",
    [
        window(3, variant="int8"),
        window(3, release="1" * 64),
        window(7),
        window(3, incarnation=OTHER_LIFE),
        event(3),
    ],
)
def test_what_a_summary_does_not_stand_for_is_no_reason_to_refuse_it(collector: Collector, other: Uplink) -> None:
    collector.save(other, uplink.summary(9, 1, 6))

    assert len(collector.reader.summaries(DEVICE)) == 1
    assert collector.part().refused == ()


def test_a_summary_of_an_earlier_life_is_looked_for_there(collector: Collector) -> None:
    collector.save(window(3), uplink.summary(1, 1, 6, incarnation=OTHER_LIFE))
    assert [refusal.reason for refusal in collector.part(OTHER_LIFE).refused] == ["overlaps"]

    collector.save(uplink.summary(2, 10, 16, incarnation=OTHER_LIFE))
    assert [row.summary.first_seq for row in collector.reader.summaries(DEVICE)] == [10]


# when it was


def dates(collector: Collector) -> list[tuple[float | None, str | None]]:
    return [(row.measured_s, row.dated) for row in collector.reader.windows(DEVICE, limit=10_000)]


@pytest.mark.parametrize("wall_s", [0.0, -1e9, NOW_S + 50 * 365 * 86400.0, NOW_S])
def test_a_board_without_a_clock_is_dated_by_how_long_it_had_been_up(collector: Collector, wall_s: float) -> None:
    offline = [window(seq, ended_uptime_s=1000.0 + 300.0 * seq, ended_wall_s=wall_s) for seq in (1, 2)]
    collector.save(state(uptime_s=5000.0), *[backfilled(one) for one in offline])

    booted_s = NOW_S - 5000.0
    assert dates(collector) == [(booted_s + 1300.0, "uptime"), (booted_s + 1600.0, "uptime")]


def test_a_live_window_dates_those_that_follow_on_the_backfill(collector: Collector) -> None:
    collector.save(window(3, ended_uptime_s=4000.0, ended_wall_s=9.0))
    collector.save(backfilled(window(1, ended_uptime_s=1000.0, ended_wall_s=9.0)))

    assert dates(collector) == [(NOW_S, "uptime"), (NOW_S - 3000.0, "uptime")]


def test_a_message_that_was_long_under_way_does_not_move_the_boot(collector: Collector) -> None:
    collector.save(state(uptime_s=5000.0))
    collector.save(window(1, ended_uptime_s=2000.0))
    collector.save(state(uptime_s=None, status="lost"))
    collector.save(backfilled(window(2, ended_uptime_s=3000.0)))

    assert dates(collector) == [(NOW_S - 3000.0, "uptime"), (NOW_S - 2000.0, "uptime")]


def test_a_life_that_nobody_heard_of_is_dated_by_a_clock_that_may_be_true_or_by_what_it_was_before(
    collector: Collector,
) -> None:
    """The device was offline, lost its power, and came back: how long it was off nobody knows."""
    now_s = NOW_S + 1e8
    lives = [
        state(incarnation=OTHER_LIFE, uptime_s=100.0),
        *[
            backfilled(window(seq, ended_uptime_s=300.0, ended_wall_s=wall_s))
            for seq, wall_s in enumerate((12.0, now_s - 7200.0, now_s + 1e7), start=1)
        ],
    ]
    Ingest(collector.writer).save([one if isinstance(one, Arrival) else arrival(one) for one in lives[:1]], now_s)
    Ingest(collector.writer).save([one if isinstance(one, Arrival) else arrival(one) for one in lives[1:]], now_s + 50)

    assert dates(collector) == [(now_s - 100.0, "before"), (now_s - 7200.0, "wall"), (now_s - 100.0, "before")]


def backfilled(one: Uplink) -> Arrival:
    return Arrival(topics.build(one.device, "backfill"), messages.encode(one))
