"""Time variants on this machine, with the agent's own measuring: each in a process of its own, in turn, in rounds.

Processes of one program differ from each other by more than the inferences of one process do, so the spread that is shown
is that over the rounds. Leaves measuring itself to `evenfleet-agent measure`, so that figures mean here what they mean on
a device; and to `worth` what is made of them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, Union

import msgspec
import psutil

from evenfleet_collector import figures
from evenfleet_collector.child import bound, last_line
from evenfleet_collector.optimize import cache
from evenfleet_collector.optimize.worth import Timing
from evenfleet_shared.errors import EvenfleetError, RunnerError, RuntimeMissingError
from evenfleet_shared.manifest import Format

_AGENT: Final = "evenfleet_agent"
_SHARED: Final = "evenfleet_shared"
_TIMING_FILE: Final = "timing.json"
# TensorFlow takes seconds to start, so its rounds are fewer.
ROUNDS: Final[dict[Format, int]] = {"tflite": 3, "saved_model": 2}
SAMPLES: Final = 300
MAX_DURATION_S: Final = 1.5
_GIVEN_UP_S: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An artifact to time; `name` is the variant's, for progress."""

    name: str
    artifact: Path
    sha256: str
    format: Format


Outcome = Union[Timing, EvenfleetError]


class _Latency(msgspec.Struct):
    n: int
    init_ms: float
    p50_ms: float
    p95_ms: float


class _Memory(msgspec.Struct):
    kind: str
    bytes: int


class _Result(msgspec.Struct):
    runtime: str
    runtime_version: str
    threads: int
    latency: _Latency
    memory: list[_Memory]

    def __post_init__(self) -> None:
        if self.bytes_of("peak_rss") is None:
            raise ValueError("it tells no peak memory")

    def bytes_of(self, kind: str) -> int | None:
        return next((reading.bytes for reading in self.memory if reading.kind == kind), None)


class _Answer(msgspec.Struct):
    results: list[_Result]


def machine_facts() -> dict[str, str]:
    """Return what a report says of this machine."""
    return {
        "cpu": machine(),
        "cores in use": str(_cores()),
        "memory": figures.size(psutil.virtual_memory().total),
        "system": f"{platform.system()} {platform.release()}",
    }


def machine() -> str:
    """Return what this machine is called in a release: its processor."""
    name = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return f"{models[0]} ({name})" if models else name


def conditions() -> str:
    """Return what stands for all that figures depend on beside the artifact and the versions of packages.

    The agent that measures, the machine, and how many of its cores may be used: SavedModels take as many as there are.
    """
    code = hashlib.sha256()
    for package in (_AGENT, _SHARED):
        found = importlib.util.find_spec(package)
        for folder in (found.submodule_search_locations or ()) if found is not None else ():
            for file in sorted(Path(folder).rglob("*.py")):
                code.update(file.read_bytes())
    return cache.key(code.hexdigest(), machine(), platform.node(), str(_cores()))


def rounds(candidates: Sequence[Candidate]) -> int:
    """Return how many processes `take` will start for these."""
    return sum(ROUNDS[one.format] for one in candidates)


def take(
    candidates: Sequence[Candidate],
    *,
    salt: str,
    kept: cache.Cache,
    data: Path | None,
    begin: Callable[[str], None],
) -> dict[str, Outcome]:
    """Time each candidate that was not timed here before.

    Args:
        candidates: What to time.
        salt: What figures depend on besides the artifact: versions.
        kept: Where figures are kept.
        data: An .npz of samples and labels to run on; None for made-up samples.
        begin: Told before each process.

    Returns:
        By name the timing, or why there is none.
    """
    here = conditions()
    names = {one.name: cache.key("timing", salt, one.sha256, here) for one in candidates}
    outcomes: dict[str, Outcome] = {}
    for one in candidates:
        entry = kept.find(names[one.name])
        if entry is not None:
            for _ in range(ROUNDS[one.format]):
                begin(f"{one.name}: timing from the cache")
            outcomes[one.name] = msgspec.json.decode((entry / _TIMING_FILE).read_bytes(), type=Timing)
    results: dict[str, list[_Result]] = {one.name: [] for one in candidates if one.name not in outcomes}
    for number in range(max(ROUNDS.values())):
        for one in candidates:
            if one.name not in results or number >= ROUNDS[one.format]:
                continue
            begin(f"{one.name}: timing, round {number + 1} of {ROUNDS[one.format]}")
            if one.name in outcomes:  # it failed
                continue
            try:
                results[one.name].append(_measured(one, data))
            except EvenfleetError as error:
                outcomes[one.name] = error
    for name, found in results.items():
        if name not in outcomes:
            outcomes[name] = timing = _over_rounds(found)
            kept.put(names[name], partial(_write, timing))
    return outcomes


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _measured(one: Candidate, data: Path | None) -> _Result:
    if importlib.util.find_spec(_AGENT) is None:
        raise RuntimeMissingError(
            "timing needs the agent, which measures; install it with: pip install 'evenfleet[agent]'"
        )
    command = [
        *(sys.executable, "-m", _AGENT, "measure", str(one.artifact), "--json"),
        *("--samples", str(SAMPLES), "--max-duration", str(MAX_DURATION_S)),
        *(("--data", str(data)) if data else ()),
    ]
    try:
        done = subprocess.run(
            bound(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIVEN_UP_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RunnerError(f"not timed: no figure after {_GIVEN_UP_S:.0f} s") from None
    if done.returncode:
        raise RunnerError(f"not timed: {last_line(done.stderr, f'the agent ended with code {done.returncode}')}")
    try:
        return msgspec.json.decode(done.stdout, type=_Answer).results[0]
    except (msgspec.MsgspecError, IndexError) as error:
        raise RunnerError(f"not timed: the agent's answer is none ({error})") from None


def _over_rounds(results: Sequence[_Result]) -> Timing:
    p50s, p95s = ([getattr(one.latency, name) for one in results] for name in ("p50_ms", "p95_ms"))
    first = results[0]
    return Timing(
        runtime=first.runtime,
        runtime_version=first.runtime_version,
        threads=first.threads,
        n=sum(one.latency.n for one in results),
        rounds=len(results),
        p50_ms=median(p50s),
        p50_low_ms=min(p50s),
        p50_high_ms=max(p50s),
        p95_ms=median(p95s),
        p95_low_ms=min(p95s),
        p95_high_ms=max(p95s),
        init_ms=median(one.latency.init_ms for one in results),
        peak_rss_bytes=max(one.bytes_of("peak_rss") or 0 for one in results),
        after_load_bytes=first.bytes_of("after_load"),
    )


def _write(timing: Timing, folder: Path) -> None:
    (folder / _TIMING_FILE).write_bytes(msgspec.json.encode(timing))
