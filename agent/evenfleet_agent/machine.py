"""What the agent asks its machine while it runs: in which condition it is, and what the agent takes of it.

`Machine` is what the loop is given; `SystemMachine` reads it from `host`. What a machine does not tell is None.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from evenfleet_agent import host
from evenfleet_agent.config import AgentSettings
from evenfleet_agent.host import conditions, oom, system, usage
from evenfleet_agent.host.conditions import Look
from evenfleet_agent.runner.protocol import Loaded
from evenfleet_shared.messages import RunContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What the agent has taken: `cpu_s` of all its processes since it began, those that have ended too; memory now."""

    cpu_s: float
    supervisor_cpu_s: float
    supervisor_rss_bytes: int


class Machine(Protocol):
    """The machine that an agent runs on."""

    def look(self) -> Look:
        """Return how the machine is now."""

    def taken(self, runners: Sequence[int]) -> Taken:
        """Return what this process, those runners and all children before them have taken."""

    def resident_bytes(self, pid: int) -> int | None:
        """Return the memory that a process has, None where it has ended."""

    def out_of_memory_kills(self) -> int | None:
        """Return how often the kernel has killed for want of memory since boot."""

    def run_context(self, settings: AgentSettings, loaded: Loaded) -> RunContext:
        """Return what a measurement depends on beside the model, as it is now."""


def run_context(
    loaded: Loaded,
    *,
    runtime: str,
    threads: int,
    device_class: str = "unclassified",
    attributes: Mapping[str, str] = MappingProxyType({}),
    root: Path = system.ROOT,
) -> RunContext:
    """Return what a measurement depends on beside the model.

    Args:
        loaded: What the runner said of it.
        runtime: The one that it was asked for.
        threads: As it was asked for.
        device_class: From the configuration, like `attributes`.
        attributes: The operator's own, to look for causes in.
        root: Of the file system.
    """
    return host.run_context(
        device_class=device_class,
        runtime=runtime,
        runtime_version=loaded.runtime_version,
        python=loaded.python,
        accelerator_requested=loaded.accelerator_requested,
        accelerator_executed=loaded.accelerator_executed,
        delegated_ratio=loaded.delegated_ratio,
        fallback_reason=loaded.fallback_reason,
        threads=threads,
        attributes=attributes,
        root=root,
    )


class SystemMachine:
    """The real one."""

    def __init__(self, root: Path = system.ROOT) -> None:
        self._root = root

    def look(self) -> Look:
        return conditions.look(self._root)

    def taken(self, runners: Sequence[int]) -> Taken:
        own = usage.usage(os.getpid(), self._root)
        alive = [usage.usage(pid, self._root) for pid in runners]
        # A child's time is its parent's once it has ended and was waited for: each is counted in one place.
        times = os.times()
        supervisor_cpu_s = times.user + times.system
        ended_cpu_s = times.children_user + times.children_system
        return Taken(
            cpu_s=supervisor_cpu_s + ended_cpu_s + sum(one.cpu_s for one in alive if one),
            supervisor_cpu_s=supervisor_cpu_s,
            supervisor_rss_bytes=own.rss_bytes if own else 0,
        )

    def resident_bytes(self, pid: int) -> int | None:
        found = usage.usage(pid, self._root)
        return found.rss_bytes if found else None

    def out_of_memory_kills(self) -> int | None:
        return oom.kills(self._root)

    def run_context(self, settings: AgentSettings, loaded: Loaded) -> RunContext:
        return run_context(
            loaded,
            runtime=settings.runtime.name,
            threads=settings.runtime.threads,
            device_class=settings.device_class,
            attributes=settings.attributes,
            root=self._root,
        )
