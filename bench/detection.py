"""Measure the detection rules on generated fleets and print the figures beside their targets.

    python bench/detection.py                          about a minute and a half
    python bench/detection.py --device-months 5000     the full false-flag run, about half an hour

The rules are the product's own, fed window by window; only the fleet is drawn with numpy. One window is 5 minutes, a
device-month 8,640 windows after 288 of burn-in and 288 of calibration. Exit code 4 if a target is missed. The target
for false flags is a 95 % bound; it takes 3,200 months without one to meet it, and fewer leave the row without a mark.

Latency of one device: base 20 ms; log-normal (σ 0.12) with a slow mode (×1.35) of a wandering share and a 1 % tail;
device factor, AR(1) and a diurnal wave between windows; ×3 spikes of one window in 2,000; effective samples n/10. Each
device is judged against its own baseline, the guard band is its class's. `starts` is a second family in which every
200th window on average starts a runner with a factor of its own (σ 10 %).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evenfleet_collector.detect import baseline, betting, fixed_set
from evenfleet_shared.sketch import RELATIVE_ACCURACY

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

QUANTILE, MARGIN, ALLOWED, ALPHA = 0.95, 0.10, 0.05, 0.05
BURN_IN, CALIBRATION, MONTH, DAY = 288, 288, 8640, 288
FAULT_AT, HORIZON = 48, 864
CLASS_DEVICES = 150
_erfc = np.frompyfunc(math.erfc, 1, 1)


@dataclass(frozen=True)
class LatencyFleet:
    """Drawn devices of one class, arrays of shape (devices, windows) from the end of the burn-in on."""

    shift: Floats
    slow: Floats
    spike: npt.NDArray[np.bool_]
    n_eff: Ints
    log_limit: Floats
    rng: np.random.Generator

    def above(self, factor: float, windows: slice) -> Floats:
        """Return the noise-free share above the limit, without spikes, if all were slower by `factor`."""
        at = self.log_limit[:, None] - self.shift[:, windows] - math.log(factor)
        return survival(at, self.slow[:, windows])

    def exceed(self, factor: float, windows: slice) -> Ints:
        """Draw how many effective samples are above the limit."""
        spiked = np.where(self.spike[:, windows], math.log(3.0), 0.0)
        at = self.log_limit[:, None] - self.shift[:, windows] - math.log(factor) - spiked
        return self.rng.binomial(self.n_eff[:, windows], survival(at, self.slow[:, windows]))


def survival(log_ratio: Floats, slow: Floats) -> Floats:
    """Return P(latency > base · e^log_ratio) of the mixture: fast, slow and tail."""

    def tail(mean: float, sd: float) -> Floats:
        return 0.5 * np.asarray(_erfc((log_ratio - mean) / (sd * math.sqrt(2.0))), dtype=np.float64)

    share = 0.99 * ((1.0 - slow) * tail(0.0, 0.12) + slow * tail(math.log(1.35), 0.12)) + 0.01 * tail(1.0, 0.5)
    return np.clip(share, 0.0, 1.0)


def wander(rng: np.random.Generator, devices: int, windows: int, phi: float, sd: float) -> Floats:
    """Draw stationary AR(1) series with standard deviation `sd`."""
    out = np.empty((devices, windows))
    out[:, 0] = rng.normal(0.0, sd, devices)
    noise = rng.normal(0.0, sd * math.sqrt(1.0 - phi * phi), (devices, windows))
    for t in range(1, windows):
        out[:, t] = phi * out[:, t - 1] + noise[:, t]
    return out


def latency_fleet(rng: np.random.Generator, devices: int, windows: int, *, starts: bool) -> LatencyFleet:
    """Draw devices over burn-in, calibration and `windows` more, and take each one's own limit from its burn-in."""
    total = BURN_IN + CALIBRATION + windows
    slow = np.clip(0.08 * np.exp(wander(rng, devices, total, 0.8, 0.5)), 0.0, 0.5)
    hours = np.arange(total) * (2.0 * math.pi / DAY)
    shift = math.log(20.0) + rng.normal(0.0, 0.03, (devices, 1)) + wander(rng, devices, total, 0.7, 0.03)
    shift += 0.02 * np.sin(hours + rng.uniform(0.0, 2.0 * math.pi, (devices, 1)))
    if starts:
        begins = rng.random((devices, total)) < 1.0 / 200.0
        begins[:, 0] = True
        factors = rng.normal(0.0, 0.1, (devices, total))
        last = np.maximum.accumulate(np.where(begins, np.arange(total), 0), axis=1)
        shift += np.take_along_axis(factors, last, axis=1)
    spike = rng.random((devices, total)) < 1.0 / 2000.0
    n_eff = (np.clip(1000.0 * np.exp(0.6 * rng.normal(size=(devices, total))), 100, 10_000) / 10.0).astype(np.int64)
    log_limit = own_baseline(rng, shift[:, :BURN_IN], slow[:, :BURN_IN], n_eff[:, :BURN_IN]) + math.log1p(MARGIN)
    after = slice(BURN_IN, None)
    return LatencyFleet(shift[:, after], slow[:, after], spike[:, after], n_eff[:, after], log_limit, rng)


def own_baseline(rng: np.random.Generator, shift: Floats, slow: Floats, n_eff: Ints) -> Floats:
    """Return each device's log baseline p95: the median of what its burn-in windows' sketches would say."""
    rank = np.ceil(QUANTILE * n_eff)
    above = 1.0 - rng.beta(rank, n_eff - rank + 1.0)
    low, high = np.full(shift.shape, math.log(5.0)), np.full(shift.shape, math.log(200.0))
    for _ in range(20):
        middle = 0.5 * (low + high)
        over = survival(middle - shift, slow) > above
        low, high = np.where(over, middle, low), np.where(over, high, middle)
    log_gamma = math.log1p(2.0 * RELATIVE_ACCURACY / (1.0 - RELATIVE_ACCURACY))
    return np.median(np.ceil(high / log_gamma) * log_gamma + math.log1p(-RELATIVE_ACCURACY), axis=1)


def class_rule(x: Floats, log_a: float) -> betting.BetRule:
    """Return the rule of a class from its calibration's shares, shape (devices, windows)."""
    guard = baseline.guard_band(x.tolist(), allowed_ratio=ALLOWED)
    mu0 = baseline.tolerable_ratio(ALLOWED, guard)
    return betting.rule(mu0=mu0, allowed_ratio=ALLOWED, alpha=ALPHA, log_a=log_a)


def judge(exceed: Ints, n: Ints, by: betting.BetRule) -> Iterator[betting.Evidence]:
    """Feed one device's windows to the rule."""
    state = betting.BetState()
    for above, count in zip(exceed.tolist(), n.tolist(), strict=True):
        state, evidence = betting.step(state, above, count, by)
        yield evidence


def recent_truth(fleet: LatencyFleet, windows: slice) -> Floats:
    """Return the noise-free share above the limit over the last 24 windows, planted spikes left out."""
    share = fleet.above(1.0, windows)
    keep = ~fleet.spike[:, windows]
    sums = np.cumsum(np.where(keep, share, 0.0), axis=1)
    counts = np.cumsum(keep, axis=1).astype(np.float64)
    sums[:, 24:] = sums[:, 24:] - sums[:, :-24]
    counts[:, 24:] = counts[:, 24:] - counts[:, :-24]
    return sums / np.maximum(counts, 1.0)


class Table:
    """Collects rows of target and measured, prints each as it comes, and remembers misses."""

    def __init__(self) -> None:
        self.missed = 0

    def row(self, name: str, target: str, measured: str, good: bool | None = None) -> None:
        """Print one row; `good` is None where there is no target."""
        self.missed += good is False
        mark = {None: "", True: "met", False: "MISSED"}[good]
        print(f"{name:44} {target:22} {measured:44} {mark}", flush=True)


def quantiles(values: list[int]) -> tuple[int, int]:
    """Return median and 95 % quantile, nearest rank."""
    ordered = sorted(values)
    return ordered[math.ceil(0.5 * len(ordered)) - 1], ordered[math.ceil(0.95 * len(ordered)) - 1]


def poisson_bound(count: int) -> float:
    """Return the mean that a Poisson count exceeds `count` at with a probability of 95 %."""
    low, high = 0.0, 10.0 + 3.0 * count
    for _ in range(60):
        mean = 0.5 * (low + high)
        at_most = sum(math.exp(-mean) * mean**k / math.factorial(k) for k in range(count + 1))
        low, high = (mean, high) if at_most > 0.05 else (low, mean)
    return high


def false_flags_row(table: Table, name: str, flags: int, months: int, justified: int) -> None:
    """Print a row of G1, without a mark where so few months can neither meet nor miss the target."""
    bound = 1000.0 * poisson_bound(flags) / months
    good = True if bound <= 0.95 else False if flags > 1 else None
    text = f"{flags} in {months:,}, bound {bound:.1f} ({justified} justified)"
    table.row(name, "<= 0.95 / 1,000 months", text, good)


def false_latency_flags(table: Table, rng: np.random.Generator, months: int, log_a: float, *, starts: bool) -> None:
    """G1: healthy devices for a month each."""
    unjustified = justified = within = judged = 0
    first_within: list[int] = []
    guards: list[float] = []
    for begin in range(0, months, CLASS_DEVICES):
        devices = min(CLASS_DEVICES, months - begin)
        fleet = latency_fleet(rng, devices, MONTH, starts=starts)
        month = slice(CALIBRATION, None)
        exceed = fleet.exceed(1.0, slice(None))
        by = class_rule(exceed[:, :CALIBRATION] / fleet.n_eff[:, :CALIBRATION], log_a)
        guards.append(by.mu0)
        truth = recent_truth(fleet, month)
        for device in range(devices):
            reached = MONTH
            stream = judge(exceed[device, month], fleet.n_eff[device, month], by)
            for t, evidence in enumerate(stream):
                if evidence.flagged_now:
                    if truth[device, t] > ALLOWED:
                        justified += 1
                    else:
                        unjustified += 1
                if evidence.verdict == "within":
                    within += 1
                    reached = min(reached, t + 1)
            judged += MONTH
            first_within.append(reached)
    family = " with runner starts" if starts else ""
    false_flags_row(table, f"G1 false flags, latency{family}", unjustified, months, justified)
    median, late = quantiles(first_within)
    table.row("   healthy: windows to within, p50 / p95", "60-130 by nature", f"{median} / {late}")
    table.row("   healthy: share of windows within", "", f"{within / judged:.1%}, mu0 {np.median(guards):.4f}")


def latency_faults(table: Table, rng: np.random.Generator, devices: int, log_a: float) -> None:
    """G2 and G7: planted slow-downs, and how soon a flag clears once they are gone."""
    fleet = latency_fleet(rng, devices, HORIZON + FAULT_AT, starts=False)
    calm = fleet.exceed(1.0, slice(None))
    by = class_rule(calm[:, :CALIBRATION] / fleet.n_eff[:, :CALIBRATION], log_a)
    clears: list[int] = []
    for factor, target in ((1.2, (48, 125)), (1.3, (20, 32)), (1.5, (10, 13)), (2.0, (8, 9))):
        bad = fleet.exceed(factor, slice(None))
        onset = CALIBRATION + FAULT_AT
        exceed = calm.copy()
        exceed[:, onset:] = bad[:, onset:]
        delays: list[int] = []
        early = 0
        for device in range(devices):
            state = betting.BetState()
            fixed_at = None
            for t in range(CALIBRATION, exceed.shape[1]):
                source = exceed if fixed_at is None else calm
                state, evidence = betting.step(state, int(source[device, t]), int(fleet.n_eff[device, t]), by)
                if evidence.flagged_now and t < onset:
                    early += 1
                    break
                if evidence.flagged_now and fixed_at is None:
                    delays.append(t - onset + 1)
                    fixed_at = t
                if evidence.cleared_now and fixed_at is not None:
                    clears.append(t - fixed_at)
                    break
        median, late = quantiles(delays)
        miss = 1.0 - (len(delays) + early) / devices
        table.row(
            f"G2 latency +{(factor - 1) * 100:.0f} %: windows to flag, p50 / p95",
            f"<= {target[0]} / {target[1]}, miss 1 %",
            f"{median} / {late}, missed {miss:.1%}, early {early}",
            median <= target[0] and late <= target[1] and miss <= 0.01,
        )
    median, late = quantiles(clears)
    table.row("G7 latency: windows to clear, p50 / p95", "<= 8 / 36", f"{median} / {late}", median <= 8 and late <= 36)


def memory_level(table: Table, rng: np.random.Generator, devices: int, log_a: float) -> None:
    """G1 and G5 for the level of memory: a month without a fault, then a step of +40 %."""
    total = BURN_IN + MONTH
    log_mb = math.log(48.0) + rng.normal(0.0, 0.02, (devices, 1)) + wander(rng, devices, total, 0.6, 0.01)
    starts = np.where(rng.random((devices, total)) < 1.0 / 2000.0, np.arange(total), -1000)
    since = np.arange(total) - np.maximum.accumulate(starts, axis=1)
    warm_up = 1.0 - 0.05 * np.exp(-since / 15.0)
    spike = np.where(rng.random((devices, total)) < 1.0 / 1000.0, 1.1, 1.0)
    peak = np.round(np.exp(log_mb) * warm_up * spike / 0.125) * 0.125
    own = [baseline.memory_quantile((row * 2**20).astype(np.int64).tolist(), QUANTILE) for row in peak[:, :BURN_IN]]
    limit_mb = baseline.limit(baseline.class_baseline(own), MARGIN) / 2**20
    by = betting.rule(mu0=ALLOWED, allowed_ratio=ALLOWED, alpha=ALPHA, log_a=log_a)
    flags = 0
    delays = []
    for device in range(devices):
        state = betting.BetState()
        for mb in peak[device, BURN_IN:].tolist():
            state, evidence = betting.step(state, int(mb > limit_mb), 1, by)
            flags += evidence.flagged_now
        for t, mb in enumerate(peak[device, BURN_IN:].tolist(), 1):
            state, evidence = betting.step(state, int(1.4 * mb > limit_mb), 1, by)
            if evidence.flagged_now:
                delays.append(t)
                break
    false_flags_row(table, "G1 false flags, memory level", flags, devices, 0)
    median, late = quantiles(delays)
    complete = late <= 8 and len(delays) == devices
    table.row("G5 memory +40 %: windows to flag, p50 / p95", "<= 8", f"{median} / {late}", complete)


def accuracy_faults(table: Table, rng: np.random.Generator, devices: int) -> None:
    """G4 on a fixed set with fixed answers: two points worse, and exactly at the margin."""
    for excess, expected in ((0.02, "outside"), (0.01, "within")):
        delays, wrong = [], 0
        for _ in range(devices):
            n = int(rng.choice([200, 500, 1000]))
            reference = round(0.1 * n)
            state = fixed_set.FixedSetState()
            for t in range(-10, 30):
                errors = reference + (round(excess * n) if t >= 0 else 0)
                flips = errors - reference if t == 0 else None if t == -10 else 0
                state, why = fixed_set.step(
                    state,
                    n=n,
                    errors=errors,
                    hamming=flips,
                    prediction_digest=f"{errors:064x}",
                    reference_errors=reference,
                    unstable=0,
                    margin_ratio=0.01,
                )
                if why.flagged_now:
                    delays.append(t + 1)
            wrong += why.verdict != expected
        if expected == "outside":
            good = not wrong and max(delays) <= 4
            table.row("G4 accuracy −2 points: windows to flag, most", "<= 4", str(max(delays)), good)
        else:
            good = not wrong and not delays
            table.row("G4 accuracy exactly at the margin: outside", "0", f"{len(delays)} in {devices}", good)


def boundary(table: Table, rng: np.random.Generator) -> None:
    """G9: X ~ Beta(0.5, 9.5), whose mean is mu0 to the last digit."""
    streams, windows = 100, 1000
    million = 1_000_000
    exceed = np.floor(rng.beta(0.5, 9.5, (streams, windows)) * million).astype(np.int64)
    n = np.full(windows, million)
    for log_a in (6.0, 9.0, 12.0):
        by = betting.rule(mu0=ALLOWED, allowed_ratio=ALLOWED, alpha=ALPHA, log_a=log_a)
        flags = sum(evidence.flagged_now for row in exceed for evidence in judge(row, n, by))
        most = streams * windows / math.exp(log_a)
        table.row(f"G9 flags at the exact boundary, log A {log_a:g}", f"<= {most:.1f}", str(flags), flags <= most)


def speed(table: Table) -> None:
    """G10: one core, through the rule as `judge` calls it."""
    by = betting.rule(mu0=ALLOWED, allowed_ratio=ALLOWED, alpha=ALPHA, log_a=17.8)
    state, updates = betting.BetState(), 50_000
    begin = time.perf_counter()
    for i in range(updates):
        state, _ = betting.step(state, i % 7, 100, by)
    rate = updates / (time.perf_counter() - begin)
    table.row("G10 stream-updates per second, one core", ">= 1,000,000", f"{rate:,.0f}", rate >= 1e6)


def main() -> int:
    """Run everything and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device-months", type=int, default=300, help="healthy device-months per family (default 300)")
    parser.add_argument("--faulty", type=int, default=300, help="devices per planted fault (default 300)")
    parser.add_argument("--log-a", type=float, default=17.8, help="evidence that a flag takes (default 17.8)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    table = Table()
    print(f"{'':44} {'target':22} {'measured':44}")
    generators = np.random.default_rng(arguments.seed).spawn(6)
    months = arguments.device_months
    accuracy_faults(table, generators[0], arguments.faulty)
    boundary(table, generators[1])
    latency_faults(table, generators[2], arguments.faulty, arguments.log_a)
    memory_level(table, generators[3], max(1, months // 5), arguments.log_a)
    false_latency_flags(table, generators[4], months, arguments.log_a, starts=False)
    false_latency_flags(table, generators[5], months, arguments.log_a, starts=True)
    speed(table)
    print(f"{time.perf_counter() - begin:.0f} s, seed {arguments.seed}")
    return 4 if table.missed else 0


if __name__ == "__main__":
    sys.exit(main())
