"""Real agents, one collector: where two devices' runs of one variant part, and that rounding is no parting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.agents import push, running
from fakes.collectors import WAIT_S, Serving, serving

pytestmark = pytest.mark.processes

pytest.importorskip("ai_edge_litert", reason="needs LiteRT")

DELEGATED, BUILT_IN, FAULTY = "press-07", "press-08", "press-09"


def diff(collector: Serving, a: str, b: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "evenfleet_collector", "diff", "--device", a, "--device", b),
            *("--variant", "float32", *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        env=os.environ | {"EVENFLEET_URL": collector.url},
    )


def folder(directory: Path, name: str) -> Path:
    made = directory / name
    made.mkdir()
    return made


def all_ran(collector: Serving, count: int) -> bool | None:
    cells = collector.get("/api/v1/parity")["items"]
    return len([cell for cell in cells if cell["variant"] == "float32" and cell["windows"]]) == count or None


def test_devices_part_where_one_is_fed_otherwise_and_not_over_who_runs_the_kernels(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "data") as collector,
        running(folder(tmp_path, DELEGATED), collector.mqtt, device=DELEGATED) as agent,
        running(
            folder(tmp_path, BUILT_IN), collector.mqtt, device=BUILT_IN, more="[runtime]\nxnnpack = false\n"
        ) as away,
        running(folder(tmp_path, FAULTY), collector.mqtt, device=FAULTY, more="[planted_fault]\ninput_scale = 0.9\n"),
    ):
        push(collector, tmp_path, window_length_s=600.0)
        collector.until(lambda: all_ran(collector, 3), "the first windows")
        last_seq = agent.last_seq()

        even = diff(collector, DELEGATED, BUILT_IN, "--json")
        assert even.returncode == 0, even.stderr
        told = json.loads(even.stdout)
        assert (told["a"]["executed"], told["b"]["executed"], told["first"]) == ("xnnpack", "cpu", None)
        assert [one["operator"] for one in told["outputs"]] == ["INPUT", "FULLY_CONNECTED", "SOFTMAX"]
        assert all(one["bound_rms"] for one in told["outputs"])

        parted = diff(collector, DELEGATED, FAULTY)
        assert parted.returncode == 4, parted.stderr
        said = " ".join(parted.stdout.split())
        assert "part before the first operator, at the input x" in said
        assert "the first operator that differs with it is operator 0, FULLY_CONNECTED logits" in said

        # Answers are no part of what is numbered, and the runners that gave them go on.
        assert agent.last_seq() == last_seq
        assert len(agent.runners) == 1

        away.kill()
        gone = diff(collector, DELEGATED, BUILT_IN, "--ttl-s", "3")
        assert (gone.returncode, gone.stdout) == (1, "")
        assert f"{BUILT_IN} did not do layers within 3 s" in gone.stderr
        unknown = diff(collector, DELEGATED, FAULTY, "--variant", "int4")
        assert unknown.returncode == 3
        assert "does not run int4" in unknown.stderr
