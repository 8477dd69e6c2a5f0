"""A release directory around `tiny_models`, with real digests: one variant that runs, and one that nothing can run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evenfleet_shared import manifest
from evenfleet_shared.messages import Agreement
from fakes import tiny_models

_BIT_EXACT = Agreement(noise_class="bit-exact", top1_ratio=1.0, max_abs_diff=0.0, rms_diff=0.0)


def write_release(directory: Path) -> Path:
    """Write the release into a new directory of `directory` and return it."""
    release = directory / "release"
    for folder in ("artifacts", "golden"):
        (release / folder).mkdir(parents=True)
    inputs = np.eye(3, tiny_models.FEATURES, dtype=np.float32) * 5
    logits = inputs @ tiny_models.weights().T
    outputs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.save(release / "golden/inputs.npy", inputs)
    np.save(release / "golden/labels.npy", np.array([0, 1, 2], dtype=np.int64))
    np.save(release / "golden/outputs.npy", outputs.astype(np.float32))
    tiny_models.classifier(release / "artifacts/float32.tflite")
    tiny_models.classifier(release / "artifacts/too-new.tflite", version=99)
    described = manifest.Manifest(
        model="tiny",
        reference_variant="float32",
        variants=(_variant(release, "float32"), _variant(release, "too-new")),
        golden=manifest.Golden(
            n=3,
            classes=tiny_models.CLASSES,
            inputs=manifest.file_ref(release, "golden/inputs.npy"),
            labels=manifest.file_ref(release, "golden/labels.npy"),
            outputs=manifest.file_ref(release, "golden/outputs.npy"),
        ),
        preprocessing={},
        lineage={},
    )
    (release / manifest.MANIFEST_NAME).write_bytes(manifest.encode(described))
    return release


def _variant(release: Path, name: str) -> manifest.Variant:
    return manifest.Variant(
        name=name,
        format="tflite",
        artifact=manifest.file_ref(release, f"artifacts/{name}.tflite"),
        techniques=(),
        input=manifest.TensorSpec(name="x", shape=(1, tiny_models.FEATURES), dtype="float32"),
        output=manifest.TensorSpec(name="y", shape=(1, tiny_models.CLASSES), dtype="float32"),
        reference=manifest.ReferenceResult(
            n=3,
            errors=0,
            tp=(1, 1, 1),
            fp=(0, 0, 0),
            fn=(0, 0, 0),
            correct="111",
            prediction_digest="0" * 64,
            agreement=_BIT_EXACT,
        ),
    )
