"""`devices/{id}/apps`: what the applications on a device did themselves, as their probes noted it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from evenfleet_collector.resources import Page
from evenfleet_collector.routes.devices import known_device
from evenfleet_collector.routes.names import DeviceName
from evenfleet_collector.routes.paging import PageQuery, from_token, page_of, to_token
from evenfleet_collector.routes.parts import PartsOf
from evenfleet_collector.routes.problems import listed
from evenfleet_collector.routes.windows import End, Start, seconds
from evenfleet_collector.store.rows import AppWindowRow

router = APIRouter(tags=["devices"])


class AppQuery(PageQuery):
    """Filters of the list, by the time of receipt."""

    app: str | None = None
    newest: Annotated[bool, Field(description="only the newest window of each application and model")] = False
    start: Start = None
    end: End = None


@router.get("/devices/{device}/apps", responses=listed(400, 404))
def list_apps(parts: PartsOf, device: DeviceName, query: Annotated[AppQuery, Query()]) -> Page[AppWindowRow]:
    """List windows of a device's applications, received from `start` on and before `end`."""
    reader = parts.reader()
    known_device(reader, device)
    after = from_token(query.page_token, int)
    start_s, end_s = seconds(query.start), seconds(query.end)
    if query.newest:
        wanted = [
            row
            for row in reader.newest_app_windows(device)
            if query.app in {None, row.window.app}
            and (start_s is None or row.received_s >= start_s)
            and (end_s is None or row.received_s < end_s)
        ]
        shown, token = page_of(wanted, key=lambda row: row.id, after=after, page_size=query.page_size)
        return Page(items=shown, next_page_token=token)
    rows = reader.app_windows(
        device, app=query.app, start_s=start_s, end_s=end_s, after=after or 0, limit=query.page_size + 1
    )
    shown = tuple(rows[: query.page_size])
    return Page(items=shown, next_page_token=to_token(shown[-1].id) if len(rows) > len(shown) else None)
