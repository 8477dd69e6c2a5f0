"""Rows that are to be sent, and what is marked when they have gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from evenfleet_collector import outgoing
from evenfleet_collector.ingest import Ingest
from evenfleet_collector.store.sqlite import SqliteWriter, open_writer
from evenfleet_shared import messages, topics
from evenfleet_shared.messages import Desired, Receipt
from fakes.uplink import DEVICE, arrival, window

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
    (one,) = outgoing.due(writer)

    assert (one.topic, one.retain) == (topics.build(DEVICE, "receipt"), False)
    receipt = messages.decode("receipt", one.payload)
    assert receipt == one.message
    assert receipt.incarnations[0].contiguous == 2


def test_desired_is_retained_for_a_device_that_connects_later(writer: SqliteWriter) -> None:
    put(writer, desired(1))
    (one,) = outgoing.due(writer)

    assert (one.topic, one.retain) == (topics.build(DEVICE, "desired"), True)
    assert messages.decode("desired", one.payload) == desired(1)


def test_what_has_gone_is_not_due_again(writer: SqliteWriter) -> None:
    save(writer, 1)
    put(writer, desired(1))
    gone = outgoing.due(writer)
    assert {type(one.message) for one in gone} == {Receipt, Desired}

    outgoing.sent(writer, gone)

    assert outgoing.due(writer) == []


def test_what_was_not_sent_stays_due(writer: SqliteWriter) -> None:
    """A kill between the two: it is sent once more, which does no harm."""
    save(writer, 1)

    assert outgoing.due(writer) == outgoing.due(writer)


def test_what_became_due_while_it_was_being_sent_is_sent_again(writer: SqliteWriter) -> None:
    save(writer, 1)
    put(writer, desired(1))
    gone = outgoing.due(writer)
    save(writer, 2)
    put(writer, desired(2))

    outgoing.sent(writer, gone)

    receipt, newer = outgoing.due(writer)
    assert isinstance(receipt.message, Receipt)
    assert receipt.message.incarnations[0].contiguous == 2
    assert newer.message == desired(2)


def test_more_devices_than_one_batch_all_get_their_turn(writer: SqliteWriter) -> None:
    with writer.transaction() as tx:
        for number in range(outgoing.BATCH + 10):
            tx.mark_receipt_due(f"d{number}")
    first = outgoing.due(writer)
    outgoing.sent(writer, first)
    second = outgoing.due(writer)

    assert (len(first), len(second)) == (outgoing.BATCH, 10)
    assert not {one.topic for one in first} & {one.topic for one in second}
