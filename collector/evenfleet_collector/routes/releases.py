"""`releases`: what was pushed. Its files are pushed first, as artifacts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from evenfleet_collector.resources import RELEASE_RULE, Page, is_release_name
from evenfleet_collector.routes.names import ReleaseName
from evenfleet_collector.routes.paging import PageQuery, from_token, page_of
from evenfleet_collector.routes.parts import PartsOf
from evenfleet_collector.routes.problems import listed, not_found
from evenfleet_collector.store import Reader
from evenfleet_collector.store.rows import ReleaseRow
from evenfleet_shared.errors import DataError

router = APIRouter(tags=["releases"])


class ReleaseQuery(PageQuery):
    """Filters of the list."""

    model: str | None = None


@router.get("/releases", responses=listed(400))
def list_releases(parts: PartsOf, query: Annotated[ReleaseQuery, Query()]) -> Page[ReleaseRow]:
    """List releases, the newest first."""
    rows, token = page_of(
        [row for row in parts.reader().releases() if query.model in {None, row.model}],
        key=lambda row: row.release,
        after=from_token(query.page_token, str),
        page_size=query.page_size,
    )
    return Page(items=rows, next_page_token=token)


@router.post(
    "/releases",
    status_code=201,
    responses=listed(422, 507),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Manifest"}}},
        }
    },
)
async def add_release(parts: PartsOf, request: Request) -> ReleaseRow:
    """Keep a release: the body is its manifest, byte by byte, since its digest is the release's name."""
    return await parts.edits.add_release(await request.body())


@router.get("/releases/{release}", responses=listed(404))
def show_release(parts: PartsOf, release: ReleaseName) -> ReleaseRow:
    """Return one release."""
    return known_release(parts.reader(), release)


def known_release(reader: Reader, release: str) -> ReleaseRow:
    """Return the release whose digest starts with `release`.

    Raises:
        DataError: So few digits may be another release's tomorrow.
        HTTPException: 404, where there is none or more than one.
    """
    if not is_release_name(release):
        raise DataError(f"release: expected {RELEASE_RULE}, found {release[:80]!r}; nothing was changed")
    row = reader.release(release)
    if row is None:
        raise not_found(
            "single release", release, "expected enough digits of a pushed one's digest to tell it from others"
        )
    return row
