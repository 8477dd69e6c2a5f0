"""A machine that is always the same, and takes of the processor what the test says."""

from __future__ import annotations

from collections.abc import Sequence

from evenfleet_agent.config import AgentSettings
from evenfleet_agent.host.conditions import Look
from evenfleet_agent.host.thermal import Throttling
from evenfleet_agent.machine import Taken
from evenfleet_agent.runner.protocol import Loaded
from evenfleet_shared.messages import RunContext


class FakeMachine:
    """A `Machine`."""

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self.supervisor_cpu_s = 0.0
        self.resident: dict[int, int] = {}
        self.ooms: int | None = 0
        self.governor: str | None = None
        self.kernel = "6.1.0"
        self.throttling = Throttling(flags=None, events=None)

    def look(self) -> Look:
        return Look(
            at_s=0.0,
            governor=self.governor,
            frequency_mhz=None,
            temperature_c=None,
            throttling=self.throttling,
            processor_time=None,
            cpu_waited_s=None,
            memory_waited_s=None,
            io_waited_s=None,
        )

    def taken(self, runners: Sequence[int]) -> Taken:
        return Taken(cpu_s=self.cpu_s, supervisor_cpu_s=self.supervisor_cpu_s, supervisor_rss_bytes=26_000_000)

    def resident_bytes(self, pid: int) -> int | None:
        return self.resident.get(pid)

    def out_of_memory_kills(self) -> int | None:
        return self.ooms

    def run_context(self, settings: AgentSettings, loaded: Loaded) -> RunContext:
        return RunContext(
            device_class=settings.device_class,
            runtime=settings.runtime.name,
            runtime_version=loaded.runtime_version,
            accelerator_requested=loaded.accelerator_requested,
            accelerator_executed=loaded.accelerator_executed,
            delegated_ratio=loaded.delegated_ratio,
            fallback_reason=loaded.fallback_reason,
            threads=settings.runtime.threads,
            governor=self.governor,
            power_mode=None,
            os="Debian GNU/Linux 12 (bookworm)",
            kernel=self.kernel,
            machine="x86_64",
            cpu_model="a processor",
            cpu_count=4,
            memory_total_bytes=4 << 30,
            python=loaded.python,
            attributes=dict(settings.attributes),
        )
