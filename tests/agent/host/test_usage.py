"""What processes take, and how often the kernel has killed one, as /proc tells it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from evenfleet_agent.host import oom, thermal, usage
from evenfleet_agent.host.usage import Usage
from evenfleet_agent.machine import SystemMachine


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_process_with_an_unpleasant_name_is_read_all_the_same(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    fields = " ".join(str(number) for number in range(4, 14))
    write(tmp_path / "proc/7/stat", f"7 (a) S 1 (b) S {fields} {3 * ticks} {2 * ticks} 0 0 20 0\n")
    write(tmp_path / "proc/7/status", "Name:\ta\nVmRSS:\t   123 kB\n")

    assert usage.usage(7, tmp_path) == Usage(5.0, 123 * 1024)


def test_a_process_that_is_gone_or_says_nothing_has_no_usage(tmp_path: Path) -> None:
    assert usage.usage(7, tmp_path) is None
    write(tmp_path / "proc/7/stat", "7 (a) S 1\n")
    assert usage.usage(7, tmp_path) is None


def test_kills_are_counted_where_the_kernel_tells_and_unknown_where_not(tmp_path: Path) -> None:
    assert oom.kills(tmp_path) is None
    write(tmp_path / "proc/vmstat", "nr_free_pages 12\noom_kill 3\nswap_ra 0\n")
    assert oom.kills(tmp_path) == 3


def test_the_time_of_children_counts_once_while_they_live_and_after() -> None:
    machine = SystemMachine()
    before = machine.taken(())
    child = subprocess.Popen(
        [sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    alive = machine.taken((child.pid,))
    child.communicate(b"\n")
    ended = machine.taken((child.pid,))

    assert alive.cpu_s - before.cpu_s >= 0.25
    assert 0.0 <= ended.cpu_s - alive.cpu_s < 0.25
    assert ended.supervisor_rss_bytes > 1_000_000


def test_a_broken_sensor_is_not_the_hottest_zone(tmp_path: Path) -> None:
    for number, (kind, text) in enumerate((("cpu", "48250"), ("gone", "2147483647"), ("off", "-274000"))):
        write(tmp_path / f"sys/class/thermal/thermal_zone{number}/type", kind)
        write(tmp_path / f"sys/class/thermal/thermal_zone{number}/temp", text)

    assert thermal.temperatures_c(tmp_path) == {"cpu": 48.25}
