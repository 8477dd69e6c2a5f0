"""`devices`: who was enrolled or heard of, and the verdict on each."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from evenfleet_collector.resources import Enrolment, NewDevice, Page
from evenfleet_collector.routes.names import DeviceName
from evenfleet_collector.routes.paging import PageQuery, collect, from_token
from evenfleet_collector.routes.parts import PartsOf
from evenfleet_collector.routes.problems import listed, not_found
from evenfleet_collector.store import Reader
from evenfleet_collector.store.rows import DeviceRow
from evenfleet_collector.tolerance import Verdict
from evenfleet_shared.errors import DataError
from evenfleet_shared.topics import DEVICE_ID_RULE, is_device_id

router = APIRouter(tags=["devices"])


class DeviceQuery(PageQuery):
    """Filters of the list."""

    verdict: Verdict | None = None
    device_class: str | None = None
    status: Literal["enrolled", "birth", "sleeping", "gone", "lost"] | None = None
    release: str | None = None


@router.get("/devices", responses=listed(400))
def list_devices(parts: PartsOf, query: Annotated[DeviceQuery, Query()]) -> Page[DeviceRow]:
    """List devices by id."""
    reader = parts.reader()
    wanted = query.model_dump(include={"verdict", "device_class", "status", "release"}, exclude_none=True)
    rows, token = collect(
        lambda after, limit: reader.devices(after=after, limit=limit),
        key=lambda row: row.device,
        keep=lambda row: all(getattr(row, field) == value for field, value in wanted.items()),
        after=from_token(query.page_token, str) or "",
        page_size=query.page_size,
    )
    return Page(items=rows, next_page_token=token)


@router.post("/devices", status_code=201, responses=listed(400, 409))
async def enrol_device(parts: PartsOf, body: NewDevice) -> Enrolment:
    """Enrol a device; its token is in this answer and nowhere else."""
    if not is_device_id(body.device):
        raise DataError(f"body device: expected {DEVICE_ID_RULE}, found {body.device[:80]!r}; nothing was enrolled")
    return Enrolment(device=body.device, token=await parts.edits.enrol(body.device))


@router.get("/devices/{device}", responses=listed(404))
def show_device(parts: PartsOf, device: DeviceName) -> DeviceRow:
    """Return one device."""
    return known_device(parts.reader(), device)


def known_device(reader: Reader, device: str) -> DeviceRow:
    """Return a device.

    Raises:
        HTTPException: 404.
    """
    row = reader.device(device)
    if row is None:
        raise not_found("device", device, "expected one that was enrolled or heard of")
    return row
