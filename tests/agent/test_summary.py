"""What adds up when windows are merged, in whatever grouping, and what may not be merged."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_agent import summary
from evenfleet_shared import messages
from evenfleet_shared.messages import Exceedance, Incarnation, Limit, MemoryReading, Summary, Window
from fakes import uplink
from fakes.uplink import LIFE, digest, window

LATER = Incarnation(2, "bbbbbbbb")
LIMITS = (Limit(limit_ms=2.0, revision=3), Limit(limit_ms=5.0, revision=4))


@st.composite
def alike(draw: st.DrawFn, *, least: int = 2) -> list[Window]:
    """Draw windows of one variant, in order; their numbers have gaps, for other variants have numbers too."""
    found: list[Window] = []
    seq = 0
    for _ in range(draw(st.integers(least, 8))):
        seq += draw(st.integers(1, 3))
        samples = draw(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=6))
        errors = draw(st.integers(0, 4))
        found.append(
            window(
                seq,
                ended_wall_s=draw(st.floats(0.0, 2e9)),
                throttled=draw(st.sampled_from([None, False, True])),
                latency=uplink.latency(samples),
                exceedances=uplink.exceedances(samples, LIMITS),
                accuracy=replace(uplink.accuracy(errors, 10), hamming=draw(st.sampled_from([None, 0, 2]))),
                memory=tuple(
                    MemoryReading(kind=kind, bytes=draw(st.integers(0, 1000)), method="fake")
                    for kind in draw(st.sampled_from([(), ("peak_rss",), ("arena", "peak_rss")]))
                ),
            )
        )
    return found


def merged(parts: list[Window | Summary], seq: int = 900) -> Summary:
    return summary.merge(parts, LATER, seq, 1)


def settled_mean(one: Summary) -> Summary:
    """Return it with its mean rounded: floating point does not add up alike in every order."""
    assert one.latency is not None
    latency = replace(one.latency, mean_ms=round(one.latency.mean_ms, 9))
    return replace(one, latency=latency, measured_s=round(one.measured_s, 6))


@given(alike(), st.data())
def test_any_grouping_in_any_order_gives_the_same_summary(windows: list[Window], data: st.DataObject) -> None:
    parts: list[Window | Summary] = list(data.draw(st.permutations(windows)))
    while len(parts) > 1:
        size = data.draw(st.integers(2, len(parts)))
        parts = data.draw(st.permutations([merged(parts[:size]), *parts[size:]]))
    (one,) = parts
    assert isinstance(one, Summary)

    assert settled_mean(one) == settled_mean(merged(list(windows)))


@given(alike())
def test_sums_are_those_of_the_windows_and_the_range_is_theirs(windows: list[Window]) -> None:
    one = merged(list(windows))

    latencies = [found.latency for found in windows if found.latency]
    passes = [found.accuracy for found in windows if found.accuracy]
    assert one.latency is not None
    assert one.accuracy is not None
    assert (one.first_seq, one.last_seq, one.windows) == (windows[0].seq, windows[-1].seq, len(windows))
    assert one.latency.n == one.latency.sketch.n == sum(latency.n for latency in latencies)
    assert one.latency.mean_ms * one.latency.n == pytest.approx(sum(found.mean_ms * found.n for found in latencies))
    assert one.latency.min_ms == min(latency.min_ms for latency in latencies)
    assert one.latency.max_ms == max(latency.max_ms for latency in latencies)
    for index, exceedance in enumerate(one.exceedances):
        assert exceedance.exceed == sum(found.exceedances[index].exceed for found in windows)
        assert exceedance.n == one.latency.n
    assert (one.accuracy.passes, one.accuracy.n) == (len(passes), sum(found.n for found in passes))
    assert one.accuracy.errors == sum(found.errors for found in passes)
    assert one.accuracy.errors_max == max(found.errors for found in passes)
    assert one.accuracy.changed == sum(bool(found.hamming) for found in passes)
    assert one.accuracy.last == passes[-1]
    for reading in one.memory:
        assert reading.bytes == max(
            found.bytes for each in windows for found in each.memory if found.kind == reading.kind
        )
    assert (one.last_ended_wall_s, one.throttled_windows) == (
        windows[-1].ended_wall_s,
        sum(bool(found.throttled) for found in windows),
    )


@given(alike())
def test_a_summary_is_a_message_of_the_backfill_topic_with_its_own_number(windows: list[Window]) -> None:
    one = merged(list(windows), seq=77)

    assert messages.decode("backfill", messages.encode(one)) == one
    header = messages.decode_header(messages.encode(one))
    assert (header.incarnation, header.seq) == (LATER, 77)
    assert one.summarised == LIFE


BASE = window(
    1, latency=uplink.latency([1.0]), exceedances=uplink.exceedances([1.0], LIMITS), accuracy=uplink.accuracy(1)
)


@pytest.mark.parametrize(
    "other",
    [
        {"incarnation": LATER},
        {"release": "1" * 64},
        {"variant": "int8"},
        {"artifact": digest("another")},
        {"context": digest("another")},
        {"mode": "cadence", "cadence_ms": 100.0},
        {"latency": None},
        {"latency": replace(uplink.latency([1.0]), inferences_per_sample=8)},
        {"exceedances": (Exceedance(limit_ms=2.0, limit_revision=9, exceed=0, n=1),)},
        {"accuracy": None},
        {"accuracy": uplink.accuracy(1, golden="1" * 64)},
    ],
    ids=" and ".join,
)
def test_windows_that_did_not_measure_the_same_are_not_alike(other: dict[str, object]) -> None:
    assert summary.likeness(replace(BASE, **other)) != summary.likeness(BASE)  # type: ignore[arg-type]


def test_windows_that_differ_in_what_was_measured_are_alike() -> None:
    later = window(
        9,
        latency=uplink.latency([3.0, 4.0]),
        exceedances=uplink.exceedances([3.0], LIMITS),
        accuracy=uplink.accuracy(2),
    )

    assert summary.likeness(later) == summary.likeness(BASE)


def test_windows_of_two_variants_are_no_summary() -> None:
    with pytest.raises(ValueError, match="2 parts that are not alike"):
        merged([window(1), window(2, variant="int8")])
