"""A device's real link, opened towards whatever listens, and what a test waits for on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from evenfleet_agent.link import LinkEvent
from evenfleet_agent.link.mqtt import MqttLink
from evenfleet_agent.link.purse import Purse

WAIT_S = 20.0
DEVICE = "press-01"

Event = TypeVar("Event", bound=LinkEvent)


@dataclass
class Ends:
    """A link, and the wake-ups that it asked for."""

    link: MqttLink
    woken: threading.Event
    seen: list[LinkEvent] = field(default_factory=list)
    _kept: list[LinkEvent] = field(default_factory=list)

    def until(self, kind: type[Event], timeout_s: float = WAIT_S) -> Event:
        """Return the next event of a kind; those before it are passed over."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._kept += self.link.events()
            while self._kept:
                event = self._kept.pop(0)
                self.seen.append(event)
                if isinstance(event, kind):
                    return event
            assert self.woken.wait(max(0.0, deadline_s - time.monotonic())), f"no {kind.__name__}"
            self.woken.clear()

    def until_taken(self, kind: str, payload: bytes) -> None:
        """Publish as soon as there is room."""
        deadline_s = time.monotonic() + WAIT_S
        while not self.link.publish(kind, payload):
            assert self.woken.wait(max(0.0, deadline_s - time.monotonic())), "no room"
            self.woken.clear()


@contextmanager
def link_to(address: tuple[str, int], *, directory: Path | None = None, **changes: Any) -> Iterator[Ends]:
    """Open a link of the device, and close it at the end."""
    woken = threading.Event()
    budget_bytes = changes.pop("budget_bytes", None)
    path = (directory or Path("/nonexistent")) / "traffic.json"
    settings: dict[str, Any] = {
        "username": DEVICE,
        "password": lambda: None,
        "keepalive_s": 60,
        "new_session": lambda: "abcdef01",
        "will": lambda session: b"will of " + session.encode(),
        "sleeping": lambda session: b"sleep of " + session.encode(),
        "wake": woken.set,
        # The pauses are as long as they get, unless a test is in a hurry.
        "uniform": lambda: 0.05,
        "purse": Purse(budget_bytes, path, "boot", time.monotonic()),
        **changes,
    }
    link = MqttLink(DEVICE, address, **settings)
    link.open()
    try:
        yield Ends(link, woken)
    finally:
        link.close(b"farewell")


Opener = Callable[..., Ends]
