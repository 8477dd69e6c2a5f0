"""The HTTP API: parse, call, return; one resource per file.

Decides what is asked and how the answer looks. Leaves every answer to a `Reader`, every change to `Edits`, the
artifact files to `ArtifactFolder`, and the page for people to `web`.

* A route never waits for a writer's lock: reads run in a thread, on that thread's own reader.
* Every error is `application/problem+json` (RFC 9457) and says what, what was expected and what was found.
* A query parameter that is not known is refused: a misspelt filter must not answer with the whole fleet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline

from evenfleet_collector.artifacts import ArtifactFolder
from evenfleet_collector.resources import API, Access
from evenfleet_collector.routes import (
    apps,
    artifacts,
    assignments,
    commands,
    devices,
    events,
    flags,
    health,
    metrics,
    parity,
    policies,
    problems,
    releases,
    stats,
    stream,
    tags,
    windows,
)
from evenfleet_collector.routes.guard import Guard
from evenfleet_collector.routes.parts import Edits, Health, HealthSnapshot, Parts
from evenfleet_collector.store import Reader
from evenfleet_shared import __version__

__all__ = ["Edits", "Health", "HealthSnapshot", "build_api"]

RESOURCES = tuple(
    module.router
    for module in (
        *(
            devices,
            windows,
            apps,
            events,
            commands,
            releases,
            tags,
            artifacts,
            parity,
            flags,
            assignments,
            policies,
            stats,
        ),
        stream,
    )
)
BESIDE = (health.router, metrics.router)


def build_api(
    *,
    reader: Callable[[], Reader],
    edits: Edits,
    artifacts: ArtifactFolder,
    health: Health,
    access: Callable[[], Access] = lambda: Access(admitted=0, denied={}),
    stopping: Callable[[], bool] = lambda: False,
    hosts: Collection[str] = (),
) -> FastAPI:
    """Return the application: every resource under ``/api/v1``, and ``/livez``, ``/readyz`` and ``/metrics`` beside it.

    Args:
        reader: Called in the thread that answers a request; what it returns is used there alone.
        edits: Performs every change.
        artifacts: Where artifact files lie.
        health: Asked at every ``/readyz``, in a thread.
        access: How many connections the broker let in and refused.
        stopping: Whether the server is about to end; open streams are closed then.
        hosts: The names in lower case that it is reached by, besides localhost and any address.
    """
    # Its pages for people come with their scripts: a collector often has no internet.
    app = FastAPIOffline(
        title="Evenfleet",
        version=__version__,
        description="What every device of the fleet measured, and what to think of it.",
    )
    app.state.parts = Parts(
        reader=reader, edits=edits, artifacts=artifacts, health=health, access=access, stopping=stopping
    )
    api = APIRouter(prefix=API)
    for resource in RESOURCES:
        api.include_router(resource)
    for router in (api, *BESIDE):
        app.include_router(router)
    problems.install(app)
    app.add_middleware(Guard, hosts=hosts)
    return app
