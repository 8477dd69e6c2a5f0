"""A row says what the variant's answers say, to the last digit that a limit may ask for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evenfleet_collector.optimize import appraise, evaluate, target
from evenfleet_collector.optimize.built import Built, Facts
from evenfleet_collector.optimize.data import LabelledData
from evenfleet_collector.optimize.variants import recipe
from evenfleet_collector.optimize.worth import VariantReport
from evenfleet_shared.manifest import FileRef, TensorSpec, Variant

SPEC = TensorSpec(name="x", shape=(1, 2), dtype="float32")


def row(folder: Path, *, n: int, errors: int, reference_errors: int) -> VariantReport:
    """Return the row of a variant, all samples of class 0 or 1 in turn, of which the first `errors` are told wrong."""
    labels = np.arange(n, dtype=np.int64) % 2
    x = np.zeros((n, 2), dtype=np.float32)
    made = []
    for name, wrong in (("float32", reference_errors), ("int8", errors)):
        file = folder / name
        file.write_bytes(b"12345678")
        told = np.where(np.arange(n) < wrong, 1 - labels, labels)
        facts = Facts(file=name, format="tflite", input=SPEC, output=SPEC, compressed_bytes=8)
        made.append(
            Built(recipe=recipe(name, name), artifact=file, facts=facts, outputs=np.eye(2, dtype=np.float32)[told])
        )
    reference, built = made
    entry = Variant(
        name="int8",
        format="tflite",
        artifact=FileRef(file="artifacts/int8.tflite", sha256="0" * 64, size_bytes=8),
        techniques=("int8",),
        input=SPEC,
        output=SPEC,
        reference=evaluate.reference_result(built.outputs, labels, reference.outputs, None),
    )
    return appraise.row(built, entry, reference, LabelledData(x, labels, x, labels), classes=2)


@pytest.mark.parametrize(("errors", "holds"), [(39, True), (40, True), (41, False)])
def test_variant_that_loses_just_what_may_be_lost_holds(tmp_path: Path, errors: int, holds: bool) -> None:
    """0.97 less 0.96 is 0.010000000000000009."""
    found = row(tmp_path, n=1000, errors=errors, reference_errors=30)
    assert target.choose([found], target.parse("accuracy_drop<=0.01")).holds == holds
