"""Read a recipe: which variants to build, by which techniques with which settings, from a TOML file.

    seed = 0
    golden_samples = 300

    [preprocessing]             # of images; what is not said follows from the model's input
    resize = "pillow-bilinear"

    [techniques.prune]          # what `prune` means in this recipe
    sparsity_ratio = 0.8

    [[variants]]
    name = "float32"            # the first is the reference that the others are compared with
    chain = ["float32"]

    [[variants]]
    name = "pruned-90-int8"
    chain = ["prune", "int8"]
    settings.prune.sparsity_ratio = 0.9     # here alone

Every setting has its bounds in the technique's own type; an unknown key is an error with the near match named.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from evenfleet_collector.optimize import variants
from evenfleet_collector.optimize.datasets.declared import ImageSettings
from evenfleet_collector.optimize.technique import Technique
from evenfleet_collector.optimize.variants import Recipe
from evenfleet_shared import settings
from evenfleet_shared.errors import ConfigError
from evenfleet_shared.manifest import MAX_VARIANTS
from evenfleet_shared.messages import Name

_Settings = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenVariant:
    """One variant as the file has it."""

    name: Name
    chain: Annotated[tuple[str, ...], Meta(min_length=1, max_length=8)]
    settings: _Settings = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The file as it stands; `variants` are the default ones where it names none."""

    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    golden_samples: Annotated[int, Meta(ge=1, le=100_000)] = 300
    label_column: str | None = None
    preprocessing: ImageSettings = dataclasses.field(default_factory=ImageSettings)
    techniques: _Settings = dataclasses.field(default_factory=dict)
    variants: Annotated[tuple[WrittenVariant, ...], Meta(max_length=MAX_VARIANTS)] = ()


def read(file: Path) -> tuple[Plan, tuple[Recipe, ...]]:
    """Read a recipe.

    Raises:
        ConfigError: It cannot be read, or says what cannot be done; the place is named.
    """
    plan = settings.load(Plan, file, {}, {})
    for name in plan.techniques:
        _of_the_file(file, f"techniques.{name}", lambda name=name: variants.technique(name))
        _configured(file, name, plan.techniques, {})  # no chain may have it, and a slip in it is one all the same
    return plan, recipes(plan, file)


def recipes(plan: Plan, file: Path) -> tuple[Recipe, ...]:
    """Return a plan's variants, each step with its settings.

    Raises:
        ConfigError: As `read`.
    """
    if not plan.variants:
        return tuple(
            Recipe(one.name, tuple(_configured(file, step.name, plan.techniques, {}) for step in one.chain))
            for one in variants.DEFAULT
        )
    names = [one.name for one in plan.variants]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{file}: two variants are called {twice!r}")
    made = []
    for one in plan.variants:
        strange = sorted(set(one.settings) - set(one.chain))
        if strange:
            raise ConfigError(
                f"{file}: variant {one.name} has settings of {strange[0]}, which is not in its chain {list(one.chain)}"
            )
        chain = tuple(_configured(file, word, plan.techniques, one.settings) for word in one.chain)
        wrong = variants.misfit(chain, "keras")
        if wrong is not None:
            raise ConfigError(f"{file}: variant {one.name}: {wrong}")
        if chain[-1].gives == "keras":
            raise ConfigError(
                f"{file}: variant {one.name} ends with {chain[-1].name}, which leaves a Keras model; "
                "end with one that writes a file, such as int8, float32 or saved-model"
            )
        made.append(Recipe(one.name, chain))
    return tuple(made)


def _configured(file: Path, name: str, everywhere: _Settings, here: _Settings) -> Technique:
    step: Technique = _of_the_file(file, "chain", lambda: variants.technique(name))
    wanted = {**everywhere.get(name, {}), **here.get(name, {})}
    known = [field.name for field in dataclasses.fields(step)]
    for key in wanted:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
            raise ConfigError(f"{file}: {name} has no setting {key}; {hint}")
    values = {field: getattr(step, field) for field in known} | wanted
    try:
        return msgspec.convert(values, type(step))
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {name}: {settings.explain(error, values)}") from None


def _of_the_file(file: Path, place: str, find: Any) -> Any:
    try:
        return find()
    except ConfigError as error:
        raise ConfigError(f"{file}: {place}: {error}") from None


def lineage(built: Iterable[Recipe]) -> Mapping[str, str]:
    """Return what the manifest keeps of a recipe: each variant's steps with their settings, as text."""
    return {f"recipe.{one.name}": " > ".join(step.described for step in one.chain)[:500] for one in built}
