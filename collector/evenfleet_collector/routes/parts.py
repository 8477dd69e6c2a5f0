"""What the routes stand on, as interfaces: who answers, who changes, how the collector feels.

`app` gives the real ones; `tests/fakes/stores.py` has them in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Protocol

from fastapi import Depends, Request

from evenfleet_collector.artifacts import ArtifactFolder
from evenfleet_collector.resources import Access, NewCommand
from evenfleet_collector.store import Reader
from evenfleet_collector.tolerance import Policy
from evenfleet_shared.signature import Signature


class Edits(Protocol):
    """Hands changes over to the process that holds the writing connection; done when it returns."""

    async def enrol(self, device: str) -> str:
        """Enrol a device and return its token, which is not kept.

        Raises:
            RefusedError: It is enrolled already.
        """
        ...

    async def add_release(self, manifest: bytes) -> str:
        """Keep a release whose artifacts are all here, and return its digest; the same manifest again changes nothing.

        Raises:
            ReleaseError: The bytes are not a manifest.
            ArtifactError: An artifact of it is not here yet.
        """
        ...

    async def sign(self, signature: Signature) -> None:
        """Keep a signature of a release that is here, in place of an earlier one by the same key.

        Raises:
            RefusedError: The release has as many signatures by other keys as are kept.
        """
        ...

    async def tag(self, tag: str, release: str) -> None:
        """Let a tag stand for a release that is here, by its digest."""
        ...

    async def untag(self, tag: str) -> None:
        """Take a tag away, if it is there."""
        ...

    async def assign(self, device: str, release: str | None) -> None:
        """Assign a release, by its digest, to a device or to ``*``, every device not named.

        Raises:
            RefusedError: The device is not known.
        """
        ...

    async def set_policy(self, policy: Policy) -> None:
        """Put a policy in force, as the revision behind the one in force."""
        ...

    async def order(self, device: str, wanted: NewCommand) -> str:
        """Have a command sent to a device until it answers; returns what the answer will be found by.

        Raises:
            RefusedError: The device is not known, or as many commands as are kept wait for it.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSnapshot:
    """How the collector is.

    Attributes:
        lag_windows: How many windows are on disk and not judged yet.
        failing: What does not go on for now, and why.
        queue_problem: Why the broker's queue takes no message, as far as it was tried.
        queue_messages, queue_bytes, queue_max_bytes: What waits in the queue; None where the broker did not say.
    """

    broker_connected: bool
    lag_windows: int
    failing: Mapping[str, str] = field(default_factory=dict)
    queue_problem: str | None = None
    queue_messages: int | None = None
    queue_bytes: int | None = None
    queue_max_bytes: int | None = None


Health = Callable[[], HealthSnapshot]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything that a route may use."""

    reader: Callable[[], Reader]
    edits: Edits
    artifacts: ArtifactFolder
    health: Health
    access: Callable[[], Access]
    stopping: Callable[[], bool]


def parts_of(request: Request) -> Parts:
    """Return what `build_api` was given."""
    parts: Parts = request.app.state.parts
    return parts


PartsOf = Annotated[Parts, Depends(parts_of)]
