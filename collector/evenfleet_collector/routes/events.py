"""`devices/{id}/events`: what happened on a device, as it reported it."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from evenfleet_collector.resources import Page
from evenfleet_collector.routes.devices import known_device
from evenfleet_collector.routes.names import DeviceName
from evenfleet_collector.routes.paging import PageQuery, from_token, to_token
from evenfleet_collector.routes.parts import PartsOf
from evenfleet_collector.routes.problems import listed
from evenfleet_collector.store.rows import EventRow

router = APIRouter(tags=["devices"])


class EventQuery(PageQuery):
    """The order of the list: by number, or `-id`, the newest first."""

    sort: Literal["id", "-id"] = "id"


@router.get("/devices/{device}/events", responses=listed(400, 404))
def list_events(parts: PartsOf, device: DeviceName, query: Annotated[EventQuery, Query()]) -> Page[EventRow]:
    """List what a device reported: releases installed and refused, runners that failed, losses, jumps of its clock."""
    reader = parts.reader()
    known_device(reader, device)
    rows = reader.events(
        device,
        after=from_token(query.page_token, int) or 0,
        limit=query.page_size + 1,
        newest_first=query.sort == "-id",
    )
    shown = tuple(rows[: query.page_size])
    return Page(items=shown, next_page_token=to_token(shown[-1].id) if len(rows) > len(shown) else None)
