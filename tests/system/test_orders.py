"""A real agent is told to do something now by a real collector, and runs what its own keys have signed, and that alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evenfleet_collector import client
from evenfleet_shared import signature as signatures
from evenfleet_shared import trust
from evenfleet_shared.signature import PrivateKey, Signature
from fakes.agents import DEVICE, push, running
from fakes.collectors import WAIT_S, Serving, serving

pytestmark = pytest.mark.processes

pytest.importorskip("ai_edge_litert", reason="needs LiteRT")

OWN = PrivateKey(bytes(range(32)))
OTHER = PrivateKey(bytes(32))


def evenfleet(collector: Serving, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evenfleet_collector", *arguments],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        env=os.environ | {"EVENFLEET_URL": collector.url},
    )


def ran(collector: Serving) -> bool | None:
    cells = collector.get("/api/v1/parity")["items"]
    return any(cell["variant"] == "float32" and cell["windows"] for cell in cells) or None


def test_a_device_measures_when_told_to_and_answers_once(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as collector, running(tmp_path, collector.mqtt) as agent:
        # Asked for before the device is known to run anything: it refuses, and says so.
        collector.until(lambda: collector.get("/api/v1/devices")["items"] or None, "a birth")
        early = evenfleet(collector, "device", "measure", DEVICE, "--wait")
        assert (early.returncode, early.stdout) == (3, "")
        assert "this device runs no release" in early.stderr

        # Windows so far apart that the next is a command's.
        push(collector, tmp_path, window_length_s=600.0)
        collector.until(lambda: ran(collector), "the first window")
        asked = evenfleet(collector, "device", "measure", DEVICE, "--variant", "float32", "--wait", "--json")
        assert asked.returncode == 0, asked.stderr
        answer: dict[str, Any] = json.loads(asked.stdout)
        command, (window,) = answer["command"], answer["windows"]
        assert (command["state"], command["reply"]["status"]) == ("done", "done")
        assert command["reply"]["seqs"] == [window["window"]["seq"]]
        assert window["window"]["variant"] == "float32"

        # The device is away while it is asked: it does it when it is back.
        agent.kill()
        waiting = evenfleet(collector, "device", "restart-runner", DEVICE, "--json")
        correlation_id = json.loads(waiting.stdout)["correlation_id"]
        agent.start()

        def answered() -> dict[str, Any] | None:
            row: dict[str, Any] = collector.get(f"/api/v1/devices/{DEVICE}/commands/{correlation_id}")
            return row if row["state"] != "waiting" else None

        row = collector.until(answered, "the answer of a device that was away")
        assert row["sends"] >= 2
        assert collector.get("/api/v1/stats")["passed_over"].get("unasked-reply", 0) == 0


def sign(collector: Serving, signature: Signature) -> None:
    with client.Collector(collector.url) as api:
        api.add_signature(signature)


def refusals(collector: Serving) -> list[str]:
    events = collector.get(f"/api/v1/devices/{DEVICE}/events")["items"]
    return [event["detail"] for event in events if event["event"] == "release-refused"]


def test_a_device_with_keys_runs_a_release_once_one_of_them_has_signed_it_and_not_before(tmp_path: Path) -> None:
    trust.write_keys(tmp_path / "own.key", OWN)
    keys = f'[release]\ntrusted_keys = ["{tmp_path / "own.key.pub"}"]\n'
    with serving(tmp_path / "data") as collector, running(tmp_path, collector.mqtt, more=keys):
        release = push(collector, tmp_path)

        def refused(times: int) -> list[str] | None:
            found = refusals(collector)
            return found if len(found) >= times else None

        (unsigned,) = collector.until(lambda: refused(1), "an unsigned release to be refused")
        assert "is not signed by a key that this device trusts" in unsigned
        assert "none at all" in unsigned

        sign(collector, OTHER.sign(release))
        stranger = collector.until(lambda: refused(2), "a signature of a stranger to be refused")[-1]
        assert "1 of other keys" in stranger

        good = OWN.sign(release)
        first = "B" if good.signature[0] == "A" else "A"
        tampered = Signature(release=release, key=good.key, signature=first + good.signature[1:])
        assert signatures.decode(signatures.encode(tampered), "it") == tampered
        sign(collector, tampered)
        damaged = collector.until(lambda: refused(3), "a signature that was changed to be refused")[-1]
        assert "that does not hold" in damaged
        assert not ran(collector)

        sign(collector, good)
        collector.until(lambda: ran(collector), "the signed release to run")
        installed = [
            event["release"]
            for event in collector.get(f"/api/v1/devices/{DEVICE}/events")["items"]
            if event["event"] == "release-installed"
        ]
        assert (installed, len(refusals(collector))) == ([release], 3)
