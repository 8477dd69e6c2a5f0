"""Print how much faster blocked pruning makes a wide network, beside its target.

    python bench/sparsity.py        about three minutes

A dense network 784-1024-1024-10 on Fashion-MNIST, pruned by `prune-blocks` to 90 % in blocks of 16 (bench/recipes/sparsity.toml),
once written as sparse blocks and once whole: the same weights, the same accuracy. Both are timed by `evenfleet-agent measure`
on test samples, in turn, each time in a process of its own. Exit code 4 if the target is missed.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROUNDS, INFERENCES = 9, 3000
TRAIN, EPOCHS, BATCH = 20_000, 3, 128
TARGET_RATIO = 1.7


def data() -> dict[str, Any]:
    """Return the first 20,000 training and all test samples of Fashion-MNIST, flat."""
    from examples import fashion_cnn

    whole = fashion_cnn.data()
    return {
        "x_train": whole["x_train"][:TRAIN].reshape(TRAIN, -1),
        "y_train": whole["y_train"][:TRAIN],
        "x_test": whole["x_test"].reshape(fashion_cnn.TEST, -1),
        "y_test": whole["y_test"],
    }


def model() -> Any:
    """Return the trained dense network."""
    import keras
    from keras import layers

    samples = data()
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((784,), name="pixels"),
            layers.Dense(1024, activation="relu"),
            layers.Dense(1024, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ],
        name="wide_mlp",
    )
    network.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, EPOCHS * TRAIN // BATCH)),
        loss="sparse_categorical_crossentropy",
        jit_compile=False,
        steps_per_execution=16,
    )
    network.fit(samples["x_train"], samples["y_train"], batch_size=BATCH, epochs=EPOCHS, verbose=0)
    return network


def main() -> int:
    """Build, measure, print, and return 4 if the target is missed."""
    with tempfile.TemporaryDirectory() as name:
        release = Path(name) / "release"
        built = subprocess.run(
            [
                *(sys.executable, "-m", "evenfleet_collector", "optimize", "sparsity:model", "--data", "sparsity:data"),
                *("--out", str(release), "--recipe", str(ROOT / "bench/recipes/sparsity.toml"), "--json"),
            ],
            cwd=ROOT / "bench",
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            stdout=subprocess.PIPE,
            check=False,
        )
        if built.returncode != 0:  # it said why
            return 1
        rows = {row["name"]: row for row in json.loads(built.stdout)["variants"]}
        rounds = [(_p50_ms(release, "sparse"), _p50_ms(release, "dense")) for _ in range(ROUNDS)]
    return report(rows, rounds)


def report(rows: dict[str, Any], rounds: list[tuple[float, float]]) -> int:
    """Print the figures; return 4 if the target is missed.

    Args:
        rows: The variants as `evenfleet optimize --json` tells them, by name.
        rounds: For each round the p50 of the sparse and of the dense file, in milliseconds.
    """
    for place, name in enumerate(("sparse", "dense")):
        times = [one[place] for one in rounds]
        print(
            f"{name:8} p50 {statistics.median(times):.4f} ms [{min(times):.4f}, {max(times):.4f}] over {len(times)} processes, "
            f"{rows[name]['size_bytes']:,} bytes, accuracy {rows[name]['accuracy_ratio']:.4f}"
        )
    gain = rows["sparse"]["gain"]
    print(
        f"float32  unpruned: {rows['float32']['size_bytes']:,} bytes, accuracy {rows['float32']['accuracy_ratio']:.4f}"
    )
    print(
        f"matched control, trained as long without pruning: accuracy {gain['control_ratio']:.4f}; pruning brings "
        f"{gain['delta_ratio'] * 100:+.2f} pt [{gain['low_ratio'] * 100:+.2f}, {gain['high_ratio'] * 100:+.2f}]"
    )
    ratios = [dense / sparse for sparse, dense in rounds]
    ratio = statistics.median(ratios)
    met = ratio >= TARGET_RATIO
    print(
        f"dense over sparse: {ratio:.2f} times [{min(ratios):.2f}, {max(ratios):.2f}]; "
        f"target: at least {TARGET_RATIO:g} times: {'met' if met else 'missed'}"
    )
    return 0 if met else 4


def _p50_ms(release: Path, name: str) -> float:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "evenfleet_agent", "measure", str(release), "--variant", name),
            *("--samples", str(INFERENCES), "--json"),
        ],
        stdout=subprocess.PIPE,
        check=True,
    )
    (result,) = json.loads(done.stdout)["results"]
    return float(result["latency"]["p50_ms"])


if __name__ == "__main__":
    sys.exit(main())
