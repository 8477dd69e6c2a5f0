"""Put a number and a word on how far a model's outputs are from the reference outputs.

Needs numpy, so the agent's supervisor never imports it; its runner does.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evenfleet_shared.messages import Agreement, NoiseClass

# Float kernels that sum in another order differ by this share of the largest output at most; measured between
# LiteRT 1.0 to 2.3, tflite-runtime 2.14 and TensorFlow: 1.3e-5 on softmax outputs.
FLOAT_ROUNDING: Final = 1e-4


class Comparison:
    """Outputs beside the reference's, a batch at a time: what is kept does not grow with the samples.

    Args:
        output_scale: The size of one step of the output's own quantisation; None for float outputs. Within rounding
            means one step there, and `FLOAT_ROUNDING` of the largest reference output otherwise.
    """

    def __init__(self, *, output_scale: float | None) -> None:
        self._output_scale = output_scale
        self._numbers = self._decisions = self._same = 0
        self._largest = self._largest_reference = 0.0
        # The squares' sum in units of the largest difference so far, whose own square may be more than a float holds.
        self._squares = 0.0

    def add(
        self, reference: npt.NDArray[Any], outputs: npt.NDArray[Any], same: npt.NDArray[np.bool_] | None = None
    ) -> None:
        """Compare some samples.

        Args:
            reference: Reference outputs, shape ``(n, ...)``.
            outputs: Dequantised outputs of the same samples, same shape.
            same: Which decisions are the same, any shape; by default those for the largest number of each vector along
                the last axis.

        Raises:
            ValueError: The shapes differ or there are no samples.
        """
        if reference.shape != outputs.shape or not reference.size:
            raise ValueError(
                f"cannot compare outputs of shape {outputs.shape} with a reference of shape {reference.shape}"
            )
        with np.errstate(invalid="ignore"):  # of two infinities
            difference = np.abs(reference.astype(np.float64) - outputs.astype(np.float64))
        # A NaN or an infinity is the largest difference there is, and must not leave as one: JSON has no word for it.
        difference = np.nan_to_num(difference, nan=1e300, posinf=1e300)
        if same is None:
            if reference.ndim == 1:
                reference, outputs = reference[:, np.newaxis], outputs[:, np.newaxis]
            same = reference.argmax(axis=-1) == outputs.argmax(axis=-1)
        largest = max(float(difference.max()), self._largest)
        if largest:
            scale = max(largest, 1e-300)
            before = self._largest / scale
            self._squares = self._squares * before * before + float(np.sum((difference / scale) ** 2))
        self._largest = largest
        finite = np.isfinite(reference)
        self._largest_reference = max(self._largest_reference, float(np.abs(reference).max(initial=0.0, where=finite)))
        self._numbers += difference.size
        self._decisions += same.size
        self._same += int(np.count_nonzero(same))

    def result(self) -> Agreement:
        """Return how far apart all of them are.

        The noise class is ``bit-exact``, ``within-rounding``, ``same-decision`` (every one) or ``divergent``.

        Raises:
            ValueError: Nothing was added.
        """
        if not self._numbers:
            raise ValueError("nothing was compared")
        largest, output_scale = self._largest, self._output_scale
        step = output_scale or FLOAT_ROUNDING * self._largest_reference
        noise_class: NoiseClass
        if largest == 0.0:
            noise_class = "bit-exact"
        elif largest <= step * 1.001:
            noise_class = "within-rounding"
        elif self._same == self._decisions:
            noise_class = "same-decision"
        else:
            noise_class = "divergent"
        return Agreement(
            noise_class=noise_class,
            top1_ratio=self._same / self._decisions,
            max_abs_diff=largest,
            rms_diff=float(np.sqrt(self._squares / self._numbers)) * max(largest, 1e-300) if largest else 0.0,
            lsb_max=min(largest / output_scale, 1e300) if output_scale else None,
        )


def compare(
    reference: npt.NDArray[np.float32], outputs: npt.NDArray[np.float32], *, output_scale: float | None
) -> Agreement:
    """Compare outputs with the reference's, all of them at once; see `Comparison`.

    >>> a = np.array([[0.1, 0.9]], dtype=np.float32)
    >>> compare(a, a, output_scale=None).noise_class
    'bit-exact'
    >>> compare(a, a[:, ::-1], output_scale=None).noise_class
    'divergent'
    """
    comparison = Comparison(output_scale=output_scale)
    comparison.add(reference, outputs)
    return comparison.result()


def prediction_digest(predictions: npt.NDArray[np.integer[Any]]) -> str:
    """Return the name of a run's decisions: the sha256 of the predicted classes, shape ``(n,)``, as little-endian int32.

    >>> prediction_digest(np.array([1, 2])) == prediction_digest(np.array([1, 2], dtype=np.uint8))
    True
    """
    return hashlib.sha256(predictions.astype("<i4").tobytes()).hexdigest()
