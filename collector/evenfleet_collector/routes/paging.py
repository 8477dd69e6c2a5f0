"""Cursor paging: a page's last key, made opaque, is where the next page starts.

* A page never repeats or leaves out a row that was there throughout, whatever was added or removed meanwhile.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Annotated, Final, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

Row = TypeVar("Row")
Key = TypeVar("Key")

MAX_PAGE_SIZE: Final = 1000
MAX_ID: Final = 2**53


class PageQuery(BaseModel):
    """Query parameters that every list has; one that is not known is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    page_size: Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE)] = 100
    page_token: Annotated[str | None, Field(max_length=1000, description="next_page_token of the page before")] = None


def to_token(key: object) -> str:
    """Return a page token for a key of JSON values."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def from_token(token: str | None, key_type: type[Key]) -> Key | None:
    """Return the key in a page token, None where there is no token.

    Raises:
        HTTPException: 400, for a token that `to_token` did not give.

    >>> from_token(to_token(7), int), from_token(None, int)
    (7, None)
    """
    if token is None:
        return None
    try:
        key = msgspec.json.decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)), type=key_type)
    except (ValueError, msgspec.MsgspecError):
        key = None
    # Larger numbers are none of a row's, and SQLite takes none of them.
    if key is None or (isinstance(key, int) and not 0 <= key <= MAX_ID):
        raise HTTPException(
            400, f"page_token: expected a next_page_token of this list, found {token[:80]!r}; ask without for the start"
        )
    return key


def page_of(
    rows: Sequence[Row], *, key: Callable[[Row], Key], after: Key | None, page_size: int
) -> tuple[tuple[Row, ...], str | None]:
    """Return the page behind `after` of rows that are all in memory, and the token of the next.

    Raises:
        HTTPException: 400, where the row that the page before ended with is gone.

    >>> page_of("abc", key=str, after="a", page_size=1)[0]
    ('b',)
    """
    start = 0
    if after is not None:
        found = next((i for i, row in enumerate(rows) if key(row) == after), None)
        if found is None:
            raise HTTPException(400, f"page_token: the row that it stands for, {after!r}, is gone; ask without")
        start = found + 1
    shown = tuple(rows[start : start + page_size])
    return shown, to_token(key(shown[-1])) if start + len(shown) < len(rows) else None


def collect(
    fetch: Callable[[Key, int], Sequence[Row]],
    *,
    key: Callable[[Row], Key],
    keep: Callable[[Row], bool],
    after: Key,
    page_size: int,
) -> tuple[tuple[Row, ...], str | None]:
    """Read on until a page is full.

    Args:
        fetch: Returns up to so many rows behind a key, in rising order of it.
        key: A row's key.
        keep: Whether the row belongs to the answer.
        after: Where to start.
        page_size: Rows to return at most.

    Returns:
        The rows, and the token of the next page.

    >>> numbers = lambda after, limit: list(range(after + 1, 100))[:limit]
    >>> rows, token = collect(numbers, key=lambda n: n, keep=lambda n: n % 10 == 0, after=0, page_size=2)
    >>> rows, from_token(token, int)
    ((10, 20), 20)
    """
    kept: list[Row] = []
    limit = max(page_size + 1, 100)
    while True:
        rows = fetch(after, limit)
        for row in rows:
            if not keep(row):
                continue
            if len(kept) == page_size:
                return tuple(kept), to_token(key(kept[-1]))
            kept.append(row)
        if len(rows) < limit:
            return tuple(kept), None
        after = key(rows[-1])
