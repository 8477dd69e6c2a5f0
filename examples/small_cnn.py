"""A small convolutional network on scikit-learn's handwritten digits (8 x 8 x 1).

    evenfleet optimize examples.small_cnn:model --data examples.small_cnn:data --out release/

Inputs are float32 pixels in 0..1. Needs `evenfleet[optimize]`; trains in a few seconds.
"""

from __future__ import annotations

from typing import Any

EPOCHS = 20


def data() -> dict[str, Any]:
    """Return 1,347 training and 450 test samples of shape (8, 8, 1), with labels 0 to 9."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = (digits.images / 16.0).astype("float32")[..., None]
    x_train, x_test, y_train, y_test = train_test_split(
        x, digits.target, test_size=450, random_state=0, stratify=digits.target
    )
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def model() -> Any:
    """Return the trained network: two convolutions, one pooling, two dense layers, softmax over 10 classes."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(10, activation="softmax"),
        ],
        name="small_cnn",
    )
    network.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, decay_steps=EPOCHS * 43)),
        loss="sparse_categorical_crossentropy",
        jit_compile=False,
        steps_per_execution=8,
    )
    samples = data()
    network.fit(samples["x_train"], samples["y_train"], batch_size=32, epochs=EPOCHS, verbose=0)
    return network
