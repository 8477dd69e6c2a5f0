"""Read what the machine and its operating system are: /proc, /etc/os-release, uname."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Final

ROOT: Final = Path("/")
_MAX_TEXT: Final = 200


def os_name(root: Path = ROOT) -> str:
    """Return the distribution's name for itself, or else the kernel's.

    Source:
        os-release(5).
    """
    for place in ("etc/os-release", "usr/lib/os-release"):
        text = read_text(root / place) or ""
        found = re.search(r"^PRETTY_NAME=[\"']?(.*?)[\"']?$", text, re.MULTILINE)
        if found and found[1]:
            return found[1][:_MAX_TEXT]
    return platform.system() or "unknown"


def kernel() -> str:
    """Return the kernel's release."""
    return os.uname().release[:_MAX_TEXT]


def machine() -> str:
    """Return the instruction set, ``x86_64`` or ``aarch64`` for example."""
    return os.uname().machine[:_MAX_TEXT]


def cpu_model(root: Path = ROOT) -> str | None:
    """Return the processor's name; on boards whose processor says none, the board's."""
    info = read_text(root / "proc/cpuinfo", 65_536) or ""
    found = re.search(r"^(?:model name|Model|Hardware|cpu model)\s*:\s*(.+)$", info, re.MULTILINE)
    board = read_text(root / "proc/device-tree/model")
    name = found[1] if found else board
    return " ".join(name.replace("\0", " ").split())[:_MAX_TEXT] if name else None


def cpu_count() -> int:
    """Return the processors that this process may use."""
    return len(os.sched_getaffinity(0))


def memory_total_bytes(root: Path = ROOT) -> int:
    """Return the machine's memory."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", read_text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def read_text(path: Path, limit_bytes: int = 8_192) -> str | None:
    """Return the start of a small file, None where there is none or it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(limit_bytes).decode(errors="replace").strip()
    except OSError:
        return None


def find(directory: Path, pattern: str) -> list[Path]:
    """Return the files that a pattern finds, in order; none where the kernel does not let them be looked for.

    A processor that is switched off for heat takes its folder along, perhaps while we look.
    """
    try:
        return sorted(directory.glob(pattern))
    except OSError:
        return []
