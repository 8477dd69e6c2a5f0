"""Hold `evenfleet-agent measure` against LiteRT's own benchmark program, on the same file and threads.

Processes of the two take turns; compared are the medians over the processes of the median of each. LiteRT's program runs
its CompiledModel and tells hundredths of a millisecond, so that a model should take half a millisecond at least.
Usage: `python bench/benchmark_model.py [MODEL.tflite …]`; without files Keras builds two networks.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import keras_models

NETWORKS = ["mobilenet96", "mobilenet224"]
THREADS = (1, 2)
PROCESSES = 10
RUNS = 500
MOST_RATIO = 0.15


def main() -> int:
    """Measure, print, and return 4 if the target is missed."""
    if importlib.util.find_spec("ai_edge_litert.tools.benchmark_litert_model") is None:
        sys.exit("this ai-edge-litert has no benchmark program; 2.3 has: pip install 'ai-edge-litert>=2.3' ml_dtypes")
    with tempfile.TemporaryDirectory(prefix="evenfleet-bench-") as name:
        models = [Path(argument) for argument in sys.argv[1:]] or keras_models.written(NETWORKS, Path(name))
        met = [compare(model, threads, Path(name)) for model in models for threads in THREADS]
        return 0 if all(met) else 4


def compare(model: Path, threads: int, directory: Path) -> bool:
    """Print both programs' medians; return whether they agree."""
    ours, theirs = [], []
    for number in range(PROCESSES):
        # A B B A, so that neither has the better place.
        for side in ("ours", "theirs") if number % 2 else ("theirs", "ours"):
            if side == "ours":
                ours.append(ours_ms(model, threads))
            else:
                theirs.append(theirs_ms(model, threads, directory))
    ratio = statistics.median(ours) / statistics.median(theirs)
    met = abs(ratio - 1.0) <= MOST_RATIO
    print(
        f"{model.stem:<14} {threads} threads   measure {told(ours)}   LiteRT's {told(theirs)}   ratio {ratio:.3f}, target within "
        f"±{MOST_RATIO:.0%}: {'met' if met else 'missed'}",
        flush=True,
    )
    return met


def ours_ms(model: Path, threads: int) -> float:
    """Return the p50 of one process of `evenfleet-agent measure`."""
    options = ("--json", "--runtime", "litert", "--threads", str(threads), "--samples", str(RUNS))
    done = subprocess.run(
        [sys.executable, "-m", "evenfleet_agent", "measure", str(model), *options],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout)["results"][0]["latency"]["p50_ms"])


def theirs_ms(model: Path, threads: int, directory: Path) -> float:
    """Return the median of one process of LiteRT's program."""
    result = directory / "result.json"
    program = "ai_edge_litert.tools.benchmark_litert_model"
    options = (f"--num_threads={threads}", f"--num_runs={RUNS}", f"--result_json={result}")
    subprocess.run(
        [sys.executable, "-m", program, f"--model={model}", *options], capture_output=True, text=True, check=True
    )
    return float(json.loads(result.read_text())["latency"]["median_ms"])


def told(values_ms: list[float]) -> str:
    """Return the median of the processes and what they lie between."""
    return f"{statistics.median(values_ms):.3f} ms ({min(values_ms):.3f} to {max(values_ms):.3f}, {len(values_ms)} processes)"


if __name__ == "__main__":
    sys.exit(main())
