from __future__ import annotations

import hashlib

import numpy as np
import pytest

from evenfleet_agent.runner import golden
from evenfleet_agent.runner.protocol import RunnerSpec
from evenfleet_shared.errors import DataError
from evenfleet_shared.manifest import TensorSpec

INPUTS = np.arange(12, dtype=np.float32).reshape(4, 3)
LABELS = np.array([0, 1, 2, 0])
ROWS = np.array([[9, 0, 0], [0, 9, 0], [0, 9, 0], [0, 0, 9]], dtype=np.float32)  # right, right, wrong, wrong


def output_of(*sizes, scale=None):
    return TensorSpec(name="y", shape=(1, *sizes), dtype="float32", scale=scale)


@pytest.fixture
def spec(tmp_path):
    def make(*, inputs=INPUTS, labels=LABELS, outputs=None, **fields):
        files = {}
        for name, array in (("inputs", inputs), ("labels", labels), ("outputs", outputs)):
            if array is not None:
                np.save(tmp_path / f"{name}.npy", array, allow_pickle=array.dtype == object)
                files[f"{name}_file"] = str(tmp_path / f"{name}.npy")
        return RunnerSpec(runtime="litert", artifact="m", format="tflite", **files, **fields)

    return make


def test_labels_give_counts_and_the_reference_gives_discordant_pairs(spec):
    data = golden.load(spec(reference_correct="0111"))
    evaluation, correct = golden.evaluate(data, ROWS, output=output_of(3), before=None)
    assert (evaluation.n, evaluation.errors, evaluation.tp) == (4, 2, (1, 1, 0))
    assert (evaluation.discordant_b, evaluation.discordant_c) == (2, 1)
    assert correct is not None
    assert correct.tolist() == [True, True, False, False]


def test_prediction_digest_is_that_of_little_endian_int32(spec):
    evaluation, _ = golden.evaluate(golden.load(spec()), ROWS, output=output_of(3), before=None)
    assert evaluation.prediction_digest == hashlib.sha256(np.array([0, 1, 1, 2], dtype="<i4").tobytes()).hexdigest()


def test_first_pass_has_no_hamming_distance_and_the_next_one_has(spec):
    data = golden.load(spec())
    first, correct = golden.evaluate(data, ROWS, output=output_of(3), before=None)
    second, _ = golden.evaluate(data, np.roll(ROWS, 1, axis=0), output=output_of(3), before=correct)
    assert first.hamming is None
    # now wrong, wrong, wrong, wrong
    assert second.hamming == 2


def test_reference_outputs_alone_give_agreement_and_no_accuracy(spec):
    data = golden.load(spec(labels=None, outputs=ROWS))
    evaluation, _ = golden.evaluate(data, ROWS, output=output_of(3), before=None)
    assert evaluation.errors is None
    assert evaluation.agreement is not None
    assert evaluation.agreement.noise_class == "bit-exact"


def test_reference_outputs_of_another_width_are_refused(spec):
    data = golden.load(spec(outputs=ROWS[:, :2]))
    with pytest.raises(DataError, match=r"\[4, 3\].*\[4, 2\]"):
        golden.evaluate(data, ROWS, output=output_of(3), before=None)


def test_model_of_one_number_per_sample_is_not_scored(spec):
    why = golden.why_not_scored(golden.load(spec()), ROWS[:1, :1], output_of(1))
    assert why is not None
    assert "one number per sample" in why


def test_model_whose_answers_are_no_classes_is_not_scored(spec):
    """A spectrogram of 172 x 88 numbers is not 15,136 classes, whatever its largest number is."""
    why = golden.why_not_scored(golden.load(spec()), np.zeros((1, 4), dtype=np.float32), output_of(2, 2))
    assert why == "no accuracy: the model gives numbers of shape [2, 2] per sample, not one per class"
    data = golden.load(spec(outputs=ROWS))
    evaluation, correct = golden.evaluate(data, ROWS, output=output_of(3, 2), before=None)
    assert (evaluation.errors, correct) == (None, None)
    assert evaluation.agreement is not None


def test_classes_behind_dimensions_of_one_are_scored(spec):
    assert golden.why_not_scored(golden.load(spec()), ROWS[:1], output_of(1, 1, 3)) is None


def test_samples_without_labels_or_reference_are_said_to_give_no_accuracy(spec):
    why = golden.why_not_scored(golden.load(spec(labels=None)), ROWS[:1], output_of(3))
    assert why == "no accuracy: the data has no labels"
    assert golden.why_not_scored(golden.load(spec(labels=None, outputs=ROWS)), ROWS[:1], output_of(3)) is None


def test_labels_beyond_the_models_classes_are_data_that_do_not_fit(spec):
    with pytest.raises(DataError, match="labels go up to 2, the model knows 2 classes"):
        golden.why_not_scored(golden.load(spec()), ROWS[:1, :2], output_of(2))


def test_labels_beyond_the_models_classes_beside_a_references_outputs_are_not_scored(spec):
    why = golden.why_not_scored(golden.load(spec(outputs=ROWS)), ROWS[:1, :2], output_of(2))
    assert why is not None
    assert why.startswith("no accuracy: labels go up to 2")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inputs": np.array([[1.0, np.nan]] * 4)}, "NaN"),
        ({"inputs": np.array([["a"]] * 4)}, "samples of numbers"),
        ({"inputs": np.array([[{}]] * 4, dtype=object)}, "cannot be read"),
        ({"inputs": np.zeros((0, 3))}, "samples of numbers"),
        ({"labels": LABELS[:3]}, "one per sample"),
        ({"labels": LABELS.astype(np.float32)}, "whole numbers"),
        ({"labels": LABELS - 1}, "whole numbers"),
        ({"outputs": ROWS[:2]}, "real numbers of shape"),
        ({"reference_correct": "01"}, "4 digits"),
        ({"reference_correct": "01x1"}, "4 digits"),
    ],
)
def test_data_that_does_not_belong_together_is_refused(spec, fields, message):
    with pytest.raises(DataError, match=message):
        golden.load(spec(**fields))


def test_missing_file_is_refused(tmp_path):
    spec = RunnerSpec(runtime="litert", artifact="m", format="tflite", inputs_file=str(tmp_path / "none.npy"))
    with pytest.raises(DataError, match=r"none\.npy"):
        golden.load(spec)
