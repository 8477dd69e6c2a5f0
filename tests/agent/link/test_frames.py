"""What goes by on its way to the MQTT client, and what does not get through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_agent.link.frames import MAX_PACKET_BYTES, Frames, NoMqttError
from evenfleet_shared.messages import MAX_MESSAGE_BYTES
from fakes.scripted_brokers import message, packet

CONNACK = b"\x20\x02\x00\x00"
packets = st.lists(
    st.builds(packet, st.sampled_from([0x30, 0x40, 0x90, 0xD0]), st.binary(max_size=300)), max_size=8
).map(b"".join)


@given(packets, st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_stream_is_the_same_however_it_is_cut(stream: bytes, cuts: list[int]) -> None:
    whole, pieces = Frames(), Frames()
    stream = CONNACK + stream
    given_whole, given_pieces, at, turn = whole.feed(stream), b"", 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        given_pieces += pieces.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert given_whole == given_pieces == stream
    assert whole.packets == pieces.packets
    assert whole.connack == pieces.connack == b"\x00\x00"


@given(st.binary(max_size=400))
def test_any_bytes_are_a_stream_or_no_mqtt_and_are_never_added_to(stream: bytes) -> None:
    frames = Frames()
    try:
        given_on = frames.feed(stream)
    except NoMqttError:
        return
    assert len(given_on) <= len(stream)


def test_message_beyond_the_bound_is_passed_over_and_what_follows_is_whole() -> None:
    frames = Frames()
    huge, small = message("a", b"x" * (MAX_PACKET_BYTES + 1)), message("a", b"small")
    assert frames.feed(CONNACK + small + huge + huge + small) == CONNACK + small + small
    assert frames.passed_over == {f"larger than {MAX_MESSAGE_BYTES} bytes": 2}


def test_message_at_quality_of_service_2_is_passed_over_and_1_is_not() -> None:
    frames = Frames()
    assert frames.feed(CONNACK + message("a", b"2", qos=2) + message("a", b"1", qos=1)) == CONNACK + message(
        "a", b"1", qos=1
    )


@pytest.mark.parametrize(
    "stream",
    [
        b"HTTP/1.1 200 OK",
        message("a", b"before the answer"),
        CONNACK + b"\x30\xff\xff\xff\xff\x01",
        CONNACK + b"\x00\x00",
        CONNACK + packet(0x90, b"x" * (MAX_PACKET_BYTES + 1)),
    ],
)
def test_what_cannot_be_mqtt_is_refused(stream: bytes) -> None:
    with pytest.raises(NoMqttError):
        Frames().feed(stream)
