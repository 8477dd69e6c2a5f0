"""Decide what a device should be doing, from what was assigned to it and what its class is held to.

Pure. There is one writer of `desired`, and this is what it writes: a new revision where anything has changed, nothing
where nothing has.

* A revision is above every one that the device has had, also from a collector whose database is gone: it would ignore
  a lower one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from evenfleet_collector.tolerance import Policy
from evenfleet_shared.manifest import Format, Manifest
from evenfleet_shared.messages import Desired, DesiredVariant, Limit, ReleaseSignature
from evenfleet_shared.signature import Signature

# Nobody gets there by counting. A device that says so may not bring us to where no message can count on.
ABSURD_REVISION: Final = 2**52
# As many as a message holds.
MAX_SIGNATURES: Final = 8


def is_to_run(desired: Desired, release: str, variant: str) -> bool:
    """Return whether a device that was told so is to run a variant of a release."""
    return desired.release == release and any(wanted.name == variant for wanted in desired.variants)


def compose(
    device: str,
    formats: tuple[Format, ...],
    release: tuple[str, Manifest] | None,
    limits: Mapping[str, tuple[Limit, ...]],
    policy: Policy,
    artifacts_url: str,
    before: Desired | None,
    known_revision: int = 0,
    signatures: Sequence[Signature] = (),
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
        known_revision: The revision that the device itself said it had at its birth.
        signatures: Of the release, by whatever keys: the device has those that it trusts.
    """
    told = before.revision if before else 0
    known = known_revision if known_revision < ABSURD_REVISION else 0
    variants = () if release is None else tuple(v.name for v in release[1].variants if v.format in formats)
    wanted = Desired(
        device=device,
        revision=max(told, 1),
        release=release[0] if release else None,
        variants=tuple(DesiredVariant(name=name, limits=limits.get(name, ())) for name in variants),
        artifacts_url=artifacts_url,
        window_length_s=policy.window_length_s,
        signatures=_told(signatures) if release else (),
    )
    if wanted == before and told >= known:
        return None
    return replace(wanted, revision=max(told, known) + 1)


def _told(signatures: Sequence[Signature]) -> tuple[ReleaseSignature, ...]:
    """Return signatures as a device is told them: by key, so that their order is never news."""
    ordered = sorted(signatures, key=lambda signature: signature.key)[:MAX_SIGNATURES]
    return tuple(ReleaseSignature(key=signature.key, signature=signature.signature) for signature in ordered)
