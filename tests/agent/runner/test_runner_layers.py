"""What stands for a tensor, what is kept of a model, and what the real runner finds in real files."""

from __future__ import annotations

import dataclasses
import io
import math
import select
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evenfleet_agent import flatbuffer
from evenfleet_agent.runner import layers, worker
from evenfleet_agent.runner.process import RunnerProcess
from evenfleet_agent.runner.protocol import Layered, Layers, Load, Loaded, Measure, Measured, NotLayered, RunnerSpec
from evenfleet_shared.layers import MAX_OUTPUTS, PROJECTIONS
from evenfleet_shared.manifest import TensorSpec
from fakes import tiny_models
from fakes.rotations import in_int8, rotations

INPUTS = np.eye(3, 4, dtype=np.float32) * 5
PLAIN = TensorSpec(name="t", shape=(1, 1), dtype="float32")


def spec_of(tmp_path, artifact, inputs=INPUTS, **fields):
    np.save(tmp_path / "inputs.npy", inputs)
    base = {"runtime": "litert", "format": "tflite", "warm_up_max_s": 0.01}
    return RunnerSpec(artifact=str(artifact), inputs_file=str(tmp_path / "inputs.npy"), **{**base, **fields})


def look(tmp_path, artifact, inputs=INPUTS, sample=0, **fields):
    spec = spec_of(tmp_path, artifact, inputs, **fields)
    session, _ = worker.load(Load(spec=spec, scratch=str(tmp_path / "scratch")), worker.Voice(io.BytesIO()))
    return worker.look(session, Layers(sample=sample), worker.Voice(io.BytesIO()))


def distance(one, other):
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(one.projections, other.projections, strict=True)) / PROJECTIONS)


@given(
    hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-100, 100, width=32)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 1000),
)
def test_projections_tell_the_distance_between_two_tensors(values, seed, number):
    """The mean square of 16 differences is within 0.1 and 3.5 of the distance's, but for less than one in 10,000 draws.

    Signs go by the tensor's number alone, so the 1,001 numbers are all the draws there are of them; differences are drawn.
    """
    difference = np.random.default_rng(seed).standard_normal(values.shape).astype(np.float32)
    true = float(np.linalg.norm((values + difference).astype(np.float64) - values))
    estimated = distance(layers.summarise(values, PLAIN, number), layers.summarise(values + difference, PLAIN, number))
    slack = 1e-6 * float(np.abs(values).sum())  # sent with eight digits
    assert math.sqrt(0.1) * true - slack <= estimated <= math.sqrt(3.5) * true + slack


def test_projections_are_right_on_average():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 9000)).astype(np.float32)
    squares = [
        distance(layers.summarise(a, PLAIN, number), layers.summarise(b, PLAIN, number)) ** 2 for number in range(64)
    ]
    # 1024 draws whose standard deviation is √2 of their mean.
    assert np.mean(squares) == pytest.approx(
        float(((a - b).astype(np.float64) ** 2).sum()), rel=5 * math.sqrt(2 / 1024)
    )


def test_a_tensor_is_told_in_real_numbers_and_by_the_bytes_that_are_stored():
    spec = TensorSpec(name="t", shape=(1, 3), dtype="int8", scale=0.5, zero_point=-1)
    summary = layers.summarise(np.array([[-1, 1, 3]], dtype=np.int8), spec, 0)
    assert (summary.min, summary.max, summary.mean) == (0.0, 2.0, 1.0)
    assert summary.rms == pytest.approx(math.sqrt(5 / 3))
    assert summary.digest != layers.summarise(np.array([[-1, 1, 2]], dtype=np.int8), spec, 0).digest


def test_what_is_not_finite_is_counted_and_left_out():
    summary = layers.summarise(np.array([1.0, np.nan, np.inf, 3.0], dtype=np.float32), PLAIN, 0)
    assert (summary.not_finite, summary.max, summary.mean) == (2, 3.0, 1.0)
    assert all(math.isfinite(value) for value in summary.projections)


def test_a_tensor_without_values_is_told_too():
    assert layers.summarise(np.zeros((0,), dtype=np.float32), PLAIN, 0).rms == 0.0


@pytest.mark.parametrize("xnnpack", [True, False])
def test_every_operator_is_told_with_its_input_first_whoever_runs_it(tmp_path, xnnpack):
    found = look(tmp_path, tiny_models.classifier(tmp_path / "m.tflite"), sample=1, xnnpack=xnnpack)
    assert isinstance(found, Layered)
    assert (found.executed, found.outputs, found.note) == ("xnnpack" if xnnpack else "cpu", 2, "")
    assert [(layer.index, layer.operator, layer.name) for layer in found.layers] == [
        (-1, "INPUT", "x"),
        (0, "FULLY_CONNECTED", "logits"),
        (1, "SOFTMAX", "y"),
    ]
    logits = tiny_models.weights() @ INPUTS[1]
    assert found.layers[1].summary.max == pytest.approx(logits.max())
    assert found.layers[1].summary.rms == pytest.approx(np.sqrt((logits**2).mean()))
    assert found.layers[2].summary.mean == pytest.approx(1 / 3)


def test_a_run_that_another_delegate_makes_than_the_measured_one_says_so(tmp_path):
    spec = spec_of(tmp_path, tiny_models.classifier(tmp_path / "m.tflite"))
    session, _ = worker.load(Load(spec=spec, scratch=str(tmp_path / "scratch")), worker.Voice(io.BytesIO()))
    session.model.execution = dataclasses.replace(session.model.execution, executed="gpu")
    found = worker.look(session, Layers(), worker.Voice(io.BytesIO()))
    assert found.note == (
        "measured, it is run by gpu (100 % of its operators); with its outputs kept, by xnnpack (100 % of its operators)"
    )


def test_a_planted_fault_is_in_what_is_fed(tmp_path):
    artifact = tiny_models.classifier(tmp_path / "m.tflite")
    sound, faulty = look(tmp_path, artifact), look(tmp_path, artifact, input_scale=0.5)
    assert faulty.layers[0].summary.max == sound.layers[0].summary.max / 2


def test_xnnpack_and_the_built_in_kernels_give_the_same_but_for_rounding(tmp_path):
    artifact = tmp_path / "m.tflite"
    artifact.write_bytes(in_int8(tmp_path, rotations()))
    inputs = np.random.default_rng(1).standard_normal((2, rotations()[0][0].shape[1])).astype(np.float32)
    one, other = (look(tmp_path, artifact, inputs, xnnpack=xnnpack) for xnnpack in (True, False))
    for a, b in zip(one.layers, other.layers, strict=True):
        assert distance(a.summary, b.summary) / math.sqrt(math.prod(a.shape)) <= 1e-4 + (a.step or 0.0)
    assert {layer.dtype for layer in one.layers} >= {"int8"}


def test_constants_are_not_seen_and_what_takes_too_much_is_left_away(tmp_path):
    content = tiny_models.classifier(tmp_path / "m.tflite").read_bytes()
    graph = flatbuffer.graph(content, "m.tflite")
    assert layers.choose(graph, {3: 100, 4: 100}, 150) == ([3], {4: "all outputs would take more than 0 MiB"})
    stored = flatbuffer.NodeTensor("x", 0, stored=True)
    folded = flatbuffer.Graph(graph.nodes, (stored, *graph.tensors[1:]), graph.inputs, graph.outputs)
    assert layers.choose(folded, {}, 150) == ([], {3: "constant", 4: "constant"})


def test_of_many_operators_the_first_are_told_and_the_message_says_so(tmp_path):
    matrix, bias = np.eye(4, dtype=np.float32), np.zeros(4, dtype=np.float32)
    artifact = tiny_models.dense(tmp_path / "m.tflite", [(matrix, bias)] * (MAX_OUTPUTS + 10))
    found = look(tmp_path, artifact)
    assert isinstance(found, Layered)
    assert found.outputs == MAX_OUTPUTS + 10
    shown = sum(layer.index >= 0 for layer in found.layers)
    assert 400 < shown <= MAX_OUTPUTS
    assert found.note == f"only the first {shown} of {MAX_OUTPUTS + 10} outputs are told of"


@pytest.mark.parametrize(
    ("fields", "sample", "why"),
    [
        ({}, 3, "there is no golden sample 3"),
        ({"runtime": "litert-compiled"}, 0, "runtime litert-compiled does not show what its operators give"),
    ],
)
def test_what_cannot_be_told_is_one_line(tmp_path, fields, sample, why):
    found = look(tmp_path, tiny_models.classifier(tmp_path / "m.tflite"), sample=sample, **fields)
    assert isinstance(found, NotLayered)
    assert why in found.reason
    assert "\n" not in found.reason


def test_onnx_shows_no_operators(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime")
    pytest.importorskip("onnx", reason="needs onnx")
    from fakes import tiny_onnx

    artifact = tiny_onnx.classifier(tmp_path / "m.onnx")
    inputs = np.zeros((1, 3, tiny_onnx.SIDE, tiny_onnx.SIDE), dtype=np.float32)
    found = look(tmp_path, artifact, inputs, runtime="onnx", format="onnx")
    assert isinstance(found, NotLayered)
    assert "runtime onnx does not show" in found.reason


def answer(runner, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        select.select([runner], [], [], 1.0)
        answers = runner.receive()
        if answers:
            return answers[0]
    raise AssertionError("no answer")


@pytest.mark.processes
def test_the_real_runner_looks_and_goes_on_with_the_peak_of_before(tmp_path):
    """What looking takes, several times 16 MB here, is no part of what measuring takes."""
    artifact = tiny_models.relu(tmp_path / "m.tflite", shape=(1, 4 << 20))
    runner = RunnerProcess()
    try:
        runner.start(spec_of(tmp_path, artifact, np.ones((1, 4 << 20), dtype=np.float32)))
        assert isinstance(answer(runner), Loaded)
        peaks = []
        for request in (Measure(samples=3), Layers(), Measure(samples=3)):
            runner.send(request)
            found = answer(runner)
            if isinstance(found, Measured):
                peaks += [reading.bytes for reading in found.memory if reading.kind == "peak_rss"]
            else:
                assert isinstance(found, Layered)
                assert found.layers[1].summary.mean == 1.0
        assert peaks[1] <= peaks[0] + (8 << 20)
    finally:
        runner.stop()
