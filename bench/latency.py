"""Hold the latency that the runner measures against the same interpreter called in a bare loop, in the same process.

Blocks of the two take turns (A B B A), and each pair of neighbours gives one ratio, so that whatever else the machine
does hits both alike. Usage: `python bench/latency.py [MODEL.tflite …]`; without files Keras builds four networks.
"""

from __future__ import annotations

import gc
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras_models
import numpy as np

from evenfleet_agent.runner import worker
from evenfleet_agent.runner.protocol import Load, Measure, RunnerSpec
from evenfleet_shared.metrics import quantile_interval

NETWORKS = ["cnn28", "cnn64", "mobilenet96", "mobilenet224"]
# A block lasts about so long; more pairs are taken until the time is up.
BLOCK_S = 0.02
MODEL_S = 12.0
LEAST_PAIRS = 10
# Enough for each made-up input to be held over some samples, as it is in a window.
LEAST_SAMPLES = 128
SMALL_MS = 0.05
MOST_RATIO = 1.02
MOST_EXTRA_US = 0.5


def main() -> int:
    """Measure, print, and return 4 if a target is missed."""
    with tempfile.TemporaryDirectory(prefix="evenfleet-bench-") as name:
        models = [Path(argument) for argument in sys.argv[1:]] or keras_models.written(NETWORKS, Path(name))
        met = [compare(model, Path(name)) for model in models]
        return 0 if all(met) else 4


def compare(model: Path, directory: Path) -> bool:
    """Print what the runner's loop adds to a model's latency; return whether it is little enough."""
    spec = RunnerSpec(runtime="litert", artifact=str(model), format="tflite", warm_up_max_s=1.0)
    voice = worker.Voice(io.BytesIO())
    session, _ = worker.load(Load(spec=spec, scratch=str(directory / "scratch")), voice)
    interpreter = session.model._interpreter
    samples = max(LEAST_SAMPLES, round(BLOCK_S * 1e3 / session.inference_ms))
    request = Measure(samples=samples, max_duration_s=60.0, evaluate=False)

    def ours_ms() -> float:
        return float(np.median(np.frombuffer(worker.measure(session, request, voice).samples_ms)))

    pairs: list[tuple[float, float]] = []
    end_s = time.monotonic() + MODEL_S
    while time.monotonic() < end_s or len(pairs) < LEAST_PAIRS:
        ours, bare = ours_ms(), bare_ms(interpreter, samples)
        pairs.append((ours, bare))
        bare, ours = bare_ms(interpreter, samples), ours_ms()
        pairs.append((ours, bare))
    bare = statistics.median(bare for _, bare in pairs)
    ratios = sorted(ours / bare for ours, bare in pairs)
    extra_us = sorted(1e3 * (ours - bare) for ours, bare in pairs)
    small = bare < SMALL_MS
    shown, unit = (extra_us, " µs more") if small else (ratios, " times")
    low, high = quantile_interval(shown, 0.5) or (shown[0], shown[-1])
    middle = statistics.median(shown)
    # Less than the bare loop is noise: to two digits it must be none.
    met = middle <= MOST_EXTRA_US if small else 1.0 <= round(middle, 2) <= MOST_RATIO
    target = f"<= {MOST_EXTRA_US} µs more" if small else f"1.00 to {MOST_RATIO}"
    quarter = len(shown) // 4
    print(
        f"{model.stem:<14} bare {1e3 * bare:9.2f} µs   ours {middle:.4f}{unit}, 95 % interval {low:.4f} to {high:.4f}, middle half "
        f"{shown[quarter]:.4f} to {shown[-1 - quarter]:.4f}, {len(pairs)} pairs of {samples}   target {target}: "
        f"{'met' if met else 'missed'}",
        flush=True,
    )
    return met


def bare_ms(interpreter: object, samples: int) -> float:
    """Return the median of so many calls with nothing around them but the clock."""
    gc.collect()
    gc.disable()
    invoke, clock = interpreter.invoke, time.perf_counter_ns  # type: ignore[attr-defined]
    taken_ns = []
    for _ in range(samples):
        started = clock()
        invoke()
        taken_ns.append(clock() - started)
    gc.enable()
    return statistics.median(taken_ns) / 1e6


if __name__ == "__main__":
    sys.exit(main())
