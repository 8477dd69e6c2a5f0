"""`releases`: what was pushed. Its files are pushed first, as artifacts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from evenfleet_collector.resources import RELEASE_RULE, Page, is_release_name
from evenfleet_collector.routes.names import KeyName, ReleaseName
from evenfleet_collector.routes.paging import PageQuery, from_token, page_of
from evenfleet_collector.routes.parts import PartsOf
from evenfleet_collector.routes.problems import listed, not_found
from evenfleet_collector.store import Reader
from evenfleet_collector.store.rows import ReleaseRow
from evenfleet_shared import signature as signatures
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
    digest = await parts.edits.add_release(await request.body())
    return await run_in_threadpool(lambda: known_release(parts.reader(), digest))


@router.get("/releases/{release}", responses=listed(404))
def show_release(parts: PartsOf, release: ReleaseName) -> ReleaseRow:
    """Return one release, with its signatures as they were pushed: nothing here has a key to check them with."""
    return known_release(parts.reader(), release)


@router.put(
    "/releases/{release}/signatures/{key}",
    responses=listed(404, 409, 422),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Signature"}}},
        }
    },
)
async def sign(parts: PartsOf, release: ReleaseName, key: KeyName, request: Request) -> ReleaseRow:
    """Keep a signature of a release: the body is its file, byte by byte."""
    row = await run_in_threadpool(lambda: known_release(parts.reader(), release))
    signature = signatures.decode(await request.body(), "the body")
    if (signature.release, signature.key) != (row.release, key):
        raise DataError(
            f"expected a signature of release {row.release[:12]}… by key {key[:12]}…, found one of "
            f"{signature.release[:12]}… by {signature.key[:12]}…; nothing was changed"
        )
    await parts.edits.sign(signature)
    return await run_in_threadpool(lambda: known_release(parts.reader(), row.release))


def known_release(reader: Reader, release: str) -> ReleaseRow:
    """Return the release that is called `release`, or whose digest starts so.

    Raises:
        DataError: So few digits may be another release's tomorrow.
        HTTPException: 404, where there is none or more than one.
    """
    if not is_release_name(release):
        raise DataError(f"release: expected {RELEASE_RULE}, found {release[:80]!r}; nothing was changed")
    row = reader.release(release)
    if row is None:
        raise not_found(
            "single release",
            release,
            "expected a tag, or enough digits of a pushed one's digest to tell it from others",
        )
    return row
