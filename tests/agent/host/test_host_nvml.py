"""The real driver's library is not on machines without a GPU: a fake one with NVML's return codes stands in for it."""

from __future__ import annotations

import os

import pytest

from evenfleet_agent.host import nvml
from evenfleet_agent.runner import memory
from fakes import vendor_libraries


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return str(vendor_libraries.nvml(tmp_path_factory.mktemp("nvml")))


def test_gpu_tells_its_memory_use_and_processes(library):
    reading = nvml.read(library)
    assert reading == nvml.Reading(
        gpus=(
            nvml.Gpu(
                name="Fake A2000",
                memory_used_bytes=5 << 30,
                memory_total_bytes=6 << 30,
                use_ratio=0.37,
                processes={os.getpid(): 300 << 20},
            ),
        ),
        reason=None,
    )


def test_memory_of_this_process_is_a_reading_with_its_method(library):
    found = memory.gpu(nvml.read(library))
    assert found is not None
    assert (found.kind, found.bytes) == ("gpu", 300 << 20)
    assert "NVML" in found.method


def test_process_that_the_driver_does_not_count_has_no_reading(library):
    reading = nvml.read(library)
    assert memory.gpu(reading, pid=1) is None  # told as not available
    assert memory.gpu(reading, pid=4_000_000) is None


def test_machine_without_the_driver_says_so_in_one_line():
    reading = nvml.read("libnvidia-ml-not-here.so.1")
    assert reading.gpus == ()
    assert reading.reason is not None
    assert "not installed" in reading.reason
    assert "\n" not in reading.reason
    assert memory.gpu(reading) is None


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (4, "may not ask"),
        (9, "driver is not loaded"),
        (12, "library is not whole"),
        (18, "different drivers"),
        (20, "Insufficient Memory"),
        (999, "unknown error"),
    ],
)
def test_code_of_the_driver_becomes_a_line_that_says_what_to_do(library, monkeypatch, code, words):
    monkeypatch.setenv("FAKE_NVML_INIT", str(code))
    reading = nvml.read(library)
    assert reading.gpus == ()
    assert reading.reason is not None
    assert f"nvmlInit_v2 answered {code}: " in reading.reason
    assert words in reading.reason


def test_figure_that_a_gpu_does_not_tell_is_none_and_the_others_stand(library, monkeypatch):
    monkeypatch.setenv("FAKE_NVML_USE", "3")
    monkeypatch.setenv("FAKE_NVML_PROCESSES", "4")
    (gpu,) = nvml.read(library).gpus
    assert (gpu.use_ratio, gpu.processes, gpu.memory_used_bytes) == (None, None, 5 << 30)


@pytest.mark.parametrize(("name", "value"), [("FAKE_NVML_GPUS", "0"), ("FAKE_NVML_HANDLE", "15")])
def test_driver_without_a_gpu_that_can_be_read_is_told(library, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    reading = nvml.read(library)
    assert reading.gpus == ()
    assert reading.reason is not None


def test_library_that_is_something_else_is_told():
    reading = nvml.read("libm.so.6")
    assert reading.gpus == ()
    assert reading.reason is not None
    assert "has no nvmlInit_v2" in reading.reason
