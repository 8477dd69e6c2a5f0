"""Keep each device's `desired` row in step with what is assigned and what its class is held to.

Decides nothing: `desired` does. Leaves the sending to `outgoing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evenfleet_collector import desired, shown
from evenfleet_collector.containment import Containment
from evenfleet_collector.store import SteerRows, Writer
from evenfleet_collector.store.rows import SteeredDevice
from evenfleet_collector.tolerance import Policy
from evenfleet_shared.manifest import Manifest
from evenfleet_shared.messages import Desired
from evenfleet_shared.signature import Signature


@dataclass(frozen=True, slots=True)
class _Known:
    """What the collector has of an assigned release; no manifest where it was never pushed."""

    release: str
    manifest: Manifest | None
    signatures: Sequence[Signature]


class Steer:
    """The loop behind `judge`."""

    def __init__(self, store: Writer, artifacts_url: str) -> None:
        self._store = store
        self._artifacts_url = artifacts_url
        self._contained = Containment("steering-failed")

    def step(self, now_s: float) -> int:
        """Write what devices should be told anew; return to how many.

        Args:
            now_s: Seconds since 1970, by the collector's clock.
        """
        with self._store.transaction() as tx:
            assigned = tx.assignments()
            policy = tx.policy()
            known: dict[str, _Known] = {}
            changed = 0
            for device in tx.steerable():
                with self._contained.part(tx, f"steering {device.device}"):
                    release = assigned.get(device.device, assigned.get("*"))
                    if release is not None and release not in known:
                        known[release] = _Known(release, tx.manifest(release), tx.signatures(release))
                    changed += self._steer(tx, device, known[release] if release else None, policy, now_s)
        return changed

    def _steer(
        self, tx: SteerRows, device: SteeredDevice, assigned: _Known | None, policy: Policy, now_s: float
    ) -> bool:
        before = tx.desired(device.device)
        told = (assigned.release, assigned.manifest) if assigned and assigned.manifest else None
        wanted = desired.compose(
            device.device,
            device.formats,
            told,
            tx.limits(told[0], device.device_class) if told else {},
            policy,
            self._artifacts_url,
            before,
            device.desired_revision,
            assigned.signatures if assigned else (),
        )
        if wanted is None:
            return False
        tx.put_desired(wanted)
        _expect(tx, wanted, before, device.device_class, now_s)
        return True


def _expect(tx: SteerRows, told: Desired, before: Desired | None, device_class: str, now_s: float) -> None:
    """Show what a device is newly to run, so that what never comes is noticed as silence, and not before its time."""
    for wanted in told.variants:
        if told.release is None or (before and desired.is_to_run(before, told.release, wanted.name)):
            continue
        if tx.has_row(told.device, told.release, wanted.name):
            tx.hear_cell(told.device, told.release, wanted.name, now_s)
        else:
            reason = "told to run it, nothing measured yet"
            tx.put_row(shown.waiting(told.device, device_class, told.release, wanted.name, reason, now_s))
