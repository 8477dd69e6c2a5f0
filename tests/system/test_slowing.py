"""The demo's latency fault stops what runs, and leaves what waits for its turn."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PARENT = """
import subprocess, sys
spin = subprocess.Popen([sys.executable, "-c", "while True: pass"])
wait = subprocess.Popen([sys.executable, "-c", "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX)", sys.argv[1]])
print(spin.pid, wait.pid, flush=True)
try:
    sys.stdin.read()
finally:
    spin.kill()
    wait.kill()
"""


def test_a_child_that_waits_for_its_turn_keeps_its_place_in_the_queue(tmp_path: Path) -> None:
    """A stop would interrupt its wait, and send it behind all others that wait."""
    lock = tmp_path / "lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with subprocess.Popen(
            [sys.executable, "-c", PARENT, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as parent:
            assert parent.stdout is not None
            spinning, waiting = (psutil.Process(int(pid)) for pid in parent.stdout.readline().split())
            _until(lambda: f"-> FLOCK  ADVISORY  WRITE {waiting.pid} " in Path("/proc/locks").read_text())
            interrupted = waiting.num_ctx_switches().voluntary
            with subprocess.Popen([sys.executable, "-m", "evenfleet_collector.slowing", str(parent.pid)]) as slowing:
                for _ in range(10):
                    _until(lambda: spinning.status() == psutil.STATUS_STOPPED)
                    _until(lambda: spinning.status() != psutil.STATUS_STOPPED)
                slowing.terminate()
            assert spinning.status() != psutil.STATUS_STOPPED
            assert waiting.num_ctx_switches().voluntary == interrupted
            parent.communicate()


def _until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20.0
    while not holds():
        assert time.monotonic() < deadline_s
