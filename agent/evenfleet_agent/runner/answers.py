"""Wait for a runner where there is nothing else to do: what the commands do that have no loop."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final

from evenfleet_agent.runner import Runner
from evenfleet_agent.runner.protocol import Response

_POLL_S: Final = 0.2


def _untold() -> None:
    pass


def next_answer(runner: Runner, waiting: Callable[[], None] = _untold) -> Response:
    """Return the runner's next answer, however long it takes.

    Args:
        runner: It was asked something.
        waiting: Called some times a second until there is one.

    Raises:
        RunnerError: The subprocess died, sent nonsense, or missed its deadline and was killed.
    """
    while True:
        select.select([runner], [], [], _POLL_S)
        answers = runner.receive()
        if answers:
            return answers[0]
        waiting()
