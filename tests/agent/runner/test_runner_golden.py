from __future__ import annotations

import hashlib
import io
import tracemalloc

import numpy as np
import pytest
from msgspec.structs import replace

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


def passed(data, rows=ROWS, *, output=None, before=None, labelled=True):
    one_pass = golden.Pass(data, (output or output_of(3),), labelled=labelled)
    for row in rows:
        one_pass.add([row[np.newaxis]], 1)
    return one_pass.end(before)


def why_not(data, rows, output):
    return golden.why_not_scored(data, [rows], (output,))


def test_labels_give_counts_and_the_reference_gives_discordant_pairs(spec):
    evaluation, correct = passed(golden.load(spec(reference_correct="0111")))
    assert (evaluation.n, evaluation.errors, evaluation.tp) == (4, 2, (1, 1, 0))
    assert (evaluation.discordant_b, evaluation.discordant_c) == (2, 1)
    assert correct is not None
    assert correct.tolist() == [True, True, False, False]


def test_samples_in_batches_are_scored_like_one_by_one(spec):
    data = golden.load(spec(outputs=ROWS, reference_correct="0111"))
    one_pass = golden.Pass(data, (output_of(3),), labelled=True)
    one_pass.add([ROWS[:3]], 3)
    one_pass.add([ROWS[3:]], 1)
    assert one_pass.end(None)[0] == passed(data)[0]


def test_outputs_of_changing_shape_are_scored_each_in_their_own(spec):
    """A detector may give as many rows as it found."""
    boxes = np.array([[[0, 0, 1, 1, 0]]] * 2, dtype=np.float32)
    data = golden.load(spec(inputs=INPUTS[:2], labels=boxes, task="detection"))
    one_pass = golden.Pass(data, (output_of(-1, 6),), labelled=True)
    found = np.array([[[0, 0, 1, 1, 0.9, 0], [2, 2, 3, 3, 0.1, 0]]], dtype=np.float32)
    one_pass.add([found], 1)
    one_pass.add([found[:, :1]], 1)
    assert one_pass.end(None)[0].errors == 0


def test_memory_of_a_pass_does_not_grow_with_its_samples(spec):
    """Scored one by one here: a megabyte each, of which none may stay."""
    pixels = 256
    labels = np.zeros((40, pixels, pixels), dtype=np.uint8)
    data = golden.load(spec(inputs=np.zeros((40, 1), dtype=np.float32), labels=labels, task="segmentation"))
    one_pass = golden.Pass(data, (output_of(pixels, pixels, 4),), labelled=True)
    tracemalloc.start()
    for number in range(40):
        output = np.zeros((1, pixels, pixels, 4), dtype=np.float32)
        one_pass.add([output], 1)
        if number == 4:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert one_pass.end(None)[0].n == 40
    assert after - before < 100_000
    assert peak < 20_000_000


def test_prediction_digest_is_that_of_little_endian_int32(spec):
    evaluation, _ = passed(golden.load(spec()))
    assert evaluation.prediction_digest == hashlib.sha256(np.array([0, 1, 1, 2], dtype="<i4").tobytes()).hexdigest()


def test_first_pass_has_no_hamming_distance_and_the_next_one_has(spec):
    data = golden.load(spec())
    first, correct = passed(data)
    second, _ = passed(data, np.roll(ROWS, 1, axis=0), before=correct)
    assert first.hamming is None
    # now wrong, wrong, wrong, wrong
    assert second.hamming == 2


def test_reference_outputs_alone_give_agreement_and_no_accuracy(spec):
    evaluation, correct = passed(golden.load(spec(labels=None, outputs=ROWS)), labelled=False)
    assert (evaluation.errors, evaluation.tp, correct) == (None, (), None)
    assert evaluation.agreement is not None
    assert evaluation.agreement.noise_class == "bit-exact"


def test_reference_outputs_of_another_width_are_refused(spec):
    data = golden.load(spec(outputs=ROWS[:, :2]))
    with pytest.raises(DataError, match=r"3 numbers per sample, the reference's outputs have 2"):
        passed(data)


def test_reference_outputs_of_any_shape_are_compared_by_sample(spec):
    evaluation, _ = passed(golden.load(spec(outputs=ROWS.reshape(4, 3, 1))))
    assert evaluation.agreement is not None
    assert evaluation.agreement.noise_class == "bit-exact"


def test_model_of_one_number_per_sample_tells_two_classes_apart_and_no_more(spec):
    why = why_not(golden.load(spec()), ROWS[:1, :1], output_of(1))
    assert why is not None
    assert "one number per sample" in why
    assert why_not(golden.load(spec(labels=np.array([0, 1, 1, 0]))), ROWS[:1, :1], output_of(1)) is None


def test_model_whose_answers_are_no_classes_is_not_scored(spec):
    """A spectrogram of 172 x 88 numbers is not 15,136 classes, whatever its largest number is."""
    why = why_not(golden.load(spec()), np.zeros((1, 2, 2), dtype=np.float32), output_of(2, 2))
    assert why == "no accuracy: the model gives numbers of shape [2, 2] per sample, not one per class"
    evaluation, correct = passed(golden.load(spec(outputs=ROWS)), output=output_of(3, 2), labelled=False)
    assert (evaluation.errors, correct) == (None, None)
    assert evaluation.agreement is not None


def test_classes_behind_dimensions_of_one_are_scored(spec):
    assert why_not(golden.load(spec()), ROWS[:1], output_of(1, 1, 3)) is None


@pytest.mark.parametrize(
    ("task", "lacks"),
    [
        ("classification", "no labels"),
        ("agreement", "no outputs of a reference"),
        ("embedding", "neither labels nor outputs of a reference"),
    ],
)
def test_samples_without_labels_or_reference_are_said_to_give_no_accuracy(spec, task, lacks):
    why = why_not(golden.load(spec(labels=None, task=task)), ROWS[:1], output_of(3))
    assert why == f"no accuracy: the data has {lacks}"
    assert why_not(golden.load(spec(labels=None, outputs=ROWS, task=task)), ROWS[:1], output_of(3)) is None


def test_labels_beyond_the_models_classes_are_data_that_do_not_fit(spec):
    with pytest.raises(DataError, match="labels go up to 2, the model knows 2 classes"):
        why_not(golden.load(spec()), ROWS[:1, :2], output_of(2))


def test_labels_beyond_the_models_classes_beside_a_references_outputs_are_not_scored(spec):
    why = why_not(golden.load(spec(outputs=ROWS)), ROWS[:1, :2], output_of(2))
    assert why is not None
    assert why.startswith("no accuracy: labels go up to 2")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inputs": np.array([[1.0, np.nan]] * 4)}, "NaN"),
        ({"inputs": np.array([["a"]] * 4)}, "samples of numbers"),
        ({"inputs": np.array([[{}]] * 4, dtype=object)}, "cannot be read"),
        ({"inputs": np.zeros((0, 3))}, "samples of numbers"),
        ({"labels": LABELS[:3]}, "one label per sample"),
        ({"labels": LABELS + 0.5}, "whole numbers"),
        ({"labels": LABELS - 1}, "found -1 to 1"),
        ({"labels": LABELS[:0]}, "one label per sample"),
        ({"outputs": ROWS[:2]}, "one entry for each of 4 samples"),
        ({"outputs": ROWS[:, :0]}, "real numbers"),
        ({"outputs": ROWS.astype(np.int64)}, "real numbers"),
        ({"reference_correct": "01"}, "4 digits"),
        ({"reference_correct": "01x1"}, "4 digits"),
    ],
)
def test_data_that_does_not_belong_together_is_refused(spec, fields, message):
    with pytest.raises(DataError, match=message):
        golden.load(spec(**fields))


@pytest.mark.parametrize("shape", [(10**14,), (10**30,), (4, -5), (4, 2**62)])
@pytest.mark.parametrize("field", ["inputs_file", "labels_file", "outputs_file"])
def test_array_that_claims_more_than_its_file_holds_is_refused(spec, tmp_path, shape, field):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    (tmp_path / "hostile.npy").write_bytes(header.getvalue() + bytes(100))
    with pytest.raises(DataError, match=r"hostile\.npy cannot be read as an array"):
        golden.load(replace(spec(), **{field: str(tmp_path / "hostile.npy")}))


def test_missing_file_is_refused(tmp_path):
    spec = RunnerSpec(runtime="litert", artifact="m", format="tflite", inputs_file=str(tmp_path / "none.npy"))
    with pytest.raises(DataError, match=r"none\.npy"):
        golden.load(spec)
