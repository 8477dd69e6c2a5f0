"""The whole collector as a person starts it: `evenfleet serve` in a process of its own, on free ports.

Not a fake: what the tests of the real thing share.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil

from evenfleet_collector.access import Endpoint
from fakes.brokers import Device

T = TypeVar("T")

WAIT_S = 40.0


class Serving:
    """A collector that runs."""

    def __init__(self, data: Path, *arguments: str) -> None:
        self.process = serve(data, "--http-port", "0", "--mqtt-port", "0", "--json", *arguments)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, said = self.process.communicate(timeout=WAIT_S)
            raise AssertionError(said)
        where = json.loads(line)
        self.url: str = where["url"]
        self.mqtt: str = where["mqtt"]

    @property
    def mqtt_port(self) -> str:
        return self.mqtt.rpartition(":")[2]

    @property
    def http_port(self) -> str:
        return self.url.rpartition(":")[2]

    @property
    def broker(self) -> psutil.Process:
        """The nats-server of this collector."""
        return next(
            child for child in psutil.Process(self.process.pid).children() if "nats-server" in " ".join(child.cmdline())
        )

    @property
    def endpoint(self) -> Endpoint:
        """Where devices connect."""
        host, _, port = self.mqtt.rpartition(":")
        return Endpoint(nats_url="", mqtt_host=host, mqtt_port=int(port), collector_password="", callout_password="")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=WAIT_S) as answer:
            return json.loads(answer.read())

    def put(self, path: str, payload: bytes, *, method: str = "PUT") -> Any:
        request = urllib.request.Request(
            f"{self.url}{path}", payload, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return json.loads(answer.read() or b"null")

    def until(self, ask: Callable[[], T | None], what: str) -> T:
        """Ask again and again until there is an answer; what is waited for happens in other processes."""
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(urllib.error.URLError):
                if (found := ask()) is not None:
                    return found
            assert self.process.poll() is None, "the collector has ended"
            time.sleep(0.02)
        raise AssertionError(f"waited {WAIT_S:g} s for {what}")

    def metric(self, name: str) -> float:
        """Return one figure of /metrics, by its whole name with labels; 0 where there is none."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=WAIT_S) as answer:
            for line in answer.read().decode().splitlines():
                if line.rpartition(" ")[0] == name:
                    return float(line.rpartition(" ")[2])
        return 0.0

    def device(self, device: str) -> Device:
        """Return a device's MQTT session, not connected yet."""
        return Device(self.endpoint, device, "any", client_id=device)

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal and wait for the end; returns the exit code and what was said."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, said


def serve(data: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "evenfleet_collector", "serve", "--data", str(data), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


@contextmanager
def serving(data: Path, *arguments: str) -> Iterator[Serving]:
    collector = Serving(data, "--anonymous-devices", *arguments)
    try:
        yield collector
    finally:
        if collector.process.poll() is None:
            collector.process.kill()
            collector.process.communicate(timeout=WAIT_S)
