"""The demo as a person runs it, with real processes; the slow test has real models and planted faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fakes.tiny_release import write_release

pytestmark = pytest.mark.processes


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    stage = tmp_path / "stage"
    stage.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "evenfleet_collector", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": str(stage)},
    )


def assert_nothing_is_left(tmp_path: Path) -> None:
    assert not list((tmp_path / "stage").iterdir())
    # Every process of a demo has a path of its directory among its arguments.
    assert not [
        process.info
        for process in psutil.process_iter(["pid", "cmdline"])
        if any(str(tmp_path / "stage") in word for word in process.info["cmdline"] or ())
    ]


@pytest.mark.tflite
def test_without_faults_nothing_is_flagged_and_nothing_is_left(tmp_path: Path) -> None:
    release = write_release(tmp_path)
    demo = start(tmp_path, "--exit", "--no-fault", "--seconds", "20", "--release", str(release))
    said, _ = demo.communicate(timeout=120)
    assert demo.returncode == 0, said
    assert "xnnpack-1" in said
    assert "refused" in said, "the variant that nothing can run"
    assert "flagged without" not in said
    assert_nothing_is_left(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_process_and_no_file(tmp_path: Path, number: signal.Signals) -> None:
    demo = start(tmp_path, "--release", str(write_release(tmp_path)))
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith("starting"):
            break
    demo.send_signal(number)
    said, _ = demo.communicate(timeout=60)
    assert demo.returncode == 0
    assert "nothing is left behind" in said
    assert_nothing_is_left(tmp_path)


def test_what_a_killed_demo_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    release = str(write_release(tmp_path))
    killed = start(tmp_path, "--release", release)
    assert killed.stdout is not None
    for line in killed.stdout:
        if line.startswith("starting"):
            break
    killed.kill()
    killed.communicate(timeout=60)
    assert list((tmp_path / "stage").iterdir())

    following = start(tmp_path, "--exit", "--no-fault", "--seconds", "1", "--release", release)
    said, _ = following.communicate(timeout=60)
    assert "which a demo that was killed had left" in said
    assert_nothing_is_left(tmp_path)


@pytest.mark.parametrize("word", ["nobody=latency", "plain-1=weather", "plain-1"])
def test_a_fault_that_there_is_not_is_one_line_and_exit_2(tmp_path: Path, word: str) -> None:
    demo = start(tmp_path, "--fault", word)
    said, _ = demo.communicate(timeout=60)
    assert demo.returncode == 2
    assert said.startswith(f"evenfleet: --fault {word}: no ")
    assert said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.tflite
@pytest.mark.timeout(600)
def test_exactly_the_planted_faults_are_flagged(tmp_path: Path) -> None:
    demo = start(tmp_path, "--exit")
    said, _ = demo.communicate(timeout=500)
    assert demo.returncode == 0, said
    assert "planted: accuracy fault in xnnpack-2: flagged" in said
    assert "planted: latency fault in xnnpack-3: flagged" in said
    assert_nothing_is_left(tmp_path)
