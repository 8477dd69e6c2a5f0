"""Real networks as .tflite files for the benches of measuring, made by Keras with untrained weights.

Run as a program it writes them, for a bench must not have TensorFlow in its own process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

INSTALL = "pip install 'evenfleet[optimize]', or name .tflite files"


def written(names: list[str], directory: Path) -> list[Path]:
    """Have the networks written in a process of its own, and return their files."""
    print(f"building {', '.join(names)} …", file=sys.stderr)
    done = subprocess.run(
        [sys.executable, __file__, str(directory), *names], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"Keras cannot build the networks here ({done.stderr.strip().splitlines()[-1][:200]}): {INSTALL}")
    return [directory / f"{name}.tflite" for name in names]


def main() -> None:
    """Write the networks that are named on the command line."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras
    import tensorflow as tf

    layers = keras.layers

    def cnn(size: int, channels: int) -> keras.Model:
        return keras.Sequential(
            [
                keras.Input((size, size, 1), batch_size=1),
                layers.Conv2D(channels, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Conv2D(2 * channels, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(64, activation="relu"),
                layers.Dense(10, activation="softmax"),
            ]
        )

    def mobilenet(size: int, alpha: float) -> keras.Model:
        return keras.applications.MobileNetV2((size, size, 3), alpha=alpha, weights=None)

    builders = {
        "cnn28": lambda: cnn(28, 8),
        "cnn64": lambda: cnn(64, 16),
        "mobilenet96": lambda: mobilenet(96, 0.35),
        "mobilenet224": lambda: mobilenet(224, 0.5),
    }
    directory, *names = sys.argv[1:]
    for name in names:
        content = tf.lite.TFLiteConverter.from_keras_model(builders[name]()).convert()
        (Path(directory) / f"{name}.tflite").write_bytes(content)


if __name__ == "__main__":
    main()
