"""Print what a device costs in bytes a day at the broker's socket, both ways, in the default and in the metered mode.

Counted at a real socket: the device's own link speaks to a real collector and its nats-server, sends its birth, its context and
full windows (1,000 latencies in a sketch, 10 classes, every field that an agent fills in), one after the other, each until the
receipt for it is there, as it is when they are minutes apart; and to a nats-server over TLS, for what TLS adds to each packet and
to the handshake. A day is reckoned from these: one session with birth and context, as many windows as fit into it, a ping
for each keepalive that has no window in it. Without downloads, which do not come over MQTT, and without commands.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from evenfleet_agent.config import NetworkSettings
from evenfleet_agent.link import Connected, Received
from evenfleet_agent.link.tls import client_context
from evenfleet_shared import messages
from evenfleet_shared.messages import Conditions, Cost, Leak, Network, Overhead, Phase, Receipt, Window
from fakes import uplink
from fakes.certificates import Authority
from fakes.link_ends import DEVICE, Ends, link_to
from fakes.mqtt_servers import Tls, running

WINDOWS = 24
DAY_S = 86_400.0


@dataclass(frozen=True)
class Mode:
    """A way to report, and the most that a day of it may cost; None for what is only told."""

    name: str
    packed: bool
    window_s: float
    keepalive_s: int
    at_most_bytes: int | None


METERED = NetworkSettings()
MODES = (
    Mode("default", True, 300.0, 30, 1_000_000),
    Mode("default but JSON", False, 300.0, 30, None),
    Mode("metered", True, METERED.metered_window_length_s, METERED.metered_keepalive_s, 300_000),
)


@dataclass(frozen=True)
class Costs:
    """Bytes at the socket, both ways together."""

    session: float
    window: float
    ping: float


def main() -> int:
    """Measure, print, and return 4 if a mode costs more than it may."""
    met = True
    for mode in MODES:
        plain = in_the_clear(mode)
        over_tls = with_tls(mode, plain)
        for over, costs in (("in the clear", plain), ("over TLS", over_tls)):
            met &= report(mode, over, costs)
    return 0 if met else 4


def report(mode: Mode, over: str, costs: Costs) -> bool:
    """Print a day; return whether it costs no more than it may."""
    windows = DAY_S / mode.window_s
    # Paho pings when either direction was silent for a keepalive.
    pings = windows * max(0.0, math.floor(mode.window_s / mode.keepalive_s))
    day = costs.session + windows * costs.window + pings * costs.ping
    met = mode.at_most_bytes is None or day <= mode.at_most_bytes
    bound = "" if mode.at_most_bytes is None else f" (at most {mode.at_most_bytes / 1000:.0f})"
    print(
        f"{mode.name}, {over}: {day / 1000:.0f} kB a day{bound}:"
        f" {windows:.0f} windows with their receipts of {costs.window:.0f} B, {pings:.0f} pings of {costs.ping:.0f} B,"
        f" a session of {costs.session / 1000:.1f} kB{'' if met else '  MISSED'}"
    )
    return met


def in_the_clear(mode: Mode) -> Costs:
    """Speak to a real collector."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        address = stack.enter_context(collector(directory))
        will = partial(state, mode)
        ends = stack.enter_context(link_to(address, directory=directory, keepalive_s=2, will=will))
        ends.until(Connected)
        ends.link.publish("state", state(mode, "abcdef01"), retain=True)
        send(ends, "context", encoded(uplink.context(1, device=DEVICE), mode), 1)
        session = carried(ends)
        for number in range(WINDOWS):
            send(ends, "window", encoded(window(number + 2), mode), number + 2)
        windows = carried(ends)
        time.sleep(6.5)  # three keepalives
        silence = ends.link.network()
        assert silence.round_trips >= 2
        pings = (silence.sent_bytes + silence.received_bytes) / silence.round_trips
    return Costs(session, windows / WINDOWS, pings)


def with_tls(mode: Mode, plain: Costs) -> Costs:
    """Add what TLS adds, from the same packets to the same server without a collector."""
    found = []
    for over in ("", "tls"):
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            authority = Authority(directory) if over else None
            shown = Tls(authority.issue("localhost")) if authority else None
            context = client_context(ca_file=authority.file) if authority else None
            with (
                running("nats-server", directory, shown) as server,
                link_to(server.address, directory=directory, context=context, keepalive_s=2) as ends,
            ):
                ends.until(Connected)
                ends.link.publish("state", state(mode, "abcdef01"), retain=True)
                settle(ends, 1)
                session = carried(ends)
                for number in range(WINDOWS):
                    ends.until_taken("window", encoded(window(number + 2), mode))
                    settle(ends, 1)
                windows = carried(ends)
                time.sleep(6.5)
                silence = ends.link.network()
                pings = (silence.sent_bytes + silence.received_bytes) / silence.round_trips
                found.append((session, windows / WINDOWS, pings))
    (session, window_bytes, ping), (tls_session, tls_window, tls_ping) = found
    # A receipt is a packet of its own: as much as half of what a window and its acknowledgement have more.
    more = (tls_window - window_bytes) * 1.5
    return Costs(plain.session + tls_session - session, plain.window + more, plain.ping + tls_ping - ping)


@contextmanager
def collector(directory: Path) -> Any:
    """Run one, and give its broker's address."""
    serve = subprocess.Popen(
        [
            *(sys.executable, "-m", "evenfleet_collector", "serve", "--json", "--anonymous-devices"),
            *("--data", str(directory / "data"), "--http-port", "0", "--mqtt-port", "0"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert serve.stdout is not None
        host, _, port = json.loads(serve.stdout.readline())["mqtt"].rpartition(":")
        yield host, int(port)
    finally:
        serve.terminate()
        serve.wait()


def send(ends: Ends, kind: str, payload: bytes, seq: int) -> None:
    """Publish a message, and read until a receipt has it."""
    ends.until_taken(kind, payload)
    while True:
        received = ends.until(Received)
        message = messages.decode(received.topic.rpartition("/")[2], received.payload)
        if isinstance(message, Receipt) and any(part.contiguous >= seq for part in message.incarnations):
            return


_seen = {"bytes": 0, "trips": 0}


def settle(ends: Ends, trips: int) -> None:
    """Wait until so many messages are acknowledged."""
    deadline_s = time.monotonic() + 10.0
    while _seen["trips"] < trips:
        assert time.monotonic() < deadline_s
        _take(ends)
        threading.Event().wait(0.005)
    _seen["trips"] = 0


def carried(ends: Ends) -> int:
    """Return what went over the socket since the last call."""
    _take(ends)
    total, _seen["bytes"], _seen["trips"] = _seen["bytes"], 0, 0
    return total


def _take(ends: Ends) -> None:
    said = ends.link.network()
    _seen["bytes"] += said.sent_bytes + said.received_bytes
    _seen["trips"] += said.round_trips


def encoded(message: messages.Uplink, mode: Mode) -> bytes:
    """Return a message in the form of the mode."""
    return messages.encode(message, compact=True, packed=mode.packed)


def state(mode: Mode, session: str) -> bytes:
    """Return what a session begins with."""
    return encoded(uplink.state(device=DEVICE, session=session, contexts=(uplink.digest("a"),)), mode)


def window(seq: int) -> Window:
    """Return a window in which everything is told."""
    draw = random.Random(seq)
    # The clock counts nanoseconds.
    samples_ms = [round(draw.lognormvariate(1.5, 0.25), 6) for _ in range(1000)]
    latency = uplink.latency(samples_ms)
    counts = tuple(draw.randrange(80, 120) for _ in range(10))
    errors = sum(draw.randrange(5, 15) for _ in range(10))
    wrong = tuple(errors // 10 + (number < errors % 10) for number in range(10))
    accuracy = messages.Accuracy(
        golden=uplink.digest("golden"),
        n=sum(counts) + errors,
        errors=errors,
        tp=counts,
        fp=wrong,
        fn=wrong,
        discordant_b=3,
        discordant_c=2,
        hamming=0,
        prediction_digest=uplink.digest("predictions"),
        agreement=messages.Agreement(
            noise_class="within-rounding",
            top1_ratio=0.998,
            max_abs_diff=0.0123456789,
            rms_diff=0.00123456789,
            lsb_max=1.0,
        ),
    )
    memory = tuple(
        messages.MemoryReading(kind=kind, bytes=54_321_987, method="VmHWM of the runner, reset before")
        for kind in ("after_load", "peak_rss", "arena")
    )
    return uplink.window(
        seq,
        device=DEVICE,
        latency=latency,
        exceedances=(messages.Exceedance(limit_ms=7.5, limit_revision=3, exceed=12, n=1000),),
        accuracy=accuracy,
        memory=memory,
        comparability="0123456789abcdef",
        phases=tuple(
            Phase(name=name, n=1000, p50_ms=draw.random(), p95_ms=draw.random()) for name in ("preprocess", "queue")
        ),
        conditions=Conditions(
            steal_ratio=draw.random(),
            cpu_pressure_ratio=draw.random(),
            memory_pressure_ratio=draw.random(),
            io_pressure_ratio=draw.random(),
            frequency_mhz=1500.0,
            temperature_c=54.321,
        ),
        cost=Cost(
            cpu_ms=draw.random(), macs=12_345_678, predicted_ms=draw.random(), predicted_error_ratio=draw.random()
        ),
        leak=Leak(windows=24, bytes_per_hour=draw.random(), low_bytes_per_hour=-1.5, high_bytes_per_hour=draw.random()),
        network=Network(
            round_trips=2,
            rtt_p50_ms=draw.random(),
            rtt_max_ms=draw.random(),
            throughput_bytes_per_s=draw.random(),
            unacknowledged_ratio=0.0,
            sent_bytes=3000,
            received_bytes=400,
        ),
        overhead=Overhead(
            length_s=300.0,
            supervisor_cpu_ratio=draw.random(),
            cpu_ratio=draw.random(),
            budget_ratio=0.05,
            supervisor_rss_bytes=28_765_432,
            outbox_bytes=4321,
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
