"""Which samples calibrate: real training samples, in their classes' shares, that can be drawn again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from evenfleet_collector.optimize import LabelledData, strata, variants
from evenfleet_collector.optimize.technique import Material


@pytest.fixture
def material(blobs: LabelledData, tmp_path: Path) -> Material:
    return Material(data=blobs, classes=3, output_kind="probabilities", seed=5, folder=tmp_path)


def test_the_record_tells_what_is_fed_and_the_seed_draws_it_again(blobs: LabelledData, material: Material) -> None:
    fed = np.concatenate([sample for (sample,) in material.calibration(31)])
    record = material.calibration_record(31)

    again = blobs.x_train[strata.choose(blobs.y_train, record.n, record.seed)]
    assert np.array_equal(fed, again)
    assert record.sha256 == hashlib.sha256(again.astype("<f4").tobytes()).hexdigest()
    assert (record.n, record.of, record.seed, sorted(record.class_counts)) == (31, "train", 5, [10, 10, 11])


def test_another_seed_draws_other_samples(blobs: LabelledData, material: Material, tmp_path: Path) -> None:
    other = Material(data=blobs, classes=3, output_kind="probabilities", seed=6, folder=tmp_path)

    assert other.calibration_record(31).sha256 != material.calibration_record(31).sha256


def test_where_fewer_samples_are_there_than_asked_for_all_are_taken_and_the_record_says_how_many(
    blobs: LabelledData, material: Material
) -> None:
    assert len(list(material.calibration(100_000))) == len(blobs.x_train)
    record = material.calibration_record(100_000)
    assert (record.n, record.class_counts) == (180, (60, 60, 60))


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["int8", "int16x8"])
def test_a_technique_that_calibrates_leaves_the_record_and_the_others_none(
    name: str, blobs: LabelledData, blob_model: object, material: Material
) -> None:
    from evenfleet_collector.optimize import saved_model

    exported = saved_model.export_keras(blob_model, blobs.sample_shape, material)
    technique = variants.technique(name)

    made = technique.apply(exported, material)

    assert made.calibration == material.calibration_record(200)
    rescued = variants.technique("int8-rescue").apply(variants.technique("float32").apply(exported, material), material)
    assert rescued.calibration == material.calibration_record(len(blobs.x_train) // 2)
    assert variants.technique("dynamic-range").apply(exported, material).calibration is None
