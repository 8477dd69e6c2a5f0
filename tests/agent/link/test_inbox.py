"""What the loop is told is bounded, and the newest that says everything is in it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evenfleet_agent.link import Connected, Disconnected, LinkEvent, Received
from evenfleet_agent.link.inbox import MAX_BYTES, MAX_MESSAGES, Inbox


def received(kind: str, payload: bytes = b"x") -> Received:
    return Received(f"evenfleet/v1/press-01/{kind}", payload)


def test_later_desired_takes_the_place_of_an_earlier_one() -> None:
    inbox = Inbox()
    for payload in (b"1", b"2", b"3"):
        inbox.put(received("desired", payload))
    assert inbox.take() == [received("desired", b"3")]
    assert inbox.dropped == {"desired": 2}


def test_receipts_are_all_told_while_there_is_room_and_the_newest_when_there_is_none() -> None:
    inbox = Inbox()
    for number in range(MAX_MESSAGES + 3):
        inbox.put(received("receipt", b"%d" % number))
    told = [event.payload for event in inbox.take() if isinstance(event, Received)]
    assert told == [b"%d" % number for number in range(3, MAX_MESSAGES + 3)]
    assert inbox.dropped == {"receipt": 3}


def test_commands_beyond_the_bound_are_dropped_and_counted() -> None:
    inbox = Inbox()
    gone = [inbox.put(received("command", b"%d" % number)) for number in range(MAX_MESSAGES + 2)]
    assert gone[-3:] == [None, "command", "command"]
    assert len(inbox.take()) == MAX_MESSAGES
    assert inbox.put(received("command")) is None


def test_reason_that_is_told_already_is_not_told_again() -> None:
    inbox = Inbox()
    nobody = Disconnected("nobody", refused=False)
    for event in (Connected("a"), nobody, nobody, nobody, Disconnected("no", refused=True), nobody):
        inbox.put(event)
    assert inbox.take() == [Connected("a"), nobody, Disconnected("no", refused=True), nobody]


events = st.one_of(
    st.builds(received, st.sampled_from(["desired", "receipt", "command", "odd"]), st.binary(max_size=10)),
    st.builds(received, st.just("receipt"), st.just(b"x" * 200_000)),
    st.builds(Connected, st.text(max_size=3)),
    st.builds(Disconnected, st.text(max_size=3), refused=st.booleans()),
)


@given(st.lists(events, max_size=300))
def test_it_stays_within_its_bounds_and_ends_as_the_session_does(happened: list[LinkEvent]) -> None:
    inbox = Inbox()
    for event in happened:
        inbox.put(event)
    told = inbox.take()
    messages = [event for event in told if isinstance(event, Received)]
    assert len(messages) <= MAX_MESSAGES
    assert sum(len(message.payload) for message in messages) <= MAX_BYTES
    assert len(told) - len(messages) <= 33
    turns = [event for event in happened if not isinstance(event, Received)]
    assert [event for event in told if not isinstance(event, Received)][-1:] == turns[-1:]
    assert len(messages) + sum(inbox.dropped.values()) == len(happened) - len(turns)
