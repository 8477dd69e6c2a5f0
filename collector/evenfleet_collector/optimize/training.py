"""Train on labelled data for a bounded number of steps: what techniques that train share, and their control."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from evenfleet_collector.optimize.data import Samples
from evenfleet_collector.optimize.technique import Form, Material, OutputKind, Rate, Stage, Steps, Technique

BATCH: Final = 32
# Several steps per call from Python: on small models the call costs more than the step.
STEPS_PER_EXECUTION: Final = 8


def epochs_for(samples: int, steps: int) -> int:
    """Return how many epochs make about `steps` steps, within 2 (every sample is seen twice) and 40.

    >>> epochs_for(1437, 900), epochs_for(60_000, 900), epochs_for(50, 900)
    (20, 2, 40)
    """
    return min(40, max(2, math.ceil(steps / math.ceil(samples / BATCH))))


def steps_for(samples: int, steps: int) -> int:
    """Return how many steps `epochs_for` comes to."""
    return epochs_for(samples, steps) * math.ceil(samples / BATCH)


def clone(model: Any, seed: int) -> Any:
    """Return a copy of a Keras model, weights and all; layers that draw, such as Dropout, start from the seed."""
    import keras

    keras.utils.set_random_seed(seed)
    copy = rebuilt(model)
    copy.set_weights(model.get_weights())
    return copy


def rebuilt(model: Any, **how: Any) -> Any:
    """Return what ``keras.models.clone_model`` makes of `model`, ready to be compiled anew.

    That function compiles the clone as the model was, with the name of the loss; one that is a function of its own (a
    user's, or that of `distil`) is not found by it.
    """
    import keras

    compiled, model.compiled = model.compiled, False
    try:
        return keras.models.clone_model(model, **how)
    finally:
        model.compiled = compiled


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTune(Technique):
    """Train on, and nothing else: the control of whatever trains on with an idea of its own."""

    name: ClassVar[str] = "fine-tune"
    takes: ClassVar[Stage] = "keras"
    gives: ClassVar[Stage] = "keras"
    steps: Steps = 700
    learning_rate: Rate = 1e-3

    def apply(self, form: Form, material: Material) -> Form:
        """Train a clone of the model."""
        model = clone(form.keras, material.seed)
        fine_tune(model, material, steps=self.steps, learning_rate=self.learning_rate)
        return Form(stage="keras", keras=model)


def fine_tune(
    model: Any, material: Material, *, steps: int, learning_rate: float, callbacks: Sequence[Any] = ()
) -> None:
    """Train `model` on, in place, on the labels of the training samples."""
    data = material.data
    fit(
        model,
        data.x_train,
        data.y_train,
        loss=hard_loss(material.output_kind),
        epochs=epochs_for(len(data.x_train), steps),
        learning_rate=learning_rate,
        seed=material.seed,
        callbacks=callbacks,
    )


def fit(
    model: Any,
    x: Samples,
    targets: Any,
    *,
    loss: Any,
    epochs: int,
    learning_rate: float,
    seed: int,
    callbacks: Sequence[Any] = (),
) -> None:
    """Train `model` in place with Adam, its rate falling to nothing along a cosine."""
    import keras

    keras.utils.set_random_seed(seed)
    steps = epochs * math.ceil(len(x) / BATCH)
    model.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, steps)),
        loss=loss,
        jit_compile=False,
        steps_per_execution=min(STEPS_PER_EXECUTION, math.ceil(len(x) / BATCH)),
    )
    model.fit(x, targets, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=list(callbacks))


def hard_loss(output_kind: OutputKind) -> Any:
    """Return cross-entropy with whole-number labels."""
    import keras

    return keras.losses.SparseCategoricalCrossentropy(from_logits=output_kind == "logits")
