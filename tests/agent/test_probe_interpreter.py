"""A wrapped interpreter, the real one: every invoke noted, and the same in everything else."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evenfleet_agent import probe
from evenfleet_agent.appwindow import AppBody
from evenfleet_agent.intake import Intake
from evenfleet_agent.probe import Probe
from fakes import tiny_models

EXAMPLE = Path(__file__).parents[2] / "examples" / "probed_app.py"

litert = pytest.importorskip("ai_edge_litert.interpreter")


@pytest.fixture
def app(tmp_path: Path) -> Probe:
    (tmp_path / "rings").mkdir()
    return Probe("inspection", directory=tmp_path / "rings", budget_ratio=0.5)


def interpreter_of(path: Path) -> Any:
    interpreter = litert.Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def window(tmp_path: Path) -> AppBody:
    intake = Intake(tmp_path / "rings", kept=tmp_path / "probe.json", budget_ratio=0.01)
    (body,) = intake.close_windows(length_s=60.0, uptime_s=1.0, wall_s=0.0)
    return body


def run(interpreter: Any, value: Any, app: Probe, *, times: int = 10) -> Any:
    """Infer, sampled as often as the budget of a slow model would allow."""
    (given,), (out,) = interpreter.get_input_details(), interpreter.get_output_details()
    for _ in range(times):
        app._due = min(app._due, probe._WARM_UP_CALLS)
        interpreter.set_tensor(given["index"], value)
        interpreter.invoke()
        answer = interpreter.get_tensor(out["index"])
    return answer


def test_wrapped_interpreter_answers_as_the_bare_one(tmp_path: Path, app: Probe) -> None:
    path = tiny_models.classifier(tmp_path / "model.tflite")
    value = np.array([[1.0, 5.0, 2.0, 0.5]], dtype="float32")
    bare = run(interpreter_of(path), value, Probe("other", directory=tmp_path / "missing"))
    assert np.array_equal(run(app.wrap(interpreter_of(path)), value, app), bare)


def test_invokes_are_counted_and_sampled(tmp_path: Path, app: Probe) -> None:
    value = np.array([[1.0, 5.0, 2.0, 0.5]], dtype="float32")
    answer = run(app.wrap(interpreter_of(tiny_models.classifier(tmp_path / "m.tflite"))), value, app)
    body = window(tmp_path)
    assert (body.calls, body.exceptions) == (10, 0)
    statistics = body.statistics
    assert statistics is not None
    assert statistics.entropy is not None
    assert statistics.samples == 10 - probe._WARM_UP_CALLS
    assert statistics.inputs[0].mean == pytest.approx(value.mean())
    assert (statistics.inputs[0].min, statistics.inputs[0].max) == (0.5, 5.0)
    assert statistics.classes == ((1, statistics.samples),)
    assert statistics.entropy.mean_nats == pytest.approx(-(answer * np.log(answer)).sum(), rel=1e-4)


def test_quantised_tensors_are_told_as_the_numbers_they_stand_for(tmp_path: Path, app: Probe) -> None:
    wrapped = app.wrap(interpreter_of(tiny_models.quantised_classifier(tmp_path / "m.tflite")))
    answer = run(wrapped, np.array([[-3, 29, 13]], dtype="int8"), app)  # (q + 3) / 16
    statistics = window(tmp_path).statistics
    assert statistics is not None
    assert statistics.entropy is not None
    assert statistics.inputs[0].mean == pytest.approx(1.0)
    assert (statistics.inputs[0].min, statistics.inputs[0].max) == (0.0, 2.0)
    shares = (answer.astype("float64") + 128) / 256
    shares /= shares.sum()
    assert statistics.entropy.mean_nats == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-4)
    assert statistics.classes == ((1, statistics.samples),)


def test_everything_else_is_the_interpreters_own(tmp_path: Path, app: Probe) -> None:
    bare = interpreter_of(tiny_models.classifier(tmp_path / "m.tflite"))
    wrapped = app.wrap(bare)
    assert isinstance(wrapped, litert.Interpreter)
    assert wrapped.get_tensor_details()[0]["name"] == bare.get_tensor_details()[0]["name"]
    assert set(dir(bare)) == set(dir(wrapped))
    wrapped.own_note = "kept"
    assert bare.own_note == "kept"
    del wrapped.own_note
    assert not hasattr(bare, "own_note")
    with pytest.raises(AttributeError, match="no_such_thing"):
        wrapped.no_such_thing()


def test_error_of_invoke_is_the_interpreters_own_and_counted(tmp_path: Path, app: Probe) -> None:
    bare = interpreter_of(tiny_models.classifier(tmp_path / "m.tflite"))
    wrapped = app.wrap(bare)
    wrapped.resize_tensor_input(0, [1, tiny_models.FEATURES + 1])
    with pytest.raises((RuntimeError, ValueError)):
        wrapped.allocate_tensors()
    for _ in range(2 * probe._WARM_UP_CALLS):
        with pytest.raises((RuntimeError, ValueError)):
            wrapped.invoke()
    body = window(tmp_path)
    assert (body.calls, body.exceptions) == (2 * probe._WARM_UP_CALLS,) * 2


def test_memory_that_the_application_looks_into_is_not_copied_nor_held(tmp_path: Path, app: Probe) -> None:
    """A view that somebody holds while `invoke` runs is an error of LiteRT's; the probe must hold none."""
    wrapped = app.wrap(interpreter_of(tiny_models.classifier(tmp_path / "m.tflite")))
    (given,), (out,) = wrapped.get_input_details(), wrapped.get_output_details()
    fill, answer = wrapped.tensor(given["index"]), wrapped.tensor(out["index"])
    for _ in range(10):
        app._due = min(app._due, probe._WARM_UP_CALLS)
        fill()[:] = [[3.0, 0.0, 0.0, 0.0]]
        wrapped.invoke()
        assert answer().argmax() == 0
    statistics = window(tmp_path).statistics
    assert statistics is not None
    assert statistics.inputs[0].max == 3.0


def test_signature_runner_is_noted_too(tmp_path: Path, app: Probe) -> None:
    class Signatures:
        """An interpreter of a model with a signature, as LiteRT hands out a runner that never calls `invoke`."""

        def invoke(self) -> None:
            raise AssertionError("not this way")

        def get_signature_runner(self, name: str | None = None) -> Any:
            return lambda **inputs: {"y": np.array([[0.25, 0.75]]) * len(inputs)}

    runner = app.wrap(Signatures()).get_signature_runner("serving_default")
    for _ in range(10):
        app._due = min(app._due, probe._WARM_UP_CALLS)
        assert runner(x=np.ones((1, 4)))["y"].shape == (1, 2)
    body = window(tmp_path)
    assert body.calls == 10
    assert body.statistics is not None
    assert body.statistics.classes == ((1, body.statistics.samples),)
    assert body.statistics.inputs[0].mean == 1.0


def test_the_example_is_counted_as_any_application(tmp_path: Path) -> None:
    (tmp_path / "rings").mkdir()
    path = tiny_models.quantised_classifier(tmp_path / "m.tflite")
    command = [sys.executable, str(EXAMPLE), str(path), "--seconds", "0.3", "--directory", str(tmp_path / "rings")]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    body = window(tmp_path)
    assert said.startswith(f"{body.calls} calls, noted; statistics of 1 in ")
    assert (body.app, body.model) == ("probed-app", hashlib.sha256(path.read_bytes()).hexdigest())
    assert body.statistics is not None
    assert body.statistics.samples > 0
    assert list((tmp_path / "rings").iterdir()) == []


def test_interpreter_that_cannot_show_its_tensors_is_timed_all_the_same(tmp_path: Path, app: Probe) -> None:
    class Opaque:
        calls = 0

        def invoke(self) -> None:
            self.calls += 1

    opaque = Opaque()
    wrapped = app.wrap(opaque)
    for _ in range(10):
        app._due = min(app._due, probe._WARM_UP_CALLS)
        wrapped.invoke()
    body = window(tmp_path)
    assert (opaque.calls, body.calls) == (10, 10)
    assert body.statistics is not None
    assert body.statistics.unreadable == 10 - probe._WARM_UP_CALLS


def test_interpreters_tensors_are_not_read_where_nothing_is_noted(tmp_path: Path) -> None:
    class Counting:
        reads = 0

        def invoke(self) -> None:
            pass

        def get_input_details(self) -> list[Any]:
            self.reads += 1
            return []

    counting = Counting()
    wrapped = Probe("inspection", directory=tmp_path / "missing").wrap(counting)
    for _ in range(100):
        wrapped.invoke()
    assert counting.reads == 0
