"""`devices/{id}/windows`: what a device sent, in the log's order."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, Field

from evenfleet_collector.resources import Page
from evenfleet_collector.routes.devices import known_device
from evenfleet_collector.routes.names import DeviceName
from evenfleet_collector.routes.paging import PageQuery, from_token, to_token
from evenfleet_collector.routes.parts import PartsOf
from evenfleet_collector.routes.problems import listed
from evenfleet_collector.store.rows import WindowRow

router = APIRouter(tags=["devices"])

Start = Annotated[AwareDatetime | None, Field(description="RFC 3339, included")]
End = Annotated[AwareDatetime | None, Field(description="RFC 3339, excluded")]


class WindowQuery(PageQuery):
    """Filters of the list, by the time of receipt."""

    variant: str | None = None
    start: Start = None
    end: End = None


@router.get("/devices/{device}/windows", responses=listed(400, 404))
def list_windows(parts: PartsOf, device: DeviceName, query: Annotated[WindowQuery, Query()]) -> Page[WindowRow]:
    """List a device's windows, received from `start` on and before `end`."""
    reader = parts.reader()
    known_device(reader, device)
    rows = reader.windows(
        device,
        variant=query.variant,
        start_s=seconds(query.start),
        end_s=seconds(query.end),
        after=from_token(query.page_token, int) or 0,
        limit=query.page_size + 1,
    )
    shown = tuple(rows[: query.page_size])
    return Page(items=shown, next_page_token=to_token(shown[-1].id) if len(rows) > len(shown) else None)


def seconds(instant: datetime | None) -> float | None:
    """Return an instant as seconds since 1970."""
    return None if instant is None else instant.timestamp()
