"""Decide what a device should be doing, from what was assigned to it and what its class is held to.

Pure. There is one writer of `desired`, and this is what it writes: a new revision where anything has changed, nothing
where nothing has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from evenfleet_collector.tolerance import Policy
from evenfleet_shared.manifest import Format, Manifest
from evenfleet_shared.messages import Desired, DesiredVariant, Limit


def compose(
    device: str,
    formats: tuple[Format, ...],
    release: tuple[str, Manifest] | None,
    limits: Mapping[str, tuple[Limit, ...]],
    policy: Policy,
    artifacts_url: str,
    before: Desired | None,
) -> Desired | None:
    """Return what the device should be told, None where it has been told already.

    Args:
        device: Its id.
        formats: What its runtime can load: it is told to run nothing else.
        release: The digest and manifest of its release, None where none is assigned.
        limits: In force for its class, by variant.
        policy: Says how long windows are.
        artifacts_url: Where it fetches from.
        before: What it was told last.
    """
    variants = () if release is None else tuple(v.name for v in release[1].variants if v.format in formats)
    wanted = Desired(
        device=device,
        revision=before.revision if before else 1,
        release=release[0] if release else None,
        variants=tuple(DesiredVariant(name=name, limits=limits.get(name, ())) for name in variants),
        artifacts_url=artifacts_url,
        window_length_s=policy.window_length_s,
    )
    if wanted == before:
        return None
    return replace(wanted, revision=before.revision + 1) if before else wanted
