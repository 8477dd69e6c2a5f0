"""Cluster a model or train it quantization-aware, in Keras 2: the process that `legacy` starts.

`python -m evenfleet_collector.optimize.legacy_worker FOLDER`, with ``TF_USE_LEGACY_KERAS=1`` set before. The folder holds
the job and the weights; what is made is written into it.

* The model comes as the configuration of a Keras 3 model, of which only layers that Keras 2 has too are built: no code.
* It is rebuilt with the same layer names, and weights are set by them.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from evenfleet_collector.optimize.legacy import (
    JOB_FILE,
    MADE_TFLITE_FILE,
    MADE_WEIGHTS_FILE,
    MISSING,
    REFUSED,
    WEIGHTS_FILE,
    load_weights,
    save_weights,
)
from evenfleet_shared.errors import ModelRefusedError

# Only worth something to a model that starts from nothing, and written differently by the two.
_NOT_TAKEN_OVER: Final = ("_initializer", "_regularizer", "_constraint")
# Fewer give centroids that stand for a weight or two, and the library's first draw of them fails.
_POINTS_PER_CLUSTER: Final = 4
_INSTALL: Final = "pip install --no-deps tf-keras tensorflow-model-optimization dm-tree"


def main(folder: Path) -> int:
    """Do the job; the last line that is printed says why where it could not be done."""
    try:
        import tensorflow as tf
        import tensorflow_model_optimization as tfmot
        import tf_keras
    except ImportError as error:
        sys.stdout.write(f"tensorflow-model-optimization cannot be loaded ({error}); install it with: {_INSTALL}\n")
        return MISSING
    job = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
    tf_keras.utils.set_random_seed(job["seed"])
    tf.config.experimental.enable_op_determinism()
    try:
        model = rebuild(tf_keras, job["kind"], job["model"])
        load_weights(model, folder / WEIGHTS_FILE)
        if job["do"] == "cluster":
            save_weights(_clustered(tf_keras, tfmot, model, job), folder / MADE_WEIGHTS_FILE)
        else:
            (folder / MADE_TFLITE_FILE).write_bytes(_quantization_aware(tf, tf_keras, tfmot, model, job))
    except ModelRefusedError as error:
        sys.stdout.write(f"{error}\n")
        return REFUSED
    return 0


def rebuild(tf_keras: Any, kind: str, config: Mapping[str, Any]) -> Any:
    """Return the Keras 2 model of a Keras 3 configuration, with fresh weights.

    Raises:
        ModelRefusedError: It is neither Sequential nor Functional, or has a layer that Keras 2 has not.
    """
    if kind == "Sequential":
        return tf_keras.Sequential([_layer(tf_keras, described) for described in config["layers"]], name=config["name"])
    if kind != "Functional":
        raise ModelRefusedError(f"the model is a {kind}; expected a Sequential or a Functional model")
    made: dict[str, Any] = {}
    for described in config["layers"]:
        name, nodes = described["config"]["name"], described["inbound_nodes"]
        layer = _layer(tf_keras, described)
        if not nodes:
            made[name] = layer.output
            continue
        if len(nodes) != 1:
            raise ModelRefusedError(f"layer {name} is used {len(nodes)} times; layers that are shared are not rebuilt")
        arguments = [_tensors(argument, made) for argument in nodes[0]["args"]]
        made[name] = layer(*arguments)
    inputs, outputs = (_named(config[key], made) for key in ("input_layers", "output_layers"))
    return tf_keras.Model(inputs, outputs, name=config["name"])


def _layer(tf_keras: Any, described: Mapping[str, Any]) -> Any:
    kind, config = described["class_name"], described["config"]
    if kind == "InputLayer":
        return tf_keras.layers.InputLayer(batch_input_shape=config["batch_shape"], dtype="float32", name=config["name"])
    layer_type = getattr(tf_keras.layers, kind, None)
    if layer_type is None or "module" not in described or not str(described["module"]).startswith("keras.layers"):
        raise ModelRefusedError(f"layer {config.get('name')} is a {kind}, which Keras 2 does not have")
    known = inspect.signature(layer_type.__init__).parameters
    taken = {key: value for key, value in config.items() if key in known and not key.endswith(_NOT_TAKEN_OVER)}
    for key, value in taken.items():
        if isinstance(value, dict):
            raise ModelRefusedError(f"layer {config['name']}: {key} is not one of Keras's own")
    return layer_type(**taken, name=config["name"])


def _tensors(argument: Any, made: Mapping[str, Any]) -> Any:
    if isinstance(argument, list):
        return [_tensors(one, made) for one in argument]
    if isinstance(argument, dict) and argument.get("class_name") == "__keras_tensor__":
        return made[argument["config"]["keras_history"][0]]
    return argument


def _named(layers: Any, made: Mapping[str, Any]) -> Any:
    """Return the tensors of ``["name", 0, 0]``, or of a list of those."""
    if layers and isinstance(layers[0], str):
        return made[layers[0]]
    return [made[name] for name, *_ in layers]


def _clustered(tf_keras: Any, tfmot: Any, model: Any, job: Mapping[str, Any]) -> Any:
    from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster

    clusters = job["clusters"]
    large = {layer.name for layer in model.layers if _points(layer) >= _POINTS_PER_CLUSTER * clusters}
    if not large:
        raise ModelRefusedError(
            f"no kernel has {_POINTS_PER_CLUSTER * clusters} weights that are not zero, which {clusters} clusters take; "
            "fewer clusters may do"
        )

    def wrapped(layer: Any) -> Any:
        if layer.name not in large:
            return layer
        return cluster.cluster_weights(
            layer,
            number_of_clusters=clusters,
            cluster_centroids_init=tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS,
            preserve_sparsity=job["preserve_sparsity"],
        )

    clone = tf_keras.models.clone_model(model, clone_function=wrapped)
    _train(tf_keras, clone, job)
    return tfmot.clustering.keras.strip_clustering(clone)


def _points(layer: Any) -> int:
    kernel = getattr(layer, "kernel", None)
    return 0 if kernel is None else int(np.count_nonzero(kernel.numpy()))


def _quantization_aware(tf: Any, tf_keras: Any, tfmot: Any, model: Any, job: Mapping[str, Any]) -> bytes:
    shape = model.input_shape[1:]
    _use_up_names(tf_keras, {layer.name for layer in model.layers})
    try:
        annotated = tfmot.quantization.keras.quantize_annotate_model(model)
        quantized = tfmot.quantization.keras.quantize_apply(annotated, *_scheme(tfmot, job))
    except (ValueError, RuntimeError) as error:
        raise ModelRefusedError(_explained(str(error))) from None
    _train(tf_keras, quantized, job)
    function = tf.function(lambda x: quantized(x, training=False), autograph=False)
    concrete = function.get_concrete_function(tf.TensorSpec((1, *shape), tf.float32, name="input"))
    lite = tf.lite.TFLiteConverter.from_concrete_functions([concrete], quantized)
    lite.optimizations = [tf.lite.Optimize.DEFAULT]
    lite.inference_input_type = tf.int8
    lite.inference_output_type = tf.int8
    written: bytes = lite.convert()
    return written


def _use_up_names(tf_keras: Any, taken: Collection[str]) -> None:
    """Let Keras name no further layer as one of those is called.

    The library makes two layers of a SeparableConv2D, and gives them no names; one with the name of a layer of the model
    would be given its weights.
    """
    for word, layer_type, settings in (
        ("conv2d", tf_keras.layers.Conv2D, {"filters": 1, "kernel_size": 1}),
        ("depthwise_conv2d", tf_keras.layers.DepthwiseConv2D, {"kernel_size": 1}),
    ):
        numbers = [re.fullmatch(rf"{word}(?:_(\d{{1,5}}))?", name) for name in taken]
        for _ in range(max((int(number[1] or 0) for number in numbers if number), default=-1) + 1):
            layer_type(**settings)


def _explained(said: str) -> str:
    layer = re.match(r"Layer (\S+):<class '[\w.]*?(\w+)'> is not supported", said)
    if layer is not None:
        return f"layer {layer[1]} is a {layer[2]}, which tensorflow-model-optimization cannot train quantization-aware"
    return " ".join(said.split())[:250]


def _scheme(tfmot: Any, job: Mapping[str, Any]) -> tuple[Any, ...]:
    combine = tfmot.experimental.combine
    if job["preserve_clusters"]:
        return (combine.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=job["preserve_sparsity"]),)
    if job["preserve_sparsity"]:
        return (combine.Default8BitPrunePreserveQuantizeScheme(),)
    return ()


def _train(tf_keras: Any, model: Any, job: Mapping[str, Any]) -> None:
    x, y = np.load(job["x"], mmap_mode="r", allow_pickle=False), np.load(job["y"], allow_pickle=False)
    steps = job["epochs"] * -(-len(x) // job["batch"])
    model.compile(
        optimizer=tf_keras.optimizers.Adam(tf_keras.optimizers.schedules.CosineDecay(job["learning_rate"], steps)),
        loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=job["from_logits"]),
        jit_compile=False,
        steps_per_execution=8,
    )
    model.fit(np.asarray(x), y, batch_size=job["batch"], epochs=job["epochs"], verbose=0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
