"""What the tests of `evenfleet-agent measure` share: models to be found at a path, and measured in a hurry. Not a fake."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from evenfleet_agent import targets as finding
from evenfleet_agent.runner.process import RunnerProcess
from evenfleet_agent.runner.protocol import RunnerSpec
from evenfleet_agent.targets import Target

TEMPLATE: Final = RunnerSpec(runtime="auto", artifact="", format="tflite", warm_up_max_s=0.01)


def targets(
    model: Path, *, runtime: str = "auto", template: RunnerSpec = TEMPLATE, variants: Sequence[str] = ()
) -> list[Target]:
    return finding.find_targets(model, runtime=runtime, template=template, variants=variants)


def silent(name: str, stage: str) -> None:
    """Show no progress."""


@contextmanager
def fresh_runner() -> Iterator[RunnerProcess]:
    """Yield a runner that is not started, and end what it was started for."""
    made = RunnerProcess()
    try:
        yield made
    finally:
        made.stop()
