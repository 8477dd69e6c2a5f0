"""What a probe notes of an application, read back by the agent's own intake; processes, threads and forks are real."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import logging
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evenfleet_agent import probe
from evenfleet_agent.appwindow import AppBody
from evenfleet_agent.intake import Intake
from evenfleet_agent.probe import Probe

PROBE_FILE = Path(probe.__file__)


# A server: the probe is made where each process finds it, and the workers end without any goodbye.
WORKERS = """
import multiprocessing, os, sys
from evenfleet_agent.probe import Probe

probe = Probe("served")

def work():
    with probe.timing():
        pass
    os._exit(0)

if __name__ == "__main__":
    with probe.timing():
        pass
    context = multiprocessing.get_context(sys.argv[1])
    workers = [context.Process(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
"""


class Agent:
    """The agent's end of a directory of rings."""

    def __init__(self, directory: Path, state: Path) -> None:
        self.directory = directory
        self.intake = Intake(directory, kept=state / "probe.json", budget_ratio=0.01)

    def windows(self) -> list[AppBody]:
        return self.intake.close_windows(length_s=60.0, uptime_s=100.0, wall_s=0.0)

    def window(self) -> AppBody:
        (body,) = self.windows()
        return body

    def rings(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir() if path.name.startswith("ring-"))


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    directory = tmp_path / "rings"
    directory.mkdir()
    return Agent(directory, tmp_path)


@pytest.fixture
def app(agent: Agent) -> Probe:
    return Probe("inspection", model="fashion-cnn", directory=agent.directory, budget_ratio=0.5)


def run_app(agent: Agent, code: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, probe.DIRECTORY_VARIABLE: str(agent.directory)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, check=check, capture_output=True, text=True, timeout=60
    )


def call(times: int, app: Probe) -> None:
    for _ in range(times):
        with app.timing():
            pass


def observe(app: Probe, output: Any, *inputs: Any, times: int = 8) -> None:
    """Make calls, the last of which are sampled: the first ones are no measure of anything."""
    app._one_in = 1
    for _ in range(times):
        app._due = min(app._due, probe._WARM_UP_CALLS)
        with app.observing() as shown:
            for value in inputs:
                shown.input(value)
            shown.output(output)


def test_every_call_is_counted_whichever_way_it_is_timed(agent: Agent, app: Probe) -> None:
    @app.timed
    def predict(value: int) -> int:
        return value + 1

    @app.observed
    def look(value: Any) -> Any:
        return value

    call(5, app)
    assert [predict(1) for _ in range(3)] == [2, 2, 2]
    assert look([1.0, 2.0]) == [1.0, 2.0]
    with app.observing():
        pass
    window = agent.window()
    assert (window.app, window.model, window.processes) == ("inspection", "fashion-cnn", 1)
    assert (window.calls, window.exceptions, window.dropped, window.refused) == (10, 0, 0, 0)
    assert window.latency is not None
    assert window.latency.n == 10


def test_latency_is_that_of_the_body(agent: Agent, app: Probe) -> None:
    event = threading.Event()
    with app.timing():
        event.wait(0.02)
    latency = agent.window().latency
    assert latency is not None
    assert 20.0 <= latency.min_ms <= latency.p50_ms <= latency.max_ms < 1000.0
    assert latency.mean_ms == pytest.approx(latency.min_ms)


def test_exception_passes_through_unchanged_and_is_counted(agent: Agent, app: Probe) -> None:
    raised = ZeroDivisionError("the application's own")

    def fail() -> None:
        raise raised

    def within(manager: Callable[[], Any]) -> None:
        with manager():
            fail()

    ways: list[Callable[[], Any]] = [
        app.timed(fail),
        app.observed(fail),
        lambda: within(app.timing),
        lambda: within(app.observing),
    ]
    for way in ways:
        with pytest.raises(ZeroDivisionError) as caught:
            way()
        assert caught.value is raised
    window = agent.window()
    assert (window.calls, window.exceptions, window.latency) == (4, 4, None)


def test_decorated_function_keeps_its_name_and_arguments(app: Probe) -> None:
    def predict(image: int, *, scale: int = 1) -> int:
        """Tell what it is."""
        return image * scale

    for decorated in (app.timed(predict), app.observed(predict)):
        assert decorated(3, scale=2) == 6
        assert (decorated.__name__, decorated.__doc__) == ("predict", "Tell what it is.")


def test_tasks_that_overlap_are_timed_apart(agent: Agent, app: Probe) -> None:
    """Two tasks are in the same body at once: the one that entered first leaves first."""

    async def main() -> None:
        first_in, second_in = asyncio.Event(), asyncio.Event()

        async def first() -> None:
            with app.timing():
                first_in.set()
                await second_in.wait()

        @app.timed
        async def second() -> str:
            await first_in.wait()
            second_in.set()
            await asyncio.sleep(0.02)
            return "done"

        _, answer = await asyncio.gather(first(), second())
        assert answer == "done"

    asyncio.run(main())
    latency = agent.window().latency
    assert latency is not None
    assert latency.n == 2
    assert latency.max_ms >= 20.0 > latency.min_ms


def test_eight_threads_lose_no_call_and_count_none_twice(agent: Agent, app: Probe) -> None:
    """Threads are switched as often as the interpreter allows, so that claims and writes fall between each other."""
    total, interval = 0, sys.getswitchinterval()
    start = threading.Barrier(9, timeout=30)
    done = threading.Barrier(9, timeout=30)

    def work() -> None:
        for _ in range(5):
            start.wait()
            for number in range(400):
                with contextlib.suppress(ZeroDivisionError), app.timing():
                    1 / (number % 4)
            done.wait()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        windows: list[AppBody] = []
        for _ in range(5):
            start.wait()
            agent.intake.poll()  # while they write
            done.wait()
            windows += agent.windows()
            total += 8 * 400
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert sum(window.calls for window in windows) == total
    assert sum(window.exceptions for window in windows) == total // 4
    assert [window.dropped for window in windows] == [0] * len(windows)


def test_calls_made_while_another_thread_makes_the_ring_are_in_it(agent: Agent, app: Probe) -> None:
    app._opening.acquire()
    call(2, app)
    assert not app.recording
    app._opening.release()
    call(1, app)
    window = agent.window()
    assert (window.calls, window.dropped) == (3, 0)


def test_calls_that_were_overwritten_are_counted_as_dropped(agent: Agent, app: Probe) -> None:
    call(probe.RECORD_SLOTS + 100, app)
    window = agent.window()
    assert (window.calls, window.dropped) == (probe.RECORD_SLOTS + 100, 100)
    call(7, app)
    assert (agent.window().calls, agent.windows()) == (7, [])


def test_ring_that_went_round_many_times_is_counted_to_the_last_call(agent: Agent, app: Probe) -> None:
    call(3, app)
    agent.intake.poll()
    call(3 * probe.RECORD_SLOTS + 5, app)
    window = agent.window()
    assert window.calls == 3 * probe.RECORD_SLOTS + 8
    assert window.dropped == 2 * probe.RECORD_SLOTS + 5


def test_crashed_application_is_read_to_its_end_and_its_ring_removed(agent: Agent) -> None:
    crash = """
import os, signal
from evenfleet_agent.probe import Probe
probe = Probe("crasher")
for _ in range(20):
    with probe.timing(): pass
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_app(agent, crash, check=False).returncode == -signal.SIGKILL
    assert len(agent.rings()) == 1
    window = agent.window()
    assert (window.app, window.calls, window.dropped) == ("crasher", 20, 0)
    assert agent.rings() == []
    assert agent.windows() == []


def test_ring_of_a_living_application_stays(agent: Agent, app: Probe) -> None:
    call(1, app)
    agent.windows()
    agent.windows()
    assert len(agent.rings()) == 1


def test_forked_child_notes_in_a_ring_of_its_own(agent: Agent, app: Probe) -> None:
    call(3, app)
    child = os.fork()
    if not child:
        try:
            call(5, app)
        finally:
            os._exit(0 if app.recording else 1)
    assert os.waitpid(child, 0)[1] == 0
    call(2, app)
    assert len(agent.rings()) == 2
    window = agent.window()
    assert (window.calls, window.dropped, window.processes) == (10, 0, 2)
    assert len(agent.rings()) == 1  # the child's is gone, the parent's stays


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_worker_notes_in_a_ring_of_its_own_however_it_was_started(agent: Agent, tmp_path: Path, method: str) -> None:
    (tmp_path / "served.py").write_text(WORKERS)
    environment = {**os.environ, probe.DIRECTORY_VARIABLE: str(agent.directory)}
    subprocess.run([sys.executable, tmp_path / "served.py", method], env=environment, check=True, timeout=60)
    window = agent.window()
    assert (window.calls, window.processes, window.dropped) == (3, 3, 0)


def test_probe_that_is_handed_to_another_process_is_refused_at_once(app: Probe) -> None:
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(app)


def test_child_that_outlives_its_parent_does_not_hold_the_parents_ring(agent: Agent) -> None:
    code = """
import os, sys
from evenfleet_agent.probe import Probe
probe = Probe("parent")
with probe.timing(): pass
reader, writer = os.pipe()
if not os.fork():
    os.close(writer)
    sys.stdin.read()
    os._exit(0)
"""
    environment = {**os.environ, probe.DIRECTORY_VARIABLE: str(agent.directory)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE) as process:
        process.wait(60)
        assert agent.window().calls == 1
        assert agent.rings() == []
        assert process.stdin is not None
        process.stdin.close()


def test_probe_without_a_directory_does_nothing_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = Probe("inspection", directory=tmp_path / "missing")
    with caplog.at_level(logging.WARNING):
        call(1000, app)
        observe(app, [0.5, 0.5])
    assert not app.recording
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "inferences of inspection are not noted" in caplog.text


def test_directory_that_comes_later_is_found_and_what_was_missed_is_told(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_RETRY_NS", 0)
    late = agent.directory / "late"
    app = Probe("inspection", directory=late)
    call(5, app)
    late.mkdir()
    call(4, app)
    window = Agent(late, agent.directory).window()
    # The call that finds it is itself not noted: its number was claimed before.
    assert (window.calls, window.dropped) == (9, 6)


def test_ring_that_was_removed_is_made_anew(agent: Agent, app: Probe) -> None:
    """systemd takes a service's directory under /run away with it; the application stays."""
    call(10, app)
    (ring,) = agent.rings()
    (agent.directory / ring).unlink()
    call(2 * probe._CHECK_MASK, app)
    assert len(agent.rings()) == 1
    window = agent.window()
    assert 0 < window.calls <= 2 * probe._CHECK_MASK
    assert window.dropped == 0


def test_calls_of_a_former_ring_are_not_told_again_once_its_directory_is_back(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = agent.directory / "folder"
    folder.mkdir()
    app = Probe("inspection", directory=folder)
    reading = Agent(folder, agent.directory)
    call(10_000, app)
    assert reading.window().calls == 10_000
    shutil.rmtree(folder)
    call(2 * probe._CHECK_MASK, app)
    assert not app.recording
    folder.mkdir()
    monkeypatch.setattr(probe, "_RETRY_NS", 0)
    call(700, app)
    window = reading.window()
    # What went into the removed file before that was seen is told by nobody.
    assert 700 <= window.calls <= 700 + 2 * probe._CHECK_MASK
    assert window.latency is not None
    assert window.latency.n == 699
    shutil.rmtree(folder)
    call(2 * probe._CHECK_MASK, app)
    folder.mkdir()
    call(700, app)
    assert reading.window().calls <= 700 + 2 * probe._CHECK_MASK


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_empty_directory_notes_nothing_and_is_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, by: str
) -> None:
    """Of the agent's setting, which the same variable sets, empty is nowhere too."""
    monkeypatch.chdir(tmp_path)
    if by == "environment":
        monkeypatch.setenv(probe.DIRECTORY_VARIABLE, "")
    app = Probe("inspection", directory="" if by == "argument" else None)
    with caplog.at_level(logging.WARNING):
        call(1000, app)
        observe(app, [0.5, 0.5])
    assert not app.recording
    assert caplog.records == []
    assert app._directory == ""
    assert list(tmp_path.iterdir()) == []


def test_full_directory_is_left_alone(agent: Agent, app: Probe, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(probe.MAX_RINGS):
        (agent.directory / f"ring-{number}-{number:016x}").touch()
    call(1, app)
    assert not app.recording
    assert "holds 32 rings already" in caplog.text


def test_ring_is_readable_by_the_group_and_writable_by_nobody_else(agent: Agent, app: Probe) -> None:
    before = os.umask(0)
    try:
        call(1, app)
    finally:
        os.umask(before)
    (ring,) = agent.rings()
    assert (agent.directory / ring).stat().st_mode & 0o777 == 0o640


def test_nothing_but_the_standard_library_is_imported() -> None:
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(PROBE_FILE.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= {*sys.stdlib_module_names}


def test_names_are_made_fit_for_a_window(agent: Agent) -> None:
    app = Probe("Línea 7 / inspección", model="", directory=agent.directory)
    call(1, app)
    window = agent.window()
    assert (window.app, window.model) == ("L-nea-7---inspecci-n", None)


def test_model_file_is_named_by_its_digest(agent: Agent, tmp_path: Path) -> None:
    model = tmp_path / "model.tflite"
    model.write_bytes(b"abc")
    call(1, Probe("inspection", model_file=model, directory=agent.directory))
    assert agent.window().model == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# statistics


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "uint8", "int64", "bool"])
def test_input_is_summarised_as_numpy_does(agent: Agent, app: Probe, dtype: str) -> None:
    image = np.random.default_rng(1).integers(0, 2, (1, 28, 28, 3)).astype(dtype)
    observe(app, None, image)
    statistics = agent.window().statistics
    assert statistics is not None
    assert statistics.samples > 0
    (seen,) = statistics.inputs
    assert seen.n == statistics.samples * image.size
    assert seen.mean == pytest.approx(image.astype("float64").mean())
    assert seen.std == pytest.approx(image.astype("float64").std())
    assert (seen.min, seen.max) == (image.min(), image.max())


def test_elements_that_are_no_finite_numbers_are_counted_apart(agent: Agent, app: Probe) -> None:
    observe(app, None, np.array([math.nan, math.inf, -math.inf, 1.0, 3.0], dtype="float32"))
    statistics = agent.window().statistics
    assert statistics is not None
    (seen,) = statistics.inputs
    n = statistics.samples
    assert (seen.n, seen.nan, seen.infinite) == (5 * n, n, 2 * n)
    assert (seen.mean, seen.std, seen.min, seen.max) == (2.0, 1.0, 1.0, 3.0)


def test_input_without_a_finite_number_has_no_mean(agent: Agent, app: Probe) -> None:
    observe(app, None, np.full(4, math.nan))
    statistics = agent.window().statistics
    assert statistics is not None
    assert (statistics.inputs[0].mean, statistics.inputs[0].min) == (None, None)


def test_large_input_is_looked_at_in_every_channel(agent: Agent, app: Probe) -> None:
    """A step that the channels fall in with would see one of them alone."""
    image = np.zeros((216, 216, 3), dtype="float32")  # every ninth element would do
    image[..., 1] = 3.0
    observe(app, None, image)
    statistics = agent.window().statistics
    assert statistics is not None
    assert statistics.inputs[0].mean == pytest.approx(1.0, rel=0.01)
    assert statistics.inputs[0].n <= statistics.samples * probe._MAX_ELEMENTS


@pytest.mark.parametrize("value", [array("f", [1.0, 2.0, 3.0]), [1.0, 2.0, 3.0], (1, 2, 3), bytes([1, 2, 3])])
def test_numbers_without_numpy_are_summarised_too(agent: Agent, app: Probe, value: Any) -> None:
    observe(app, None, value)
    statistics = agent.window().statistics
    assert statistics is not None
    assert (statistics.inputs[0].mean, statistics.inputs[0].max) == (2.0, 3.0)


def test_probabilities_give_class_and_entropy(agent: Agent, app: Probe) -> None:
    observe(app, np.array([[0.1, 0.7, 0.2]], dtype="float32"))
    statistics = agent.window().statistics
    assert statistics is not None
    assert statistics.entropy is not None
    assert statistics.classes == ((1, statistics.samples),)
    expected = -sum(p * math.log(p) for p in (0.1, 0.7, 0.2))
    assert statistics.entropy.mean_nats == pytest.approx(expected, rel=1e-5)
    assert statistics.entropy.p50_nats == pytest.approx(expected, rel=0.01)


def test_logits_give_the_entropy_of_their_softmax(agent: Agent, app: Probe) -> None:
    logits = np.array([2.0, -1.0, 0.5])
    observe(app, logits)
    shares = np.exp(logits) / np.exp(logits).sum()
    statistics = agent.window().statistics
    assert statistics is not None
    assert statistics.entropy is not None
    assert statistics.entropy.mean_nats == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-5)


def test_integers_of_unknown_scale_give_a_class_and_no_entropy(agent: Agent, app: Probe) -> None:
    observe(app, np.array([[-128, 127, 3]], dtype="int8"))
    statistics = agent.window().statistics
    assert statistics is not None
    assert (statistics.classes, statistics.entropy) == (((1, statistics.samples),), None)


def test_rows_of_a_batch_decide_each_for_itself(agent: Agent, app: Probe) -> None:
    observe(app, np.eye(4))
    statistics = agent.window().statistics
    assert statistics is not None
    assert statistics.classes == tuple((index, statistics.samples) for index in range(4))


def test_output_of_no_classes_decides_nothing(agent: Agent, app: Probe) -> None:
    """Boxes of a detector: the largest of four coordinates is no class."""
    observe(app, np.ones((1, 10, 4)), np.ones(3))
    statistics = agent.window().statistics
    assert statistics is not None
    assert (statistics.classes, statistics.entropy) == ((), None)


@pytest.mark.parametrize("value", [np.array(["text"]), np.array([object()]), object(), "text", [None]])
def test_what_holds_no_numbers_is_counted_and_harms_nothing(agent: Agent, app: Probe, value: Any) -> None:
    observe(app, None, value)
    window = agent.window()
    assert window.calls == 8
    assert window.statistics is not None
    assert (window.statistics.samples, window.statistics.inputs) == (0, ())
    assert window.statistics.unreadable > 0


def test_statistics_are_off_with_a_budget_of_nothing(agent: Agent) -> None:
    app = Probe("inspection", directory=agent.directory, budget_ratio=0.0)
    for _ in range(100):
        with app.observing() as shown:
            shown.input([1.0])
    window = agent.window()
    assert (window.calls, window.statistics) == (100, None)


def test_budget_is_the_agents_where_the_application_names_none(agent: Agent) -> None:
    Intake(agent.directory, kept=agent.directory / "kept", budget_ratio=0.0).prepare()
    app = Probe("inspection", directory=agent.directory)
    for _ in range(100):
        with app.observing() as shown:
            shown.input([1.0])
    assert agent.window().statistics is None


@pytest.mark.parametrize("content", [b"much", b"nan", b"1e9", b"\xff" * 100, b""])
def test_budget_that_is_none_leaves_it_within_bounds(agent: Agent, content: bytes) -> None:
    (agent.directory / probe.BUDGET_NAME).write_bytes(content)
    app = Probe("inspection", directory=agent.directory)
    call(1, app)
    assert 0.0 < app._budget_ratio <= probe.MAX_BUDGET_RATIO


def test_budget_that_is_a_pipe_makes_nobody_wait(agent: Agent) -> None:
    os.mkfifo(agent.directory / probe.BUDGET_NAME)
    app = Probe("inspection", directory=agent.directory)
    call(1, app)
    assert app.recording


def test_statistics_of_a_fast_model_are_taken_of_few_calls(agent: Agent) -> None:
    app = Probe("inspection", directory=agent.directory, budget_ratio=0.01)
    image = np.zeros((96, 96, 3), dtype="float32")
    for _ in range(2000):
        with app.observing() as shown:
            shown.input(image)
    window = agent.window()
    assert window.statistics is not None
    assert window.calls == 2000
    # An empty body takes a microsecond at most, summing up an image fifty at least.
    assert app.one_in >= 100
    assert 1 <= window.statistics.samples <= 20


def test_statistics_of_a_slow_model_are_taken_of_most_calls(agent: Agent) -> None:
    app = Probe("inspection", directory=agent.directory, budget_ratio=0.5)
    event = threading.Event()
    for _ in range(20):
        with app.observing() as shown:
            event.wait(0.005)
            shown.input([1.0, 2.0])
    statistics = agent.window().statistics
    assert statistics is not None
    assert statistics.one_in == 1
    assert statistics.samples == 20 - probe._WARM_UP_CALLS


def test_samples_that_were_overwritten_are_counted_as_dropped(agent: Agent, app: Probe) -> None:
    total = probe.SAMPLE_SLOTS + 40
    observe(app, None, [1.0], times=total + probe._WARM_UP_CALLS)
    statistics = agent.window().statistics
    assert statistics is not None
    assert statistics.samples + statistics.dropped == app._samples
    assert statistics.dropped == app._samples - probe.SAMPLE_SLOTS
    assert statistics.dropped > 0


def test_time_taken_for_statistics_is_not_the_models(agent: Agent, app: Probe) -> None:
    class Slow:
        dtype = np.dtype("float32")

        def reshape(self, _: int) -> Any:
            threading.Event().wait(0.02)
            return np.zeros(3)

    observe(app, None, Slow())
    latency = agent.window().latency
    assert latency is not None
    assert latency.max_ms < 20.0


def test_application_that_closes_every_file_goes_on_in_a_new_ring(agent: Agent, app: Probe) -> None:
    """What becomes a daemon closes descriptors it knows nothing of, and may get the same numbers for its own files."""
    call(3, app)
    assert app._ring is not None
    descriptor = app._ring._descriptor
    os.close(descriptor)
    with (agent.directory / "log").open("w") as own:
        assert own.fileno() == descriptor
        call(2 * probe._CHECK_MASK, app)
        assert len(agent.rings()) == 2
        own.write("still the application's")
    assert agent.window().dropped == 0
