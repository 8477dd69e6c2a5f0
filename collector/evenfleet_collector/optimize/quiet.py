"""Keep what TensorFlow's C++ prints away from the terminal, and at hand for when something fails.

Redirects the process's file descriptors 1 and 2, which Python's own redirection does not reach. So for that while
nothing else of the process should print there; a progress bar writes to a duplicate made before (`commands.optimize`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_TAIL_BYTES: Final = 4096


class NoiseLog:
    """One file that takes all chatter."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def taking(self) -> Iterator[None]:
        """Send everything that is printed on descriptors 1 and 2 to the log, until the block ends."""
        _flush()
        with (
            self._path.open("ab") as log,
            warnings.catch_warnings(),
            _descriptor_replaced(1, log.fileno()),
            _descriptor_replaced(2, log.fileno()),
        ):
            warnings.simplefilter("ignore")
            try:
                yield
            finally:
                _flush()

    def last_line(self) -> str:
        """Return the last line that says what went wrong, as far as the log has one; else an empty string."""
        try:
            with self._path.open("rb") as log:
                log.seek(max(0, self._path.stat().st_size - _TAIL_BYTES))
                lines = log.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        telling = [line.strip() for line in lines if "error" in line.lower()]
        return telling[-1][:200] if telling else ""


@contextlib.contextmanager
def _descriptor_replaced(descriptor: int, replacement: int) -> Iterator[None]:
    saved = os.dup(descriptor)
    try:
        os.dup2(replacement, descriptor)
        yield
    finally:
        os.dup2(saved, descriptor)
        os.close(saved)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or a pipe whose reader is gone
            stream.flush()
