"""`devices/{id}/commands`: what a device is told to do once, and what it answered."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from evenfleet_collector.resources import NewCommand, Page
from evenfleet_collector.routes.devices import known_device
from evenfleet_collector.routes.names import DeviceName
from evenfleet_collector.routes.paging import PageQuery, from_token, to_token
from evenfleet_collector.routes.parts import PartsOf
from evenfleet_collector.routes.problems import listed, not_found
from evenfleet_collector.store import Reader
from evenfleet_collector.store.rows import CommandRow
from evenfleet_shared import settings
from evenfleet_shared.errors import DataError
from evenfleet_shared.messages import Command

router = APIRouter(tags=["devices"])


@router.get("/devices/{device}/commands", responses=listed(400, 404))
def list_commands(parts: PartsOf, device: DeviceName, query: Annotated[PageQuery, Query()]) -> Page[CommandRow]:
    """List what a device was told to do, in that order; the oldest that wait for nothing any more are forgotten."""
    reader = parts.reader()
    known_device(reader, device)
    rows = reader.commands(device, after=from_token(query.page_token, int) or 0, limit=query.page_size + 1)
    shown = tuple(rows[: query.page_size])
    return Page(items=shown, next_page_token=to_token(shown[-1].id) if len(rows) > len(shown) else None)


@router.post("/devices/{device}/commands", status_code=201, responses=listed(404, 409, 422))
async def order(parts: PartsOf, device: DeviceName, body: NewCommand) -> CommandRow:
    """Have a command sent to a device until it answers; ask for it by its `correlation_id` to see what became of it."""
    _check(device, body)
    await run_in_threadpool(lambda: known_device(parts.reader(), device))
    correlation_id = await parts.edits.order(device, body)
    return await run_in_threadpool(lambda: known_command(parts.reader(), device, correlation_id))


@router.get("/devices/{device}/commands/{correlation_id}", responses=listed(404))
def show_command(parts: PartsOf, device: DeviceName, correlation_id: str) -> CommandRow:
    """Return one command, and its device's answer once that has come."""
    return known_command(parts.reader(), device, correlation_id)


def known_command(reader: Reader, device: str, correlation_id: str) -> CommandRow:
    """Return a command.

    Raises:
        HTTPException: 404, where the device was never told it, or that is forgotten.
    """
    row = reader.command(device, correlation_id)
    if row is None:
        raise not_found("command", correlation_id[:80], f"expected one that {device} was told, of the last hundred")
    return row


def _check(device: str, body: NewCommand) -> None:
    """Hold a command to the bounds of the message that it will be."""
    command = {"device": device, "correlation_id": "new", **msgspec.to_builtins(body)}
    try:
        msgspec.convert(command, Command)
    except msgspec.ValidationError as error:
        raise DataError(f"body: {settings.explain(error, command)}; nothing was sent") from None
