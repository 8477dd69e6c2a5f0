"""Measure one model in a subprocess of its own, so that a crash, a hang or a leak stays in there.

`Runner` is the interface that the supervisor drives; `process.RunnerProcess` is the real one. Values go in, values
come out: what they are stands in `protocol`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from evenfleet_agent.runner.protocol import Response, RunnerSpec, WorkerRequest


class Runner(Protocol):
    """A measuring subprocess in a single-threaded selector loop: no call blocks.

    A runner answers requests one after another. `Loaded` or `Refused` is the answer to `start`, `Measured` or
    `Failed` to each `send`; a loop waits on `fileno`, no longer than until `deadline_s`, then calls `receive`.
    """

    @property
    def deadline_s(self) -> float | None:
        """When the next sign of life is due at the latest, on the monotonic clock; None while nothing is asked."""

    @property
    def pid(self) -> int | None:
        """The subprocess's id, None when there is none."""

    def start(self, spec: RunnerSpec) -> None:
        """Start the subprocess and have it load the model.

        Raises:
            RunnerError: The interpreter cannot be started.
        """

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when `receive` has something to do.

        Raises:
            RunnerError: There is no subprocess.
        """

    def send(self, request: WorkerRequest) -> None:
        """Ask for something.

        Raises:
            RunnerError: The subprocess has died.
        """

    def receive(self) -> Sequence[Response]:
        """Return the answers that have arrived, which may be none.

        Raises:
            RunnerError: The subprocess died, sent nonsense, or missed its deadline and was killed.
        """

    def stop(self) -> None:
        """End the subprocess at once and remove what it left; harmless when there is none."""
