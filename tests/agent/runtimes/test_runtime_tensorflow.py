from __future__ import annotations

import subprocess
import sys
import types

import numpy as np
import pytest

from evenfleet_agent.runtimes import tensorflow as runtime
from evenfleet_agent.runtimes.interface import Options

pytestmark = pytest.mark.tensorflow


class LoaderWithoutKeras2:
    """TensorFlow whose loader cannot rebuild a Keras 2 optimizer, which is how it is without that Keras."""

    def load(self, path):
        raise AttributeError("'_UserObject' object has no attribute 'add_slot'")


def test_model_saved_with_an_optimizer_is_loaded_by_its_signatures(tmp_path):
    import tensorflow as tf

    module = tf.Module()
    module.w = tf.Variable([[2.0], [3.0]])
    spec = tf.TensorSpec([None, 2], tf.float32, name="x")
    serve = tf.function(lambda x: {"y": x @ module.w}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "model"), signatures={"serving_default": serve})

    without_keras_2 = types.SimpleNamespace(saved_model=LoaderWithoutKeras2())
    loaded = runtime._load(without_keras_2, tmp_path / "model")
    model = runtime.SignatureModel(tf, loaded, "model", (2,))
    model.feed(model.prepare([np.array([[1.0, 1.0], [0.0, 2.0]], dtype=np.float32)]))
    model.invoke()
    assert model.read()[0].tolist() == [[5.0], [6.0]]
    assert model.inputs[0].shape == (-1, 2)


_PLACE = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # as in the runner
import numpy as np, tensorflow as tf
from evenfleet_agent.runtimes import tensorflow as runtime
tf.debugging.set_log_device_placement(True)
module = tf.Module()
module.w = tf.Variable([[2.0], [3.0]])
spec = tf.TensorSpec([None, 2], tf.float32, name="x")
serve = tf.function(lambda x: {"y": tf.nn.relu(x @ module.w)}, input_signature=[spec])
tf.saved_model.save(module, sys.argv[1], signatures={"serving_default": serve})
model = runtime.SignatureModel(tf, tf.saved_model.load(sys.argv[1]), "model", (2,))
placed = model.placements()
model.feed(model.prepare([np.array([[1.0, 1.0]], dtype=np.float32)]))
model.invoke()
print(sorted(set(placed.values())), model.read()[0].tolist())
"""


def test_operators_are_told_where_tensorflow_placed_them_without_its_bookkeeping(tmp_path):
    """In a process of its own: what is logged is settled when TensorFlow's context is made."""
    done = subprocess.run(
        [sys.executable, "-c", _PLACE, str(tmp_path / "model")], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == ("[('MatMul', 'CPU'), ('ReadVariableOp', 'CPU'), ('Relu', 'CPU')] [[5.0]]")


def test_operators_that_the_gpu_left_to_the_cpu_are_named_with_its_share():
    log_text = "\n".join(
        f"{name}: ({kind}): /job:localhost/replica:0/task:0/device:{device}:0"
        for name, kind, device in [
            ("x", "_Arg", "CPU"),
            ("a/MatMul", "MatMul", "GPU"),
            ("a/MatMul2", "MatMul", "GPU"),
            ("a/Relu", "Relu", "GPU"),
            ("a/Unique", "Unique", "CPU"),
            ("y_RetVal", "_Retval", "GPU"),
        ]
    )
    found = runtime._execution(Options(delegate="gpu"), gpu=True, reason=None, placed=runtime.placements(log_text))
    assert (found.requested, found.executed, found.delegated_ratio) == ("gpu", "gpu", 0.75)
    assert found.fallback_reason == "the GPU took 3 of 4 operators; left to the CPU: Unique"


def test_gpu_that_placed_nothing_is_not_said_to_have_run_the_model():
    placed = {"a": ("Unique", "CPU")}
    found = runtime._execution(Options(delegate="gpu"), gpu=True, reason=None, placed=placed)
    assert (found.executed, found.delegated_ratio) == ("cpu", 0.0)
    unseen = runtime._execution(Options(delegate="gpu"), gpu=True, reason=None, placed={})
    assert (unseen.executed, unseen.delegated_ratio) == ("cpu", None)
    assert unseen.fallback_reason is not None
