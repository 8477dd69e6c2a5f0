"""A real agent and a real collector whose network is slow, loses every third packet, or swallows all of them.

In a network of their own (`unshare --net`), so that nothing else is slowed: it takes root, tc and nft.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fakes.agents import push, running, status_of, until
from fakes.collectors import serving

pytestmark = [pytest.mark.processes, pytest.mark.slow]

pytest.importorskip("ai_edge_litert", reason="needs LiteRT")

TOOLS = ("unshare", "ip", "tc", "nft")
LACKING = os.geteuid() != 0 or not all(shutil.which(tool) for tool in TOOLS)

FAULT_S = 20.0

_DROP = "; ".join(
    (
        "nft add table ip t",
        "nft 'add chain ip t i {{ type filter hook input priority 0; }}'",
        *(f"nft add rule ip t i tcp {end} PORT {{}}" for end in ("dport", "sport")),
    )
)
FAULTS = {
    "64 kbit/s": ("tc qdisc add dev lo root tbf rate 64kbit burst 20000 limit 60000", "tc qdisc del dev lo root"),
    "30 % lost": (_DROP.format(*["numgen random mod 100 '<' 30 drop"] * 2), "nft flush ruleset"),
    "nothing comes through": (_DROP.format("drop", "drop"), "nft flush ruleset"),
}


@pytest.mark.skipif(LACKING, reason=f"needs root, and {', '.join(TOOLS)} (Debian: iproute2, nftables)")
def test_nothing_is_lost_on_a_bad_link(tmp_path: Path, fault: str) -> None:
    ran = subprocess.run(
        ["unshare", "--net", sys.executable, "-m", "system.test_bad_links", str(tmp_path), fault],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])

    assert found["connected"] == (fault != "nothing comes through")
    assert found["given_up"] == {}
    balance = found["balance"]
    assert (balance["lost"], balance["refused"], found["dead_letters"]) == (0, 0, 0)
    assert balance["committed"] >= found["numbered"] > 20
    assert found["stopped_in_s"] < 5.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("fault", FAULTS)


def go(directory: Path, fault: str) -> dict[str, Any]:
    """Run in the network of its own: measure while the fault lasts, and wait until everything has arrived."""
    begins, ends = FAULTS[fault]
    subprocess.run("ip link set lo up", shell=True, check=True)
    with serving(directory / "data") as collector, running(directory, collector.mqtt) as agent:
        push(collector, directory)
        until(lambda: agent.last_seq() > 10, "the first windows")
        subprocess.run(begins.replace("PORT", collector.mqtt_port), shell=True, check=True)
        time.sleep(FAULT_S)  # as long as it takes to notice that a link is dead, and longer
        standing = status_of(agent)
        subprocess.run(ends, shell=True, check=True)
        numbered = agent.last_seq()
        until(lambda: not {key for key in agent.held() if key[2] <= numbered}, "everything to arrive")
        stats = collector.get("/api/v1/stats")
        stopped_in_s, _ = agent.stop()
    return {
        "connected": standing["connected"],
        "given_up": standing["given_up"],
        "numbered": numbered,
        "balance": stats["balance"],
        "dead_letters": stats["dead_letters"],
        "stopped_in_s": stopped_in_s,
    }


if __name__ == "__main__":
    print(json.dumps(go(Path(sys.argv[1]), sys.argv[2])))  # noqa: T201 - for the test that started it
