"""Run the whole loop on one machine: a release, a collector, agents on really different runtimes, two planted faults.

Everything is real: the models, the runtimes, the processes, the broker, the database. What is planted is declared
here, and only here: the collector is told nothing about it.

* A fault begins when every class has been calibrated: a reference taken from a faulty device would hide the fault.
* Whatever ends the demo, no process of it is left, and no file: after kill -9 the next demo removes them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

from evenfleet_collector.child import bound, last_line
from evenfleet_collector.client import Collector
from evenfleet_collector.resources import EVERY_DEVICE, Flag
from evenfleet_collector.store.rows import CellRow
from evenfleet_collector.tolerance import ExceedanceTolerance, Policy
from evenfleet_shared import manifest as manifests
from evenfleet_shared.disk import held
from evenfleet_shared.errors import ConfigError, EvenfleetError, UnreachableError

Fault = Literal["accuracy", "latency"]
Say = Callable[[str], None]

# A p90 decides sooner than a p95; 75 % is more than two noisy cores usually do to a sound device, and less than the
# planted slowing does.
POLICY: Final = Policy(
    streams=256,
    window_length_s=1.0,
    latency=ExceedanceTolerance(quantile=0.90, margin_ratio=0.75),
    memory=ExceedanceTolerance(quantile=0.90, margin_ratio=0.10),
    burn_in_windows=10,
    calibration_windows=24,
    silence_windows=20,
)

# Few enough for thirty cells to be measured in turns within a window.
GOLDEN_SAMPLES: Final = 150

# Inputs that were not scaled to 0..1 but far below: what a device's own preprocessing got wrong.
WRONG_SCALE: Final = 1 / 255

DEFAULT_SECONDS: Final = 600.0
_PREFIX: Final = "evenfleet-demo-"
_LOCK_NAME: Final = "demo.lock"
_POLL_S: Final = 0.5
_FORMATS: Final = {"litert": ("tflite",), "tflite": ("tflite",), "tensorflow": ("saved_model",)}
# Windows until a sound cell is within: a reference, then as many as the bet takes when nothing exceeds.
_NEEDED_WINDOWS: Final = POLICY.burn_in_windows + POLICY.calibration_windows + 31
_MODEL: Final = "examples.small_cnn:model"
_DATA: Final = "examples.small_cnn:data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """One device of the demo; the device class says what makes it different."""

    device: str
    device_class: str
    runtime: str
    xnnpack: bool = True
    own_python: bool = False


ACTORS: Final = (
    Actor(device="xnnpack-1", device_class="litert-xnnpack", runtime="litert"),
    Actor(device="xnnpack-2", device_class="litert-xnnpack", runtime="litert"),
    Actor(device="xnnpack-3", device_class="litert-xnnpack", runtime="litert"),
    Actor(device="plain-1", device_class="litert-plain", runtime="litert", xnnpack=False),
    Actor(device="tflite-1", device_class="tflite-2.14", runtime="tflite", own_python=True),
    Actor(device="tensorflow-1", device_class="tensorflow", runtime="tensorflow"),
)
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)
DEFAULT_FAULTS: Final[Mapping[str, Fault]] = {"xnnpack-2": "accuracy", "xnnpack-3": "latency"}


@dataclass(slots=True)
class Outcome:
    """What the demo found. Times are seconds since its start, None for what did not happen."""

    planted: Mapping[str, Fault]
    cells: Sequence[CellRow] = ()
    flags: Sequence[Flag] = ()
    left_out: tuple[str, ...] = ()
    first_table_s: float | None = None
    faults_begun_s: float | None = None
    flagged_s: dict[tuple[str, str], float] = field(default_factory=dict)
    all_decided_s: float | None = None

    @property
    def missed(self) -> list[tuple[str, str]]:
        """Return the planted faults that were not flagged."""
        flagged = {(flag.device, flag.metric) for flag in self.flags}
        return [planted for planted in self.planted.items() if planted not in flagged]

    @property
    def false_flags(self) -> list[Flag]:
        """Return the flags, cleared ones too, that no planted fault explains."""
        return [flag for flag in self.flags if self.planted.get(flag.device) != flag.metric]

    @property
    def undecided(self) -> list[CellRow]:
        """Return the cells of sound devices that are not `within`, refused ones left out."""
        return [
            cell
            for cell in self.cells
            if cell.device not in self.planted and cell.refusal is None and cell.verdict != "within"
        ]

    @property
    def exactly_planted(self) -> bool:
        """Return whether all planted faults, and nothing else, were flagged."""
        return not self.missed and not self.false_flags


def actors(tflite_python: Path | None) -> tuple[tuple[Actor, ...], tuple[str, ...]]:
    """Return the devices that can take part, and a line for each that cannot."""
    if tflite_python is not None:
        return ACTORS, ()
    left_out = tuple(actor for actor in ACTORS if actor.own_python)
    return tuple(actor for actor in ACTORS if not actor.own_python), tuple(
        f"{actor.device} is left out: tflite-runtime 2.14 needs an environment of its own (numpy < 2); 'make demo' makes it"
        for actor in left_out
    )


def parse_faults(planted: Sequence[str]) -> dict[str, Fault]:
    """Return the faults of ``AGENT=KIND`` words.

    Raises:
        ConfigError: An agent or a kind that there is not.

    >>> parse_faults(["plain-1=latency"])
    {'plain-1': 'latency'}
    """
    found: dict[str, Fault] = {}
    for word in planted:
        device, _, kind = word.partition("=")
        if device not in {actor.device for actor in ACTORS}:
            raise ConfigError(f"--fault {word}: no agent {device!r}; they are {', '.join(a.device for a in ACTORS)}")
        fault = next((fault for fault in FAULTS if fault == kind), None)
        if fault is None:
            raise ConfigError(f"--fault {word}: no kind {kind!r}; they are {', '.join(FAULTS)}")
        found[device] = fault
    return found


def find_tflite_python() -> Path | None:
    """Return the Python of the environment that has tflite-runtime, None where there is none.

    It is named by ``EVENFLEET_TFLITE_PYTHON``, or stands beside this one as ``<name>-tflite``.
    """
    named = os.environ.get("EVENFLEET_TFLITE_PYTHON")
    beside = Path(sys.prefix).with_name(Path(sys.prefix).name + "-tflite") / "bin" / "python"
    candidate = Path(named) if named else beside
    return candidate if os.access(candidate, os.X_OK) else None


def remove_abandoned(temporary: Path) -> list[Path]:
    """Remove what demos of this user have left that were killed before they could, and return what that was.

    A demo that lives holds the lock in its directory. A directory without a lock is left alone: who knows whose it is.
    """
    removed = []
    for directory in temporary.glob(f"{_PREFIX}*"):
        try:
            found = directory.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                continue
            if not (directory / _LOCK_NAME).is_file():
                continue
            with held(directory / _LOCK_NAME):
                shutil.rmtree(directory, ignore_errors=True)
                if directory.exists():
                    # A process of it has still been writing; the next demo tries again.
                    (directory / _LOCK_NAME).touch(mode=0o600)
                    continue
        except OSError:  # its demo lives, or another one that starts has removed it
            continue
        removed.append(directory)
    return removed


@contextlib.contextmanager
def _own_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    draft = directory / f"{_LOCK_NAME}.new"
    with held(draft):
        # Locked before it has its name, or a demo that starts just now would take it for abandoned.
        draft.rename(directory / _LOCK_NAME)
        yield directory


def run(
    planted: Mapping[str, Fault],
    *,
    seconds: float,
    release: Path | None,
    keep_going: bool,
    show: Show,
) -> Outcome:
    """Run the demo.

    Args:
        planted: Which device gets which fault.
        seconds: When to end at the latest, counted from when the agents have been started.
        release: A release that is there already; None builds one.
        keep_going: Go on after everything is decided, until interrupted.
        show: How it is shown.

    Raises:
        EvenfleetError: A part did not start.
    """
    for left in remove_abandoned(Path(tempfile.gettempdir())):
        show.say(f"removed {left}, which a demo that was killed had left")
    with _own_directory() as directory:
        stage = Stage(directory, show.say)
        try:
            cast, left_out = actors(find_tflite_python())
            missing = set(planted) - {actor.device for actor in cast}
            if missing:
                raise ConfigError(f"--fault names {', '.join(sorted(missing))}, which cannot take part: {left_out[0]}")
            outcome = Outcome(planted=planted, left_out=left_out)
            for line in left_out:
                show.say(line)
            release = release or stage.build_release()
            url = stage.start_collector()
            with Collector(url) as collector:
                expected = stage.fill(collector, release, cast)
                _watch(
                    stage,
                    collector,
                    outcome,
                    cast,
                    expected=expected,
                    seconds=seconds,
                    keep_going=keep_going,
                    show=show,
                )
            return outcome
        finally:
            stage.close()


class Stage:
    """The processes and files of one demo."""

    def __init__(self, directory: Path, say: Say) -> None:
        self.directory = directory
        self.started_s = time.monotonic()
        self.url = ""
        self._say = say
        self._agents: dict[str, subprocess.Popen[bytes]] = {}
        self._others: list[subprocess.Popen[bytes]] = []
        self._broker = ""

    def elapsed_s(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.started_s

    def build_release(self) -> Path:
        """Make a release of the example model."""
        self._say("building the release: train, quantize, prune, distil (TensorFlow; half a minute)")
        out = self.directory / "release"
        # A process of its own: TensorFlow's memory goes when it is done.
        child = subprocess.Popen(
            bound(
                [
                    *(sys.executable, "-m", "evenfleet_collector", "optimize", _MODEL, "--data", _DATA),
                    *("--out", str(out), "--golden", str(GOLDEN_SAMPLES), "--seeds", "0"),
                    # The agents measure in a moment, and what the demo leaves behind is nothing.
                    *("--no-timing", "--no-report", "--no-cache"),
                ]
            ),
            cwd=_examples_root(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stderr is not None
        last = ""
        with contextlib.closing(child.stderr), _ended(child):
            for line in child.stderr:
                last = line.strip() or last
                self._say(f"  {line.rstrip()}")
            if child.wait():
                raise EvenfleetError(f"the release was not built: {last}")
        return out

    def start_collector(self) -> str:
        """Start `evenfleet serve` on free ports; return its URL."""
        log = self.directory / "collector.log"
        with log.open("wb") as errors:
            child = subprocess.Popen(
                bound(
                    [
                        *(sys.executable, "-m", "evenfleet_collector", "serve", "--json", "-v"),
                        *("--data", str(self.directory / "data"), "--http-port", "0", "--mqtt-port", "0"),
                    ]
                ),
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        self._others.append(child)
        assert child.stdout is not None
        with child.stdout:
            line = child.stdout.readline()
        if not line:
            child.wait()
            raise UnreachableError(f"the collector did not start: {_last_line(log)}")
        where = json.loads(line)
        self.url, self._broker = where["url"], where["mqtt"]
        return self.url

    def fill(self, collector: Collector, release: Path, cast: Sequence[Actor]) -> int:
        """Push the release, enrol the devices, start their agents; return how many cells will report."""
        manifest, digest = manifests.verify(release)
        self._say(f"pushing release {digest[:12]} ({len(manifest.variants)} variants)")
        for reference in manifest.files:
            if not collector.has_artifact(reference.sha256):
                collector.put_artifact(release / reference.file, reference, lambda _: None)
        collector.add_release((release / manifests.MANIFEST_NAME).read_bytes())
        collector.set_policy(POLICY)
        collector.assign(EVERY_DEVICE, digest)
        self._say(f"starting {len(cast)} agents")
        for actor in cast:
            token_file = self.directory / f"{actor.device}.token"
            token_file.touch(mode=0o600)
            token_file.write_text(collector.enrol(actor.device).token, encoding="utf-8")
            self.start_agent(actor, input_scale=1.0)
        return sum(variant.format in _FORMATS[actor.runtime] for actor in cast for variant in manifest.variants)

    def start_agent(self, actor: Actor, *, input_scale: float) -> None:
        """Start an agent as a process of its own; with another scale, as somebody who configured it wrongly."""
        file = self.directory / f"{actor.device}.toml"
        file.write_text(self._configuration(actor, input_scale), encoding="utf-8")
        with (self.directory / f"{actor.device}.log").open("ab") as log:
            self._agents[actor.device] = subprocess.Popen(
                bound([sys.executable, "-m", "evenfleet_agent", "run", "--config", str(file)]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def plant(self, actor: Actor, fault: Fault) -> None:
        """Begin a fault, without a word to the collector."""
        if fault == "accuracy":
            _end(self._agents[actor.device])
            self.start_agent(actor, input_scale=WRONG_SCALE)
        else:
            pid = str(self._agents[actor.device].pid)
            self._others.append(
                subprocess.Popen(
                    bound([sys.executable, "-m", "evenfleet_collector.slowing", pid]), start_new_session=True
                )
            )

    def check(self) -> None:
        """Notice what should not have ended.

        Raises:
            EvenfleetError: The collector or an agent ended; its last words are in the message.
        """
        for name, child in [("collector", self._others[0]), *self._agents.items()]:
            if child.poll() is not None:
                raise EvenfleetError(
                    f"{name} ended with code {child.returncode}: {_last_line(self.directory / f'{name}.log')}"
                )

    def close(self) -> None:
        """End everything and remove every file."""
        for child in [*self._others[1:], *self._agents.values(), *self._others[:1]]:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
        for child in [*self._others, *self._agents.values()]:
            _end(child)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _configuration(self, actor: Actor, input_scale: float) -> str:
        python = find_tflite_python() if actor.own_python else None
        lines = [
            f'device = "{actor.device}"',
            f'device_class = "{actor.device_class}"',
            f"state_dir = {json.dumps(str(self.directory / actor.device))}",
            "[broker]",
            f'url = "mqtt://{self._broker}"',
            f"password_file = {json.dumps(str(self.directory / f'{actor.device}.token'))}",
            "[runtime]",
            f'name = "{actor.runtime}"',
            f"xnnpack = {str(actor.xnnpack).lower()}",
            *([f"python = {json.dumps(str(python))}"] if python else []),
            "[measure]",
            "samples = 3",
            # Six agents measure in turns, dozens of times: the length of a sample is enough.
            "min_duration_s = 0.0",
            # Long enough that stopping a runner for 10 of every 20 ms shows in a sample.
            "min_sample_s = 0.005",
            "max_duration_s = 2.0",
            "warm_up_max_s = 0.5",
            # Two cores, and who knows what else on them: whoever measures, measures alone.
            "leave_out_waiting = true",
            f"lock_file = {json.dumps(str(self.directory / 'bench.lock'))}",
            # A window a second is more than a guest may take.
            "[schedule]",
            "max_cpu_ratio = 64.0",
            "[planted_fault]",
            f"input_scale = {input_scale!r}",
        ]
        return "\n".join(lines) + "\n"


class Show:
    """How a demo is shown; this one shows nothing."""

    def say(self, line: str) -> None:
        """Take a line about what happens."""

    def progress(self, done: int, total: int, doing: str) -> None:
        """Take how far it has come, in windows."""

    def table(self, outcome: Outcome, url: str) -> None:
        """Take the outcome so far, when it is worth a look, and where one can look for oneself."""


def _watch(
    stage: Stage,
    collector: Collector,
    outcome: Outcome,
    cast: Sequence[Actor],
    *,
    expected: int,
    seconds: float,
    keep_going: bool,
    show: Show,
) -> None:
    """Follow the cells until all is decided or time is up; plant the faults when every class has its reference."""
    begun_s = stage.elapsed_s()
    shown_decided = False
    while keep_going or stage.elapsed_s() - begun_s < seconds:
        stage.check()
        outcome.cells = collector.parity().items
        outcome.flags = collector.flags(cleared=True)
        now_s = stage.elapsed_s()
        for flag in outcome.flags:
            outcome.flagged_s.setdefault((flag.device, flag.metric), now_s)
        show.progress(
            sum(_NEEDED_WINDOWS if cell.refusal else min(cell.windows, _NEEDED_WINDOWS) for cell in outcome.cells),
            expected * _NEEDED_WINDOWS,
            _doing(outcome, expected),
        )
        if outcome.first_table_s is None and _reporting(outcome) == expected:
            outcome.first_table_s = now_s
            show.table(outcome, stage.url)
        if outcome.faults_begun_s is None and _all_judged(outcome, expected):
            outcome.faults_begun_s = now_s
            for actor in cast:
                if actor.device in outcome.planted:
                    show.say(f"planting the {outcome.planted[actor.device]} fault in {actor.device}")
                    stage.plant(actor, outcome.planted[actor.device])
        if outcome.faults_begun_s is not None and not outcome.missed and not outcome.undecided:
            outcome.all_decided_s = outcome.all_decided_s or now_s
            if not keep_going:
                return
            if not shown_decided:
                shown_decided = True
                show.table(outcome, stage.url)
        if outcome.faults_begun_s is not None and not outcome.missed and outcome.false_flags and not keep_going:
            return  # nothing that comes can make it what was planted
        time.sleep(_POLL_S)


def _all_judged(outcome: Outcome, expected: int) -> bool:
    return len(outcome.cells) == expected and all(
        cell.refusal is not None or cell.phase == "judged" for cell in outcome.cells
    )


def _reporting(outcome: Outcome) -> int:
    return sum(cell.windows > 0 or cell.refusal is not None for cell in outcome.cells)


def _doing(outcome: Outcome, expected: int) -> str:
    cells = [cell for cell in outcome.cells if cell.refusal is None]
    if _reporting(outcome) < expected:
        return f"loading models: {_reporting(outcome)} of {expected} cells report"
    for phase, doing in (("burn-in", "burn-in"), ("calibrating", "calibration")):
        waiting = sum(cell.phase == phase for cell in cells)
        if waiting:
            return f"{doing}: {len(cells) - waiting} of {len(cells)} cells done"
    within = sum(cell.verdict == "within" for cell in cells)
    outside = sum(cell.verdict == "outside" for cell in cells)
    return f"judging: {within} within, {outside} outside, {len(cells) - within - outside} undetermined"


def _examples_root() -> Path:
    """Return the directory that `examples` is imported from."""
    for root in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (root / "examples" / "small_cnn.py").is_file():
            return root
    raise ConfigError(
        "the demo's model is not here: expected examples/small_cnn.py; run it in a clone, or with --release"
    )


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a child, politely for eight seconds."""
    child.terminate()
    try:
        child.wait(timeout=8.0)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


@contextlib.contextmanager
def _ended(child: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()


def _last_line(log: Path) -> str:
    return last_line(log.read_text(encoding="utf-8", errors="replace") if log.exists() else "", limit=None)
