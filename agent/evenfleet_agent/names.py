"""Name what has no name of its own: a session, an incarnation, this boot of the device."""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from pathlib import Path


def new_word() -> str:
    """Return a random word for an incarnation or a session."""
    return secrets.token_hex(8)


def boot_word() -> str:
    """Return a name for this boot of the device: the kernel's, or one made of when it was."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        booted_s = math.floor((time.time() - time.monotonic()) / 10)
        return hashlib.sha256(str(booted_s).encode()).hexdigest()[:32]
