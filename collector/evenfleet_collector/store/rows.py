"""What the store hands out: frozen values, which the API returns as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from evenfleet_collector.cell import Cell, Metric, MetricVerdict
from evenfleet_collector.dating import Dated
from evenfleet_collector.seqs import Ranges
from evenfleet_collector.tolerance import Verdict
from evenfleet_shared.manifest import Format, Manifest
from evenfleet_shared.messages import (
    AppWindow,
    CommandName,
    Conditions,
    Cost,
    Incarnation,
    Leak,
    Network,
    Overhead,
    Phase,
    Reply,
    RunContext,
    Summary,
    Sustained,
    Throughput,
    Window,
)
from evenfleet_shared.signature import Signature

# What becomes of a message; everything else that is tallied is of a later step.
INGEST_RESULTS: Final = frozenset({"committed", "duplicate", "dead_letter", "too-many-gaps"})
# The reason of a loss that nobody has given one for yet.
UNEXPLAINED: Final = "unexplained"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRow:
    """A device that was enrolled or has been heard of. Times are seconds since 1970, by the collector's clock."""

    device: str
    device_class: str | None
    status: Literal["enrolled", "birth", "sleeping", "gone", "lost"]
    agent_version: str | None
    release: str | None
    verdict: Verdict | None
    first_seen_s: float | None
    last_seen_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRow:
    """One window as it was received, with the number that the log gave it.

    `measured_s` is when it ended, by the collector's clock, and `dated` by what that is known: the device's uptime, its wall
    clock, or only that it was `before`. None for windows that an earlier version took.
    """

    id: int
    received_s: float
    backfill: bool
    window: Window
    measured_s: float | None = None
    dated: Dated | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """What is left of windows that gave way on the device, as it was received."""

    id: int
    received_s: float
    summary: Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a window says beside its figures; a device's overhead and network are in one window of each round only.

    `cadence_ms` and `late_starts` are of windows whose inferences were called one every so often, `sustained` and
    `throughput` of those that somebody asked for.
    """

    conditions: Conditions | None = None
    overhead: Overhead | None = None
    network: Network | None = None
    leak: Leak | None = None
    cost: Cost | None = None
    cadence_ms: float | None = None
    late_starts: int | None = None
    phases: tuple[Phase, ...] = ()
    sustained: Sustained | None = None
    throughput: Throughput | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AppWindowRow:
    """One window of an application's own inferences as it was received, with a number in the order of receipt."""

    id: int
    received_s: float
    backfill: bool
    window: AppWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRow:
    """One device × variant of a release: its verdict, by metric, and the figures of its latest window.

    `refusal` is set where the device cannot run the variant; there are no figures then. `version` grows with every
    change of any cell, so that a reader can ask for what is new. `accuracy_ratio` is the share of right samples, `score`
    the task's own metric, named `score_metric`, where it has another.
    """

    version: int
    device: str
    device_class: str
    release: str
    variant: str
    verdict: Verdict
    reason: str
    metrics: tuple[MetricVerdict, ...]
    refusal: str | None
    phase: Literal["burn-in", "calibrating", "judged", "refused"]
    windows: int
    accuracy_ratio: float | None
    accuracy_delta: float | None
    noise_class: str | None
    p50_ms: float | None
    p95_ms: float | None
    peak_bytes: int | None
    run: RunContext | None
    updated_s: float
    circumstances: Circumstances | None = None
    # Of later than the first rows, which do not have them.
    score_metric: str | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuietCell:
    """A cell of which nothing has come for a while, and when its device was last heard of at all.

    `length_s` is how long its last window was, `slept` whether its device sleeps, or has said so since that window.
    """

    row: CellRow
    cell: Cell | None
    device_heard_s: float | None
    length_s: float | None
    slept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagRow:
    """A stretch of `outside` on one device × variant × metric; `evidence_json` is what made it, step by step."""

    id: int
    device: str
    device_class: str
    release: str
    variant: str
    metric: Metric
    reason: str
    opened_s: float
    cleared_s: float | None
    evidence_json: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRow:
    """A release that was pushed.

    Attributes:
        release: Its digest.
        signatures: By key, as they were pushed: whether one holds is for whoever has the key to say.
        tags: The names that it has now.
    """

    release: str
    model: str
    pushed_s: float
    manifest: Manifest
    signatures: tuple[Signature, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TagRow:
    """A name that stands for a release until it is moved or taken away."""

    tag: str
    release: str
    tagged_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TagMoveRow:
    """One change of a tag: `before` is None where it is new, `release` where it was taken away."""

    id: int
    tag: str
    release: str | None
    before: str | None
    moved_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """Something that a device reported."""

    id: int
    device: str
    incarnation: Incarnation
    event: str
    release: str | None
    variant: str | None
    detail: str
    received_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRow:
    """A command to a device, and what became of it.

    It is `waiting` until its device answers, and then what the answer says; `expired` where none came within `ttl_s`. An
    answer that comes later yet is taken: it says what the device has done.

    Attributes:
        id: Given by the store.
        asked_s: When it was asked for; seconds since 1970, by the collector's clock.
        offered_s: Since when it is being sent: since it was asked for, or since its device's last birth.
        sends: How often it was sent.
    """

    id: int
    device: str
    correlation_id: str
    command: CommandName
    variant: str | None
    ttl_s: float
    sustained_s: float = 0.0
    offline_s: float = 0.0
    asked_s: float
    state: Literal["waiting", "done", "failed", "refused", "expired"] = "waiting"
    offered_s: float
    sends: int = 0
    sent_s: float | None = None
    replied_s: float | None = None
    reply: Reply | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterRow:
    """A message that could not be taken, and why."""

    id: int
    received_s: float
    topic: str
    reason: str
    detail: str
    size_bytes: int
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LossRow:
    """Numbers of an incarnation that will never come."""

    device: str
    incarnation: Incarnation
    first_seq: int
    last_seq: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """The loss balance: measured = committed + refused + lost + in flight, in numbered messages."""

    measured: int
    committed: int
    refused: int
    lost: int
    in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The collector in figures.

    `ingested` counts what became of messages; `passed_over` what then was not judged, could not be told, or contradicts
    what else is known, and why.
    """

    devices: int
    windows: int
    flags_open: int
    passed_over: dict[str, int]
    dead_letters: int
    balance: Balance
    ingested: dict[str, int]
    dead_letters_by_reason: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class IncarnationRow:
    """What is known of one incarnation's numbers.

    `settled` are those that need no waiting for: committed, refused or lost. `floor` is the lowest that the device
    still held when last heard of, `highest` the highest it has given out as far as known. `booted_s` is when the device
    began to count its uptime in it, by the collector's clock, None where it was not heard of while it lasted.
    """

    device: str
    incarnation: Incarnation
    settled: Ranges = ()
    floor: int = 1
    highest: int = 0
    booted_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWindow:
    """A window to append to the log."""

    window: Window
    backfill: bool
    measured_s: float | None = None
    dated: Dated | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalRow:
    """A window's place in the log, and how long it was, without the window.

    `length_s` is not known of what came before it was noted.
    """

    id: int
    device: str
    incarnation: Incarnation
    release: str
    variant: str
    received_s: float
    length_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeredDevice:
    """A device that has been born, what it can run, and the revision of `desired` that it had then."""

    device: str
    device_class: str
    formats: tuple[Format, ...]
    desired_revision: int = 0
