"""Put a supervisor together on a real device, run it until it is told to stop, and say from outside how it is.

* One agent per state directory: a second one is refused, not let loose on the same outbox.
* SIGTERM and SIGINT end the runners, publish the state `gone` and leave the outbox whole.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from evenfleet_agent import config
from evenfleet_agent import intake as intakes
from evenfleet_agent import outbox as outboxes
from evenfleet_agent import standing as standings
from evenfleet_agent.clock import SystemClock
from evenfleet_agent.config import AgentSettings
from evenfleet_agent.fetcher import FetchProcess
from evenfleet_agent.intake import Intake
from evenfleet_agent.link import purse as purses
from evenfleet_agent.link.mqtt import MqttLink
from evenfleet_agent.link.purse import Purse
from evenfleet_agent.names import boot_word, new_word
from evenfleet_agent.outbox import open_outbox
from evenfleet_agent.runner.process import RunnerProcess
from evenfleet_agent.slots import Slots
from evenfleet_agent.standing import StandingFile
from evenfleet_agent.supervisor import Supervisor, run
from evenfleet_agent.systemd import ServiceManager
from evenfleet_shared.disk import held
from evenfleet_shared.errors import ConfigError, EvenfleetError, StoreError
from evenfleet_shared.messages import Incarnation, Loss

if TYPE_CHECKING:
    from ssl import SSLContext

log = logging.getLogger(__name__)

_LOCK_NAME: Final = "agent.lock"
_LOCK_TRIES: Final = 5
_LOCK_PAUSE_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """An agent seen from outside: whether it runs, how it stands with its collector, and what its outbox holds.

    `connected_s` is how long it has had its broker session, or none, whose reason is in `reason`; `receipt_s` how long ago
    the last receipt came, to the minute. `trouble` is what someone must act on. `variants` says of each in words whether
    it can be measured; `cpu_ratio` is what the agent last took of one processor, measuring included, `budget_ratio` what
    it may take. None is not known, or not since the device's start. `given_up` counts by reason
    all messages that were ever given up, and `losses` names the latest of them.
    """

    running: bool
    connected: bool
    connected_s: float | None
    reason: str | None
    trouble: str | None
    variants: dict[str, str]
    cpu_ratio: float | None
    budget_ratio: float | None
    receipt_s: float | None
    incarnation: Incarnation | None
    last_seq: int
    waiting_messages: int
    waiting_bytes: int
    release: str | None
    given_up: dict[str, int]
    losses: tuple[Loss, ...]


def serve(settings: AgentSettings) -> None:
    """Run the agent until a signal ends it.

    Raises:
        ConfigError: A secret or a certificate that cannot be used.
        StoreError: The state directory cannot be written, or another agent has it.
    """
    state_dir = Path(settings.state_dir)
    with _only_agent(state_dir), _wake_pipe() as (wake, wake_up):
        stopping = False
        boot = boot_word()
        clock = SystemClock()

        def stop(*_: object) -> None:
            nonlocal stopping
            stopping = True

        # The wake-up descriptor makes a signal end the wait; the handler is run before the loop looks.
        signal.set_wakeup_fd(wake_up, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        outbox = open_outbox(
            state_dir,
            boot=boot,
            new_random=new_word,
            max_bytes=settings.outbox.max_bytes,
            jitter=lambda: random.uniform(0.8, 1.2),  # noqa: S311 - spreads a fleet's resends, keeps no secret
            max_age_s=settings.outbox.max_age_s,
            fsync_interval_s=settings.outbox.synced_every_s,
            backfill_per_s=settings.outbox.backfill_per_s,
            uptime_s=clock.uptime_s,
            wall_s=clock.wall_s,
            packed=settings.packed,
        )
        link = MqttLink(
            settings.device,
            settings.broker_address(),
            username=settings.broker.username or settings.device,
            password=_Password(settings),
            keepalive_s=settings.keepalive_s,
            new_session=new_word,
            will=lambda session: supervisor.will(session),  # noqa: PLW0108 - supervisor is made after the link
            sleeping=lambda session: supervisor.sleeping(session),  # noqa: PLW0108 - as above
            wake=lambda: _wake(wake_up),
            uniform=random.random,
            purse=Purse(settings.network.budget_bytes_per_day, state_dir / purses.FILE_NAME, boot, clock.monotonic_s()),
            context=_context(settings),
            protocol=settings.broker.protocol,
        )
        supervisor = Supervisor(
            settings,
            state_dir=state_dir,
            outbox=outbox,
            standing=StandingFile(state_dir / standings.FILE_NAME, boot),
            link=link,
            slots=Slots(state_dir / "slots"),
            fetcher=FetchProcess(),
            new_runner=RunnerProcess,
            clock=clock,
            intake=_intake(settings, state_dir),
        )
        run(supervisor, wake, lambda: stopping, clock, ServiceManager())


def check(settings: AgentSettings, *, by_clock: bool = False) -> None:
    """Look at what `serve` needs, without running anything.

    Args:
        settings: All.
        by_clock: Whether CAs that have expired by this device's clock are wrong, too. An agent on a board that nobody
            visits starts with them all the same, and measures: the clock may be wrong, and the link says what it finds.

    Raises:
        ConfigError: A secret, a certificate or an interpreter that is not there, or not what it should be.
    """
    settings.password()
    context = _context(settings)
    if by_clock and context is not None and settings.broker.ca_file is not None:
        from evenfleet_agent.link import tls

        tls.check_expiry(context, settings.broker.ca_file)
    python = settings.runtime.python
    if python is not None and not os.access(python, os.X_OK):
        raise ConfigError(f"runtime.python is {python}, which is not a program")


def _context(settings: AgentSettings) -> SSLContext | None:
    if not settings.tls:
        return None
    # Loads OpenSSL.
    from evenfleet_agent.link import tls

    broker = settings.broker
    return tls.client_context(ca_file=broker.ca_file, cert_file=broker.cert_file, key_file=broker.key_file)


class _Password:
    """The broker's password as its file has it now, or had it last: a token that is rotated is there at the next session."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._last = settings.password()

    def __call__(self) -> str | None:
        try:
            self._last = self._settings.password()
        except ConfigError as error:
            log.warning("%s; the password that was read before is used", error)
        return self._last


def _intake(settings: AgentSettings, state_dir: Path) -> Intake | None:
    probe = settings.probe
    if not probe.directory:
        return None
    return Intake(Path(probe.directory), kept=state_dir / intakes.KEPT_NAME, budget_ratio=probe.budget_ratio)


def check_state_dir(settings: AgentSettings) -> None:
    """Try whether an agent could use the state directory, and leave nothing behind.

    Raises:
        ConfigError: It cannot be made or written.
    """
    import tempfile  # not for the process that stays for a year

    state_dir = Path(settings.state_dir)
    missing = [path for path in (state_dir, *state_dir.parents) if not path.exists()]
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=state_dir):
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot use state_dir {state_dir}: {error.strerror}; the agent needs to write there"
        ) from None
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def status(settings: AgentSettings) -> Status:
    """Say how an agent is, from its state directory.

    Raises:
        ConfigError: No agent ever ran there.
        StoreError: What it left cannot be read, on a full disk for example.
    """
    state_dir = Path(settings.state_dir)
    try:
        holding = outboxes.look(state_dir)
    except StoreError as error:
        if os.path.exists(state_dir / outboxes.FILE_NAME):  # noqa: PTH110 - False, too, where one may not look
            raise StoreError(f"cannot read {state_dir / outboxes.FILE_NAME}: {error}") from None
        if state_dir.exists() and not os.access(state_dir, os.R_OK | os.X_OK):
            raise StoreError(f"cannot look into state_dir {state_dir}: Permission denied") from None
        raise ConfigError(f"no agent has run yet with state_dir {state_dir}") from None
    release = Slots(state_dir / "slots").release()
    running = _is_locked(state_dir)
    standing = standings.read(state_dir / standings.FILE_NAME)
    if standing and standing.boot != boot_word():
        standing = None
    now_s = SystemClock().monotonic_s()
    reason = standing.reason if standing else "not known"
    return Status(
        running=running,
        connected=running and standing is not None and standing.connected,
        connected_s=now_s - standing.since_s if running and standing else None,
        reason=reason if running else "the agent does not run",
        trouble=standing.trouble if running and standing else None,
        variants=standing.variants if running and standing else {},
        cpu_ratio=standing.cpu_ratio if running and standing else None,
        budget_ratio=standing.budget_ratio if running and standing else None,
        receipt_s=now_s - standing.receipt_s if standing and standing.receipt_s is not None else None,
        incarnation=holding.incarnation,
        last_seq=holding.last_seq,
        waiting_messages=holding.messages,
        waiting_bytes=holding.bytes,
        release=release[1] if release else None,
        given_up=holding.given_up,
        losses=holding.losses,
    )


@contextmanager
def _only_agent(state_dir: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            for _ in range(_LOCK_TRIES):
                try:
                    stack.enter_context(held(state_dir / _LOCK_NAME))
                    break
                except BlockingIOError:
                    time.sleep(_LOCK_PAUSE_S)  # somebody may only be looking
            else:
                raise StoreError(f"another agent runs with state_dir {state_dir}; stop it, or use another directory")
        except OSError as error:
            raise StoreError(
                f"cannot use state_dir {state_dir}: {error.strerror}; the agent needs to write there"
            ) from None
        yield


def _is_locked(state_dir: Path) -> bool:
    try:
        with (state_dir / _LOCK_NAME).open("rb") as file:
            # Shared, so that two who ask do not see each other; for an instant it keeps an agent out, which tries again.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def _wake_pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    try:
        yield read, write
    finally:
        signal.set_wakeup_fd(-1)
        os.close(read)
        os.close(write)


def _wake(descriptor: int) -> None:
    # A pipe that is full holds wake-ups enough.
    with suppress(BlockingIOError):
        os.write(descriptor, b"\0")


def main() -> None:
    """Run the agent of a configuration file: the arguments are CONFIG [-v]."""
    level = logging.INFO if "-v" in sys.argv[2:] else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    try:
        serve(config.load(Path(sys.argv[1]), os.environ, {}))
    except EvenfleetError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
