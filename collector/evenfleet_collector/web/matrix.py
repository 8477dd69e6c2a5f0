"""Arrange a release's cells as devices × variants, and word each cell; the page and the terminal draw the same.

Pure. Decides the order, the words and the marks. Leaves colours and layout to whoever draws.

* A verdict is told by a word and a shape; colour only repeats it.
* Nothing reads as `within` that was not judged so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from evenfleet_collector import circumstances, figures
from evenfleet_collector.cell import MetricVerdict
from evenfleet_collector.store.rows import CellRow
from evenfleet_collector.tolerance import Policy
from evenfleet_shared.messages import RunContext

# In the order that they are counted and explained in.
MARKS: Final = {
    "within": "●",
    "outside": "▲",
    "undetermined": "◔",
    "incomparable": "≠",
    "silent": "○",
    "refused": "✕",
}
MEANINGS: Final = {
    "within": "shown to be inside tolerance",
    "outside": "shown to be outside tolerance",
    "undetermined": "not enough evidence yet, either way",
    "incomparable": "ran under other conditions than its reference",
    "silent": "no longer reporting",
    "refused": "the device cannot run this variant",
}
# Short, since they stand in every cell.
NOISE_WORDS: Final = {
    "bit-exact": "bit exact",
    "within-rounding": "rounding",
    "same-decision": "same decision",
    "divergent": "divergent",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How many windows of a phase are in."""

    phase: str
    done: int
    needed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One cell in words.

    `word` is a key of `MARKS`, `reason` the whole of it in short, `details` the verdict on each metric with what it
    rests on; `faults` are the metrics that are outside, `circumstances` what the latest window was measured under.
    """

    word: str
    mark: str
    reason: str
    details: tuple[str, ...]
    progress: Progress | None
    faults: frozenset[str]
    p50: str | None
    p95: str | None
    accuracy: str | None
    score: str | None
    delta: str | None
    memory: str | None
    noise: str | None
    circumstances: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One device: a cell per variant of the matrix, None where it has none; `asleep` if it waits for its next day."""

    device: str
    run: str
    fallback: str | None
    cells: tuple[Drawn | None, ...]
    asleep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The devices of one class."""

    device_class: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Devices × variants."""

    variants: tuple[str, ...]
    groups: tuple[Group, ...]
    counts: dict[str, int]

    @property
    def cells(self) -> int:
        """Return how many cells there are."""
        return sum(self.counts.values())


def arrange(
    cells: Iterable[CellRow], *, order: Sequence[str] = (), policy: Policy | None = None, asleep: Collection[str] = ()
) -> Matrix:
    """Arrange cells of one release.

    Args:
        cells: In any order.
        order: Variants in the order of the manifest; others follow by name.
        policy: Says how many windows a phase takes; without it progress is not told.
        asleep: Devices that have used their day's bytes and wait for the next.
    """
    by_place = {(cell.device_class, cell.device, cell.variant): cell for cell in cells}
    found = {variant for _, _, variant in by_place}
    variants = tuple(variant for variant in order if variant in found) + tuple(sorted(found.difference(order)))
    groups: dict[str, dict[str, None]] = {}
    for device_class, device, _ in sorted(by_place):
        groups.setdefault(device_class, {})[device] = None
    return Matrix(
        variants=variants,
        groups=tuple(
            Group(
                device_class=device_class,
                lines=tuple(
                    _line(
                        device,
                        [by_place.get((device_class, device, variant)) for variant in variants],
                        policy,
                        asleep=device in asleep,
                    )
                    for device in devices
                ),
            )
            for device_class, devices in groups.items()
        ),
        counts=_counts(by_place.values()),
    )


def word_of(cell: CellRow) -> str:
    """Return what a cell is called: its verdict, or that it was refused."""
    return "refused" if cell.refusal is not None else cell.verdict


def draw(cell: CellRow, policy: Policy | None = None) -> Drawn:
    """Word one cell."""
    word = word_of(cell)
    return Drawn(
        word=word,
        mark=MARKS[word],
        reason=cell.refusal or cell.reason,
        details=tuple(_detail(metric) for metric in cell.metrics),
        progress=_progress(cell, policy),
        faults=frozenset(metric.metric for metric in cell.metrics if metric.verdict == "outside"),
        p50=None if cell.p50_ms is None else figures.latency(cell.p50_ms),
        p95=None if cell.p95_ms is None else figures.latency(cell.p95_ms),
        accuracy=None if cell.accuracy_ratio is None else figures.accuracy(cell.accuracy_ratio),
        score=None if cell.score_metric is None or cell.score is None else figures.score(cell.score_metric, cell.score),
        delta=None if cell.accuracy_delta is None else figures.points(cell.accuracy_delta),
        memory=None if cell.peak_bytes is None else figures.size(cell.peak_bytes),
        noise=None if cell.noise_class is None else NOISE_WORDS.get(cell.noise_class, cell.noise_class),
        circumstances=circumstances.lines(cell.circumstances),
    )


def run_of(run: RunContext) -> str:
    """Return the runtime and the accelerator that really executed."""
    accelerator = run.accelerator_executed
    if run.delegated_ratio is not None and 0.0 < run.delegated_ratio < 0.995:
        accelerator += f" {run.delegated_ratio * 100:.0f} %"
    return f"{run.runtime} {run.runtime_version} · {accelerator}"


def _detail(metric: MetricVerdict) -> str:
    text = f"{metric.metric}: {metric.verdict}"
    if metric.evidence is not None and metric.evidence_needed is not None:
        text += f", evidence {metric.evidence:.1f} of {metric.evidence_needed:.1f}"
    return f"{text}; {metric.reason}" if metric.reason else text


def _line(device: str, cells: Sequence[CellRow | None], policy: Policy | None, *, asleep: bool) -> Line:
    runs = [cell.run for cell in cells if cell is not None and cell.run is not None]
    return Line(
        device=device,
        run=run_of(runs[0]) if runs else "",
        fallback=next((_fallback(run) for run in runs if run.accelerator_executed != run.accelerator_requested), None),
        cells=tuple(None if cell is None else draw(cell, policy) for cell in cells),
        asleep=asleep,
    )


def _fallback(run: RunContext) -> str:
    why = run.fallback_reason or "no reason given"
    return f"asked for {run.accelerator_requested}, ran on {run.accelerator_executed}: {why}"


def _progress(cell: CellRow, policy: Policy | None) -> Progress | None:
    if policy is None or cell.verdict != "undetermined":
        return None
    if cell.phase == "burn-in":
        return Progress(phase="burn-in", done=min(cell.windows, policy.burn_in_windows), needed=policy.burn_in_windows)
    if cell.phase == "calibrating":
        done = max(0, cell.windows - policy.burn_in_windows)
        needed = policy.calibration_windows
        return Progress(phase="calibrating", done=min(done, needed), needed=needed)
    return None


def _counts(cells: Iterable[CellRow]) -> dict[str, int]:
    counted = Counter(word_of(cell) for cell in cells)
    return {word: counted[word] for word in MARKS}
