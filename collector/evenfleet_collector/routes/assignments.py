"""`assignments`: which release each device should run."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from evenfleet_collector.resources import Assignment, NewAssignment, Page
from evenfleet_collector.routes.names import DeviceOrAll
from evenfleet_collector.routes.paging import PageQuery, from_token, page_of
from evenfleet_collector.routes.parts import PartsOf
from evenfleet_collector.routes.problems import listed
from evenfleet_collector.routes.releases import known_release

router = APIRouter(tags=["assignments"])


@router.get("/assignments", responses=listed(400))
def list_assignments(parts: PartsOf, query: Annotated[PageQuery, Query()]) -> Page[Assignment]:
    """List assignments by device; ``*`` is for every device not named."""
    rows, token = page_of(
        sorted(parts.reader().assignments().items()),
        key=lambda row: row[0],
        after=from_token(query.page_token, str),
        page_size=query.page_size,
    )
    return Page(items=tuple(Assignment(device=d, release=r) for d, r in rows), next_page_token=token)


@router.put("/assignments/{device}", responses=listed(400, 404, 409))
async def assign(
    parts: PartsOf,
    device: DeviceOrAll,
    body: NewAssignment,
) -> Assignment:
    """Assign a release to a device, or with ``*`` to every device not named."""
    release = body.release
    if release is not None:
        wanted = release
        release = (await run_in_threadpool(lambda: known_release(parts.reader(), wanted))).release
    await parts.edits.assign(device, release)
    return Assignment(device=device, release=release)
