"""Read this process's memory, and say how it was read."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
from pathlib import Path
from typing import Final

from evenfleet_agent.host import nvml
from evenfleet_shared.messages import MemoryReading

_PROC: Final = Path("/proc/self")


def reset_peak(proc: Path = _PROC) -> bool:
    """Have the kernel measure the peak from now on; return whether it does (Linux: 5 into clear_refs resets VmHWM)."""
    try:
        (proc / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def readings(
    after_load: MemoryReading | None,
    gpus: nvml.Reading,
    *,
    was_reset: bool,
    peak_before: MemoryReading | None = None,
    proc: Path = _PROC,
) -> tuple[MemoryReading, ...]:
    """Return every kind of memory that can be told at the end of a measurement.

    Args:
        after_load: What `after_load` found when the model was loaded.
        gpus: What `nvml.read` returned at the measurement's end.
        was_reset: What `reset_peak` said.
        peak_before: What `peak` said before `reset_peak` was called again, for what is no part of measuring.
        proc: This process's.
    """
    kinds = (after_load, larger(peak_before, peak(was_reset=was_reset, proc=proc)), gpu(gpus))
    return tuple(reading for reading in kinds if reading is not None)


def after_load(proc: Path = _PROC) -> MemoryReading | None:
    """Return the resident memory now that the model is loaded, None where the kernel does not tell."""
    size = _status(proc, "VmRSS")
    return (
        None
        if size is None
        else MemoryReading(kind="after_load", bytes=size, method="VmRSS of the runner after load, samples included")
    )


def peak(*, was_reset: bool, proc: Path = _PROC) -> MemoryReading:
    """Return the highest resident memory since `reset_peak`, or of the process's whole life where that failed."""
    size = _status(proc, "VmHWM") if was_reset else None
    if size is not None:
        return MemoryReading(
            kind="peak_rss", bytes=size, method="VmHWM of the runner since before load, samples included"
        )
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return MemoryReading(
        kind="peak_rss", bytes=usage.ru_maxrss * 1024, method="ru_maxrss of the runner, import of the runtime included"
    )


def larger(one: MemoryReading | None, other: MemoryReading) -> MemoryReading:
    """Return the larger of two readings, of which the first may be missing."""
    return one if one is not None and one.bytes > other.bytes else other


def affordable(wanted_bytes: int, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return how much of `wanted_bytes` may be taken for a moment: a quarter of what is available at most."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return min(wanted_bytes, int(found[1]) * 1024 // 4) if found else wanted_bytes


def give_back() -> None:
    """Give back to the kernel what was freed, where the C library can: or it would look like a leak."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def gpu(reading: nvml.Reading, pid: int | None = None) -> MemoryReading | None:
    """Return the GPU memory that this process holds, None where there is no GPU or it does not tell.

    Args:
        reading: What `nvml.read` returned; taken after the model has run, for CUDA allocates when it first does.
        pid: Of another process.
    """
    size = nvml.memory_of(os.getpid() if pid is None else pid, reading)
    return (
        None
        if size is None
        else MemoryReading(
            kind="gpu", bytes=size, method="NVML, used by the runner's process on all GPUs, CUDA included"
        )
    )


def _status(proc: Path, key: str) -> int | None:
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB$", (proc / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
