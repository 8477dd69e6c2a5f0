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


def compare(
    reference: npt.NDArray[np.float32], outputs: npt.NDArray[np.float32], *, output_scale: float | None
) -> Agreement:
    """Compare outputs with the reference's, sample by sample.

    Args:
        reference: Reference outputs, shape ``(n, classes)``.
        outputs: Dequantised outputs of the same samples, same shape.
        output_scale: The size of one step of the output's own quantisation; None for float outputs. Within rounding
            means one step there, and `FLOAT_ROUNDING` of the largest reference output otherwise.

    Returns:
        The noise class: ``bit-exact``, ``within-rounding``, ``same-decision`` (every argmax the same) or ``divergent``.

    Raises:
        ValueError: The shapes differ or there are no samples.

    >>> a = np.array([[0.1, 0.9]], dtype=np.float32)
    >>> compare(a, a, output_scale=None).noise_class
    'bit-exact'
    >>> compare(a, a[:, ::-1], output_scale=None).noise_class
    'divergent'
    """
    if reference.shape != outputs.shape or not reference.size:
        raise ValueError(f"cannot compare outputs of shape {outputs.shape} with a reference of shape {reference.shape}")
    difference = np.abs(reference.astype(np.float64) - outputs.astype(np.float64))
    # A NaN or an infinity is the largest difference there is, and must not leave as one: JSON has no word for it.
    difference = np.nan_to_num(difference, nan=1e300, posinf=1e300)
    same = reference.argmax(axis=1) == outputs.argmax(axis=1)
    largest = float(difference.max())
    step = output_scale or FLOAT_ROUNDING * float(np.abs(reference).max())
    noise_class: NoiseClass
    if largest == 0.0:
        noise_class = "bit-exact"
    elif largest <= step * 1.001:
        noise_class = "within-rounding"
    elif same.all():
        noise_class = "same-decision"
    else:
        noise_class = "divergent"
    scale = max(largest, 1e-300)  # keeps the square below from overflowing
    return Agreement(
        noise_class=noise_class,
        top1_ratio=float(same.mean()),
        max_abs_diff=largest,
        rms_diff=float(np.sqrt(np.mean((difference / scale) ** 2)) * scale) if largest else 0.0,
        lsb_max=min(largest / output_scale, 1e300) if output_scale else None,
    )


def prediction_digest(predictions: npt.NDArray[np.integer[Any]]) -> str:
    """Return the name of a run's decisions: the sha256 of the predicted classes, shape ``(n,)``, as little-endian int32.

    >>> prediction_digest(np.array([1, 2])) == prediction_digest(np.array([1, 2], dtype=np.uint8))
    True
    """
    return hashlib.sha256(predictions.astype("<i4").tobytes()).hexdigest()
