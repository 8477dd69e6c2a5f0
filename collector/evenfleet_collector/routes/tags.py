"""`tags`: names that stand for releases, and can be moved from one to another."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from evenfleet_collector.resources import NewTag, Page
from evenfleet_collector.routes.names import TagName
from evenfleet_collector.routes.paging import PageQuery, from_token, page_of
from evenfleet_collector.routes.parts import PartsOf
from evenfleet_collector.routes.problems import listed, not_found
from evenfleet_collector.routes.releases import known_release
from evenfleet_collector.store import Reader
from evenfleet_collector.store.rows import TagMoveRow, TagRow

router = APIRouter(tags=["tags"])


@router.get("/tags", responses=listed(400))
def list_tags(parts: PartsOf, query: Annotated[PageQuery, Query()]) -> Page[TagRow]:
    """List tags by name."""
    rows, token = page_of(
        parts.reader().tags(),
        key=lambda row: row.tag,
        after=from_token(query.page_token, str),
        page_size=query.page_size,
    )
    return Page(items=rows, next_page_token=token)


@router.get("/tags/{tag}", responses=listed(404))
def show_tag(parts: PartsOf, tag: TagName) -> TagRow:
    """Return one tag."""
    return known_tag(parts.reader(), tag)


@router.get("/tags/{tag}/moves", responses=listed(400))
def list_moves(parts: PartsOf, tag: TagName, query: Annotated[PageQuery, Query()]) -> Page[TagMoveRow]:
    """List what a tag stood for, from when it was first given; also of one that was taken away."""
    rows, token = page_of(
        parts.reader().tag_moves(tag),
        key=lambda row: row.id,
        after=from_token(query.page_token, int),
        page_size=query.page_size,
    )
    return Page(items=rows, next_page_token=token)


@router.put("/tags/{tag}", responses=listed(404))
async def put_tag(parts: PartsOf, tag: TagName, body: NewTag) -> TagRow:
    """Let a tag stand for a release, moved from another if need be. What was assigned by the tag stays as it is."""
    row = await run_in_threadpool(lambda: known_release(parts.reader(), body.release))
    await parts.edits.tag(tag, row.release)
    return await run_in_threadpool(lambda: known_tag(parts.reader(), tag))


@router.delete("/tags/{tag}", status_code=204, responses=listed(404))
async def remove_tag(parts: PartsOf, tag: TagName) -> None:
    """Take a tag away; the release stays."""
    await run_in_threadpool(lambda: known_tag(parts.reader(), tag))
    await parts.edits.untag(tag)


def known_tag(reader: Reader, tag: str) -> TagRow:
    """Return a tag.

    Raises:
        HTTPException: 404, where there is none.
    """
    row = reader.tag(tag)
    if row is None:
        raise not_found("tag", tag, "expected one that a release was given; 'evenfleet release list' shows them")
    return row
