"""The collector's whole HTTP side on a store in memory, and a server for it on the loopback interface."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from evenfleet_collector.artifacts import MAX_ARTIFACT_BYTES, ArtifactFolder
from evenfleet_collector.resources import Access
from evenfleet_collector.routes import HealthSnapshot, build_api
from evenfleet_collector.web.page import mount
from fakes.stores import NOW_S, FakeEdits, FakeStore, well


def fake_app(
    store: FakeStore,
    directory: Path,
    *,
    max_bytes: int = MAX_ARTIFACT_BYTES,
    health: Callable[[], HealthSnapshot] = well,
    access: Callable[[], Access] = lambda: Access(admitted=0, denied={}),
    stopping: Callable[[], bool] = lambda: False,
) -> FastAPI:
    artifacts = ArtifactFolder(directory, max_bytes=max_bytes)
    app = build_api(
        reader=lambda: store,
        edits=FakeEdits(store, artifacts),
        artifacts=artifacts,
        health=health,
        access=access,
        stopping=stopping,
        hosts={"testserver"},
    )

    def reader() -> FakeStore:
        current: FakeStore = app.state.parts.reader()
        return current

    mount(app, reader, clock=lambda: NOW_S + 90)
    return app


def stand_on(app: FastAPI, store: FakeStore, directory: Path, *, max_bytes: int = MAX_ARTIFACT_BYTES) -> None:
    """Give an application another store and folder; building one takes longer than most tests."""
    artifacts = ArtifactFolder(directory, max_bytes=max_bytes)
    app.state.parts = replace(
        app.state.parts, reader=lambda: store, edits=FakeEdits(store, artifacts), artifacts=artifacts
    )


@contextmanager
def served(store: FakeStore, directory: Path) -> Iterator[str]:
    """Serve on a free port; gives the URL."""
    stopping = threading.Event()
    app = fake_app(store, directory, stopping=stopping.is_set)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stopping.set()
            server.should_exit = True
            thread.join(timeout=10)
