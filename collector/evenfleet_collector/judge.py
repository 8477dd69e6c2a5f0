"""Follow the log in order and write down what it means: cells, baselines, flags, and what was passed over.

Finds the values that the rules in `cell` need, and writes what they return, in one transaction with the cursor.
Leaves to `steer` what devices are told in consequence.

* The order is (incarnation, seq), never the wall clock or the order of arrival: a window waits for those before it.
* It does not wait for ever: behind three later windows, or twenty minutes, what is missing is passed over, which is
  written as a skip row, so that a replay of the log passes it over too.
* An incarnation that a later one has overtaken is history: its windows are kept, and judge nobody.
* A kill at any instant loses nothing: what was not committed is judged again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import msgspec

from evenfleet_collector import cell as cells
from evenfleet_collector.cell import Cell, CellStep, ClassBaseline, ClassKey, FlagChange, MetricVerdict
from evenfleet_collector.detect import betting
from evenfleet_collector.detect.betting import JudgedWindow
from evenfleet_collector.store import Transaction, Writer
from evenfleet_collector.store.rows import CellRow, EventRow, FlagRow
from evenfleet_collector.tolerance import Policy, Verdict, combine, differing_keys, with_room_for
from evenfleet_shared.manifest import Variant
from evenfleet_shared.messages import Incarnation, RunContext, Window

log = logging.getLogger(__name__)

BATCH: Final = 500
WATERMARK_WINDOWS: Final = 3
WATERMARK_S: Final = 20 * 60.0
_STALE_EVERY_S: Final = 60.0


class Judge:
    """The loop behind `ingest`."""

    def __init__(self, store: Writer) -> None:
        self._store = store
        self._stale_checked_s = 0.0

    def step(self, now_s: float, *, connected_since_s: float | None) -> bool:
        """Judge what has come.

        Args:
            now_s: Seconds since 1970, by the collector's clock.
            connected_since_s: Since when the collector itself can hear devices, None while it cannot: silence counts
                from then on.

        Returns:
            Whether there is more to do at once.
        """
        with self._store.transaction() as tx:
            policy = tx.policy()
            cursor = tx.cursor("judge")
            arrivals = tx.arrivals(cursor, BATCH)
            # In order: an older life that came in the same batch is not overtaken by the newer one.
            for device, incarnation in sorted({(arrival.device, arrival.incarnation) for arrival in arrivals}):
                _Life(tx, device, incarnation, now_s).judge()
            if arrivals:
                tx.put_cursor("judge", arrivals[-1].id)
            if now_s - self._stale_checked_s >= _STALE_EVERY_S:
                self._stale_checked_s = now_s
                for device, incarnation in tx.unjudged(now_s - WATERMARK_S):
                    _Life(tx, device, incarnation, now_s).judge()
            self._note_refusals(tx, now_s)
            if connected_since_s is not None:
                self._note_silence(tx, policy, now_s, connected_since_s)
        return len(arrivals) == BATCH

    def _note_refusals(self, tx: Transaction, now_s: float) -> None:
        events = tx.events(tx.cursor("judge-events"), BATCH)
        for event in events:
            if event.event == "variant-refused" and event.release and event.variant:
                tx.put_row(_refused_row(event, tx.device_class(event.device) or "unclassified", now_s))
        if events:
            tx.put_cursor("judge-events", events[-1].id)

    def _note_silence(self, tx: Transaction, policy: Policy, now_s: float, connected_since_s: float) -> None:
        after_s = policy.silent_after_s
        if now_s - connected_since_s < after_s:
            return
        for row in tx.silent_since(now_s - after_s):
            if row.refusal is None:
                reason = f"nothing heard of the device for more than {after_s:g} s"
                tx.put_row(replace(row, verdict="silent", reason=reason, updated_s=now_s))


class _Life:
    """One incarnation of one device, judged as far as it has come."""

    def __init__(self, tx: Transaction, device: str, incarnation: Incarnation, now_s: float) -> None:
        self._tx = tx
        self._device = device
        self._incarnation = incarnation
        self._now_s = now_s
        self._settled = tx.incarnation(device, incarnation).settled
        self._judged_to = tx.judging(device, incarnation)

    def judge(self) -> None:
        """Judge what is in order; pass over what is missing for too long, or has been overtaken."""
        newest = self._tx.newest_judged(self._device)
        if newest is not None and newest > self._incarnation:
            self._skip(self._settled[-1][1], "overtaken")
        for first, last in self._settled:
            if last <= self._judged_to:
                continue
            if first > self._judged_to + 1:
                if not self._is_behind_watermark(first):
                    break
                self._skip(first - 1, "watermark")
            for row in self._tx.windows_in(self._device, self._incarnation, self._judged_to + 1, last):
                # First: a cell's windows are those up to here, this one included.
                self._advance(row.window.seq)
                _judge_window(self._tx, row.window, self._now_s)
            self._advance(last)

    def _is_behind_watermark(self, gap_end: int) -> bool:
        later = self._tx.windows_in(self._device, self._incarnation, gap_end, self._settled[-1][1])
        return len(later) >= WATERMARK_WINDOWS or any(row.received_s < self._now_s - WATERMARK_S for row in later)

    def _skip(self, last: int, reason: str) -> None:
        if last > self._judged_to:
            self._tx.add_skip(self._device, self._incarnation, self._judged_to + 1, last, reason)
            self._advance(last)

    def _advance(self, seq: int) -> None:
        self._judged_to = seq
        self._tx.put_judging(self._device, self._incarnation, seq)


def _judge_window(tx: Transaction, window: Window, now_s: float) -> None:
    # Asked for every window: the one before may have made room for its cell in the budget.
    policy = tx.policy()
    run = tx.context(window.context)
    manifest = tx.manifest(window.release)
    known = manifest is not None and any(variant.name == window.variant for variant in manifest.variants)
    if run is None or manifest is None or not known:
        missing = f"run context {window.context[:12]}" if run is None else f"{window.variant} of {window.release[:12]}"
        device_class = run.device_class if run else tx.device_class(window.device) or "unclassified"
        tx.put_row(_unknown_row(window, device_class, f"the collector does not know {missing}…", now_s))
        return
    variant = manifest.variant(window.variant)
    key = ClassKey(window.release, window.variant, run.device_class)
    cell = tx.cell(window.device, window.release, window.variant)
    if cell is None:
        cell = Cell(device=window.device, key=key)
        streams = (tx.cell_count() + 1) * len(cells.METRICS)
        roomier = with_room_for(policy, streams)
        if roomier is not policy:
            log.info("policy revision %d: the false-flag budget is shared by %d streams", roomier.revision, streams)
            tx.put_policy(roomier, now_s)
            policy = roomier
    elif cell.key != key:
        # The device moved to another class, which it is a stranger in: what was held against it ends with the old one.
        for metric in cells.EXCEEDANCE_METRICS:
            if (cell.latency if metric == "latency" else cell.memory).flagged:
                tx.clear_flag(window.device, window.release, window.variant, metric, now_s)
        cell = Cell(device=window.device, key=key, accuracy=cell.accuracy)
    baseline = tx.class_baseline(key)
    done = cells.step(cell, window, run, variant, baseline, policy)
    tx.put_cell(done.cell, _row(done, window, run, variant, baseline, now_s))
    for change in done.changes:
        _write_flag(tx, change, done.cell, baseline, policy, now_s)
    _advance_class(tx, done.cell, baseline, policy)


def _advance_class(tx: Transaction, cell: Cell, baseline: ClassBaseline | None, policy: Policy) -> None:
    """Open or freeze a class's baseline as soon as its devices have had the windows for it."""
    if baseline is not None and baseline.frozen:
        return
    # A class is looked through only by those of its devices that could be the last one it waits for.
    if cell.burn_in < policy.burn_in_windows if baseline is None else cell.calibration < policy.calibration_windows:
        return
    key = cell.key
    members = tx.class_cells(key)
    expected = tx.class_devices(key.device_class)
    if baseline is None:
        needed = policy.burn_in_windows
        if cells.ready([cell.burn_in for cell in members], expected, needed):
            runs = _first_runs(tx, members)
            if not runs:
                return  # every device of the class has become unfit to make a baseline since its windows were counted
            run = cells.reference_run(runs)
            windows = _class_windows(tx, members, needed, _comparable_with(tx, run))
            opened = cells.open_baseline(windows, run, policy, revision=1)
            tx.put_class_baseline(key, opened)
            log.info("class %s, %s: limits from %d devices", key.device_class, key.variant, opened.devices)
    else:
        needed = policy.calibration_windows
        if cells.ready([cell.calibration for cell in members], expected, needed):
            calibrating, comparable = baseline, _comparable_with(tx, baseline.run)

            def takes_part(window: Window) -> bool:
                return cells.counted(window, calibrating) is not None and comparable(window)

            windows = _class_windows(tx, members, needed, takes_part)
            tx.put_class_baseline(key, cells.freeze(baseline, windows, policy))
            log.info("class %s, %s: judged from now on", key.device_class, key.variant)


def _class_windows(
    tx: Transaction, members: Sequence[Cell], count: int, takes_part: Callable[[Window], bool]
) -> dict[str, list[Window]]:
    """Return each device's first `count` windows that may enter a baseline and take part."""
    found: dict[str, list[Window]] = {}
    for cell in members:
        rows = tx.cell_windows(cell.device, cell.key.release, cell.key.variant)
        windows = [row.window for row in rows if cells.may_enter_baseline(cell, row.window) and takes_part(row.window)]
        if windows:
            found[cell.device] = windows[:count]
    return found


def _first_runs(tx: Transaction, members: Sequence[Cell]) -> list[RunContext]:
    """Return what each device's first window was measured under, by device."""
    found = _class_windows(tx, members, 1, lambda window: tx.context(window.context) is not None)
    return [run for windows in found.values() if (run := tx.context(windows[0].context))]


def _comparable_with(tx: Transaction, reference: RunContext) -> Callable[[Window], bool]:
    """Return whether a window may be compared with a run, as a function of it."""
    known: dict[str, bool] = {}

    def comparable(window: Window) -> bool:
        if window.context not in known:
            run = tx.context(window.context)
            known[window.context] = run is not None and not differing_keys(reference, run)
        return known[window.context]

    return comparable


def _write_flag(
    tx: Transaction,
    change: FlagChange,
    cell: Cell,
    baseline: ClassBaseline | None,
    policy: Policy,
    now_s: float,
) -> None:
    key = cell.key
    if not change.opens:
        log.info("cleared: %s %s %s", cell.device, key.variant, change.metric)
        tx.clear_flag(cell.device, key.release, key.variant, change.metric, now_s)
        return
    log.warning("outside: %s %s %s: %s", cell.device, key.variant, change.metric, change.reason)
    tx.open_flag(
        FlagRow(
            id=0,
            device=cell.device,
            device_class=key.device_class,
            release=key.release,
            variant=key.variant,
            metric=change.metric,
            reason=change.reason,
            opened_s=now_s,
            cleared_s=None,
            evidence_json=msgspec.json.encode(change.why or _bet_why(tx, change, cell, baseline, policy)),
        )
    )


def _bet_why(
    tx: Transaction, change: FlagChange, cell: Cell, baseline: ClassBaseline | None, policy: Policy
) -> betting.BetWhy:
    assert baseline is not None
    held_to = cells.baseline_of(change.metric, baseline)
    assert held_to is not None
    assert held_to.mu0 is not None
    tolerance = cells.tolerance_of(change.metric, policy)
    judged = list(_judged(tx, change, cell, baseline))[-change.explained_by :]
    return betting.why(judged, cells.bet_rule(tolerance, held_to.mu0, policy))


def _judged(tx: Transaction, change: FlagChange, cell: Cell, baseline: ClassBaseline) -> Iterator[JudgedWindow]:
    for row in tx.cell_windows(cell.device, cell.key.release, cell.key.variant):
        window = row.window
        run = tx.context(window.context)
        counts = cells.exceedance(change.metric, window, baseline)
        if counts and run and not differing_keys(baseline.run, run):
            yield JudgedWindow(incarnation=window.incarnation.counter, seq=window.seq, exceed=counts[0], n=counts[1])


def _row(
    done: CellStep,
    window: Window,
    run: RunContext,
    variant: Variant,
    baseline: ClassBaseline | None,
    now_s: float,
) -> CellRow:
    verdict = combine(metric.verdict for metric in done.metrics)
    accuracy, latency = window.accuracy, window.latency
    ratio = 1.0 - accuracy.errors / accuracy.n if accuracy else None
    return CellRow(
        version=0,
        device=window.device,
        device_class=run.device_class,
        release=window.release,
        variant=window.variant,
        verdict=verdict,
        reason=_reason(verdict, done.metrics),
        metrics=done.metrics,
        refusal=None,
        phase=cells.phase(done.cell, baseline),
        windows=done.cell.windows,
        accuracy_ratio=ratio,
        accuracy_delta=None if ratio is None else ratio - (1.0 - variant.reference.errors / variant.reference.n),
        noise_class=accuracy.agreement.noise_class if accuracy else None,
        p50_ms=latency.p50_ms if latency else None,
        p95_ms=latency.p95_ms if latency else None,
        peak_bytes=cells.peak_bytes(window),
        run=run,
        updated_s=now_s,
    )


def _reason(verdict: Verdict, metrics: Sequence[MetricVerdict]) -> str:
    """Return what the metrics that made the verdict say."""
    return "; ".join(f"{metric.metric}: {metric.reason}" for metric in metrics if metric.verdict == verdict)


def _unknown_row(window: Window, device_class: str, reason: str, now_s: float) -> CellRow:
    return _bare_row(window.device, device_class, window.release, window.variant, reason, None, now_s)


def _refused_row(event: EventRow, device_class: str, now_s: float) -> CellRow:
    assert event.release is not None
    assert event.variant is not None
    reason = "the device cannot run this variant"
    return _bare_row(event.device, device_class, event.release, event.variant, reason, event.detail, now_s)


def _bare_row(
    device: str, device_class: str, release: str, variant: str, reason: str, refusal: str | None, now_s: float
) -> CellRow:
    return CellRow(
        version=0,
        device=device,
        device_class=device_class,
        release=release,
        variant=variant,
        verdict="undetermined",
        reason=reason,
        metrics=(),
        refusal=refusal,
        phase="burn-in" if refusal is None else "refused",
        windows=0,
        accuracy_ratio=None,
        accuracy_delta=None,
        noise_class=None,
        p50_ms=None,
        p95_ms=None,
        peak_bytes=None,
        run=None,
        updated_s=now_s,
    )
