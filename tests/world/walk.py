"""Write docs/walk.md: one window's way from the interpreter to the flag, with the bytes at every hop.

    PYTHONPATH=tests python -m world.walk > docs/walk.md

The window goes through the world of `world.world`: real rules, real shells, a fake clock and broker, a runner that
answers by a formula. So the same bytes come out every time, and `test_walk` holds the page to them.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from evenfleet_agent.runner import protocol
from evenfleet_agent.runner.protocol import Measured, RunnerSpec
from evenfleet_shared import messages, topics
from evenfleet_shared.messages import Window
from fakes.runners import steady
from fakes.tiny_release import write_release
from world.world import DeviceLife, World

DEVICE = "board-2"
# What differs between machines and runs stands as these words instead.
CONTEXT_WORD = "c" * 64
RELEASE_WORD = "d" * 64
ARTIFACT_WORD = "a" * 64


_COLUMNS = (
    "device",
    "counter",
    "random",
    "seq",
    "variant",
    "n",
    "p50_ms",
    "p95_ms",
    "errors",
    "golden_n",
    "peak_bytes",
)


class Hop(NamedTuple):
    """One section of the page: `functions` are module:qualified names, which the test imports."""

    title: str
    functions: tuple[str, ...]
    text: str
    shown: str


class Walk:
    """The world, walked through once."""

    def __init__(self, directory: Path) -> None:
        self.world = World(directory, write_release(directory), seed=3)
        for name in ("board-1", DEVICE):
            self.world.add_device(name).connect()
        self.device: DeviceLife = self.world.devices[DEVICE]
        self._run_until_judged()
        self._answers: list[Measured] = []

    def hops(self) -> list[Hop]:
        return [*self._measure(), *self._travel(), *self._judge()]

    def hide(self, text: str) -> str:
        """Replace what differs between machines, so that the page does not."""
        window = self.window
        for found, word in (
            (window.context, CONTEXT_WORD),
            (window.release, RELEASE_WORD),
            (window.artifact, ARTIFACT_WORD),
        ):
            text = text.replace(found, word)
        return text

    def _run_until_judged(self) -> None:
        for _ in range(12):
            self._round()

    def _round(self) -> None:
        self.world.now_s += 10.0
        for device in self.world.devices.values():
            device.turn()
        self.world.collector.ingest(1000, acknowledge=True)
        self.world.collector.work()

    def _measure(self) -> list[Hop]:
        slow = steady(9, median_ms=2.0, samples=20)

        def remember(spec: RunnerSpec, before: int) -> Measured:
            answer = slow(spec, before)
            assert isinstance(answer, Measured)
            self._answers.append(answer)
            return answer

        self.device.bench.on_measure = remember
        # The broker's link is held back, so that the window can be looked at on every station.
        self.device.turn()
        self.device.link.drop()
        self.world.now_s += 10.0
        for _ in range(3):  # ask, answer, write
            self.device.turn()
        (self.kind, self.stored, self.seq), *_ = _ask(
            self.device.directory / "outbox.sqlite",
            "SELECT kind, payload, seq FROM messages WHERE kind = 'window' ORDER BY seq DESC",
        )
        self.window: Window = messages.decode(self.kind, self.stored)
        answer = self._answers[-1]
        frame = protocol.encode(answer)
        latency = self.window.latency
        assert latency is not None
        return [
            Hop(
                "The runner answers with raw samples",
                ("evenfleet_agent.runner.worker:measure", "evenfleet_agent.runner.protocol:Measured"),
                "The subprocess times `invoke` alone, passes over the golden set, reads its own peak memory, and answers "
                f"with one frame: its length, then MessagePack. {len(answer.samples_ms) // 8} samples are 8 bytes each; "
                "here are the frame's first 48 bytes.",
                frame[:48].hex(" "),
            ),
            Hop(
                "The samples become a window's figures",
                ("evenfleet_agent.window:close", "evenfleet_shared.sketch:from_values"),
                "A pure rule: quantiles, a mergeable sketch, and the exact count above the limit that `desired` named.",
                _lines(msgspec.to_builtins(latency) | {"exceedances": msgspec.to_builtins(self.window.exceedances)}),
            ),
            Hop(
                "The window gets its number and goes to disk",
                ("evenfleet_agent.supervisor:Supervisor.turn", "evenfleet_agent.outbox:Outbox.append"),
                f"Number {self.seq} of this incarnation. It is in the outbox before anybody is told of it, and stays until "
                "a receipt.",
                self.hide(self.stored.decode()),
            ),
        ]

    def _travel(self) -> list[Hop]:
        self.device.connect()
        self.device.turn()
        batch = self.world.broker.deliver(1000)
        held = next(one for one in batch if one.topic.endswith("/window") and self._is_the_window(one.payload))
        self.world.collector.save(batch)
        path = self.world.collector.path
        (row,) = _ask(
            path,
            f"SELECT {', '.join(_COLUMNS)} FROM windows WHERE device = '{DEVICE}' AND seq = {self.seq}",
        )
        with self.world.collector.store.transaction() as tx:
            receipt = tx.receipt(DEVICE)
        return [
            Hop(
                "It is published",
                ("evenfleet_agent.link.mqtt:MqttLink.publish", "evenfleet_shared.messages:with_floor"),
                "At QoS 1, on the device's own topic, with the `floor` as it is now: the lowest number still held. The "
                "server makes a NATS subject of the topic, and its stream keeps the message.",
                f"MQTT  {held.topic}\nNATS  {topics.to_subject(held.topic)}\n{self.hide(held.payload.decode())[:260]}…",
            ),
            Hop(
                "The collector takes it to disk",
                ("evenfleet_collector.app:Collector._ingest", "evenfleet_collector.ingest:Ingest.save"),
                "Decoded with bounds, or a dead letter; a duplicate is dropped by its number; one transaction for the "
                "batch; acknowledged to the broker only then. Readable columns stand beside the message:",
                "\n".join(f"{name:<12}{value}" for name, value in zip(_COLUMNS, row, strict=True)),
            ),
            Hop(
                "The device gets a receipt",
                ("evenfleet_collector.outgoing:due", "evenfleet_agent.outbox:Outbox.settle"),
                "Recomputed from the rows, cumulative: everything up to `contiguous` may leave the outbox.",
                messages.encode(receipt).decode(),
            ),
        ]

    def _is_the_window(self, payload: bytes) -> bool:
        return messages.decode_header(payload).seq == self.seq

    def _judge(self) -> list[Hop]:
        self.world.collector.work()
        after_one = self._cell()
        for _ in range(14):
            self._round()
            if self.world.collector.reader.flags():
                break
        (flag,) = self.world.collector.reader.flags()
        evidence = json.loads(flag.evidence_json)
        evidence["windows"] = [*evidence["windows"][:1], "…", *evidence["windows"][-1:]]
        latency = next(metric for metric in after_one["metrics"] if metric["metric"] == "latency")
        return [
            Hop(
                "The judge bets",
                (
                    "evenfleet_collector.judge:Judge.step",
                    "evenfleet_collector.assess:assess",
                    "evenfleet_collector.cell:step",
                    "evenfleet_collector.detect.betting:step",
                    "evenfleet_collector.shown:judged",
                ),
                "In order of (incarnation, seq), behind what has arrived without a gap. The share of samples above the limit "
                "adds to the evidence, or takes from it. One window is never enough:",
                _pretty(latency),
            ),
            Hop(
                "The evidence suffices: a flag",
                ("evenfleet_collector.store.sqlite:SqliteWriter.open_flag", "evenfleet_collector.detect.betting:why"),
                "Some windows later. The flag holds every step of what made it; docs/verdicts.md recomputes it in plain "
                "Python.",
                f"{flag.device} {flag.variant} {flag.metric}: {flag.reason}\n{_pretty(evidence)}",
            ),
            Hop(
                "Whoever asks sees it",
                ("evenfleet_collector.routes.parity:router", "evenfleet_collector.web.page:mount"),
                "`GET /api/v1/parity`, `evenfleet parity`, the stream and the dashboard show this one row.",
                _pretty(
                    {
                        name: self._cell()[name]
                        for name in ("device", "variant", "verdict", "phase", "windows", "p95_ms")
                    }
                ),
            ),
        ]

    def _cell(self) -> dict[str, Any]:
        rows = self.world.collector.reader.cells(device=DEVICE)
        row = next(row for row in rows if row.variant == "float32")
        found: dict[str, Any] = msgspec.to_builtins(row)
        return found


def render(directory: Path) -> str:
    """Return the page."""
    lines = [
        "# One window's way",
        "",
        "From the interpreter to the flag, with the bytes at every hop. Generated and checked by `tests/world/walk.py`:",
        "real rules and shells, with a clock, a broker and a runner that are fakes, so that the bytes are the same each",
        f"time. Digests are replaced by letters: the run context is `{CONTEXT_WORD[:4]}…`, the release `{RELEASE_WORD[:4]}…`,",
        f"the artifact `{ARTIFACT_WORD[:4]}…`. The device `{DEVICE}` has just become twice as slow as its class.",
    ]
    for number, hop in enumerate(Walk(directory).hops(), start=1):
        links = ", ".join(_link(function) for function in hop.functions)
        lines += ["", f"## {number}. {hop.title}", "", links, "", hop.text, "", "```", hop.shown, "```"]
    return "\n".join(lines) + "\n"


def _link(function: str) -> str:
    module, name = function.split(":")
    top = {"evenfleet_agent": "agent", "evenfleet_collector": "collector", "evenfleet_shared": "shared"}
    path = f"../{top[module.partition('.')[0]]}/{module.replace('.', '/')}.py"
    return f"[`{module.partition('.')[2]}.{name}`]({path})"


def _lines(fields: dict[str, Any]) -> str:
    """Return one field per line: a sketch is long enough."""
    return "\n".join(f"{name}: {json.dumps(value)}" for name, value in fields.items())


def _pretty(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _ask(path: Path, sql: str) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        sys.stdout.write(render(Path(directory)))
