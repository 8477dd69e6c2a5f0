"""Start children that cannot outlive this process, however it ends.

Linux signals a child when its parent dies, if the child asks for it. It asks through a launcher that then becomes the
wanted program: asking between fork and exec is not safe in a process with threads.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

# The parent may have died before the child asked; and where there is no prctl nothing is promised.
_LAUNCHER: Final = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None)
if hasattr(libc, "prctl"):
    libc.prctl(1, int(signal.SIGKILL))
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def bound(command: Sequence[str]) -> list[str]:
    """Return a command line that starts `command` (its first word a path) as a child bound to this process."""
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
