"""The link against a broker that does what it is told: refuses, lies, floods, falls silent, hangs up."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from evenfleet_agent.link import Connected, Disconnected, Received
from evenfleet_agent.link.mqtt import MAX_HELD
from evenfleet_agent.link.pace import READ_BURST_BYTES, READ_BYTES_PER_S
from evenfleet_shared import topics
from evenfleet_shared.messages import MAX_MESSAGE_BYTES
from fakes.link_ends import DEVICE, Opener, link_to
from fakes.scripted_brokers import ScriptedBroker, message, packet

DESIRED = topics.build(DEVICE, "desired")
RECEIPT = topics.build(DEVICE, "receipt")
COMMAND = topics.build(DEVICE, "command")


@pytest.fixture
def broker() -> Iterator[ScriptedBroker]:
    broker = ScriptedBroker()
    yield broker
    broker.close()


@pytest.fixture
def opened(broker: ScriptedBroker, tmp_path: Path) -> Iterator[Opener]:
    """Opens links to the broker that are closed at the end."""
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(link_to(broker.address, directory=tmp_path, **changes))


def payloads(broker: ScriptedBroker, kind: str = "window") -> list[bytes]:
    return [sent.payload for sent in broker.sent if sent.topic == topics.build(DEVICE, kind)]


# How a session begins and ends.


def test_connection_that_ends_is_said_to_be_lost_and_to_whom(broker: ScriptedBroker, opened: Opener) -> None:
    ends = opened()
    ends.until(Connected)
    broker.hang_up()

    host, port = broker.address
    assert ends.until(Disconnected).reason == f"the connection to {host}:{port} was lost"


def test_sessions_that_do_not_last_are_further_and_further_apart(broker: ScriptedBroker, opened: Opener) -> None:
    ends = opened(uniform=lambda: 0.3)
    pauses_s = []
    ends.until(Connected)
    for _ in range(3):
        lost_s = time.monotonic()
        broker.hang_up()
        ends.until(Disconnected)
        ends.until(Connected)
        pauses_s.append(time.monotonic() - lost_s)

    assert pauses_s[0] >= 0.28
    assert pauses_s[1] >= 0.58
    assert pauses_s[2] >= 1.18


def test_refusal_is_told_with_the_brokers_own_reason(broker: ScriptedBroker, opened: Opener) -> None:
    broker.connack = b"\x20\x02\x00\x05"
    ends = opened(protocol="3.1.1")

    refused = ends.until(Disconnected)

    assert refused == Disconnected("the broker refused the connection: Not authorized", refused=True)


def test_unavailable_broker_of_mqtt_5_is_told_so(broker: ScriptedBroker, opened: Opener) -> None:
    broker.connack = b"\x20\x03\x00\x88\x00"
    assert opened().until(Disconnected).reason == "the broker refused the connection: Server unavailable"


def test_reason_of_a_broker_that_ends_the_session_is_told(broker: ScriptedBroker, opened: Opener) -> None:
    ends = opened()
    ends.until(Connected)
    broker.say(b"\xe0\x02\x8e\x00")
    assert ends.until(Disconnected).reason.endswith("ended the session: Session taken over")


def test_nobody_there_is_said_and_closing_does_not_wait(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    with link_to(address, directory=tmp_path) as ends:
        assert ends.until(Disconnected).reason == f"no broker answers at 127.0.0.1:{address[1]}"
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 3.0


def test_name_that_resolves_to_nothing_is_said(tmp_path: Path) -> None:
    with link_to(("no-such-host.invalid", 1883), directory=tmp_path) as ends:
        assert ends.until(Disconnected).reason.startswith("no broker answers at no-such-host.invalid:1883 (")


def test_orderly_end_says_farewell_and_sends_no_will(broker: ScriptedBroker, opened: Opener, tmp_path: Path) -> None:
    with link_to(broker.address, directory=tmp_path) as ends:
        ends.until(Connected)
    broker.until(lambda: broker.goodbyes == 1)
    assert payloads(broker, "state") == [b"farewell"]


# The version.


def test_mqtt_5_is_spoken_where_it_is_offered(broker: ScriptedBroker, opened: Opener) -> None:
    assert opened().until(Connected).transport == "mqtt/5"
    assert broker.levels == [5]


@pytest.mark.parametrize("connack", [b"\x20\x02\x00\x01", b"\x20\x03\x00\x84\x00"])
def test_broker_that_refuses_version_5_is_spoken_to_in_the_older_one_at_once_and_from_then_on(
    broker: ScriptedBroker, opened: Opener, connack: bytes
) -> None:
    broker.connack = connack
    ends = opened(uniform=lambda: 1.0)
    broker.until(lambda: broker.levels == [5, 4])
    broker.connack = b"\x20\x02\x00\x00"
    assert ends.until(Connected).transport == "mqtt/3.1.1"
    broker.hang_up()
    ends.until(Connected)
    assert broker.levels[0] == 5
    assert set(broker.levels[1:]) == {4}


def test_broker_that_hangs_up_on_version_5_is_spoken_to_in_the_older_one(
    broker: ScriptedBroker, opened: Opener
) -> None:
    broker.hangs_up_on = (5,)
    ends = opened()
    assert ends.until(Connected).transport == "mqtt/3.1.1"
    assert [event for event in ends.seen if isinstance(event, Disconnected)] == []


def test_broker_that_hangs_up_on_every_version_is_told_and_tried_with_both_again(
    broker: ScriptedBroker, opened: Opener
) -> None:
    broker.hangs_up_on = (4, 5)
    ends = opened()
    assert ends.until(Disconnected).reason.endswith("hung up without an answer")
    broker.until(lambda: broker.levels[:4] == [5, 4, 5, 4])


def test_version_that_the_configuration_names_is_the_only_one_tried(broker: ScriptedBroker, opened: Opener) -> None:
    broker.connack = b"\x20\x02\x00\x01"
    ends = opened(protocol="5")
    assert "does not speak MQTT 5; see broker.protocol" in ends.until(Disconnected).reason
    broker.until(lambda: len(broker.levels) > 1)
    assert set(broker.levels) == {5}


def test_bounds_of_a_broker_of_mqtt_5_are_kept(broker: ScriptedBroker, opened: Opener) -> None:
    # Receive maximum 3, maximum packet size 5000, no retained messages.
    broker.connack_properties = b"\x21\x00\x03" + b"\x27" + struct.pack("!I", 5000) + b"\x25\x00"
    broker.acknowledges = False
    ends = opened()
    ends.until(Connected)
    assert ends.link.publish("window", b"x" * 6000)  # handed over, and not sent: it would end every session
    assert ends.link.publish("state", b"birth", retain=True)
    assert [ends.link.publish("window", b"x") for _ in range(4)] == [True, True, False, False]
    broker.until(lambda: len(broker.sent) == 3)
    assert payloads(broker) == [b"x", b"x"]


def test_command_brings_its_expiry_and_its_reply_repeats_what_it_asks_for(
    broker: ScriptedBroker, opened: Opener
) -> None:
    ends = opened()
    ends.until(Connected)
    beside = b"\x02" + struct.pack("!I", 90) + b"\x08\x00\x03a/b" + b"\x09\x00\x02\x01\x02"
    broker.say(message(COMMAND, b"{}", five=True, properties=beside))

    command = ends.until(Received)
    assert (command.expires_in_s, command.response_topic, command.correlation) == (90, "a/b", b"\x01\x02")
    assert ends.link.publish("reply", b"done", answers=command)
    broker.until(lambda: payloads(broker, "reply") == [b"done"])
    assert broker.sent[-1].properties == b"\x08\x00\x03a/b" + b"\x09\x00\x02\x01\x02"


@pytest.mark.parametrize(
    ("reason", "words"), [(0x10, "No matching subscribers"), (0x97, "Quota exceeded"), (0x87, "Not authorized")]
)
def test_reason_of_an_acknowledgement_is_counted_and_told_once(
    broker: ScriptedBroker, opened: Opener, caplog: pytest.LogCaptureFixture, reason: int, words: str
) -> None:
    broker.puback = reason
    ends = opened()
    ends.until(Connected)
    for _ in range(5):
        assert ends.link.publish("window", b"x")
    deadline_s = time.monotonic() + 10.0
    while ends.link.refused_publishes.get(words) != 5:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    assert [record.getMessage().count(words) for record in caplog.records if words in record.getMessage()] == [1]
    taken = reason < 0x80
    assert ends.link.network().unacknowledged_ratio == (0.0 if taken else 1.0)


# What is under way.


def test_what_is_not_acknowledged_is_bounded_and_forgotten_with_its_session(
    broker: ScriptedBroker, opened: Opener
) -> None:
    """The outbox hands everything over again at each session: what the client kept would go out a second time."""
    broker.acknowledges = False
    ends = opened()
    for session in (1, 2):
        ends.until(Connected)
        handed = 0
        while ends.link.publish("window", b"%d" % session):
            handed += 1
        assert handed == MAX_HELD
        assert ends.link.publish("state", b"birth", retain=True)
        broker.hang_up()
        ends.until(Disconnected)
        assert not ends.link.publish("window", b"x")
    assert {(sent.session, sent.payload) for sent in broker.sent if sent.payload != b"birth"} == {(1, b"1"), (2, b"2")}


def test_large_messages_fill_the_room_by_their_bytes(broker: ScriptedBroker, opened: Opener) -> None:
    broker.acknowledges = False
    ends = opened()
    ends.until(Connected)
    handed = 0
    while ends.link.publish("window", b"x" * 200_000):
        handed += 1
    assert handed == 10


def test_room_that_was_made_wakes_the_loop_that_waits_for_it(broker: ScriptedBroker, opened: Opener) -> None:
    ends = opened()
    ends.until(Connected)
    while ends.link.publish("window", b"x"):
        pass
    ends.until_taken("window", b"last")
    broker.until(lambda: b"last" in payloads(broker))


def test_acknowledgement_of_what_was_never_sent_changes_nothing(broker: ScriptedBroker, opened: Opener) -> None:
    ends = opened()
    ends.until(Connected)
    for number in (1, 999, 65535):
        broker.say(packet(0x40, struct.pack("!H", number)) + packet(0x50, struct.pack("!H", number)))
    ends.until_taken("window", b"x")
    broker.until(lambda: payloads(broker) == [b"x"])
    assert len(broker.levels) == 1


# A broker that is gone without a word.


def test_broker_that_falls_silent_is_gone_within_one_and_a_half_keepalives(
    broker: ScriptedBroker, opened: Opener
) -> None:
    ends = opened(keepalive_s=2)
    ends.until(Connected)
    broker.until(lambda: broker.pings == 1)  # the last that it answers
    broker.deaf, silent_s = True, time.monotonic()
    assert ends.link.publish("window", b"under way")

    assert "was not heard for 3 s" in ends.until(Disconnected).reason

    assert time.monotonic() - silent_s <= 1.5 * 2 + 0.5
    assert ends.link.network().unacknowledged_ratio == 1.0


def test_broker_that_answers_pings_keeps_a_session_without_messages(broker: ScriptedBroker, opened: Opener) -> None:
    ends = opened(keepalive_s=1)
    ends.until(Connected)
    broker.until(lambda: broker.pings >= 4)
    assert len(broker.levels) == 1
    assert ends.link.events() == []


def test_connection_that_is_taken_and_never_answered_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, link_to(mute.getsockname(), keepalive_s=1) as ends:
        assert "did not answer within" in ends.until(Disconnected).reason


# A broker that says nonsense, or too much.


@pytest.mark.parametrize(
    "nonsense",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x20\xff\xff\xff\xff\x7f",
        b"\x20\x02\x00\x00" + b"\x30\x05\x00\xffabc",
        b"\x20\x02\x00\x00" + b"\x30\x04\x00\x02\xff\xfe",
        b"\x20\x02\x00\x00" + b"\x40\x00",
        b"\x20\x02\x00\x00" + b"\x90\x01\x00",
        b"\x20\x02\x00\x00" + b"\xf0\xff\xff\xff\x7f",
        b"\x20\x02\x00\x00" + b"\x00\x00",
    ],
)
def test_broker_that_sends_malformed_packets_costs_one_session_each(
    broker: ScriptedBroker, opened: Opener, nonsense: bytes
) -> None:
    broker.connack = nonsense
    ends = opened(protocol="3.1.1")
    for _ in range(2):
        reason = ends.until(Disconnected).reason
        assert reason.count("\n") == 0
        assert len(reason) < 200
    broker.connack = None
    ends.until(Connected)
    ends.until_taken("window", b"x")
    broker.until(lambda: payloads(broker) == [b"x"])


def test_message_beyond_the_bound_is_passed_over_and_told_and_the_session_goes_on(
    broker: ScriptedBroker, opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    ends = opened()
    ends.until(Connected)
    huge = message(RECEIPT, b"x" * (MAX_MESSAGE_BYTES * 2), five=True)
    broker.say(huge + huge + message(RECEIPT, b"small", five=True))

    assert ends.until(Received).payload == b"small"

    told = [record.getMessage() for record in caplog.records if "larger than" in record.getMessage()]
    assert told == [f"messages from the broker that are larger than {MAX_MESSAGE_BYTES} bytes are ignored (so far 1)"]
    assert len(broker.levels) == 1


def test_message_at_a_quality_of_service_that_was_not_asked_for_is_not_kept(
    broker: ScriptedBroker, opened: Opener
) -> None:
    """At QoS 2 the client would keep each until the broker's second word."""
    ends = opened()
    ends.until(Connected)
    broker.say(message(RECEIPT, b"twice", five=True, qos=2) + message(RECEIPT, b"plain", five=True))
    assert ends.until(Received).payload == b"plain"


def test_flood_is_bounded_and_the_newest_desired_comes_through(
    broker: ScriptedBroker, opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    ends = opened()
    ends.until(Connected)
    for number in range(300):
        broker.say(message(COMMAND, b"c%d" % number, five=True) + message(DESIRED, b"%d" % number, five=True))
    broker.say(message(RECEIPT, b"end", five=True))
    ends.until_taken("window", b"x")
    broker.until(lambda: payloads(broker) == [b"x"])
    dropped = ends.link._inbox.dropped
    deadline_s = time.monotonic() + 10.0
    while dropped.get("command", 0) + dropped.get("desired", 0) < 300 + 299 - 64:
        assert time.monotonic() < deadline_s, dropped
        time.sleep(0.01)

    received = [event for event in ends.link.events() if isinstance(event, Received)]

    assert len(received) <= 64
    assert [event.payload for event in received if event.topic == DESIRED] == [b"299"]
    assert any("more than is read" in record.getMessage() for record in caplog.records)


def test_flood_is_read_slowly_and_the_session_still_sends(broker: ScriptedBroker, opened: Opener) -> None:
    begins = threading.Event()

    def flood(session: socket.socket, level: int) -> None:
        begins.wait(20.0)
        while True:
            session.sendall(message(RECEIPT, b"x" * 8000, five=True) * 50)

    broker.at_session = flood
    ends = opened()
    ends.until(Connected)
    ends.until_taken("window", b"first")
    broker.until(lambda: payloads(broker) == [b"first"])
    broker.acknowledges = False  # it would come behind the flood
    begins.set()
    while ends.link.network().received_bytes < 100_000:
        time.sleep(0.01)
    began_s = time.monotonic()
    ends.until_taken("window", b"x")
    broker.until(lambda: payloads(broker) == [b"first", b"x"])
    while time.monotonic() - began_s < 3.0:
        ends.link.events()
        time.sleep(0.05)
    received_bytes = ends.link.network().received_bytes
    assert received_bytes < READ_BURST_BYTES + (time.monotonic() - began_s) * READ_BYTES_PER_S + 65536
    assert len(broker.levels) == 1


# What is measured of the way.


def test_bytes_at_the_socket_are_those_that_the_broker_counts(broker: ScriptedBroker, opened: Opener) -> None:
    ends = opened()
    ends.until(Connected)
    ends.until_taken("window", b"x" * 1000)
    broker.until(lambda: payloads(broker) != [])
    deadline_s = time.monotonic() + 10.0
    sent_bytes = received_bytes = trips = 0
    while not trips or sent_bytes < broker.received_bytes:
        assert time.monotonic() < deadline_s
        said = ends.link.network()
        sent_bytes, received_bytes = sent_bytes + said.sent_bytes, received_bytes + said.received_bytes
        trips += said.round_trips
        time.sleep(0.01)
    assert sent_bytes == broker.received_bytes
    assert trips == 1
    assert received_bytes >= 5 + 4  # the answer to the connection, and that to the message


# The day's budget.


def test_flooding_broker_cannot_make_the_day_dearer_than_its_budget(broker: ScriptedBroker, opened: Opener) -> None:
    budget_bytes = 100_000
    poured = 0

    def flood(session: socket.socket, level: int) -> None:
        nonlocal poured
        piece = message(RECEIPT, b"x" * 900, five=True)
        while True:
            poured += session.send(piece)

    broker.at_session = flood
    ends = opened(budget_bytes=budget_bytes)
    ends.until(Connected)

    asleep = ends.until(Disconnected)

    assert asleep.asleep_s
    assert asleep.reason.startswith(f"the day's budget of {budget_bytes} bytes is used up; the next session in 24.0 h")
    broker.until(lambda: broker.goodbyes == 1)
    assert payloads(broker, "state") == [b"sleep of abcdef01"]
    said = ends.link.network()
    assert 0.7 * budget_bytes < said.sent_bytes + said.received_bytes <= budget_bytes
    assert ends.link._purse.allowance.spent_bytes <= budget_bytes
    assert len(broker.levels) == 1


def test_own_messages_stop_before_the_budget_is_reached_and_the_last_says_so(
    broker: ScriptedBroker, opened: Opener
) -> None:
    ends = opened(budget_bytes=100_000)
    ends.until(Connected)
    handed, asleep = 0, None
    deadline_s = time.monotonic() + 20.0
    while asleep is None:
        assert time.monotonic() < deadline_s
        handed += ends.link.publish("window", b"x" * 1000)
        asleep = next((event for event in ends.link.events() if isinstance(event, Disconnected)), None)
    assert asleep.asleep_s
    broker.until(lambda: payloads(broker, "state") == [b"sleep of abcdef01"])
    assert 50 < len(payloads(broker)) == handed < 100
    assert not ends.link.publish("window", b"x")


def test_restart_does_not_spend_the_day_anew(broker: ScriptedBroker, tmp_path: Path) -> None:
    with link_to(broker.address, directory=tmp_path, budget_bytes=100_000) as ends:
        ends.until(Connected)
        for _ in range(60):
            ends.until_taken("window", b"x" * 1000)
    broker.until(lambda: broker.goodbyes == 1)
    with link_to(broker.address, directory=tmp_path, budget_bytes=100_000) as ends:
        ends.until(Connected)
        while ends.link.publish("window", b"x" * 1000):
            pass
        assert ends.until(Disconnected).asleep_s
        assert ends.link._purse.allowance.spent_bytes <= 100_000
    with link_to(broker.address, directory=tmp_path, budget_bytes=100_000) as ends:
        assert ends.until(Disconnected).asleep_s
    assert broker.received_bytes <= 100_000
    assert len(broker.levels) == 2
