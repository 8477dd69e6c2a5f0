"""Magnitude pruning: the smallest weights of each kernel become zero while the rest is fine-tuned.

By masks in a Keras callback: tensorflow-model-optimization does not work with Keras 3. The last kernel, which makes
the scores, is left alone. Zeros in scattered places make a file smaller when it is compressed; whether they make a
device faster is for the device to measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from evenfleet_collector.optimize import training
from evenfleet_collector.optimize.technique import Form, Material, Stage
from evenfleet_shared.errors import ModelRefusedError


@dataclass(frozen=True, slots=True)
class Prune:
    """Prune to `sparsity_ratio` over the first `ramp_ratio` of the steps, then fine-tune with the zeros fixed."""

    name: ClassVar[str] = "prune"
    takes: ClassVar[Stage] = "keras"
    gives: ClassVar[Stage] = "keras"

    sparsity_ratio: float = 0.6
    ramp_ratio: float = 0.6
    steps: int = 700
    learning_rate: float = 1e-3

    @property
    def settings(self) -> str:
        """Return the settings as short text."""
        return f"sparsity={self.sparsity_ratio} ramp={self.ramp_ratio} steps={self.steps} rate={self.learning_rate}"

    def apply(self, form: Form, material: Material) -> Form:
        """Prune a clone of the model."""
        import keras

        model = keras.models.clone_model(form.keras)
        model.set_weights(form.keras.get_weights())
        kernels = prunable(model)
        data = material.data
        epochs = training.epochs_for(len(data.x_train), self.steps)
        steps = epochs * -(-len(data.x_train) // training.BATCH)
        training.fit(
            model,
            data.x_train,
            data.y_train,
            loss=training.hard_loss(material.output_kind),
            epochs=epochs,
            learning_rate=self.learning_rate,
            seed=material.seed,
            callbacks=[_mask_callback(kernels, self.sparsity_ratio, max(1, int(steps * self.ramp_ratio)))],
        )
        return Form(stage="keras", keras=model)


def sparsity_at(step: int, ramp_steps: int, final_ratio: float) -> float:
    """Return the share of zeros after `step` steps: fast at first, when there is much to take away, then slower.

    Source:
        Zhu and Gupta (2017), To prune, or not to prune, equation 1.

    >>> sparsity_at(0, 100, 0.8), round(sparsity_at(50, 100, 0.8), 3), sparsity_at(200, 100, 0.8)
    (0.0, 0.7, 0.8)
    """
    left = 1.0 - min(1.0, step / ramp_steps)
    return final_ratio * (1.0 - left**3)


def keep_mask(weights: npt.NDArray[np.float32], sparsity_ratio: float) -> npt.NDArray[np.float32]:
    """Return 0 for the `sparsity_ratio` of the weights that are smallest in magnitude, 1 for the others.

    >>> keep_mask(np.array([[0.1, -3.0], [2.0, -0.2]], dtype=np.float32), 0.5).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    mask = np.ones(weights.size, dtype=np.float32)
    mask[np.argsort(np.abs(weights), axis=None, kind="stable")[: round(weights.size * sparsity_ratio)]] = 0.0
    return mask.reshape(weights.shape)


def prunable(model: Any) -> list[Any]:
    """Return the kernels to prune: of dense and convolution layers, all but the last.

    Raises:
        ModelRefusedError: There is none.
    """
    kernels = [
        variable
        for variable in model.trainable_variables
        if variable.path.rpartition("/")[2] == "kernel" and len(variable.shape) >= 2
    ]
    if len(kernels) < 2:
        raise ModelRefusedError("prune: no dense or convolution kernel before the last layer")
    return kernels[:-1]


def _mask_callback(kernels: list[Any], final_ratio: float, ramp_steps: int) -> Any:
    import keras

    class MaskKernels(keras.callbacks.Callback):  # type: ignore[misc]  # keras has no types
        """Set the weights under the masks to zero after every call of the training function."""

        def __init__(self) -> None:
            super().__init__()
            self._fixed: list[npt.NDArray[np.float32]] | None = None

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            step = int(self.model.optimizer.iterations)
            masks = self._fixed
            if masks is None:
                ratio = sparsity_at(step, ramp_steps, final_ratio)
                masks = [keep_mask(kernel.numpy(), ratio) for kernel in kernels]
                if step >= ramp_steps:
                    self._fixed = masks
            for kernel, mask in zip(kernels, masks, strict=True):
                kernel.assign(kernel.numpy() * mask)

    return MaskKernels()
