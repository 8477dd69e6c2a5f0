"""Two real files side by side: the operator with the planted fault is the one that is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from evenfleet_collector.optimize import walk
from evenfleet_collector.optimize.dissect import Graph
from evenfleet_collector.optimize.layers import DiffReport
from fakes import tiny_models
from fakes.rotations import FEATURES, Layers, in_int8, rotations, samples, with_large_weight, with_loud_channel


def file(folder: Path, name: str, layers: Layers) -> bytes:
    return tiny_models.dense(folder / f"{name}.tflite", layers).read_bytes()


def outputs(payload: bytes, runtime: str, x: Any) -> list[list[float]]:
    """Return the last output for each sample, as the plain interpreter gives it."""
    kernels = getattr(OpResolverType, walk.RUNTIMES[runtime])
    interpreter = Interpreter(model_content=payload, experimental_op_resolver_type=kernels)
    interpreter.allocate_tensors()
    (taken,), given = interpreter.get_input_details(), interpreter.get_output_details()
    found = []
    for sample in x:
        interpreter.set_tensor(taken["index"], sample[np.newaxis])
        interpreter.invoke()
        found.append(interpreter.get_tensor(given[-1]["index"])[0].tolist())
    return found


def named(report: DiffReport) -> str | None:
    return None if report.first is None else report.first.name


@pytest.mark.parametrize("runtime", list(walk.RUNTIMES))
def test_file_does_not_differ_from_itself_in_any_runtime(tmp_path: Path, runtime: str) -> None:
    x, y = samples(16)
    for payload in (file(tmp_path, "float", rotations()), in_int8(tmp_path, rotations())):
        report = walk.walk(payload, payload, x, y, runtime_b=runtime)
        assert named(report) is None
        assert (report.changed, report.only_in_a, report.only_in_b) == (0, (), ())
        assert report.accuracy_a == report.accuracy_b
        assert report.output_ratio < 0.02


def test_operator_that_gives_nan_is_the_first_and_its_figures_say_so(tmp_path: Path) -> None:
    sound = rotations()
    matrix, bias = sound[1]
    layers = [sound[0], (np.where(np.arange(matrix.size).reshape(matrix.shape) == 0, np.nan, matrix), bias), *sound[2:]]
    report = walk.walk(file(tmp_path, "a", sound), file(tmp_path, "b", layers), samples(4)[0])
    assert named(report) == "dense1"
    assert report.first is not None
    assert np.isnan([report.first.introduced_ratio, report.first.introduced_max]).all()


def test_same_run_twice_differs_in_nothing(tmp_path: Path) -> None:
    payload = in_int8(tmp_path, rotations())
    report = walk.walk(payload, payload, samples(16)[0])
    assert [layer.introduced_rms for layer in report.layers] == [0.0] * len(report.layers)
    assert [layer.sensitivity_ratio for layer in report.layers] == [0.0] * len(report.layers)
    assert report.output_rms == 0.0


def test_sound_int8_file_exceeds_no_bound(tmp_path: Path) -> None:
    report = walk.walk(file(tmp_path, "float", rotations()), in_int8(tmp_path, rotations()), *samples(64))
    assert named(report) is None
    assert [layer.name for layer in report.layers if layer.counterpart] == ["dense0", "dense1", "dense2", "dense3"]
    assert 0.0 < report.output_ratio < 0.1


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_modified_weight_is_found_in_its_layer_and_not_in_those_that_inherit_it(tmp_path: Path, place: int) -> None:
    layers = rotations()
    changed = [(weights.copy(), bias) for weights, bias in layers]
    changed[place][0][1, 2] += 0.05
    report = walk.walk(file(tmp_path, "a", layers), file(tmp_path, "b", changed), samples(32)[0])
    assert named(report) == f"dense{place}"
    assert report.first is not None
    assert report.first.cause == "other-weights"
    assert [layer.name for layer in report.layers if layer.exceeds] == [f"dense{place}"]
    inherited = [layer.total_ratio or 0.0 for layer in report.layers]
    assert all(ratio == 0.0 for ratio in inherited[:place])
    assert all(ratio > 1e-5 for ratio in inherited[place:])


@pytest.mark.parametrize("place", [1, 2, 3])
def test_layer_whose_weights_int8_cannot_hold_is_named_and_is_the_most_sensitive(tmp_path: Path, place: int) -> None:
    layers = with_large_weight(rotations(), place)
    report = walk.walk(file(tmp_path, "float", layers), in_int8(tmp_path, layers), *samples(64))
    assert named(report) == f"dense{place}"
    assert report.first is not None
    assert report.first.cause == "weights"
    worst = max(report.layers, key=lambda layer: layer.sensitivity_ratio or 0.0)
    assert worst.name == f"dense{place}"
    assert worst.changed is not None
    assert worst.changed > 10
    assert report.accuracy_b is not None
    assert report.accuracy_b < 0.6


def test_one_loud_channel_that_takes_the_range_from_all_others_is_named(tmp_path: Path) -> None:
    """Over the whole tensor the error is small beside the loud channel; it is the other channels that are lost."""
    layers = with_loud_channel(rotations(), 1)
    report = walk.walk(file(tmp_path, "float", layers), in_int8(tmp_path, layers), *samples(64))
    assert named(report) == "dense1"
    assert report.first is not None
    assert report.first.cause == "step"
    assert report.first.introduced_rms / report.first.signal_rms < report.first.bound.ratio


def test_operators_introduce_what_makes_the_whole_difference_and_sensitivity_is_that_of_each_alone(
    tmp_path: Path,
) -> None:
    layers = rotations()
    changed = [(weights.copy(), bias) for weights, bias in layers]
    changed[2][0][0, 0] += 0.2
    report = walk.walk(file(tmp_path, "a", layers), file(tmp_path, "b", changed), samples(32)[0])
    sensitivity = {layer.name: layer.sensitivity_ratio for layer in report.layers}
    assert sensitivity["dense2"] == pytest.approx(report.output_ratio, rel=1e-6)
    assert [name for name, ratio in sensitivity.items() if ratio] == ["dense2"]


def test_range_that_calibration_has_not_seen_is_told_as_that(tmp_path: Path) -> None:
    x, y = samples(64)
    quiet = in_int8(tmp_path, rotations(), x * 0.3)
    report = walk.walk(file(tmp_path, "float", rotations()), quiet, x, y)
    assert report.first is not None
    assert report.first.cause == "saturation"


@pytest.mark.parametrize("runtime", list(walk.RUNTIMES))
def test_exposing_tensors_does_not_change_what_a_file_gives(tmp_path: Path, runtime: str) -> None:
    for payload in (file(tmp_path, "float", rotations()), in_int8(tmp_path, rotations())):
        exposed = outputs(Graph(payload).exposed(), runtime, samples(8)[0])
        assert exposed == outputs(payload, runtime, samples(8)[0])


def test_files_of_two_graphs_are_refused(tmp_path: Path) -> None:
    a = file(tmp_path, "a", rotations())
    b = tiny_models.relu(tmp_path / "b.tflite", shape=(1, FEATURES)).read_bytes()
    with pytest.raises(ValueError, match="share no operator"):
        walk.walk(a, b, samples(4)[0])


def test_operators_that_only_one_file_has_are_told(tmp_path: Path) -> None:
    layers = rotations()
    report = walk.walk(file(tmp_path, "a", layers), file(tmp_path, "b", [*layers, layers[-1:][0]][:4]), samples(4)[0])
    assert (report.only_in_a, report.only_in_b) == ((), ())
    wider: Sequence[tuple[np.ndarray, np.ndarray]] = [
        (np.vstack([layers[0][0], layers[0][0][:1]]), np.append(layers[0][1], 0.0)),
        (np.hstack([layers[1][0], layers[1][0][:, :1] * 0]), layers[1][1]),
        *layers[2:],
    ]
    report = walk.walk(file(tmp_path, "a", layers), file(tmp_path, "c", wider), samples(4)[0])
    assert report.only_in_a == report.only_in_b == ("FULLY_CONNECTED dense0", "FULLY_CONNECTED dense1")


def test_file_of_any_batch_is_walked(tmp_path: Path) -> None:
    payload = tiny_models.classifier(tmp_path / "m.tflite", dynamic_batch=True).read_bytes()
    report = walk.walk(payload, payload, np.eye(3, 4, dtype=np.float32), np.arange(3))
    assert (named(report), report.accuracy_b) == (None, 1.0)
