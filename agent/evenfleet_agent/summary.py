"""Make one message of several windows that were never published, when the outbox has no room for all of them.

Pure. Decides which windows may be merged and what of them adds up; leaves to `outbox` when that is due, and which go.

* Merging in any grouping and order of steps gives the same summary, but for the last bits of a mean.
* Only windows that measured the same thing in the same way are merged: see `likeness`.
* Nothing is made up: what only some of the windows have is of those alone, and says how many they are.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from evenfleet_shared import sketch
from evenfleet_shared.messages import (
    Accuracy,
    Exceedance,
    Incarnation,
    MemoryReading,
    Summary,
    SummaryAccuracy,
    SummaryLatency,
    Window,
)

_MAX_KINDS: Final = 8


def likeness(window: Window) -> str:
    """Return a word that two windows share where they may be merged: same variant, run, limits, golden set and mode.

    Whether their numbers are of one unbroken stretch is for whoever gives out numbers to know.
    """
    latency, accuracy = window.latency, window.accuracy
    same = (
        window.incarnation,
        window.release,
        window.variant,
        window.artifact,
        window.context,
        window.comparability,
        window.mode,
        window.cadence_ms,
        (latency.inferences_per_sample, latency.sketch.relative_accuracy) if latency else None,
        [(one.metric, one.limit_ms, one.limit_revision) for one in window.exceedances],
        (accuracy.golden, accuracy.task, len(accuracy.tp)) if accuracy else None,
    )
    return hashlib.sha256(msgspec.json.encode(same)).hexdigest()[:16]


def of(window: Window) -> Summary:
    """Return a window as the summary of itself alone, under its own number."""
    latency, accuracy = window.latency, window.accuracy
    return Summary(
        device=window.device,
        incarnation=window.incarnation,
        seq=window.seq,
        floor=window.floor,
        summarised=window.incarnation,
        first_seq=window.seq,
        last_seq=window.seq,
        windows=1,
        release=window.release,
        variant=window.variant,
        artifact=window.artifact,
        context=window.context,
        mode=window.mode,
        cadence_ms=window.cadence_ms,
        comparability=window.comparability,
        measured_s=window.length_s,
        first_ended_uptime_s=window.ended_uptime_s,
        last_ended_uptime_s=window.ended_uptime_s,
        first_ended_wall_s=window.ended_wall_s,
        last_ended_wall_s=window.ended_wall_s,
        throttled_windows=int(bool(window.throttled)),
        latency=SummaryLatency(
            n=latency.n,
            inferences_per_sample=latency.inferences_per_sample,
            min_ms=latency.min_ms,
            mean_ms=latency.mean_ms,
            max_ms=latency.max_ms,
            sketch=latency.sketch,
        )
        if latency
        else None,
        exceedances=window.exceedances,
        accuracy=_pass(accuracy) if accuracy else None,
        memory=window.memory,
    )


def merge(parts: Sequence[Window | Summary], incarnation: Incarnation, seq: int, floor: int) -> Summary:
    """Return one summary of windows and earlier summaries that are alike.

    Args:
        parts: In any order; no window is in two of them.
        incarnation: The present one, which the summary is numbered in.
        seq: Its number.
        floor: The lowest number held.

    Raises:
        ValueError: There are none, or they are not of one incarnation, release and variant.
    """
    each = sorted((of(part) if isinstance(part, Window) else part for part in parts), key=lambda one: one.last_seq)
    if len({(one.device, one.summarised, one.release, one.variant, one.context) for one in each}) != 1:
        raise ValueError(f"cannot make one summary of {len(each)} parts that are not alike")
    first, last = min(each, key=lambda one: one.first_seq), each[-1]
    latencies = [one.latency for one in each if one.latency]
    accuracies = [one.accuracy for one in each if one.accuracy]
    return replace(
        first,
        incarnation=incarnation,
        seq=seq,
        floor=floor,
        last_seq=last.last_seq,
        windows=sum(one.windows for one in each),
        measured_s=math.fsum(one.measured_s for one in each),
        last_ended_uptime_s=last.last_ended_uptime_s,
        last_ended_wall_s=last.last_ended_wall_s,
        throttled_windows=sum(one.throttled_windows for one in each),
        latency=_latency(latencies) if latencies else None,
        exceedances=_exceedances([exceedance for one in each for exceedance in one.exceedances]),
        accuracy=_accuracy(accuracies) if accuracies else None,
        memory=_memory([reading for one in each for reading in one.memory]),
    )


def unlike(parts: Sequence[Window | Summary]) -> list[int]:
    """Return the places of parts that differ from most in what all of them should share; none where there are no most.

    Only alike ones are ever put together, so these have been damaged since.
    """
    shared = [_shared(of(part) if isinstance(part, Window) else part) for part in parts]
    most, times = Counter(shared).most_common(1)[0]
    return [place for place, one in enumerate(shared) if one != most] if 2 * times > len(shared) else []


def _shared(one: Summary) -> Hashable:
    latency, accuracy = one.latency, one.accuracy
    return (
        one.device,
        one.summarised,
        one.release,
        one.variant,
        one.artifact,
        one.context,
        one.comparability,
        one.mode,
        one.cadence_ms,
        (latency.inferences_per_sample, latency.sketch.relative_accuracy) if latency else None,
        frozenset((limit.metric, limit.limit_ms, limit.limit_revision) for limit in one.exceedances),
        (accuracy.last.golden, accuracy.last.task, len(accuracy.last.tp)) if accuracy else None,
    )


def _pass(accuracy: Accuracy) -> SummaryAccuracy:
    return SummaryAccuracy(
        passes=1,
        n=accuracy.n,
        errors=accuracy.errors,
        errors_max=accuracy.errors,
        changed=int(bool(accuracy.hamming)),
        last=accuracy,
    )


def _latency(parts: Sequence[SummaryLatency]) -> SummaryLatency:
    n = sum(part.n for part in parts)
    return SummaryLatency(
        n=n,
        inferences_per_sample=parts[0].inferences_per_sample,
        min_ms=min(part.min_ms for part in parts),
        mean_ms=math.fsum(part.mean_ms * part.n for part in parts) / n,
        max_ms=max(part.max_ms for part in parts),
        sketch=sketch.merge(part.sketch for part in parts),
    )


def _exceedances(each: Sequence[Exceedance]) -> tuple[Exceedance, ...]:
    exceed: Counter[Any] = Counter()
    n: Counter[Any] = Counter()
    for one in each:
        limit = (one.metric, one.limit_ms, one.limit_revision)
        exceed[limit] += one.exceed
        n[limit] += one.n
    return tuple(
        Exceedance(metric=metric, limit_ms=limit_ms, limit_revision=revision, exceed=exceed[key], n=n[key])
        for key in n
        for metric, limit_ms, revision in (key,)
    )


def _accuracy(parts: Sequence[SummaryAccuracy]) -> SummaryAccuracy:
    return SummaryAccuracy(
        passes=sum(part.passes for part in parts),
        n=sum(part.n for part in parts),
        errors=sum(part.errors for part in parts),
        errors_max=max(part.errors_max for part in parts),
        changed=sum(part.changed for part in parts),
        last=parts[-1].last,
    )


def _memory(each: Sequence[MemoryReading]) -> tuple[MemoryReading, ...]:
    highest: dict[tuple[str, str], MemoryReading] = {}
    for one in each:
        before = highest.get((one.kind, one.method))
        if before is None or one.bytes > before.bytes:
            highest[one.kind, one.method] = one
    return tuple(reading for _, reading in sorted(highest.items()))[:_MAX_KINDS]
