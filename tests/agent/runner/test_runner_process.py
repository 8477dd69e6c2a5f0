"""The real subprocess, driven as the supervisor drives it."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from evenfleet_agent.runner.process import RunnerProcess
from evenfleet_agent.runner.protocol import Check, Checked, Failed, Loaded, Measure, Measured, Refused, RunnerSpec
from evenfleet_shared.errors import RunnerError
from fakes import tiny_models


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def runner():
    made = RunnerProcess()
    yield made
    made.stop()


@pytest.fixture
def spec(tmp_path):
    artifact = tiny_models.classifier(tmp_path / "m.tflite")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return RunnerSpec(
        runtime="litert", artifact=str(artifact), format="tflite", warm_up_max_s=0.01, scratch_dir=str(scratch)
    )


def answer(runner, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        select.select([runner], [], [], 1.0)
        answers = runner.receive()
        if answers:
            return answers[0]
    raise AssertionError("no answer")


def fake_python(path: Path, body: str) -> str:
    """Return an executable that does `body` instead of being a worker."""
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(body)}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def replace(spec, **fields):
    return RunnerSpec(**{**{name: getattr(spec, name) for name in spec.__struct_fields__}, **fields})


def test_loads_measures_and_measures_again(runner, spec):
    runner.start(spec)
    assert isinstance(answer(runner), Loaded)
    assert runner.deadline_s is None
    for _ in range(2):
        runner.send(Measure(samples=20))
        assert runner.deadline_s is not None
        measured = answer(runner)
        assert isinstance(measured, Measured)
        assert len(measured.samples_ms) == 8 * 20


def test_relative_paths_mean_the_callers_directory(runner, spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner.start(replace(spec, artifact="m.tflite"))
    assert isinstance(answer(runner), Loaded)


def test_file_in_the_callers_directory_does_not_shadow_a_module(runner, spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "numpy.py").write_text("raise SystemExit('shadowed')")
    runner.start(spec)
    assert isinstance(answer(runner), Loaded)


def test_refusal_comes_as_an_answer_and_names_its_kind(runner, spec, tmp_path):
    runner.start(replace(spec, artifact=str(tiny_models.custom(tmp_path / "c.tflite"))))
    refused = answer(runner)
    assert isinstance(refused, Refused)
    assert (refused.kind, "Frobnicate" in refused.reason) == ("model", True)


def test_measuring_before_loading_fails_and_the_subprocess_goes_on(runner):
    runner.spawn()
    runner.send(Measure(samples=1))
    assert isinstance(answer(runner), Failed)
    runner.send(Check(runtime="litert"))
    assert isinstance(answer(runner), Checked)


def test_runner_is_what_the_kernel_kills_first_for_want_of_memory(runner, spec):
    runner.start(spec)
    assert isinstance(answer(runner), Loaded)

    assert Path(f"/proc/{runner.pid}/oom_score_adj").read_text() == "1000\n"
    assert Path("/proc/self/oom_score_adj").read_text() != "1000\n"


def test_crash_is_told_with_its_signal_and_leaves_nothing(runner, spec):
    runner.start(spec)
    answer(runner)
    runner.send(Measure(samples=1_000_000, max_duration_s=60.0))
    os.kill(runner.pid, signal.SIGSEGV)
    with pytest.raises(RunnerError, match=r"runner of litert for m\.tflite was killed by SIGSEGV"):
        answer(runner)
    assert runner.pid is None
    assert list(Path(spec.scratch_dir).iterdir()) == []


def test_model_that_aborts_the_interpreter_takes_only_the_subprocess_with_it(runner, spec, tmp_path):
    runner.start(replace(spec, artifact=str(tiny_models.aborting(tmp_path / "bad.tflite"))))
    with pytest.raises(RunnerError, match=r"bad\.tflite was killed by SIGABRT while loading"):
        answer(runner)


def test_last_words_are_told(runner, spec, tmp_path):
    python = fake_python(tmp_path / "python", "import sys; sys.exit('no such luck')")
    runner.start(replace(spec, python=python))
    with pytest.raises(RunnerError, match=r"exit code 1.*its last words: no such luck"):
        answer(runner)


def test_last_words_are_bounded(runner, spec, tmp_path):
    python = fake_python(tmp_path / "python", "import sys; sys.stderr.write('x' * 10_000_000); sys.exit(3)")
    runner.start(replace(spec, python=python))
    with pytest.raises(RunnerError, match="exit code 3") as error:
        answer(runner)
    assert len(str(error.value)) < 1000


def test_stray_output_does_not_break_the_answers(runner, spec, tmp_path):
    python = fake_python(
        tmp_path / "python",
        """
        import os, sys
        from evenfleet_agent.runner import worker
        take = worker._take_pipes
        def noisy():
            pipes = take()
            os.write(1, b"native library speaking\\n"); print("and python")
            return pipes
        worker._take_pipes = noisy
        worker.main()
        """,
    )
    runner.start(replace(spec, python=python))
    assert isinstance(answer(runner), Loaded)


@pytest.mark.parametrize("nonsense", ["b'\\xff' * 100", "b'\\0\\0\\0\\3abc'"])
def test_nonsense_is_told_and_the_subprocess_killed(runner, spec, tmp_path, nonsense):
    python = fake_python(
        tmp_path / "python",
        f"import os, time; os.write(1, {nonsense}); time.sleep(60)",
    )
    runner.start(replace(spec, python=python))
    with pytest.raises(RunnerError, match="sent"):
        answer(runner)
    assert runner.pid is None


def test_python_that_is_not_there_is_told(runner, spec):
    with pytest.raises(RunnerError, match="cannot be started with /no/python"):
        runner.start(replace(spec, python="/no/python"))


def test_directory_that_is_no_longer_there_is_told(runner, spec, tmp_path, monkeypatch):
    """As the system's temporary directory is not on a disk that is full."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(RunnerError, match="cannot be started: No such file or directory"):
        runner.start(replace(spec, scratch_dir="here"))
    assert runner.pid is None


def test_silence_beyond_the_deadline_is_the_end(spec, tmp_path):
    clock = Clock()
    runner = RunnerProcess(silence_max_s=10.0, clock=clock)
    python = fake_python(tmp_path / "python", "import time; time.sleep(60)")
    runner.start(replace(spec, python=python))
    pid = runner.pid
    assert runner.deadline_s == 10.0
    clock.now_s = 9.9
    assert runner.receive() == []
    clock.now_s = 10.0
    with pytest.raises(RunnerError, match="no sign of life"):
        runner.receive()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_hang_inside_a_request_is_killed_though_the_process_is_stopped(spec):
    clock = Clock()
    runner = RunnerProcess(silence_max_s=10.0, clock=clock)
    runner.start(spec)
    answer(runner)
    os.kill(runner.pid, signal.SIGSTOP)
    runner.send(Measure(samples=10))
    clock.now_s = 11.0
    with pytest.raises(RunnerError, match="no sign of life"):
        runner.receive()


def test_waiting_for_the_lock_has_a_longer_deadline_and_is_told(spec, tmp_path):
    clock = Clock()
    runner = RunnerProcess(silence_max_s=10.0, turn_max_s=100.0, clock=clock)
    try:
        runner.start(spec)
        answer(runner)
        with (tmp_path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            runner.send(Measure(samples=10, lock_file=str(tmp_path / "lock")))
            while runner.stage != "waiting":  # a word on standard error wakes the loop too
                assert select.select([runner], [], [], 30.0)[0]
                assert runner.receive() == []
            assert (runner.stage, runner.deadline_s) == ("waiting", 100.0)
        measured = answer(runner)
        assert isinstance(measured, Measured)
        assert measured.waited_s > 0
    finally:
        runner.stop()


def test_stop_leaves_no_process_and_may_be_repeated(runner, spec):
    runner.start(spec)
    pid = runner.pid
    runner.stop()
    runner.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(RunnerError, match="not running"):
        runner.send(Measure(samples=1))
    with pytest.raises(RunnerError, match="not running"):
        runner.fileno()


def test_subprocess_dies_with_a_parent_that_is_killed(spec):
    """The parent gets no chance to clean up; the worker may be inside an inference of any length."""
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
            import select, sys
            from evenfleet_agent.runner.process import RunnerProcess
            from evenfleet_agent.runner.protocol import Measure, RunnerSpec
            runner = RunnerProcess()
            runner.start(RunnerSpec(runtime="litert", artifact={spec.artifact!r}, format="tflite",
                                    scratch_dir={spec.scratch_dir!r}))
            while not runner.receive():
                select.select([runner], [], [])
            runner.send(Measure(samples=1_000_000, min_duration_s=600, max_duration_s=600))
            print(runner.pid, flush=True)
            select.select([], [], [])
            """),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent:
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        assert select.select([child], [], [], 30.0)[0]
        os.close(child)
