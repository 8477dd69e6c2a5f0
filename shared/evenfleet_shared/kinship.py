"""Bind a process to its parent: it ends when the parent does, however that one ends.

Linux signals a child when its parent dies, if the child asks for it. Elsewhere nothing is promised. Loads nothing of
ours and nothing that is not in every Python, for it is also run as a program of its own:

    python -I -S kinship.py PARENT PROGRAM ARGUMENT...

asks, and becomes PROGRAM: for programs that do not ask themselves. Asking between fork and exec instead is not safe in
a process with threads.
"""

from __future__ import annotations

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends."""
    import ctypes  # half a megabyte, which only the child pays for

    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def main() -> None:
    """Become the program in the arguments, bound to the process that started this one."""
    parent, *command = sys.argv[1:]
    die_with_parent()
    # It may have died before this asked.
    if os.getppid() != int(parent):
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - our own caller's program


if __name__ == "__main__":
    main()
