"""`stats`: the collector in figures, the loss balance among them."""

from __future__ import annotations

import dataclasses

from fastapi import APIRouter

from evenfleet_collector.resources import Figures
from evenfleet_collector.routes.parts import Parts, PartsOf

router = APIRouter(tags=["stats"])


@router.get("/stats")
def show_stats(parts: PartsOf) -> Figures:
    """Return the collector in figures: measured = committed + refused + lost + in flight."""
    return figures_of(parts)


def figures_of(parts: Parts) -> Figures:
    """Return what the store counts and what the broker's door counts, together."""
    stats = parts.reader().stats()
    kept = {field.name: getattr(stats, field.name) for field in dataclasses.fields(stats)}
    return Figures(**kept, access=parts.access())
