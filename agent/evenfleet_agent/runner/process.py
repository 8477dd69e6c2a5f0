"""Start the measuring subprocess, watch it, and end it; for a loop in one thread that must never wait.

Decides whether the subprocess is alive and in time. Leaves to others what to ask (`supervisor`, `measure`) and what
answers mean (`window`).

* No call blocks: answers and last words are read as they come, both behind one descriptor.
* A subprocess that says nothing for `silence_max_s` is killed; while it waits for its turn it has `turn_max_s`.
* After an error or `stop` there is no subprocess and no scratch directory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from evenfleet_agent.runner.protocol import (
    Alive,
    FrameBuffer,
    Load,
    Response,
    RunnerSpec,
    WorkerRequest,
    decode_frame,
    encode,
)
from evenfleet_shared.errors import RunnerError

log = logging.getLogger(__name__)

LAST_WORDS_BYTES: Final = 8 * 1024
_CHUNK_BYTES: Final = 65_536
# Read in one go at most: a subprocess that never stops talking must not keep the loop.
_CHUNKS: Final = 300
# SIGKILL works at once; only a process stuck in a driver takes longer, and is then left to the kernel.
_REAP_S: Final = 1.0


class RunnerProcess:
    """See `Runner`.

    Args:
        silence_max_s: Longest time without a sign of life while a request is open. Loading TensorFlow on a small
            board is silent for the better part of a minute.
        turn_max_s: The same while it waits for the lock file.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        silence_max_s: float = 180.0,
        turn_max_s: float = 900.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._silence_max_s = silence_max_s
        self._turn_max_s = turn_max_s
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._frames = FrameBuffer()
        self._last_words = b""
        self._open_requests = 0
        self._deadline_s: float | None = None
        self._scratch: str | None = None
        self._what = "runner"
        # One descriptor for the loop, two behind it.
        self._poll: select.epoll | None = None
        self.stage: str = ""

    @property
    def deadline_s(self) -> float | None:
        """See `Runner`."""
        return self._deadline_s

    @property
    def pid(self) -> int | None:
        """See `Runner`."""
        return self._process.pid if self._process else None

    def start(self, spec: RunnerSpec) -> None:
        """See `Runner`."""
        self.spawn(spec.python, what=f"runner of {spec.runtime} for {Path(spec.artifact).name}")
        try:
            scratch_dir = Path(spec.scratch_dir or tempfile.gettempdir()).absolute()
            located = _located(spec)
        except OSError as error:
            # On a full disk there is no temporary directory, and a working directory may have been removed.
            self._kill()
            raise self._failure(f"cannot be started: {error.strerror or error}") from None
        self._scratch = str(scratch_dir / f"evenfleet-{secrets.token_hex(8)}")
        self.send(Load(spec=located, scratch=self._scratch))

    def spawn(self, python: str | None = None, *, what: str = "runner") -> None:
        """Start the subprocess without asking it for anything.

        Args:
            python: The Python to run it; None is this one.
            what: What to call it in errors.

        Raises:
            RunnerError: The interpreter cannot be started.
        """
        self.stop()
        self._what = what
        program = python or sys.executable
        if os.sep in program:
            program = str(Path(program).absolute())  # not resolved: a virtual environment's Python is a link
        environment = dict(os.environ)
        environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        # A file called numpy.py in the user's directory is not numpy.
        environment["PYTHONSAFEPATH"] = "1"
        try:
            self._process = subprocess.Popen(
                [program, "-m", "evenfleet_agent.runner.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd="/",
                env=environment,
                start_new_session=True,  # the terminal's Ctrl-C is for the one who started us
            )
        except OSError as error:
            raise RunnerError(f"{what} cannot be started with {program}: {error.strerror}") from None
        _offer_to_the_kernel(self._process.pid)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self._poll = select.epoll()
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            self._poll.register(pipe.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        """See `Runner`."""
        if self._poll is None:
            raise RunnerError(f"{self._what} is not running")
        return self._poll.fileno()

    def send(self, request: WorkerRequest) -> None:
        """See `Runner`."""
        if self._process is None:
            raise RunnerError(f"{self._what} is not running")
        assert self._process.stdin is not None
        frame = encode(request)
        try:
            written = os.write(self._process.stdin.fileno(), frame)
        except BlockingIOError:
            written = 0
        except BrokenPipeError:
            raise self._death() from None
        if written != len(frame):
            # The pipe takes 64 KiB and requests are answered one by one: nobody reads at the other end.
            self._kill()
            raise self._failure("does not take requests")
        self._open_requests += 1
        self._deadline_s = self._clock() + self._silence_max_s

    def receive(self) -> list[Response]:
        """See `Runner`."""
        if self._process is None:
            return []
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._hear_last_words(self._process.stderr.fileno())
        answers: list[Response] = []
        ended = False
        try:
            for _ in range(_CHUNKS):
                chunk = _read(self._process.stdout.fileno())
                if not chunk:
                    ended = chunk is not None
                    break
                for body in self._frames.feed(chunk):
                    frame = decode_frame(body)
                    if isinstance(frame, Alive):
                        self.stage = frame.stage
                    else:
                        self._open_requests -= 1
                        answers.append(frame)
                    self._expect(waiting=isinstance(frame, Alive) and frame.stage == "waiting")
        except RunnerError as error:
            self._kill()
            raise self._failure(f"sent {error}") from None
        if answers:
            return answers  # an end that follows them shows at the next call
        if ended:
            raise self._death()
        if self._deadline_s is not None and self._clock() >= self._deadline_s:
            stage = self.stage or "starting"
            self._kill()
            raise self._failure(f"gave no sign of life in time while {stage}, and was killed")
        return answers

    def stop(self) -> None:
        """See `Runner`."""
        self._kill()
        self._last_words = b""

    def _expect(self, *, waiting: bool) -> None:
        limit_s = self._turn_max_s if waiting else self._silence_max_s
        self._deadline_s = self._clock() + limit_s if self._open_requests > 0 else None

    def _hear_last_words(self, descriptor: int) -> None:
        for _ in range(_CHUNKS):
            chunk = _read(descriptor)
            if chunk is None:
                return
            if not chunk:  # closed: it would be readable for ever
                if self._poll is not None:
                    with contextlib.suppress(OSError):
                        self._poll.unregister(descriptor)
                return
            self._last_words = (self._last_words + chunk)[-LAST_WORDS_BYTES:]

    def _death(self) -> RunnerError:
        process = self._process
        assert process is not None
        try:
            # Its pipe is closed, so it is dead or about to be.
            status = process.wait(timeout=_REAP_S)
        except subprocess.TimeoutExpired:
            self._kill()
            return self._failure("closed its pipe and was killed")
        if process.stderr is not None:
            self._hear_last_words(process.stderr.fileno())
        stage = f" while {self.stage}" if self.stage and self._open_requests else ""
        self._kill()
        if status < 0:
            return self._failure(f"was killed by {_signal_name(-status)}{stage}")
        return self._failure(f"ended with exit code {status}{stage}")

    def _failure(self, what: str) -> RunnerError:
        lines = [line.strip() for line in self._last_words.decode(errors="replace").splitlines() if line.strip()]
        if lines:
            log.debug("last words of the %s:\n%s", self._what, "\n".join(lines))
        words = f"; its last words: {' | '.join(lines[-2:])[-300:]}" if lines else ""
        self._last_words = b""
        return RunnerError(f"{self._what} {what}{words}")

    def _kill(self) -> None:
        process, self._process = self._process, None
        self._open_requests = 0
        self._deadline_s = None
        self._frames = FrameBuffer()
        self.stage = ""
        if process is not None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_REAP_S)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        if self._poll is not None:
            self._poll.close()
            self._poll = None
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None


def _offer_to_the_kernel(pid: int) -> None:
    """Make the runner what the kernel kills first for want of memory: never the device's application, nor the agent."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000", encoding="ascii")


def _located(spec: RunnerSpec) -> RunnerSpec:
    """Return the spec with paths that mean the same in the worker's directory."""

    def absolute(file: str | None) -> str | None:
        return None if file is None else str(Path(file).absolute())

    return msgspec.structs.replace(
        spec,
        artifact=str(Path(spec.artifact).absolute()),
        inputs_file=absolute(spec.inputs_file),
        labels_file=absolute(spec.labels_file),
        outputs_file=absolute(spec.outputs_file),
        lock_file=absolute(spec.lock_file),
    )


def _read(descriptor: int) -> bytes | None:
    """Return what is there: None for nothing now, no bytes for nothing any more."""
    try:
        return os.read(descriptor, _CHUNK_BYTES)
    except BlockingIOError:
        return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
