"""Each task by a real interpreter, on a release of its own: what the worker finds is what was written down by hand."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from click.testing import CliRunner

from evenfleet_agent import cli, window
from evenfleet_agent.runner import tasks, worker
from evenfleet_agent.runner.protocol import Load, Measure, RunnerSpec, on_golden_set
from evenfleet_shared import manifest
from evenfleet_shared.messages import Accuracy
from fakes.task_releases import CASES, write_task_release

TASKS = [task.name for task in tasks.TASKS]


@pytest.fixture
def load(tmp_path):
    def run(task):
        release = write_task_release(tmp_path, task)
        described, _ = manifest.verify(release)
        (variant,) = described.variants
        spec = RunnerSpec(
            runtime="litert", artifact=str(release / variant.artifact.file), format="tflite", warm_up_max_s=0.01
        )
        spec = on_golden_set(spec, described, str(release), correct=variant.reference.correct)
        return worker.load(Load(spec=spec, scratch=str(tmp_path / "scratch")), worker.Voice(io.BytesIO()))[0]

    return run


def measure(session):
    return worker.measure(session, Measure(samples=5), worker.Voice(io.BytesIO()))


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """The command in this process; the model is in one of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_every_task_has_a_release():
    assert set(CASES) == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_release_of_each_task_is_scored_as_it_says_itself(load, task):
    case, session = CASES[task], load(task)
    measured = measure(session)
    evaluation = measured.evaluation
    assert evaluation is not None
    assert session.correct is not None
    assert "".join("01"[int(right)] for right in session.correct) == case.correct
    assert (evaluation.task, evaluation.n, evaluation.errors) == (task, len(case.correct), case.correct.count("0"))
    assert (evaluation.tp, evaluation.fp, evaluation.fn) == (case.tp, case.fp, case.fn)
    counted = {"detection": "objects", "segmentation": "pixels"}
    assert evaluation.counted == counted.get(task, "samples")
    assert evaluation.metric == case.metric
    assert evaluation.score == (None if case.score is None else pytest.approx(case.score, abs=1e-6))
    assert (evaluation.discordant_b, evaluation.discordant_c, evaluation.hamming) == (0, 0, None)
    assert evaluation.agreement is not None
    assert evaluation.agreement.noise_class == "bit-exact"
    again = measure(session).evaluation
    assert again is not None
    assert (again.hamming, again.prediction_digest) == (0, evaluation.prediction_digest)


@pytest.mark.parametrize("task", TASKS)
def test_window_of_each_task_is_one_that_the_protocol_takes(load, task):
    body = window.close(measure(load(task)), limits=(), golden="a" * 64)
    assert isinstance(body.accuracy, Accuracy)
    assert (body.accuracy.task, body.accuracy.metric) == (task, CASES[task].metric)


@pytest.mark.parametrize("task", [task for task in TASKS if task != "agreement"])
def test_model_and_data_of_each_task_are_measured_by_the_command(agent, tmp_path, task):
    case = CASES[task]
    case.model(tmp_path / "model.tflite")
    np.savez(tmp_path / "d.npz", x=case.inputs, y=case.labels)
    tolerance = ("--tolerance", 0.25) if task == "regression" else ()
    done = agent(
        *("measure", "model.tflite", "--data", "d.npz", "--task", task, *tolerance, "--samples", 5, "--json"),
    )
    assert (done.exit_code, done.stderr) == (0, "")
    (result,) = json.loads(done.stdout)["results"]
    accuracy = result["accuracy"]
    assert (accuracy["task"], accuracy["errors"], accuracy["metric"]) == (task, case.correct.count("0"), case.metric)
    assert accuracy["score"] == (None if case.score is None else pytest.approx(case.score, abs=1e-6))


def test_outputs_beside_the_samples_are_what_unlabelled_data_are_held_against(agent, tmp_path):
    case = CASES["agreement"]
    case.model(tmp_path / "model.tflite")
    np.savez(tmp_path / "d.npz", x=case.inputs, outputs=np.zeros_like(case.inputs))
    done = agent("measure", "model.tflite", "--data", "d.npz", "--task", "agreement", "--samples", 5)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "0.0000  (0 of 2" in done.stdout
    assert "relative-error     no value" in done.stdout


@pytest.mark.parametrize("task", TASKS)
def test_release_of_each_task_is_told_in_words(agent, tmp_path, task):
    case = CASES[task]
    done = agent("measure", write_task_release(tmp_path, task), "--samples", 5)
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"({case.correct.count('1')} of {len(case.correct)}," in done.stdout
    if case.metric:
        assert any(line.startswith(case.metric) for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--task", "regression"], "a regression needs to know what is near enough: give --tolerance"),
        (["--task", "segmentation"], "one class per pixel"),
        (["--task", "detection"], "[4, objects, 5]"),
        (["--task", "multi-label"], "0 or 1, one row per sample"),
        (["--task", "embedding"], "one number per sample"),
        (["--task", "agreement"], "does not look at"),
        (["--task", "classification", "--tolerance", "1"], "task classification has none"),
        (["--task", "regression", "--threshold", "1"], "task regression has none"),
        (["--threshold", "nan"], "--threshold"),
    ],
)
def test_labels_and_options_of_another_task_are_one_line_with_exit_code_2(agent, tmp_path, arguments, says):
    case = CASES["classification"]
    case.model(tmp_path / "model.tflite")
    np.savez(tmp_path / "d.npz", x=case.inputs, y=case.labels)
    done = agent("measure", "model.tflite", "--data", "d.npz", "--samples", 5, *arguments)
    assert (done.exit_code, len(done.stderr.splitlines()), done.stdout) == (2, 1, "")
    assert says in done.stderr


def test_release_of_another_task_than_asked_for_is_refused(agent, tmp_path):
    done = agent("measure", write_task_release(tmp_path, "detection"), "--task", "segmentation")
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert "is a release of task detection" in done.stderr


def test_criteria_of_a_releases_own_golden_set_stay_its_own(agent, tmp_path):
    done = agent("measure", write_task_release(tmp_path, "detection"), "--threshold", "0.1")
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert "says itself what is right" in done.stderr
