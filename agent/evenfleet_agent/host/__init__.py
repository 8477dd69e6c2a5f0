"""What a measurement depended on beside the model: the machine, read from small files, one source per module.

Absent is None, never zero. Imports neither numpy nor a runtime: the supervisor loads this.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evenfleet_agent.host import cpufreq, system
from evenfleet_shared.messages import RunContext

_MAX_REASON = 500


def run_context(
    *,
    device_class: str,
    runtime: str,
    runtime_version: str,
    python: str,
    accelerator_requested: str,
    accelerator_executed: str,
    delegated_ratio: float | None,
    fallback_reason: str | None,
    threads: int,
    attributes: Mapping[str, str],
    root: Path = system.ROOT,
) -> RunContext:
    """Describe the machine as it is now, around what the runner said about the loaded model.

    Args:
        device_class: From the configuration.
        runtime: Its name.
        runtime_version: As the runner found it, like the next five.
        python: The runner's Python.
        accelerator_requested: What the runtime was allowed to use.
        accelerator_executed: What it does use.
        delegated_ratio: The accelerator's share of the operators.
        fallback_reason: Why not all.
        threads: Of the interpreter.
        attributes: The operator's own, to look for causes in.
        root: Of the file system.
    """
    return RunContext(
        device_class=device_class,
        runtime=runtime,
        runtime_version=runtime_version,
        accelerator_requested=accelerator_requested,
        accelerator_executed=accelerator_executed,
        delegated_ratio=delegated_ratio,
        fallback_reason=None if fallback_reason is None else fallback_reason[:_MAX_REASON],
        threads=threads,
        governor=cpufreq.governor(root),
        power_mode=cpufreq.power_mode(root),
        os=system.os_name(root),
        kernel=system.kernel(),
        machine=system.machine(),
        cpu_model=system.cpu_model(root),
        cpu_count=system.cpu_count(),
        memory_total_bytes=system.memory_total_bytes(root),
        python=python,
        attributes=dict(attributes),
    )
