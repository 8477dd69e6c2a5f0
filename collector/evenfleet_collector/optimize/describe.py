"""Describe what is in a release, in the manifest's types: each variant, the golden set, the envelope, the preprocessing.

Leaves to `release` what is in it, and to `appraise` what it is worth.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np

from evenfleet_collector.optimize import evaluate
from evenfleet_collector.optimize.built import Built
from evenfleet_collector.optimize.data import LabelledData
from evenfleet_collector.optimize.strata import Indices
from evenfleet_collector.optimize.worth import Timing, VariantReport
from evenfleet_shared import manifest
from evenfleet_shared.manifest import Envelope, Golden, Variant

_SUFFIX: Final = {"tflite": ".tflite", "saved_model": ".tar"}


def entry(release: Path, built: Built, reference: Built, data: LabelledData, golden: Indices) -> Variant:
    """Copy a variant's artifact into the release, and describe it; `golden` are the indices of the golden set."""
    facts = built.facts
    file = f"artifacts/{built.recipe.name}{_SUFFIX[facts.format]}"
    shutil.copyfile(built.artifact, release / file)
    return Variant(
        name=built.recipe.name,
        format=facts.format,
        artifact=manifest.file_ref(release, file),
        techniques=built.recipe.words,
        input=facts.input,
        output=facts.output,
        parameters=facts.parameters,
        macs=facts.macs,
        operators=facts.operators,
        min_runtime_version=facts.min_runtime_version,
        calibration=facts.calibration,
        reference=evaluate.reference_result(
            built.outputs[golden], data.y_test[golden], reference.outputs[golden], facts.output.scale
        ),
    )


def write_golden(release: Path, reference: Built, data: LabelledData, golden: Indices, *, classes: int) -> Golden:
    """Write the golden set into the release, and describe it."""
    arrays: dict[str, Any] = {
        "inputs": data.x_test[golden].astype("<f4"),
        "labels": data.y_test[golden].astype("<i8"),
        "outputs": reference.outputs[golden].astype("<f4"),
    }
    for name, array in arrays.items():
        np.save(release / "golden" / f"{name}.npy", array, allow_pickle=False)
    inputs, labels, outputs = (manifest.file_ref(release, f"golden/{name}.npy") for name in arrays)
    return Golden(n=len(golden), classes=classes, inputs=inputs, labels=labels, outputs=outputs)


def envelope(row: VariantReport, taken: Timing, *, device_class: str, machine: str, test_n: int) -> Envelope:
    """Return what a device of a class can expect of a variant, from what was measured on this one."""
    return Envelope(
        variant=row.name,
        device_class=device_class,
        machine=machine,
        runtime=taken.runtime,
        runtime_version=taken.runtime_version,
        threads=taken.threads,
        test_n=test_n,
        accuracy_ratio=row.accuracy_ratio,
        accuracy_low_ratio=row.accuracy_interval[0],
        accuracy_high_ratio=row.accuracy_interval[1],
        n=taken.n,
        rounds=taken.rounds,
        p50_ms=taken.p50_ms,
        p50_low_ms=taken.p50_low_ms,
        p50_high_ms=taken.p50_high_ms,
        p95_ms=taken.p95_ms,
        p95_low_ms=taken.p95_low_ms,
        p95_high_ms=taken.p95_high_ms,
        peak_rss_bytes=taken.peak_rss_bytes,
    )


def preprocessing(labelled: LabelledData) -> dict[str, str]:
    """Say what the model is fed, so that a device that feeds something else can be told."""
    x = labelled.x_train
    return {
        **labelled.preprocessing.wire(),
        "minimum": f"{x.min():.6g}",
        "maximum": f"{x.max():.6g}",
        "mean": f"{x.mean(dtype=np.float64):.6g}",
        "note": "inputs are as the float32 model takes them; nothing is scaled after",
    }


def class_names(labelled: LabelledData) -> dict[str, str]:
    """Return the names of the classes as JSON text, where the data has them: lineage is text throughout."""
    return {"class_names": json.dumps(labelled.class_names, ensure_ascii=False)} if labelled.class_names else {}


def model_name(text: str) -> str:
    """Return what a release may be called after a text.

    >>> model_name("my model (2)")
    'my-model--2-'
    """
    return re.sub(r"[^A-Za-z0-9._+-]", "-", text).lstrip("._+-")[:64] or "model"
