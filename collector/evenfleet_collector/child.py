"""Start children that cannot outlive this process, however it ends; and tell a person what one said last.

They ask the kernel for that through a launcher, which then becomes the wanted program; see `kinship`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from evenfleet_shared import kinship


def bound(command: Sequence[str]) -> list[str]:
    """Return a command line that starts `command` (its first word a path) as a child bound to this process."""
    return [sys.executable, "-I", "-S", kinship.__file__, str(os.getpid()), *command]


def last_line(said: str, otherwise: str = "it said nothing", limit: int | None = 300) -> str:
    r"""Return the last line that a child printed, which is where programs say why they end.

    >>> last_line("working\nno space left\n"), last_line("\n", "it ended with code 3")
    ('no space left', 'it ended with code 3')
    """
    lines = said.strip().splitlines()
    return lines[-1][:limit] if lines else otherwise
