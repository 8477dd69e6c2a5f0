from __future__ import annotations

from evenfleet_agent.host import nvml
from evenfleet_agent.runner import memory


def test_peak_after_a_reset_forgets_what_was_freed_before():
    ballast = bytearray(b"x") * (96 * 1024 * 1024)
    before = memory.peak(was_reset=True)
    del ballast
    assert memory.reset_peak()
    after = memory.peak(was_reset=True)
    assert after.bytes < before.bytes - 48 * 1024 * 1024
    assert after.method.startswith("VmHWM")


def test_resident_memory_is_below_the_peak():
    memory.reset_peak()
    resident = memory.after_load()
    assert resident is not None
    assert 0 < resident.bytes <= memory.peak(was_reset=True).bytes


def test_kernel_without_proc_gives_the_peak_of_the_life_and_says_so(tmp_path):
    missing = tmp_path / "no-proc"
    assert not memory.reset_peak(missing)
    assert memory.after_load(missing) is None
    reading = memory.peak(was_reset=False, proc=missing)
    assert reading.bytes > 0
    assert reading.method.startswith("ru_maxrss")


NO_GPU = nvml.Reading(gpus=(), reason="no GPU here")


def test_kind_that_could_not_be_read_is_left_out_of_the_readings():
    assert [reading.kind for reading in memory.readings(None, NO_GPU, was_reset=True)] == ["peak_rss"]
    assert [reading.kind for reading in memory.readings(memory.after_load(), NO_GPU, was_reset=True)] == [
        "after_load",
        "peak_rss",
    ]
