"""Decide what becomes of a command that arrives: it is done, answered as before, refused, or too late.

Pure. `take` is asked for each copy that comes, `answered` and `overdue` when something became of one. `supervisor` does what
is to be done and sends the answers.

* A command is sent again until it is answered: a copy of one that was answered gets the same answer, a copy of one that is
  being done gets none yet. So nothing is done twice, but by an agent that was started anew in between.
* Time counts from the first copy's arrival, less its age: the device's wall clock may be wrong by any amount.
* What is remembered is bounded, results more narrowly than answers; with no room left a command is refused, not an older one forgotten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Union

from evenfleet_shared.messages import Command

MAX_REMEMBERED: Final = 64
# Results are large beside everything else that is remembered.
MAX_RESULTS: Final = 2
LET_GO: Final = "it was done, and its result has been let go since; ask again"

Status = Literal["done", "failed", "expired", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a command; the fields are those of `messages.Reply`."""

    status: Status
    detail: str = ""
    seqs: tuple[int, ...] = ()
    result: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A command that came and what became of it, None while it is being done."""

    command: Command
    expires_s: float
    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class Do:
    """It is to be done now."""


@dataclass(frozen=True, slots=True)
class Wait:
    """It is being done."""


Outcome = Union[Do, Wait, Answer]
Book = tuple[Entry, ...]


def take(book: Book, command: Command, now_s: float, left_s: float | None = None) -> tuple[Book, Outcome]:
    """Return what becomes of a command that has just come.

    Args:
        book: What is remembered.
        command: Checked; of this device.
        now_s: Monotonic seconds.
        left_s: What the broker says is left of the message's life, if it says so: the shorter of both holds.

    >>> command = Command(device="press-07", correlation_id="a", command="measure", ttl_s=10.0)
    >>> book, outcome = take((), command, 100.0)
    >>> outcome, take(book, command, 101.0)[1]
    (Do(), Wait())
    """
    # What is over cannot come again: its sender has stopped.
    book = tuple(entry for entry in book if entry.answer is None or now_s < entry.expires_s)
    known = next((entry for entry in book if entry.command.correlation_id == command.correlation_id), None)
    if known is not None:
        if replace(known.command, age_s=command.age_s) != command:
            return book, Answer(
                status="refused", detail=f"correlation_id {command.correlation_id} was another command's; use a new one"
            )
        return book, known.answer or Wait()
    if command.age_s >= command.ttl_s:
        return book, Answer(
            status="expired", detail=f"it was {command.age_s:g} s old when it was sent, its ttl_s is {command.ttl_s:g}"
        )
    if len(book) >= MAX_REMEMBERED:
        return book, Answer(
            status="refused",
            detail=f"{MAX_REMEMBERED} commands are remembered already; try again when some have expired",
        )
    left_s = min(command.ttl_s - command.age_s, math.inf if left_s is None else left_s)
    return (*book, Entry(command=command, expires_s=now_s + left_s)), Do()


def answered(book: Book, correlation_id: str, answer: Answer) -> Book:
    """Return the book with a command's answer in it; of those with a result, the last `MAX_RESULTS` keep it."""
    old = [
        entry.command.correlation_id
        for entry in book
        if entry.answer is not None
        and entry.answer.result is not None
        and entry.command.correlation_id != correlation_id
    ]
    gone = old[: max(0, len(old) + 1 - MAX_RESULTS)] if answer.result is not None else []
    made: list[Entry] = []
    for entry in book:
        if entry.command.correlation_id == correlation_id:
            made.append(replace(entry, answer=answer))
        elif entry.command.correlation_id in gone:
            made.append(replace(entry, answer=Answer(status="failed", detail=LET_GO)))
        else:
            made.append(entry)
    return tuple(made)


def overdue(book: Book, now_s: float) -> tuple[Command, ...]:
    """Return the commands that are still being done and no longer worth it."""
    return tuple(entry.command for entry in book if entry.answer is None and now_s >= entry.expires_s)


def next_due_s(book: Book) -> float | None:
    """Return when the next of those that are being done will be overdue; None where none is."""
    return min((entry.expires_s for entry in book if entry.answer is None), default=None)
