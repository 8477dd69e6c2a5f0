"""Read NVIDIA GPUs: memory and use, from the driver's own library, libnvidia-ml.so.1.

Called by ctypes: the functions are few and their layout is kept by NVIDIA, and the Python package for it takes 5 MB and
40 ms to import (nvidia-ml-py 13.615), which would be told as the model's own memory.

* A machine without a GPU is no error: `read` returns no GPU and one line of why.
* What a GPU does not tell, or not to this user, is None; the others' figures stand.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

LIBRARY: Final = "libnvidia-ml.so.1"
_SUCCESS: Final = 0
_INSUFFICIENT_SIZE: Final = 7
# nvmlReturn_t, as far as more can be said than the library's own words.
_MEANINGS: Final = {
    3: "not supported by this GPU",
    4: "this user may not ask; run as root, or as a member of the group that owns /dev/nvidiactl",
    9: "the driver is not loaded; is the kernel module nvidia there (lsmod)?",
    12: "the library is not whole; install the driver again",
    15: "the GPU has fallen off the bus, or cannot be reached; restart the machine",
    18: "library and kernel module are of different drivers; restart the machine",
    999: "an unknown error inside the driver",
}
_NOT_AVAILABLE: Final = 2**64 - 1
_NAME_BYTES: Final = 96
# More than this at once are not looked at.
_MAX_PROCESSES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU; `use_ratio` is the share of the last sampling period in which a kernel ran, `processes` bytes by pid."""

    name: str
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    use_ratio: float | None
    processes: dict[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All GPUs; where there is none, `reason` is why, in one line."""

    gpus: tuple[Gpu, ...]
    reason: str | None


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Utilisation(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Process(ctypes.Structure):
    """nvmlProcessInfo_t of the functions' versions 2 and 3."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class _NvmlError(Exception):
    pass


def read(library: str = LIBRARY) -> Reading:
    """Return what the GPUs say now."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return Reading(gpus=(), reason=f"no NVIDIA GPU here: {library} is not installed (it comes with the driver)")
    try:
        _call(nvml, "nvmlInit_v2")
    except _NvmlError as error:
        return Reading(gpus=(), reason=f"no NVIDIA GPU can be read: {error}")
    try:
        count = ctypes.c_uint()
        _call(nvml, "nvmlDeviceGetCount_v2", ctypes.byref(count))
        gpus = tuple(gpu for index in range(count.value) if (gpu := _gpu(nvml, index)) is not None)
        told = None if gpus else "no NVIDIA GPU here: the driver knows none that this user may read"
        return Reading(gpus=gpus, reason=told)
    except _NvmlError as error:
        return Reading(gpus=(), reason=f"no NVIDIA GPU can be read: {error}")
    finally:
        _attempt(lambda: _call(nvml, "nvmlShutdown"))


def memory_of(pid: int, reading: Reading) -> int | None:
    """Return the GPU memory that a process holds on all GPUs together, None where no GPU tells.

    In a container the driver counts by the pids of the machine outside, where this finds nothing: None, not 0.

    >>> gpu = Gpu(name="x", memory_used_bytes=9, memory_total_bytes=9, use_ratio=None, processes={7: 5})
    >>> memory_of(7, Reading(gpus=(gpu, gpu), reason=None)), memory_of(8, Reading(gpus=(gpu,), reason=None))
    (10, None)
    """
    found = [gpu.processes[pid] for gpu in reading.gpus if gpu.processes is not None and pid in gpu.processes]
    return sum(found) if found else None


def _gpu(nvml: Any, index: int) -> Gpu | None:
    handle = ctypes.c_void_p()
    if _attempt(lambda: _call(nvml, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))):
        return None
    name = ctypes.create_string_buffer(_NAME_BYTES)
    memory, use = _Memory(), _Utilisation()
    unnamed = _attempt(lambda: _call(nvml, "nvmlDeviceGetName", handle, name, ctypes.c_uint(_NAME_BYTES)))
    no_memory = _attempt(lambda: _call(nvml, "nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory)))
    no_use = _attempt(lambda: _call(nvml, "nvmlDeviceGetUtilizationRates", handle, ctypes.byref(use)))
    return Gpu(
        name=f"GPU {index}" if unnamed else name.value.decode(errors="replace"),
        memory_used_bytes=None if no_memory else int(memory.used),
        memory_total_bytes=None if no_memory else int(memory.total),
        use_ratio=None if no_use else use.gpu / 100.0,
        processes=_processes(nvml, handle),
    )


def _processes(nvml: Any, handle: Any) -> dict[int, int] | None:
    for function in ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"):
        try:
            ask = getattr(nvml, function)
        except AttributeError:
            continue
        count = ctypes.c_uint(0)
        code = ask(handle, ctypes.byref(count), None)
        if code == _SUCCESS:
            return {}
        if code != _INSUFFICIENT_SIZE:
            return None
        # Others may start meanwhile.
        count = ctypes.c_uint(min(count.value + 16, _MAX_PROCESSES))
        found = (_Process * count.value)()
        if ask(handle, ctypes.byref(count), found) != _SUCCESS:
            return None
        return {int(one.pid): int(one.used) for one in found[: count.value] if one.used != _NOT_AVAILABLE}
    return None


def _attempt(call: Callable[[], None]) -> str | None:
    """Return why a call failed, None where it did not."""
    try:
        call()
    except _NvmlError as error:
        return str(error)
    return None


def _call(nvml: Any, function: str, *arguments: Any) -> None:
    try:
        code = int(getattr(nvml, function)(*arguments))
    except AttributeError:
        raise _NvmlError(f"{LIBRARY} has no {function}; its driver is too old") from None
    if code != _SUCCESS:
        raise _NvmlError(f"{function} answered {code}: {_MEANINGS.get(code) or _words(nvml, code)}")


def _words(nvml: Any, code: int) -> str:
    try:
        nvml.nvmlErrorString.restype = ctypes.c_char_p
        said = nvml.nvmlErrorString(ctypes.c_int(code))
    except AttributeError:
        return "no reason given"
    return str((said or b"no reason given").decode(errors="replace"))
