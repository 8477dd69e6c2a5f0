"""`stream`: server-sent events, one for every change of cells.

* An event's id is the highest version in it; a reader that comes back with `Last-Event-ID` misses no cell's latest
  state, though it may miss states in between.
* An id from the future (the store was replaced meanwhile) starts anew with every cell.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Header, Query
from pydantic import Field
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from evenfleet_collector.routes.parts import Parts, PartsOf
from evenfleet_collector.store.rows import CellRow

router = APIRouter(tags=["stream"])

POLL_S: Final = 0.25
PING_S: Final = 15
RETRY_MS: Final = 2000

_Version = Annotated[int, Field(ge=0, le=2**53)]


@router.get("/stream", response_class=EventSourceResponse)
async def stream(
    parts: PartsOf,
    after_version: Annotated[_Version | None, Query(description="start behind this version")] = None,
    last_event_id: Annotated[_Version | None, Header()] = None,
) -> EventSourceResponse:
    """Tell of every change of cells: ``event: cells``, ``id`` a version, ``data`` the changed cells as JSON.

    Starts behind `Last-Event-ID`, else behind `after_version`, else with what changes from now on.
    """
    start = last_event_id if last_event_id is not None else after_version
    if start is None:
        start = await run_in_threadpool(lambda: parts.reader().last_version())
    return EventSourceResponse(_events(parts, start), ping=PING_S, sep="\n")


async def _events(parts: Parts, seen: int) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(comment="following", retry=RETRY_MS)
    while not parts.stopping():
        version, cells = await run_in_threadpool(_changed, parts, seen)
        if cells:
            yield ServerSentEvent(data=msgspec.json.encode(cells).decode(), event="cells", id=str(version))
        seen = version
        await asyncio.sleep(POLL_S)


def _changed(parts: Parts, seen: int) -> tuple[int, list[CellRow]]:
    reader = parts.reader()
    last = reader.last_version()
    if last == seen:
        return seen, []
    cells = list(reader.cells(after_version=seen if seen < last else 0))
    # A cell may have changed between the two questions: its own version says how far we are.
    return max((cell.version for cell in cells), default=last), cells
