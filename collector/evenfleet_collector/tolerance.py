"""Say what is tolerated, which runs may be compared at all, and how a cell's metrics make one verdict.

Leaves to `detect` how a metric's verdict comes about, and to `judge` where policies and reference runs are stored.

* A policy is immutable; a change is a new revision, which starts all evidence anew and touches no baseline.
* Windows of one file whose `Setup` differs are never compared: the answer names the keys.
* A cell is `within` only if every metric of it is; no metric at all is `undetermined`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from typing import Annotated, Final, Literal

from msgspec import Meta

from evenfleet_shared.messages import RunContext, comparability_key

Verdict = Literal["within", "outside", "undetermined", "incomparable", "silent"]

# The worst first: what a cell of several metrics is called.
SEVERITY: Final[tuple[Verdict, ...]] = ("outside", "incomparable", "silent", "undetermined", "within")

MONTH_S: Final = 30 * 24 * 3600
LONGEST_WINDOW_S: Final = 86_400.0
# A device that has used its day's bytes is back when the next day begins.
SLEEP_S: Final = 86_400.0

# Below this a flag would take so little evidence that a healthy stream raises one every twenty windows.
_LEAST_A: Final = 20.0
_EXACT: Final = Context(prec=40)

_Quantile = Annotated[float, Meta(ge=0.5, le=0.999)]
_Margin = Annotated[float, Meta(ge=0.0, le=10.0)]
_Alpha = Annotated[float, Meta(ge=1e-6, le=0.5)]
_Windows = Annotated[int, Meta(ge=1, le=1_000_000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExceedanceTolerance:
    """Tolerated: the quantile is at most (1 + margin_ratio) times the class's baseline.

    `alpha` is the largest probability of calling a device within that is not.
    """

    quantile: _Quantile = 0.95
    margin_ratio: _Margin = 0.10
    alpha: _Alpha = 0.05

    @property
    def allowed_ratio(self) -> float:
        """Return the share of samples that may be above the limit."""
        # Rounded, since 1 − 0.9 is a little less than 10 of 100.
        return round(1.0 - self.quantile, 9)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyTolerance:
    """Tolerated: at most `margin_ratio` of the samples are wrong beyond what the reference gets wrong."""

    margin_ratio: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.01
    alpha: _Alpha = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is tolerated, and how many false flags a month the whole fleet may raise.

    `streams` is how many device × variant × metric streams share that budget; it counts as the next power of two, so
    that enrolling a device changes no verdict (`with_room_for`).
    """

    revision: Annotated[int, Meta(ge=1, le=2**53)] = 1
    false_flags_per_fleet_month: Annotated[float, Meta(gt=0.0, le=1e6)] = 1.0
    streams: Annotated[int, Meta(ge=1, le=2**40)] = 64
    window_length_s: Annotated[float, Meta(ge=0.1, le=86_400.0)] = 300.0
    latency: ExceedanceTolerance = ExceedanceTolerance()
    memory: ExceedanceTolerance = ExceedanceTolerance()
    accuracy: AccuracyTolerance = AccuracyTolerance()
    min_windows: Annotated[int, Meta(ge=1, le=100)] = 3
    burn_in_windows: _Windows = 288
    calibration_windows: _Windows = 288
    clear_windows: Annotated[int, Meta(ge=1, le=1000)] = 6
    silence_windows: _Windows = 3

    def __post_init__(self) -> None:
        if self.streams * self.windows_per_month < _LEAST_A * self.false_flags_per_fleet_month:
            most = self.streams * self.windows_per_month / _LEAST_A
            raise ValueError(
                f"false_flags_per_fleet_month is {self.false_flags_per_fleet_month:g}, expected at most {most:g}: "
                f"one in {_LEAST_A:g} of the windows that {self.streams} streams report in a month"
            )

    @property
    def windows_per_month(self) -> float:
        """Return how many windows one stream reports in 30 days."""
        return MONTH_S / self.window_length_s

    @property
    def budgeted_streams(self) -> int:
        """Return the number of streams that the budget is divided by."""
        return _power_of_two(self.streams)

    @property
    def silent_after_s(self) -> float:
        """Return after how long without a window a device is silent that keeps to the policy's windows."""
        return self.silence_windows * self.window_length_s

    def silent_after(self, length_s: float | None, *, slept: bool = False) -> float:
        """Return after how many seconds without a window a cell is silent whose last window was so long.

        A device may stretch its windows, to save a metered link or the processor; up to a day, so that none can say of
        itself that it will never be missed. One that has said since that it sleeps is waited for a day longer.

        >>> policy = Policy(window_length_s=300.0, silence_windows=3)
        >>> [policy.silent_after(length_s) for length_s in (None, 60.0, 3600.0, 1e9)]
        [900.0, 900.0, 10800.0, 259200.0]
        >>> policy.silent_after(300.0, slept=True)
        87300.0
        """
        awake_s = max(self.silent_after_s, self.silence_windows * min(length_s or 0.0, LONGEST_WINDOW_S))
        return awake_s + SLEEP_S if slept else awake_s


def log_a(policy: Policy) -> float:
    """Return the evidence that a flag takes, ln(K·P/B), in nats, rounded up to a multiple of 2^-16.

    K is the budgeted streams, P the windows per month, B the budget.

    >>> log_a(Policy(streams=1000, window_length_s=300))
    15.995635986328125
    """
    a = policy.budgeted_streams * policy.windows_per_month / policy.false_flags_per_fleet_month
    # Decimal's logarithm is the same on every machine; the C library's is not, in the last bit.
    return math.ceil(_EXACT.multiply(_EXACT.ln(Decimal(a)), Decimal(1 << 16))) / (1 << 16)


def with_room_for(policy: Policy, streams: int) -> Policy:
    """Return the policy, or its next revision with a budget for so many streams.

    >>> with_room_for(Policy(streams=64), 64).revision, with_room_for(Policy(streams=64), 65).streams
    (1, 128)
    """
    if streams <= policy.budgeted_streams:
        return policy
    return replace(policy, revision=policy.revision + 1, streams=_power_of_two(streams))


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the verdict of a cell: the worst of its metrics'.

    >>> combine(["within", "undetermined"])
    'undetermined'
    >>> combine([])
    'undetermined'
    """
    return min(verdicts, key=SEVERITY.index, default="undetermined")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What the figures of a window depend on beside its file: the run, and how inferences were called."""

    run: RunContext
    mode: Literal["steady", "cadence"] = "steady"
    cadence_ms: float | None = None

    @property
    def values(self) -> dict[str, str | int | float | None]:
        """Return what must be equal for windows of one file to be compared; unknown equals only another unknown.

        The delegated share is here and not in `COMPARABILITY_KEYS`: of one file another share is another execution, but
        two files have each their own, and a device holds its models against each other.
        """
        return {
            **comparability_key(self.run),
            "delegated_ratio": self.run.delegated_ratio,
            "mode": self.mode,
            "cadence_ms": self.cadence_ms,
        }


def differing_keys(a: Setup, b: Setup) -> tuple[str, ...]:
    """Return the names of the keys that forbid comparing two windows of one file; none if they may be compared."""
    here, there = a.values, b.values
    return tuple(key for key in here if here[key] != there[key])


def _power_of_two(streams: int) -> int:
    return 1 << (streams - 1).bit_length()
