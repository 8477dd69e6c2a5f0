"""Turn every error into `application/problem+json` (RFC 9457), at the one place where errors are answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from evenfleet_collector.artifacts import ArtifactTooLargeError, DiskFullError, OffsetError
from evenfleet_shared.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    EvenfleetError,
    MessageError,
    RefusedError,
    StoreError,
    UnreachableError,
)

MEDIA_TYPE: Final = "application/problem+json"

# The first that fits, so the particular before the general.
_STATUS: Final[tuple[tuple[type[EvenfleetError], int], ...]] = (
    (ArtifactTooLargeError, 413),
    (DiskFullError, 507),
    (OffsetError, 409),
    (RefusedError, 409),
    (MessageError, 400),
    (ConfigError, 422),
    (DataError, 422),
    (ArtifactError, 422),
    (UnreachableError, 503),
    (StoreError, 500),
)

_MAX_FOUND: Final = 120
# FastAPI's words for a body that its JSON decoder fails on in any way but one.
_UNREADABLE: Final = "There was an error parsing the body"
# What pydantic says of a body that is no object, each in the words of its Python type.
_NO_OBJECT: Final = frozenset({"dataclass_type", "model_attributes_type", "dict_type", "model_type"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong with a request."""

    what: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """RFC 9457: `detail` is for a person, `faults` name what to mend."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    faults: tuple[Fault, ...] = ()


def install(app: FastAPI) -> None:
    """Let `app` answer every error as a problem."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(EvenfleetError, _ours)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unforeseen)
    generated = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            describe(generated())
        return generated()

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's own pages have it


def listed(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what a route says of the problems that it may answer with, for the OpenAPI page."""
    return {status: {"description": HTTPStatus(status).phrase} for status in statuses}


def describe(schema: dict[str, Any]) -> None:
    """Make an OpenAPI schema tell of errors as they are: problems, and those that `Guard` answers with everywhere.

    FastAPI takes every error for one of its own validation.
    """
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for operations in schema["paths"].values():
        for method, operation in operations.items():
            everywhere = listed(421) if method == "get" else listed(403, 413, 421)
            responses = {str(status): said for status, said in everywhere.items()} | operation["responses"]
            for status, said in responses.items():
                if (int(status) >= 400 and "application/json" not in said.get("content", {})) or status == "422":
                    said["description"], said["content"] = HTTPStatus(int(status)).phrase, content
            operation["responses"] = dict(sorted(responses.items()))
    schemas = schema["components"]["schemas"]
    for stranger in ("HTTPValidationError", "ValidationError"):
        schemas.pop(stranger, None)
    problem = TypeAdapter(Problem).json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    schemas |= {**problem.pop("$defs"), "Problem": problem}


def answer(
    path: str,
    status: int,
    detail: str,
    *,
    faults: Sequence[Fault] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the response that tells of a problem with `path`."""
    problem = Problem(
        title=HTTPStatus(status).phrase, status=status, detail=detail, instance=path, faults=tuple(faults)
    )
    return Response(msgspec.json.encode(problem), status, headers, MEDIA_TYPE)


def not_found(what: str, name: str, known: str) -> HTTPException:
    """Return the error for something that is not there; `known` says where to look."""
    return HTTPException(404, f"no {what} {name!r} here; {known}")


def status_of(error: EvenfleetError) -> int:
    """Return the HTTP status of one of our errors.

    >>> status_of(RefusedError("no")), status_of(EvenfleetError("?"))
    (409, 500)
    """
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [_fault(found) for found in error.errors()]
    detail = "; ".join(f"{fault.what}: expected {fault.expected}, found {fault.found}" for fault in faults)
    return answer(request.url.path, 422, detail, faults=faults)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if detail == _UNREADABLE:
        detail = "body: expected JSON in UTF-8, nested a few levels at most, found something else; nothing was changed"
    if detail == HTTPStatus(error.status_code).phrase:  # Starlette's own, for a path or a method that no route has
        detail = f"{request.method} {request.url.path[:_MAX_FOUND]} is not answered here; /docs lists what is"
    return answer(request.url.path, error.status_code, detail, headers=error.headers)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, EvenfleetError)
    # The word that dead letters are counted by says nothing to whoever asks over HTTP.
    detail = error.detail if isinstance(error, MessageError) else str(error)
    return answer(request.url.path, status_of(error), detail)


async def _gone(request: Request, _: Exception) -> Response:
    # Nobody reads this. Without it, every upload that is broken off would be a traceback in the log.
    return answer(
        request.url.path, 400, "the client went away before its request had come; only what came of an upload is kept"
    )


async def _unforeseen(request: Request, _: Exception) -> Response:
    # The server logs the traceback; what is inside is not told to the network. `Guard` is not around this answer.
    return answer(
        request.url.path,
        500,
        "the collector failed at this; its log says at what",
        headers={"X-Content-Type-Options": "nosniff"},
    )


def _fault(found: Mapping[str, Any]) -> Fault:
    where, *path = [str(part) for part in found["loc"]]
    kind = str(found["type"])
    what = f"{where} {'.'.join(path)}".strip()
    if kind == "json_invalid":
        return Fault(what=where, expected="JSON", found=f"{found['ctx']['error']} at character {path[0]}")
    if kind in _NO_OBJECT:
        return Fault(what=what, expected="a JSON object, sent as application/json", found=_short(found.get("input")))
    if kind == "unexpected_keyword_argument":
        return Fault(what=what, expected="a known field (see /docs)", found=_short(path[-1]))
    if kind == "string_pattern_mismatch":
        return Fault(what=what, expected=f"a text like {found['ctx']['pattern']}", found=_short(found.get("input")))
    if kind == "extra_forbidden":
        return Fault(what=what, expected="a known parameter (see /docs)", found=_short(path[-1]))
    if kind == "missing":
        return Fault(what=what, expected="a value", found="none")
    expected = str(found["msg"])
    for opening in ("Input should be ", "Value error, "):
        expected = expected.removeprefix(opening)
    value = found.get("input")
    return Fault(what=what, expected=expected, found=_short(value))


def _short(value: object) -> str:
    text = repr(value.decode("utf-8", "replace") if isinstance(value, bytes) else value)
    return text if len(text) <= _MAX_FOUND else f"{text[:_MAX_FOUND]}…"
