"""`artifacts/{sha256}`: the files of releases, immutable, by the digest of their bytes."""

from __future__ import annotations

import re
from typing import Final

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse

from evenfleet_collector.artifacts import ArtifactFolder, ArtifactTooLargeError, Upload
from evenfleet_collector.routes.names import DigestName
from evenfleet_collector.routes.parts import PartsOf
from evenfleet_collector.routes.problems import listed, not_found

router = APIRouter(tags=["artifacts"])

# Threads are entered per piece, so the pieces are made large enough for that not to count.
_PIECE_BYTES: Final = 1 << 20
_MAX_RANGES: Final = 16
_RANGE: Final = re.compile(r"(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})")


@router.put(
    "/artifacts/{sha256}",
    status_code=201,
    responses={200: {"description": "It was here already"}, **listed(507)},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_artifact(parts: PartsOf, sha256: DigestName, request: Request) -> Response:
    """Keep a file; its bytes must have the digest that it is put under."""
    folder = parts.artifacts
    if await run_in_threadpool(folder.find, sha256) is not None:
        return Response(status_code=200)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > folder.max_bytes:
        raise ArtifactTooLargeError(
            f"an artifact has at most {folder.max_bytes:,} bytes, {int(declared):,} were announced"
        )
    with folder.receive(sha256) as upload:
        await _fill(upload, request)
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


async def _fill(upload: Upload, request: Request) -> None:
    piece = bytearray()
    async for chunk in request.stream():
        piece += chunk
        if len(piece) >= _PIECE_BYTES:
            await run_in_threadpool(upload.write, bytes(piece))
            piece.clear()
    await run_in_threadpool(upload.write, bytes(piece))


def _file(folder: ArtifactFolder, sha256: str, request: Request) -> Response:
    path = folder.find(sha256)
    if path is None:
        raise not_found("artifact", sha256, "expected the digest of a file that was pushed with a release")
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
