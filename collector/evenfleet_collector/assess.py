"""Assess one window: what it does to its cell, to its class's baseline, and which flags open or close.

Finds the values that the rules in `cell` need, and writes what they return. Leaves to `judge` which window is next.

* A class's baseline that cannot be made takes no window of its devices along.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import msgspec

from evenfleet_collector import cell as cells
from evenfleet_collector import shown
from evenfleet_collector.cell import Cell, ClassBaseline, ClassKey, FlagChange
from evenfleet_collector.containment import Containment
from evenfleet_collector.detect import betting
from evenfleet_collector.detect.betting import JudgedWindow
from evenfleet_collector.store import JudgeRows
from evenfleet_collector.store.rows import FlagRow
from evenfleet_collector.tolerance import Policy, Setup, differing_keys, with_room_for
from evenfleet_shared.manifest import Manifest
from evenfleet_shared.messages import RunContext, Window, comparability

log = logging.getLogger(__name__)


def assess(tx: JudgeRows, window: Window, now_s: float, contained: Containment) -> None:
    """Judge the next window of a cell, and write what it means.

    Args:
        tx: The judge's transaction.
        window: The next one in order, noted as judged already: a cell's windows are those up to here.
        now_s: Seconds since 1970, by the collector's clock.
        contained: Keeps a class's failure from being the window's.
    """
    manifest = tx.manifest(window.release)
    if not has_variant(manifest, window.variant):
        # No row: a device can make up as many releases as it likes.
        _pass_over(tx, window, "unknown-release")
        log.info("%s measured %s of release %s…, unknown here", window.device, window.variant, window.release[:12])
        return
    assert manifest is not None
    # Asked for every window: the one before may have made room for its cell in the budget.
    policy = tx.policy()
    cell = tx.cell(window.device, window.release, window.variant)
    run = tx.context(window.context)
    if run is None:
        device_class = tx.device_class(window.device) or "unclassified"
        reason = f"the collector does not know run context {window.context[:12]}…"
        _pass_over(tx, window, "unknown-context")
        tx.put_row(shown.not_judged(window, device_class, cell, reason, now_s))
        return
    if window.comparability is not None and window.comparability != comparability(run):
        # A fault of the agent's, or a lie. What is compared goes by the context's own keys, which have their digest.
        tx.tally("comparability-differs", 1)
        log.info("%s: window %d names another comparability than its context", window.device, window.seq)
    key = ClassKey(window.release, window.variant, run.device_class)
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
            if cells.is_flagged(cell, metric):
                tx.clear_flag(window.device, window.release, window.variant, metric, now_s)
        cell = Cell(device=window.device, key=key, accuracy=cell.accuracy)
    baseline = tx.class_baseline(key)
    done = cells.step(cell, window, run, manifest, baseline, policy)
    tx.put_cell(done.cell, shown.judged(done, window, run, manifest.variant(window.variant), baseline, now_s))
    for change in done.changes:
        _write_flag(tx, change, done.cell, baseline, policy, now_s)
    with contained.part(tx, f"the baseline of class {key.device_class}, {key.variant}"):
        _advance_class(tx, done.cell, baseline, policy)


def _pass_over(tx: JudgeRows, window: Window, reason: str) -> None:
    """Write down that a window judged nothing: should what was missing come later, it still has judged nothing."""
    tx.add_skip(window.device, window.incarnation, window.seq, window.seq, reason)
    tx.tally(reason, 1)


def has_variant(manifest: Manifest | None, name: str) -> bool:
    """Return whether a release is known and has a variant."""
    return manifest is not None and any(variant.name == name for variant in manifest.variants)


def _advance_class(tx: JudgeRows, cell: Cell, baseline: ClassBaseline | None, policy: Policy) -> None:
    """Open or freeze a class's baseline as soon as its devices have had the windows for it."""
    if baseline is not None and baseline.frozen:
        return
    # A class is looked through only by those of its devices that could be the last one it waits for.
    if baseline is None:
        if cell.burn_in < policy.burn_in_windows:
            return
    elif cell.calibration < cells.calibrated_at(baseline, policy):
        return
    key = cell.key
    members = tx.class_cells(key)
    expected = tx.class_devices(key.device_class)
    if baseline is None:
        needed = policy.burn_in_windows
        if cells.ready([cell.burn_in for cell in members], expected, needed):
            setups = _first_setups(tx, members)
            if not setups:
                return  # every device of the class has become unfit to make a baseline since its windows were counted
            setup = cells.reference_setup(setups)
            windows = _class_windows(tx, members, needed, _comparable_with(tx, setup))
            opened = cells.open_baseline(windows, setup, policy, revision=1)
            tx.put_class_baseline(key, opened)
            log.info("class %s, %s: limits from %d devices", key.device_class, key.variant, opened.devices)
    else:
        needed = policy.calibration_windows
        if cells.ready([cell.calibration for cell in members], expected, cells.calibrated_at(baseline, policy)):
            calibrating, comparable = baseline, _comparable_with(tx, baseline.setup)

            def takes_part(window: Window) -> bool:
                return cells.counted(window, calibrating) is not None and comparable(window)

            windows = _class_windows(tx, members, needed, takes_part)
            frozen = cells.freeze(baseline, windows, policy)
            if frozen is None:
                revision = baseline.revision + 1
                log.info("class %s, %s is not steady: reference no. %d", key.device_class, key.variant, revision)
                frozen = cells.open_baseline(windows, baseline.setup, policy, revision=revision)
            else:
                log.info("class %s, %s: judged from now on", key.device_class, key.variant)
            tx.put_class_baseline(key, frozen)


def _class_windows(
    tx: JudgeRows, members: Sequence[Cell], count: int, takes_part: Callable[[Window], bool]
) -> dict[str, list[Window]]:
    """Return each device's first `count` windows that may enter a baseline and take part."""
    found: dict[str, list[Window]] = {}
    for cell in members:
        windows = [
            window
            for window in _windows_of_release(tx, cell)
            if cells.may_enter_baseline(cell, window) and takes_part(window)
        ]
        if windows:
            found[cell.device] = windows[:count]
    return found


def _windows_of_release(tx: JudgeRows, cell: Cell) -> Iterator[Window]:
    """Return a cell's windows in order, without those that measured another file than the release's."""
    manifest = tx.manifest(cell.key.release)
    assert manifest is not None
    variant = manifest.variant(cell.key.variant)
    for row in tx.cell_windows(cell.device, cell.key.release, cell.key.variant):
        if cells.is_of_release(row.window, variant):
            yield row.window


def _first_setups(tx: JudgeRows, members: Sequence[Cell]) -> list[Setup]:
    """Return what each device's first window was measured under, by device."""
    found = _class_windows(tx, members, 1, lambda window: tx.context(window.context) is not None)
    return [cells.setup_of(windows[0], run) for windows in found.values() if (run := tx.context(windows[0].context))]


def _comparable_with(tx: JudgeRows, reference: Setup) -> Callable[[Window], bool]:
    """Return whether a window may be compared with a setup, as a function of it."""
    known: dict[str, RunContext | None] = {}

    def comparable(window: Window) -> bool:
        if window.context not in known:
            known[window.context] = tx.context(window.context)
        run = known[window.context]
        return run is not None and not differing_keys(reference, cells.setup_of(window, run))

    return comparable


def _write_flag(
    tx: JudgeRows,
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
    tx: JudgeRows, change: FlagChange, cell: Cell, baseline: ClassBaseline | None, policy: Policy
) -> betting.BetWhy:
    assert baseline is not None
    held_to = cells.baseline_of(change.metric, baseline)
    assert held_to is not None
    assert held_to.mu0 is not None
    tolerance = cells.tolerance_of(change.metric, policy)
    judged = list(_judged(tx, change, cell, baseline))[-change.explained_by :]
    return betting.why(judged, cells.bet_rule(tolerance, held_to.mu0, policy))


def _judged(tx: JudgeRows, change: FlagChange, cell: Cell, baseline: ClassBaseline) -> Iterator[JudgedWindow]:
    for window in _windows_of_release(tx, cell):
        run = tx.context(window.context)
        counts = cells.exceedance(change.metric, window, baseline)
        if counts and run and not differing_keys(baseline.setup, cells.setup_of(window, run)):
            yield JudgedWindow(incarnation=window.incarnation.counter, seq=window.seq, exceed=counts[0], n=counts[1])
