"""`flags`: what is outside tolerance, since when, and the evidence."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Path, Query
from pydantic import Field

from evenfleet_collector.cell import Metric
from evenfleet_collector.resources import Flag, Page, flag_of
from evenfleet_collector.routes.paging import PageQuery, collect, from_token
from evenfleet_collector.routes.parts import PartsOf
from evenfleet_collector.routes.problems import listed, not_found
from evenfleet_collector.routes.windows import End, Start, seconds
from evenfleet_collector.store.rows import FlagRow

router = APIRouter(tags=["flags"])

_FILTERS: Final = {"device_class", "release", "variant", "metric"}


class FlagQuery(PageQuery):
    """Filters of the list; `start` and `end` are of the time a flag was opened."""

    device: str | None = None
    device_class: str | None = None
    release: str | None = None
    variant: str | None = None
    metric: Metric | None = None
    start: Start = None
    end: End = None
    cleared: Annotated[bool, Field(description="those that have been cleared, too")] = False


@router.get("/flags", responses=listed(400))
def list_flags(parts: PartsOf, query: Annotated[FlagQuery, Query()]) -> Page[Flag]:
    """List open flags by id."""
    reader = parts.reader()
    wanted = query.model_dump(include=_FILTERS, exclude_none=True)
    start_s, end_s = seconds(query.start), seconds(query.end)

    def keep(row: FlagRow) -> bool:
        return (
            all(getattr(row, field) == value for field, value in wanted.items())
            and (start_s is None or row.opened_s >= start_s)
            and (end_s is None or row.opened_s < end_s)
        )

    rows, token = collect(
        lambda after, limit: reader.flags(device=query.device, only_open=not query.cleared, after=after, limit=limit),
        key=lambda row: row.id,
        keep=keep,
        after=from_token(query.page_token, int) or 0,
        page_size=query.page_size,
    )
    return Page(items=tuple(flag_of(row) for row in rows), next_page_token=token)


@router.get("/flags/{flag}", responses=listed(404))
def show_flag(parts: PartsOf, flag: Annotated[int, Path(ge=1, le=2**53)]) -> Flag:
    """Return one flag, open or cleared, with the windows, increments and sums that made it."""
    row = parts.reader().flag(flag)
    if row is None:
        raise not_found("flag", str(flag), "expected the number of one that was raised, open or cleared")
    return flag_of(row)
