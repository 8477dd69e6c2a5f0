"""The project's seed model: a dense network 64-32-10 on scikit-learn's handwritten digits (8 x 8 pixels).

    evenfleet optimize examples.digits_mlp:model --data examples.digits_mlp:data --out release/

Inputs are float32 pixels in 0..1, flattened. Needs `evenfleet[optimize]`; trains in a few seconds.
"""

from __future__ import annotations

from typing import Any

EPOCHS = 25


def data() -> dict[str, Any]:
    """Return 1,347 training and 450 test samples of shape (64,), with labels 0 to 9."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = (digits.data / 16.0).astype("float32")
    x_train, x_test, y_train, y_test = train_test_split(
        x, digits.target, test_size=450, random_state=0, stratify=digits.target
    )
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def model() -> Any:
    """Return the trained network: 64 inputs, 64 and 32 hidden units with ReLU, softmax over 10 classes."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((64,), name="pixels"),
            layers.Dense(64, activation="relu"),
            layers.Dense(32, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ],
        name="digits_mlp",
    )
    network.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-3, decay_steps=EPOCHS * 43)),
        loss="sparse_categorical_crossentropy",
        jit_compile=False,
        steps_per_execution=8,
    )
    samples = data()
    network.fit(samples["x_train"], samples["y_train"], batch_size=32, epochs=EPOCHS, verbose=0)
    return network
