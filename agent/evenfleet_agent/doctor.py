"""Say what this device has to run models with, and what it can be asked beside a measurement: what `doctor` tells.

Decides nothing: it tries. Every runtime builds a real interpreter and runs something small in it, in a subprocess of its
own, for some import fine and fail only then, and some would take this process along. The same again for every delegate that is
asked for. What is not there is told in one line, with the command that installs it where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Union

from evenfleet_agent import runtimes
from evenfleet_agent.host import accelerators, cpufreq, energy, nvml, oom, pressure, processor, system, thermal
from evenfleet_agent.runner.answers import next_answer
from evenfleet_agent.runner.process import RunnerProcess
from evenfleet_agent.runner.protocol import Check, Checked, Failed, Refused, Response
from evenfleet_shared.errors import RunnerError

Told = Union[int, float, str, Mapping[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A runtime, perhaps with a delegate, that was tried; where it does not work, `reason` is why and what to do."""

    runtime: str
    delegate: str | None
    works: bool
    runtime_version: str | None
    python: str | None
    executed: str | None
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Something that a machine may or may not tell; `read` returns what it says now, None where it does not."""

    name: str
    read: Callable[[Path], Told]


# One line per source that a measurement's context may have.
SOURCES: Final = (
    Source(name="os", read=system.os_name),
    Source(name="kernel", read=lambda _: system.kernel()),
    Source(name="machine", read=lambda _: system.machine()),
    Source(name="cpu_model", read=system.cpu_model),
    Source(name="cpu_count", read=lambda _: system.cpu_count()),
    Source(name="memory_total_bytes", read=system.memory_total_bytes),
    Source(name="governor", read=cpufreq.governor),
    Source(name="power_mode", read=cpufreq.power_mode),
    Source(name="temperatures_c", read=lambda root: thermal.temperatures_c(root) or None),
    Source(name="throttle_flags", read=lambda root: thermal.throttling(root).flags),
    Source(name="throttle_events", read=lambda root: thermal.throttling(root).events),
    Source(name="frequency_mhz", read=cpufreq.frequency_mhz),
    Source(name="steal", read=lambda root: "is told" if processor.processor_time(root) else None),
    Source(name="pressure", read=lambda root: "is told" if pressure.waited_s("cpu", root) is not None else None),
    Source(name="energy", read=lambda root: found.method if (found := energy.energy(root)) else None),
    Source(name="out_of_memory_kills", read=oom.kills),
)


def read_sources(root: Path = system.ROOT) -> dict[str, Told]:
    """Return what each source says now; None is one that this machine does not have."""
    return {source.name: source.read(root) for source in SOURCES}


def attached(root: Path = system.ROOT, *, nvml_library: str = nvml.LIBRARY) -> dict[str, str]:
    """Return a line about each kind of accelerator: what is attached, or that nothing is."""
    driver, edge_tpu, nvidia = accelerators.gpu(root), accelerators.edge_tpu(root), nvml.read(nvml_library)
    return {
        "gpu": "no GPU here: no render node in /dev/dri, and no /dev/nvidia0"
        if driver is None
        else f"a GPU with the driver {driver}",
        "nvml": nvidia.reason or "; ".join(_gpu_line(gpu) for gpu in nvidia.gpus),
        "edge_tpu": "no Edge TPU here: none on USB (1a6e:089a or 18d1:9302), and no /dev/apex_0"
        if edge_tpu is None
        else f"an Edge TPU on {edge_tpu}",
    }


def try_runtimes(python: str | None) -> list[Tried]:
    """Try every runtime.

    Args:
        python: The Python of another environment; None is this one.
    """
    return [_try(runtime.name, None, python) for runtime in runtimes.RUNTIMES]


def try_delegates(python: str | None, delegates: Sequence[str], plain: Sequence[Tried]) -> list[Tried]:
    """Try delegates in every runtime that works and takes them.

    Args:
        python: As for `try_runtimes`.
        delegates: As `runtime.delegate` of the configuration takes them.
        plain: What `try_runtimes` returned.
    """
    working = [runtimes.by_name(found.runtime) for found in plain if found.works]
    return [
        _try(runtime.name, delegate, python) for delegate in delegates for runtime in working if runtime.takes(delegate)
    ]


def all_there(plain: Sequence[Tried], delegates: Sequence[str], with_delegates: Sequence[Tried]) -> bool:
    """Return whether at least one runtime works, and every delegate in at least one."""
    used = {found.delegate for found in with_delegates if found.works}
    return any(found.works for found in plain) and used >= set(delegates)


def table(sources: Mapping[str, Told], accelerators_told: Mapping[str, str], tried: Sequence[Tried]) -> str:
    """Return the findings for a person."""
    rows = [(name, _told(told)) for name, told in sources.items()]
    rows += list(accelerators_told.items())
    for found in tried:
        name = found.runtime if found.delegate is None else f"{found.runtime} + {found.delegate}"
        if found.delegate is not None:
            told = f"works: {found.executed} runs a small model" if found.works else f"not used: {found.reason}"
        elif found.works:
            told = f"works, version {found.runtime_version}, Python {found.python}; {found.executed} ran a small model"
        else:
            told = f"missing: {found.reason}"
        rows.append((name, told))
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{told}" for name, told in rows)


def _told(told: Told) -> str:
    if told is None:
        return "this machine does not tell"
    if isinstance(told, Mapping):
        return ", ".join(f"{name} {value:.1f}" for name, value in told.items())
    return str(told)


def _try(runtime: str, delegate: str | None, python: str | None) -> Tried:
    runner = RunnerProcess()
    try:
        runner.spawn(python, what=f"check of {runtime}" + ("" if delegate is None else f" with {delegate}"))
        runner.send(Check(runtime=runtime, delegate=delegate))
        answer: Response = next_answer(runner)
    except RunnerError as error:
        answer = Failed(reason=str(error))
    finally:
        runner.stop()
    if not isinstance(answer, Checked):
        reason = answer.reason if isinstance(answer, Failed | Refused) else "the runner answered what was not asked for"
        return Tried(
            runtime=runtime,
            delegate=delegate,
            works=False,
            runtime_version=None,
            python=None,
            executed=None,
            reason=reason,
        )
    return Tried(
        runtime=runtime,
        delegate=delegate,
        # A delegate that is not used leaves the model to the CPU; one that took all or part of it is told as running it.
        works=delegate is None or answer.accelerator_executed != "cpu",
        runtime_version=answer.runtime_version,
        python=answer.python,
        executed=answer.accelerator_executed,
        reason=answer.fallback_reason,
    )


def _gpu_line(gpu: nvml.Gpu) -> str:
    used, total = gpu.memory_used_bytes, gpu.memory_total_bytes
    memory = "memory not told" if used is None or total is None else f"{used / 1e6:.0f} of {total / 1e6:.0f} MB used"
    return f"{gpu.name}, {memory}" + ("" if gpu.use_ratio is None else f", {gpu.use_ratio:.0%} busy")
