"""`parity`: one release on every device, cell by cell."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query

from evenfleet_collector.resources import Parity
from evenfleet_collector.routes.names import ReleaseName
from evenfleet_collector.routes.paging import PageQuery, from_token, page_of
from evenfleet_collector.routes.parts import PartsOf
from evenfleet_collector.routes.problems import listed
from evenfleet_collector.routes.releases import known_release
from evenfleet_collector.store import Reader
from evenfleet_collector.store.rows import ReleaseRow
from evenfleet_collector.tolerance import Verdict

router = APIRouter(tags=["parity"])

Sort = Literal[
    "device", "variant", "accuracy_ratio", "accuracy_delta", "p50_ms", "p95_ms", "peak_bytes", "windows", "updated_s",
    "-device", "-variant", "-accuracy_ratio", "-accuracy_delta", "-p50_ms", "-p95_ms", "-peak_bytes", "-windows",
    "-updated_s",
]  # fmt: skip

_FILTERS: Final = {"device", "device_class", "variant", "verdict", "phase", "noise_class"}


class ParityQuery(PageQuery):
    """Which release, which of its cells, in which order."""

    release: ReleaseName | None = None
    device: str | None = None
    device_class: str | None = None
    variant: str | None = None
    verdict: Verdict | None = None
    phase: Literal["burn-in", "calibrating", "judged", "refused"] | None = None
    noise_class: str | None = None
    sort: Sort = "device"


@router.get("/parity", responses=listed(400, 404))
def show_parity(parts: PartsOf, query: Annotated[ParityQuery, Query()]) -> Parity:
    """List a release's cells, the latest release's where none is named; `sort=-p95_ms` puts the slowest first."""
    reader = parts.reader()
    release = _chosen(reader, query.release)
    if release is None:
        return Parity(release=None, model=None, items=())
    wanted = query.model_dump(include=_FILTERS, exclude_none=True)
    cells = [
        cell
        for cell in reader.cells(release=release.release, device=query.device)
        if all(getattr(cell, field) == value for field, value in wanted.items())
    ]
    cells.sort(key=lambda cell: (cell.device, cell.variant))
    field = query.sort.removeprefix("-")
    known = sorted(
        (cell for cell in cells if getattr(cell, field) is not None),
        key=lambda cell: getattr(cell, field),
        reverse=query.sort.startswith("-"),
    )
    ordered = known + [cell for cell in cells if getattr(cell, field) is None]
    shown, token = page_of(
        ordered,
        key=lambda cell: (cell.device, cell.variant),
        after=from_token(query.page_token, tuple[str, str]),
        page_size=query.page_size,
    )
    return Parity(release=release.release, model=release.model, items=shown, next_page_token=token)


def _chosen(reader: Reader, digest: str | None) -> ReleaseRow | None:
    if digest is not None:
        return known_release(reader, digest)
    return next(iter(reader.releases()), None)
