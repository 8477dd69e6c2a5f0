from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evenfleet_agent import host
from evenfleet_agent.host import cpufreq, system, thermal
from evenfleet_agent.host.thermal import Throttling
from evenfleet_shared import messages

PI = "sys/devices/platform/soc/soc:firmware/get_throttled"
CPU = "sys/devices/system/cpu"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def context(root: Path) -> messages.RunContext:
    return host.run_context(
        device_class="pi-4",
        runtime="litert",
        runtime_version="2.3.0",
        python="3.11.7",
        accelerator_requested="xnnpack",
        accelerator_executed="xnnpack",
        delegated_ratio=1.0,
        fallback_reason="x" * 1000,
        threads=4,
        attributes={"site": "north"},
        root=root,
    )


def test_this_machine_gives_a_context_that_can_be_sent():
    run = context(Path("/"))
    sent = messages.encode(
        messages.Context(
            device="a",
            incarnation=messages.Incarnation(1, "0" * 8),
            seq=1,
            floor=1,
            digest=messages.context_digest(run),
            run=run,
        )
    )
    assert messages.decode("context", sent).run == run
    assert run.cpu_count > 0
    assert run.memory_total_bytes > 0


def test_machine_that_tells_nothing_is_described_with_none_and_not_with_zero(tmp_path):
    run = context(tmp_path)
    assert (run.governor, run.power_mode, run.cpu_model) == (None, None, None)
    assert thermal.temperatures_c(tmp_path) == {}
    assert thermal.throttling(tmp_path) == Throttling(flags=None, events=None)


def test_governors_that_differ_are_all_told(tmp_path):
    root = write(
        tmp_path,
        {
            f"{CPU}/cpu0/cpufreq/scaling_governor": "schedutil\n",
            f"{CPU}/cpu1/cpufreq/scaling_governor": "schedutil\n",
            f"{CPU}/cpu4/cpufreq/scaling_governor": "performance\n",
        },
    )
    assert cpufreq.governor(root) == "performance,schedutil"


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"proc/cpuinfo": "processor\t: 0\nmodel name\t: Some  CPU @ 2 GHz\n"}, "Some CPU @ 2 GHz"),
        ({"proc/cpuinfo": "processor\t: 0\nHardware\t: BCM2711\n"}, "BCM2711"),
        ({"proc/cpuinfo": "processor\t: 0\n", "proc/device-tree/model": "Raspberry Pi 4\0"}, "Raspberry Pi 4"),
    ],
)
def test_processor_is_named_by_itself_or_by_its_board(tmp_path, files, name):
    assert system.cpu_model(write(tmp_path, files)) == name


def test_operating_system_is_named_by_its_release_file(tmp_path):
    assert system.os_name(write(tmp_path, {"etc/os-release": 'ID=x\nPRETTY_NAME="Some Linux 12"\n'})) == "Some Linux 12"


def test_zone_whose_sensor_fails_is_left_out(tmp_path):
    zones = "sys/class/thermal/thermal_zone"
    root = write(
        tmp_path,
        {
            f"{zones}0/type": "cpu",
            f"{zones}0/temp": "51500\n",
            f"{zones}1/type": "cpu",
            f"{zones}1/temp": "48000\n",
            f"{zones}2/type": "gpu",
            f"{zones}2/temp": "",
        },
    )
    assert thermal.temperatures_c(root) == {"cpu": 51.5}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (Throttling(flags=0, events=None), Throttling(flags=0, events=None), False),
        (Throttling(flags=0x4, events=None), Throttling(flags=0, events=None), True),
        # bits above 15 tell of the past
        (Throttling(flags=0x50000, events=None), Throttling(flags=0x50000, events=None), False),
        (Throttling(flags=None, events=7), Throttling(flags=None, events=7), False),
        (Throttling(flags=None, events=7), Throttling(flags=None, events=8), True),
        (Throttling(flags=None, events=None), Throttling(flags=None, events=8), None),
    ],
)
def test_throttling_between_two_looks(before, after, expected):
    assert thermal.throttled(before, after) is expected


def test_throttle_indicators_are_read_and_summed(tmp_path):
    root = write(
        tmp_path,
        {
            PI: "0x50005\n",
            f"{CPU}/cpu0/thermal_throttle/core_throttle_count": "2\n",
            f"{CPU}/cpu1/thermal_throttle/core_throttle_count": "3\n",
        },
    )
    assert thermal.throttling(root) == Throttling(flags=0x50005, events=5)


def test_folder_that_the_kernel_takes_away_while_we_look_is_one_that_tells_nothing(tmp_path):
    """As that of a processor that is switched off. Here it is that of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as ended:
        ended.stdout.read()
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        gone = Path(f"/proc/{ended.pid}/net")
        for place in ("sys/class/thermal", f"{CPU}/cpu0/thermal_throttle", f"{CPU}/cpu0/cpufreq"):
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place).symlink_to(gone)
        with pytest.raises(OSError, match="Invalid argument"):
            list((tmp_path / "sys/class/thermal").glob("*"))

        assert thermal.temperatures_c(tmp_path) == {}
        assert thermal.throttling(tmp_path) == Throttling(flags=None, events=None)
        assert cpufreq.governor(tmp_path) is None
