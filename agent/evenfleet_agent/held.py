"""Tell what is whole of the outbox's rows from what the disk has damaged: SQLite keeps no checksums of them.

Pure. Any cell may hold any value of any type, text that is no UTF-8 included. Says so in SQL, for what a statement would
pass over, and in Python, for what is read; leaves to `room` and `outbox` what becomes of a row that is not whole.

* What is odd is None here and never an exception.
* A message is whole when its own header names the number that it lies under, on a topic that carries its schema.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from evenfleet_agent.sending import Key
from evenfleet_shared import messages
from evenfleet_shared.errors import MessageError
from evenfleet_shared.messages import Incarnation, Seq

# What the outbox keeps goes on one of these topics.
KINDS: Final = ("window", "backfill", "context", "event")
MAX_SEQ: Final = 2**53
# Each level takes twelve of the one before it: nobody gets there.
MAX_LEVEL: Final = 64
MAX_AGE_S: Final = 1e12

# That text has no byte beside those of its letters, which are told after it.
_PLAIN: Final = "typeof({0}) = 'text' AND length(CAST({0} AS BLOB)) = length({0}) AND {0} NOT GLOB '*[^{1}]*'"
WHOLE_LIFE: Final = (
    "typeof(counter) = 'integer' AND counter BETWEEN 1 AND 2147483648"
    f" AND {_PLAIN.format('random', '0-9a-f')} AND length(random) BETWEEN 8 AND 32"
)
WHOLE_REASON: Final = (
    f"{_PLAIN.format('reason', 'A-Za-z0-9._+-')} AND length(reason) BETWEEN 1 AND 64 AND reason GLOB '[A-Za-z0-9]*'"
)
WHOLE_SEQ: Final = f"typeof(seq) = 'integer' AND seq BETWEEN 1 AND {MAX_SEQ}"
WHOLE_MESSAGE: Final = (
    f"{WHOLE_LIFE} AND {WHOLE_SEQ} AND typeof(payload) = 'blob'"
    f" AND typeof(kind) = 'text' AND kind IN ({', '.join(repr(kind) for kind in KINDS)})"
)
# What these say can be worked out anew, or is only of use to the outbox itself.
WHOLE_LATE: Final = "typeof(late) = 'integer' AND late IN (0, 1)"
WHOLE_LEVEL: Final = f"typeof(level) = 'integer' AND level BETWEEN 0 AND {MAX_LEVEL}"
WHOLE_ALIKE: Final = f"alike IS NULL OR ({_PLAIN.format('alike', '0-9a-f:@.')})"
WHOLE_AGE: Final = f"typeof(age_s) = 'real' AND age_s BETWEEN 0 AND {MAX_AGE_S}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Envelope:
    """What a payload says of its number; without a docstring `dataclass` would load `inspect` to make one."""

    schema: str
    incarnation: Incarnation
    seq: Seq


def text(raw: bytes) -> str:
    r"""Return a cell's text, whatever its bytes: what is no UTF-8 fits nothing that is looked for.

    >>> text(b"window"), text(b"wind\xff")
    ('window', 'wind\ufffd')
    """
    return raw.decode("utf-8", "replace")


def life(counter: object, random: object) -> Incarnation | None:
    """Return an incarnation, None where it cannot be one.

    >>> life(1, "aaaaaaaa"), life("1", "aaaaaaaa"), life(1, None)
    (Incarnation(counter=1, random='aaaaaaaa'), None, None)
    """
    try:
        return msgspec.convert((counter, random), Incarnation)
    except msgspec.ValidationError:
        return None


def key(counter: object, random: object, seq: object) -> Key | None:
    """Return the number of a message, None where it cannot be one."""
    of = life(counter, random)
    if of is None or not isinstance(seq, int) or not 1 <= seq <= MAX_SEQ:
        return None
    return (*of, seq)


def sendable(number: Key, kind: object, payload: object, floor: int) -> bytes | None:
    """Return a message as it goes out under its number, with the floor of now; None where it is not whole."""
    if kind not in KINDS or not isinstance(kind, str) or not isinstance(payload, bytes):
        return None
    form: Any = msgspec.json if payload[:1] == b"{" else msgspec.msgpack
    try:
        envelope = form.decode(payload, type=_Envelope)
        if (*envelope.incarnation, envelope.seq) != number or envelope.schema not in messages.SCHEMAS[kind]:
            return None
        return messages.with_floor(payload, floor)
    except (MessageError, msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return None


def whole(number: tuple[object, object, object], kind: object, payload: object) -> Any:
    """Return a message as it was written, all of it looked at; None where it is not whole."""
    if kind not in KINDS or not isinstance(kind, str) or not isinstance(payload, bytes):
        return None
    try:
        message = messages.decode(kind, payload)
    except MessageError:
        return None
    return message if (*message.incarnation, message.seq) == number else None
