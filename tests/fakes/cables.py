"""A cable to a server that can be cut: what is sent through it is counted, and at some byte it breaks; or it goes dead
without either end being told."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class Cable:
    """A TCP proxy on the loopback interface."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname or "", parts.port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._held: list[socket.socket] = []
        self.sent_bytes = 0
        # How many bytes go through before the cable breaks; taken off once it did.
        self.breaks_after: list[int] = []
        # Otherwise a connection that is made after the break goes through.
        self.breaks_for_good = False
        self._broken = False
        # Nothing comes through any more, and nobody hangs up; a connection that is made later is not carried either.
        self.dead = False
        # Called while both ends still believe in the cable.
        self.at_break: Callable[[], object] = lambda: None
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def run(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._broken and self.breaks_for_good:
                    client.close()
                    continue
                if self.dead:
                    self._held.append(client)
                    continue
                server = socket.create_connection(self._server)
                for each in (client, server):
                    each.settimeout(30)
                for source, target, up in ((client, server, True), (server, client, False)):
                    thread = threading.Thread(target=self._carry, args=(source, target, up))
                    thread.start()
                    self._threads.append(thread)

    def _carry(self, source: socket.socket, target: socket.socket, up: bool) -> None:
        try:
            while piece := source.recv(65536):
                if self.dead:
                    self._held += [source, target]
                    return
                if up and self.breaks_after and self.sent_bytes + len(piece) > self.breaks_after[0]:
                    piece = piece[: max(0, self.breaks_after.pop(0) - self.sent_bytes)]
                    target.sendall(piece)
                    self.sent_bytes += len(piece)
                    self._broken = True
                    self.at_break()
                    break
                target.sendall(piece)
                if up:
                    self.sent_bytes += len(piece)
        except OSError:
            pass
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def cable_to(url: str) -> Iterator[Cable]:
    cable = Cable(url)
    thread = threading.Thread(target=cable.run)
    thread.start()
    try:
        yield cable
    finally:
        cable.close()
        thread.join(timeout=10)
