from __future__ import annotations

import types

import numpy as np
import pytest

from evenfleet_agent.runtimes import tensorflow as runtime

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
