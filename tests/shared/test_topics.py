"""Topics: what is built can be parsed, and nothing hostile passes for a device or a kind."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evenfleet_shared import topics
from evenfleet_shared.errors import MessageError

devices = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)


@given(device=devices, kind=st.sampled_from(topics.KINDS))
def test_topic_that_was_built_is_parsed_again(device, kind):
    assert topics.parse(topics.build(device, kind)) == (device, kind)


@given(device=devices, kind=st.sampled_from(topics.KINDS))
def test_subject_leads_back_to_its_topic(device, kind):
    topic = topics.build(device, kind)
    assert topics.from_subject(topics.to_subject(topic)) == topic


@given(topic=st.text(max_size=80))
@example(topic="evenfleet/v1/#")
@example(topic="evenfleet/v1/+/window")
@example(topic="evenfleet/v1//window")
@example(topic="evenfleet/v1/a/window/")
@example(topic="evenfleet/v1/a/b/window")
@example(topic="evenfleet/v1/a/windows")
@example(topic="evenfleet/v1/a/window\n")
@example(topic="evenfleet/v1/a\n/window")
@example(topic="evenfleet/v1/a.b/window")
@example(topic="evenfleet/v1/évenfleet/window")
@example(topic="evenfleet/v1/" + "a" * 64 + "/window")
@example(topic="evenfleet/v2/a/window")
@example(topic="x/evenfleet/v1/a/window")
@example(topic="$JS/API/STREAM/DELETE/UP")
def test_any_other_topic_is_refused_with_its_reason(topic):
    with pytest.raises(MessageError) as refused:
        topics.parse(topic)
    assert refused.value.reason == "topic"


@pytest.mark.parametrize("device", ["", "-a", "A", "a b", "a/b", "a.b", "a#", "a+", "a\n", "é", "_collector", "a" * 64])
def test_text_that_a_broker_could_take_for_something_else_is_no_device_id(device):
    assert not topics.is_device_id(device)
    with pytest.raises(ValueError, match="no topic"):
        topics.build(device, "window")


def test_unknown_kind_has_no_topic():
    with pytest.raises(ValueError, match="no topic"):
        topics.build("press-07", "firmware")


def test_no_kind_is_both_up_and_down():
    assert not set(topics.UPLINK) & set(topics.DOWNLINK)
