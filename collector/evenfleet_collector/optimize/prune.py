"""Magnitude pruning: the smallest weights of each kernel become zero while the rest is fine-tuned.

By masks in a Keras callback: tensorflow-model-optimization does not work with Keras 3. The last kernel, which makes
the scores, is left alone, and so are kernels so small that their zeros save nothing and cost accuracy, such as a first
convolution's. Zeros in scattered places make a file smaller when it is compressed; whether they make a
device faster is for the device to measure.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from evenfleet_collector.optimize import training
from evenfleet_collector.optimize.technique import Form, Material, Rate, Ratio, Stage, Steps, Technique
from evenfleet_shared.errors import ModelRefusedError

# The smallest kernels are left alone as long as they hold a smaller share of all weights, all of them together: in a deep
# network every kernel may hold less than that.
_LEAST_SHARE: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune(Technique):
    """Prune to `sparsity_ratio` over the first `ramp_ratio` of the steps, then fine-tune with the zeros fixed."""

    name: ClassVar[str] = "prune"
    takes: ClassVar[Stage] = "keras"
    gives: ClassVar[Stage] = "keras"
    block: ClassVar[int] = 1
    sparsity_ratio: Ratio = 0.6
    ramp_ratio: Ratio = 0.6
    steps: Steps = 700
    learning_rate: Rate = 1e-3

    def apply(self, form: Form, material: Material) -> Form:
        """Prune a clone of the model."""
        model = training.clone(form.keras, material.seed)
        kernels = prunable(model, self.block)
        steps = training.steps_for(len(material.data.x_train), self.steps)
        ramp_steps = max(1, int(steps * self.ramp_ratio))
        training.fine_tune(
            model,
            material,
            steps=self.steps,
            learning_rate=self.learning_rate,
            callbacks=[_mask_callback(kernels, self.sparsity_ratio, ramp_steps, self.block)],
        )
        return Form(stage="keras", keras=model, pruned=True)

    def control(self) -> tuple[Technique, ...] | None:
        """Return the same fine-tuning, in which nothing becomes zero."""
        return (training.FineTune(steps=self.steps, learning_rate=self.learning_rate),)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneBlocks(Prune):
    """The same in blocks of 16 weights that one output multiplies: what kernels for sparse weights can skip as a whole."""

    name: ClassVar[str] = "prune-blocks"
    block: ClassVar[int] = 16
    sparsity_ratio: Ratio = 0.8


def sparsity_at(step: int, ramp_steps: int, final_ratio: float) -> float:
    """Return the share of zeros after `step` steps: fast at first, when there is much to take away, then slower.

    Source:
        Zhu and Gupta (2017), To prune, or not to prune, equation 1.

    >>> sparsity_at(0, 100, 0.8), round(sparsity_at(50, 100, 0.8), 3), sparsity_at(200, 100, 0.8)
    (0.0, 0.7, 0.8)
    """
    left = 1.0 - min(1.0, step / ramp_steps)
    return final_ratio * (1.0 - left**3)


def keep_mask(weights: npt.NDArray[np.float32], sparsity_ratio: float, block: int = 1) -> npt.NDArray[np.float32]:
    """Return 0 for the `sparsity_ratio` of the blocks that are smallest in magnitude, 1 for the others.

    Args:
        weights: Of a kernel, shape ``(…, inputs, outputs)``.
        sparsity_ratio: Share of the blocks.
        block: So many inputs of one output become zero together or not at all; divides the inputs.

    >>> keep_mask(np.array([[0.1, -3.0], [2.0, -0.2]], dtype=np.float32), 0.5).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    >>> keep_mask(np.array([[0.1, -3.0], [2.0, -0.2]], dtype=np.float32), 0.5, block=2).tolist()
    [[0.0, 1.0], [0.0, 1.0]]
    """
    outputs = weights.shape[-1]
    blocks = np.abs(weights.reshape(-1, block, outputs)).sum(axis=1)
    keep = np.ones(blocks.size, dtype=np.float32)
    keep[np.argsort(blocks, axis=None, kind="stable")[: round(blocks.size * sparsity_ratio)]] = 0.0
    return np.repeat(keep.reshape(blocks.shape), block, axis=0).reshape(weights.shape)


def prunable(model: Any, block: int = 1) -> list[Any]:
    """Return the kernels to prune: of dense and convolution layers, all but the last and the very small.

    Args:
        model: A Keras model.
        block: Only kernels whose inputs fall into whole blocks of so many.

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
    fitting = [kernel for kernel in kernels[:-1] if kernel.shape[-2] % block == 0]
    if not fitting:
        raise ModelRefusedError(
            f"prune-blocks: no layer before the last has inputs in blocks of {block}; "
            f"they have {', '.join(str(kernel.shape[-2]) for kernel in kernels[:-1])}"
        )
    sizes = [math.prod(kernel.shape) for kernel in fitting]
    smallest_first = sorted(range(len(sizes)), key=sizes.__getitem__)
    sums = itertools.accumulate(sizes[place] for place in smallest_first)
    large = {place for place, held in zip(smallest_first, sums, strict=True) if held >= _LEAST_SHARE * sum(sizes)}
    return [kernel for place, kernel in enumerate(fitting) if place in large]


def _mask_callback(kernels: list[Any], final_ratio: float, ramp_steps: int, block: int) -> Any:
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
                masks = [keep_mask(kernel.numpy(), ratio, block) for kernel in kernels]
                if step >= ramp_steps:
                    self._fixed = masks
            for kernel, mask in zip(kernels, masks, strict=True):
                kernel.assign(kernel.numpy() * mask)

    return MaskKernels()
