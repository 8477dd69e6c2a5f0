"""`/livez` and `/readyz`: whether to restart the collector, and whether to send it work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fastapi import APIRouter, Response

from evenfleet_collector.routes.parts import HealthSnapshot, PartsOf
from evenfleet_shared.messages import MAX_MESSAGE_BYTES

router = APIRouter(tags=["health"])

MAX_LAG_WINDOWS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Ready, or why not."""

    ready: bool
    reasons: tuple[str, ...]
    lag_windows: int
    queue_messages: int | None
    queue_bytes: int | None
    queue_max_bytes: int | None


@router.get("/livez")
async def live() -> dict[str, bool]:
    """Answer at all."""
    return {"live": True}


@router.get("/readyz", responses={503: {"model": Readiness}})
def ready(parts: PartsOf, response: Response) -> Readiness:
    """Say whether measurements are taken and judged, and if not, why."""
    snapshot = parts.health()
    reasons = reasons_against(snapshot)
    response.status_code = 503 if reasons else 200
    return Readiness(
        ready=not reasons,
        reasons=reasons,
        lag_windows=snapshot.lag_windows,
        queue_messages=snapshot.queue_messages,
        queue_bytes=snapshot.queue_bytes,
        queue_max_bytes=snapshot.queue_max_bytes,
    )


def reasons_against(snapshot: HealthSnapshot) -> tuple[str, ...]:
    """Return why the collector is not ready; nothing if it is.

    >>> reasons_against(HealthSnapshot(broker_connected=False, lag_windows=0))
    ('not connected to the broker: no measurement arrives',)
    """
    reasons = []
    if not snapshot.broker_connected:
        reasons.append("not connected to the broker: no measurement arrives")
    if snapshot.queue_problem is not None:
        reasons.append(f"{snapshot.queue_problem}: devices keep what they measure")
    if (
        snapshot.queue_bytes is not None
        and snapshot.queue_max_bytes is not None
        and snapshot.queue_bytes + MAX_MESSAGE_BYTES > snapshot.queue_max_bytes
    ):
        reasons.append(
            f"the broker's queue is full, {snapshot.queue_bytes:,} of {snapshot.queue_max_bytes:,} bytes: "
            "new messages are refused, devices keep what they measure"
        )
    reasons += [f"{loop} pauses: {why}" for loop, why in sorted(snapshot.failing.items())]
    if snapshot.lag_windows > MAX_LAG_WINDOWS:
        reasons.append(
            f"{snapshot.lag_windows:,} windows wait to be judged, expected at most {MAX_LAG_WINDOWS:,}: verdicts are late"
        )
    return tuple(reasons)
