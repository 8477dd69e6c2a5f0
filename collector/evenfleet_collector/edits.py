"""Perform the changes that people ask for over HTTP, on the thread of the one writing connection."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Final, TypeVar

from evenfleet_collector import access
from evenfleet_collector.artifacts import ArtifactFolder
from evenfleet_collector.cell import METRICS
from evenfleet_collector.desired import MAX_SIGNATURES
from evenfleet_collector.resources import EVERY_DEVICE, NewCommand
from evenfleet_collector.store import EditRows, Writer
from evenfleet_collector.store.rows import CommandRow
from evenfleet_collector.tolerance import Policy, with_room_for
from evenfleet_shared import manifest as manifests
from evenfleet_shared.errors import ArtifactError, RefusedError
from evenfleet_shared.signature import Signature

T = TypeVar("T")

# A device remembers 64 at most, and a row is kept for each.
MAX_WAITING: Final = 32


class StoreEdits:
    """`routes.Edits` on a store."""

    def __init__(self, store: Writer, thread: Executor, artifacts: ArtifactFolder, changed: Callable[[], None]) -> None:
        """Prepare.

        Args:
            store: The writing connection.
            thread: The one that may use it.
            artifacts: Where artifact files lie.
            changed: Called after a change that devices should hear of.
        """
        self._store = store
        self._thread = thread
        self._artifacts = artifacts
        self._changed = changed

    async def enrol(self, device: str) -> str:
        token = access.new_token()

        def change(tx: EditRows) -> bool:
            return tx.put_credential(device, access.hash_token(token), time.time())

        if not await self._write(change):
            raise RefusedError(f"device {device} is enrolled already; its token was shown once and is not kept")
        return token

    async def add_release(self, manifest: bytes) -> str:
        described = manifests.decode(manifest, "the body")
        missing = await asyncio.to_thread(self._artifacts.missing, described.files)
        if missing:
            raise ArtifactError(
                f"{len(missing)} of {len(described.files)} artifacts are not here yet, the first is {missing[0].file} "
                f"({missing[0].sha256[:12]}…); upload them before the manifest"
            )
        # Devices fetch the manifest like every other artifact.
        digest = await asyncio.to_thread(self._artifacts.add, manifest)
        now_s = time.time()
        await self._write(lambda tx: tx.put_release(digest, manifest, described.model, now_s))
        return digest

    async def sign(self, signature: Signature) -> None:
        def change(tx: EditRows) -> None:
            # HTTP has no accounts: whoever reaches it may add one. Devices are told all of them.
            keys = tx.signed_by(signature.release)
            if signature.key not in keys and len(keys) >= MAX_SIGNATURES:
                raise RefusedError(
                    f"release {signature.release[:12]} has signatures by {len(keys)} keys already, and no more are kept; "
                    "nothing was changed"
                )
            tx.put_signature(signature, time.time())

        await self._write(change)
        self._changed()

    async def tag(self, tag: str, release: str) -> None:
        await self._write(lambda tx: tx.put_tag(tag, release, time.time()))

    async def untag(self, tag: str) -> None:
        await self._write(lambda tx: tx.remove_tag(tag, time.time()))

    async def assign(self, device: str, release: str | None) -> None:
        def change(tx: EditRows) -> None:
            if device != EVERY_DEVICE and not tx.knows_device(device):
                raise RefusedError(f"device {device} is not known; enrol it first")
            tx.put_assignment(device, release, time.time())

        await self._write(change)
        self._changed()

    async def set_policy(self, policy: Policy) -> None:
        def change(tx: EditRows) -> None:
            # Whoever sets a policy need not know how many streams share its budget.
            roomier = with_room_for(policy, tx.cell_count() * len(METRICS))
            tx.put_policy(replace(roomier, revision=tx.policy().revision + 1), time.time())

        await self._write(change)
        self._changed()

    async def order(self, device: str, wanted: NewCommand) -> str:
        correlation_id = uuid.uuid4().hex

        def change(tx: EditRows) -> None:
            if not tx.knows_device(device):
                raise RefusedError(f"device {device} is not known; enrol it first")
            waiting = tx.commands_waiting(device)
            if waiting >= MAX_WAITING:
                raise RefusedError(
                    f"{waiting} commands wait for {device} already, and no more are kept; try again when it has answered, "
                    "or when their time is over"
                )
            now_s = time.time()
            tx.add_command(
                CommandRow(
                    id=0,
                    device=device,
                    correlation_id=correlation_id,
                    command=wanted.command,
                    variant=wanted.variant,
                    ttl_s=wanted.ttl_s,
                    sustained_s=wanted.sustained_s,
                    offline_s=wanted.offline_s,
                    asked_s=now_s,
                    offered_s=now_s,
                )
            )

        await self._write(change)
        self._changed()
        return correlation_id

    async def _write(self, change: Callable[[EditRows], T]) -> T:
        def run() -> T:
            with self._store.transaction() as tx:
                return change(tx)

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)
