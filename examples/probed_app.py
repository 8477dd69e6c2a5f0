"""A small application whose own inferences are noted by a probe: it classifies random inputs until it has had enough.

Run it beside an agent, or by itself: where nobody reads, the probe does nothing and says so once.

    python examples/probed_app.py model.tflite --seconds 30
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from evenfleet_agent.probe import Probe


def main() -> None:
    """Infer, as an application would, and print what it did."""
    parser = argparse.ArgumentParser(description="Run a model on random inputs, with a probe.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--app", default="probed-app", help="the name that windows carry")
    parser.add_argument("--directory", help="where the agent looks; its default otherwise")
    arguments = parser.parse_args()

    probe = Probe(arguments.app, model_file=arguments.model, directory=arguments.directory)
    interpreter = probe.wrap(Interpreter(model_path=os.fspath(arguments.model), num_threads=1))
    interpreter.allocate_tensors()
    given, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    generator = np.random.default_rng(1)
    calls = 0
    deadline_s = time.monotonic() + arguments.seconds
    while time.monotonic() < deadline_s:
        values = generator.random(given["shape"], dtype=np.float32)
        if given["dtype"] != np.float32:
            values = (values * 100).astype(given["dtype"])
        interpreter.set_tensor(given["index"], values)
        interpreter.invoke()
        interpreter.get_tensor(answer["index"])
        calls += 1
    print(f"{calls} calls, {'noted' if probe.recording else 'noted by nobody'}; statistics of 1 in {probe.one_in}")


if __name__ == "__main__":
    main()
