"""`artifacts/{sha256}`: the files of releases, immutable, by the digest of their bytes."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from evenfleet_collector.artifacts import ArtifactFolder, ArtifactTooLargeError, Upload
from evenfleet_collector.routes.names import DigestName
from evenfleet_collector.routes.parts import PartsOf
from evenfleet_collector.routes.problems import not_found

router = APIRouter(tags=["artifacts"])

# Threads are entered per piece, so the pieces are made large enough for that not to count.
_PIECE_BYTES: Final = 1 << 20


@router.put(
    "/artifacts/{sha256}",
    status_code=201,
    responses={200: {"description": "It was here already"}},
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


@router.get("/artifacts/{sha256}", response_class=FileResponse, responses={304: {}, 404: {}})
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
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return FileResponse(path, headers=headers, media_type="application/octet-stream")
