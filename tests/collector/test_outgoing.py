"""Rows that are to be sent, and what is marked when they have gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from evenfleet_collector import outgoing
from evenfleet_collector.ingest import Ingest
from evenfleet_collector.store.rows import CommandRow
from evenfleet_collector.store.sqlite import SqliteWriter, open_reader, open_writer
from evenfleet_shared import messages, topics
from evenfleet_shared.messages import Command, Desired, Receipt
from fakes.stores import command_row
from fakes.uplink import DEVICE, arrival, reply, state, window

NOW_S = 1.7e9


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[SqliteWriter]:
    writer = open_writer(tmp_path)
    yield writer
    writer.close()


def desired(revision: int, device: str = DEVICE) -> Desired:
    return Desired(device=device, revision=revision, release=None, artifacts_url="http://x", window_length_s=1.0)


def put(writer: SqliteWriter, row: Desired) -> None:
    with writer.transaction() as tx:
        tx.put_desired(row)


def save(writer: SqliteWriter, *seqs: int) -> None:
    Ingest(writer).save([arrival(window(seq)) for seq in seqs], NOW_S)


def test_a_receipt_goes_on_its_topic_and_is_not_retained(writer: SqliteWriter) -> None:
    save(writer, 1, 2)
    (one,) = outgoing.due(writer, NOW_S)

    assert (one.topic, one.retain) == (topics.build(DEVICE, "receipt"), False)
    receipt = messages.decode("receipt", one.payload)
    assert receipt == one.message
    assert receipt.incarnations[0].contiguous == 2


def test_desired_is_retained_for_a_device_that_connects_later(writer: SqliteWriter) -> None:
    put(writer, desired(1))
    (one,) = outgoing.due(writer, NOW_S)

    assert (one.topic, one.retain) == (topics.build(DEVICE, "desired"), True)
    assert messages.decode("desired", one.payload) == desired(1)


def test_what_has_gone_is_not_due_again(writer: SqliteWriter) -> None:
    save(writer, 1)
    put(writer, desired(1))
    gone = outgoing.due(writer, NOW_S)
    assert {type(one.message) for one in gone} == {Receipt, Desired}

    outgoing.sent(writer, gone, NOW_S)

    assert outgoing.due(writer, NOW_S) == []


def test_what_was_not_sent_stays_due(writer: SqliteWriter) -> None:
    """A kill between the two: it is sent once more, which does no harm."""
    save(writer, 1)

    assert outgoing.due(writer, NOW_S) == outgoing.due(writer, NOW_S)


def test_what_became_due_while_it_was_being_sent_is_sent_again(writer: SqliteWriter) -> None:
    save(writer, 1)
    put(writer, desired(1))
    gone = outgoing.due(writer, NOW_S)
    save(writer, 2)
    put(writer, desired(2))

    outgoing.sent(writer, gone, NOW_S)

    receipt, newer = outgoing.due(writer, NOW_S)
    assert isinstance(receipt.message, Receipt)
    assert receipt.message.incarnations[0].contiguous == 2
    assert newer.message == desired(2)


def test_more_devices_than_one_batch_all_get_their_turn(writer: SqliteWriter) -> None:
    with writer.transaction() as tx:
        for number in range(outgoing.BATCH + 10):
            tx.mark_receipt_due(f"d{number}")
    first = outgoing.due(writer, NOW_S)
    outgoing.sent(writer, first, NOW_S)
    second = outgoing.due(writer, NOW_S)

    assert (len(first), len(second)) == (outgoing.BATCH, 10)
    assert not {one.topic for one in first} & {one.topic for one in second}


# commands


@pytest.fixture
def measure(writer: SqliteWriter) -> CommandRow:
    row = command_row(1, DEVICE, variant="int8", ttl_s=300.0, asked_s=NOW_S, offered_s=NOW_S)
    with writer.transaction() as tx:
        tx.add_command(row)
    return row


def sendings(writer: SqliteWriter, from_s: float, to_s: float) -> list[float]:
    """Send what is due, a look every second; return when commands went, in seconds from `NOW_S`."""
    went: list[float] = []
    for now_s in range(int(NOW_S + from_s), int(NOW_S + to_s)):
        gone = outgoing.due(writer, now_s)
        went += [now_s - NOW_S for one in gone if isinstance(one.message, Command)]
        outgoing.sent(writer, gone, now_s)
    return went


def stored(tmp_path: Path) -> CommandRow:
    (row,) = open_reader(tmp_path).commands(DEVICE)
    return row


def test_a_command_goes_with_its_age_and_is_not_retained(writer: SqliteWriter, measure: CommandRow) -> None:
    (one,) = outgoing.due(writer, NOW_S + 7.0)

    assert (one.topic, one.retain) == (topics.build(DEVICE, "command"), False)
    sent = messages.decode("command", one.payload)
    assert sent == Command(
        device=DEVICE, correlation_id="c1", command="measure", variant="int8", ttl_s=300.0, age_s=7.0
    )


@pytest.mark.usefixtures("measure")
def test_a_command_is_sent_again_less_and_less_often_until_its_time_is_over(
    writer: SqliteWriter, tmp_path: Path
) -> None:
    went = sendings(writer, 0, 400)

    assert went == [0, 2, 4, 8, 16, 32, 64, 124, 184, 244]
    row = stored(tmp_path)
    assert (row.state, row.sends, row.reply) == ("expired", 10, None)


@pytest.mark.usefixtures("measure")
def test_a_birth_offers_a_waiting_command_at_once_and_from_the_start(writer: SqliteWriter) -> None:
    sendings(writer, 0, 70)
    Ingest(writer).save([arrival(state())], NOW_S + 70)

    assert sendings(writer, 70, 90) == [70, 72, 74, 78, 86]


@pytest.mark.usefixtures("measure")
def test_a_birth_while_a_command_is_being_sent_makes_it_due_again(writer: SqliteWriter) -> None:
    """The copy on its way may have come before the device listened."""
    gone = outgoing.due(writer, NOW_S + 30)
    Ingest(writer).save([arrival(state())], NOW_S + 30.1)
    outgoing.sent(writer, gone, NOW_S + 30.2)

    assert [one.message for one in outgoing.due(writer, NOW_S + 30.3) if isinstance(one.message, Command)]


@pytest.mark.usefixtures("measure")
def test_an_answered_command_is_not_sent_again(writer: SqliteWriter, tmp_path: Path) -> None:
    sendings(writer, 0, 2)
    answer = reply("c1", seqs=(3, 4))
    Ingest(writer).save([arrival(answer)], NOW_S + 2)

    assert sendings(writer, 2, 400) == []
    row = stored(tmp_path)
    assert (row.state, row.reply, row.replied_s) == ("done", answer, NOW_S + 2)


@pytest.mark.usefixtures("measure")
def test_a_clock_that_was_set_back_holds_no_command_back(writer: SqliteWriter) -> None:
    outgoing.sent(writer, outgoing.due(writer, NOW_S), NOW_S)

    (one,) = outgoing.due(writer, NOW_S - 86_400)
    assert isinstance(one.message, Command)
    assert one.message.age_s == 0.0
