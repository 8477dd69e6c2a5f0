"""The whole agent as a service manager starts it: `evenfleet-agent run` in a process of its own, on a free state directory.

Not a fake: what the tests of the real thing share.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from evenfleet_collector import client
from evenfleet_collector.tolerance import ExceedanceTolerance, Policy
from evenfleet_shared import manifest
from fakes.collectors import WAIT_S, Serving
from fakes.tiny_release import write_release

DEVICE = "press-01"


class Agent:
    """An agent that runs, started as a service manager starts it."""

    def __init__(
        self, directory: Path, mqtt: str, *, device: str = DEVICE, state_dir: Path | None = None, more: str = ""
    ) -> None:
        self.state_dir = state_dir or directory / "agent"
        self.file = directory / "agent.toml"
        self.file.write_text(
            f"""device = "{device}"
device_class = "bench"
state_dir = "{self.state_dir}"
[broker]
url = "mqtt://{mqtt}"
keepalive_s = 5
[measure]
samples = 20
max_duration_s = 0.2
warm_up_max_s = 0.1
[schedule]
max_cpu_ratio = 64.0
{more}"""
        )
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "evenfleet_agent", "run", "-v", "--config", str(self.file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self.process

    def kill(self) -> None:
        """End it and its children as a power cut does."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.communicate(timeout=WAIT_S)
        # They are bound to it, and die with it.
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive

    def stop(self) -> tuple[float, str]:
        """Tell it to stop; return how long that took, and everything that it said."""
        began_s = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        said, also = self.process.communicate(timeout=WAIT_S)
        return time.monotonic() - began_s, said + also

    @property
    def runners(self) -> list[psutil.Process]:
        """Return its measuring children."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "evenfleet_agent.runner.worker" in child.cmdline()]

    def held(self) -> set[tuple[int, str, int]]:
        """Return what the outbox holds, as seen from outside."""
        return set(self.ask("SELECT counter, random, seq FROM messages"))

    def last_seq(self) -> int:
        lives = self.ask("SELECT next_seq - 1 FROM life")
        return int(lives[0][0]) if lives else 0  # it is just starting

    def ask(self, sql: str) -> list[Any]:
        connection = sqlite3.connect(f"file:{self.state_dir / 'outbox.sqlite'}?mode=ro", uri=True)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()


@contextmanager
def running(
    directory: Path, mqtt: str, *, device: str = DEVICE, state_dir: Path | None = None, more: str = ""
) -> Iterator[Agent]:
    agent = Agent(directory, mqtt, device=device, state_dir=state_dir, more=more)
    try:
        yield agent
    finally:
        if agent.process.poll() is None:
            agent.kill()


def push(collector: Serving, directory: Path, *, window_length_s: float = 0.3) -> str:
    """Push the tiny release, assign it to all, and make windows short."""
    release = write_release(directory)
    described, digest = manifest.load(release)
    with client.Collector(collector.url) as api:
        for reference in described.files:
            api.put_artifact(release / reference.file, reference, lambda _: None)
        api.add_release((release / manifest.MANIFEST_NAME).read_bytes())
        # Eleven times the reference: three windows on a machine that does other things too are no steady bench.
        latency = ExceedanceTolerance(margin_ratio=10.0)
        api.set_policy(
            Policy(window_length_s=window_length_s, burn_in_windows=3, calibration_windows=3, latency=latency)
        )
        api.assign("*", digest)
    return digest


def status_of(agent: Agent) -> dict[str, Any]:
    """Ask as a person does."""
    asked = subprocess.run(
        [sys.executable, "-m", "evenfleet_agent", "status", "--json", "--config", str(agent.file)],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    found: dict[str, Any] = json.loads(asked.stdout)
    return found


def until(ask: Any, what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(sqlite3.Error):
            if ask():
                return
        time.sleep(0.02)
    raise AssertionError(f"waited {WAIT_S:g} s for {what}")
