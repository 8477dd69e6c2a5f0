"""Golden bytes of every message version, and what hostile bytes may do: nothing but a `MessageError`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evenfleet_shared import messages
from evenfleet_shared.errors import MessageError
from evenfleet_shared.messages import Incarnation, Sketch, Window

GOLDEN = {path.stem: path.read_bytes() for path in sorted((Path(__file__).parent / "golden").glob("*.json"))}
KINDS = {name: kind for kind, known in messages.SCHEMAS.items() for name in GOLDEN if name.replace("-", "/") in known}
UPLINK = ("window-1", "app-1", "summary-1", "context-1", "event-1", "state-1")

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["NaN", "0" * 64, "press-07\n", "../x", "a" * 600])
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner))


def test_every_version_of_every_message_has_golden_bytes():
    known = {schema for schemas in messages.SCHEMAS.values() for schema in schemas}
    assert {name.replace("-", "/") for name in GOLDEN} == known


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_are_understood_and_nothing_in_them_is_lost(name):
    """Later versions may say more; what an earlier one said must come out again."""
    written = json.loads(messages.encode(messages.decode(KINDS[name], GOLDEN[name])))
    assert _missing(json.loads(GOLDEN[name]), written) == []


@pytest.mark.parametrize("name", GOLDEN)
def test_same_message_as_messagepack_is_the_same_value(name):
    packed = msgspec.msgpack.encode(json.loads(GOLDEN[name]))
    assert messages.decode(KINDS[name], packed) == messages.decode(KINDS[name], GOLDEN[name])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("name", GOLDEN)
def test_every_form_of_a_message_is_the_same_value(name, compact, packed):
    value = messages.decode(KINDS[name], GOLDEN[name])
    payload = messages.encode(value, compact=compact, packed=packed)
    assert (payload[:1] == b"{") is not packed
    assert messages.decode(KINDS[name], payload) == value


def test_compact_form_leaves_out_what_is_at_its_default_and_keeps_the_schema():
    value = messages.Exceedance(limit_ms=5.0, limit_revision=1, exceed=0, n=2)
    window = replace(messages.decode("window", GOLDEN["window-1"]), exceedances=(value,), memory=(), leak=None)
    told = json.loads(messages.encode(window, compact=True))
    assert told["schema"] == "window/1"
    assert told["exceedances"] == [{"limit_ms": 5.0, "limit_revision": 1, "exceed": 0, "n": 2}]
    assert not {"memory", "leak", "mode"} & told.keys()


def test_none_that_is_the_default_is_never_told_and_one_that_says_something_is():
    accuracy = replace(messages.decode("window", GOLDEN["window-1"]).accuracy, hamming=None, metric=None)
    told = json.loads(messages.encode(replace(messages.decode("window", GOLDEN["window-1"]), accuracy=accuracy)))
    assert told["accuracy"]["hamming"] is None
    assert "metric" not in told["accuracy"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", [name for name in UPLINK if name != "state-1"])
def test_floor_is_brought_up_to_date_in_the_form_that_the_outbox_holds(name, packed):
    value = messages.decode(KINDS[name], GOLDEN[name])
    held = messages.encode(value, compact=True, packed=packed)
    sent = messages.with_floor(held, 42)
    assert messages.decode(KINDS[name], sent) == replace(value, floor=42)
    assert (sent[:1] == b"{") is not packed
    assert abs(len(sent) - len(held)) < 12


@pytest.mark.parametrize("name", UPLINK)
def test_header_is_read_although_the_body_is_refused(name):
    fields = json.loads(GOLDEN[name])
    header = {"schema", "device", "incarnation", "seq", "floor"}
    for broken in fields.keys() - header:
        payload = json.dumps({**fields, broken: {"no": "such thing"}}).encode()
        assert messages.decode_header(payload).seq == fields["seq"]


def test_field_of_a_newer_agent_is_ignored():
    fields = json.loads(GOLDEN["window-1"])
    payload = json.dumps({**fields, "energy_mj": 3.5}).encode()
    assert messages.decode("window", payload) == messages.decode("window", GOLDEN["window-1"])


def test_field_that_came_later_may_be_missing():
    fields = json.loads(GOLDEN["window-1"])
    for later in ("throttled", "latency", "exceedances", "accuracy", "memory"):
        del fields[later]
    assert messages.decode("window", json.dumps(fields).encode()).memory == ()


def test_newer_schema_is_refused_by_its_name():
    payload = GOLDEN["window-1"].replace(b"window/1", b"window/2")
    with pytest.raises(MessageError, match="carries window/1, app/1, found 'window/2'") as refused:
        messages.decode("window", payload)
    assert refused.value.reason == "schema"


def test_backfill_carries_windows_and_a_window_topic_no_events():
    assert messages.decode("backfill", GOLDEN["window-1"]) == messages.decode("window", GOLDEN["window-1"])
    with pytest.raises(MessageError, match="schema"):
        messages.decode("window", GOLDEN["event-1"])


def test_message_larger_than_the_bound_is_refused_unread():
    with pytest.raises(MessageError) as refused:
        messages.decode("window", b"{" + b" " * messages.MAX_MESSAGE_BYTES)
    assert refused.value.reason == "size"


def test_payload_that_is_no_object_is_refused():
    for payload in (b"", b"[]", b"null", b'"{}"', b" {}", b"\x93\x01\x02\x03", b"\xff"):
        with pytest.raises(MessageError) as refused:
            messages.decode("window", payload)
        assert refused.value.reason == "encoding"


def test_floor_is_brought_up_to_date_and_nothing_else_changes():
    before = messages.decode("window", GOLDEN["window-1"])
    after = messages.decode("window", messages.with_floor(GOLDEN["window-1"], 42))
    assert after.floor == 42
    assert json.loads(messages.encode(after)) == {**json.loads(messages.encode(before)), "floor": 42}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("device", "Press-07"),
        ("device", "press-07\n"),
        ("incarnation", [0, "0123456789abcdef"]),
        ("incarnation", [1, "xyz"]),
        ("seq", 0),
        ("seq", 2**53 + 1),
        ("floor", 0),
        ("release", "0" * 63),
        ("variant", "../escape"),
        ("length_s", -1),
        ("ended_wall_s", 1e301),
        ("memory", [{"kind": "rss", "bytes": 1, "method": ""}]),
        ("latency.p50_ms", 3.0),
        ("latency.n", 5),
        ("latency.sketch.bins", [[12, 2], [-3, 1]]),
        ("accuracy.errors", 2),
        ("accuracy.tp", [4, 2]),
        ("accuracy.fp", [2, 1, 0]),
        ("exceedances", [{"limit_ms": 2.0, "limit_revision": 2, "exceed": 5, "n": 4}]),
    ],
)
def test_window_that_breaks_a_bound_or_contradicts_itself_is_refused(path, value):
    fields = json.loads(GOLDEN["window-1"])
    *parents, last = path.split(".")
    place = fields
    for name in parents:
        place = place[name]
    place[last] = value
    with pytest.raises(MessageError) as refused:
        messages.decode("window", json.dumps(fields).encode())
    assert refused.value.reason == "invalid"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("app", "an app"),
        ("app", ""),
        ("model", "../escape"),
        ("calls", 9),
        ("dropped", 2),
        ("latency", None),
        ("latency.n", 5),
        ("latency.p50_ms", 9.0),
        ("statistics.one_in", 0),
        ("statistics.classes", [[2, 2], [2, 1]]),
        ("statistics.classes", [[number, 1] for number in range(65)]),
        ("statistics.inputs", [{"index": 0, "n": 2, "nan": 1, "infinite": 2}]),
        ("statistics.inputs", [{"index": 0, "n": 2, "min": 2.0, "max": 1.0}]),
        ("statistics.entropy.p50_nats", 0.8),
        ("statistics.entropy.n", 3),
    ],
)
def test_applications_window_that_breaks_a_bound_or_contradicts_itself_is_refused(path, value):
    fields = json.loads(GOLDEN["app-1"])
    *parents, last = path.split(".")
    place = fields
    for name in parents:
        place = place[name]
    place[last] = value
    with pytest.raises(MessageError) as refused:
        messages.decode("window", json.dumps(fields).encode())
    assert refused.value.reason == "invalid"


def test_context_under_another_digest_is_refused():
    payload = GOLDEN["context-1"].replace(b'"threads":2', b'"threads":3')
    with pytest.raises(MessageError, match="the run context's own is"):
        messages.decode("context", payload)


def test_loss_that_ends_before_it_begins_is_refused():
    payload = GOLDEN["event-1"].replace(b'"last_seq":9', b'"last_seq":6')
    with pytest.raises(MessageError, match="last_seq 6 is below first_seq 7"):
        messages.decode("event", payload)


def test_sketch_with_two_counts_of_one_bin_is_refused():
    with pytest.raises(ValueError, match="strictly rising"):
        Sketch(relative_accuracy=0.01, bins=((1, 2), (1, 3)))


def test_sketch_of_numbers_beyond_the_largest_is_refused():
    with pytest.raises(ValueError, match="beyond the largest number"):
        Sketch(relative_accuracy=0.01, bins=((40_000, 1),))


def test_incarnations_are_ordered_by_their_counter_first():
    assert Incarnation(2, "ffffffff") < Incarnation(10, "00000000")


@given(kind=st.sampled_from(sorted(messages.SCHEMAS)), payload=st.binary(max_size=300))
@example(kind="window", payload=b"{" * 100_000)
@example(kind="window", payload=b'{"schema":' + b"[" * 100_000)
@example(kind="window", payload=b'{"schema":"window/1","new":' + b"[" * 100_000)
@example(kind="window", payload=b"\x81" * 100_000)
@example(kind="window", payload=b"\x82\xa6schema\xa8window/1\xa3new" + b"\x91" * 100_000)
@example(kind="window", payload=b'{"schema":"\\ud800"}')
@example(kind="window", payload=b'{"schema":"\xff"}')
@example(kind="state", payload=b"\x81\xa6schema\xa7state/1")
def test_arbitrary_bytes_give_a_message_error_and_nothing_else(kind, payload):
    for start in (b"", b"{", b'{"schema":"window/1",', b"\x81\xa6schema"):
        _value_or_message_error(kind, start + payload)


@given(data=st.data())
def test_mutated_messages_give_a_value_or_a_message_error(data):
    name = data.draw(st.sampled_from(sorted(GOLDEN)))
    fields = json.loads(GOLDEN[name])
    for _ in range(data.draw(st.integers(1, 3))):
        _mutate(fields, data)
    _value_or_message_error(KINDS[name], json.dumps(fields).encode())
    try:
        packed = msgspec.msgpack.encode(fields)
    except OverflowError:  # MessagePack has no word for so large a number
        return
    _value_or_message_error(KINDS[name], packed)


@given(data=st.data())
def test_damaged_bytes_give_a_value_or_a_message_error(data):
    name = data.draw(st.sampled_from(sorted(GOLDEN)))
    payload = GOLDEN[name]
    if data.draw(st.booleans()):
        payload = msgspec.msgpack.encode(json.loads(payload))
    damaged = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    _value_or_message_error(KINDS[name], bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    _value_or_message_error(KINDS[name], bytes(damaged))


def _missing(said: Any, written: Any, where: str = "$") -> list[str]:
    """Return where something that was said is not written."""
    if isinstance(said, dict) and isinstance(written, dict):
        return [hole for key in said for hole in _missing(said[key], written.get(key), f"{where}.{key}")]
    if isinstance(said, list) and isinstance(written, list) and len(said) == len(written):
        return [hole for i, value in enumerate(said) for hole in _missing(value, written[i], f"{where}[{i}]")]
    return [] if said == written else [where]


def _mutate(fields: Any, data: st.DataObject) -> None:
    """Change, add or remove one thing, somewhere below."""
    while True:
        keys = list(fields) if isinstance(fields, dict) else list(range(len(fields)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if isinstance(fields[key], (dict, list)) and fields[key] and data.draw(st.booleans()):
            fields = fields[key]
            continue
        if data.draw(st.booleans()):
            fields[key] = data.draw(values)
        else:
            del fields[key]
        return


def _value_or_message_error(kind: str, payload: bytes) -> None:
    value = _outcome(lambda: messages.decode(kind, payload))
    # What is taken can be written, and is then the same.
    if isinstance(value, Window):
        assert messages.decode("window", messages.encode(value)) == value
    _outcome(lambda: messages.decode_header(payload))


def _outcome(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except MessageError as error:
        assert error.reason in {"size", "encoding", "schema", "invalid"}  # noqa: PT017 - either outcome is right
        return None
