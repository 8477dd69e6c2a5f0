"""Distillation: a student of the same build but half as wide learns the model's scores, not only the labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from msgspec import Meta

from evenfleet_collector.optimize import training
from evenfleet_collector.optimize.data import Samples
from evenfleet_collector.optimize.technique import (
    Form,
    Material,
    OutputKind,
    Rate,
    Ratio,
    Stage,
    Steps,
    Technique,
)
from evenfleet_shared.errors import ModelRefusedError

# What a layer's width is called in its configuration.
_WIDTHS: Final = ("units", "filters")
_LEAST_WIDTH: Final = 4
_SMALLEST_PROBABILITY: Final = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class Distil(Technique):
    """Loss = alpha · cross-entropy with the label + (1 - alpha) · T² · cross-entropy with the softened teacher.

    Source:
        Hinton, Vinyals and Dean (2015), Distilling the knowledge in a neural network. T² keeps the soft part's
        gradients as large as the hard part's.
    """

    name: ClassVar[str] = "distil"
    takes: ClassVar[Stage] = "keras"
    gives: ClassVar[Stage] = "keras"
    width_ratio: Ratio = 0.5
    temperature: Annotated[float, Meta(ge=1.0, le=100.0)] = 3.0
    alpha: Ratio = 0.5
    steps: Steps = 1000
    learning_rate: Rate = 3e-3

    def apply(self, form: Form, material: Material) -> Form:
        """Build a narrower student and train it on the teacher's scores."""
        import keras

        keras.utils.set_random_seed(material.seed)
        student = narrower(form.keras, self.width_ratio)
        data = material.data
        soft = softened(_scores(form.keras, data.x_train), material.output_kind, self.temperature)
        hard = np.eye(material.classes, dtype=np.float32)[data.y_train]
        training.fit(
            student,
            data.x_train,
            np.concatenate([hard, soft], axis=1),
            loss=self._loss(material),
            epochs=training.epochs_for(len(data.x_train), self.steps),
            learning_rate=self.learning_rate,
            seed=material.seed,
        )
        return Form(stage="keras", keras=student)

    def control(self) -> tuple[Technique, ...] | None:
        """Return the same student, trained as long on the labels alone."""
        return (replace(self, alpha=1.0),)

    def _loss(self, material: Material) -> Any:
        """Return the loss; its targets carry one-hot labels and the teacher's softened scores side by side."""
        from keras import ops

        def loss(targets: Any, outputs: Any) -> Any:
            hard, soft = targets[:, : material.classes], targets[:, material.classes :]
            logits = outputs
            if material.output_kind == "probabilities":
                logits = ops.log(ops.maximum(outputs, _SMALLEST_PROBABILITY))
            by_label = -ops.sum(hard * ops.log_softmax(logits), axis=-1)
            by_teacher = -ops.sum(soft * ops.log_softmax(logits / self.temperature), axis=-1)
            return self.alpha * by_label + (1.0 - self.alpha) * self.temperature**2 * by_teacher

        return loss


def softened(outputs: Samples, output_kind: OutputKind, temperature: float) -> Samples:
    """Return softmax(logits / temperature) of a teacher's outputs, shape ``(n, classes)``.

    >>> softened(np.array([[0.0, 2.0]], dtype=np.float32), "logits", 1e6).round(3).tolist()
    [[0.5, 0.5]]
    >>> softened(np.array([[0.25, 0.75]], dtype=np.float32), "probabilities", 1.0).round(3).tolist()
    [[0.25, 0.75]]
    """
    logits = np.log(np.maximum(outputs, _SMALLEST_PROBABILITY)) if output_kind == "probabilities" else outputs
    scaled = logits / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    result: Samples = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


def narrower(model: Any, width_ratio: float) -> Any:
    """Return a fresh model of the same build, every layer that has a width but the last made narrower.

    Raises:
        ModelRefusedError: There is no layer to narrow, or the narrower layers do not fit together.
    """
    wide = [layer for layer in _layers(model) if _width_of(layer) and getattr(layer, "kernel", None) is not None]
    hidden = {layer.name for layer in wide[:-1]}
    if not hidden:
        raise ModelRefusedError("distil: no dense or convolution layer before the last one to make narrower")

    def copy(layer: Any) -> Any:
        config = layer.get_config()
        if layer.name in hidden:
            word = _width_of(layer)
            config[word] = max(_LEAST_WIDTH, round(config[word] * width_ratio))
        return layer.__class__.from_config(config)

    try:
        return training.rebuilt(model, clone_function=copy, recursive=True)
    except (ValueError, TypeError) as error:
        # Skip connections past a layer of fixed width, reshapes to a written-out size.
        raise ModelRefusedError(f"distil: a narrower student does not fit together: {str(error)[:200]}") from None


def _layers(model: Any) -> list[Any]:
    found: list[Any] = []
    for layer in model.layers:
        found += _layers(layer) if hasattr(layer, "layers") else [layer]
    return found


def _width_of(layer: Any) -> str:
    return next((word for word in _WIDTHS if isinstance(getattr(layer, word, None), int)), "")


def _scores(model: Any, x: Samples) -> Samples:
    scores: Samples = np.asarray(model.predict(x, batch_size=256, verbose=0), dtype=np.float32)
    return scores
