"""A release of each task, made by hand: a real tiny .tflite, a golden set of a few samples, and what is known to be right.

Every set has one sample that the model gets wrong, so that nobody gets by with calling all of them right. The reference's
outputs are those of a plain interpreter; everything else is written down here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evenfleet_shared import manifest
from evenfleet_shared.messages import Agreement, Task
from fakes import tiny_models

_BIT_EXACT = Agreement(noise_class="bit-exact", top1_ratio=1.0, max_abs_diff=0.0, rms_diff=0.0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One task: the model, its samples, and what they come to."""

    model: Callable[[Path], Path]
    inputs: npt.NDArray[Any]
    labels: npt.NDArray[Any] | None
    correct: str
    classes: int | None = None
    tp: tuple[int, ...] = ()
    fp: tuple[int, ...] = ()
    fn: tuple[int, ...] = ()
    metric: str | None = None
    score: float | None = None
    criteria: dict[str, Any] = field(default_factory=dict)


def _picture(*objects: tuple[int, int, float]) -> npt.NDArray[np.float32]:
    """Return what `tiny_models.detector` takes, from (anchor, class, score)."""
    x = np.zeros((len(tiny_models.ANCHORS), 5 + tiny_models.DETECTED_CLASSES), dtype=np.float32)
    for anchor, number, score in objects:
        x[anchor, 5 + number] = score
    return x


def _objects(*anchors: tuple[int, int]) -> list[list[float]]:
    """Return labels of the boxes that lie just at these anchors, and one row of no object."""
    rows = []
    for anchor, number in anchors:
        y, x, height, width = (float(value) for value in tiny_models.ANCHORS[anchor])
        rows.append([y - height / 2, x - width / 2, y + height / 2, x + width / 2, number])
    return [*rows, *[[-1.0] * 5] * (2 - len(rows))]


_PIXELS = np.array([[[0, 1], [1, 1]], [[0, 0], [1, 1]], [[0, 0], [0, 0]]])

CASES: dict[Task, Case] = {
    "classification": Case(  # binary, by one score
        model=lambda path: tiny_models.sigmoid(path, np.array([[1.0, -1.0]], dtype=np.float32)),
        inputs=np.array([[3, 0], [0, 3], [0, 2], [2, 0]], dtype=np.float32),
        labels=np.array([1, 0, 0, 0]),
        correct="1110",
        classes=2,
        tp=(2, 1),
        fp=(0, 1),
        fn=(1, 0),
    ),
    "multi-label": Case(
        model=lambda path: tiny_models.sigmoid(path, np.eye(3, dtype=np.float32)),
        inputs=np.array([[3, 3, -3], [-3, -3, -3], [3, -3, 3]], dtype=np.float32),
        labels=np.array([[1, 1, 0], [0, 0, 0], [1, 1, 0]], dtype=np.uint8),
        correct="110",
        classes=3,
        tp=(2, 1, 0),
        fp=(0, 0, 1),
        fn=(0, 1, 0),
        metric="micro-F1",
        score=0.75,
    ),
    "regression": Case(
        model=lambda path: tiny_models.dense(path, [(np.array([[2.0, 1.0]]), np.array([0.5]))]),
        inputs=np.array([[1, 0], [0, 1], [2, 2], [0, 0]], dtype=np.float32),
        labels=np.array([2.5, 1.5, 6.5, 2.5], dtype=np.float32),
        correct="1110",
        metric="RMSE",
        score=1.0,
        criteria={"tolerance": 0.25},
    ),
    "detection": Case(
        model=tiny_models.detector,
        inputs=np.stack(
            [_picture((0, 0, 0.9)), _picture((1, 1, 0.8), (2, 0, 0.9)), _picture((3, 1, 0.75)), _picture()]
        ),
        labels=np.array([_objects((0, 0)), _objects((1, 1), (2, 0)), _objects((2, 1)), _objects()], dtype=np.float32),
        correct="1101",
        classes=2,
        tp=(2, 1),
        fp=(0, 1),
        fn=(0, 1),
        metric="mAP",
        score=(1.0 + 51 / 101) / 2,  # of class 1 the first is right, and half of all is found
    ),
    "segmentation": Case(
        model=lambda path: tiny_models.relu(path, shape=(1, 2, 2, 2)),
        inputs=np.eye(2, dtype=np.float32)[_PIXELS],
        labels=np.array([[[0, 1], [1, 255]], [[0, 0], [1, 1]], [[1, 1], [1, 0]]], dtype=np.uint8),
        correct="110",
        classes=2,
        tp=(4, 4),
        fp=(3, 0),
        fn=(0, 3),
        metric="mIoU",
        score=4 / 7,
    ),
    "embedding": Case(
        model=lambda path: tiny_models.dense(path, [(np.eye(3, 4), np.zeros(3))]),
        inputs=np.eye(3, 4, dtype=np.float32) * 5,
        labels=np.array([[1, 0, 0], [0, 2, 0], [0, 3, 4]], dtype=np.float32),
        correct="110",
        metric="mean-cosine",
        score=(1 + 1 + 0.8) / 3,
    ),
    "agreement": Case(
        model=tiny_models.partly_delegated,
        inputs=np.array([[1, 2, 3, 4], [4, 3, 2, 1]], dtype=np.float32),
        labels=None,
        correct="11",
        metric="relative-error",
        score=0.0,
    ),
}


def write_task_release(directory: Path, task: Task) -> Path:
    """Write the release of one task into a new directory of `directory` and return it."""
    case, release = CASES[task], directory / f"{task}-release"
    for folder in ("artifacts", "golden"):
        (release / folder).mkdir(parents=True)
    artifact = case.model(release / "artifacts/float32.tflite")
    np.save(release / "golden/inputs.npy", case.inputs)
    np.save(release / "golden/outputs.npy", _outputs(artifact, case.inputs))
    if case.labels is not None:
        np.save(release / "golden/labels.npy", case.labels)
    reference = manifest.ReferenceResult(
        n=len(case.inputs),
        errors=case.correct.count("0"),
        tp=case.tp,
        fp=case.fp,
        fn=case.fn,
        correct=case.correct,
        prediction_digest="0" * 64,
        agreement=_BIT_EXACT,
        metric=case.metric,
        score=case.score,
    )
    described = manifest.Manifest(
        model=f"tiny-{task}",
        task=task,
        reference_variant="float32",
        variants=(
            manifest.Variant(
                name="float32",
                format="tflite",
                artifact=manifest.file_ref(release, "artifacts/float32.tflite"),
                techniques=(),
                input=manifest.TensorSpec(name="x", shape=(1, *case.inputs.shape[1:]), dtype="float32"),
                output=manifest.TensorSpec(name="y", shape=(1, -1), dtype="float32"),
                reference=reference,
            ),
        ),
        golden=manifest.Golden(
            n=len(case.inputs),
            classes=case.classes,
            inputs=manifest.file_ref(release, "golden/inputs.npy"),
            labels=None if case.labels is None else manifest.file_ref(release, "golden/labels.npy"),
            outputs=manifest.file_ref(release, "golden/outputs.npy"),
            criteria=manifest.Criteria(**case.criteria),
        ),
        preprocessing={},
        lineage={},
    )
    (release / manifest.MANIFEST_NAME).write_bytes(manifest.encode(described))
    return release


def _outputs(artifact: Path, inputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return all outputs of a plain interpreter, one row per sample."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(artifact))
    interpreter.allocate_tensors()
    (taken,) = interpreter.get_input_details()
    rows = []
    for sample in inputs:
        interpreter.set_tensor(taken["index"], sample[np.newaxis])
        interpreter.invoke()
        made = [interpreter.get_tensor(output["index"]).ravel() for output in interpreter.get_output_details()]
        rows.append(np.concatenate(made))
    return np.stack(rows).astype(np.float32)
