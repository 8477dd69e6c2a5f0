"""Print what the agent's supervisor takes: memory, by what it consists of, and processor time at rest.

A real agent connected to a real broker, without a release: no runner is there. TLS is off.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

REST_S = 20.0
TARGET_RSS_MB = 30.0


def main() -> int:
    """Measure, print, and return 4 if the target is missed."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        serve = subprocess.Popen(
            [
                *(sys.executable, "-m", "evenfleet_collector", "serve", "--json", "--anonymous-devices"),
                *("--data", str(directory / "data"), "--http-port", "0", "--mqtt-port", "0"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert serve.stdout is not None
        mqtt = json.loads(serve.stdout.readline())["mqtt"]
        config = directory / "agent.toml"
        config.write_text(f'device = "bench"\nstate_dir = "{directory}/agent"\n[broker]\nurl = "mqtt://{mqtt}"\n')
        agent = subprocess.Popen([sys.executable, "-m", "evenfleet_agent", "run", "--config", str(config)])
        try:
            time.sleep(5.0)
            before_s = _cpu_s(agent.pid)
            time.sleep(REST_S)
            cpu_ratio = (_cpu_s(agent.pid) - before_s) / REST_S
            return report(agent.pid, cpu_ratio)
        finally:
            for child in (agent, serve):
                child.terminate()
                child.wait()


def report(pid: int, cpu_ratio: float) -> int:
    """Print the figures of a process; return 4 if the target is missed."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    rss, pss = (int(re.search(rf"^{kind}:\s+(\d+) kB", rollup, re.MULTILINE)[1]) / 1000 for kind in ("Rss", "Pss"))
    print(f"supervisor at rest, connected, no runner: RSS {rss:.1f} MB, PSS {pss:.1f} MB, {cpu_ratio:.2%} of one core")
    parts: Counter[str] = Counter()
    part = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if mapping := re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)", line):
            part = Path(mapping[1]).name if mapping[1].startswith("/") else mapping[1] or "anonymous memory"
        elif line.startswith("Rss:"):
            parts[part] += int(line.split()[1])
    for part, kilobytes in parts.most_common(8):
        print(f"  {kilobytes / 1000:6.1f} MB  {part}")
    print(f"target: RSS at most {TARGET_RSS_MB:g} MB: {'met' if rss <= TARGET_RSS_MB else 'missed'}")
    return 0 if rss <= TARGET_RSS_MB else 4


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100.0


if __name__ == "__main__":
    sys.exit(main())
