"""The worker's two requests, in this process; what only a subprocess shows is in `test_runner_process`."""

from __future__ import annotations

import io

import numpy as np
import pytest

from evenfleet_agent.runner import golden, worker
from evenfleet_agent.runner.protocol import Load, Measure, RunnerSpec
from evenfleet_agent.runtimes.interface import Execution
from evenfleet_shared.errors import ConfigError, DataError, ModelRefusedError
from evenfleet_shared.manifest import TensorSpec
from fakes import tiny_models

# What each row's largest feature makes of it, with `tiny_models.weights`.
INPUTS = np.eye(3, 4, dtype=np.float32) * 5
LABELS = np.array([0, 1, 2])


@pytest.fixture
def load(tmp_path):
    def run(artifact, *, inputs=None, labels=None, outputs=None, **fields):
        for name, array in (("inputs", inputs), ("labels", labels), ("outputs", outputs)):
            if array is not None:
                np.save(tmp_path / f"{name}.npy", array)
                fields[f"{name}_file"] = str(tmp_path / f"{name}.npy")
        spec = RunnerSpec(runtime="litert", artifact=str(artifact), format="tflite", warm_up_max_s=0.01)
        spec = type(spec)(**{**{name: getattr(spec, name) for name in spec.__struct_fields__}, **fields})
        return worker.load(Load(spec=spec, scratch=str(tmp_path / "scratch")), worker.Voice(io.BytesIO()))

    return run


def run(session, **fields):
    request = Measure(**{"samples": 5, **fields})
    return worker.measure(session, request, worker.Voice(io.BytesIO()))


def test_labelled_samples_are_scored(load, tmp_path):
    session, _ = load(tiny_models.classifier(tmp_path / "m.tflite"), inputs=INPUTS, labels=LABELS)
    evaluation = run(session).evaluation
    assert evaluation is not None
    assert (evaluation.n, evaluation.errors, evaluation.tp) == (3, 0, (1, 1, 1))
    assert evaluation.hamming is None
    again = run(session).evaluation
    assert again is not None
    assert again.hamming == 0


def test_evaluation_is_left_out_when_not_asked_for(load, tmp_path):
    session, _ = load(tiny_models.classifier(tmp_path / "m.tflite"), inputs=INPUTS, labels=LABELS)
    assert run(session, evaluate=False).evaluation is None


def test_wrongly_scaled_inputs_change_the_answers(load, tmp_path):
    artifact = tiny_models.classifier(tmp_path / "m.tflite")
    session, _ = load(artifact, inputs=INPUTS, labels=LABELS, input_scale=-1.0)
    evaluation = run(session).evaluation
    assert evaluation is not None
    assert evaluation.errors == 3


def test_quantised_model_is_fed_and_read_in_real_numbers(load, tmp_path):
    inputs = np.array([[2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0]], dtype=np.float32)
    expected = (np.exp(inputs) / np.exp(inputs).sum(axis=1, keepdims=True)).astype(np.float32)
    artifact = tiny_models.quantised_classifier(tmp_path / "m.tflite")
    session, loaded = load(artifact, inputs=inputs, labels=LABELS, outputs=expected)
    evaluation = run(session).evaluation
    assert loaded.inputs[0].scale == 1 / 16
    assert evaluation is not None
    assert evaluation.errors == 0
    assert evaluation.agreement is not None
    assert evaluation.agreement.lsb_max is not None
    assert evaluation.agreement.lsb_max <= 1.5


def test_without_data_the_inputs_are_made_up_and_nothing_is_scored(load, tmp_path):
    session, loaded = load(tiny_models.adder(tmp_path / "m.tflite"))
    assert loaded.synthetic_inputs
    assert run(session).evaluation is None


@pytest.mark.parametrize("dtype", ["int32", "int8"])
def test_inputs_of_whole_numbers_are_made_up_too(load, tmp_path, dtype):
    artifact = tmp_path / "m.tflite"
    session, loaded = load(
        tiny_models.adder(artifact, dtype=dtype) if dtype == "int32" else tiny_models.quantised_classifier(artifact)
    )
    assert {spec.dtype for spec in loaded.inputs} == {dtype}
    assert len(np.frombuffer(run(session).samples_ms)) == 5


def test_open_sizes_are_one_unless_the_data_say_otherwise(load, tmp_path):
    artifact = tiny_models.relu(tmp_path / "m.tflite", shape=(1, 1), signature=(-1, -1))
    assert load(artifact)[1].inputs[0].shape == (1, 1)
    assert load(artifact, inputs=np.zeros((2, 7), dtype=np.float32))[1].inputs[0].shape == (1, 7)


def test_samples_of_another_shape_with_as_many_elements_are_taken(load, tmp_path):
    artifact = tiny_models.classifier(tmp_path / "m.tflite")
    _, loaded = load(artifact, inputs=INPUTS.reshape(3, 2, 2), labels=LABELS)
    assert not loaded.synthetic_inputs


def test_samples_with_another_number_of_elements_are_refused(load, tmp_path):
    with pytest.raises(DataError, match=r"takes shape \[1, 4\], found values of shape \[1, 7\]"):
        load(tiny_models.classifier(tmp_path / "m.tflite"), inputs=np.zeros((2, 7), dtype=np.float32))


def test_data_for_a_model_of_two_inputs_are_refused(load, tmp_path):
    with pytest.raises(DataError, match="2 inputs"):
        load(tiny_models.adder(tmp_path / "m.tflite"), inputs=INPUTS)


def test_labels_that_cannot_be_compared_leave_a_note(load, tmp_path):
    artifact = tiny_models.relu(tmp_path / "m.tflite", shape=(1, 1))
    session, loaded = load(artifact, inputs=np.zeros((2, 1), dtype=np.float32), labels=np.array([0, 7]))
    assert loaded.notes
    assert "no accuracy" in loaded.notes[0]
    assert run(session).evaluation is None


def test_sample_lasts_as_long_as_asked_by_repeating(load, tmp_path):
    session, _ = load(tiny_models.classifier(tmp_path / "m.tflite"))
    measured = run(session, min_sample_s=0.002)
    per_inference_ms = np.frombuffer(measured.samples_ms)
    assert measured.inferences_per_sample > 1
    assert np.median(per_inference_ms) * measured.inferences_per_sample >= 1.5
    # It grows where the warm-up was slower than what came after, and never shrinks.
    assert run(session, min_sample_s=0.002).inferences_per_sample >= measured.inferences_per_sample


def test_timing_goes_on_for_the_least_duration(load, tmp_path):
    session, _ = load(tiny_models.classifier(tmp_path / "m.tflite"))
    measured = run(session, samples=1, min_duration_s=0.05)
    assert measured.length_s >= 0.05
    assert len(measured.samples_ms) > 8


def test_timing_stops_at_the_longest_duration(load, tmp_path):
    session, _ = load(tiny_models.classifier(tmp_path / "m.tflite"))
    measured = run(session, samples=1_000_000, max_duration_s=0.05)
    assert 8 <= len(measured.samples_ms) < 8_000_000
    assert measured.length_s < 5


class Recorder:
    """A `Model` that takes up to eight samples at once and remembers what it was given at each `invoke`."""

    inputs = outputs = (TensorSpec(name="x", shape=(-1, 4), dtype="float32"),)
    execution = Execution(requested="cpu", executed="cpu", delegated_ratio=None, fallback_reason=None)
    max_batch = 8

    def __init__(self):
        self.invoked = []
        self.feeds = 0

    def prepare(self, values):
        (values,) = values
        return values

    def feed(self, prepared):
        self._fed = prepared
        self.feeds += 1

    def invoke(self):
        self.invoked.append(self._fed)

    def read(self):
        return [self._fed]


def recorded(inputs=3):
    model = Recorder()
    samples = [[np.full((1, 4), number, dtype=np.float32)] for number in range(inputs)]
    spec = RunnerSpec(runtime="litert", artifact="m", format="tflite")
    return worker.Session(
        spec=spec,
        model=model,
        data=golden.load(spec),
        init_ms=1.0,
        first_ms=1.0,
        inference_ms=0.1,
        samples=samples,
        ring=[model.prepare(values) for values in samples],
        peak_was_reset=True,
        after_load=None,
        scored=False,
        labelled=False,
    )


def test_offline_throughput_takes_the_largest_batch_that_the_model_takes():
    session = recorded()
    throughput = run(session, offline_s=0.01).throughput
    assert throughput is not None
    batches = [values for values in session.model.invoked if len(values) == 8]
    assert (throughput.batch, throughput.inferences) == (8, 8 * len(batches))
    # Different samples, as far as there are any.
    assert batches[0][:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_input_is_held_over_some_samples_of_a_steady_window():
    session = recorded()
    measured = run(session, samples=160)
    requests_beside = measured.phases[0].n
    assert session.model.feeds - requests_beside == 10
    given = [int(values[0, 0]) for values in session.model.invoked[:160]]
    assert given == [number // 16 % 3 for number in range(160)]


def test_every_input_has_its_turn_where_there_are_few_samples():
    session = recorded()
    run(session, samples=6)
    assert [int(values[0, 0]) for values in session.model.invoked[:6]] == [0, 0, 1, 1, 2, 2]
    session = recorded(inputs=5)
    run(session, samples=3)
    assert [int(values[0, 0]) for values in session.model.invoked[:3]] == [0, 1, 2]


def test_share_of_the_accelerator_is_read_from_the_graph(load, tmp_path):
    _, loaded = load(tiny_models.partly_delegated(tmp_path / "m.tflite"))
    assert (loaded.accelerator_executed, loaded.delegated_ratio) == ("xnnpack", 0.5)
    assert loaded.fallback_reason is not None
    assert "CUMSUM" in loaded.fallback_reason


def test_memory_is_told_by_kind_and_method(load, tmp_path):
    session, _ = load(tiny_models.classifier(tmp_path / "m.tflite"))
    readings = {reading.kind: reading for reading in run(session).memory}
    assert set(readings) == {"after_load", "peak_rss"}
    assert readings["peak_rss"].method.startswith("VmHWM")


def test_format_that_the_runtime_does_not_run_is_refused(load, tmp_path):
    with pytest.raises(ModelRefusedError, match="runs tflite, not saved_model"):
        load(tmp_path, format="saved_model")


def test_lock_file_that_cannot_be_opened_is_a_configuration_error(load, tmp_path):
    with pytest.raises(ConfigError, match="lock file"):
        load(tiny_models.classifier(tmp_path / "m.tflite"), lock_file=str(tmp_path / "none" / "lock"))


def test_what_a_request_takes_beside_invoke_is_timed_apart(load, tmp_path):
    session, _ = load(tiny_models.classifier(tmp_path / "m.tflite"), inputs=INPUTS)
    measured = run(session)
    phases = {phase.name: phase for phase in measured.phases}
    assert set(phases) == {"preprocess", "postprocess"}
    assert all(1 <= phase.n <= 100 and 0 < phase.p50_ms <= phase.p95_ms for phase in phases.values())
    assert len(np.frombuffer(measured.samples_ms)) == 5


def test_cadence_begins_inferences_when_they_are_due(load, tmp_path):
    session, _ = load(tiny_models.classifier(tmp_path / "m.tflite"))
    measured = run(session, samples=6, cadence_ms=10.0)
    assert 0.05 <= measured.length_s < 5
    assert (measured.cadence_ms, measured.inferences_per_sample) == (10.0, 1)
    assert {phase.name: phase.n for phase in measured.phases} == {"preprocess": 6, "queue": 6, "postprocess": 6}


def test_cadence_that_is_too_fast_is_told_as_late_starts_and_as_time_in_the_queue(load, tmp_path):
    """The model takes longer than a microsecond: each inference is due before the last one is done."""
    session, _ = load(tiny_models.classifier(tmp_path / "m.tflite"))
    measured = run(session, samples=200, cadence_ms=0.001)
    assert measured.late_starts == 199
    queue = next(phase for phase in measured.phases if phase.name == "queue")
    # The last ones have waited for all before them, and each of these took more than a microsecond longer than it had.
    assert queue.p95_ms > 190 * 0.001


def test_without_a_cadence_no_start_is_late_or_in_time(load, tmp_path):
    session, _ = load(tiny_models.classifier(tmp_path / "m.tflite"))
    assert run(session).late_starts is None


def test_cadence_stops_at_the_longest_duration(load, tmp_path):
    session, _ = load(tiny_models.classifier(tmp_path / "m.tflite"))
    measured = run(session, samples=1_000_000, cadence_ms=5.0, max_duration_s=0.05)
    assert 8 <= len(measured.samples_ms) <= 8 * 12


def test_sustained_load_is_held_against_its_own_beginning(load, tmp_path):
    session, _ = load(tiny_models.classifier(tmp_path / "m.tflite"))
    sustained = run(session, sustained_s=0.2).sustained
    assert sustained is not None
    assert sustained.span_s == pytest.approx(0.02)
    assert sustained.duration_s >= 0.2
    assert sustained.slowdown_ratio == pytest.approx(sustained.last_p50_ms / sustained.first_p50_ms)
    assert run(session).sustained is None


def test_sustained_load_shorter_than_one_inference_is_that_inference(load, tmp_path):
    session, _ = load(tiny_models.classifier(tmp_path / "m.tflite"))
    sustained = run(session, sustained_s=1e-7).sustained
    assert sustained is not None
    assert sustained.slowdown_ratio == 1.0


def test_offline_throughput_counts_what_was_run_back_to_back(load, tmp_path):
    session, _ = load(tiny_models.classifier(tmp_path / "m.tflite"))
    throughput = run(session, offline_s=0.05).throughput
    assert throughput is not None
    assert throughput.batch == 1
    assert throughput.duration_s >= 0.05
    assert throughput.per_s == pytest.approx(throughput.inferences / throughput.duration_s)
    assert run(session).throughput is None
