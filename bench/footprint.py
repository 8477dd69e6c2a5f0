"""Print what the agent's supervisor takes: memory by what it consists of, processor time at rest, and how long it takes to start.

A real agent with a real nats-server, in the clear and over TLS with a certificate made here, without a release: no runner is there.
At rest means with nothing to do but to hold the session (keepalive 60 s); what a window costs is in the windows.
Bytecode is cached, as an installation has it. RSS is what the process has in memory, PSS the same with what it shares
divided by the number of its users: here other Pythons share its libraries, on a board perhaps none.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fakes.certificates import Authority
from fakes.mqtt_servers import Tls, running

REST_S = 20.0
TARGET_RSS_MB = 30.0
TARGET_CPU_RATIO = 0.005
TARGET_START_S = 0.5
STARTS = 5


def main() -> int:
    """Measure, print, and return 4 if a target is missed."""
    met = True
    for over in ("in the clear", "over TLS"):
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            authority = Authority(directory) if over == "over TLS" else None
            shown = Tls(authority.issue("localhost")) if authority else None
            with running("nats-server", directory, shown) as server:
                config = _configure(directory, server.address[1], authority)
                # The first start may have to compile.
                _start_s(config)
                starts = sorted(_start_s(config) for _ in range(STARTS))
                agent = _run(config)
                try:
                    _await_session(directory)
                    time.sleep(3.0)
                    before_s = _cpu_s(agent.pid)
                    time.sleep(REST_S)
                    cpu_ratio = (_cpu_s(agent.pid) - before_s) / REST_S
                    met &= report(over, agent.pid, cpu_ratio, starts[STARTS // 2])
                finally:
                    agent.terminate()
                    agent.wait()
    return 0 if met else 4


def report(over: str, pid: int, cpu_ratio: float, start: tuple[float, float]) -> bool:
    """Print the figures of a process; return whether the targets are met."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    rss, pss = (_mb(rollup, kind) for kind in ("Rss", "Pss"))
    print(f"supervisor at rest, connected {over}, no runner:")
    print(f"  RSS {rss:.1f} MB (at most {TARGET_RSS_MB:g}), PSS {pss:.1f} MB")
    print(f"  {cpu_ratio:.3%} of one core (at most {TARGET_CPU_RATIO:.1%}), {_wakes(pid)} voluntary wake-ups so far")
    start_s, start_cpu_s = start
    print(
        f"  {start_s:.2f} s from the start to a session, median of {STARTS} (at most {TARGET_START_S:g}),"
        f" of which {start_cpu_s:.2f} s of processor; the machine's load is {os.getloadavg()[0]:.1f} on {os.cpu_count()}"
    )
    parts: Counter[str] = Counter()
    part = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if mapping := re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)", line):
            part = Path(mapping[1]).name if mapping[1].startswith("/") else mapping[1] or "anonymous memory"
        elif line.startswith("Rss:"):
            parts[part] += int(line.split()[1])
    for part, kilobytes in parts.most_common(9):
        print(f"    {kilobytes / 1000:6.1f} MB  {part}")
    met = rss <= TARGET_RSS_MB and cpu_ratio <= TARGET_CPU_RATIO and start_s <= TARGET_START_S
    print(f"  targets {'met' if met else 'missed'}")
    return met


def _configure(directory: Path, port: int, authority: Authority | None) -> Path:
    url, ca = (
        (f"mqtts://localhost:{port}", f'ca_file = "{authority.file}"\n')
        if authority
        else (f"mqtt://localhost:{port}", "")
    )
    config = directory / "agent.toml"
    config.write_text(
        f'device = "bench"\nstate_dir = "{directory}/agent"\n[broker]\nurl = "{url}"\nkeepalive_s = 60\n{ca}'
    )
    return config


def _run(config: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    # What the command `evenfleet-agent run` becomes, started the same way.
    environment["MALLOC_ARENA_MAX"] = "1"
    return subprocess.Popen([sys.executable, "-m", "evenfleet_agent.lean", str(config)], env=environment)


def _start_s(config: Path) -> tuple[float, float]:
    began_s = time.perf_counter()
    agent = _run(config)
    _await_session(config.parent)
    took_s, cpu_s = time.perf_counter() - began_s, _cpu_s(agent.pid)
    agent.terminate()
    agent.wait()
    return took_s, cpu_s


def _await_session(directory: Path) -> None:
    standing = directory / "agent" / "standing.json"
    deadline_s = time.monotonic() + 30.0
    while not standing.exists() or b'"connected":true' not in standing.read_bytes():
        assert time.monotonic() < deadline_s, "no session"
        time.sleep(0.005)


def _mb(rollup: str, kind: str) -> float:
    found = re.search(rf"^{kind}:\s+(\d+) kB", rollup, re.MULTILINE)
    assert found
    return int(found[1]) / 1000


def _wakes(pid: int) -> int:
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text(), re.MULTILINE)
        total += int(found[1]) if found else 0
    return total


def _cpu_s(pid: int) -> float:
    # In nanoseconds; stat counts in ticks of 10 ms.
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


if __name__ == "__main__":
    sys.exit(main())
