"""Which further variants are worth building when none of those that were built holds a target.

Pure. Decides by what a technique can do at all and by the least size of a file, both of which a person can check; it
foretells no accuracy and no time. Leaves building to `release`, and choosing to `target`.

* What is left out cannot hold the target: it cannot help where every variant misses, or its weights alone are too large.
* What is tried is not promised anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from evenfleet_collector.optimize import target, variants
from evenfleet_collector.optimize.distil import Distil
from evenfleet_collector.optimize.legacy import Cluster, QuantizationAware
from evenfleet_collector.optimize.prune import Prune
from evenfleet_collector.optimize.quantize import FullInt8, Int16x8
from evenfleet_collector.optimize.target import Constraint, Quantity
from evenfleet_collector.optimize.technique import Stage, Technique
from evenfleet_collector.optimize.variants import Recipe
from evenfleet_collector.optimize.weight_only import Int4, WeightOnly
from evenfleet_collector.optimize.worth import VariantReport

_INT8: Final = FullInt8()


@dataclass(frozen=True, slots=True)
class Rung:
    """A variant, and what it can be better in than those that are built by default.

    Everything that trains on can be more accurate; only a narrower student has fewer operations and values in memory.
    """

    recipe: Recipe
    helps: frozenset[Quantity]


def _rung(name: str, chain: Sequence[Technique], *helps: Quantity) -> Rung:
    return Rung(Recipe(name, tuple(chain)), frozenset(helps))


def _student(width_ratio: float, *after: Technique, word: str) -> Rung:
    """Return a student; one that is not narrower than the default one can be better in accuracy alone."""
    narrower: tuple[Quantity, ...] = ("time", "start", "memory", "size", "compressed")
    return _rung(
        f"distilled-{width_ratio * 100:.0f}-{word}",
        (Distil(width_ratio=width_ratio), *after),
        *(narrower if width_ratio < Distil().width_ratio else ()),
        "accuracy",
    )


# In the order of what they cost to build: a conversion takes a second, a training minutes, two trainings twice that.
RUNGS: Final[tuple[Rung, ...]] = (
    _rung("int4", (Int4(),), "time", "start", "memory", "size", "compressed"),
    _rung("weight-only-int4", (WeightOnly(bits=4),), "size", "compressed", "accuracy"),
    _rung("weight-only-int8", (WeightOnly(),), "accuracy"),
    _rung("int16x8", (Int16x8(),), "accuracy"),
    _rung("pruned-80-int8", (Prune(sparsity_ratio=0.8), _INT8), "compressed", "accuracy"),
    _rung("pruned-90-int8", (Prune(sparsity_ratio=0.9), _INT8), "compressed", "accuracy"),
    _rung("clustered-int8", (Cluster(), _INT8), "compressed", "accuracy"),
    _rung("qat", (QuantizationAware(),), "accuracy"),
    _student(0.75, _INT8, word="int8"),
    _student(0.35, _INT8, word="int8"),
    _student(0.25, _INT8, word="int8"),
    _student(0.25, Int4(), word="int4"),
    _rung("pruned-80-qat", (Prune(sparsity_ratio=0.8), QuantizationAware()), "compressed", "accuracy"),
    _student(0.5, QuantizationAware(), word="qat"),
)
LADDER: Final[tuple[Recipe, ...]] = tuple(rung.recipe for rung in RUNGS)


def next_candidates(
    constraints: Sequence[Constraint], rows: Sequence[VariantReport], start: Stage = "keras"
) -> tuple[Recipe, ...]:
    """Return the variants of the ladder that could hold a target that none of `rows` holds, the cheapest to build first.

    Left out is what is among the rows already, what cannot be made from this model, what cannot help with a limit that
    every variant misses, nor with any that the closest variant misses, and what is too large by its weights alone. Nothing
    is left where a variant holds, or a limited metric was not measured.

    Args:
        constraints: The target.
        rows: The variants that there are.
        start: The form in which the model was given.

    Raises:
        ValueError: There are no rows.
    """
    choice = target.choose(rows, constraints)
    if choice.holds or any(missed.value is None for missed in choice.shortfalls):
        return ()
    needed = {near.shortfall.constraint.what.quantity for near in choice.unmet}
    wanted = {missed.constraint.what.quantity for missed in choice.shortfalls}
    return tuple(
        rung.recipe
        for rung in RUNGS
        if needed <= rung.helps
        and wanted & rung.helps
        and not _is_there(rung.recipe, rows)
        and variants.misfit(rung.recipe.chain, start) is None
        and _may_fit(rung.recipe, constraints, rows)
    )


def least_bytes(recipe: Recipe, parameters: int) -> int:
    """Return the size of a recipe's weights alone, of which no file is smaller.

    A student that is half as wide keeps at least a quarter of the weights, widths being rounded: half the inputs times
    half the outputs.

    >>> least_bytes(Recipe("x", (FullInt8(),)), 40_000)
    40000
    >>> least_bytes(Recipe("x", (Distil(width_ratio=0.5), Int4())), 40_000)
    5000
    """
    weights, bits = float(parameters), 32
    for step in recipe.chain:
        if isinstance(step, Distil):
            weights *= step.width_ratio**2
        elif isinstance(step, WeightOnly):
            bits = step.bits
        elif isinstance(step, Int4):
            bits = 4
        elif isinstance(step, FullInt8 | Int16x8 | QuantizationAware):
            bits = 8
    return int(weights * bits / 8)


def _is_there(recipe: Recipe, rows: Sequence[VariantReport]) -> bool:
    # A row tells its techniques and not their settings.
    plain = all(step == type(step)() for step in recipe.chain)
    return any(row.name == recipe.name or (plain and row.techniques == recipe.words) for row in rows)


def _may_fit(recipe: Recipe, constraints: Sequence[Constraint], rows: Sequence[VariantReport]) -> bool:
    known = [row.parameters for row in rows if row.parameters is not None and Distil.name not in row.techniques]
    imagined = replace(rows[0], size_bytes=least_bytes(recipe, min(known, default=0)))
    sizes = [limit for limit in constraints if limit.what.quantity == "size"]
    return not target.shortfalls(imagined, sizes)
