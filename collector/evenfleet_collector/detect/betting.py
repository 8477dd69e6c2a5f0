"""Decide whether the share of measurements above a limit is tolerable, looking at every window for months.

One stream is one device × variant × metric. A window counts `exceed` of `n` measurements above the limit, and
X = exceed / n. The device is in tolerance as long as E[X | past] <= mu0. Two bets run against each other:

* **outside** bets that X is above mu0. L = 1 + λ(X − mu0) has E[L | past] <= 1 in tolerance, for any autocorrelation,
  any n and any distribution of X. The recursion W = min(max(W, 0) + log L, ceiling) is an e-detector (Shin, Ramdas and
  Rinaldo): flagging at max W − log G >= log A costs a fleet in tolerance one false flag per A stream-windows at most.
* **within** bets that X is below mu_within, with L = 1 + λ(mu_within − X). It must not start anew at 0 as the outside
  bet does: that would grant a device which is always bad a free try at every window, and reach `within` every 1/alpha of
  them. So it is a plain product of its L, and by Ville's inequality a device that is out of tolerance reaches 1/alpha
  with probability alpha at most. It is cut twice, so that the past cannot outvote the present:
  above, which only lowers it: what a good month can save up survives one window in which everything exceeds, not two;
  and below at −log A, where cutting raises it: over a month that adds at most alpha·B/K to alpha.
  `within` is entered at log(1/alpha) and left when half of that evidence is gone, or when the outside bet is suspect.

Leaves to others which windows are judged and in which order, where state is kept, and what limit was counted against.

* All state is integers, in units of 2^-16 nat (int32); the same windows give the same state on every machine.
* Logarithms are rounded down, thresholds up: that only lowers evidence.
* A window adds log A / min_windows at most, so fewer than min_windows + 1 windows never flag.
* `outside` and `within` never hold together; too little data is `undetermined`.
* A flag is cleared by `clear_windows` windows in a row with X <= allowed_ratio; then both bets start anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import lru_cache
from typing import Annotated, Final, Literal

from msgspec import Meta

# One nat in the integers that the state is made of.
NAT: Final = 1 << 16

# λ of the outside bet in units of 1/mu0: large for faults that show at once, small for slow ones. 1 would lose
# everything at the first window without exceedance.
OUTSIDE_GRID: Final = (0.95, 0.40, 0.15)

# λ of the within bet in units of 1/(1 − mu_within), and its share of the stake. X of a good device is so far from 1
# that the largest λ is nearly always best; the small one serves streams of few or single measurements (memory).
WITHIN_GRID: Final = ((0.95, 7 / 8), (0.50, 1 / 8))

# Evidence at which a device is shown as suspect and no longer as within.
SUSPECT_NATS: Final = 8.0

# The estimate shown beside a verdict averages over about this many windows.
ESTIMATE_WINDOWS: Final = 64
_ESTIMATE_ONE: Final = 1 << 24

# Counters stop here: no explanation shows more windows, and state stays small.
_MOST: Final = 999_999
_EXACT: Final = Context(prec=60)

BetVerdict = Literal["within", "outside", "undetermined"]
_Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
_Counter = Annotated[int, Meta(ge=0, le=2**24)]


@dataclass(frozen=True, slots=True, kw_only=True)
class BetRule:
    """The numbers that a stream is judged by; made by `rule`. Everything from `log_a` on is in units of 2^-16 nat.

    `clear_windows` is a count and the λ are plain numbers, one per entry of the grids.
    """

    mu0: float
    mu_within: float
    allowed_ratio: float
    clear_windows: int
    outside_lambdas: tuple[float, ...]
    within_lambdas: tuple[float, ...]
    log_a: int
    log_g: int
    cap: int
    ceiling: int
    suspect: int
    within_stakes: tuple[int, ...]
    within_enter: int
    within_leave: int
    within_ceilings: tuple[int, ...]
    within_floor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BetState:
    """What is remembered of a stream. The default is a stream that nothing is known of.

    `outside` and `within` are the sums per λ, in units of 2^-16 nat. `ages` counts the windows since each outside sum
    last started from 0: that many windows explain it (`why`). `windows` counts those since the bets last started anew,
    `inside_run` those inside the limit in a row. `estimate` is a recent mean of X, in units of 2^-24.
    """

    outside: Annotated[tuple[_Int32, ...], Meta(min_length=3, max_length=3)] = (0, 0, 0)
    ages: Annotated[tuple[_Counter, ...], Meta(min_length=3, max_length=3)] = (0, 0, 0)
    within: Annotated[tuple[_Int32, ...], Meta(min_length=2, max_length=2)] = (0, 0)
    windows: _Counter = 0
    inside_run: _Counter = 0
    estimate: _Counter = 0
    flagged: bool = False
    settled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What one window did to a stream, in nats.

    `flagged_now` and `cleared_now` are true at the window that opens or closes a flag. `estimate_ratio` is the mean of
    X over about the last 64 windows. `explained_by` is how many of the last judged windows make up `outside_nats`.
    """

    verdict: BetVerdict
    suspect: bool
    flagged_now: bool
    cleared_now: bool
    exceed_ratio: float
    estimate_ratio: float
    windows: int
    outside_nats: float
    outside_threshold_nats: float
    within_nats: float
    within_threshold_nats: float
    explained_by: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedWindow:
    """One window as a stream saw it; memory has `n` = 1."""

    incarnation: int
    seq: int
    exceed: int
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyWindow:
    """One window of an explanation: what was counted, what it added, and the sum after it."""

    incarnation: int
    seq: int
    exceed: int
    n: int
    increment_nats: float
    sum_nats: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BetWhy:
    """Why a stream is where it is, recomputable from this alone (`docs/verdicts.md` has the 30 lines).

    The windows are those since the sum of the leading λ last started from 0. The other λ do not matter: the strongest
    one decides, less `log_g_nats`, which is the price of having tried several.
    """

    rule: Literal["exceedance-bet"] = "exceedance-bet"
    mu0: float
    bet: float
    cap_nats: float
    log_g_nats: float
    threshold_nats: float
    stat_nats: float
    windows: tuple[WhyWindow, ...]


@lru_cache(maxsize=4096)
def rule(
    *, mu0: float, allowed_ratio: float, alpha: float, log_a: float, min_windows: int = 3, clear_windows: int = 6
) -> BetRule:
    """Return the numbers that a stream is judged by.

    Args:
        mu0: The largest tolerable mean of X, guard band included; within 0..1, ends excluded.
        allowed_ratio: The share that the tolerance itself allows, 1 − q; at most `mu0`. The within bet is made against
            `mu0`, but never against more than twice this: a wide guard band makes flags rarer, not good news cheaper.
        alpha: The largest probability of calling a device within that is not.
        log_a: The evidence that a flag takes, in nats; `tolerance.log_a`.
        min_windows: A flag takes more windows than this.
        clear_windows: How many windows in a row inside the limit clear a flag.

    Raises:
        ValueError: A number is outside its bounds.

    >>> rule(mu0=0.05, allowed_ratio=0.05, alpha=0.05, log_a=17.8).outside_lambdas
    (19.0, 8.0, 3.0)
    """
    if not 0.0 < allowed_ratio <= mu0 < 1.0:
        raise ValueError(f"expected 0 < allowed_ratio <= mu0 < 1, found {allowed_ratio} and {mu0}")
    if not 0.0 < alpha < 1.0 or log_a <= 0.0 or min_windows < 1 or clear_windows < 1:
        raise ValueError(
            f"alpha {alpha}, log_a {log_a}, min_windows {min_windows} or clear_windows {clear_windows} is out of bounds"
        )
    mu_within = min(mu0, 2.0 * allowed_ratio)
    threshold = math.ceil(log_a * NAT)
    log_g = -_log_floor(1.0 / len(OUTSIDE_GRID) - 1.0)
    enter = -_log_floor(alpha - 1.0)
    return BetRule(
        mu0=mu0,
        mu_within=mu_within,
        allowed_ratio=allowed_ratio,
        clear_windows=clear_windows,
        # Rounded, so that 0.95 / 0.05 is 19 and shows as such.
        outside_lambdas=tuple(round(share / mu0, 12) for share in OUTSIDE_GRID),
        within_lambdas=tuple(round(share / (1.0 - mu_within), 12) for share, _ in WITHIN_GRID),
        log_a=threshold,
        log_g=log_g,
        cap=threshold // min_windows,
        ceiling=2 * threshold + log_g,
        suspect=min(math.ceil(SUSPECT_NATS * NAT), threshold),
        within_stakes=tuple(_log_floor(stake - 1.0) for _, stake in WITHIN_GRID),
        within_enter=enter,
        within_leave=max(0, enter + _log_floor(-0.5)),
        # One window with X = 1 leaves log(1/alpha) of what was saved up.
        within_ceilings=tuple(enter - _log_floor(-share) for share, _ in WITHIN_GRID),
        within_floor=-threshold,
    )


def step(state: BetState, exceed: int, n: int, by: BetRule) -> tuple[BetState, Evidence]:
    """Judge one more window.

    Args:
        state: The stream before the window.
        exceed: How many measurements were above the limit.
        n: How many there were.
        by: The rule; a stream starts from `BetState()` whenever its rule changes.

    Raises:
        ValueError: Not 0 <= exceed <= n with n >= 1.

    >>> by = rule(mu0=0.10, allowed_ratio=0.10, alpha=0.05, log_a=17.8)
    >>> state = BetState()
    >>> for _ in range(32):
    ...     state, evidence = step(state, 0, 50, by)
    >>> evidence.verdict
    'within'
    """
    x = _share(exceed, n)
    outside = tuple(
        _add(total, increment, by) for total, increment in zip(state.outside, _increments(x, by), strict=True)
    )
    ages = tuple(1 if total <= 0 else min(age + 1, _MOST) for total, age in zip(state.outside, state.ages, strict=True))
    leading = outside.index(max(outside))
    stat = outside[leading] - by.log_g
    inside_run = min(state.inside_run + 1, by.clear_windows) if x <= by.allowed_ratio else 0
    windows = min(state.windows + 1, _MOST)
    estimate = state.estimate + (round(x * _ESTIMATE_ONE) - state.estimate) // min(windows, ESTIMATE_WINDOWS)
    flagged = state.flagged or stat >= by.log_a
    cleared = state.flagged and inside_run >= by.clear_windows
    # While a flag is open there is nothing to be said for the device; its clearing starts both bets anew.
    within = (0,) * len(WITHIN_GRID) if flagged else _within(state.within, x, by)
    for_it = max(total + stake for total, stake in zip(within, by.within_stakes, strict=True))
    stays = state.settled and for_it > by.within_leave
    settled = not flagged and stat < by.suspect and (stays or for_it >= by.within_enter)
    if cleared:
        after = BetState()
    else:
        after = BetState(
            outside=outside,
            ages=ages,
            within=within,
            windows=windows,
            inside_run=inside_run,
            estimate=estimate,
            flagged=flagged,
            settled=settled,
        )
    verdict: BetVerdict = "outside" if after.flagged else "within" if after.settled else "undetermined"
    return after, Evidence(
        verdict=verdict,
        suspect=stat >= by.suspect and not cleared,
        flagged_now=flagged and not state.flagged,
        cleared_now=cleared,
        exceed_ratio=x,
        estimate_ratio=estimate / _ESTIMATE_ONE,
        windows=windows,
        outside_nats=stat / NAT,
        outside_threshold_nats=by.log_a / NAT,
        within_nats=for_it / NAT,
        within_threshold_nats=by.within_enter / NAT,
        explained_by=ages[leading],
    )


def why(windows: Sequence[JudgedWindow], by: BetRule) -> BetWhy:
    """Explain a stream's evidence against a device.

    Args:
        windows: The judged windows up to the one in question, in order; the last `Evidence.explained_by` of them do.
        by: The rule they were judged by.

    Raises:
        ValueError: There are none.
    """
    if not windows:
        raise ValueError("nothing to explain: no windows")
    sums = (0,) * len(OUTSIDE_GRID)
    history: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for window in windows:
        increments = _increments(_share(window.exceed, window.n), by)
        sums = tuple(_add(total, increment, by) for total, increment in zip(sums, increments, strict=True))
        history.append((increments, sums))
    leading = sums.index(max(sums))
    start = len(windows) - 1
    while start and history[start - 1][1][leading] > 0:
        start -= 1
    return BetWhy(
        mu0=by.mu0,
        bet=by.outside_lambdas[leading],
        cap_nats=by.cap / NAT,
        log_g_nats=by.log_g / NAT,
        threshold_nats=by.log_a / NAT,
        stat_nats=(sums[leading] - by.log_g) / NAT,
        windows=tuple(
            WhyWindow(
                incarnation=window.incarnation,
                seq=window.seq,
                exceed=window.exceed,
                n=window.n,
                increment_nats=increments[leading] / NAT,
                sum_nats=after[leading] / NAT,
            )
            for window, (increments, after) in zip(windows[start:], history[start:], strict=True)
        ),
    )


def _share(exceed: int, n: int) -> float:
    if not 0 <= exceed <= n or not n:
        raise ValueError(f"no share {exceed}/{n}")
    return exceed / n


def _increments(x: float, by: BetRule) -> tuple[int, ...]:
    return tuple(min(_log_floor(bet * (x - by.mu0)), by.cap) for bet in by.outside_lambdas)


def _add(total: int, increment: int, by: BetRule) -> int:
    return min(max(total, 0) + increment, by.ceiling)


def _within(sums: tuple[int, ...], x: float, by: BetRule) -> tuple[int, ...]:
    return tuple(
        max(by.within_floor, min(total + _log_floor(bet * (by.mu_within - x)), ceiling - stake))
        for total, bet, stake, ceiling in zip(
            sums, by.within_lambdas, by.within_stakes, by.within_ceilings, strict=True
        )
    )


def _log_floor(y: float) -> int:
    """Return floor(2^16 ln(1 + y)), the same on every machine.

    Libraries differ in the last bit of a logarithm (and one library between processors with and without fused
    multiply-add), which a floor can turn into a whole unit. So a value that close to an integer is computed exactly.
    """
    scaled = math.log1p(y) * NAT
    floor = math.floor(scaled)
    if 1e-6 < scaled - floor < 1.0 - 1e-6:
        return floor
    exact = _EXACT.ln(_EXACT.add(Decimal(1), Decimal(y)))
    return math.floor(_EXACT.multiply(exact, Decimal(NAT)))
