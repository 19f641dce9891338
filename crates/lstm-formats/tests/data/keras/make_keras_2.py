"""Writes small models of Keras 2, as make.py does of Keras 3.

    python make_keras_2.py      (pip: tensorflow-cpu==2.15.1 safetensors)
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf
from safetensors.numpy import save_file

keras = tf.keras
L = keras.layers
out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
rng = np.random.default_rng(7)
keras.utils.set_random_seed(7)


def functional():
    x = inputs = keras.Input((None, 3))
    x = L.Bidirectional(L.LSTM(4, return_sequences=True, dropout=0.1, recurrent_dropout=0.1), merge_mode="ave")(x)
    x = L.TimeDistributed(L.Dense(3, activation="relu"))(x)
    x = L.SpatialDropout1D(0.2)(x)
    x = L.LSTM(5, recurrent_activation="hard_sigmoid")(x)
    x = L.Dense(2, activation="hard_sigmoid")(x)
    model = keras.Model(inputs, x)
    model.compile("adam", "mse", metrics=["mae"])  # Trained, so that the files hold the optimizer's state as well.
    model.fit(rng.standard_normal((4, 6, 3)), rng.standard_normal((4, 2)), verbose=0)
    return model


models = {
    "keras-2-functional": functional,
    "keras-2-sequential": lambda: keras.Sequential([
        L.Embedding(7, 3, input_length=6),
        L.Dropout(0.3),
        L.LSTM(3, return_sequences=True, implementation=1),
        keras.Sequential([L.LSTM(4, return_sequences=True, go_backwards=True), L.Dense(2)], name="inner"),
        L.LSTM(2, go_backwards=True, return_sequences=True),
        L.Dense(3),
        L.Activation("softmax"),
    ]),
    "keras-2-no-input": lambda: keras.Sequential([
        L.LSTM(3, return_sequences=True, input_shape=(None, 2)),
        L.LSTM(3, activation="relu", use_bias=False),
        L.Flatten(),
        L.Dense(1),
    ]),
}
for name, make in models.items():
    model = make()
    if "functional" not in name:
        model.build((None, 6) if "sequential" in name else (None, None, 2))
        model.set_weights([rng.uniform(-0.5, 0.5, weight.shape) for weight in model.get_weights()])
    if "sequential" in name:
        given = {"tokens": rng.integers(0, 7, (2, 6))}
    else:
        given = {"x": rng.standard_normal((2, 6, model.input_shape[-1])).astype("float32")}
    y = np.ascontiguousarray(model(*given.values()).numpy())
    model.save(out / f"{name}.keras")
    model.save(out / f"{name}.h5")
    save_file({**given, ("y" if y.ndim == 3 else "last"): y}, out / f"{name}.safetensors")
