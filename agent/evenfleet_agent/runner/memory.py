"""Read this process's memory, and say how it was read."""

from __future__ import annotations

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
    after_load: MemoryReading | None, gpus: nvml.Reading, *, was_reset: bool, proc: Path = _PROC
) -> tuple[MemoryReading, ...]:
    """Return every kind of memory that can be told at the end of a measurement.

    Args:
        after_load: What `after_load` found when the model was loaded.
        gpus: What `nvml.read` returned at the measurement's end.
        was_reset: What `reset_peak` said.
        proc: This process's.
    """
    kinds = (after_load, peak(was_reset=was_reset, proc=proc), gpu(gpus))
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
