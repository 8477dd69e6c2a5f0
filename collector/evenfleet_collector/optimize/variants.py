"""The two visible tuples: which techniques there are, and which variants a release holds without a recipe.

Pure: decides whether a chain fits the model that was given. `release` performs it.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from evenfleet_collector.optimize.distil import Distil
from evenfleet_collector.optimize.float_lite import DynamicRange, Float16, Float32, Sparse
from evenfleet_collector.optimize.legacy import Cluster, QuantizationAware
from evenfleet_collector.optimize.prune import Prune, PruneBlocks
from evenfleet_collector.optimize.quantize import FullInt8, Int16x8
from evenfleet_collector.optimize.rescue import RescuedInt8
from evenfleet_collector.optimize.saved_model import PlainSavedModel
from evenfleet_collector.optimize.technique import Stage, Technique
from evenfleet_collector.optimize.training import FineTune
from evenfleet_collector.optimize.weight_only import Int4, WeightOnly
from evenfleet_shared.errors import ConfigError

# Each with the settings that it has where a recipe says nothing else.
TECHNIQUES: Final[tuple[Technique, ...]] = (
    Float32(),
    Float16(),
    DynamicRange(),
    FullInt8(),
    Int16x8(),
    RescuedInt8(),
    WeightOnly(),
    Int4(),
    Sparse(),
    PlainSavedModel(),
    Prune(),
    PruneBlocks(),
    Cluster(),
    QuantizationAware(),
    Distil(),
    FineTune(),
)

_FLOAT32: Final = Float32()
# What a form becomes by itself where the next step takes the other.
_BETWEEN: Final[dict[tuple[Stage, Stage], tuple[Technique, ...]]] = {
    ("saved_model", "tflite"): (_FLOAT32,),
    ("keras", "tflite"): (_FLOAT32,),
    ("keras", "saved_model"): (),
}

# What a model is that is no Keras model, for a person.
_STARTS: Final = {"saved_model": "a SavedModel or an .onnx", "tflite": "a .tflite file, which is converted already"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A variant: a name, and the steps that lead to it, in order."""

    name: str
    chain: tuple[Technique, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """Return the names of the steps."""
        return tuple(step.name for step in self.chain)


def technique(name: str) -> Technique:
    """Return the technique called `name`, with the settings that it has by itself.

    Raises:
        ConfigError: There is none; the near match is named.

    >>> technique("prune").gives
    'keras'
    """
    for known in TECHNIQUES:
        if known.name == name:
            return known
    names = [known.name for known in TECHNIQUES]
    raise ConfigError(f"no technique is called {name!r}; {_hint(name, names)}")


def recipe(name: str, *words: str) -> Recipe:
    """Return the variant that these techniques lead to, as they are by themselves."""
    return Recipe(name, tuple(technique(word) for word in words))


# The first is the reference that the others are compared with.
DEFAULT: Final[tuple[Recipe, ...]] = (
    recipe("float32", "float32"),
    recipe("float16", "float16"),
    recipe("dynamic", "dynamic-range"),
    recipe("int8", "int8"),
    recipe("pruned-int8", "prune", "int8"),
    recipe("distilled-int8", "distil", "int8"),
    recipe("saved-model", "saved-model"),
    recipe("pruned-saved-model", "prune", "saved-model"),
    recipe("distilled-saved-model", "distil", "saved-model"),
)


def select(known: Sequence[Recipe], only: Sequence[str]) -> tuple[Recipe, ...]:
    """Return the variants to build: all, or those named and the reference, which the others are compared with.

    Raises:
        ConfigError: A name is not a variant's.

    >>> [found.name for found in select(DEFAULT, ["int8"])]
    ['float32', 'int8']
    """
    names = [one.name for one in known]
    for name in only:
        if name not in names:
            raise ConfigError(f"no variant is called {name!r}; {_hint(name, names)}")
    if not only:
        return tuple(known)
    return tuple(one for one in known if one.name in {*only, known[0].name})


def starting_from_file(recipes: Sequence[Recipe], own_name: str) -> tuple[Recipe, ...]:
    """Return the variants to build where MODEL is a .tflite: itself, which the others are compared with, and the others.

    Args:
        recipes: What was asked for.
        own_name: What the file is called as a variant; one that is float32 saves the others that step.

    >>> chosen = (recipe("float32", "float32"), recipe("small", "float32", "int4"))
    >>> [(one.name, one.words) for one in starting_from_file(chosen, "float32")]
    [('float32', ()), ('small', ('int4',))]
    """
    others = [
        Recipe(one.name, one.chain[1:])
        if own_name == _FLOAT32.name and len(one.chain) > 1 and one.chain[0] == _FLOAT32
        else one
        for one in recipes
        if one.name != own_name
    ]
    return (Recipe(own_name, ()), *others)


def in_float(one: Recipe) -> Recipe | None:
    """Return what a full int8 variant would be in float32; None for any other.

    >>> in_float(recipe("a", "prune", "int8")).words, in_float(recipe("b", "float16"))
    (('prune', 'float32'), None)
    """
    if not one.chain or not isinstance(one.chain[-1], FullInt8):
        return None
    return Recipe(f"{one.name} in float", (*one.chain[:-1], _FLOAT32))


def rescued(
    recipes: Sequence[Recipe], below_floor: Collection[str], max_accuracy_drop_ratio: float
) -> tuple[Recipe, ...]:
    """Return a rescued variant for each int8 one that misses the accuracy floor: its worst operators stay in float.

    Args:
        recipes: What was built.
        below_floor: Names of those that miss the floor; what does not end with ``int8`` has no rescue, and is passed over.
        max_accuracy_drop_ratio: The floor: how much accuracy the rescued ones may lose against float32.

    >>> [(one.name, one.words) for one in rescued([recipe("a", "prune", "int8"), recipe("b", "int8")], ["a"], 0.01)]
    [('a-rescued', ('prune', 'int8-rescue'))]
    """
    made: list[Recipe] = []
    for one in recipes:
        last = one.chain[-1] if one.chain else None
        if one.name in below_floor and isinstance(last, FullInt8):
            rescue = RescuedInt8(
                max_accuracy_drop_ratio=max_accuracy_drop_ratio, calibration_samples=last.calibration_samples
            )
            taken = [other.name for other in (*recipes, *made)]
            made.append(Recipe(_rescued_name(one.name, taken), (*one.chain[:-1], rescue)))
    return tuple(made)


def filled(chain: Sequence[Technique], start: Stage) -> tuple[Technique, ...]:
    """Return a chain with the steps between its steps that go without saying.

    >>> [step.name for step in filled(recipe("x", "prune", "int4").chain, "keras")]
    ['prune', 'float32', 'int4']
    """
    stage = start
    steps: list[Technique] = []
    for step in chain:
        for between in _BETWEEN.get((stage, step.takes), ()):
            steps.append(between)
            stage = between.gives
        steps.append(step)
        stage = step.gives
    return tuple(steps)


def misfit(chain: Sequence[Technique], start: Stage) -> str | None:
    """Return why a chain cannot start from a model in the form `start`; None where it can.

    >>> misfit(recipe("x", "prune", "int8").chain, "saved_model")
    'prune needs a Keras model (.keras or module:function), MODEL is a SavedModel or an .onnx'
    >>> misfit(recipe("x", "int8", "prune").chain, "keras")
    'prune takes a keras and would be given a tflite'
    >>> misfit(recipe("x", "prune", "int8").chain, "keras") is None
    True
    """
    stage = start
    for step in chain:
        if step.takes != stage and (stage, step.takes) not in _BETWEEN:
            if step.takes == "keras" and stage == start:
                return f"{step.name} needs a Keras model (.keras or module:function), MODEL is {_STARTS[start]}"
            if stage == start == "tflite":
                return f"{step.name} starts from a Keras model, a SavedModel or an .onnx, MODEL is {_STARTS[start]}"
            return f"{step.name} takes a {step.takes} and would be given a {stage}"
        stage = step.gives
    return None


def control(chain: Sequence[Technique]) -> tuple[Technique, ...] | None:
    """Return the chain that differs in nothing but the last idea that is trained; None where none is.

    >>> [step.name for step in control(recipe("x", "prune", "cluster", "qat").chain)]
    ['prune', 'cluster', 'fine-tune', 'int8']
    >>> control(recipe("x", "int8").chain) is None
    True
    """
    place = last_idea(chain)
    without = None if place is None else chain[place].control()
    return None if place is None or without is None else (*chain[:place], *without, *chain[place + 1 :])


def last_idea(chain: Sequence[Technique]) -> int | None:
    """Return where the last technique that is trained stands; None where none is.

    >>> last_idea(recipe("x", "prune", "cluster", "int8").chain), last_idea(recipe("x", "int8").chain)
    (1, None)
    """
    return max((place for place, step in enumerate(chain) if step.control() is not None), default=None)


def _rescued_name(name: str, taken: Collection[str]) -> str:
    """Return a name that a manifest takes, of 64 letters at most, and that a recipe has not given away."""
    words = itertools.chain(("rescued",), (f"rescued-{number}" for number in itertools.count(2)))
    return next(free for word in words if (free := f"{name[: 63 - len(word)]}-{word}") not in taken)


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
