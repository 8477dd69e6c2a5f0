"""The two visible tuples: which techniques there are, and which variants a release holds.

Pure: decides whether a chain fits the model that was given. `release` performs it.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from evenfleet_collector.optimize import saved_model
from evenfleet_collector.optimize.distil import Distil
from evenfleet_collector.optimize.float_lite import DYNAMIC_RANGE, FLOAT16, FLOAT32
from evenfleet_collector.optimize.prune import Prune
from evenfleet_collector.optimize.quantize import FULL_INT8
from evenfleet_collector.optimize.technique import Stage, Technique
from evenfleet_shared.errors import ConfigError

TECHNIQUES: Final[tuple[Technique, ...]] = (
    FLOAT32,
    FLOAT16,
    DYNAMIC_RANGE,
    FULL_INT8,
    saved_model.PLAIN,
    Prune(),
    Distil(),
)


# What a model is that is no Keras model, for a person.
_STARTS: Final = {"saved_model": "a SavedModel or an .onnx", "tflite": "a .tflite file, which is converted already"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A variant: a name, and the techniques that lead to it, in order."""

    name: str
    chain: tuple[str, ...]


# The first is the reference that the others are compared with.
VARIANTS: Final[tuple[Recipe, ...]] = (
    Recipe("float32", ("float32",)),
    Recipe("float16", ("float16",)),
    Recipe("dynamic", ("dynamic-range",)),
    Recipe("int8", ("int8",)),
    Recipe("pruned-int8", ("prune", "int8")),
    Recipe("distilled-int8", ("distil", "int8")),
    Recipe("saved-model", ("saved-model",)),
    Recipe("pruned-saved-model", ("prune", "saved-model")),
    Recipe("distilled-saved-model", ("distil", "saved-model")),
)


def technique(name: str) -> Technique:
    """Return the technique called `name`.

    >>> technique("prune").gives
    'keras'
    """
    return next(known for known in TECHNIQUES if known.name == name)


def select(only: Sequence[str]) -> tuple[Recipe, ...]:
    """Return the variants to build: all, or those named and the reference, which the others are compared with.

    Raises:
        ConfigError: A name is not a variant's.

    >>> [recipe.name for recipe in select(["int8"])]
    ['float32', 'int8']
    """
    names = [recipe.name for recipe in VARIANTS]
    for name in only:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
            raise ConfigError(f"no variant is called {name!r}; {hint}")
    if not only:
        return VARIANTS
    return tuple(recipe for recipe in VARIANTS if recipe.name in {*only, VARIANTS[0].name})


def starting_from_file(recipes: Sequence[Recipe], own_name: str) -> tuple[Recipe, ...]:
    """Return the variants to build where MODEL is a .tflite: itself, which the others are compared with, and the others.

    Args:
        recipes: What was asked for.
        own_name: What the file is called as a variant; a float32 one saves the others that step.

    >>> [recipe.name for recipe in starting_from_file((Recipe("float32", ("float32",)), Recipe("int8", ("int8",))), "int8")]
    ['int8', 'float32']
    """
    others = [
        Recipe(each.name, each.chain[1:])
        if own_name == "float32" and each.chain[:1] == ("float32",) and each.chain[1:]
        else each
        for each in recipes
        if each.name != own_name
    ]
    return (Recipe(own_name, ()), *others)


def misfit(chain: Sequence[str], start: Stage) -> str | None:
    """Return why a chain cannot start from a model in the form `start`; None where it can.

    >>> misfit(("prune", "int8"), "saved_model")
    'prune needs a Keras model (.keras or module:function), MODEL is a SavedModel or an .onnx'
    >>> misfit(("prune", "int8"), "keras") is None
    True
    """
    stage = start
    for name in chain:
        step = technique(name)
        if step.takes != stage and (stage, step.takes) != ("keras", "saved_model"):
            if step.takes == "keras":
                return f"{name} needs a Keras model (.keras or module:function), MODEL is {_STARTS[start]}"
            if stage == start == "tflite":
                return f"{name} starts from a Keras model, a SavedModel or an .onnx, MODEL is {_STARTS[start]}"
            return f"{name} takes a {step.takes} and would be given a {stage}"
        stage = step.gives
    return None
