"""A build stays within what it was given, or ends in order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evenfleet_collector.optimize import limits
from evenfleet_shared.errors import ConfigError

GREEDY = """
import subprocess, sys
from evenfleet_collector.optimize import limits
from evenfleet_shared.errors import ResourceError
kept = []
try:
    with limits.memory_limit(limits.held_bytes() + 60_000_000):
        if sys.argv[1] == "child":
            subprocess.run([sys.executable, "-c", "import time; kept = bytearray(64_000_000); time.sleep(60)"])
        while True:
            kept.append(bytearray(100_000))
            for _ in range(int(sys.argv[2])):
                pass
except ResourceError as error:
    print(error)
"""

DEAF = """
import signal, sys, time
from pathlib import Path
from evenfleet_collector.optimize import limits
from evenfleet_collector.optimize.quiet import NoiseLog
signal.signal(signal.SIGINT, signal.SIG_IGN)
with limits.memory_limit(limits.held_bytes() + 30_000_000), NoiseLog(Path(sys.argv[1])).taking():
    kept = b"x" * 90_000_000
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("4GB", 4_000_000_000), ("1.5 g", 1_500_000_000), ("512MiB", 1 << 29), ("100", 100)]
)
def test_sizes_are_read(text: str, size_bytes: int) -> None:
    assert limits.parse_size(text, "--memory") == size_bytes


@pytest.mark.parametrize("text", ["", "0", "-1GB", "4TB", "lots", "4 G B"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--memory .*expected a size above 0, such as 4GB"):
        limits.parse_size(text, "--memory")


def test_cores_are_those_that_were_given_for_children_too() -> None:
    code = "import os, subprocess, sys; from evenfleet_collector.optimize import limits; limits.use_cores(1); "
    code += "subprocess.run([sys.executable, '-c', 'import os; print(len(os.sched_getaffinity(0)))'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


def test_cores_bind_threads_that_were_started_before() -> None:
    code = "import os, threading; from evenfleet_collector.optimize import limits; wait = threading.Event(); "
    code += "threading.Thread(target=wait.wait).start(); limits.use_cores(1); "
    code += "print({len(os.sched_getaffinity(int(each))) for each in os.listdir('/proc/self/task')}); wait.set()"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "{1}\n"


def test_more_cores_than_there_are_are_refused() -> None:
    there = len(os.sched_getaffinity(0))
    with pytest.raises(ConfigError, match=rf"--cores {there + 1}: this process may use {there}"):
        limits.use_cores(there + 1)


@pytest.mark.parametrize(("who", "slowness"), [("self", "2000"), ("child", "0")])
def test_who_holds_more_memory_than_given_is_interrupted_and_told(who: str, slowness: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GREEDY, who, slowness], capture_output=True, text=True, timeout=60, check=False
    )
    assert "--memory allows" in done.stdout + done.stderr
    assert "goes on from there" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_who_does_not_see_the_interruption_is_ended_with_the_reason_on_the_terminal(tmp_path: Path) -> None:
    """As in a conversion: it runs in C++, and what is printed meanwhile goes to a log."""
    done = subprocess.run(
        [sys.executable, "-c", DEAF, tmp_path / "log"], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 1
    assert "--memory allows" in done.stderr


def test_who_stays_below_is_left_alone() -> None:
    with limits.memory_limit(limits.held_bytes() + 10**9):
        pass
    with limits.memory_limit(None):
        pass
