"""Start children that cannot outlive this process, however it ends.

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
