"""The model as a TensorFlow SavedModel, and how a Keras model or another SavedModel becomes one of known signature.

What is written from Keras has the signature ``serving_default``: ``input`` float32 ``(batch, …)`` to ``output`` float32
``(batch, classes)``, no metadata with dates or random numbers, and the same bytes for the same weights and layer names:
whatever the process did before, and whether the model was trained here or loaded from a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from evenfleet_collector.optimize import canonical
from evenfleet_collector.optimize.technique import Form, Material, Stage, Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainSavedModel(Technique):
    """The SavedModel as it is."""

    name: ClassVar[str] = "saved-model"
    takes: ClassVar[Stage] = "saved_model"
    gives: ClassVar[Stage] = "saved_model"

    def apply(self, form: Form, material: Material) -> Form:
        """Change nothing: exporting was all."""
        return form


def export_keras(model: Any, sample_shape: Sequence[int], material: Material) -> Form:
    """Write a Keras model as a SavedModel, once for any batch size and once for a batch of one.

    `model.export` would do, but orders variables by identity: no two exports have the same bytes. Variables get names of
    their own here, since Keras names them by whether the model was built, cloned or loaded. A layer that changes its own
    state while it is served changes nothing in the SavedModel.
    """
    import keras
    import tensorflow as tf

    module = tf.Module()
    module.weights = [tf.Variable(weight.value, name=f"weight_{n}") for n, weight in enumerate(model.weights)]

    def call(x: Any) -> Any:
        with keras.StatelessScope(zip(model.weights, module.weights, strict=True)):
            return model(x, training=False)

    any_size, one = material.new_path("saved-model"), material.new_path("saved-model-batch-1")
    own = [variable.value for variable in model.variables]
    _save(module, call, sample_shape, {None: any_size, 1: one}, own)
    return Form(
        stage="saved_model",
        keras=model,
        saved_model=any_size,
        batch_of_one=one,
        parameters=int(model.count_params()),
    )


def wrap_loaded(directory: Path, loaded: Any, sample_shape: Sequence[int], material: Material) -> Form:
    """Take a SavedModel that was given: kept as it is, and once more with a batch of one."""
    import tensorflow as tf

    signature = loaded.signatures["serving_default"]
    (input_name,) = signature.structured_input_signature[1]
    (output_name,) = signature.structured_outputs
    module = tf.Module()
    module.original = loaded
    one = material.new_path("saved-model-batch-1")
    _save(module, lambda x: signature(**{input_name: x})[output_name], sample_shape, {1: one})
    parameters = sum(int(variable.shape.num_elements() or 0) for variable in getattr(loaded, "variables", ()))
    return Form(stage="saved_model", saved_model=directory, batch_of_one=one, parameters=parameters or None)


def _save(
    module: Any,
    call: Callable[[Any], Any],
    sample_shape: Sequence[int],
    paths: Mapping[int | None, Path],
    variables: Sequence[Any] = (),
) -> None:
    """Write what `call` computes, by batch size (None: any), with the signature that this module's docstring names.

    Those of `variables` that `call` reads by themselves are written along: random states, or a layer around another SavedModel.
    """
    import tensorflow as tf

    def serve(input: Any) -> dict[str, Any]:  # noqa: A002 - the signature's word
        return {"output": call(input)}

    for batch, path in paths.items():
        # Made anew for each: a function that has been traced for any size is not traced again for one.
        function = tf.function(serve, autograph=False)
        concrete = function.get_concrete_function(tf.TensorSpec((batch, *sample_shape), tf.float32, name="input"))
        read = [one for one in variables if any(one.handle is taken for taken in concrete.captured_inputs)]
        if read:
            module.read = read
        tf.saved_model.save(module, str(path), signatures={"serving_default": concrete})
        canonical.rewrite(path / "saved_model.pb")
        # Holds a random id; loading does without (it did not exist before TensorFlow 2.12).
        (path / "fingerprint.pb").unlink(missing_ok=True)
