#!/usr/bin/env python3
"""Exports Keras LSTM layers to ONNX (with TensorFlow and tf2onnx). Writes keras-NAME.onnx, and the inputs and Keras's
outputs in keras-NAME.safetensors as make_onnx.py does, with the axes of the Keras model.

    make_keras.py OUT_DIR SEED     needs keras, tensorflow, tf2onnx, onnx and safetensors

The files in this folder were written by `make_keras.py . 7`. The same seed gives the same values, but the order of the
nodes that tf2onnx writes is random.
"""
import json, os, pathlib, sys
os.environ["KERAS_BACKEND"], os.environ["TF_CPP_MIN_LOG_LEVEL"] = "tensorflow", "3"
import keras, numpy as np, onnx
from keras import layers
from safetensors.numpy import save_file

out, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2])
keras.utils.set_random_seed(seed)

def strip(path):
    """Removes metadata that does not affect the results, and shortens the names of nodes and values."""
    model = onnx.load(path)
    graph, names = model.graph, {"": ""}
    del graph.value_info[:]
    for item in [*graph.input, *graph.output, *graph.node]:
        item.ClearField("doc_string")
    # Inputs and outputs of the graph keep their names.
    names |= {value.name: value.name for value in [*graph.input, *graph.output]}
    short = lambda name: names.setdefault(name, f"v{len(names)}")
    for tensor in graph.initializer:
        tensor.name = short(tensor.name)
    for k, node in enumerate(graph.node):
        node.name = f"n{k}"
        node.input[:], node.output[:] = map(short, node.input), map(short, node.output)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)

def export(name, outputs, build, states=()):
    """Exports a model. `build` maps the input and the initial states ([batch, 4], h and c alternating) to the outputs, whose
    names are `outputs`."""
    x = keras.Input((None, 3), name="X")
    inputs = [x, *(keras.Input((4,), name=s) for s in states)]
    model = keras.Model(inputs, build(*inputs))
    for weight in model.trainable_variables:
        if "bias" in weight.path:
            weight.assign(np.random.uniform(-1, 1, weight.shape))
    arrays = {"X": np.random.standard_normal((2, 5, 3)).astype(np.float32)}
    arrays |= {s: np.random.uniform(-1, 1, (2, 4)).astype(np.float32) for s in states}
    args = list(arrays.values())
    got = model(args if states else args[0])
    path = out / f"keras-{name}.onnx"
    model.export(path, format="onnx", verbose=False)
    strip(path)
    got = got if isinstance(got, (list, tuple)) else [got]
    arrays |= {n: v.numpy() for n, v in zip(outputs, got, strict=True)}
    save_file({n: np.ascontiguousarray(v) for n, v in arrays.items()}, path.with_suffix(".safetensors"))
    print(path.name, [n.op_type for n in onnx.load(path).graph.node])

def rtneural(name, model):
    """Writes a model to ../rtneural in RTNeural's format, as `model_utils.py` of that project does."""
    x = np.random.standard_normal((2, 9, model.input_shape[-1])).astype(np.float32)
    y = model(x).numpy()
    kinds = {layers.LSTM: "lstm", layers.Dense: "dense", layers.TimeDistributed: "time-distributed-dense"}
    activation = lambda layer: "tanh" if isinstance(layer, layers.LSTM) else ""
    described = [{"type": kinds[type(l)], "activation": activation(l), "shape": l.output.shape, "weights": [w.tolist() for w in l.get_weights()]} for l in model.layers]
    path = out.parent / "rtneural" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"in_shape": model.input_shape, "layers": described}) + "\n")
    save_file({"X": x, "Y": y}, path.with_suffix(".safetensors"))
    print(path.name)

lstm = lambda **options: layers.LSTM(4, **options)
sequences = lambda **options: lstm(return_sequences=True, **options)
export("sequences", ["Y"], lambda x: sequences()(x))
export("last", ["Y_h"], lambda x: lstm()(x))
export("no-bias", ["Y"], lambda x: sequences(use_bias=False)(x))
export("stacked", ["Y"], lambda x: sequences()(layers.Dropout(0.5)(sequences()(x))))
export("stacked-last", ["Y_h"], lambda x: lstm()(sequences()(x)))
export("states", ["Y", "Y_h", "Y_c"], lambda x: sequences(return_state=True)(x))
export("initial-state", ["Y", "Y_h", "Y_c"], lambda x, h, c: sequences(return_state=True)(x, initial_state=[h, c]), ["initial_h", "initial_c"])
export("initial-state-per-layer", ["Y"], lambda x, h, c, h1, c1: sequences()(sequences()(x, initial_state=[h, c]), initial_state=[h1, c1]),
       ["initial_h", "initial_c", "initial_h_1", "initial_c_1"])
export("bidirectional", ["Y"], lambda x: layers.Bidirectional(sequences())(x))
export("bidirectional-last", ["Y_h"], lambda x: layers.Bidirectional(lstm())(x))
export("bidirectional-stacked", ["Y_h"], lambda x: layers.Bidirectional(lstm())(layers.Bidirectional(sequences())(x)))
export("bidirectional-states", ["Y", "Y_h", "Y_c", "Y_h_1", "Y_c_1"], lambda x: layers.Bidirectional(sequences(return_state=True))(x))
export("bidirectional-initial-state", ["Y"], lambda x, h, c, h1, c1: layers.Bidirectional(sequences())(x, initial_state=[h, c, h1, c1]),
       ["initial_h", "initial_c", "initial_h_1", "initial_c_1"])

rtneural("one", keras.Sequential([keras.Input((None, 1)), sequences(), layers.Dense(1)]))
rtneural("stacked", keras.Sequential([keras.Input((None, 3)), sequences(), sequences(), layers.TimeDistributed(layers.Dense(2))]))
rtneural("no-head", keras.Sequential([keras.Input((None, 2)), sequences()]))
