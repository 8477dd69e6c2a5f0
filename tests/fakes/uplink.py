"""Messages as a device would send them, with everything that a test does not care about filled in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from evenfleet_collector.ingest import Arrival
from evenfleet_shared import messages, sketch, topics
from evenfleet_shared.messages import (
    Accuracy,
    Agreement,
    AppLatency,
    AppWindow,
    Context,
    Event,
    Exceedance,
    Incarnation,
    Latency,
    Limit,
    MemoryReading,
    Numbered,
    Reply,
    RunContext,
    State,
    Summary,
    Uplink,
    Window,
)
from evenfleet_shared.metrics import nearest_rank
from fakes.stores import run_context, small_manifest

DEVICE = "press-01"
LIFE = Incarnation(1, "aaaaaaaa")
RELEASE = "0" * 64
SESSION = "5e551011"
RUN = run_context()
GOLDEN = small_manifest()[0].golden.digest


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def window(seq: int, *, device: str = DEVICE, incarnation: Incarnation = LIFE, **changes: Any) -> Window:
    base = Window(
        device=device,
        incarnation=incarnation,
        seq=seq,
        floor=1,
        release=RELEASE,
        variant="float32",
        artifact=digest("artifact"),
        context=messages.context_digest(RUN),
        length_s=300.0,
        ended_uptime_s=300.0 * seq,
        ended_wall_s=1.7e9,
        runner_start=1,
        throttled=False,
        latency=latency([1.0] * 20),
        memory=(MemoryReading(kind="peak_rss", bytes=41_000_000, method="VmHWM"),),
    )
    return replace(base, **changes)


def summary(seq: int, first: int, last: int, **changes: Any) -> Summary:
    """Return a summary of windows `first` to `last` of one variant, as `window` makes them."""
    base = Summary(
        device=DEVICE,
        incarnation=LIFE,
        seq=seq,
        floor=1,
        summarised=LIFE,
        first_seq=first,
        last_seq=last,
        windows=last - first + 1,
        release=RELEASE,
        variant="float32",
        artifact=digest("artifact"),
        context=messages.context_digest(RUN),
        measured_s=300.0 * (last - first + 1),
        first_ended_uptime_s=300.0 * first,
        last_ended_uptime_s=300.0 * last,
        first_ended_wall_s=1.7e9,
        last_ended_wall_s=1.7e9,
    )
    return replace(base, **changes)


def app_window(seq: int, *, device: str = DEVICE, incarnation: Incarnation = LIFE, **changes: Any) -> AppWindow:
    values = [1.0] * 20
    base = AppWindow(
        device=device,
        incarnation=incarnation,
        seq=seq,
        floor=1,
        app="inspection",
        model="fashion-cnn",
        length_s=300.0,
        ended_uptime_s=300.0 * seq,
        ended_wall_s=1.7e9,
        processes=1,
        calls=25,
        exceptions=2,
        dropped=3,
        latency=AppLatency(
            n=20,
            min_ms=1.0,
            mean_ms=1.0,
            max_ms=1.0,
            p50_ms=1.0,
            p90_ms=1.0,
            p95_ms=1.0,
            p99_ms=1.0,
            p99_qualified=False,
            sketch=sketch.from_values(values),
        ),
    )
    return replace(base, **changes)


def context(
    seq: int, run: RunContext = RUN, *, device: str = DEVICE, incarnation: Incarnation = LIFE, floor: int = 1
) -> Context:
    return Context(
        device=device, incarnation=incarnation, seq=seq, floor=floor, digest=messages.context_digest(run), run=run
    )


def event(seq: int, *, device: str = DEVICE, incarnation: Incarnation = LIFE, **changes: Any) -> Event:
    base = Event(
        device=device,
        incarnation=incarnation,
        seq=seq,
        floor=1,
        event="runner-failed",
        happened_uptime_s=1.0,
        happened_wall_s=1.7e9,
    )
    return replace(base, **changes)


def state(*, device: str = DEVICE, incarnation: Incarnation = LIFE, **changes: Any) -> State:
    base = State(
        device=device,
        incarnation=incarnation,
        seq=0,
        floor=1,
        status="birth",
        session=SESSION,
        device_class="bench-x86",
        agent_version="0.1.0",
        formats=("tflite",),
        desired_revision=0,
    )
    return replace(base, **changes)


def reply(correlation_id: str, *, device: str = DEVICE, incarnation: Incarnation = LIFE, **changes: Any) -> Reply:
    base = Reply(
        device=device,
        incarnation=incarnation,
        seq=0,
        floor=1,
        correlation_id=correlation_id,
        command="measure",
        status="done",
    )
    return replace(base, **changes)


def latency(samples_ms: Sequence[float]) -> Latency:
    ordered = sorted(samples_ms)
    return Latency(
        n=len(ordered),
        init_ms=5.0,
        first_ms=2.0,
        min_ms=ordered[0],
        mean_ms=sum(ordered) / len(ordered),
        max_ms=ordered[-1],
        p50_ms=nearest_rank(ordered, 0.5),
        p90_ms=nearest_rank(ordered, 0.9),
        p95_ms=nearest_rank(ordered, 0.95),
        p99_ms=nearest_rank(ordered, 0.99),
        p99_qualified=False,
        sketch=sketch.from_values(ordered),
    )


def exceedances(samples_ms: Sequence[float], limits: Sequence[Limit]) -> tuple[Exceedance, ...]:
    return tuple(
        Exceedance(
            limit_ms=limit.limit_ms,
            limit_revision=limit.revision,
            exceed=sum(sample > limit.limit_ms for sample in samples_ms),
            n=len(samples_ms),
        )
        for limit in limits
    )


def accuracy(errors: int, n: int = 4, *, golden: str = GOLDEN) -> Accuracy:
    """Return a pass over a set of two classes in which `errors` samples of the first were taken for the second."""
    first = (n + 1) // 2
    return Accuracy(
        golden=golden,
        n=n,
        errors=errors,
        tp=(first - errors, n - first) if errors <= first else (0, n - errors),
        fp=(0, errors),
        fn=(errors, 0),
        discordant_b=0,
        discordant_c=0,
        hamming=0,
        prediction_digest=digest(f"predictions {errors}"),
        agreement=Agreement(noise_class="bit-exact", top1_ratio=1.0, max_abs_diff=0.0, rms_diff=0.0),
    )


def arrival(message: Uplink) -> Arrival:
    """Return a message on its own topic."""
    return Arrival(topics.build(message.device, kind_of(message)), messages.encode(message))


def kind_of(message: Uplink | Numbered) -> str:
    kinds = {
        Window: "window",
        AppWindow: "window",
        Summary: "backfill",
        Context: "context",
        Event: "event",
        State: "state",
        Reply: "reply",
    }
    return kinds[type(message)]
