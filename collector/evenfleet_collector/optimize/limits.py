"""Keep a build within the cores and the memory that it was given.

Cores are the kernel's business: the process and its children are bound to so many of them, and TensorFlow starts no more
threads than that. Memory is watched, since no limit of the kernel's counts a process with its children and lets it end
in order: whoever goes over it is interrupted, and ends as if by Ctrl-C, with what was finished kept in the cache.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator
from typing import Final

import psutil

from evenfleet_shared.errors import ConfigError, ResourceError

_LOOK_EVERY_S: Final = 0.2
# A conversion in C++ does not see an interruption before it ends; memory does not wait for that.
_AT_MOST_OVER: Final = 1.25
_UNITS: Final = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


def parse_size(text: str, what: str) -> int:
    """Read a size in bytes.

    Raises:
        ConfigError: It is none.

    >>> parse_size("4GB", "--memory"), parse_size("512 MiB", "--memory")
    (4000000000, 536870912)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) == 0.0:
        raise ConfigError(f"{what} {text}: expected a size above 0, such as 4GB or 512MiB")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


def use_cores(cores: int) -> None:
    """Bind this process and all that it starts to so many of the cores that it may use.

    Raises:
        ConfigError: There are fewer, or the system cannot do that.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigError("--cores needs Linux; leave it out")
    allowed = sorted(os.sched_getaffinity(0))
    if cores > len(allowed):
        raise ConfigError(f"--cores {cores}: this process may use {len(allowed)}; give at most that")
    # Threads that numpy's BLAS started when it was imported are not bound by what binds the one that asks.
    for thread in psutil.Process().threads():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread.id, allowed[:cores])


@contextlib.contextmanager
def memory_limit(limit_bytes: int | None) -> Iterator[None]:
    """Interrupt the block when this process and its children together hold more than that.

    Raises:
        ResourceError: They did.
    """
    if limit_bytes is None:
        yield
        return
    watch = _Watch(limit_bytes)
    watch.start()
    try:
        yield
    except KeyboardInterrupt:
        if watch.exceeded_bytes is None:
            raise
        raise ResourceError(watch.message()) from None
    finally:
        watch.end()


class _Watch(threading.Thread):
    def __init__(self, limit_bytes: int) -> None:
        super().__init__(name="memory-limit", daemon=True)
        self._limit_bytes = limit_bytes
        self._ended = threading.Event()
        self.exceeded_bytes: int | None = None
        # Descriptor 2 leads to a log while TensorFlow talks (`quiet`), which is when an interruption is not seen.
        self._terminal = os.dup(2)

    def run(self) -> None:
        while not self._ended.wait(_LOOK_EVERY_S):
            used_bytes = held_bytes()
            if used_bytes > self._limit_bytes and self.exceeded_bytes is None:
                self.exceeded_bytes = used_bytes
                # A real signal: the main thread may be waiting for a child.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            if used_bytes > self._limit_bytes * _AT_MOST_OVER:
                os.write(self._terminal, f"evenfleet: {self.message()}\n".encode())
                os._exit(1)  # children are bound to this process and go with it

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self.join()
        os.close(self._terminal)

    def message(self) -> str:
        """Say what happened."""
        return (
            f"the build holds {(self.exceeded_bytes or 0) / 1e9:.2f} GB, --memory allows "
            f"{self._limit_bytes / 1e9:.2f} GB; what was finished is in the cache, so the same command with more goes on "
            "from there"
        )


def held_bytes() -> int:
    """Return the resident memory of this process and its children."""
    here = psutil.Process()
    total = 0
    for process in (here, *here.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total
