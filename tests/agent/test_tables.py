"""How what was measured is told, with real runtimes in subprocesses."""

from __future__ import annotations

import dataclasses

import pytest

from evenfleet_agent import measure as measuring
from evenfleet_agent import tables
from evenfleet_agent.runner.protocol import Measure
from fakes import tiny_models
from fakes.measuring import fresh_runner, silent, targets
from fakes.tiny_release import write_release


@pytest.fixture
def runner():
    with fresh_runner() as made:
        yield made


def test_measured_release_is_told_side_by_side_and_what_was_refused_below(tmp_path, runner):
    outcomes = [
        measuring.measure(target, Measure(samples=700), runner, silent) for target in targets(write_release(tmp_path))
    ]
    measured, refused = outcomes
    assert isinstance(measured, measuring.Result)
    assert measured.accuracy is not None
    assert measured.accuracy.accuracy_ratio == 1.0
    assert measured.agreement is not None
    assert isinstance(refused, measuring.Failure)
    assert refused.kind == "model"
    told = tables.table(outcomes)
    assert "float32  litert" in told
    assert "too-new: not measured: litert" in told
    assert max(len(line) for line in told.splitlines()) < 250


def test_single_model_is_told_in_detail(tmp_path, runner):
    (target,) = targets(tiny_models.partly_delegated(tmp_path / "m.tflite"))
    told = tables.table([measuring.measure(target, Measure(samples=30), runner, silent)])
    for words in ("synthetic inputs", "50% of the operators", "unqualified", "VmHWM", "left to the built-in kernels"):
        assert words in told


def test_modes_are_told_beside_the_steady_figures(tmp_path, runner):
    (target,) = targets(tiny_models.classifier(tmp_path / "m.tflite"))
    request = Measure(samples=5, cadence_ms=2.0, sustained_s=0.1, offline_s=0.02)
    told = tables.table([measuring.measure(target, request, runner, silent)])
    for words in (
        "offline ",
        "one inference every 2 ms",
        "times as slow in the last 0.01 s of 0.1",
        "temperature",
        "preprocess ",
        "queue ",
        "postprocess ",
        "of processor time per inference",
        "conditions ",
        "under-voltage ",
        "comparable ",
    ):
        assert words in told


def test_classes_of_what_is_not_counted_by_samples_have_no_accuracy(tmp_path, runner):
    (target, _) = targets(write_release(tmp_path))
    result = measuring.measure(target, Measure(samples=5), runner, silent)
    assert isinstance(result, measuring.Result)
    assert result.accuracy is not None
    told = tables.table([result]).split("\n\n")[1]
    assert told.split("\n")[0].split() == ["class", "samples", "accuracy", "recall"]
    pixels = dataclasses.replace(result.accuracy, counted="pixels", class_accuracy_ratios=())
    told = tables.table([dataclasses.replace(result, accuracy=pixels)]).split("\n\n")[1]
    assert told.split("\n")[0].split() == ["class", "pixels", "recall", "false"]
