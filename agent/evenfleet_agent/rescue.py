"""Read what can still be read of a damaged outbox that was set aside, row by row, past the pages that are broken.

Leaves to `outbox` what becomes of it. Raises nothing: what cannot be read is not there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from evenfleet_agent import held
from evenfleet_shared.messages import Count, Incarnation, Seq

_CHUNK: Final = 64
# Beyond it a row's number is damage, not a row.
_MAX_ROWS: Final = 10_000_000

_ROWS: Final = "SELECT counter, random, seq, kind, payload FROM messages WHERE rowid BETWEEN ? AND ?"


@dataclass(frozen=True, slots=True)
class Left:
    """What a damaged outbox says of its numbers, None where even that is gone.

    Attributes:
        life: The incarnation that it was in.
        last_seq: The last number given out in it.
        settled: Everything up to this number of it had been settled.
    """

    life: Incarnation
    last_seq: int
    settled: int


@dataclass(frozen=True, slots=True)
class Row:
    """A message that is whole."""

    life: Incarnation
    seq: int
    kind: str
    payload: bytes


def numbers(path: Path) -> Left | None:
    """Return what a damaged file says of its numbers."""
    with suppress(sqlite3.Error, TypeError, msgspec.ValidationError), closing(_open(path)) as db:
        counter, random, next_seq = db.execute("SELECT counter, random, next_seq FROM life").fetchone()
        settled = 0
        with suppress(sqlite3.Error):
            (settled,) = db.execute("SELECT settled FROM life").fetchone()
        life = msgspec.convert((counter, random), Incarnation)
        return Left(life, msgspec.convert(next_seq, Seq) - 1, msgspec.convert(settled, Count))
    return None


def rows(path: Path) -> Iterator[Row]:
    """Yield the messages of a damaged file that are whole: their own headers must say what the table says."""
    with suppress(sqlite3.Error), closing(_open(path)) as db:
        last = db.execute("SELECT max(rowid) FROM messages").fetchone()[0] or 0
        for first in range(1, min(int(last), _MAX_ROWS) + 1, _CHUNK):
            for found in _chunk(db, first, first + _CHUNK - 1):
                row = _whole(found)
                if row is not None:
                    yield row


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None)


def _chunk(db: sqlite3.Connection, first: int, last: int) -> list[tuple[Any, ...]]:
    try:
        return db.execute(_ROWS, (first, last)).fetchall()
    except sqlite3.Error:
        found = []
        for row in range(first, last + 1):
            with suppress(sqlite3.Error):
                found += db.execute(_ROWS, (row, row)).fetchall()
        return found


def _whole(found: tuple[Any, ...]) -> Row | None:
    counter, random, seq, kind, payload = found
    message = held.whole((counter, random, seq), kind, payload)
    return Row(message.incarnation, message.seq, kind, payload) if message else None
