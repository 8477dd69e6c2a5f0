"""Build and parse MQTT topics; the only place that knows their slashes and, for NATS, their dots.

A device owns exactly one segment, so that a broker's access list is a pattern. No text that a user typed ever
becomes part of a topic: a device id is checked here before it does.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from evenfleet_shared.errors import MessageError

PREFIX: Final = "evenfleet/v1"

UPLINK: Final = ("state", "context", "window", "backfill", "event", "reply")
DOWNLINK: Final = ("desired", "command", "receipt")
KINDS: Final = UPLINK + DOWNLINK

_DEVICE_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
DEVICE_ID_RULE: Final = "1 to 63 of a-z, 0-9 and '-', starting with a letter or digit"


class Topic(NamedTuple):
    """A topic taken apart."""

    device: str
    kind: str


def is_device_id(text: str) -> bool:
    """Return whether `text` may name a device.

    >>> is_device_id("press-07"), is_device_id("Press 7"), is_device_id("a.b"), is_device_id("-a")
    (True, False, False, False)
    """
    return _DEVICE_ID.fullmatch(text) is not None


def build(device: str, kind: str) -> str:
    """Return the MQTT topic of one kind of message of one device.

    Raises:
        ValueError: The device id or the kind is not one; callers check what comes from outside.

    >>> build("press-07", "window")
    'evenfleet/v1/press-07/window'
    """
    if not is_device_id(device) or kind not in KINDS:
        raise ValueError(f"no topic for device {device!r}, kind {kind!r}")
    return f"{PREFIX}/{device}/{kind}"


def parse(topic: str) -> Topic:
    """Take an MQTT topic apart.

    Raises:
        MessageError: It is not one of ours (reason ``topic``).

    >>> parse("evenfleet/v1/press-07/window")
    Topic(device='press-07', kind='window')
    """
    head, _, tail = topic.partition(PREFIX + "/")
    device, _, kind = tail.partition("/")
    if head or not is_device_id(device) or kind not in KINDS:
        raise MessageError("topic", f"expected {PREFIX}/<device>/<kind>, found {topic[:120]!r}")
    return Topic(device, kind)


def to_subject(topic: str) -> str:
    """Return the NATS subject that nats-server gives an MQTT topic of ours.

    >>> to_subject("evenfleet/v1/press-07/window")
    'evenfleet.v1.press-07.window'
    """
    return topic.replace("/", ".")


def from_subject(subject: str) -> str:
    """Return the MQTT topic of a NATS subject of ours; the inverse of `to_subject`.

    >>> from_subject("evenfleet.v1.press-07.window")
    'evenfleet/v1/press-07/window'
    """
    return subject.replace(".", "/")
