"""What a machine tells while something is measured, from copies of its files; what it does not tell is None."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evenfleet_agent.host import conditions, cpufreq, energy, pressure, processor, thermal
from evenfleet_agent.host.energy import EnergyReading
from evenfleet_agent.host.processor import ProcessorTime
from evenfleet_shared.messages import Conditions

CPU = "sys/devices/system/cpu"
PI = "sys/devices/platform/soc/soc:firmware/get_throttled"
RAPL = "sys/class/powercap"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_machine_that_tells_nothing_has_conditions_of_none_and_not_of_zero(tmp_path):
    before, after = conditions.look(tmp_path), conditions.look(tmp_path)
    assert conditions.between(before, after) == Conditions()
    assert conditions.throttled(before, after) is None
    assert energy.energy(tmp_path) is None
    assert energy.used_mj(None, None) is None


def test_conditions_are_what_lies_between_two_looks(tmp_path):
    root = write(
        tmp_path,
        {
            "proc/stat": "cpu  100 0 100 800 0 0 0 0 50 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n",
            "proc/pressure/cpu": "some avg10=9.00 avg60=0.00 avg300=0.00 total=1000000\n",
            "proc/pressure/io": "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.00 total=5\n",
            f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
            f"{CPU}/cpu1/cpufreq/scaling_cur_freq": "600000\n",
            "sys/class/thermal/thermal_zone0/type": "cpu",
            "sys/class/thermal/thermal_zone0/temp": "40000",
            "sys/class/thermal/thermal_zone1/type": "gpu",
            "sys/class/thermal/thermal_zone1/temp": "45500",
            PI: "0x0\n",
        },
    )
    before = conditions.look(root)
    write(
        root,
        {
            "proc/stat": "cpu  150 0 100 840 0 0 0 10 90 0\n",
            "sys/class/thermal/thermal_zone0/temp": "61000",
            PI: "0x5\n",
        },
    )
    after = conditions.look(root)
    found = conditions.between(before, after)
    assert found.steal_ratio == pytest.approx(0.1)
    assert (found.cpu_pressure_ratio, found.memory_pressure_ratio, found.io_pressure_ratio) == (0.0, None, 0.0)
    assert (found.frequency_mhz, found.temperature_c, found.under_voltage) == (1050.0, 61.0, True)
    assert conditions.throttled(before, after) is True


def test_pressure_is_the_share_of_the_time_between(tmp_path):
    write(tmp_path, {"proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull total=1\n"})
    assert pressure.waited_s("memory", tmp_path) == 2.5
    assert pressure.pressure_ratio(2.5, 3.5, 4.0) == 0.25
    # The two files are not read at one moment: more than all the time is all of it.
    assert pressure.pressure_ratio(2.5, 7.0, 4.0) == 1.0
    assert pressure.pressure_ratio(2.5, 3.5, 0.0) is None


@pytest.mark.parametrize("text", ["", "cpu  1 2 3 4\n", "intr 1 2 3 4 5 6 7 8\n", "cpu  a b c d e f g h\n"])
def test_kernel_that_does_not_tell_stolen_time_is_none(tmp_path, text):
    write(tmp_path, {"proc/stat": text})
    assert processor.processor_time(tmp_path) is None


def test_stolen_time_that_goes_back_is_none_stolen():
    """As after a guest is moved to another host."""
    assert processor.steal_ratio(ProcessorTime(steal=9, total=100), ProcessorTime(steal=1, total=200)) == 0.0
    assert processor.steal_ratio(ProcessorTime(steal=9, total=100), ProcessorTime(steal=9, total=100)) is None


def test_this_machine_tells_its_stolen_time_and_its_pressure_where_the_kernel_counts_it():
    before = conditions.look()
    for _ in range(200_000):
        os.getpid()
    after = conditions.look()
    while after.processor_time == before.processor_time:  # a tick takes 10 ms
        after = conditions.look()
    found = conditions.between(before, after)
    assert found.steal_ratio is not None
    counted = Path("/proc/pressure/cpu").exists()
    assert (found.cpu_pressure_ratio is not None) == counted
    assert (found.memory_pressure_ratio is not None) == counted


def test_frequency_that_the_kernel_does_not_set_is_none(tmp_path):
    write(tmp_path, {"proc/cpuinfo": "cpu MHz\t\t: 2445.404\n", f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "<unknown>\n"})
    assert cpufreq.frequency_mhz(tmp_path) is None


@pytest.mark.parametrize(("alarm", "expected"), [("1", True), ("0", False), ("", None)])
def test_weak_supply_is_told_by_its_monitor_where_the_firmwares_flags_are_not_shown(tmp_path, alarm, expected):
    write(tmp_path, {"sys/class/hwmon/hwmon1/name": "rpi_volt\n", "sys/class/hwmon/hwmon1/in0_lcrit_alarm": alarm})
    look = thermal.throttling(tmp_path)
    assert look.under_voltage is expected
    assert thermal.under_voltage(look, look) is expected


def package(number: int, uj: int, *, name: str | None = None, zone: str = "intel-rapl") -> dict[str, str]:
    place = f"{RAPL}/{zone}:{number}"
    return {
        f"{place}/name": f"{name or f'package-{number}'}\n",
        f"{place}/energy_uj": f"{uj}\n",
        f"{place}/max_energy_range_uj": "262143328850\n",
    }


def test_energy_is_that_of_all_packages_and_their_parts_are_not_counted_twice(tmp_path):
    part = {f"{RAPL}/intel-rapl:0:0/name": "core\n", f"{RAPL}/intel-rapl:0:0/energy_uj": "999\n"}
    again = package(0, 5_000_000, zone="intel-rapl-mmio")
    root = write(tmp_path, {**package(0, 1_000_000), **package(1, 2_000_000), **part, **again})
    before = energy.energy(root)
    write(root, {**package(0, 1_500_000), **package(1, 2_250_000)})
    after = energy.energy(root)
    assert before is not None
    assert before.method == "RAPL energy_uj of 2 packages, all processes"
    assert energy.used_mj(before, after) == 750.0


def test_counter_that_wraps_around_goes_on_from_its_range(tmp_path):
    before = energy.energy(write(tmp_path, package(0, 262_143_328_000)))
    after = energy.energy(write(tmp_path, package(0, 150)))
    assert energy.used_mj(before, after) == pytest.approx(1.0)


def test_counter_that_was_set_back_tells_nothing():
    before = EnergyReading(method="hwmon", counters_uj={"board": 100}, wraps_at_uj={})
    assert energy.used_mj(before, EnergyReading(method="hwmon", counters_uj={"board": 50}, wraps_at_uj={})) is None


def test_counters_that_differ_between_two_readings_tell_nothing(tmp_path):
    before = energy.energy(write(tmp_path, package(0, 100)))
    after = energy.energy(write(tmp_path, package(1, 100)))
    assert energy.used_mj(before, after) is None


def test_counter_that_may_not_be_read_is_none(tmp_path):
    """As RAPL's for all but root; a folder in the file's place cannot be read by root either."""
    write(tmp_path, {f"{RAPL}/intel-rapl:0/name": "package-0\n"})
    (tmp_path / RAPL / "intel-rapl:0/energy_uj").mkdir()
    assert energy.energy(tmp_path) is None


def test_meter_of_a_board_is_taken_where_there_is_no_rapl(tmp_path):
    place = "sys/class/hwmon/hwmon0"
    before = energy.energy(write(tmp_path, {f"{place}/name": "ina238\n", f"{place}/energy1_input": "5000\n"}))
    after = energy.energy(write(tmp_path, {f"{place}/energy1_input": "9000\n"}))
    assert before is not None
    assert before.method == "hwmon ina238 energy1_input, all processes"
    assert energy.used_mj(before, after) == 4.0
