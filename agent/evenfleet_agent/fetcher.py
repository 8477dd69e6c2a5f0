"""Start the child that downloads releases, and hear how it ended.

The child is `fetch`, which this never imports: HTTP, digests and signatures cost memory that the supervisor does not have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from evenfleet_agent.rollout import Cause
from evenfleet_shared.messages import ReleaseSignature

# SIGKILL works at once; only a process stuck in a driver takes longer, and is then left to the kernel.
REAP_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOrder:
    """A release to bring into a slot.

    `url` is where artifacts are served by their sha256; `trusted_keys` are files of public keys, of which one must have
    signed the release where there are any. `runtime` is what is to run it, in the environment of `python` (None: this one).
    Paths are absolute: the child runs elsewhere.
    """

    url: str
    release: str
    variants: tuple[str, ...]
    directory: str
    runtime: str | None = None
    python: str | None = None
    signatures: tuple[ReleaseSignature, ...] = ()
    trusted_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FetchResult:
    """How a download ended; why and by whose fault, where it failed."""

    ok: bool
    cause: Cause = "link"
    reason: str = ""


class Fetcher(Protocol):
    """Something that brings releases into slots, one at a time."""

    def start(self, order: FetchOrder) -> None:
        """Begin.

        Raises:
            OSError: No process can be started; nothing is under way.
        """

    def fileno(self) -> int | None:
        """Return a descriptor that becomes readable when there is a result; None while nothing is under way."""

    def result(self) -> FetchResult | None:
        """Return how it ended, None while it goes on or nothing was begun."""

    def stop(self) -> None:
        """Give up what is under way."""


class FetchProcess:
    """A `Fetcher` that starts `fetch` as a child, with this Python unless it is given another."""

    def __init__(self, python: str = sys.executable) -> None:
        self._python = python
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, order: FetchOrder) -> None:
        self.stop()
        child = subprocess.Popen(
            [self._python, "-m", "evenfleet_agent.fetch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Not from the working directory, which may be one that runners can write: a file called msgspec.py in it is
            # not msgspec.
            cwd="/",
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
        assert child.stdin is not None
        self._child = child
        try:
            # An order is some kilobytes, and a pipe holds 64 of them before it makes one wait.
            with child.stdin:
                child.stdin.write(msgspec.json.encode(order))
        except BrokenPipeError:
            pass  # it has died, which its result will say

    def fileno(self) -> int | None:
        return self._child.stdout.fileno() if self._child and self._child.stdout else None

    def result(self) -> FetchResult | None:
        if self._child is None or self._child.poll() is None:
            return None
        child, self._child = self._child, None
        assert child.stdout is not None
        with child.stdout:
            said = child.stdout.read(65536)
        try:
            return FetchResult(**json.loads(said))
        except (ValueError, TypeError):
            return FetchResult(ok=False, reason=f"the download ended with code {child.returncode} and no word")

    def stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout=REAP_S)
            if self._child.stdout:
                self._child.stdout.close()
            self._child = None
