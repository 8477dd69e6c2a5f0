"""A collector's store in memory, for what is read over HTTP: rows are put in, `Reader` hands them out."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evenfleet_collector.artifacts import ArtifactFolder
from evenfleet_collector.resources import NewCommand
from evenfleet_collector.routes import HealthSnapshot
from evenfleet_collector.store.rows import (
    AppWindowRow,
    Balance,
    CellRow,
    CommandRow,
    DeadLetterRow,
    DeviceRow,
    EventRow,
    FlagRow,
    LossRow,
    ReleaseRow,
    Stats,
    SummaryRow,
    TagMoveRow,
    TagRow,
    WindowRow,
)
from evenfleet_collector.tolerance import Policy
from evenfleet_shared import manifest as manifests
from evenfleet_shared.errors import ArtifactError, RefusedError
from evenfleet_shared.manifest import FileRef, Golden, Manifest, ReferenceResult, TensorSpec, Variant
from evenfleet_shared.messages import Agreement, Incarnation, RunContext
from evenfleet_shared.signature import Signature

NOW_S = 1_700_000_000.0


class FakeStore:
    """What the store's tables hold, as plain lists; `put_cell` gives versions as the real one does."""

    def __init__(self) -> None:
        self.device_rows: dict[str, DeviceRow] = {}
        self.window_rows: list[WindowRow] = []
        self.app_window_rows: list[AppWindowRow] = []
        self.cell_rows: dict[tuple[str, str, str], CellRow] = {}
        self.flag_rows: list[FlagRow] = []
        self.release_rows: list[ReleaseRow] = []
        self.event_rows: list[EventRow] = []
        self.command_rows: list[CommandRow] = []
        # What a device answers at once: state and reply of a command's row.
        self.answers: Callable[[CommandRow], CommandRow] = lambda row: row
        self.tag_rows: dict[str, TagRow] = {}
        self.tag_move_rows: list[TagMoveRow] = []
        self.assigned: dict[str, str | None] = {}
        self.balance = Balance(measured=0, committed=0, refused=0, lost=0, in_flight=0)
        self.dead: dict[str, int] = {}
        self.current_policy = Policy()
        self._versions = itertools.count(1)

    def put_device(self, row: DeviceRow) -> None:
        self.device_rows[row.device] = row

    def put_cell(self, row: CellRow) -> CellRow:
        row = replace(row, version=next(self._versions))
        self.cell_rows[row.device, row.release, row.variant] = row
        return row

    def devices(self, *, after: str = "", limit: int = 100) -> Sequence[DeviceRow]:
        return [row for device, row in sorted(self.device_rows.items()) if device > after][:limit]

    def device(self, device: str) -> DeviceRow | None:
        return self.device_rows.get(device)

    def asleep(self, since_s: float) -> frozenset[str]:
        return frozenset(
            device
            for device, row in self.device_rows.items()
            if row.status == "sleeping" and (row.last_seen_s or 0.0) >= since_s
        )

    def windows(
        self,
        device: str,
        *,
        variant: str | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Sequence[WindowRow]:
        return [
            row
            for row in self.window_rows
            if row.window.device == device
            and row.id > after
            and variant in {None, row.window.variant}
            and (start_s is None or row.received_s >= start_s)
            and (end_s is None or row.received_s < end_s)
        ][:limit]

    def summaries(self, device: str, *, after: int = 0, limit: int = 100) -> Sequence[SummaryRow]:
        return []

    def app_windows(
        self,
        device: str,
        *,
        app: str | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Sequence[AppWindowRow]:
        return [
            row
            for row in self.app_window_rows
            if row.window.device == device
            and row.id > after
            and app in {None, row.window.app}
            and (start_s is None or row.received_s >= start_s)
            and (end_s is None or row.received_s < end_s)
        ][:limit]

    def newest_app_windows(self, device: str) -> Sequence[AppWindowRow]:
        rows = [row for row in self.app_window_rows if row.window.device == device]
        newest = {(row.window.app, row.window.model or ""): row for row in rows}
        return [row for _, row in sorted(newest.items())]

    def cells(
        self, *, release: str | None = None, device: str | None = None, after_version: int = 0
    ) -> Sequence[CellRow]:
        return [
            row
            for _, row in sorted(self.cell_rows.items())
            if row.version > after_version and release in {None, row.release} and device in {None, row.device}
        ]

    def last_version(self) -> int:
        return max((row.version for row in self.cell_rows.values()), default=0)

    def flags(
        self, *, device: str | None = None, only_open: bool = True, after: int = 0, limit: int = 100
    ) -> Sequence[FlagRow]:
        return [
            row
            for row in self.flag_rows
            if row.id > after and device in {None, row.device} and not (only_open and row.cleared_s is not None)
        ][:limit]

    def flag(self, flag_id: int) -> FlagRow | None:
        return next((row for row in self.flag_rows if row.id == flag_id), None)

    def releases(self) -> Sequence[ReleaseRow]:
        called: dict[str, list[str]] = {}
        for tag, row in sorted(self.tag_rows.items()):
            called.setdefault(row.release, []).append(tag)
        tagged = [replace(row, tags=tuple(called.get(row.release, ()))) for row in self.release_rows]
        return sorted(tagged, key=lambda row: -row.pushed_s)

    def tags(self) -> Sequence[TagRow]:
        return [row for _, row in sorted(self.tag_rows.items())]

    def tag(self, tag: str) -> TagRow | None:
        return self.tag_rows.get(tag)

    def tag_moves(self, tag: str) -> Sequence[TagMoveRow]:
        return [row for row in self.tag_move_rows if row.tag == tag]

    def move_tag(self, tag: str, release: str | None) -> None:
        before = self.tag_rows.pop(tag, None)
        if release is not None:
            self.tag_rows[tag] = TagRow(tag=tag, release=release, tagged_s=NOW_S)
        was = before.release if before else None
        if was != release:
            move = TagMoveRow(id=len(self.tag_move_rows) + 1, tag=tag, release=release, before=was, moved_s=NOW_S)
            self.tag_move_rows.append(move)

    def release(self, name: str) -> ReleaseRow | None:
        found = [row for row in self.releases() if row.release.startswith(name) or name in row.tags]
        return found[0] if len(found) == 1 else None

    def events(
        self, device: str, *, after: int = 0, limit: int = 100, newest_first: bool = False
    ) -> Sequence[EventRow]:
        rows = [row for row in self.event_rows if row.device == device]
        if newest_first:
            return [row for row in reversed(rows) if not after or row.id < after][:limit]
        return [row for row in rows if row.id > after][:limit]

    def commands(self, device: str, *, after: int = 0, limit: int = 100) -> Sequence[CommandRow]:
        return [row for row in self.command_rows if row.device == device and row.id > after][:limit]

    def command(self, device: str, correlation_id: str) -> CommandRow | None:
        """Return a command as it was when it was asked for, and with its answer from then on."""
        for index, row in enumerate(self.command_rows):
            if (row.device, row.correlation_id) == (device, correlation_id):
                self.command_rows[index] = self.answers(row)
                return row
        return None

    def losses(self, device: str) -> Sequence[LossRow]:
        return []

    def dead_letters(self, *, after: int = 0, limit: int = 100) -> Sequence[DeadLetterRow]:
        return []

    def stats(self) -> Stats:
        return Stats(
            devices=len(self.device_rows),
            windows=self.balance.committed,
            flags_open=len(self.flags()),
            dead_letters=sum(self.dead.values()),
            balance=self.balance,
            ingested={"committed": self.balance.committed},
            dead_letters_by_reason=dict(self.dead),
            passed_over={"unknown-context": 3},
        )

    def policy(self) -> Policy:
        return self.current_policy

    def credential(self, device: str) -> str | None:
        return None

    def lag(self) -> int:
        return 0

    def assignments(self) -> Mapping[str, str | None]:
        return dict(self.assigned)


class FakeEdits:
    """Performs changes on a `FakeStore` at once."""

    def __init__(self, store: FakeStore, artifacts: ArtifactFolder) -> None:
        self._store = store
        self._artifacts = artifacts

    async def enrol(self, device: str) -> str:
        if device in self._store.device_rows:
            raise RefusedError(f"{device} is enrolled already; nothing was changed")
        self._store.put_device(device_row(device, status="enrolled", device_class=None, verdict=None))
        return f"token-of-{device}"

    async def add_release(self, manifest: bytes) -> str:
        read = manifests.decode(manifest, "body")
        if missing := self._artifacts.missing(read.files):
            raise ArtifactError(f"{missing[0].file} of the release is not here yet; push it first")
        row = ReleaseRow(release=self._artifacts.add(manifest), model=read.model, pushed_s=NOW_S, manifest=read)
        if self._store.release(row.release) is None:
            self._store.release_rows.append(row)
        return row.release

    async def sign(self, signature: Signature) -> None:
        for index, row in enumerate(self._store.release_rows):
            if row.release == signature.release:
                others = [kept for kept in row.signatures if kept.key != signature.key]
                together = tuple(sorted([*others, signature], key=lambda kept: kept.key))
                self._store.release_rows[index] = replace(row, signatures=together)

    async def tag(self, tag: str, release: str) -> None:
        self._store.move_tag(tag, release)

    async def untag(self, tag: str) -> None:
        self._store.move_tag(tag, None)

    async def assign(self, device: str, release: str | None) -> None:
        if device != "*" and device not in self._store.device_rows:
            raise RefusedError(f"{device} is not enrolled; nothing was changed")
        self._store.assigned[device] = release

    async def set_policy(self, policy: Policy) -> None:
        self._store.current_policy = replace(policy, revision=self._store.current_policy.revision + 1)

    async def order(self, device: str, wanted: NewCommand) -> str:
        number = len(self._store.command_rows) + 1
        row = command_row(
            number,
            device,
            command=wanted.command,
            variant=wanted.variant,
            ttl_s=wanted.ttl_s,
            sustained_s=wanted.sustained_s,
            offline_s=wanted.offline_s,
        )
        self._store.command_rows.append(row)
        return row.correlation_id


def well() -> HealthSnapshot:
    return HealthSnapshot(broker_connected=True, lag_windows=0)


def device_row(device: str, **changes: Any) -> DeviceRow:
    row = DeviceRow(
        device=device,
        device_class="bench-x86",
        status="birth",
        agent_version="0.1.0",
        release=None,
        verdict="within",
        first_seen_s=NOW_S,
        last_seen_s=NOW_S,
    )
    return replace(row, **changes)


def run_context(**changes: Any) -> RunContext:
    run = RunContext(
        device_class="bench-x86",
        runtime="litert",
        runtime_version="2.1.0",
        accelerator_requested="xnnpack",
        accelerator_executed="xnnpack",
        delegated_ratio=1.0,
        fallback_reason=None,
        threads=1,
        governor=None,
        power_mode=None,
        os="Debian 12",
        kernel="6.1",
        machine="x86_64",
        cpu_model=None,
        cpu_count=2,
        memory_total_bytes=8_000_000_000,
        python="3.11.7",
        attributes={},
    )
    return replace(run, **changes)


def cell_row(device: str, variant: str, release: str, **changes: Any) -> CellRow:
    row = CellRow(
        version=0,
        device=device,
        device_class="bench-x86",
        release=release,
        variant=variant,
        verdict="within",
        reason="every metric is within",
        metrics=(),
        refusal=None,
        phase="judged",
        windows=600,
        accuracy_ratio=0.9722,
        accuracy_delta=0.0,
        noise_class="bit-exact",
        p50_ms=1.02,
        p95_ms=1.31,
        peak_bytes=41_000_000,
        run=run_context(),
        updated_s=NOW_S,
    )
    return replace(row, **changes)


def flag_row(flag_id: int, device: str, variant: str, release: str, **changes: Any) -> FlagRow:
    row = FlagRow(
        id=flag_id,
        device=device,
        device_class="bench-x86",
        release=release,
        variant=variant,
        metric="latency",
        reason="p95 is above 1.44 ms: 31 % of the samples of the last 8 windows, 5 % are allowed",
        opened_s=NOW_S,
        cleared_s=None,
        evidence_json=b'{"needed": 16.0, "steps": [{"window": 7, "increment": 8.5, "sum": 8.5}]}',
    )
    return replace(row, **changes)


def command_row(number: int, device: str, **changes: Any) -> CommandRow:
    row = CommandRow(
        id=number,
        device=device,
        correlation_id=f"c{number}",
        command="measure",
        variant=None,
        ttl_s=300.0,
        asked_s=NOW_S,
        offered_s=NOW_S,
    )
    return replace(row, **changes)


def event_row(number: int, device: str, **changes: Any) -> EventRow:
    row = EventRow(
        id=number,
        device=device,
        incarnation=Incarnation(1, "aaaaaaaa"),
        event="clock-jumped",
        release=None,
        variant=None,
        detail="the wall clock was set by +3600 s",
        received_s=NOW_S,
    )
    return replace(row, **changes)


def file_ref(file: str, payload: bytes) -> FileRef:
    return FileRef(file=file, sha256=hashlib.sha256(payload).hexdigest(), size_bytes=len(payload))


def small_manifest(
    *variants: str, model: str = "digits-cnn", artifact_bytes: int = 0
) -> tuple[Manifest, dict[str, bytes]]:
    """Return a manifest of made-up files, and the files; artifacts have at least `artifact_bytes` bytes."""
    names = variants or ("float32", "int8")
    files = {f"artifacts/{name}.tflite": f"{model} {name}".encode().ljust(artifact_bytes, b".") for name in names}
    files |= {f"golden/{part}.npy": f"{model} {part}".encode() for part in ("inputs", "labels", "outputs")}
    refs = {file: file_ref(file, payload) for file, payload in files.items()}
    tensor = TensorSpec(name="x", shape=(-1, 8, 8, 1), dtype="float32")
    reference = ReferenceResult(
        n=4,
        errors=1,
        tp=(2, 1),
        fp=(1, 0),
        fn=(0, 1),
        correct="1110",
        prediction_digest="0" * 64,
        agreement=Agreement(noise_class="bit-exact", top1_ratio=1.0, max_abs_diff=0.0, rms_diff=0.0),
    )
    manifest = Manifest(
        model=model,
        reference_variant=names[0],
        variants=tuple(
            Variant(
                name=name,
                format="tflite",
                artifact=refs[f"artifacts/{name}.tflite"],
                techniques=(),
                input=tensor,
                output=tensor,
                reference=reference,
            )
            for name in names
        ),
        golden=Golden(
            n=4,
            classes=2,
            inputs=refs["golden/inputs.npy"],
            labels=refs["golden/labels.npy"],
            outputs=refs["golden/outputs.npy"],
        ),
        preprocessing={},
        lineage={},
    )
    return manifest, files


def write_files(directory: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    """Write a release's directory and return it."""
    for file, payload in {**files, manifests.MANIFEST_NAME: manifests.encode(manifest)}.items():
        path = directory / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(payload)
    return directory


def release_row(*variants: str, model: str = "digits-cnn", pushed_s: float = NOW_S) -> ReleaseRow:
    manifest, _ = small_manifest(*variants, model=model)
    digest = manifests.digest(manifests.encode(manifest))
    return ReleaseRow(release=digest, model=model, pushed_s=pushed_s, manifest=manifest)
