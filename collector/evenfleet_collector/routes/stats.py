"""`stats`: the collector in figures, the loss balance among them."""

from __future__ import annotations

from fastapi import APIRouter

from evenfleet_collector.routes.parts import PartsOf
from evenfleet_collector.store.rows import Stats

router = APIRouter(tags=["stats"])


@router.get("/stats")
def show_stats(parts: PartsOf) -> Stats:
    """Return the collector in figures: measured = committed + refused + lost + in flight."""
    return parts.reader().stats()
