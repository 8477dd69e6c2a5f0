"""What `evenfleet-agent measure` decides; the command itself, with its exit codes, is in `system/test_measure_command`."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from msgspec.structs import replace

from evenfleet_agent import cli, predict, runtimes, tables
from evenfleet_agent import measure as measuring
from evenfleet_agent import targets as finding
from evenfleet_agent.runner.protocol import Measure
from evenfleet_agent.samples import write_data
from fakes import tiny_models
from fakes.measuring import TEMPLATE, fresh_runner, silent, targets


@pytest.fixture
def runner():
    with fresh_runner() as made:
        yield made


def test_samples_that_the_model_cannot_take_are_told_by_the_name_that_the_user_gave_them(tmp_path, runner):
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 7), dtype=np.float32))
    (tmp_path / "copies").mkdir()
    inputs, *_ = write_data(tmp_path / "d.npz", tmp_path / "copies")
    template = replace(TEMPLATE, inputs_file=inputs)
    model = tiny_models.classifier(tmp_path / "m.tflite")
    (target,) = finding.find_targets(model, runtime="auto", template=template, data=tmp_path / "d.npz")

    failure = measuring.measure(target, Measure(samples=5), runner, silent)

    assert isinstance(failure, measuring.Failure)
    assert failure.kind == "data"
    assert failure.reason.startswith(f"{tmp_path / 'd.npz'}: input ")


def test_next_runtime_is_tried_when_the_first_is_missing_and_the_first_is_told_when_all_are(tmp_path, runner):
    (target,) = targets(tiny_models.classifier(tmp_path / "m.tflite"))
    missing = finding.Target(name="m", runtimes=("tflite", "litert"), spec=target.spec)
    result = measuring.measure(missing, Measure(samples=5), runner, silent)
    assert isinstance(result, measuring.Result)
    assert result.runtime == "litert"
    none = finding.Target(name="m", runtimes=("tflite",), spec=target.spec)
    failure = measuring.measure(none, Measure(samples=5), runner, silent)
    assert isinstance(failure, measuring.Failure)
    assert (failure.kind, "pip install tflite-runtime" in failure.reason) == ("runtime", True)


def test_command_offers_every_runtime_there_is():
    (option,) = [parameter for parameter in cli.measure.params if parameter.name == "runtime"]
    assert list(option.type.choices) == ["auto", *(runtime.name for runtime in runtimes.RUNTIMES)]


def test_models_are_measured_in_turns_and_the_processes_figures_are_told_as_median_and_spread(tmp_path, runner):
    chosen = [
        *targets(tiny_models.classifier(tmp_path / "a.tflite")),
        *targets(tiny_models.dense(tmp_path / "b.tflite", [(np.ones((8, 8)), np.ones(8))])),
    ]
    loading = []

    def progress(name, stage):
        if stage in {"", "loading"} and loading[-1:] != [name]:
            loading.append(name)

    outcomes = measuring.measure_in_turns(chosen, Measure(samples=20), runner, progress, processes=3)

    assert loading == ["a.tflite", "b.tflite"] * 3
    for outcome in outcomes:
        assert isinstance(outcome, measuring.Result)
        assert outcome.processes == 3
        assert outcome.spread is not None
        spread = outcome.spread["p50_ms"]
        assert spread.low_ms <= spread.median_ms <= spread.high_ms
        assert outcome.latency.p50_ms == spread.median_ms
        assert outcome.latency.n == 20
    told = tables.table(outcomes)
    assert "3 processes each, in turns" in told
    assert "conditions: steal" in told


def test_single_process_has_no_spread(tmp_path, runner):
    (result,) = measuring.measure_in_turns(
        targets(tiny_models.classifier(tmp_path / "m.tflite")), Measure(samples=5), runner, silent
    )
    assert isinstance(result, measuring.Result)
    assert (result.processes, result.spread) == (1, None)


def test_model_that_is_refused_is_not_tried_in_further_processes(tmp_path, runner):
    started = set()

    def progress(_name, _stage):
        started.add(runner.pid)

    (failure,) = measuring.measure_in_turns(
        targets(tiny_models.custom(tmp_path / "m.tflite")), Measure(samples=5), runner, progress, processes=4
    )
    assert isinstance(failure, measuring.Failure)
    assert len(started) <= 1


def test_result_names_what_it_may_be_compared_by(tmp_path, runner):
    (target,) = targets(tiny_models.classifier(tmp_path / "m.tflite"))
    one = measuring.measure(target, Measure(samples=5), runner, silent)
    other = measuring.measure(
        dataclasses.replace(target, spec=replace(target.spec, xnnpack=False)), Measure(samples=5), runner, silent
    )
    assert isinstance(one, measuring.Result)
    assert isinstance(other, measuring.Result)
    assert one.comparable_by["accelerator_executed"] == "xnnpack"
    assert other.comparable_by["accelerator_executed"] == "cpu"
    assert one.comparability != other.comparability
    told = tables.table([one, other])
    assert f"comparable: {one.comparability}" in told
    assert f"comparable: {other.comparability}" in told


def test_time_is_foretold_from_the_other_variants_that_were_run_alike(tmp_path, runner):
    chosen = []
    for n in (64, 256, 512):
        (target,) = targets(tiny_models.dense(tmp_path / f"{n}.tflite", [(np.ones((n, n)), np.ones(n))]))
        chosen.append(dataclasses.replace(target, macs=n * n))
    outcomes = measuring.measure_in_turns(chosen, Measure(samples=50), runner, silent)
    results = [outcome for outcome in outcomes if isinstance(outcome, measuring.Result)]
    assert [result.cost.macs for result in results] == [64 * 64, 256 * 256, 512 * 512]
    known = [predict.Known(size_bytes=one.size_bytes, macs=one.cost.macs, p50_ms=one.latency.p50_ms) for one in results]
    for index, result in enumerate(results):
        expected = predict.predict(known[index].size_bytes, known[index].macs, known[:index] + known[index + 1 :])
        assert expected is not None
        assert (result.cost.predicted_ms, result.cost.predicted_error_ratio) == (
            expected.predicted_ms,
            expected.error_ratio,
        )
    assert "multiply-accumulates" in tables.table([outcomes[0]])

    stranger = dataclasses.replace(results[0], comparability="0" * 16)
    unknown = dataclasses.replace(results[1], size_bytes=None)
    for others in ([stranger], [unknown], []):
        alone = dataclasses.replace(results[2], cost=dataclasses.replace(results[2].cost, predicted_ms=None))
        (told, *_) = measuring.foretell([alone, results[1], *others])
        assert isinstance(told, measuring.Result)
        assert told.cost.predicted_ms is None
