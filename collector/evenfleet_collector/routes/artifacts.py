"""`artifacts/{sha256}`: the files of releases, immutable, by the digest of their bytes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Final

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse

from evenfleet_collector.artifacts import ArtifactFolder, ArtifactTooLargeError, Upload
from evenfleet_collector.routes.names import DigestName
from evenfleet_collector.routes.parts import PartsOf
from evenfleet_collector.routes.problems import listed, not_found

router = APIRouter(tags=["artifacts"])

# Threads are entered per piece, so the pieces are made large enough for that not to count.
_PIECE_BYTES: Final = 1 << 20
_MAX_RANGES: Final = 16
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_RANGE: Final = re.compile(r"(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})")


@router.put(
    "/artifacts/{sha256}",
    status_code=201,
    responses={200: {"description": "It was here already"}, **listed(400, 409, 507)},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_artifact(parts: PartsOf, sha256: DigestName, request: Request) -> Response:
    """Keep a file; its bytes must have the digest that it is put under.

    What came of an upload that was broken off is kept for a day. HEAD tells its size as `Upload-Offset`, and a PUT with
    `Content-Range: bytes OFFSET-LAST/SIZE` goes on there; at any other offset the answer is 409.
    """
    folder = parts.artifacts
    if await run_in_threadpool(folder.find, sha256) is not None:
        return Response(status_code=200)
    offset, announced = _place(request)
    if announced > folder.max_bytes:
        raise ArtifactTooLargeError(f"an artifact has at most {folder.max_bytes:,} bytes, {announced:,} were announced")
    with folder.receive(sha256, offset) as upload:
        await _fill(upload, request, folder.max_idle_s)
        await run_in_threadpool(upload.commit)
    return Response(status_code=201)


@router.get("/artifacts/{sha256}", response_class=FileResponse, responses=listed(206, 304, 404, 416))
def get_artifact(parts: PartsOf, sha256: DigestName, request: Request) -> Response:
    """Return a file, or the `Range` of it that was asked for."""
    return _file(parts.artifacts, sha256, request)


@router.head("/artifacts/{sha256}", include_in_schema=False)
def head_artifact(parts: PartsOf, sha256: DigestName, request: Request) -> Response:
    """Return what is known of a file."""
    return _file(parts.artifacts, sha256, request)


def _place(request: Request) -> tuple[int, int]:
    """Return where the body begins in the artifact, and the artifact's size as far as it was announced.

    Raises:
        HTTPException: 400, where it is a part, but not one that reaches to the end.
    """
    asked = request.headers.get("content-range")
    declared = request.headers.get("content-length", "")
    length = int(declared) if declared.isdecimal() else 0
    if asked is None:
        return 0, length
    found = _CONTENT_RANGE.fullmatch(asked)
    first, last, size = map(int, found.groups()) if found else (0, 0, 0)
    if found is None or not first <= last == size - 1 or (length and length != size - first):
        raise HTTPException(
            400,
            "Content-Range: expected 'bytes OFFSET-LAST/SIZE' that reaches to the end, as long as the body, found "
            f"{asked[:80]!r}; nothing was changed",
        )
    return first, size


async def _fill(upload: Upload, request: Request, max_idle_s: float) -> None:
    piece = bytearray()
    chunks = request.stream()
    try:
        # A connection that broke without a word would be waited for until the end of days, and what came be out of reach.
        while chunk := await asyncio.wait_for(_next(chunks), max_idle_s):
            piece += chunk
            if len(piece) >= _PIECE_BYTES:
                await run_in_threadpool(upload.write, bytes(piece))
                piece.clear()
    except asyncio.TimeoutError:
        await run_in_threadpool(upload.write, bytes(piece))
        raise ClientDisconnect from None
    except ClientDisconnect:
        await run_in_threadpool(upload.write, bytes(piece))
        raise
    await run_in_threadpool(upload.write, bytes(piece))


async def _next(chunks: AsyncIterator[bytes]) -> bytes:
    """Return the next bytes that came, none at the end."""
    async for chunk in chunks:
        if chunk:
            return chunk
    return b""


def _file(folder: ArtifactFolder, sha256: str, request: Request) -> Response:
    path = folder.find(sha256)
    if path is None:
        error = not_found("artifact", sha256, "expected the digest of a file that was pushed with a release")
        error.headers = {"Upload-Offset": str(folder.received(sha256)), "Cache-Control": "no-store"}
        raise error
    # The digest is the strongest tag there is, and the same bytes never change.
    headers = {"ETag": f'"{sha256}"', "Cache-Control": "public, max-age=31536000, immutable"}
    known = request.headers.get("if-none-match", "")
    if headers["ETag"] in known or known.strip() == "*":
        return Response(status_code=304, headers=headers)
    size_bytes = path.stat().st_size
    # Without the right `If-Range` the whole file is the answer, whatever part is asked for.
    asked = request.headers.get("range") if request.headers.get("if-range") in {None, headers["ETag"]} else None
    kept = None if asked is None else satisfiable(asked, size_bytes)
    if kept == "":
        raise HTTPException(
            416,
            f"Range: expected a part of {size_bytes:,} bytes, found {(asked or '')[:80]!r}; nothing of it is there",
            {"Content-Range": f"bytes */{size_bytes}"},
        )
    if asked is not None:
        others = [(name, value) for name, value in request.scope["headers"] if name != b"range"]
        request.scope["headers"] = others if kept is None else [*others, (b"range", kept.encode("ascii"))]
    return FileResponse(path, headers=headers, media_type="application/octet-stream")


def satisfiable(asked: str, size_bytes: int) -> str | None:
    """Return what a ``Range`` header asks for that is there.

    Args:
        asked: The header.
        size_bytes: The file's size.

    Returns:
        The header without the parts that lie beyond the end, empty where all do; None where the header is to be
        ignored, being none of bytes, malformed, or of very many parts (RFC 9110, 14.2).

    >>> [satisfiable(asked, 100) for asked in ("bytes=0-9", "bytes=90-", "bytes=-5", "bytes=0-1, 200-300")]
    ['bytes=0-9', 'bytes=90-', 'bytes=-5', 'bytes=0-1']
    >>> [satisfiable(asked, 100) for asked in ("bytes=100-", "bytes=-0", "bytes=5-2", "items=0-1", "bytes=", "bytes=-")]
    ['', '', None, None, None, None]
    """
    unit, _, text = asked.partition("=")
    parts = [part.strip() for part in text.split(",")]
    if unit.strip().lower() != "bytes" or len(parts) > _MAX_RANGES:
        return None
    kept = []
    for part in parts:
        found = _RANGE.fullmatch(part)
        if found is None or (not found["first"] and not found["last"]):
            return None
        first, last = (int(number) if number else None for number in found.groups())
        if first is not None and last is not None and last < first:
            return None
        if (first is None and last) or (first is not None and first < size_bytes):
            kept.append(part)
    return f"bytes={', '.join(kept)}" if kept else ""
