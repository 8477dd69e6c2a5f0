"""Serve the dashboard: `/` as a whole page, `/fragments/parity` as the part of it that changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, FastAPI, Query
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from evenfleet_collector import figures
from evenfleet_collector.resources import is_release_name
from evenfleet_collector.store import Reader
from evenfleet_collector.tolerance import SLEEP_S
from evenfleet_collector.web.matrix import MARKS, MEANINGS, arrange
from evenfleet_shared import __version__

MAX_FLAGS: Final = 100

_HERE: Final = Path(__file__).parent

# A tag, or four digits or more; what is neither is no release either.
ReleaseChoice = Annotated[
    str | None, Query(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="the latest, if not given")
]


def mount(app: FastAPI, reader: Callable[[], Reader], *, clock: Callable[[], float] = time.time) -> None:
    """Add the page to an application.

    Args:
        app: The API; the page's script follows its stream.
        reader: Called in the thread that answers a request.
        clock: Seconds since 1970.
    """
    templates = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals.update(figures=figures, marks=MARKS, meanings=MEANINGS, app_version=__version__)
    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

    @router.get("/")
    def page(release: ReleaseChoice = None) -> HTMLResponse:
        return HTMLResponse(templates.get_template("page.html").render(view(reader(), release, clock())))

    @router.get("/fragments/parity")
    def fragment(release: ReleaseChoice = None) -> HTMLResponse:
        return HTMLResponse(templates.get_template("live.html").render(view(reader(), release, clock())))

    app.include_router(router)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")


def view(reader: Reader, release: str | None, now_s: float) -> dict[str, Any]:
    """Return what the templates show.

    Raises:
        HTTPException: 404, no release is tagged `release`, and no single one starts so.
    """
    # Asked for first: whatever changes while the page is put together is told again by the stream.
    version = reader.last_version()
    releases = list(reader.releases())
    if release is None:
        chosen = next(iter(releases), None)
    else:
        chosen = reader.release(release) if is_release_name(release) else None
    if release is not None and chosen is None:
        raise HTTPException(404, f"no single release {release!r} here; / shows the latest")
    cells = list(reader.cells(release=chosen.release)) if chosen else []
    order = [variant.name for variant in chosen.manifest.variants] if chosen else []
    flags = list(reader.flags(limit=MAX_FLAGS))
    return {
        "version": version,
        "now_s": now_s,
        "releases": releases,
        "chosen": chosen,
        "is_latest": chosen is None or chosen.release == releases[0].release,
        "matrix": arrange(cells, order=order, policy=reader.policy(), asleep=reader.asleep(now_s - SLEEP_S)),
        "stats": reader.stats(),
        "flags": sorted(flags, key=lambda flag: flag.opened_s, reverse=True),
        "refused": sorted(
            (cell for cell in cells if cell.refusal is not None), key=lambda cell: cell.updated_s, reverse=True
        ),
    }
