"""An HTTP server of artifacts on loopback that can be told to misbehave, by path."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ArtifactServer:
    """Serves `files` by their sha256, with Range; `faults` take a request over once each, in order."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.faults: list[Callable[[BaseHTTPRequestHandler, bytes], None]] = []
        self.ranges = True
        # Set while a request waits: lets a test act in the middle of a download.
        self.waiting = threading.Event()
        self.go_on = threading.Event()

    def add(self, payload: bytes) -> str:
        digest = hashlib.sha256(payload).hexdigest()
        self.files[digest] = payload
        return digest

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


def answers(status: int) -> Callable[[BaseHTTPRequestHandler, bytes], None]:
    def fault(handler: BaseHTTPRequestHandler, payload: bytes) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return fault


def cuts_off(after: int) -> Callable[[BaseHTTPRequestHandler, bytes], None]:
    """Promise all of it, send some bytes and hang up."""

    def fault(handler: BaseHTTPRequestHandler, payload: bytes) -> None:
        _start(handler, 200, len(payload))
        handler.wfile.write(payload[:after])
        handler.close_connection = True

    return fault


def serves(other: bytes) -> Callable[[BaseHTTPRequestHandler, bytes], None]:
    def fault(handler: BaseHTTPRequestHandler, payload: bytes) -> None:
        _start(handler, 200, len(other))
        handler.wfile.write(other)

    return fault


def holds(server: ArtifactServer, after: int) -> Callable[[BaseHTTPRequestHandler, bytes], None]:
    """Send some bytes, then wait until the test says to go on."""

    def fault(handler: BaseHTTPRequestHandler, payload: bytes) -> None:
        _start(handler, 200, len(payload))
        handler.wfile.write(payload[:after])
        handler.wfile.flush()
        server.waiting.set()
        server.go_on.wait(timeout=30)

    return fault


@contextmanager
def artifact_server() -> Iterator[ArtifactServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            digest = self.path.rpartition("/")[2]
            state.asked.append((digest, self.headers.get("Range")))
            payload = state.files.get(digest)
            if state.faults:
                state.faults.pop(0)(self, payload or b"")
            elif payload is None:
                answers(404)(self, b"")
            else:
                self._serve(payload)

        def _serve(self, payload: bytes) -> None:
            wanted = self.headers.get("Range")
            if wanted and state.ranges:
                payload = payload[int(wanted.removeprefix("bytes=").rstrip("-")) :]
                _start(self, 206, len(payload))
            else:
                _start(self, 200, len(payload))
            self.wfile.write(payload)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state = ArtifactServer(server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


def _start(handler: BaseHTTPRequestHandler, status: int, length: int) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(length))
    handler.end_headers()
