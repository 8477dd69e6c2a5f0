"""Keep each device's `desired` row in step with what is assigned and what its class is held to.

Decides nothing: `desired` does. Leaves the sending to `outgoing`.
"""

from __future__ import annotations

from evenfleet_collector import desired
from evenfleet_collector.store import Writer
from evenfleet_shared.manifest import Manifest


class Steer:
    """The loop behind `judge`."""

    def __init__(self, store: Writer, artifacts_url: str) -> None:
        self._store = store
        self._artifacts_url = artifacts_url

    def step(self) -> int:
        """Write what devices should be told anew; return to how many."""
        with self._store.transaction() as tx:
            assigned = tx.assignments()
            policy = tx.policy()
            manifests: dict[str, Manifest | None] = {}
            changed = 0
            for device in tx.steerable():
                release = assigned.get(device.device, assigned.get("*"))
                if release is not None and release not in manifests:
                    manifests[release] = tx.manifest(release)
                manifest = manifests.get(release) if release else None
                wanted = desired.compose(
                    device.device,
                    device.formats,
                    (release, manifest) if release and manifest else None,
                    tx.limits(release, device.device_class) if release else {},
                    policy,
                    self._artifacts_url,
                    tx.desired(device.device),
                    device.desired_revision,
                )
                if wanted is not None:
                    tx.put_desired(wanted)
                    changed += 1
        return changed
