"""What is asked of a variant, such as `p95_ms<=5, size_kb<=100, accuracy_drop<=0.01`: read it, and choose by it.

Pure. Leaves to `ladder` which further variants are worth building when none holds.

* Of the variants that hold, the smallest artifact is chosen, of those the fastest, of those the most accurate.
* Where none holds, the one that comes closest is named: whose largest miss is the smallest. A miss is a share of its
  limit, and for accuracies, which are shares already, the difference itself: a point of accuracy weighs as much as one
  percent of a time or a size.
* What was not measured does not hold.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from evenfleet_collector import figures
from evenfleet_collector.optimize.worth import Timing, VariantReport
from evenfleet_shared.errors import ConfigError

Quantity = Literal["time", "start", "memory", "size", "compressed", "accuracy"]
Operator = Literal["<=", "<", ">=", ">"]

_SHAPE: Final = re.compile(r"\s*(\w+)\s*(<=|>=|==|=<|=>|!=|<|>|=)\s*(.*?)\s*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """Something that can be limited.

    Attributes:
        quantity: What has to change for the metric to.
        unit: For people; empty for a ratio.
        at_least: The limit is a least one.
        of: A variant's value; None where it was not measured.
        also: Other words for the same in another unit.
    """

    quantity: Quantity
    unit: str
    of: Callable[[VariantReport], float | None]
    at_least: bool = False
    also: tuple[str, ...] = ()

    @property
    def needs_timing(self) -> bool:
        """Return whether a variant has no value of it before it was run in a process of its own."""
        return self.quantity in {"time", "start", "memory"}


def _timed(value: Callable[[Timing], float]) -> Callable[[VariantReport], float | None]:
    return lambda row: None if row.timing is None else value(row.timing)


METRICS: Final[Mapping[str, Metric]] = {
    "p50_ms": Metric(quantity="time", unit="ms", of=_timed(lambda timing: timing.p50_ms)),
    "p95_ms": Metric(quantity="time", unit="ms", of=_timed(lambda timing: timing.p95_ms)),
    "init_ms": Metric(quantity="start", unit="ms", of=_timed(lambda timing: timing.init_ms)),
    "peak_mb": Metric(quantity="memory", unit="MB", of=_timed(lambda timing: timing.peak_rss_bytes / 1e6)),
    "size_bytes": Metric(
        quantity="size", unit="bytes", of=lambda row: float(row.size_bytes), also=("size_kb", "size_mb")
    ),
    "size_kb": Metric(quantity="size", unit="kB", of=lambda row: row.size_bytes / 1e3, also=("size_bytes", "size_mb")),
    "size_mb": Metric(quantity="size", unit="MB", of=lambda row: row.size_bytes / 1e6, also=("size_bytes", "size_kb")),
    "compressed_kb": Metric(quantity="compressed", unit="kB", of=lambda row: row.compressed_bytes / 1e3),
    "accuracy": Metric(quantity="accuracy", unit="", of=lambda row: row.accuracy_ratio, at_least=True),
    # Adding 0.0 makes a plain zero of a negative one.
    "accuracy_drop": Metric(quantity="accuracy", unit="", of=lambda row: 0.0 - row.delta_ratio),
    "worst_class_recall": Metric(
        quantity="accuracy", unit="", of=lambda row: row.worst_class.recall_ratio, at_least=True
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """One limit, such as ``size_kb<=100``."""

    metric: str
    operator: Operator
    limit: float

    def __str__(self) -> str:
        return f"{self.metric}{self.operator}{self.limit:.15g}"

    @property
    def what(self) -> Metric:
        """Return what is limited."""
        return METRICS[self.metric]

    def holds(self, value: float) -> bool:
        """Return whether a value keeps the limit."""
        if self.operator in {"<", ">"} and value == self.limit:
            return False
        return value >= self.limit if self.what.at_least else value <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """A limit that a variant does not keep.

    Attributes:
        constraint: The limit.
        value: What the variant has; None where it was not measured.
        missed_by: The difference, in the metric's unit; 0 for a variant that is at a limit which it must not reach.
        weight_ratio: How much it counts beside other misses; infinite where nothing was measured.
    """

    constraint: Constraint
    value: float | None
    missed_by: float
    weight_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """A limit that no variant keeps, and the variant that misses it by the least."""

    name: str
    shortfall: Shortfall


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The variant that a target chooses.

    Attributes:
        row: It holds everything if `shortfalls` is empty, else it comes closest.
        shortfalls: What it does not hold, in the order of the target.
        unmet: The limits that no variant holds, in the order of the target. Empty although none holds everything where
            each limit is held by another variant.
    """

    row: VariantReport
    shortfalls: tuple[Shortfall, ...]
    unmet: tuple[Nearest, ...]

    @property
    def holds(self) -> bool:
        """Return whether the variant holds everything."""
        return not self.shortfalls


def parse(text: str) -> tuple[Constraint, ...]:
    """Read a target.

    Raises:
        ConfigError: It cannot be read, or asks for what makes no sense; the limit at fault is named.

    >>> [str(limit) for limit in parse("p95_ms <= 5, accuracy_drop<=0.01")]
    ['p95_ms<=5', 'accuracy_drop<=0.01']
    """
    found: list[Constraint] = []
    for part in text.split(","):
        limit = _constraint(part)
        for earlier in found:
            if earlier.metric == limit.metric or earlier.metric in limit.what.also:
                raise ConfigError(f"target: {earlier} and {limit} limit the same; give one of them")
        found.append(limit)
    return tuple(found)


def shortfalls(row: VariantReport, constraints: Sequence[Constraint]) -> tuple[Shortfall, ...]:
    """Return the limits that a variant does not keep, in the order of the constraints."""
    return tuple(missed for limit in constraints if (missed := _missed(row, limit)) is not None)


def choose(rows: Sequence[VariantReport], constraints: Sequence[Constraint]) -> Choice:
    """Return the cheapest variant that holds, or the one that comes closest.

    Raises:
        ValueError: There are no rows.
    """
    if not rows:
        raise ValueError("a choice needs at least one variant")
    missed = {row.name: shortfalls(row, constraints) for row in rows}
    row = min(rows, key=lambda row: (_largest(missed[row.name]), len(missed[row.name]), *_cost(row)))
    unmet = tuple(
        _nearest(rows, limit) for limit in constraints if all(_missed(row, limit) is not None for row in rows)
    )
    return Choice(row=row, shortfalls=missed[row.name], unmet=unmet)


def words(choice: Choice, constraints: Sequence[Constraint]) -> tuple[str, ...]:
    """Return what becomes of a target, a sentence each, for people."""
    asked = ", ".join(map(str, constraints))
    name = choice.row.name
    if choice.holds:
        has = ", ".join(f"{limit.metric} {_value(limit, choice.row)}" for limit in constraints)
        return (f"{name} holds {asked} ({has}) and is the cheapest that does",)
    if choice.unmet:
        first = [
            f"no variant holds: {near.shortfall.constraint} {_by(near.shortfall, least=True)}{_at(near)}"
            for near in choice.unmet
        ]
    else:
        first = [f"no variant holds all of {asked}, though each limit is held by some"]
    closest = "; ".join(f"{missed.constraint} {_by(missed)}" for missed in choice.shortfalls)
    return (*first, f"{name} comes closest: {closest}")


def _constraint(part: str) -> Constraint:
    match = _SHAPE.fullmatch(part)
    if match is None:
        raise ConfigError(
            f"target: {part.strip()!r} is no limit; expected one such as size_kb<=100, with commas between"
        )
    name, operator, number = match.groups()
    if name not in METRICS:
        near = difflib.get_close_matches(name.lower(), METRICS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(METRICS)}"
        raise ConfigError(f"target: no metric is called {name!r}; {hint}")
    metric = METRICS[name]
    right: tuple[Operator, ...] = (">=", ">") if metric.at_least else ("<=", "<")
    chosen = next((each for each in right if each == operator), None)
    if chosen is None:
        aim = "high" if metric.at_least else "low"
        raise ConfigError(f"target: {part.strip()}: {name} is to be {aim}; write {name}{right[0]}{number}")
    return Constraint(metric=name, operator=chosen, limit=_limit(part.strip(), metric, name, number))


def _limit(part: str, metric: Metric, name: str, number: str) -> float:
    try:
        limit = float(number)
    except ValueError:
        unit = f"; the unit, {metric.unit}, is in the name" if metric.unit else ", such as 0.97"
        raise ConfigError(f"target: {part}: {number!r} is no number{unit}") from None
    if not math.isfinite(limit):
        raise ConfigError(f"target: {part}: expected a finite number, found {number}")
    if metric.quantity != "accuracy":
        if limit <= 0.0:
            raise ConfigError(f"target: {part}: {name} is always more than 0, found a limit of {number}")
    elif not -1.0 < limit <= 1.0 or (limit <= 0.0 and metric.at_least) or (limit == 1.0 and not metric.at_least):
        raise ConfigError(f"target: {part}: {name} is a ratio: 0.97 is 97 %, and 0.01 one point; found {number}")
    return limit


def _missed(row: VariantReport, limit: Constraint) -> Shortfall | None:
    value = limit.what.of(row)
    if value is None:
        return Shortfall(constraint=limit, value=None, missed_by=math.inf, weight_ratio=math.inf)
    if limit.holds(value):
        return None
    missed_by = abs(value - limit.limit)
    scale = 1.0 if limit.what.quantity == "accuracy" else limit.limit
    return Shortfall(constraint=limit, value=value, missed_by=missed_by, weight_ratio=missed_by / scale)


def _largest(missed: Sequence[Shortfall]) -> float:
    # One that is at a limit which it must not reach misses by nothing, and still does not hold.
    return max((each.weight_ratio for each in missed), default=-1.0)


def _cost(row: VariantReport) -> tuple[float, float, float]:
    return (row.size_bytes, math.inf if row.timing is None else row.timing.p50_ms, -row.accuracy_ratio)


def _nearest(rows: Sequence[VariantReport], limit: Constraint) -> Nearest:
    missed = [(row.name, each) for row in rows if (each := _missed(row, limit)) is not None]
    name, shortfall = min(missed, key=lambda pair: pair[1].weight_ratio)
    return Nearest(name=name, shortfall=shortfall)


def _by(missed: Shortfall, *, least: bool = False) -> str:
    if missed.value is None:
        return "was not measured"
    if missed.missed_by == 0.0:
        return "is reached, and must not be"
    if missed.constraint.what.unit:
        by = f"{_digits(missed.missed_by)} {missed.constraint.what.unit}"
    else:
        by = figures.points(missed.missed_by).lstrip("+")
    return f"is missed by {by}" + (" at the least" if least else "")


def _at(near: Nearest) -> str:
    value = near.shortfall.value
    return "" if value is None else f" ({near.name}: {_digits(value)})"


def _value(limit: Constraint, row: VariantReport) -> str:
    value = limit.what.of(row)
    return "not measured" if value is None else _digits(value)


def _digits(value: float) -> str:
    """Return a number with four digits, which tell it from a limit that it almost keeps; never with an exponent.

    >>> [_digits(value) for value in (15.2, 0.00123456, 1234567.0, 99.9961, 0.0)]
    ['15.2', '0.001235', '1,234,567', '100', '0']
    """
    if value == 0.0 or abs(value) >= 1000.0:
        return f"{value:,.0f}"
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}".rstrip("0").rstrip(".") if decimals else f"{value:.0f}"
