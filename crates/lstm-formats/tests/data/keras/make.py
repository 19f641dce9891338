"""Writes small Keras models, each as .keras and as a whole-model .h5, with an input and the output of Keras.

    KERAS_BACKEND=torch python make.py      (pip: keras torch h5py safetensors)

NAME.safetensors holds `x` (batch, steps, features) or `tokens`, and `y`, or `last` where the model returns one step.
"""

import os
import pathlib
import sys

os.environ.setdefault("KERAS_BACKEND", "torch")
import keras
import numpy as np
from safetensors.numpy import save_file

L = keras.layers
out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
rng = np.random.default_rng(7)
keras.utils.set_random_seed(7)


def functional():
    x = inputs = keras.Input((None, 3), name="signal")
    x = L.Bidirectional(L.LSTM(4, return_sequences=True), merge_mode="sum", name="both")(x)
    x = L.TimeDistributed(L.Dense(3, activation="relu"))(x)
    x = L.SpatialDropout1D(0.2)(x)
    x = L.LSTM(5, dropout=0.1, recurrent_dropout=0.1)(x)
    x = L.Flatten()(x)
    x = L.Dense(2, activation="hard_sigmoid")(x)
    model = keras.Model(inputs, x)
    model.compile("adam", "mse", metrics=["mae"])  # Trained, so that the files hold the optimizer's state as well.
    model.fit(rng.standard_normal((4, 6, 3)), rng.standard_normal((4, 2)), verbose=0)
    return model


models = {
    "functional": functional,
    "backwards": lambda: keras.Sequential([
        L.Input((None, 2)),
        L.Bidirectional(L.LSTM(3, return_sequences=True, use_bias=False), merge_mode="ave"),
        L.LSTM(4, go_backwards=True, name="from the end"),
        L.Dense(3, use_bias=False),
        L.Activation("log_softmax"),
    ]),
    "backwards-twice": lambda: keras.Sequential([
        L.Input((None, 2)),
        L.LSTM(3, return_sequences=True, go_backwards=True),
        L.Dense(4, activation="tanh", name="first dense"),
        L.LSTM(3, return_sequences=True, go_backwards=True, stateful=False, unroll=False),
        L.Dense(2),
        L.ReLU(),
    ]),
    "bidirectional-last": lambda: keras.Sequential([
        L.Input((None, 3)),
        L.Dense(4, activation="sigmoid"),
        L.Bidirectional(L.LSTM(5)),
        L.GaussianNoise(0.1),
        L.Dense(1),
    ]),
    "nested": lambda: keras.Sequential([
        L.Input((None,)),
        L.Embedding(7, 3),
        keras.Sequential([L.LSTM(3, return_sequences=True), L.Dense(2)], name="inner"),
        L.LSTM(4, return_sequences=True),
        L.TimeDistributed(L.Dense(3)),
        L.Softmax(),
    ]),
    "deferred": lambda: keras.Sequential([L.Dense(3), L.LSTM(4), L.Dense(1)]),
    "gates": lambda: keras.Sequential([
        L.Input((None, 2)),
        L.LSTM(3, activation="relu", recurrent_activation="hard_sigmoid", return_sequences=True),
        L.LSTM(2, activation="sigmoid", return_sequences=True),
    ]),
    "one-step": lambda: keras.Sequential([
        L.Input((3,)),
        L.Reshape((1, 3)),
        L.LSTM(4, return_sequences=True),
        L.Identity(),
        L.Activation("linear"),
        L.Flatten(),
        L.Reshape((4,)),
        L.Dense(2),
    ]),
}
for name, make in models.items():
    model = make()
    if name == "deferred":
        model(np.zeros((1, 2, 3)))
    if name != "functional":
        for weight in model.weights:
            if "seed" not in weight.path:
                weight.assign(rng.uniform(-0.5, 0.5, weight.shape))
    if name == "nested":
        given = {"tokens": rng.integers(0, 7, (2, 6))}
    else:
        given = {"x": rng.standard_normal((2, 6, model.input_shape[-1])).astype("float32")}
    if name == "one-step":
        x = rng.standard_normal((2, 3)).astype("float32")
        model_input, given = x, {"x": x[:, None]}
    else:
        [model_input] = given.values()
    y = np.ascontiguousarray(model(model_input).detach().numpy())
    model.save(out / f"{name}.keras")
    model.save(out / f"{name}.h5")
    save_file({**given, ("y" if y.ndim == 3 else "last"): y}, out / f"{name}.safetensors")
    if name == "bidirectional-last":
        model.save_weights(out / "only.weights.h5")


def to_cudnn(kernel, recurrent_kernel, bias):
    """The parameters of Keras 2's CuDNNLSTM with the results of an LSTM, as in `_convert_rnn_weights` of Keras 2."""
    gates = lambda f, kernels: np.hstack([f(k) for k in np.hsplit(kernels, 4)])
    return [
        gates(lambda k: k.T.reshape(k.shape, order="C"), kernel),
        gates(lambda k: k.T, recurrent_kernel),
        np.tile(0.5 * bias, 2),
    ]


# Keras 3 has no CuDNNLSTM: the files of the LSTM, with other parameters.
import json

import h5py

model = keras.Sequential([L.Input((None, 3)), L.LSTM(4, return_sequences=True), L.Dense(2)])
for weight in model.weights:
    weight.assign(rng.uniform(-0.5, 0.5, weight.shape))
x = rng.standard_normal((2, 6, 3)).astype("float32")
save_file({"x": x, "y": np.ascontiguousarray(model(x).detach().numpy())}, out / "cudnn.safetensors")
model.save(out / "cudnn.h5")
with h5py.File(out / "cudnn.h5", "r+") as file:
    config = json.loads(file.attrs["model_config"])
    layer = config["config"]["layers"][1]
    layer["class_name"] = "CuDNNLSTM"
    for key in ["activation", "recurrent_activation", "use_bias", "dropout", "recurrent_dropout", "unroll", "seed"]:
        del layer["config"][key]
    file.attrs["model_config"] = json.dumps(config)
    group = file["model_weights"][layer["config"]["name"]]
    for name, values in zip(group.attrs["weight_names"], to_cudnn(*[w.numpy() for w in model.layers[0].weights])):
        del group[name]
        group[name] = values.astype("float32")
